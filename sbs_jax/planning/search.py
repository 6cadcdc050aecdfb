"""Tries meshes, microbatches and rematerialisation for a run on a target, and ranks what fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from sbs_jax.planning.compiling import Compiled
from sbs_jax.planning.isolation import CompilerCrash

REMATS = ("none", "minimal", "full")
_MOST_MICROBATCHES = 64


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a run is laid out on devices.

    Attributes:
      data: devices along which batches are cut.
      model: devices along which products are cut.
      fsdp: whether parameters and optimizer are cut along `data`, too.
      microbatches: slices of a batch that are computed one after another.
      remat: see `T5Config.remat`.
    """

    data: int
    model: int
    fsdp: bool
    microbatches: int
    remat: str

    def __str__(self) -> str:
        fsdp = ", FSDP" if self.fsdp else ""
        return (
            f"data {self.data} × model {self.model}{fsdp}, {self.microbatches} microbatches, "
            f"remat {self.remat}"
        )

    def macros(self) -> str:
        """The flags that ask for it."""
        return (
            f"--gin.DATA_PARALLEL={self.data} --gin.MODEL_PARALLEL={self.model} "
            f"--gin.FSDP={self.fsdp} --gin.NUM_MICROBATCHES={self.microbatches} "
            f"--gin.REMAT={self.remat}"
        )


@dataclasses.dataclass(frozen=True)
class Tried:
    """A layout, and what the compiler said.

    Attributes:
      layout: the layout that was tried.
      compiled: None where parameters and optimizer alone are larger than the memory, and where the
        compiler crashed.
      static_bytes: the bytes of parameters and optimizer on one device.
      failure: how the compiler crashed; None if it did not.
    """

    layout: Layout
    compiled: Compiled | None
    static_bytes: int
    failure: str | None = None

    @property
    def fits(self) -> bool:
        """Whether it can run."""
        return self.compiled is not None and self.compiled.fits is not False


def search(
    num_devices: int,
    rows: int,
    *,
    static_bytes: Callable[[Layout], int],
    usable_bytes: int | None,
    compile_layout: Callable[[Layout], Compiled],
    most: int | None = None,
    note: Callable[[Tried], None] = lambda _: None,
) -> list[Tried]:
    """Tries layouts, the cheapest of each mesh first, until one of that mesh fits.

    Rematerialisation and microbatches cost time and save memory, so for every mesh they grow until
    the run fits, and no further.

    Args:
      num_devices: the number of devices of the target.
      rows: the rows of a batch.
      static_bytes: parameters and optimizer of a layout on one device, without compiling.
      usable_bytes: the usable bytes of one device; None tries every layout.
      compile_layout: compiles one; a `CompilerCrash` counts as one that does not fit.
      most: how many layouts are compiled at most; None sets no limit.
      note: a function that is called with each as it is done.

    Returns:
      All that was tried: first what fits, by its bound, then the rest.
    """
    tried: list[Tried] = []
    compiled = 0
    for steps in meshes(num_devices, rows):
        for layout in steps:
            size = static_bytes(layout)
            too_large = usable_bytes is not None and size > usable_bytes
            if not too_large and most is not None and compiled >= most:
                break
            try:
                one = Tried(layout, None if too_large else compile_layout(layout), size)
            except CompilerCrash as crash:
                one = Tried(layout, None, size, failure=str(crash))
            compiled += not too_large
            tried.append(one)
            note(one)
            if too_large or one.fits:
                break  # Recomputation makes parameters no smaller, and a fitting run only slower.
    return sorted(tried, key=_rank)


def fewest_rows(num_devices: int) -> int:
    """The number that the rows of a batch have to be a multiple of, so that a mesh cuts them."""
    return num_devices // (num_devices & -num_devices)  # All powers of 2 along `model`.


def meshes(num_devices: int, rows: int) -> Iterator[list[Layout]]:
    """Yields the layouts of each mesh that cuts the rows evenly, each list from fast to small."""
    for model in (2**power for power in range(num_devices.bit_length())):
        data = num_devices // model
        if data * model != num_devices or rows % data:
            continue
        for fsdp in (False, True) if data > 1 else (False,):
            steps = [Layout(data, model, fsdp, 1, remat) for remat in REMATS]
            count = 2
            while count <= _MOST_MICROBATCHES and rows % (data * count) == 0:
                steps.append(Layout(data, model, fsdp, count, REMATS[-1]))
                count *= 2
            yield steps


def _rank(one: Tried) -> tuple[bool, float, int]:
    bound = one.compiled.bound if one.compiled is not None else None
    return not one.fits, float("inf") if bound is None else bound.seconds, one.static_bytes
