"""Compiling a run's programs ahead of time for named hardware, and what that tells about them."""
