"""The command line that all programs share: T5X's flags and a few of our own."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Sequence

from sbs_jax.errors import UNFINISHED, UserError

VERBOSITIES = ("debug", "info", "warning", "error")


@dataclasses.dataclass(frozen=True)
class Flags:
    """The command line, parsed.

    Attributes:
      gin_file: gin files in the order in which they are read.
      gin_bindings: whole gin lines.
      gin: name and text of every `--gin.NAME=TEXT`.
      gin_search_paths: folders in which gin files are looked for.
      dry_run: build everything, run nothing.
      verbosity: the least level that is logged.
      coordinator_address: `host:port` of process 0, or `auto`; None for one process.
      process_count: how many processes run together.
      process_index: which of them this is, from 0.
      compilation_cache_dir: where compiled programs are kept; `off` keeps none; None is the
        default folder.
      exit_zero_when_stopped: end with 0 where `errors.UNFINISHED` would be the exit code.
      help: print the flags and the macros, run nothing.
    """

    gin_file: tuple[str, ...]
    gin_bindings: tuple[str, ...]
    gin: tuple[tuple[str, str], ...]
    gin_search_paths: tuple[str, ...]
    dry_run: bool
    verbosity: str
    coordinator_address: str | None
    process_count: int | None
    process_index: int | None
    compilation_cache_dir: str | None
    exit_zero_when_stopped: bool
    help: bool


def parse_flags(argv: Sequence[str]) -> Flags:
    """Parses the command line.

    Raises:
      UserError: a flag is unknown or its value is malformed.
    """
    gin_flags: list[tuple[str, str]] = []
    others: list[str] = []
    for argument in argv:
        if argument.startswith("--profile_steps="):  # Short for the macro.
            argument = argument.replace("--profile_steps", "--gin.PROFILE_STEPS", 1)
        if not argument.startswith("--gin."):
            others.append(argument)
            continue
        name, equals, text = argument.removeprefix("--gin.").partition("=")
        if not equals:
            raise UserError(f"{argument}: write --gin.NAME=VALUE, without spaces around the =.")
        gin_flags.append((name.strip(), text.strip()))
    flags = parser()
    known, unknown = flags.parse_known_args(others)
    if unknown:
        options = [*flags._option_string_actions, "--gin.NAME=VALUE"]
        close = difflib.get_close_matches(unknown[0].split("=")[0], options, n=1)
        hint = f"did you mean {close[0]}?" if close else "see --help."
        kind = "flag" if unknown[0].startswith("-") else "argument"
        raise UserError(f"{unknown[0]}: unknown {kind}; {hint}")
    if known.trust_modules:
        gin_flags.append(("TRUST_MODULES", "True"))
    paths = [path for group in known.gin_search_paths for path in group.split(",") if path]
    return Flags(
        gin_file=tuple(known.gin_file),
        gin_bindings=tuple(known.gin_bindings),
        gin=tuple(gin_flags),
        gin_search_paths=tuple(paths),
        dry_run=known.dry_run,
        verbosity=known.verbosity,
        coordinator_address=known.coordinator_address,
        process_count=known.process_count,
        process_index=known.process_index,
        compilation_cache_dir=known.compilation_cache_dir,
        exit_zero_when_stopped=known.exit_zero_when_stopped,
        help=known.help,
    )


def with_gin_file(argv: Sequence[str], name: str) -> list[str]:
    """Adds `--gin_file={name}` in front, unless `argv` has it.

    >>> with_gin_file(['--gin.PORT=80'], 'runs/serve.gin')
    ['--gin_file=runs/serve.gin', '--gin.PORT=80']
    """
    given = any(argument.removeprefix("--gin_file=").endswith(name) for argument in argv)
    return list(argv) if given else [f"--gin_file={name}", *argv]


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are `UserError`s."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raises the mistake in the place of argparse, which would print the usage and exit."""
        raise UserError(f"{message}; see --help.")


def parser(program: str = "", description: str = "") -> argparse.ArgumentParser:
    """The parser of the flags; `help` completes its help."""
    made = Parser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --gin_file=FILE … [--gin.NAME=VALUE …] [flags]",
        add_help=False,
        allow_abbrev=False,
    )
    add = made.add_argument
    add(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="a gin file; may be repeated, later ones win. A path is looked up in the working "
        "folder, in --gin_search_paths and among sbs_jax's own gin files.",
    )
    # Taken off the command line before argparse sees it; here for --help.
    add(
        "--gin.NAME",
        metavar="VALUE",
        dest="unused",
        help="sets a macro, or a parameter (module.function.parameter), after all files; strings "
        "may be quoted as T5X wants it or given plainly.",
    )
    add(
        "--gin_bindings",
        action="append",
        default=[],
        metavar="LINE",
        help='a whole line of gin, such as "BATCH_SIZE = 16"; may be repeated.',
    )
    add(
        "--gin_search_paths",
        action="append",
        default=[],
        metavar="FOLDERS",
        help="where else to look for gin files, separated by commas.",
    )
    add(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="build everything and show it, run nothing.",
    )
    # As --gin.NAME, it is taken off the command line before argparse sees it.
    add(
        "--profile_steps",
        metavar="FIRST:END",
        dest="unused",
        help="profile these steps of training, 10:15 for steps 10 to 14; the same as "
        "--gin.PROFILE_STEPS.",
    )
    add(
        "--verbosity",
        choices=VERBOSITIES,
        default="info",
        help="how much to log (default: info); debug also shows the traceback of an error.",
    )
    add(
        "--coordinator_address",
        metavar="HOST:PORT",
        help="process 0, if there are several; auto on a cluster that JAX knows.",
    )
    add("--process_count", type=int, metavar="N", help="number of processes.")
    add("--process_index", type=int, metavar="I", help="number of this process, from 0.")
    add(
        "--compilation_cache_dir",
        metavar="FOLDER",
        help="where compiled programs are kept (default: the user's cache folder), or off.",
    )
    add(
        "--trust_modules",
        action="store_true",
        help="import the module that a checkpoint names for its task, which runs that module's "
        "code (eval, infer, serve); the same as --gin.TRUST_MODULES=True.",
    )
    add(
        "--exit_zero_when_stopped",
        action="store_true",
        help=f"end with exit code 0, instead of {UNFINISHED}, when a signal or a budget stops the "
        "program before its work is done, or when answers are missing.",
    )
    add("--help", "-h", action="store_true", help="show this, and the macros of the gin files.")
    return made
