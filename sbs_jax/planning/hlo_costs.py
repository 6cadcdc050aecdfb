"""What one execution of an instruction costs: FLOPs, and bytes of the device's main memory."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np

from sbs_jax.planning.hlo_text import Array, Computation, Instruction, operand_array

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
    "slice-done",
    "async-done",
    "async-update",
    "all-gather-done",
    "all-reduce-done",
    "collective-permute-done",
}

# Targets of custom calls that reserve memory, or see it as another array.
_FREE_CALLS = ('custom_call_target="AllocateBuffer"', 'custom_call_target="ConcatBitcast"')


def flops(instruction: Instruction, computation: Computation) -> float:
    """Returns the FLOPs of a product of matrices; 0 for any other instruction."""
    count = _FLOPS.get(instruction.opcode)
    return count(instruction, computation) if count else 0.0


def _dot_flops(instruction: Instruction, computation: Computation) -> float:
    left = operand_array(computation, instruction, 0)
    contracted = _dims_of(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
    return 2.0 * math.prod(instruction.results[0].dims) * _size(left, contracted)


def _custom_call_flops(instruction: Instruction, computation: Computation) -> float:
    target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
    name = target[1] if target else ""
    if "cublas" in name or "matmul" in name:
        left = operand_array(computation, instruction, 0)
        numbers = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.rest)
        contracted = [int(n) for n in re.findall(r"\d+", numbers[1])] if numbers else [1]
        return 2.0 * math.prod(instruction.results[0].dims) * _size(left, contracted)
    if "fmha" in name:
        # [B, Q, H, K] and [B, L, H, K]: two products forward, five backward.
        queries = operand_array(computation, instruction, 0)
        keys = operand_array(computation, instruction, 1)
        products = 5 if "Backward" in name else 2
        length = keys.dims[1] if len(keys.dims) == 4 else 0
        return 2.0 * products * math.prod(queries.dims) * length
    return 0.0


def _convolution_flops(instruction: Instruction, computation: Computation) -> float:
    """Only products with what is there count: TPUs write batched products as padded windows."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    if labels is None:
        return 0.0
    inputs, kernel = (operand_array(computation, instruction, index) for index in (0, 1))
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


def traffic(
    instruction: Instruction, computation: Computation, computations: dict[str, Computation]
) -> float:
    """Bytes that an instruction reads and writes, each array once."""
    if instruction.opcode in _FREE or any(name in instruction.rest for name in _FREE_CALLS):
        return 0.0
    if instruction.opcode in _IN_THE_BACKGROUND:
        # Its results are also an alias of the whole operand, and a semaphore.
        made = instruction.results[_IN_THE_BACKGROUND[instruction.opcode]]
        read = made.bytes if operand_array(computation, instruction, 0).in_memory else 0
        return float(read + made.traffic)
    written = sum(array.traffic for array in instruction.results)
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2.0 * written
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        index = 1 if instruction.opcode == "dynamic-update-slice" else 2
        return 2.0 * operand_array(computation, instruction, index).traffic
    inner = None
    if instruction.opcode == "fusion":
        inner = _inside(instruction, computations)
    if inner is None:
        read = sum(
            operand_array(computation, instruction, index).traffic
            for index in range(len(instruction.operands))
        )
        return float(written + read)
    return float(_fusion_traffic(instruction, computation, inner, computations))


def _inside(fusion: Instruction, computations: dict[str, Computation]) -> Computation | None:
    called = re.search(r"calls=%?([\w.\-]+)", fusion.rest)
    return computations.get(called[1]) if called else None


# What TPUs copy into their scratchpad while they compute: which of the results is the copy.
_IN_THE_BACKGROUND = {"copy-start": 0, "slice-start": 1}

# What changes the view of an array, and moves nothing when it is a part of a fusion.
_VIEWS = ("bitcast", "reshape", "copy")

_CUTS = ("dynamic-slice", "slice", "gather")


def _fusion_traffic(
    instruction: Instruction,
    computation: Computation,
    inner: Computation,
    computations: dict[str, Computation],
) -> int:
    """The bytes of a fusion.

    Of a parameter that is only cut the cuts count, and of one that is updated in place the update.
    """
    root = next((one for one in inner.values() if one.is_root), None)
    made = [] if root is None else root.operands if root.opcode == "tuple" else [root.name]
    total = 0
    for place, array in enumerate(instruction.results):
        maker = _origin(inner, made[place]) if place < len(made) else None
        if maker is not None and _in_place(inner, maker):
            total += min(operand_array(inner, maker, 1).bytes, array.traffic)
        else:
            total += array.traffic
    for index in range(len(instruction.operands)):
        whole = operand_array(computation, instruction, index).traffic
        if whole:
            total += min(_read_bytes(inner, index, whole, computations), whole)
    return total


def _read_bytes(
    inner: Computation, index: int, whole: int, computations: dict[str, Computation]
) -> int:
    """What a fusion reads of its parameter number `index`, which has `whole` bytes."""
    names = {
        one.name
        for one in inner.values()
        if one.opcode == "parameter" and one.operands[0] == str(index)
    }
    read = 0
    for one in inner.values():
        if one.opcode in _VIEWS:
            continue
        for place, operand in enumerate(one.operands):
            source = _origin(inner, operand)
            if source is None or source.name not in names:
                continue
            deeper = _inside(one, computations) if one.opcode == "fusion" else None
            if deeper is not None:  # TPUs fuse fusions.
                read += _read_bytes(deeper, place, whole, computations)
            elif one.opcode in _CUTS and place == 0:
                read += one.results[0].bytes
            elif not (_in_place(inner, one) and place == 0) and one.opcode != "tuple":
                return whole
    return read


def _origin(inner: Computation, name: str) -> Instruction | None:
    """The instruction that an array is a view of."""
    found = inner.get(name)
    while found is not None and found.opcode in _VIEWS:
        found = inner.get(found.operands[0])
    return found


def _in_place(inner: Computation, one: Instruction) -> bool:
    """Whether an instruction updates a part of a parameter."""
    if one.opcode != "dynamic-update-slice":
        return False
    base = _origin(inner, one.operands[0])
    return base is not None and base.opcode == "parameter"
