r"""Writes a task, tokenized, into SeqIO's cache; runs with USE_CACHED_TASKS = True read it.

For instance:
    python -m sbs_jax.cache --gin_file=runs/cache.gin --gin_file=tasks/svamp.gin \
      --gin.DATA_DIR=PATH --gin.CACHE_DIR=PATH
"""

import sys
from functools import partial

from sbs_jax.configuration.main import run_main

main = partial(run_main, "sbs_jax.programs.cache:write_cache", description=__doc__)

if __name__ == "__main__":
    sys.exit(main())
