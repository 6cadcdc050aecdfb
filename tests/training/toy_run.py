"""A run small enough to kill over and over: a matrix learns to be its targets.

    python -m tests.training.toy_run MODEL_DIR --steps=40 ...

Parameters hang on every batch in order and on every earlier step, so a batch lost, repeated or
swapped shows in their bits.
"""

import argparse
import dataclasses
import functools
import os
import pickle
import sys
import time

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sbs_jax.checkpoints.manager import CheckpointManager
from sbs_jax.errors import UserError
from sbs_jax.partitioning.distributed import initialize
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.progress import Progress
from sbs_jax.training.loop import fit
from sbs_jax.training.start import starting_state
from sbs_jax.training.writers import MetricsWriter

SIZE = 16
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


@flax.struct.dataclass
class ToyState:
    step: jax.Array
    params: dict
    opt_state: tuple
    rng: jax.Array


def new_state(size=SIZE):
    params = {
        "dense": {"kernel": jnp.linspace(0.0, 1.0, size * size).reshape(size, size)},
        "scale": jnp.ones((size,)),
    }
    rng = jax.random.key_data(jax.random.key(0))
    return ToyState(jnp.int32(0), params, OPTIMIZER.init(params), rng)


def mesh_of(data, model):
    devices = np.asarray(jax.devices()[: data * model])
    return Mesh(devices.reshape(data, model), ("data", "model"))


def abstract_state(mesh, size=SIZE):
    """Matrices cut along both axes of the mesh, the rest replicated."""

    def place(leaf):
        spec = PartitionSpec("data", "model") if leaf.ndim == 2 else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, jax.eval_shape(functools.partial(new_state, size)))


def fresh_state(mesh, size=SIZE):
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(mesh, size))
    return jax.jit(functools.partial(new_state, size), out_shardings=shardings)()


@functools.partial(jax.jit, donate_argnums=0)
def step_fn(state, batch):
    def loss_fn(params):
        difference = batch["x"] @ params["dense"]["kernel"] * params["scale"][None] - batch["y"]
        return jnp.mean(jnp.square(difference))

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
    metrics = {
        "loss": loss,
        "label_loss": loss,
        "label_tokens": jnp.float32(batch["x"].shape[0]),
        "label_targets": jnp.float32(batch["x"].shape[0]),
        # Every third batch has no rationale.
        "rationale_loss": jnp.where(state.step % 3 == 0, 0.0, 2.0 * loss),
        "rationale_tokens": jnp.where(state.step % 3 == 0, 0.0, 5.0),
        "grad_norm": optax.global_norm(gradients),
    }
    new = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
    )
    return new, metrics


class ToyBatches:
    """Batch k depends on k alone."""

    def __init__(self, *, nan_at=None, pause=0.0):
        self.index, self.nan_at, self.pause = 0, nan_at, pause

    def __next__(self):
        time.sleep(self.pause)
        random = np.random.default_rng(self.index)
        batch = {
            "x": random.standard_normal((8, SIZE), np.float32),
            "y": random.standard_normal((8, SIZE), np.float32),
        }
        self.index += 1
        if self.index == self.nan_at:
            batch["y"][0, 0] = np.nan
        return batch

    def state(self):
        return {"index": self.index}

    def restore(self, state):
        self.index = state["index"]


def evaluate(state, step):
    kernel = state.params["dense"]["kernel"]
    # Best in the middle of a run, so that the best checkpoint is not among the latest.
    return {"validation": {"score": -abs(step - 10.0), "norm": float(jnp.linalg.norm(kernel))}}


@dataclasses.dataclass
class Options:
    steps: int = 40
    eval_period: int = 5
    checkpoint_period: int = 4
    log_period: int = 3
    keep: int = 2
    nan_at: int | None = None
    pause: float = 0.0
    initial_checkpoint_path: str | None = None
    best_metric: str = "validation/score"


def run(model_dir, options, *, mesh=None, console=None):
    mesh = mesh or mesh_of(1, len(jax.devices()))

    def to_device(batch):
        sharding = NamedSharding(mesh, PartitionSpec("data"))
        return {
            name: jax.make_array_from_callback(x.shape, sharding, lambda index, x=x: x[index])
            for name, x in batch.items()
        }

    with (
        CheckpointManager(
            model_dir, keep=options.keep, best_metric=options.best_metric
        ) as checkpoints,
        MetricsWriter(model_dir) as writer,
    ):
        start = starting_state(
            checkpoints=checkpoints,
            abstract_state=abstract_state(mesh),
            fresh=lambda: fresh_state(mesh),
            initial_checkpoint_path=options.initial_checkpoint_path,
        )
        return fit(
            start=start,
            step_fn=step_fn,
            batches=ToyBatches(nan_at=options.nan_at, pause=options.pause),
            train_steps=options.steps,
            to_device=to_device,
            evaluate=evaluate,
            eval_period=options.eval_period,
            checkpoints=checkpoints,
            checkpoint_period=options.checkpoint_period,
            metadata={"model": "toy"},
            writer=writer,
            log_period=options.log_period,
            progress=Progress(console),
        )


def save_again(model_dir, folder):
    """Saves what the last checkpoint holds, as these processes and their devices restore it."""
    state = abstract_state(mesh_of(1, len(jax.devices())))
    with CheckpointManager(model_dir, keep=None) as manager:
        restored = manager.restore_latest(state)
    with CheckpointManager(folder) as manager:
        manager.save(int(restored.state.step), restored.state)


def step_of_five_parts(path):
    """Four devices of each process, rows and parameters cut; process 0 writes."""
    from tests.training import five_parts

    devices = [
        device
        for process in range(jax.process_count())
        for device in [d for d in jax.devices() if d.process_index == process][:4]
    ]
    found = five_parts.train(
        five_parts.make_records(),
        five_parts.make_params(),
        make_mesh(len(devices) // 2, 2, devices=devices),
        microbatches=4,
    )
    if jax.process_index() == 0:
        with open(path, "wb") as file:
            pickle.dump(found, file)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model_dir")
    parser.add_argument("--process", type=int)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, help="of each process")
    parser.add_argument("--port", type=int)
    parser.add_argument("--save_again", help="a folder for what the last checkpoint restores")
    parser.add_argument("--five_parts", help="where to write what a step of `five_parts` gives")
    for field in dataclasses.fields(Options):
        kind = type(field.default) if field.default is not None else int
        parser.add_argument(f"--{field.name}", type=kind, default=field.default)
    args = vars(parser.parse_args())
    model_dir, process, port = args.pop("model_dir"), args.pop("process"), args.pop("port")
    five_parts_file = args.pop("five_parts")
    processes, devices = args.pop("processes"), args.pop("devices")
    if devices is not None:  # JAX has not looked yet.
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    if process is not None:
        initialize(f"localhost:{port}", processes, process)
    save_again_folder = args.pop("save_again")
    try:
        if save_again_folder:
            save_again(model_dir, save_again_folder)
        run(model_dir, Options(**args))
        if five_parts_file:
            step_of_five_parts(five_parts_file)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if process is not None:
        # What jax does at exit, which `multiprocessing` leaves out: process 0 waits for the others.
        jax.distributed.shutdown()


if __name__ == "__main__":
    main()
