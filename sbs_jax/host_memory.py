"""How the C library treats memory that a training process frees (a leaf)."""

from __future__ import annotations

import contextlib
import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees for its next allocations, instead of returning it.

    XLA:CPU allocates the temporaries of a program anew each time it runs: some hundred megabytes
    a training step. glibc maps blocks of that size afresh and unmaps them when they are freed, so
    the kernel must zero every page of them again: a fifth of a small T5's step. Afterwards they
    come from one heap that shrinks only when 2 GiB of it are free.

    Call it before JAX starts its threads. Other C libraries than glibc are left as they are.

    Returns:
      Whether it took effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # All three are needed: threads have heaps of their own, which large blocks do not fit.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))
    return {mallopt(name, value) for name, value in settings} == {1}


def return_freed_memory() -> None:
    """Returns what this process has freed to the system, as far as the C library can.

    Call it where other programs are about to run, as between training and evaluation: blocks that
    the programs before kept are of other sizes, and both would be held at the same time.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
