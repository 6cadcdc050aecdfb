"""Several processes as one: start-up, and batches that span them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sbs_jax.errors import UserError
from sbs_jax.partitioning import peers
from sbs_jax.partitioning.rules import batch_sharding


def initialize(
    coordinator_address: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    *,
    initialization_timeout: int = 300,
    heartbeat_timeout: int = 30,
) -> None:
    """Joins this process to the others; call it before anything else touches a device.

    With no argument given, this does nothing: one process. With only `coordinator_address='auto'`,
    the cluster's own environment (TPU pod, SLURM, Open MPI) tells the rest; there jax wants one
    process for each GPU. With all three, a process takes all devices that it sees.

    Args:
      coordinator_address: `host:port` of process 0, reachable from all, or `auto`.
      process_count: number of processes.
      process_index: this process's number, from 0.
      initialization_timeout: seconds to wait for the others.
      heartbeat_timeout: seconds of silence after which a process counts as dead, and all end (100
        by jax's default); see also `peers`.

    Raises:
      UserError: some but not all of the arguments are given, they contradict each other, or the
        others are not found.
    """
    given = (coordinator_address, process_count, process_index)
    if all(value is None for value in given):
        return
    # Processes without an accelerator talk through Gloo; this is ignored where there is one.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    options: dict[str, Any] = {}
    if given != ("auto", None, None):
        if coordinator_address is None or process_count is None or process_index is None:
            raise UserError(
                "--coordinator_address, --process_count and --process_index must be given together "
                "(or --coordinator_address=auto alone, on a cluster that JAX knows)."
            )
        if not 0 <= process_index < process_count:
            raise UserError(
                f"--process_index={process_index} must lie between 0 and --process_count - 1 = "
                f"{process_count - 1}."
            )
        options = {
            "coordinator_address": coordinator_address,
            "num_processes": process_count,
            "process_id": process_index,
            # Else SLURM's variables would have each process take one device, whatever there is.
            "cluster_detection_method": "deactivate",
        }
    peers.release_port()
    try:
        with peers.saying_what_takes_long("the other processes of the run"):
            jax.distributed.initialize(
                **options,
                initialization_timeout=initialization_timeout,
                heartbeat_timeout_seconds=heartbeat_timeout,
            )
    except (RuntimeError, ValueError) as error:
        peers.await_news()
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(
            f"The processes of the run do not find each other at {coordinator_address} "
            f"({reason[0][:300]}); start all of them, with the same --coordinator_address."
        ) from error


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts a batch on the mesh, rows cut along `data`.

    Args:
      batch: arrays [B, ...]. Every process passes the same *global* batch and keeps only the rows
        of its own devices, so the batch does not depend on how many processes there are.
      mesh: the mesh, from `make_mesh`.

    Returns:
      Global arrays with the same keys.
    """
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)
    return {
        key: jax.make_array_from_callback(value.shape, sharding, value.__getitem__)
        for key, value in batch.items()
    }
