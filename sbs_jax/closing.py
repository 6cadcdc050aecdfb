"""What is closed at the end of a ``with`` block. A leaf."""

from __future__ import annotations

from typing import Self


class Closing:
    """Calls its own `close` when a ``with`` block ends, with or without an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases what is held; the subclass says what."""
        raise NotImplementedError
