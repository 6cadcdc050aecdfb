"""The hardware that a run can be planned for: chips with their published figures, and slices.

Sources of the figures:
  TPUs: Google Cloud's pages on each kind (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x).
  GPUs: NVIDIA's data sheets for peak rates (dense, without structured sparsity), NVLink and the
    network of a DGX system (one adapter per GPU: 200 Gb/s beside an A100, 400 Gb/s beside the
    others); OpenXLA's target specifications (xla/backends/gpu/target_config/specs) for what the
    compiler has to know: memory sizes and bandwidths, numbers of cores, clocks, caches.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re

from sbs_jax.errors import UserError

GPUS_PER_HOST = 8
# What is left for a program of a GPU's memory: the driver, NCCL's buffers and fragments take some.
_GPU_SHARE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """What XLA has to know of a GPU to compile for it, in the words of its `GpuDeviceInfoProto`.

    Attributes:
      name: NVIDIA's name.
      capability: CUDA compute capability, major and minor.
      cores: streaming multiprocessors.
      fpus_per_core: float32 units of each.
      clock_ghz: boost clock.
      l2_bytes: size of the second-level cache.
      shared_bytes: shared memory of a core.
      shared_bytes_optin: the most of it that one block may ask for.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    fpus_per_core: int
    clock_ghz: float
    l2_bytes: int
    shared_bytes: int = 233472
    shared_bytes_optin: int = 232448


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A kind of accelerator, with the figures of what JAX calls one device of it.

    Attributes:
      name: the name of the chip in `--target`.
      platform: `tpu` or `cuda`.
      peak_flops: bfloat16 multiplications and additions a second.
      memory_bytes: size of the device's memory.
      memory_bandwidth: bytes a second.
      link_bandwidth: bytes a second that a device can send to its neighbours (TPU: all its links
        together; GPU: NVLink) while it receives as many.
      network_bandwidth: the same beyond the host, for GPUs; 0 where every link is alike.
      devices_per_chip: JAX devices of a chip.
      dimensions: the dimensions of the slices that this TPU comes in; 0 for GPUs.
      pod_chips: how many chips a TPU's pod has, the largest slice there is; 0 for GPUs.
      gpu: what XLA has to know of a GPU; None for TPUs.
    """

    name: str
    platform: str
    peak_flops: float
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float = 0.0
    devices_per_chip: int = 1
    dimensions: int = 0
    pod_chips: int = 0
    gpu: Gpu | None = None


_GIB = 1024**3
_H100 = Gpu(
    name="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    cores=132,
    fpus_per_core=128,
    clock_ghz=1.98,
    l2_bytes=52_428_800,
)

# Google gives links as bytes a second of both directions together: half of it is sent.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            platform="tpu",
            peak_flops=275e12,
            memory_bytes=32 * _GIB,
            memory_bandwidth=1200e9,
            link_bandwidth=150e9,
            dimensions=3,
            pod_chips=4096,
        ),
        Chip(
            name="v5e",
            platform="tpu",
            peak_flops=197e12,
            memory_bytes=16 * _GIB,
            memory_bandwidth=819e9,
            link_bandwidth=200e9,
            dimensions=2,
            pod_chips=256,
        ),
        Chip(
            name="v5p",
            platform="tpu",
            peak_flops=459e12,
            memory_bytes=95 * _GIB,
            memory_bandwidth=2765e9,
            link_bandwidth=600e9,
            dimensions=3,
            pod_chips=8960,
        ),
        Chip(
            name="v6e",
            platform="tpu",
            peak_flops=918e12,
            memory_bytes=32 * _GIB,
            memory_bandwidth=1638e9,
            link_bandwidth=400e9,
            dimensions=2,
            pod_chips=256,
        ),
        # Each of the chip's two cores, with half of the memory, is a device.
        Chip(
            name="tpu7x",
            platform="tpu",
            peak_flops=2307e12 / 2,
            memory_bytes=192 * _GIB // 2,
            memory_bandwidth=7380e9 / 2,
            link_bandwidth=600e9 / 2,
            devices_per_chip=2,
            dimensions=3,
            pod_chips=9216,
        ),
        Chip(
            name="a100-80",
            platform="cuda",
            peak_flops=312e12,
            memory_bytes=85_100_068_864,
            memory_bandwidth=2039e9,
            link_bandwidth=300e9,
            network_bandwidth=25e9,
            gpu=Gpu(
                name="NVIDIA A100-SXM4-80GB",
                capability=(8, 0),
                cores=108,
                fpus_per_core=64,
                clock_ghz=1.41,
                l2_bytes=41_943_040,
                shared_bytes=167_936,
                shared_bytes_optin=166_912,
            ),
        ),
        Chip(
            name="h100",
            platform="cuda",
            peak_flops=989.4e12,
            memory_bytes=84_942_979_072,
            memory_bandwidth=3352e9,
            link_bandwidth=450e9,
            network_bandwidth=50e9,
            gpu=_H100,
        ),
        Chip(
            name="h200",
            platform="cuda",
            peak_flops=989.4e12,
            memory_bytes=151_397_597_184,
            memory_bandwidth=4800e9,
            link_bandwidth=450e9,
            network_bandwidth=50e9,
            gpu=dataclasses.replace(_H100, name="NVIDIA H200 141GB HBM3e"),
        ),
        Chip(
            name="b200",
            platform="cuda",
            peak_flops=2250e12,
            memory_bytes=191_514_411_008,
            memory_bandwidth=7672e9,
            link_bandwidth=900e9,
            network_bandwidth=50e9,
            gpu=Gpu(
                name="NVIDIA B200",
                capability=(10, 0),
                cores=148,
                fpus_per_core=128,
                clock_ghz=1.965,
                l2_bytes=132_644_864,
            ),
        ),
    )
}

_ALIASES = {"h100-80": "h100", "h200-141": "h200", "a100": "a100-80", "v7x": "tpu7x"}


@dataclasses.dataclass(frozen=True)
class TargetDevices:
    """A number of devices of one kind that are connected.

    Attributes:
      chip: the kind.
      shape: the shape of a TPU slice, in chips; for GPUs hosts and GPUs of each.
    """

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name that `--target` takes."""
        if self.chip.platform == "tpu":
            return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return f"{self.chip.name}:{math.prod(self.shape)}"

    @property
    def num_devices(self) -> int:
        """JAX devices of all hosts together."""
        return math.prod(self.shape) * self.chip.devices_per_chip

    @property
    def usable_bytes(self) -> int:
        """The memory that a program can use on one device."""
        share = _GPU_SHARE if self.chip.platform == "cuda" else 1.0
        return int(self.chip.memory_bytes * share)

    @property
    def devices_per_host(self) -> int:
        """How many devices share the fast links; all of a TPU slice do."""
        return self.shape[1] if self.chip.platform == "cuda" else self.num_devices


def parse_target(text: str) -> TargetDevices:
    """Reads `v5e:4x4`, `v5p:4x4x4`, `h100:8`.

    Args:
      text: kind and, for TPUs, the slice's shape in chips, or the number of GPUs. A GPU without a
        number is one.

    Returns:
      The target.

    Raises:
      UserError: no such kind, or no such number of it; names those that exist.
    """
    kind, _, size = text.strip().lower().partition(":")
    kind = _ALIASES.get(kind, kind)
    chip = CHIPS.get(kind)
    if chip is None:
        near = difflib.get_close_matches(kind, CHIPS, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"--target={text}: {kind!r} is not a known kind of device{hint} {_known()}")
    if chip.platform == "cuda":
        return TargetDevices(chip, _gpu_shape(text, size or "1"))
    if not re.fullmatch(r"\d+(x\d+){1,2}", size):
        example = "4x4x4" if chip.dimensions == 3 else "4x4"
        raise UserError(
            f"--target={text}: name the slice's shape in chips, as in {kind}:{example}. {_known()}"
        )
    shape = tuple(map(int, size.split("x")))
    if len(shape) != chip.dimensions or min(shape) < 1:
        raise UserError(
            f"--target={text}: slices of {kind} have {chip.dimensions} dimensions, as in "
            f"{kind}:{'x'.join(['4'] * chip.dimensions)}."
        )
    if math.prod(shape) > chip.pod_chips:
        raise UserError(
            f"--target={text}: a pod of {kind} has {chip.pod_chips:,} chips; name a slice of those."
        )
    single = math.prod(shape) == 1
    if not single and (shape[0] % 2 or shape[1] % 2):
        raise UserError(
            f"--target={text}: a host has 2x2 chips, so a slice of more than one chip has even "
            "numbers in its first two dimensions."
        )
    return TargetDevices(chip, shape)


def _gpu_shape(text: str, size: str) -> tuple[int, int]:
    count = int(size) if size.isdecimal() else 0
    if count < 1 or (count > GPUS_PER_HOST and count % GPUS_PER_HOST):
        raise UserError(
            f"--target={text}: a number of GPUs is 1 to {GPUS_PER_HOST}, or a multiple of "
            f"{GPUS_PER_HOST} for several hosts of {GPUS_PER_HOST}."
        )
    per_host = min(count, GPUS_PER_HOST)
    return count // per_host, per_host


def _known() -> str:
    flat = [f"{c.name}:4x4" for c in CHIPS.values() if c.dimensions == 2]
    deep = [f"{c.name}:4x4x4" for c in CHIPS.values() if c.dimensions == 3]
    gpus = [f"{c.name}:8" for c in CHIPS.values() if c.platform == "cuda"]
    return f"Known are, for instance, {', '.join([*flat, *deep, *gpus])}."
