r"""Answers inputs with a trained student.

For instance:
    python -m sbs_jax.infer --gin_file=runs/infer.gin --gin.CHECKPOINT_PATH=PATH \
      --gin.INPUT_FILE=questions.jsonl --gin.OUTPUT_FILE=answers.jsonl

Or at the terminal, input by input, with what mattered to each label:
    python -m sbs_jax.infer --interactive --gin.CHECKPOINT_PATH=PATH
"""

import sys
from collections.abc import Sequence

from sbs_jax.configuration.flags import with_gin_file
from sbs_jax.configuration.main import run_main

_INTERACTIVE = "--interactive"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    target = "sbs_jax.programs.infer:infer"
    if _INTERACTIVE in argv:
        argv = [argument for argument in argv if argument != _INTERACTIVE]
        argv = with_gin_file(argv, "runs/infer.gin")
        target = "sbs_jax.programs.infer:interact"
    return run_main(target, argv, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
