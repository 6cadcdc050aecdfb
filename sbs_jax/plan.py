"""The command `python -m sbs_jax.plan`; see `sbs_jax.programs.plan`."""

import sys

from sbs_jax.programs.plan import main

if __name__ == "__main__":
    sys.exit(main())
