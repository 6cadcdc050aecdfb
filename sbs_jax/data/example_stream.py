"""The examples of endless epochs in their order, and a position among them that can be saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sized
from typing import Any, Generic, TypeVar

import numpy as np

from sbs_jax.data import epochs
from sbs_jax.data.records import Records


@dataclasses.dataclass
class Position:
    """Where a stream stands. Batches of examples count examples, others windows and their parts.

    Attributes:
      epoch: the number of the epoch, from 0.
      example: how many examples of the epoch have been taken.
      window: the number of the window within the epoch, from 0.
      row: how many of the rows or batches that were made of the window have been taken.
    """

    epoch: int = 0
    example: int = 0
    window: int = 0
    row: int = 0

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Position:
        """Reads a position from a saved state, which may hold more."""
        return cls(**{field.name: int(state[field.name]) for field in dataclasses.fields(cls)})


class ExampleStream:
    """The examples of endless epochs; `epochs.Epoch` is the order of one of them.

    Attributes:
      records: the records of a training split.
      starts: their `Records.example_starts`.
      seed: decides the order of the examples, together with the epoch.
      at: the present position.
    """

    def __init__(self, records: Records, seed: int) -> None:
        """Starts at the first example of the first epoch."""
        self.records, self.starts, self.seed = records, records.example_starts, seed
        self.go_to(Position())

    @property
    def size(self) -> int:
        """The number of examples of an epoch, which all epochs share."""
        return self._order.size

    @property
    def order_is_computed(self) -> bool:
        """See `epochs.COMPUTED_ABOVE`."""
        return self._order.computed

    def go_to(self, position: Position) -> None:
        """Continues from a position."""
        self.at = position
        self._order = epochs.Epoch(self.records, self.starts, self.seed, position.epoch)

    def next_epoch(self) -> None:
        """Goes to the beginning of the next epoch."""
        self.go_to(Position(self.at.epoch + 1))

    def take(self, count: int) -> np.ndarray:
        """Takes the next `count` examples; returns the ids [R] of their records."""
        chosen = []
        while count:
            ids, examples = self._between(self.at.example, self.at.example + count)
            chosen.append(ids)
            count -= examples
            self.at.example += examples
            if self.at.example == self.size:
                self.next_epoch()
        return np.concatenate(chosen)

    def window(self, count: int) -> np.ndarray:
        """Returns the ids [R] of the records of the present one of `count` windows of the epoch."""
        # Windows of equal size, so that none at the end is too small to pack well.
        bounds = np.linspace(0, self.size, count + 1).astype(np.int64)
        return self._between(bounds[self.at.window], bounds[self.at.window + 1])[0]

    def _between(self, start: int, stop: int) -> tuple[np.ndarray, int]:
        """Returns the ids of the records of some places of the epoch, and how many examples."""
        examples = self._order.examples(start, stop)
        return self._order.drawn(epochs.records_of(self.starts, examples)), examples.size


Made = TypeVar("Made", bound=Sized)


class Windows(Generic[Made]):
    """Rows or batches that are made of the examples of one window after another.

    The examples of an epoch are taken in windows. Of all examples of a window, something that has
    a length is made at once (for example its packed rows), and handed out piece by piece.
    """

    def __init__(
        self,
        stream: ExampleStream,
        count: int,
        make: Callable[[np.ndarray, np.random.Generator], Made],
    ) -> None:
        """Stores how windows are made; makes none yet.

        Args:
          stream: the examples, and the position that `take` moves.
          count: how many windows an epoch has.
          make: is given the ids of the records of a window, and random numbers that depend on the
            seed, the epoch and the window alone.
        """
        self._stream, self._count, self._make = stream, count, make
        self._made: tuple[tuple[int, int], Made] | None = None

    def take(self, wanted: int) -> list[tuple[Made, int, int]]:
        """Takes the next `wanted` pieces: what was made, and which part `start` .. `stop` of it.

        What is left over at the end of an epoch is filled up from the next one.
        """
        taken = []
        while wanted:
            at = self._stream.at
            made = self._present(at)
            start, at.row = at.row, min(at.row + wanted, len(made))
            taken.append((made, start, at.row))
            wanted -= at.row - start
            if at.row == len(made):
                at.window, at.row = at.window + 1, 0
                if at.window == self._count:
                    self._stream.next_epoch()
        return taken

    def _present(self, at: Position) -> Made:
        key = (at.epoch, at.window)
        if self._made is None or self._made[0] != key:
            rng = np.random.default_rng([self._stream.seed, at.epoch, at.window + 1])
            self._made = key, self._make(self._stream.window(self._count), rng)
        return self._made[1]
