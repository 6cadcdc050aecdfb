"""The training state of a student on its mesh: shapes, shardings, creation, and the jitted step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from sbs_jax.partitioning import rules as rules_lib
from sbs_jax.student import Student
from sbs_jax.training import state as state_lib
from sbs_jax.training.optimizers import Optimizer
from sbs_jax.training.state import TrainState


def abstract_state(student: Student, optimizer: Optimizer, seed: int) -> TrainState:
    """Returns the shapes, dtypes and shardings of a training state; allocates nothing.

    Args:
      student: the network on its mesh.
      optimizer: its moments are laid out as the parameters that they belong to.
      seed: the seed of the run; it decides no shape.

    Returns:
      A `TrainState` whose leaves are `jax.ShapeDtypeStruct` with shardings.
    """
    shapes = jax.eval_shape(
        functools.partial(state_lib.create_state, optimizer=optimizer, seed=seed),
        student.abstract_params,
    )
    shardings = rules_lib.like_params(
        shapes, student.param_shardings, student.abstract_params, student.mesh
    )
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def create_state(
    student: Student,
    params: Any,
    optimizer: Optimizer,
    seed: int,
    abstract: TrainState | None = None,
) -> TrainState:
    """Creates a training state at step 0 around `params`, whose buffers are donated to it.

    Args:
      student: the network on its mesh.
      params: the parameters, on the mesh.
      optimizer: its state is made as well.
      seed: the seed of the run.
      abstract: what `abstract_state` returned for the same arguments, if that is at hand.
    """
    if abstract is None:
        abstract = abstract_state(student, optimizer, seed)
    create = student.jit(
        functools.partial(state_lib.create_state, optimizer=optimizer, seed=seed),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
        donate_argnums=0,
    )
    return create(params)


def jit_train_step(
    student: Student, step: Callable[..., Any], abstract: TrainState
) -> Callable[..., Any]:
    """Jits `step(state, batch) -> (state, metrics)` with fixed shardings; the old state is donated.

    Args:
      student: the network on its mesh.
      step: pure, from `training.step.make_train_step`.
      abstract: the abstract state, from `abstract_state`.

    Returns:
      The jitted step. Its `lower(abstract, abstract_batch)` compiles it ahead of time.
    """
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return student.jit(
        step,
        in_shardings=(state_shardings, rules_lib.batch_sharding(student.mesh)),
        out_shardings=(state_shardings, student.replicated),
        donate_argnums=0,
    )
