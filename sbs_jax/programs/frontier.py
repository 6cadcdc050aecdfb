r"""Searches for the smallest student and the least data that beat a target accuracy.

For instance:
    python -m sbs_jax.frontier --gin_file=sweeps/sizes.gin --gin_file=tasks/svamp.gin \
      --sweep TRAIN_FRACTION=0.125,0.25,0.5,1.0 --target=0.69 --sweep_dir=PATH

It takes all flags of `python -m sbs_jax.sweep`, and says before it starts how many runs it needs at
most.
"""

import sys
from collections.abc import Sequence

from sbs_jax.errors import with_exit_code
from sbs_jax.experiments import searching
from sbs_jax.programs.sweep import help_text


@with_exit_code
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(argv):
        own, others = searching.parser().parse_known_args(argv)
        del own
        print(help_text(others, "python -m sbs_jax.frontier", __doc__ or ""))
        print("\nflags of a search:" + searching.parser().format_help().partition("options:")[2])
        return 0
    return searching.run(argv)
