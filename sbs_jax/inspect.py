"""The former name of the command `python -m sbs_jax.inspect_task`, still accepted."""

import sys

from sbs_jax.inspect_task import main

if __name__ == "__main__":
    sys.exit(main())
