"""Many runs at once: grids, engines that run them, searches, reports."""
