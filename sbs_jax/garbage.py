"""When Python's collector of cyclic garbage may run (a leaf)."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Looks for no cyclic garbage meanwhile, where many objects are made and nearly all stay.

    The collector would look through them again and again and find nothing.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
