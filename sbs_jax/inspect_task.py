"""Shows a task as a student sees it: counts, lengths, labels, the teacher's accuracy, examples.

For instance:
    python -m sbs_jax.inspect_task --gin_file=runs/inspect_task.gin --gin_file=tasks/svamp.gin \
      --gin.DATA_DIR=PATH --gin.METHOD=joint
"""

import sys
from functools import partial

from sbs_jax.configuration.main import run_main

main = partial(run_main, "sbs_jax.programs.inspect_task:inspect_task", description=__doc__)

if __name__ == "__main__":
    sys.exit(main())
