"""Running a program: T5X's flags, gin files, readable errors.

    python -m sbs_jax.train --gin_file=runs/train.gin --gin.MODEL_DIR=runs/x --gin.TRAIN_STEPS=1000

`run_main` reads the flags and the gin files, checks them before anything slow is imported, and
calls one function with the arguments that gin gives it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import gin

from sbs_jax import garbage
from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import dump, lookup, process
from sbs_jax.configuration.flags import Flags, parse_flags
from sbs_jax.configuration.help import help_text
from sbs_jax.errors import UNFINISHED, UserError, discard_output, unglue
from sbs_jax.files import DISK_ERRORS, refused
from sbs_jax.partitioning import peers


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
    program = f"python -m {module.replace('.programs.', '.')}"
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
        with leaving_at_once(), _frozen_imports():
            process.set_up(flags)
            config.apply()
            function = getattr(importlib.import_module(module), function_name)
        try:
            finished = is_finished(call(function, flags, program, argv))
        except InterruptedError:  # a signal, of a program that has no result without its end
            finished = False
        return 0 if finished or flags.exit_zero_when_stopped else UNFINISHED
    except UserError as error:
        return _fail(str(unglue(error)), error, debug)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return discard_output()
    except OSError as raised:
        cause: BaseException | None = raised
        # gin raises a copy without number and file; the original is its context.
        while isinstance(cause, OSError) and cause.errno is None:
            cause = cause.__context__
        if not isinstance(cause, OSError) or cause.errno not in DISK_ERRORS:
            raise
        # Whatever reads or writes a file may find the disk full or closed to it.
        return _fail(refused(cause), cause, debug)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ends the process at Ctrl-C without unwinding, while nothing has been written yet.

    A KeyboardInterrupt in the middle of an extension module's start (jaxlib's) becomes a crash, an
    ImportError, or is lost.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, b"interrupted\n")
        os._exit(130)

    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _frozen_imports() -> Iterator[None]:
    """Looks for no cyclic garbage while modules are imported, nor in them ever after.

    JAX, Flax and Orbax are a million objects that stay. Python's collector would look through them
    several times before the first step (a tenth of the time to it), and again as a run goes on.
    """
    with garbage.collection_paused():
        try:
            yield
        finally:
            gc.freeze()


def _fail(sentence: str, error: BaseException, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print(f"error: {sentence}", file=sys.stderr)
    return 1


def call(function: Callable[..., Any], flags: Flags, program: str, argv: Sequence[str]) -> Any:
    """Calls a program's function with what gin has bound and what the flags say.

    Raises:
      UserError: a parameter is missing, or the program has no dry run.
    """
    parameters = inspect.signature(function).parameters
    arguments: dict[str, Any] = {}
    if flags.dry_run:
        if "dry_run" not in parameters:
            raise UserError(f"--dry_run: {program} has no dry run.")
        arguments["dry_run"] = True
    if "config_text" in parameters:
        arguments["config_text"] = dump.header(program, argv) + dump.config_text()
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
