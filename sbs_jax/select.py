r"""Scores a teacher's rationales by how much they help a student, and keeps the best.

For instance:
    python -m sbs_jax.select --gin_file=runs/select.gin --gin.CHECKPOINT_PATH=PATH \
      --gin.RATIONALES_FILE=taught/rationales.jsonl --gin.OUTPUT_DIR=selected --gin.BEST=1
"""

import sys
from collections.abc import Sequence

from sbs_jax.configuration.main import run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    return run_main("sbs_jax.programs.select:select", argv, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
