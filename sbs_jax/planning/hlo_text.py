"""XLA's optimized HLO as data: the text of a program taken apart into instructions."""

from __future__ import annotations

import dataclasses
import math
import re

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}

_COMMENT = re.compile(r"/\*.*?\*/")

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*\) -> .*)? \{$")

_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")

_OPCODE = re.compile(r"([a-z][\w\-]*)\(")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of an instruction.

    Attributes:
      dtype: the dtype in XLA's words, `bf16`.
      dims: the shape of the array on this device.
      in_memory: whether it lies in the device's main memory, not in a scratchpad.
    """

    dtype: str
    dims: tuple[int, ...]
    in_memory: bool = True

    @property
    def bytes(self) -> int:
        """The size of the array."""
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
      opcode: the operation in XLA's words, `all-gather-start`.
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


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns the computations of a program by name, and the name of its entry."""
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


def operand_array(computation: Computation, instruction: Instruction, index: int) -> Array:
    """Returns the first array of what an instruction's operand holds."""
    producer = computation.get(instruction.operands[index])
    return producer.results[0] if producer and producer.results else Array("token", ())
