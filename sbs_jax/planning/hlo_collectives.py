"""Collectives of a compiled program: which devices exchange how many bytes."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from sbs_jax.planning.hlo_text import Computation, Instruction, operand_array

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(([^()]*\([^()]*\)|[^()]*)\))?"
    r" \{([^}]*)\}"
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind and size, in one execution of a program.

    Attributes:
      kind: out of `COLLECTIVES`.
      shape: the shape of one's largest array, `bf16[64,512]`.
      dims: the dimensions of that array.
      bytes: the bytes of one's result on one device, or of its input for a `reduce-scatter`.
      count: how often it is executed.
      group: how many devices take part in one.
      groups: the devices of each group by number, as far as they are written down.
    """

    kind: str
    shape: str
    dims: tuple[int, ...]
    bytes: int
    count: int
    group: int
    groups: tuple[tuple[int, ...], ...] = ()

    @property
    def total_bytes(self) -> int:
        """The bytes of all executions."""
        return self.bytes * self.count


def find_collective(
    instruction: Instruction, computation: Computation, num_devices: int
) -> Collective | None:
    """The collective that an instruction is, to be executed once; None if it is none."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    operands = [
        operand_array(computation, instruction, index) for index in range(len(instruction.operands))
    ]
    arrays = [array for array in instruction.results if array.dtype not in ("token",)]
    if instruction.opcode.endswith("-start"):
        # The result holds the operands, too, and counters.
        arrays = arrays[len(operands) : 2 * len(operands)] or arrays
    if kind == "reduce-scatter":
        arrays = operands
    if not arrays:
        return None
    largest = max(arrays, key=lambda array: array.bytes)
    shape = f"{largest.dtype}[{','.join(map(str, largest.dims))}]"
    groups = _groups(instruction.rest)
    group = len(groups[0]) if groups else num_devices
    if kind == "collective-permute":
        group = 2
    if group == 1:
        return None
    size = sum(array.bytes for array in arrays)
    return Collective(kind, shape, largest.dims, size, 1, group, groups)


def _groups(rest: str) -> tuple[tuple[int, ...], ...]:
    """The devices of each group, of all the ways in which XLA writes them."""
    mesh = _MESH_GROUPS.search(rest)
    if mesh:
        return _mesh_groups(mesh[1], mesh[2], mesh[3])
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest)
    if iota:
        count = int(iota[1].split(",")[0])
        return tuple(map(tuple, _iota(iota[2]).reshape(count, -1).tolist()))
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}", rest)
    groups = re.findall(r"\{([\d,]+)\}", listed[1]) if listed else []
    return tuple(tuple(int(n) for n in group.split(",")) for group in groups)


def _iota(text: str) -> np.ndarray:
    """`[4,2]T(1,0)`: the numbers from 0 in that shape, its axes permuted."""
    found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    assert found is not None, text
    shape, permutation = found.groups()
    sizes = [int(n) for n in shape.split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose([int(n) for n in permutation.split(",")]) if permutation else ids


def _mesh_groups(mesh: str, order: str | None, axes: str) -> tuple[tuple[int, ...], ...]:
    """`mesh['a'=4,'b'=2] {'a'}`: devices that differ along the named axes, or parts of them."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    # Each axis is cut into what stands before the part that takes part, that part, and the rest.
    shape: list[int] = []
    taking_part: list[int] = []
    wanted = {
        name: (int(before or 1), int(size) if size else None)
        for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    }
    for name, size in sizes.items():
        if name not in wanted:
            shape.append(size)
            continue
        before, part = wanted[name]
        part = size if part is None else part
        taking_part.append(len(shape) + 1)
        shape += [before, part, size // (before * part)]
    ids = _iota(order) if order else np.arange(math.prod(sizes.values()))
    ids = ids.reshape(shape)
    ids = np.moveaxis(ids, taking_part, range(-len(taking_part), 0))
    group = math.prod(shape[axis] for axis in taking_part)
    return tuple(map(tuple, ids.reshape(-1, group).tolist()))
