r"""Trains a student step by step.

For instance:
    python -m sbs_jax.train --gin_file=examples/svamp_t5_1_1_small.gin \
      --gin.DATA_DIR=PATH --gin.MODEL_DIR=PATH
"""

import sys
from collections.abc import Sequence

from sbs_jax.configuration.main import run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    return run_main("sbs_jax.programs.train:train", argv, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
