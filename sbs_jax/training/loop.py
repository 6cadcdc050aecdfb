"""The loop: feeds batches to the step, records, evaluates, saves, and stops when asked to."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from sbs_jax.checkpoints.manager import CheckpointManager
from sbs_jax.errors import UserError, require_at_least
from sbs_jax.metrics import Value
from sbs_jax.partitioning.stopping import StopRequest
from sbs_jax.progress import Progress
from sbs_jax.training import hooks
from sbs_jax.training.profiling import Profile
from sbs_jax.training.start import Start
from sbs_jax.training.writers import MetricsWriter

StepFn = Callable[[Any, Any], tuple[Any, Mapping[str, jax.Array]]]
EvaluateFn = Callable[[Any, int], Mapping[str, Mapping[str, Value]]]


@dataclasses.dataclass(frozen=True)
class Finished:
    """How a call of `fit` ended.

    Attributes:
      state: the last state.
      step: number of steps done.
      interrupted: whether a signal ended it before its last step.
    """

    state: Any
    step: int
    interrupted: bool


FLOPS = "flops"
"""Key of `count`'s result: floating-point operations of the step. It becomes a rate."""


def batch_counts(batch: hooks.NumpyBatch) -> dict[str, float]:
    """`input_tokens` of a batch, and `fill`: the share of its positions that is not padding."""
    real = {
        name: int(np.count_nonzero(batch[name]))
        for name in ("encoder_segment_ids", "decoder_segment_ids")
        if name in batch
    }
    if len(real) < 2:
        return {}
    positions = sum(batch[name].size for name in real)
    return {
        "input_tokens": real["encoder_segment_ids"],
        "fill": sum(real.values()) / max(positions, 1),
    }


def fit(
    *,
    start: Start,
    step_fn: StepFn,
    batches: hooks.Batches,
    train_steps: int,
    to_device: Callable[[hooks.NumpyBatch], Any] = jax.device_put,
    count: Callable[[hooks.NumpyBatch], dict[str, float]] = batch_counts,
    evaluate: EvaluateFn | None = None,
    eval_period: int | None = None,
    checkpoints: CheckpointManager | None = None,
    checkpoint_period: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    writer: MetricsWriter | None = None,
    log_period: int = 1,
    profile: Profile | None = None,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> Finished:
    """Trains until `train_steps` steps are done, or a signal asks to stop.

    Metrics are fetched one step late, so the host never waits for the step that is running, but
    before evaluating and saving. The order at a step is: record, evaluate, save. Everything that a
    checkpoint promises (lines of the record, evaluation) is thus on disk before it, and a run that
    is killed and started again ends with the same parameters and the same record.

    Args:
      start: where the run starts, from `starting_state`; its position is restored into `batches`.
      step_fn: `step(state, batch) -> (state, metrics)`, jitted; it may donate the state. Metrics
        are device scalars, `loss` among them.
      batches: an endless iterator of numpy batches; a thread of its own uses it while this runs.
      train_steps: the step to end at, those done before `start` included.
      to_device: puts a numpy batch on the mesh.
      count: what to record of a numpy batch; `FLOPS` among it becomes `model_flops_per_second`.
      evaluate: `evaluate(state, step) -> {split: metrics}`, called every `eval_period` steps and
        after the last one.
      eval_period: number of steps between evaluations; None evaluates after the last one alone.
      checkpoints: the checkpoints of the run; None saves nothing.
      checkpoint_period: number of steps between checkpoints; None saves the last step alone. A step
        that is evaluated better than all before, and the step at which a signal comes, are saved,
        too.
      metadata: JSON that is saved with every checkpoint.
      writer: the writer of the record; None writes none.
      log_period: steps in a line of the record: counts are added up, other metrics averaged.
      profile: which steps to profile; None profiles none.
      progress: the lines at the terminal; None shows nothing.
      stop: the request to stop; it is opened here if it is not open already.

    Returns:
      The last state. A signal is no error: the state is saved, and the program ends with the exit
      code `errors.UNFINISHED`.

    Raises:
      UserError: the loss is not finite (the last good checkpoint stays), a period is out of its
        range, or a checkpoint or the record cannot be written.
    """
    require_at_least(
        1, EVAL_PERIOD=eval_period, CHECKPOINT_PERIOD=checkpoint_period, LOG_PERIOD=log_period
    )
    progress = progress or Progress(enabled=False)
    profile = profile or Profile()
    stop = stop or StopRequest()
    run = _Run(start, train_steps, checkpoints, metadata, writer, log_period, progress)
    if start.position is not None:
        batches.restore(start.position["data"])
    if writer is not None:
        writer.begin(None if start.position is None else start.step)
    progress.note(start.description)
    if start.step >= train_steps:
        progress.note(f"Nothing to train: step {start.step} of {train_steps} is done already.")
        return Finished(start.state, start.step, interrupted=False)

    state, step, stopping = start.state, start.step, False
    progress.begin(step, train_steps)
    try:
        with stop, progress, profile, hooks.Feed(batches, to_device, count) as feed:
            while step < train_steps and not stopping:
                with run.meter.waiting():
                    fed = next(feed)
                with profile.step(step + 1), _no_transfers():
                    state, metrics = step_fn(state, fed.batch)
                step += 1
                profile.end_after(step, state)
                run.record_pending()
                run.pend(step, metrics, fed)
                stopping = stop.agreed(after=metrics)
                last = step == train_steps
                evaluating = evaluate is not None and (last or _is_due(step, eval_period))
                saving = last or stopping or _is_due(step, checkpoint_period)
                if not (evaluating or saving):
                    continue
                run.record_pending()
                # Nothing else may run beside the step that ends here; see `StopRequest.agreed`.
                jax.block_until_ready(state)
                scores: dict[str, Value] = {}
                with run.meter.paused():
                    if evaluate is not None and evaluating:
                        scores = run.record_evaluation(step, evaluate(state, step))
                    if checkpoints is not None and (saving or checkpoints.is_best(scores)):
                        run.save(step, state, fed.position, scores)
                        if evaluating and (lacking := checkpoints.lacks_best_metric(scores)):
                            progress.note(f"No best checkpoint is kept: {lacking}")
    finally:
        if checkpoints is not None:
            checkpoints.wait()
    if stopping and step < train_steps:
        stopped = f"Stopped by {stop.name} after step {step} of {train_steps}"
        progress.note(
            f"{stopped}; nothing is saved, as this run has no checkpoints."
            if checkpoints is None
            else f"{stopped}; saved as {checkpoints.path_of(step)}. The same command goes on from "
            "there."
        )
    return Finished(state, step, interrupted=stopping and step < train_steps)


@contextlib.contextmanager
def _no_transfers() -> Iterator[None]:
    """Makes a transfer between host and devices an error: it would make each step wait for it."""
    with (
        jax.transfer_guard_host_to_device("disallow"),
        jax.transfer_guard_device_to_host("disallow"),
    ):
        yield


@dataclasses.dataclass
class _Run:
    """What `fit` carries besides the state."""

    start: Start
    train_steps: int
    checkpoints: CheckpointManager | None
    metadata: Mapping[str, Any] | None
    writer: MetricsWriter | None
    log_period: int
    progress: Progress

    def __post_init__(self) -> None:
        self.meter = hooks.Meter()
        self._window = hooks.Window((self.start.position or {}).get("window"))
        self._pending: tuple[int, Mapping[str, jax.Array], hooks.Fed] | None = None
        self._rates: dict[str, Value] = {}

    def pend(self, step: int, metrics: Mapping[str, jax.Array], fed: hooks.Fed) -> None:
        """Keeps a step's metrics until the next step is under way."""
        for value in metrics.values():
            value.copy_to_host_async()
        self._pending = step, metrics, fed

    def record_pending(self) -> None:
        """Fetches the metrics kept, if any, and records them."""
        if self._pending is None:
            return
        (step, on_device, fed), self._pending = self._pending, None
        metrics = {name: value.item() for name, value in jax.device_get(dict(on_device)).items()}
        self._refuse_poison(step, metrics)
        counts = dict(fed.counts)
        flops = counts.pop(FLOPS, None)
        recorded = hooks.without_empty_parts(_in_reading_order(metrics | counts))
        self.meter.add(recorded, flops)
        self._window.add(recorded)
        if step % self.log_period == 0 or step == self.train_steps:
            self._rates = self.meter.take()
            if self.writer is not None:
                self.writer.write(step, "train", self._window.take() | self._rates)
        self.progress.train(step, recorded | self._rates)

    def record_evaluation(
        self, step: int, results: Mapping[str, Mapping[str, Value]]
    ) -> dict[str, Value]:
        """Records each split's metrics and returns them all, by `split/metric`."""
        scores: dict[str, Value] = {}
        for split, metrics in results.items():
            if self.writer is not None:
                self.writer.write(step, split, metrics)
            self.progress.evaluated(step, split, metrics)
            scores |= {f"{split}/{name}": value for name, value in metrics.items()}
        return scores

    def save(
        self,
        step: int,
        state: Any,
        data_position: Mapping[str, Any],
        scores: Mapping[str, Value],
    ) -> None:
        """Saves the state with all that it takes to go on from it."""
        assert self.checkpoints is not None
        if self.writer is not None:
            self.writer.sync()
        self.checkpoints.save(
            step,
            state,
            extra={
                "position": {"data": data_position, "window": self._window.state()},
                "initial_checkpoint": self.start.initial_checkpoint,
                "metadata": dict(self.metadata or {}),
            },
            metrics=scores,
        )

    def _refuse_poison(self, step: int, metrics: Mapping[str, float]) -> None:
        for name in ("loss", "grad_norm"):
            if math.isfinite(metrics.get(name, 0.0)):
                continue
            what = "loss" if name == "loss" else "norm of the gradient"
            kept = "nothing was saved before it"
            if self.checkpoints is not None:
                self.checkpoints.wait()
                latest = self.checkpoints.latest_step()
                if latest is not None:
                    kept = f"the last good checkpoint is {self.checkpoints.path_of(latest)}"
            raise UserError(
                f"Step {step}: the {what} is {metrics[name]}; {kept}; lower the learning rate, "
                "clip gradients, or look for bad data at that step."
            )


def _in_reading_order(metrics: dict[str, float]) -> dict[str, float]:
    """The loss first, then each part's metrics, then the rest (jit sorts them by name)."""
    starts = ("loss", "label_", "rationale_", "")
    rank = {name: next(i for i, s in enumerate(starts) if name.startswith(s)) for name in metrics}
    return {name: metrics[name] for name in sorted(metrics, key=rank.__getitem__)}


def _is_due(step: int, period: int | None) -> bool:
    return period is not None and step % period == 0
