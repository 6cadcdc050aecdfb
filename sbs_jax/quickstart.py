"""The command `python -m sbs_jax.quickstart`; see `sbs_jax.programs.quickstart`."""

import sys

from sbs_jax.programs.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
