"""gin-config itself finds our gin files, for programs that parse with it: T5X's.

For `include 'runs/data.gin'` gin looks for the file, then for a Python package `runs`, and only
then in its search paths. The second step logs an error where there is no such package, and raises a
TypeError where the working directory has a folder `runs`, as that of many runs has.
"""

from __future__ import annotations

import os
from typing import IO

from gin import config

from sbs_jax.configuration.reader import gin_folder


def install() -> None:
    """Puts our folder of gin files behind the working directory and before Python's packages."""
    # gin.config.register_file_reader would put it last, behind the step that fails.
    if (_open, _exists) not in config._FILE_READERS:
        config._FILE_READERS.insert(0, (_open, _exists))


def _exists(path: str) -> bool:
    # A file of the user's own comes first: gin's next reader opens it.
    return not os.path.isfile(path) and (gin_folder() / path).is_file()


def _open(path: str) -> IO[str]:
    return open(gin_folder() / path, encoding="utf-8")
