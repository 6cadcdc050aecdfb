"""Functions for gin to configure in tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from sbs_jax.errors import UserError

calls: list[dict[str, Any]] = []


@dataclasses.dataclass(frozen=True)
class Model:
    width: int
    dtype: str = "float32"

    def __post_init__(self):
        if self.width < 1:
            raise UserError(f"width = {self.width} must be at least 1.")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    name: str
    learning_rate: float


def fast(learning_rate: float, momentum: float = 0.0) -> Optimizer:
    return Optimizer("fast", learning_rate)


def slow(rate: float) -> Optimizer:
    return Optimizer("slow", rate)


def train(
    *,
    model: Model,
    model_dir: str,
    steps: int,
    optimizer: Optimizer | None = None,
    lengths: Mapping[str, int] | None = None,
    splits: Sequence[str] = ("validation",),
    kind: Literal["a", "b"] = "a",
    shuffle: bool = False,
    path: Path | None = None,
    callback: Callable[[], None] | None = None,
    api_key: str | None = None,
    dry_run: bool = False,
    config_text: str = "",
) -> None:
    calls.append(dict(locals()))


def stop(*, message: str = "") -> SimpleNamespace:
    if message == "signal":
        raise InterruptedError("SIGTERM")
    return SimpleNamespace(interrupted=message == "interrupted")


def write(*, message: str) -> None:
    Path(message).mkdir()
    (Path(message) / "x").write_text("x")


def fail(*, message: str = "the cat sat on the data.") -> None:
    helper()
    raise UserError(message)


def helper() -> None:
    """Called by `fail`, not by gin."""


def crash() -> None:
    raise ZeroDivisionError("a bug")


def interrupt(*, model_dir: str) -> None:
    raise KeyboardInterrupt
