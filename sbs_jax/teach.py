"""Turns a data set into rationales and labels, by asking an LLM.

For instance:
    python -m sbs_jax.teach --gin_file=runs/teach.gin --gin_file=tasks/svamp.gin \
      --gin.DATA_DIR=PATH --gin.OUTPUT_DIR=PATH --gin.BASE_URL=http://localhost:8000/v1 \
      --gin.TEACHER_MODEL=NAME

Besides the common flags there are --preview N (print N prompts, send nothing), --offline (derive
rationales from what was answered, ask nothing) and --stats OUTPUT_DIR (show a run's table again).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sbs_jax.configuration.main import run_main
from sbs_jax.errors import UserError, with_exit_code


@with_exit_code
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    folder, arguments = _own_flags(arguments)
    if folder is not None:
        from sbs_jax.teacher.stats import show_stats

        show_stats(folder)
        return 0
    return run_main(
        "sbs_jax.programs.teach:teach",
        arguments,
        description=__doc__,
        is_finished=lambda run: not run or run["status"] == "complete",
    )


def _own_flags(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Turns this program's own flags into macros; returns the folder of --stats, and the rest."""
    folder, rest = None, []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name in ("--stats", "--preview"):
            value = value if equals else next(waiting, "")
            if name == "--stats":
                if not value:
                    raise UserError("--stats: give the OUTPUT_DIR of a run.")
                folder = value
            elif not value.isdecimal():
                raise UserError("--preview: give a number of prompts, as in --preview 3.")
            else:
                rest.append(f"--gin.PREVIEW={value}")
        elif argument == "--offline":
            rest.append("--gin.OFFLINE=True")
        else:
            rest.append(argument)
    return folder, rest


if __name__ == "__main__":
    sys.exit(main())
