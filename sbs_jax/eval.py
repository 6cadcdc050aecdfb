r"""Evaluates a trained student.

For instance:
    python -m sbs_jax.eval --gin_file=runs/eval.gin --gin_file=tasks/svamp.gin \
      --gin.DATA_DIR=PATH --gin.CHECKPOINT_PATH=PATH --gin.EVAL_OUTPUT_DIR=PATH

Or compares two prediction files of the same examples by a paired bootstrap:
    python -m sbs_jax.eval --compare A.jsonl B.jsonl

Or two methods by several runs of each, named by quoted patterns of MODEL_DIRs or files:
    python -m sbs_jax.eval --compare 'runs/standard-*' 'runs/sbs-*'
"""

import sys
from collections.abc import Sequence

from sbs_jax.configuration.main import run_main
from sbs_jax.errors import UserError, with_exit_code
from sbs_jax.scores import compare as comparing


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--compare" in argv:
        return compare(argv)
    return run_main("sbs_jax.programs.eval:evaluate", argv, description=__doc__)


@with_exit_code
def compare(argv: list[str]) -> int:
    """Runs ``--compare A B``; returns the exit code."""
    if len(argv) != 3 or argv[0] != "--compare":
        raise UserError(
            "--compare takes two prediction files, MODEL_DIRs or quoted patterns of them, and "
            "nothing else."
        )
    print(comparing.compare(argv[1], argv[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
