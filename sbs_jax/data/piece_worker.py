"""A process of the first pass over a split; `first_pass` starts it and writes its job to it."""

from __future__ import annotations

import importlib
import os
import pickle
import sys

from sbs_jax.data import first_pass
from sbs_jax.data.resolving import resolve_task
from sbs_jax.errors import UserError


def main() -> int:
    """Does a `first_pass.SplitJob`; returns the exit code."""
    job: first_pass.SplitJob = pickle.load(sys.stdin.buffer)
    for module in job.modules:
        importlib.import_module(module)
    try:
        task = resolve_task(job.task, job.settings)
        for portion in job.portions:
            if os.getppid() != job.parent:
                return 1
            first_pass.make_portion(task, job.split, portion, job.folder, job.limits)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
