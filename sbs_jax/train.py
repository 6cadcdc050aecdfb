r"""Trains a student step by step.

For instance:
    python -m sbs_jax.train --gin_file=examples/svamp_t5_1_1_small.gin \
      --gin.DATA_DIR=PATH --gin.MODEL_DIR=PATH
"""

import sys
from functools import partial

from sbs_jax.configuration.main import run_main

main = partial(run_main, "sbs_jax.programs.train:train", description=__doc__)

if __name__ == "__main__":
    sys.exit(main())
