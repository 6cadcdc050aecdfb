"""The command `python -m sbs_jax.report`; see `sbs_jax.programs.report`."""

import sys

from sbs_jax.programs.report import main

if __name__ == "__main__":
    sys.exit(main())
