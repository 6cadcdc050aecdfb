r"""Writes weights of any origin as a folder of Hugging Face's transformers.

For instance:
    python -m sbs_jax.export --gin_file=runs/export.gin \
      --gin.CHECKPOINT_PATH=MODEL_DIR --gin.OUTPUT_DIR=PATH
"""

import sys
from functools import partial

from sbs_jax.configuration.main import run_main

main = partial(run_main, "sbs_jax.programs.export:export", description=__doc__)

if __name__ == "__main__":
    sys.exit(main())
