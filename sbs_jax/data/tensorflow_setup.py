"""Imports TensorFlow and SeqIO: without their noise, and without letting them touch a GPU.

Import ``tf``, ``tfds`` and ``seqio`` from here inside `sbs_jax.data`. The library writes log lines
while it is being loaded, before any log level is in force (seen with 2.21), so the file descriptor
of stderr is put aside for that long. What was written and is no log line is shown afterwards, and
everything is shown if the import fails.

Where triton is installed (PyTorch's CUDA build brings it), it is imported first. If triton 3.7 is
imported after TensorFlow 2.21, which transformers and `torch.compile` do on demand, the process
dies of a segmentation fault. In the other order both work.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator

from sbs_jax.errors import UserError

_LOG_LINE = re.compile(
    rb"[IWE]\d{4} |WARNING: All log messages before absl|To enable the following instructions"
)


@contextlib.contextmanager
def _without_log_lines() -> Iterator[None]:
    sys.stderr.flush()
    try:
        kept_stderr = os.dup(2)
    except OSError:  # A process without stderr (a daemon) shows no lines.
        yield
        return
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(kept_stderr, 2)
            os.close(kept_stderr)
            captured.seek(0)
            for line in captured:
                if failed or not _LOG_LINE.match(line):
                    os.write(2, line)


if importlib.util.find_spec("triton") and "tensorflow" not in sys.modules:
    with contextlib.suppress(Exception):  # A triton that cannot be imported here crashes nothing.
        import triton  # noqa: F401

try:
    with _without_log_lines():
        import tensorflow as tf

        # JAX owns the accelerators. TensorFlow would otherwise reserve most of a GPU's memory.
        with contextlib.suppress(RuntimeError):  # already initialized by the user's own code
            tf.config.set_visible_devices([], "GPU")
        import seqio
        import tensorflow_datasets as tfds  # which seqio imports anyway
except ModuleNotFoundError as missing:
    raise UserError(
        f"SeqIO's caches, tasks and mixtures, and tensorflow-datasets, need the package "
        f"{missing.name}, which is not installed; sbs doctor says what is missing."
    ) from missing

__all__ = ["seqio", "tf", "tfds"]
