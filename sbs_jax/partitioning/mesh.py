"""The device mesh: an axis `data` for the batch, an axis `model` for the parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from sbs_jax.errors import UserError

DATA_AXIS = "data"
MODEL_AXIS = "model"


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """The mesh that a program makes of all devices; gin/runs binds the attributes to macros.

    Attributes:
      data_parallel: devices along the axis `data`, which cuts batches; -1 takes all that are left.
      model_parallel: devices along the axis `model`, which cuts parameters.
      fsdp: also cut parameters and optimizer state along `data`.
    """

    data_parallel: int = -1
    model_parallel: int = 1
    fsdp: bool = False

    def make(self) -> Mesh:
        """Arranges all devices of all processes; see `make_mesh`."""
        return make_mesh(self.data_parallel, self.model_parallel)


def make_mesh(data: int = -1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices as a `data` × `model` mesh.

    Args:
      data: size of the axis that batches are cut along; -1 takes what `model` leaves.
      model: size of the axis that parameters are cut along.
      devices: all devices of all processes by default.

    Returns:
      A mesh over exactly the given devices, with axis names `data` and `model`.

    Raises:
      UserError: the shape does not use up the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    if model < 1 or (data < 1 and data != -1):
        raise UserError(
            f"The mesh MODEL_PARALLEL = {model}, DATA_PARALLEL = {data} is impossible: sizes start "
            "at 1 (DATA_PARALLEL = -1 takes what is left)."
        )
    if count % model:
        divisors = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise UserError(
            f"MODEL_PARALLEL = {model} does not divide the {count} {_kind(devices)} devices; "
            f"choose one of {divisors}."
        )
    data = count // model if data == -1 else data
    if data * model != count:
        raise UserError(
            f"The mesh DATA_PARALLEL × MODEL_PARALLEL = {data} × {model} needs {data * model} "
            f"devices, but there are {count} {_kind(devices)} devices; set DATA_PARALLEL = -1 to "
            "take all."
        )
    grid = arrange_devices(data, model, devices)
    return Mesh(grid, (DATA_AXIS, MODEL_AXIS), axis_types=(AxisType.Auto, AxisType.Auto))


def arrange_devices(data: int, model: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """Lays devices out as [data, model], such that both axes follow the links between them.

    Args:
      data: size of the first axis.
      model: size of the second axis; `data` × `model` is the number of devices.
      devices: the devices of one platform.

    Returns:
      An array of the devices.
    """
    if devices[0].platform == "cpu":
        # Virtual CPU devices have no topology to respect.
        return np.asarray(devices).reshape(data, model)
    if devices[0].device_kind == "TPU v4" and any(device.core_on_chip for device in devices):
        places = {(*device.coords, device.core_on_chip): device for device in devices}
        return _arrange_cores(data, model, places)
    return _arrange_chips((data, model), devices)


def _arrange_cores(
    data: int, model: int, by_place: Mapping[tuple[int, ...], jax.Device]
) -> np.ndarray:
    """Arranges chips of which each core is a device; JAX does so for other kinds than v4.

    Both cores of a chip become neighbours along `model`, or along `data` if `model` is odd.
    """
    chips = [device for place, device in by_place.items() if place[-1] == 0]
    if len(chips) * 2 != len(by_place):
        return np.asarray(list(by_place.values())).reshape(data, model)  # A choice of cores.
    shape, axis = ((data, model // 2), 2) if model % 2 == 0 else ((data // 2, model), 1)
    first = _arrange_chips(shape, chips)
    second = np.empty_like(first)
    for index, chip in np.ndenumerate(first):
        second[index] = by_place[*chip.coords, 1]
    return np.stack([first, second], axis).reshape(data, model)


def _arrange_chips(shape: tuple[int, int], devices: Sequence[jax.Device]) -> np.ndarray:
    # Without the permission to split physical axes, most model axes on a 2-D or 3-D slice raise.
    return mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)


def check_batch_size(rows: int, mesh: Mesh, num_microbatches: int = 1) -> None:
    """Checks that every device gets the same number of rows in every microbatch.

    Raises:
      UserError: `rows` is not a multiple of the data axis × `num_microbatches`.
    """
    data = mesh.shape[DATA_AXIS]
    unit = data * num_microbatches
    if rows < 1 or rows % unit:
        below = rows // unit * unit
        nearest = " and ".join(str(n) for n in (below, below + unit) if n > 0)
        raise UserError(
            f"BATCH_SIZE = {rows} is not a multiple of DATA_PARALLEL × NUM_MICROBATCHES = {data} × "
            f"{num_microbatches}; the nearest are {nearest}."
        )


def _kind(devices: Sequence[jax.Device]) -> str:
    return devices[0].platform.upper()
