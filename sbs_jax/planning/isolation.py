"""Compiles in a process of its own: a compiler that crashes takes its whole process with it.

libtpu 0.0.42 does that on some programs (its estimate of a fusion's cost overflows the stack).
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sbs_jax.errors import UserError
from sbs_jax.files import atomic_open
from sbs_jax.planning.compiling import Compiled


class CompilerCrash(Exception):
    """A compiler ended its process; the message says by which signal."""


def compile_apart(command: Sequence[str], asked: Mapping[str, Any]) -> Compiled:
    """Lets another process compile a program.

    Args:
      command: the arguments of `python -m sbs_jax.plan`.
      asked: what that program's flag ``--compile`` says, as JSON.

    Returns:
      What `hand_over` was given there.

    Raises:
      CompilerCrash: the process was ended by a signal.
      UserError: the process says that something is wrong.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "compiled"
        flags = [f"--compile={json.dumps(asked)}", f"--result={result}"]
        with subprocess.Popen(
            [sys.executable, "-m", "sbs_jax.plan", *command, *flags],
            stdin=subprocess.PIPE,  # Open as long as this process lives; see `end_with_parent`.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stderr is not None
            said = process.stderr.read().decode(errors="replace").strip().splitlines()
        if result.is_file():
            return pickle.loads(result.read_bytes())
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise CompilerCrash(f"the compiler crashed ({name})")
    raise UserError(said[-1].removeprefix("error: ") if said else "it gives no reason")


def end_with_parent() -> None:
    """Ends this process as soon as the one that called `compile_apart` has ended."""

    def wait() -> None:
        # Not sys.stdin, which Python locks: it aborts where it ends while a thread holds that lock.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def hand_over(compiled: Compiled, path: Path) -> None:
    """Writes the result of `compile_apart` where that process looks for it."""
    with atomic_open(path, "wb") as file:
        pickle.dump(compiled, file)
