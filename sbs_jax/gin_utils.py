"""What all mains share: T5X's flags, gin files, readable errors, logging, the compilation cache.

    python -m sbs_jax.train --gin_file=runs/train.gin --gin.MODEL_DIR=runs/x --gin.TRAIN_STEPS=1000

`run_main` reads the flags and the gin files, checks them before anything slow is imported, and
calls one function with the arguments that gin gives it.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import inspect
import logging
import os
import shlex
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin

import sbs_jax
from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import dump, lookup, reader
from sbs_jax.errors import UNFINISHED, UserError
from sbs_jax.files import DISK_ERRORS, atomic_write_text, refused
from sbs_jax.host_memory import keep_freed_memory
from sbs_jax.partitioning import peers
from sbs_jax.redaction import holds_secret

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_CACHE_OFF = "off"

log = logging.getLogger(__name__)


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


def run_main(
    target: str,
    argv: Sequence[str] | None = None,
    *,
    description: str,
    is_finished: Callable[[Any], bool] = lambda result: not getattr(result, "interrupted", False),
) -> int:
    """Runs `target` as the command line and its gin files configure it.

    Args:
      target: `module:function`; imported after the flags have been checked. `--dry_run` is passed
        on as its parameter `dry_run`, and its parameter `config_text`, if it has one, gets the
        final configuration.
      argv: the arguments without the program's name; the process's own by default.
      description: what the program does, for `--help`.
      is_finished: whether what `target` returns means that the work is done; by default, unless
        it says that it was `interrupted`, as `training.loop.Finished` may.

    Returns:
      The process's exit code:

      * 0: the work is done.
      * `errors.UNFINISHED` (75): it is not, because a signal or a budget stopped the program in
        order or answers are missing; what is done is saved. `--exit_zero_when_stopped` makes it 0.
      * 1: a `UserError`, or a disk that refuses; printed as one line on stderr (with
        `--verbosity=debug` after its traceback).
      * 130: Ctrl-C, where the program does not stop in order.

      In a run of several processes, one that fails ends here, and the others with it; see
      `partitioning.peers`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(target, arguments, description, is_finished)
    except Exception:
        peers.await_news()
        if peers.watching():
            traceback.print_exc()
            peers.leave(1)
        raise
    peers.leave(code)
    return code


def _run(target: str, argv: list[str], description: str, is_finished: Callable[[Any], bool]) -> int:
    module, function_name = target.split(":")
    program = f"python -m {_main_module(module)}"
    debug = "--verbosity=debug" in argv
    try:
        flags = parse_flags(argv)
        debug = flags.verbosity == "debug"
        config = config_lib.read(
            flags.gin_file,
            flags.gin_bindings,
            flags.gin,
            flags.gin_search_paths,
            target=f"{module}.{function_name}",
        )
        if flags.help:
            print(help_text(program, description, flags, config))
            return 0
        config.check()
        _configure_logging(flags.verbosity)
        keep_freed_memory()
        enable_compilation_cache(flags.compilation_cache_dir)
        _join_processes(flags)
        config.apply()
        function = getattr(importlib.import_module(module), function_name)
        try:
            finished = is_finished(_call(function, flags, program, argv))
        except InterruptedError:  # a signal, of a program that has no result without its end
            finished = False
        return 0 if finished or flags.exit_zero_when_stopped else UNFINISHED
    except UserError as error:
        return _fail(lookup.unglue(error), error, debug)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever reads our output has seen enough (`--help | head`). Python would complain about
        # it once more when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as raised:
        error: BaseException | None = raised
        # gin raises a copy without number and file; the original is its context.
        while isinstance(error, OSError) and error.errno is None:
            error = error.__context__
        if not isinstance(error, OSError) or error.errno not in DISK_ERRORS:
            raise
        # Whatever reads or writes a file may find the disk full or closed to it.
        return _fail(refused(error), error, debug)


def _fail(sentence: str, error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print(f"error: {sentence}", file=sys.stderr)
    return 1


def parse_flags(argv: Sequence[str]) -> Flags:
    """Parses the command line.

    Raises:
      UserError: a flag is unknown or its value is malformed.
    """
    gin_flags: list[tuple[str, str]] = []
    others: list[str] = []
    for argument in argv:
        if not argument.startswith("--gin."):
            others.append(argument)
            continue
        name, equals, text = argument.removeprefix("--gin.").partition("=")
        if not equals:
            raise UserError(f"{argument}: write --gin.NAME=VALUE, without spaces around the =.")
        gin_flags.append((name.strip(), text.strip()))
    parser = _parser("")
    known, unknown = parser.parse_known_args(others)
    if unknown:
        options = [*parser._option_string_actions, "--gin.NAME=VALUE"]
        close = difflib.get_close_matches(unknown[0].split("=")[0], options, n=1)
        hint = f"did you mean {close[0]}?" if close else "see --help."
        kind = "flag" if unknown[0].startswith("-") else "argument"
        raise UserError(f"{unknown[0]}: unknown {kind}; {hint}")
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


def help_text(program: str, description: str, flags: Flags, config: config_lib.GinConfig) -> str:
    """The flags, and the macros of the given gin files with their values, REQUIRED ones first."""
    lines = [_parser(program, description).format_help().rstrip(), ""]
    if not flags.gin_file:
        lines.append("sbs_jax's own gin files (give one with --help to see its macros):")
        lines += [f"  {name}" for name in reader.shipped_files()]
        return "\n".join(lines)
    lines.append(f"macros of {', '.join(flags.gin_file)} (give as --gin.NAME=VALUE):")
    shown = sorted(
        (b for b in config.macros.values() if config.is_live(b)),
        key=lambda b: not b.is_required,
    )
    width = max((len(binding.name) for binding in shown), default=0)
    columns = max(60, shutil.get_terminal_size((100, 24)).columns)
    for binding in shown:
        value = "REQUIRED" if binding.is_required else dump.format_value(binding)
        told = f"  {binding.name:<{width}}  {value:<12}  {binding.comment or binding.source}"
        lines += textwrap.wrap(
            told.rstrip(), columns, subsequent_indent=" " * (width + 18), break_long_words=False
        )
    return "\n".join(lines)


def write_config(path: str | os.PathLike[str], text: str | None = None) -> None:
    """Writes the final configuration, readable by gin again, atomically.

    Args:
      path: the file, usually `MODEL_DIR/config.gin`.
      text: from `config_text`; what is bound now by default.
    """
    atomic_write_text(path, dump.config_text() if text is None else text)


def enable_compilation_cache(folder: str | None = None) -> None:
    """Lets JAX keep compiled programs on disk, so that a second start is quick.

    Args:
      folder: where; `off` keeps none. By default `$JAX_COMPILATION_CACHE_DIR`, else
        `sbs_jax/compiled` in `$XDG_CACHE_HOME`, else in `~/.cache`. JAX's own
        `JAX_ENABLE_COMPILATION_CACHE=0` works as well.
    """
    import jax

    if folder == _CACHE_OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if folder is None and os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return  # JAX reads it by itself.
    if folder is None:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        path = Path(base) / "sbs_jax" / "compiled"
    else:
        path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        log.warning("No compilation cache: %s is not writable.", path)
        return
    jax.config.update("jax_compilation_cache_dir", str(path.resolve()))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see --help.")


def _parser(program: str, description: str = "") -> argparse.ArgumentParser:
    parser = _Parser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --gin_file=FILE … [--gin.NAME=VALUE …] [flags]",
        add_help=False,
        allow_abbrev=False,
    )
    add = parser.add_argument
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
    add(
        "--verbosity",
        choices=list(_LEVELS),
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
        "--exit_zero_when_stopped",
        action="store_true",
        help=f"end with exit code 0, instead of {UNFINISHED}, when a signal or a budget stops the "
        "program before its work is done, or when answers are missing.",
    )
    add("--help", "-h", action="store_true", help="show this, and the macros of the gin files.")
    return parser


def _call(function: Callable[..., Any], flags: Flags, program: str, argv: Sequence[str]) -> Any:
    parameters = inspect.signature(function).parameters
    arguments: dict[str, Any] = {}
    if flags.dry_run:
        if "dry_run" not in parameters:
            raise UserError(f"--dry_run: {program} has no dry run.")
        arguments["dry_run"] = True
    if "config_text" in parameters:
        arguments["config_text"] = _header(program, argv) + dump.config_text()
    bound = gin.get_bindings(function, resolve_references=False)
    missing = [
        name
        for name, parameter in lookup.parameters(function).items()
        if parameter.default is inspect.Parameter.empty
        and name not in bound
        and name not in arguments
    ]
    if missing:
        raise UserError(
            f"No gin file binds {function.__name__}.{missing[0]}; add the file of gin/runs that "
            f"belongs to {program}."
        )
    return gin.get_configurable(function)(**arguments)


def _header(program: str, argv: Sequence[str]) -> str:
    shown = []
    for argument in argv:
        name, equals, text = argument.partition("=")
        secret = bool(equals) and holds_secret(name, text)
        shown.append(f"{name}=<redacted>" if secret else argument)
    command = " ".join([program, *map(shlex.quote, shown)]).replace("\n", " ")
    return f"# sbs_jax {sbs_jax.__version__}: {command}\n\n"


def _main_module(module: str) -> str:
    """`sbs_jax.train` when that is what Python was started with, else the target's module."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name if spec is not None and spec.name.startswith("sbs_jax.") else module


def _configure_logging(verbosity: str) -> None:
    level = _LEVELS[verbosity]
    # Other libraries say a lot; their warnings are enough unless asked.
    logging.basicConfig(
        level=level if verbosity in ("debug", "error") else logging.WARNING,
        format="%(message)s" if verbosity != "debug" else "%(levelname).1s %(name)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )
    logging.getLogger("sbs_jax").setLevel(level)


def _join_processes(flags: Flags) -> None:
    from sbs_jax.partitioning import distributed

    distributed.initialize(flags.coordinator_address, flags.process_count, flags.process_index)
    if flags.coordinator_address is not None:
        peers.watch()
