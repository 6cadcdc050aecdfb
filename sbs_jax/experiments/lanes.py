"""Many training steps as one program: states stacked along a new axis, a lane for each run.

Each run has its own thread, in which `training.loop.fit` evaluates, saves and records as for a run
that is trained alone. Only its step function is shared: every lane hands in its batch and waits,
the last one starts the program that moves all lanes by one step, and each takes its share of the
result.

Lanes that train adapters (LoRA) of the same weights hold these weights once.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sbs_jax.checkpoints import lora as lora_lib
from sbs_jax.errors import UserError
from sbs_jax.partitioning import rules as rules_lib
from sbs_jax.student import Student
from sbs_jax.training.optimizers import Optimizer
from sbs_jax.training.schedules import Schedule
from sbs_jax.training.state import TrainState
from sbs_jax.training.step import DEFAULT_LOSS, Loss, make_train_step

LaneStep = Callable[..., tuple[TrainState, Any]]
Weights = float | Mapping[str, float]
"""What parts count in a lane's loss, by name; a number alone is λ, the weight of rationales."""


def make_lane_step(
    student: Student,
    optimizer: Optimizer,
    loss: Loss = DEFAULT_LOSS,
    *,
    learning_rates: Sequence[Schedule] | None = None,
    num_microbatches: int = 1,
) -> LaneStep:
    """Builds `step(state, batch, weights, lane=0) -> (state, metrics)`, to be mapped over lanes.

    Args:
      student: the network.
      optimizer: see `training.optimizers`.
      loss: the loss of all lanes. A schedule of a part's weight counts for all lanes; a constant
        weight is replaced by each lane's.
      learning_rates: the schedule of each lane, by its number; None takes that of `optimizer`,
        which otherwise has to have `Optimizer.remake`.
      num_microbatches: see `training.step.make_train_step`.
    """

    def step(
        state: TrainState, batch: Mapping[str, jax.Array], weights: Any, lane: Any = 0
    ) -> tuple[TrainState, Any]:
        by_name = weights if isinstance(weights, Mapping) else {"rationale": weights}
        constants = loss.constant_weights
        own = loss.with_weights(
            {
                name: functools.partial(_constant, weight)
                for name, weight in by_name.items()
                if constants.get(name) is not None
            }
        )
        following = optimizer
        if learning_rates is not None:
            assert optimizer.remake is not None
            following = optimizer.remake(functools.partial(_of_lane, learning_rates, lane))
        return make_train_step(
            student.hidden, following, own, head=student.head, num_microbatches=num_microbatches
        )(state, batch)

    return step


def _of_lane(schedules: Sequence[Schedule], lane: jax.Array, step: Any) -> jax.Array:
    """The learning rate of a lane at a step."""

    def at(schedule: Schedule) -> Callable[[Any], jax.Array]:
        return lambda step: jnp.asarray(schedule(step), jnp.float32)

    return jax.lax.switch(lane, [at(schedule) for schedule in schedules], step)


def _constant(weight: jax.Array, step: Any) -> jax.Array:
    """A schedule that is the same at every step."""
    del step
    return weight


class LaneState:
    """A lane's part of the stacked state; it is cut out only where somebody looks at it."""

    def __init__(self, lanes: Lanes, index: int, generation: int) -> None:
        self._lanes, self.index, self.generation = lanes, index, generation

    def materialize(self) -> TrainState:
        """The lane's own state, a copy. Only good until the lanes' next step."""
        return self._lanes.take(self)

    @property
    def params(self) -> Any:
        """The lane's parameters, copied."""
        return self.materialize().params

    def block_until_ready(self) -> LaneState:
        """Waits for the step that makes this state."""
        self._lanes.wait()
        return self


class LaneScalar:
    """A lane's entry of an array [lanes], fetched together with all the others."""

    def __init__(self, values: jax.Array, index: int) -> None:
        self._values, self._index = values, index

    def copy_to_host_async(self) -> None:
        """Starts to fetch the array; asked for more than once, it is fetched once."""
        self._values.copy_to_host_async()

    def block_until_ready(self) -> LaneScalar:
        """Waits for the step that makes this value."""
        self._values.block_until_ready()
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(np.asarray(self._values)[self._index], dtype=dtype)


class Lanes:
    """Where the threads of all lanes meet, once a step.

    Attributes:
      stops: whether the step done last is to be the last.
    """

    def __init__(
        self,
        student: Student,
        lane_step: LaneStep,
        abstract_state: TrainState,
        weights: Sequence[Weights],
        stopping: Callable[[], bool] = lambda: False,
        side_by_side: bool | None = None,
        adapters: bool = False,
    ) -> None:
        """Compiles nothing yet.

        Args:
          student: the student of all lanes.
          lane_step: the lane step, from `make_lane_step`.
          abstract_state: the abstract state of one lane, with shardings.
          weights: the weights of each lane.
          stopping: whether to stop; asked once a step, so that all lanes stop at the same one.
          side_by_side: whether the lanes are computed as one batch, or one after another within the
            program. By default one after another on a CPU: XLA:CPU has no fast product of batches
            of matrices, and with 12 lanes of half a million parameters a batch took a third longer.
          adapters: whether adapters (LoRA) alone are trained. All lanes then have to have the very
            same arrays as the other parameters, which are held once.
        """
        self.stops = False
        self._stopping = stopping
        self._split = lora_lib.split if adapters else _nothing_shared
        mesh = student.mesh
        shared, abstract_state = self._parted(abstract_state)

        def stacked(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
            return NamedSharding(mesh, PartitionSpec(None, *leaf.sharding.spec))

        one = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
        many = jax.tree.map(stacked, abstract_state)
        batch = NamedSharding(mesh, PartitionSpec(None, *rules_lib.batch_sharding(mesh).spec))
        if side_by_side is None:
            side_by_side = mesh.devices.flat[0].platform != "cpu"
        self._step = student.jit(
            _over_lanes(self._of_own(lane_step), side_by_side),
            in_shardings=(
                many,
                batch,
                student.replicated,
                student.replicated,
                jax.tree.map(lambda leaf: leaf.sharding, shared),
            ),
            out_shardings=(many, student.replicated),
            donate_argnums=0,
        )
        self._stack = student.jit(
            lambda states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states),
            out_shardings=many,
        )
        self._choose = student.jit(
            lambda state, index: jax.tree.map(lambda leaf: leaf[index], state), out_shardings=many
        )
        self._cut = student.jit(
            lambda state, index: jax.tree.map(lambda leaf: leaf[index], state), out_shardings=one
        )
        self._batch_sharding = batch
        self._replicated = student.replicated
        self._weights = jax.tree.map(lambda *own: np.asarray(own, np.float32), *weights)
        self._condition = threading.Condition()
        self._live = set(range(len(weights)))
        self._given: dict[int, tuple[Any, Mapping[str, np.ndarray]]] = {}
        self._results: dict[int, Any] = {}
        self._state: TrainState | None = None
        self._shared: Any = None
        self._members: list[int] = []
        self._generation = 0

    def step(self, lane: int, state: Any, batch: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
        """Moves a lane by one step; returns when all lanes that are left have called this.

        Args:
          lane: its number.
          state: a TrainState the first time, which is donated but for what lanes share; then what
            this returned.
          batch: numpy, rows [B, …]; lanes may have different B.

        Returns:
          The lane's state and its metrics.
        """
        with self._condition:
            self._given[lane] = (state, batch)
            self._run_if_complete()
            while lane not in self._results:
                self._condition.wait()
            result = self._results.pop(lane)
        if isinstance(result, UserError):
            raise result
        if isinstance(result, BaseException):
            raise RuntimeError(f"the step of all lanes failed: {result}") from result
        return result

    def leave(self, lane: int) -> None:
        """Says that a lane takes no more steps, so that the others need not wait for it."""
        with self._condition:
            self._live.discard(lane)
            self._run_if_complete()

    def take(self, state: LaneState) -> TrainState:
        """See `LaneState.materialize`."""
        if state.generation != self._generation or self._state is None:
            raise RuntimeError("this state of a lane is of an earlier step, and gone")
        own = self._cut(self._state, jax.device_put(np.int32(state.index), self._replicated))
        return dataclasses.replace(own, params=lora_lib.join(self._shared, own.params))

    def wait(self) -> None:
        """Waits for the step that is running."""
        jax.block_until_ready(self._state)

    def _run_if_complete(self) -> None:
        if not self._live or set(self._given) != self._live:
            return
        members = sorted(self._given)
        try:
            self._regroup(members)
            batch = jax.device_put(
                stack_batches([self._given[lane][1] for lane in members]), self._batch_sharding
            )
            weights = jax.device_put(
                jax.tree.map(lambda own: own[members], self._weights), self._replicated
            )
            numbers = jax.device_put(np.asarray(members, np.int32), self._replicated)
            self._state, metrics = self._step(self._state, batch, weights, numbers, self._shared)
            self._generation += 1
            self.stops = self._stopping()
            for index, lane in enumerate(members):
                self._results[lane] = (
                    LaneState(self, index, self._generation),
                    {name: LaneScalar(values, index) for name, values in metrics.items()},
                )
        except BaseException as error:  # Each lane's thread raises it.
            self._results |= dict.fromkeys(members, error)
        self._given = {}
        self._condition.notify_all()

    def _regroup(self, members: list[int]) -> None:
        """Stacks the lanes' first states; later, drops lanes that have left."""
        if self._state is None:
            parted = [self._parted(self._given[lane][0]) for lane in members]
            self._shared = parted[0][0]
            for other, _ in parted:
                _require_same_arrays(self._shared, other)
            self._state = self._stack([own for _, own in parted])
            for leaf in jax.tree.leaves([own for _, own in parted]):
                leaf.delete()  # There may be no room for both; nobody looks at these any more.
        elif members != self._members:
            index = [self._given[lane][0].index for lane in members]
            chosen = jax.device_put(np.asarray(index, np.int32), self._replicated)
            self._state = self._choose(self._state, chosen)
        self._members = members

    def _parted(self, state: TrainState) -> tuple[Any, TrainState]:
        """The parameters that lanes share, and the state without them."""
        shared, own = self._split(state.params)
        return shared, dataclasses.replace(state, params=own)

    def _of_own(self, lane_step: LaneStep) -> LaneStep:
        """The step of a state without what lanes share, which is another argument."""

        def step(state: TrainState, *others: Any) -> tuple[TrainState, Any]:
            *given, shared = others
            params = lora_lib.join(shared, state.params)
            state, metrics = lane_step(dataclasses.replace(state, params=params), *given)
            return self._parted(state)[1], metrics

        return step


def _nothing_shared(params: Any) -> tuple[Any, Any]:
    return {}, params


def _require_same_arrays(shared: Any, other: Any) -> None:
    pairs = zip(jax.tree.leaves(shared), jax.tree.leaves(other), strict=True)
    if not all(one is two for one, two in pairs):
        raise UserError(
            "The runs that are to be trained together adapt different weights (LoRA); leave "
            "--vectorize out."
        )


def _over_lanes(lane_step: LaneStep, side_by_side: bool) -> Callable[..., Any]:
    """The step of all lanes, computed as one batch or one after another.

    Its last argument, what all lanes share, is not mapped over.
    """
    if side_by_side:
        return jax.vmap(lane_step, in_axes=(0, 0, 0, 0, None))
    return lambda *stacked: jax.lax.map(lambda one: lane_step(*one, stacked[-1]), stacked[:-1])


def stack_batches(batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stacks batches [B, …] to [lanes, B, …]; those with fewer rows get empty ones at their end.

    An empty row has no target, so no loss depends on it, and dropout's masks of the other rows do
    not either.
    """
    rows = max(len(batch["decoder_target_tokens"]) for batch in batches)
    return {
        name: np.stack(
            [
                np.pad(
                    batch[name],
                    [(0, rows - len(batch[name])), *[(0, 0)] * (batch[name].ndim - 1)],
                )
                for batch in batches
            ]
        )
        for name in batches[0]
    }
