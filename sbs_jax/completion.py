"""The command `sbs completion bash|zsh`; see `sbs_jax.programs.completion`."""

import sys

from sbs_jax.programs.completion import main

if __name__ == "__main__":
    sys.exit(main())
