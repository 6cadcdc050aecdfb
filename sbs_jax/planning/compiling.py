"""Compiles a program for devices that need not be there, and sums up what one of them holds."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sbs_jax.planning import hlo, roofline
from sbs_jax.planning.targets import TargetDevices

# JAX takes this share of a GPU's memory by default, and no more than the other on request.
_GPU_DEFAULT_SHARE, _GPU_MOST = 0.75, 0.95


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """Bytes on one device.

    Attributes:
      arguments: all that the program is called with.
      results: all that it returns; what it takes over from the arguments counts there alone.
      temporaries: activations, gradients, and what is gathered.
      code: the program itself.
      peak: the most that is in use at once, code included.
    """

    arguments: int
    results: int
    temporaries: int
    code: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program that was compiled for a target, or could not be.

    Attributes:
      name: the name of the program, such as `train step`.
      target: the devices that it would run on; None for those of this machine.
      parameter_bytes: the bytes of the parameters on one device.
      optimizer_bytes: the bytes of the optimizer's state on one device; 0 where there is none.
      memory: None where the compiler gave up.
      program: None where the compiler gave up.
      exhausted: what the compiler said when the program was too large for the memory.
      seconds: the seconds of compilation.
      model_flops: the FLOPs of the network's products forward and, in training, backward, on the
        whole batch, without what is computed a second time.
      num_devices: the number of devices of the mesh.
      bound: the least time of an execution; None without a target.
      beside_bytes: the bytes of what else is there on one device while the program runs.
    """

    name: str
    target: TargetDevices | None
    parameter_bytes: int
    optimizer_bytes: int
    memory: MemoryUse | None
    program: hlo.Program | None
    exhausted: str | None
    seconds: float
    model_flops: float
    num_devices: int
    bound: roofline.Bound | None
    beside_bytes: int = 0

    @property
    def peak_bytes(self) -> int | None:
        """The most memory in use on one device; None where only XLA's refusal is known."""
        if self.memory is not None:
            return self.memory.peak + self.beside_bytes
        used = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of", self.exhausted or "")
        return round(float(used[1]) * 1024 ** ("KMGT".index(used[2]) + 1)) if used else None

    @property
    def usable_bytes(self) -> int | None:
        """The memory that a program can use on one device; None without a target."""
        return None if self.target is None else self.target.usable_bytes

    @property
    def fits(self) -> bool | None:
        """Whether one device can hold it; None where that is not known."""
        if self.exhausted is not None:
            return False
        if self.usable_bytes is None or self.peak_bytes is None:
            return None
        return self.peak_bytes <= self.usable_bytes

    @property
    def memory_fraction(self) -> float | None:
        """What XLA_PYTHON_CLIENT_MEM_FRACTION has to be; None where JAX's default suffices."""
        if not self.fits or self.target is None or self.target.chip.platform != "cuda":
            return None
        share = (self.peak_bytes or 0) / self.target.chip.memory_bytes
        return _GPU_MOST if share > _GPU_DEFAULT_SHARE else None

    @property
    def utilization(self) -> float | None:
        """The share of the chips' peak that the bound would mean (MFU); None without a target."""
        if self.bound is None or self.target is None or not self.bound.seconds:
            return None
        peak = self.target.chip.peak_flops * self.num_devices
        return self.model_flops / (self.bound.seconds * peak)


def compile_program(
    name: str,
    lower: Callable[[], Any],
    *,
    mesh: jax.sharding.Mesh,
    params: Any,
    target: TargetDevices | None = None,
    opt_state: Any = (),
    model_flops: float = 0.0,
    resident: Any = (),
    turns: int = 1,
) -> Compiled:
    """Compiles a program; that it is too large for the memory is an answer, not an error.

    Args:
      name: the name of the program.
      lower: gives the `jax.stages.Lowered` program.
      mesh: the mesh that it was lowered for.
      params: abstract parameters, with shardings.
      target: whose devices these are; None for those of this machine.
      opt_state: the optimizer's abstract state, with shardings.
      model_flops: see `Compiled`.
      resident: abstract arrays with shardings that are on the devices while the program runs,
        whether it is called with them or not.
      turns: see `hlo.read_program`.

    Returns:
      What is known of it.
    """
    exhausted = memory = program = bound = None
    beside = 0
    start = time.monotonic()
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        exhausted = str(error)
    seconds = time.monotonic() - start
    devices = list(mesh.devices.flat)
    if exhausted is None:
        memory = memory_of(compiled.memory_analysis())
        program = hlo.read_program(compiled.as_text(), len(devices), turns=turns)
        if memory is not None:
            # A program is not called with those of its arguments that it does not read.
            beside = max(0, device_bytes(resident) - memory.arguments)
        if target is not None:
            bound = roofline.bound(program, target, hosts_of(devices, target))
    return Compiled(
        name=name,
        target=target,
        parameter_bytes=device_bytes(params),
        optimizer_bytes=device_bytes(opt_state),
        memory=memory,
        program=program,
        exhausted=exhausted,
        seconds=seconds,
        model_flops=model_flops,
        num_devices=len(devices),
        bound=bound,
        beside_bytes=beside,
    )


def hosts_of(devices: Sequence[Any], target: TargetDevices) -> tuple[int, ...]:
    """The host of each device, where links between hosts are slower than within; else ()."""
    if not target.chip.network_bandwidth:
        return ()
    return tuple(device.id // target.devices_per_host for device in devices)


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays with shardings on one device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def memory_of(analysis: Any) -> MemoryUse | None:
    """What a compiled program's `memory_analysis()` says; None where the compiler says nothing."""
    if analysis is None:
        return None
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    code = analysis.generated_code_size_in_bytes
    together = analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes + code
    return MemoryUse(
        arguments=analysis.argument_size_in_bytes,
        results=results,
        temporaries=analysis.temp_size_in_bytes,
        code=code,
        # XLA's own peak holds all of these on TPUs, and no arguments on CPUs and GPUs, where the
        # temporaries are one block that is allocated together with them.
        peak=max(getattr(analysis, "peak_memory_in_bytes", 0), together),
    )
