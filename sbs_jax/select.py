r"""Scores a teacher's rationales by how much they help a student, and keeps the best.

For instance:
    python -m sbs_jax.select --gin_file=runs/select.gin --gin.CHECKPOINT_PATH=PATH \
      --gin.RATIONALES_FILE=taught/rationales.jsonl --gin.OUTPUT_DIR=selected --gin.BEST=1
"""

import sys
from functools import partial

from sbs_jax.configuration.main import run_main

main = partial(run_main, "sbs_jax.programs.select:select", description=__doc__)

if __name__ == "__main__":
    sys.exit(main())
