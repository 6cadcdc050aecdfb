"""The command `python -m sbs_jax.frontier`; see `sbs_jax.programs.frontier`."""

import sys

from sbs_jax.programs.frontier import main

if __name__ == "__main__":
    sys.exit(main())
