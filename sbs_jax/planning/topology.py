"""Devices that need not be there: what XLA compiles ahead of time for."""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from sbs_jax.errors import UserError
from sbs_jax.planning.targets import TargetDevices

_CUDA_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")


def missing_extra(target: TargetDevices) -> str | None:
    """The extra that has to be installed to compile for `target`; None if nothing is missing."""
    if target.chip.platform == "tpu":
        return None if importlib.util.find_spec("libtpu") else "plan-tpu"
    found = any(importlib.util.find_spec(name) for name in _CUDA_PLUGINS)
    return None if found else "plan-cuda"


@functools.cache
def devices_of(target: TargetDevices) -> tuple[Any, ...]:
    """The devices of a target, for `partitioning.mesh.make_mesh`; programs cannot run on them.

    Call it before JAX has been asked for devices. This process then uses the CPU alone: planning
    takes no accelerator away from anybody.

    Args:
      target: the target, from `targets.parse_target`.

    Returns:
      Its devices, in JAX's order.

    Raises:
      UserError: the compiler for this target is not installed, or knows no such slice.
    """
    extra = missing_extra(target)
    if extra is not None:
        raise UserError(
            f"--target={target.name} needs the compiler of that platform: "
            f"pip install 'sbs_jax[{extra}]'"
        )
    jax.config.update("jax_platforms", "cpu")
    try:
        if target.chip.platform == "tpu":
            return tuple(_tpu(target))
        return tuple(_cuda(target))
    except Exception as error:  # Plugins raise what they like.
        reason = str(error).strip().splitlines()
        raise UserError(
            f"--target={target.name}: the compiler knows no such devices "
            f"({type(error).__name__}: {reason[0] if reason else 'no reason is given'})."
        ) from error


def _tpu(target: TargetDevices) -> Any:
    # Without these, libtpu asks the cloud's metadata server where it is, and a second process waits
    # for the first one's lock.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options: dict[str, Any] = {}
    if target.num_devices == target.chip.devices_per_chip:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if target.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # As on a TPU VM: both cores are one device.
    name = f"{target.chip.name}:{'x'.join(map(str, target.shape))}"
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices


def _cuda(target: TargetDevices) -> Any:
    # Else the plugin looks for a driver as old as itself.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    hosts, per_host = target.shape
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=target.name,
        topology=f"1x{hosts}x{per_host}",
        target_config=gpu_description(target),
    ).devices


def gpu_description(target: TargetDevices) -> str:
    """A GPU as XLA's `GpuTargetConfigProto`, in text format."""
    chip, gpu = target.chip, target.chip.gpu
    if gpu is None:
        raise ValueError(f"{target.name} is no GPU")
    major, minor = gpu.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_bytes}
  threads_per_core_limit: 2048
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.memory_bandwidth)}
  l2_cache_size: {gpu.l2_bytes}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {chip.memory_bytes}
  shared_memory_per_block_optin: {gpu.shared_bytes_optin}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{gpu.name}"
"""
