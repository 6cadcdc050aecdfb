"""The one kind of error that a user may cause, and the exit codes of programs."""

import contextlib
import functools
import numbers
import os
import sys
from collections.abc import Callable, Iterator
from typing import ParamSpec

_P = ParamSpec("_P")

UNFINISHED = 75
"""Exit code of a program that ended in order before its work was done: a signal or a budget stopped
it, or answers are missing. What is done is saved, and the same command goes on. (EX_TEMPFAIL of
sysexits.h: try again.)"""


class UserError(Exception):
    """A mistake of the user's, described in one sentence.

    The message names the file, the line or the key, and says what to do. The mains print it as
    ``error: <message>`` on stderr and exit with code 1; they never show a traceback for it.
    """


def require_positive(**values: object) -> None:
    """Raises `UserError` for the first of the named values that is no positive whole number."""
    for name, value in values.items():
        if not isinstance(value, numbers.Integral) or value < 1:
            raise UserError(f"{name} must be a positive whole number, not {value!r}.")


def require_at_least(least: int, **values: float | None) -> None:
    """Raises `UserError` for the first of the named values that is below `least`; None passes."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"{name} = {value} must be at least {least}.")


@contextlib.contextmanager
def located(where: object) -> Iterator[None]:
    """Puts a place in front of a `UserError` of the ``with`` block that does not begin with it."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(str(where)):
            raise
        raise UserError(f"{where}: {error}") from error


def unglue(error: BaseException) -> BaseException:
    """Returns the exception as it was raised, without the call sites that gin appends to it."""
    # gin re-raises a proxy whose class it makes on the spot, and the original as its context.
    while "ExceptionProxy" in getattr(type(error).__init__, "__qualname__", "") and (
        error.__context__ is not None
    ):
        error = error.__context__
    return error


def with_exit_code(main: Callable[_P, int]) -> Callable[_P, int]:
    """Decorates the `main` of a program that does not use `configuration.main.run_main`.

    Returns:
      `main`, which prints a `UserError` and returns 1, returns 130 after Ctrl-C, and 0 where
      whoever reads its output has closed the pipe.
    """

    @functools.wraps(main)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> int:
        try:
            code = main(*args, **kwargs)
            sys.stdout.flush()
            return code
        except UserError as error:
            print(f"error: {unglue(error)}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            return discard_output()

    return run


def discard_output() -> int:
    """Sends standard output nowhere, after a `BrokenPipeError` (`--help | head`); returns 0.

    Python would complain about the closed pipe once more when it flushes standard output at exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
