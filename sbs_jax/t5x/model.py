"""T5X's encoder-decoder model with the loss of a method's parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from t5x import decoding, models, optimizers
from t5x import metrics as t5x_metrics

from sbs_jax import losses
from sbs_jax.data.feature_converter import PartFeatureConverter
from sbs_jax.data.tensorflow_setup import seqio
from sbs_jax.data.vocabulary import require_fit
from sbs_jax.errors import UserError
from sbs_jax.methods import METHODS
from sbs_jax.parts import Method
from sbs_jax.t5x import part_metrics
from sbs_jax.training.schedules import Schedule
from sbs_jax.training.step import Batch, Loss

SCALES = "part_scales"
"""Feature of a batch, float32 [B, parts], all rows alike: what each part's sum of cross-entropies
counts in the loss, the part's weight / Σ token weights of the whole batch; in the order of codes,
so that label and rationale come first."""


class TwoPartModel(models.EncoderDecoderModel):
    """T5X's model with L = mean_label + λ · mean_rationale as its loss, or that of more parts.

    T5X calls `loss_fn` once a microbatch and adds up the gradients; so a mean over what `loss_fn`
    sees is not the mean over the batch. `add_scales`, called on the whole batch by
    `part_trainer.PartTrainer`, puts what the batch holds into each of its rows, where it outlives
    the cutting.
    """

    FEATURE_CONVERTER_CLS = PartFeatureConverter

    def __init__(
        self,
        module: nn.Module,
        input_vocabulary: seqio.Vocabulary,
        output_vocabulary: seqio.Vocabulary,
        optimizer_def: optimizers.OptimizerDefType,
        rationale_weight: float | Schedule = 1.0,
        loss_normalization: losses.Normalization = "token_mean",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        decode_fn: models.DecodeFnCallable = decoding.beam_search,
        feature_converter_cls: Callable[..., seqio.FeatureConverter] | None = None,
        default_decoder_params: models.DecoderParams | None = None,
        method: Method | None = None,
    ) -> None:
        """As `t5x.models.EncoderDecoderModel`, but for the loss.

        Args:
          module: T5X's network.
          input_vocabulary: the input vocabulary of the task.
          output_vocabulary: the output vocabulary of the task.
          optimizer_def: T5X's optimizer.
          rationale_weight: the paper's λ, or a schedule of it.
          loss_normalization: see `losses.part_weights`.
          label_smoothing: see `losses.token_cross_entropy`.
          z_loss: see `losses.token_cross_entropy`.
          decode_fn: see `t5x.models`.
          feature_converter_cls: another one that gives ``decoder_target_parts``.
          default_decoder_params: see `t5x.models`.
          method: whose parts are trained (`vocabulary.method_of_task`); None is ``sbs``.

        Raises:
          UserError: a hyperparameter is out of its range, or the vocabulary is larger than the
            network's embedding.
        """
        loss = Loss(rationale_weight, loss_normalization, label_smoothing, z_loss)
        if hasattr(module, "config"):
            require_fit(output_vocabulary, module.config.vocab_size)
        self._loss = loss.of(METHODS["sbs"] if method is None else method)
        super().__init__(
            module=module,
            input_vocabulary=input_vocabulary,
            output_vocabulary=output_vocabulary,
            optimizer_def=optimizer_def,
            decode_fn=decode_fn,
            feature_converter_cls=feature_converter_cls,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            default_decoder_params=default_decoder_params,
        )

    def weights_at(self, step: int | jax.Array) -> dict[str, Float[Array, ""]]:
        """The weights of parts at a step that are not fixed to 1, float32; λ is among them."""
        weights = self._loss.weights_at(step)
        return {name: jnp.asarray(weight, jnp.float32) for name, weight in weights.items()}

    def add_scales(self, batch: Batch, step: int | jax.Array) -> dict[str, jax.Array]:
        """Adds `SCALES` to a batch; call it on the whole batch, of all devices and processes.

        Args:
          batch: a batch of `PartFeatureConverter`, packed or not.
          step: the step of training, for schedules of the parts' weights.
        """
        weights = self._token_weights(batch)
        of_parts = self.weights_at(step)
        scales = []
        for part, name in enumerate(self._loss.names, start=1):
            total = jnp.where(batch["decoder_target_parts"] == part, weights, 0.0).sum()
            factor = of_parts.get(name, 1.0)
            scales.append(jnp.where(total > 0, factor / jnp.where(total > 0, total, 1.0), 0.0))
        rows = batch["decoder_target_parts"].shape[0]
        return {**batch, SCALES: jnp.broadcast_to(jnp.stack(scales), (rows, len(scales)))}

    def loss_fn(
        self, params: Any, batch: Batch, dropout_rng: jax.Array | None
    ) -> tuple[Float[Array, ""], t5x_metrics.MetricsMap]:
        """The share that a batch or a microbatch has in the loss, and metrics that add up.

        Args:
          params: the parameters of the network.
          batch: a batch that also holds `SCALES`.
          dropout_rng: None for no dropout.

        Raises:
          UserError: `SCALES` is missing.
        """
        if SCALES not in batch:
            raise UserError(
                "The batch does not say what the whole batch holds: use "
                "sbs_jax.t5x.part_trainer.PartTrainer as T5X's trainer, as gin/t5x/ does."
            )
        logits = self._compute_logits(params, batch, dropout_rng)
        parts = batch["decoder_target_parts"]
        weights = self._token_weights(batch)
        sums = losses.sum_parts(
            logits,
            batch["decoder_target_tokens"],
            parts,
            _segment_ids(batch),
            weights,
            names=self._loss.names,
            label_smoothing=self._label_smoothing,
            z_loss=self._z_loss,
        )
        scales = dict(zip(self._loss.names, batch[SCALES][0], strict=True))
        loss = sum(scales[name] * part.loss for name, part in sums.items())
        z_loss = sum(scales[name] * part.z_loss for name, part in sums.items())
        metrics = self._compute_metrics(
            logits=logits,
            targets=batch["decoder_target_tokens"],
            mask=(parts > 0).astype(jnp.int32),
            loss=loss,
            z_loss=z_loss,
            segment_ids={
                "encoder": batch.get("encoder_segment_ids", batch["encoder_input_tokens"] > 0),
                "decoder": _segment_ids(batch),
            },
        )
        totals = {
            name: jnp.where(parts == part, weights, 0.0).sum()
            for part, name in enumerate(self._loss.names, start=1)
        }
        return loss, {**metrics, **part_metrics.of_parts(sums, totals)}

    def _token_weights(self, batch: Batch) -> Float[Array, "B T"]:
        return losses.raw_weights(
            batch["decoder_target_parts"],
            _segment_ids(batch),
            self._loss.normalizations,
            names=self._loss.names,
        )


def _segment_ids(batch: Batch) -> jax.Array:
    """Which target of its row a token belongs to; rows that are not packed hold one."""
    if "decoder_segment_ids" in batch:
        return batch["decoder_segment_ids"]
    return (batch["decoder_target_parts"] > 0).astype(jnp.int32)
