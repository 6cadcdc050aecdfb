"""Reads what XLA compiled for one device: operations, memory traffic, collectives.

XLA's own cost analysis counts the body of a loop once and does not exist for GPUs that are not
there, so the text of the optimized program is read instead: every instruction counts as often as
the loops around it turn.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator

from sbs_jax.planning import hlo_costs
from sbs_jax.planning.hlo_collectives import Collective, find_collective
from sbs_jax.planning.hlo_text import Computation, Instruction, parse

_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|called_computations|branch_computations|"
    r"true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Program:
    """What one device executes.

    Attributes:
      flops: the FLOPs of products of matrices, a multiplication and an addition being two.
      traffic: bytes that cross the bus of the main memory if nothing stays in a cache.
      collectives: the collectives by kind and size, the largest first.
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


def read_program(text: str, num_devices: int = 1, *, turns: int = 1) -> Program:
    """Reads the text of a compiled program (`jax.stages.Compiled.as_text`).

    Args:
      text: XLA's optimized HLO.
      num_devices: the number of devices of the program; the size of a group that is not written
        down.
      turns: how often a loop counts whose end depends on data.

    Returns:
      What one device does in one execution.
    """
    computations, entry = parse(text)
    flops = traffic = 0.0
    found: collections.Counter[Collective] = collections.Counter()
    pieces: dict[str, tuple[int, Collective]] = {}
    for name, times, is_inner in _executions(computations, entry, turns):
        computation = computations[name]
        for instruction in computation.values():
            flops += times * hlo_costs.flops(instruction, computation)
            if not is_inner:
                traffic += times * hlo_costs.traffic(instruction, computation, computations)
            collective = find_collective(instruction, computation, num_devices)
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


def _executions(
    computations: dict[str, Computation], entry: str, turns: int = 1
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
                    trips = _trip_count(instruction, computations, turns)
                for callee in re.findall(r"[\w.\-]+", called):
                    pending.append((callee, times * trips, inner))


def _trip_count(loop: Instruction, computations: dict[str, Computation], turns: int) -> int:
    known = _TRIPS.search(loop.rest)
    if known:
        return int(known[1])
    # A counter from 0 is compared with a constant, perhaps within a fusion.
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    constants = [
        int(value)
        for name, _, _ in _executions(computations, condition[1] if condition else "")
        for instruction in computations[name].values()
        if instruction.opcode == "constant" and instruction.results[0].dtype in ("s32", "u32")
        for value in instruction.operands[:1]
        if value.isdecimal()
    ]
    # Where data decide, there is none but the 0 of sums.
    return max(filter(None, constants), default=turns)
