"""The least time that a chip's published figures allow for a compiled program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sbs_jax.planning.hlo import Collective, Program
from sbs_jax.planning.targets import TargetDevices


@dataclasses.dataclass(frozen=True)
class Bound:
    """Least seconds of one execution, by what would be busy; a real one takes longer.

    Attributes:
      compute: matrix units, at the chip's peak in bfloat16.
      memory: the main memory's bus, if each array crosses it once per instruction that uses it;
        what a cache holds from one instruction to the next saves some of that.
      links: the links between devices.
    """

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """The largest of the three, as if they overlapped perfectly."""
        return max(self.compute, self.memory, self.links)

    @property
    def limit(self) -> str:
        """Which of the three is the largest."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


def bound(program: Program, target: TargetDevices, hosts: Sequence[int] = ()) -> Bound:
    """The bound of a program on a target.

    Args:
      program: the program that one device executes.
      target: the devices that the program runs on.
      hosts: the host of each device of the program, in the program's order; empty for one host.
    """
    chip = target.chip
    return Bound(
        compute=program.flops / chip.peak_flops,
        memory=program.traffic / chip.memory_bandwidth,
        links=sum(one.count * link_seconds(one, target, hosts) for one in program.collectives),
    )


def link_seconds(collective: Collective, target: TargetDevices, hosts: Sequence[int] = ()) -> float:
    """The least seconds of one collective.

    In a group of n, each device has to receive (n - 1) / n of what it gathers, and a reduction to
    all is a scattered reduction and a gathering. Of a group that spans hosts, the part that has to
    enter a host comes over the network adapters of the group's devices there.

    Args:
      collective: the collective of a program.
      target: the devices that the program runs on.
      hosts: see `bound`.
    """
    group = collective.group
    rounds = 2 if collective.kind == "all-reduce" else 1
    share = 1.0 if collective.kind == "collective-permute" else (group - 1) / group
    received = rounds * share * collective.bytes
    seconds = received / target.chip.link_bandwidth
    spanned = _hosts_of(collective, hosts)
    if spanned > 1 and target.chip.network_bandwidth:
        # Scattered results pass each adapter of the host once, not once per device.
        per_host = max(group // spanned, 1)
        entering = rounds * collective.bytes * (spanned - 1) / spanned
        if collective.kind == "collective-permute":
            entering, per_host = collective.bytes, 1
        seconds = max(seconds, entering / (per_host * target.chip.network_bandwidth))
    return seconds


def _hosts_of(collective: Collective, hosts: Sequence[int]) -> int:
    """The most hosts that one group spans."""
    if not hosts:
        return 1
    if not collective.groups:
        return len(set(hosts)) if collective.group == len(hosts) else 1
    return max(len({hosts[device] for device in group}) for group in collective.groups)
