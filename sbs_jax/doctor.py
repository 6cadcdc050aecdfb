"""The command `sbs doctor`; see `sbs_jax.programs.doctor`."""

import sys

from sbs_jax.programs.doctor import main

if __name__ == "__main__":
    sys.exit(main())
