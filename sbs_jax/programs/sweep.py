r"""Trains a grid of students, each in a folder of its own, and resumes where it was stopped.

For instance:
    python -m sbs_jax.sweep --gin_file=sweeps/lambda.gin --sweep_dir=PATH
    python -m sbs_jax.sweep --gin_file=examples/quickstart.gin --gin_file=runs/sweep.gin \
      --sweep RATIONALE_WEIGHT=0,0.3,1 --sweep SEED=0:3 --sweep_dir=PATH --dry_run
"""

import sys
from collections.abc import Sequence

from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import help as help_lib
from sbs_jax.errors import with_exit_code
from sbs_jax.experiments import planning, runs, sweeping


@with_exit_code
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(argv):
        print(help_text(argv, "python -m sbs_jax.sweep", __doc__ or ""))
        return 0
    return sweeping.run(argv)


def help_text(argv: list[str], program: str, description: str) -> str:
    """The flags of a program that runs sweeps, and the macros of the gin files given."""
    _, flags = planning.parse(argv)
    config = config_lib.read(
        flags.gin_file, flags.gin_bindings, flags.gin, flags.gin_search_paths, target=runs.TRAIN
    )
    shared = help_lib.help_text(program, description, flags, config)
    own = planning.parser().format_help().partition("options:")[2]
    return f"{shared}\n\nflags of a sweep:{own}"
