"""All commands behind one name: `sbs train …` is `python -m sbs_jax.train …`."""

from __future__ import annotations

import ast
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sbs_jax.errors import with_exit_code

FOLDER = Path(__file__).parent


@with_exit_code
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(help_text())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from sbs_jax import __version__

        print(__version__)
        return 0
    name = arguments[0].replace("-", "_")
    if name not in commands():
        close = difflib.get_close_matches(name, commands(), n=1)
        hint = f"did you mean {close[0]}?" if close else "sbs --help lists the commands."
        print(f"error: {arguments[0]}: unknown command; {hint}", file=sys.stderr)
        return 1
    # As `python -m` does: MIXTURE_OR_TASK_MODULE may name a file in the working folder.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(f"sbs_jax.{name}").main(arguments[1:])


def commands() -> list[str]:
    """Names of the commands: each is a file here with a program of its name."""
    names = {path.stem for path in FOLDER.glob("[a-z]*.py")}
    return sorted(names & {path.stem for path in (FOLDER / "programs").glob("*.py")})


def help_text() -> str:
    """The commands, with what each one does."""
    lines = ["usage: sbs COMMAND [flags]; sbs COMMAND --help says more", ""]
    width = max(map(len, commands()))
    for name in commands():
        source = (FOLDER / "programs" / f"{name}.py").read_text(encoding="utf-8")
        summary = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
        lines.append(f"  {name:<{width}}  {summary.split(': `python -m')[0].rstrip('.')}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
