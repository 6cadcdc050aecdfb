"""Compiles in a process of its own: a compiler that crashes takes its whole process with it.

libtpu 0.0.42 does that on some programs (its estimate of a fusion's cost overflows the stack).
"""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import tempfile
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
        done = subprocess.run(
            [sys.executable, "-m", "sbs_jax.plan", *command, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if result.is_file():
            return pickle.loads(result.read_bytes())
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise CompilerCrash(f"the compiler crashed ({name})")
    said = done.stderr.decode(errors="replace").strip().splitlines() or ["it gives no reason"]
    raise UserError(said[-1].removeprefix("error: "))


def hand_over(compiled: Compiled, path: Path) -> None:
    """Writes the result of `compile_apart` where that process looks for it."""
    with atomic_open(path, "wb") as file:
        pickle.dump(compiled, file)
