"""The command `python -m sbs_jax.sweep`; see `sbs_jax.programs.sweep`."""

import sys

from sbs_jax.programs.sweep import main

if __name__ == "__main__":
    sys.exit(main())
