"""Reads what XLA compiled for one device: operations, memory traffic, collectives.

XLA's own cost analysis counts the body of a loop once and does not exist for GPUs that are not
there, so the text of the optimized program is read instead: every instruction counts as often as
the loops around it turn.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterator

import numpy as np

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
# Neither read nor write memory by themselves.
_FREE = {
    "parameter",
    "constant",
    "iota",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "copy-done",
    "async-done",
    "async-update",
    "all-gather-done",
    "all-reduce-done",
    "collective-permute-done",
}
_COMMENT = re.compile(r"/\*.*?\*/")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*\) -> .*)? \{$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"([a-z][\w\-]*)\(")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|called_computations|branch_computations|"
    r"true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(([^()]*\([^()]*\)|[^()]*)\))?"
    r" \{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of an instruction.

    Attributes:
      dtype: in XLA's words, `bf16`.
      dims: its shape on this device.
      in_memory: whether it lies in the device's main memory, not in a scratchpad.
    """

    dtype: str
    dims: tuple[int, ...]
    in_memory: bool = True

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.dims) * _bits(self.dtype) // 8

    @property
    def traffic(self) -> int:
        """Bytes that cross the bus of the main memory when it is read or written once."""
        return self.bytes if self.in_memory else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a computation.

    Attributes:
      name: unique in its computation.
      opcode: in XLA's words, `all-gather-start`.
      results: the arrays of its result, a tuple flattened.
      operands: names of instructions.
      rest: the text after the operands.
      is_root: whether it is its computation's result.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str
    is_root: bool


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
        """Of all executions."""
        return self.bytes * self.count


@dataclasses.dataclass(frozen=True)
class Program:
    """What one device executes.

    Attributes:
      flops: the FLOPs of products of matrices, a multiplication and an addition being two.
      traffic: bytes that cross the bus of the main memory if nothing stays in a cache.
      collectives: by kind and size, the largest first.
    """

    flops: float
    traffic: float
    collectives: tuple[Collective, ...]

    def collective_bytes(self) -> dict[str, int]:
        """Bytes of all executions by kind."""
        total: collections.Counter[str] = collections.Counter()
        for collective in self.collectives:
            total[collective.kind] += collective.total_bytes
        return dict(total)


Computation = dict[str, Instruction]


def read_program(text: str, num_devices: int = 1) -> Program:
    """Reads the text of a compiled program (`jax.stages.Compiled.as_text`).

    Args:
      text: XLA's optimized HLO.
      num_devices: the number of devices of the program; the size of a group that is not written
        down.

    Returns:
      What one device does in one execution.
    """
    computations, entry = _parse(text)
    flops = traffic = 0.0
    found: collections.Counter[Collective] = collections.Counter()
    pieces: dict[str, tuple[int, Collective]] = {}
    for name, times, is_inner in _executions(computations, entry):
        computation = computations[name]
        for instruction in computation.values():
            flops += times * _flops(instruction, computation)
            if not is_inner:
                traffic += times * _traffic(instruction, computation, computations)
            collective = _collective(instruction, computation, num_devices)
            channel = re.search(r"channel_id=\d+", instruction.rest)
            if collective is None:
                continue
            if is_inner and channel:
                # TPUs fuse the beginning, the middle and the end of one collective with different
                # computations; its channel tells that it is one.
                known = pieces.get(channel[0], (0, collective))
                larger = max(known[1], collective, key=lambda one: one.bytes)
                pieces[channel[0]] = max(known[0], times), larger
            else:
                found[collective] += times
    for times, collective in pieces.values():
        found[collective] += times
    collectives = [dataclasses.replace(one, count=count) for one, count in found.items()]
    collectives.sort(key=lambda one: -one.total_bytes)
    return Program(flops, traffic, tuple(collectives))


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    computations: dict[str, Computation] = {}
    entry = ""
    current: Computation = {}
    for line in text.splitlines():
        line = _COMMENT.sub("", line)
        stripped = line.strip()
        if stripped.endswith("{") and " = " not in stripped.split("(", 1)[0]:
            header = _HEADER.match(stripped)
            if header:
                current = computations.setdefault(header[2], {})
                if header[1]:
                    entry = header[2]
                continue
        match = _INSTRUCTION.match(line)
        if match:
            instruction = _instruction(match[2], match[3], bool(match[1]))
            if instruction is not None:
                current[instruction.name] = instruction
    return computations, entry


def _instruction(name: str, text: str, is_root: bool) -> Instruction | None:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    opcode = _OPCODE.match(text, end + 1) if 0 < end < len(text) else None
    if opcode is None:
        return None
    close = _closing(text, opcode.end() - 1)
    operands = tuple(
        part.split()[-1].lstrip("%") for part in _split(text[opcode.end() : close]) if part.strip()
    )
    return Instruction(name, opcode[1], _arrays(text[:end]), operands, text[close + 1 :], is_root)


def _closing(text: str, start: int) -> int:
    """The index of the bracket that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        if text[index] == "(":
            depth += 1
        elif text[index] == ")":
            depth -= 1
            if depth == 0:
                return index
    return len(text)


def _split(text: str) -> list[str]:
    """Splits at commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    parts.append(text[start:])
    return parts


def _arrays(text: str) -> tuple[Array, ...]:
    arrays = []
    for dtype, dims, layout in _ARRAY.findall(text):
        sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
        arrays.append(Array(dtype, sizes, in_memory="S(" not in layout))
    return tuple(arrays)


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits[1]) if digits else 0


def _executions(
    computations: dict[str, Computation], entry: str
) -> Iterator[tuple[str, int, bool]]:
    """Each computation that is called, how often, and whether it is a part of one instruction."""
    pending = [(entry, 1, False)]
    while pending:
        name, times, is_inner = pending.pop()
        if name not in computations:
            continue
        yield name, times, is_inner
        for instruction in computations[name].values():
            for attribute, called in _CALLED.findall(instruction.rest):
                inner = is_inner or attribute == "to_apply" or instruction.opcode == "fusion"
                if instruction.opcode == "call" or instruction.opcode.startswith("async"):
                    inner = is_inner
                trips = 1
                if instruction.opcode == "while":
                    trips = _trip_count(instruction, computations)
                for callee in re.findall(r"[\w.\-]+", called):
                    pending.append((callee, times * trips, inner))


def _trip_count(loop: Instruction, computations: dict[str, Computation]) -> int:
    known = _TRIPS.search(loop.rest)
    if known:
        return int(known[1])
    # A counter from 0 is compared with a constant.
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    constants = [
        int(value)
        for instruction in computations.get(condition[1] if condition else "", {}).values()
        if instruction.opcode == "constant" and instruction.results[0].dtype in ("s32", "u32")
        for value in [instruction.operands[0] if instruction.operands else ""]
        if value.isdecimal()
    ]
    return max(constants, default=1)


def _operand(computation: Computation, instruction: Instruction, index: int) -> Array:
    producer = computation.get(instruction.operands[index])
    return producer.results[0] if producer and producer.results else Array("token", ())


def _flops(instruction: Instruction, computation: Computation) -> float:
    count = _FLOPS.get(instruction.opcode)
    return count(instruction, computation) if count else 0.0


def _dot_flops(instruction: Instruction, computation: Computation) -> float:
    left = _operand(computation, instruction, 0)
    contracted = _dims_of(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
    return 2.0 * math.prod(instruction.results[0].dims) * _size(left, contracted)


def _custom_call_flops(instruction: Instruction, computation: Computation) -> float:
    target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
    name = target[1] if target else ""
    if "cublas" in name or "matmul" in name:
        left = _operand(computation, instruction, 0)
        numbers = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.rest)
        contracted = [int(n) for n in re.findall(r"\d+", numbers[1])] if numbers else [1]
        return 2.0 * math.prod(instruction.results[0].dims) * _size(left, contracted)
    if "fmha" in name:
        # [B, Q, H, K] and [B, L, H, K]: two products forward, five backward.
        queries = _operand(computation, instruction, 0)
        keys = _operand(computation, instruction, 1)
        products = 5 if "Backward" in name else 2
        length = keys.dims[1] if len(keys.dims) == 4 else 0
        return 2.0 * products * math.prod(queries.dims) * length
    return 0.0


def _convolution_flops(instruction: Instruction, computation: Computation) -> float:
    """Only products with what is there count: TPUs write batched products as padded windows."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    if labels is None:
        return 0.0
    inputs, kernel = (_operand(computation, instruction, index) for index in (0, 1))
    output = instruction.results[0]
    products = float(
        output.dims[labels[3].index("b")]
        * output.dims[labels[3].index("f")]
        * kernel.dims[labels[2].index("i")]
    )
    for axis, letter in enumerate(letter for letter in labels[1] if letter.isdecimal()):
        window = {
            name: _window_number(instruction.rest, name, axis, default)
            for name, default in (
                ("size", 1),
                ("stride", 1),
                ("lhs_dilate", 1),
                ("rhs_dilate", 1),
                ("pad", 0),
            )
        }
        size = inputs.dims[labels[1].index(letter)]
        outputs = output.dims[labels[3].index(letter)]
        first = np.arange(outputs)[:, None] * window["stride"] - window["pad"]
        places = first + np.arange(window["size"])[None, :] * window["rhs_dilate"]
        dilated = (size - 1) * window["lhs_dilate"]
        real = (places >= 0) & (places <= dilated) & (places % window["lhs_dilate"] == 0)
        products *= int(real.sum())
    groups = re.search(r"batch_group_count=(\d+)", instruction.rest)
    return 2.0 * products / (int(groups[1]) if groups else 1)


def _window_number(rest: str, name: str, axis: int, default: int) -> int:
    window = re.search(r"window=\{([^}]*)\}", rest)
    field = re.search(rf"(?:^| ){name}=([\dx_\-]+)", window[1]) if window else None
    if field is None:
        return default
    return int(field[1].split("x")[axis].split("_")[0])


def _dims_of(pattern: str, rest: str) -> list[int]:
    match = re.search(pattern, rest)
    return [int(n) for n in match[1].split(",") if n] if match else []


def _size(array: Array, dims: list[int]) -> int:
    return math.prod(array.dims[dim] for dim in dims if dim < len(array.dims))


_FLOPS: dict[str, Callable[[Instruction, Computation], float]] = {
    "dot": _dot_flops,
    "convolution": _convolution_flops,
    "custom-call": _custom_call_flops,
}


def _traffic(
    instruction: Instruction, computation: Computation, computations: dict[str, Computation]
) -> float:
    """Bytes that an instruction reads and writes, each array once."""
    if instruction.opcode in _FREE:
        return 0.0
    written = sum(array.traffic for array in instruction.results)
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2.0 * written
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        index = 1 if instruction.opcode == "dynamic-update-slice" else 2
        return 2.0 * _operand(computation, instruction, index).traffic
    inner = None
    if instruction.opcode == "fusion":
        called = re.search(r"calls=%?([\w.\-]+)", instruction.rest)
        inner = computations.get(called[1]) if called else None
    if inner is None:
        read = sum(
            _operand(computation, instruction, index).traffic
            for index in range(len(instruction.operands))
        )
        return float(written + read)
    return float(_fusion_traffic(instruction, computation, inner))


# What changes the view of an array, and moves nothing when it is a part of a fusion.
_VIEWS = ("bitcast", "reshape", "copy")
_CUTS = ("dynamic-slice", "slice", "gather")


def _fusion_traffic(instruction: Instruction, computation: Computation, inner: Computation) -> int:
    """Of a parameter that is only cut, the cuts count; of one updated in place, the update."""

    def origin(name: str) -> Instruction | None:
        found = inner.get(name)
        while found is not None and found.opcode in _VIEWS:
            found = inner.get(found.operands[0])
        return found

    def in_place(one: Instruction | None) -> bool:
        if one is None or one.opcode != "dynamic-update-slice":
            return False
        base = origin(one.operands[0])
        return base is not None and base.opcode == "parameter"

    users: dict[str, list[tuple[Instruction, int]]] = collections.defaultdict(list)
    for one in inner.values():
        if one.opcode in _VIEWS:
            continue
        for place, operand in enumerate(one.operands):
            source = origin(operand)
            if source is not None:
                users[source.name].append((one, place))

    root = next((one for one in inner.values() if one.is_root), None)
    made = [] if root is None else root.operands if root.opcode == "tuple" else [root.name]
    total = 0
    for place, array in enumerate(instruction.results):
        maker = origin(made[place]) if place < len(made) else None
        if maker is not None and in_place(maker):
            total += min(_operand(inner, maker, 1).bytes, array.traffic)
        else:
            total += array.traffic
    for parameter in inner.values():
        if parameter.opcode != "parameter" or not parameter.operands[0].isdecimal():
            continue
        index = int(parameter.operands[0])
        if index >= len(instruction.operands):
            continue
        whole = _operand(computation, instruction, index).traffic
        read = 0
        for one, place in users[parameter.name]:
            if one.opcode in _CUTS and place == 0:
                read += one.results[0].bytes
            elif not (in_place(one) and place == 0) and one.opcode != "tuple":
                read = whole
                break
        total += min(read, whole)
    return total


def _collective(
    instruction: Instruction, computation: Computation, num_devices: int
) -> Collective | None:
    """The collective that an instruction is, to be executed once; None if it is none."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    operands = [
        _operand(computation, instruction, index) for index in range(len(instruction.operands))
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
