"""Disks that are full, without filling one: files that cannot grow beyond a limit."""

import contextlib
import resource


@contextlib.contextmanager
def full_after(size):
    """No file of this process grows beyond `size` bytes: writing raises an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
