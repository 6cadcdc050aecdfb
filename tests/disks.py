"""Disks that are full without filling one, and folders that nobody may write to."""

import contextlib
import os
import resource
import shutil
import tempfile
from pathlib import Path

NOBODY = 65534


@contextlib.contextmanager
def full_after(size):
    """No file of this process grows beyond `size` bytes: writing raises an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def read_only_folder():
    """Gives a folder in which this process can make nothing, also where the tests run as root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        if user == 0:
            os.seteuid(user)
        folder.chmod(0o755)
        shutil.rmtree(folder)
