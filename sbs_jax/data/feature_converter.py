"""Our tasks' features as an encoder-decoder model of T5X (or another SeqIO program) reads them.

SeqIO's own converter knows no parts of a loss, its packer rejects features that only pass through,
and finds a feature's length by counting what is not 0. So each example's part code is spread over
its target *before* packing, EOS included, and is then packed like any other feature. Our own
batches are made in `batching`, which does not need this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from sbs_jax.data.preprocessors import WEIGHING
from sbs_jax.data.tensorflow_setup import seqio, tf
from sbs_jax.errors import UserError
from sbs_jax.parts import LABEL


class PartFeatureConverter(seqio.EncDecFeatureConverter):
    """SeqIO's converter for encoder-decoder models, with the part of each target token besides.

    The task's feature ``part`` holds one code for the whole target (`sbs_jax.parts`), or one for
    each of its tokens, 0 where a token is of no part. A task without it is all label.
    TASK_FEATURE_LENGTHS names ``inputs`` and ``targets`` as ever. Packed:

        [{'inputs': [7, 8, 1], 'targets': [3, 1], 'part': [1]},
         {'inputs': [9, 8, 1], 'targets': [4, 5, 1], 'part': [2]}]
        -> {'decoder_target_tokens': [3, 1, 4, 5, 1, 0],
             'decoder_target_parts': [1, 1, 2, 2, 2, 0],
              'decoder_segment_ids': [1, 1, 2, 2, 2, 0], ...}

    The other model features are those of `seqio.EncDecFeatureConverter`.
    """

    TASK_FEATURES: ClassVar[dict[str, seqio.FeatureConverter.FeatureSpec]] = {
        **seqio.EncDecFeatureConverter.TASK_FEATURES,
        "part": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
    }
    MODEL_FEATURES: ClassVar[dict[str, seqio.FeatureConverter.FeatureSpec]] = {
        **seqio.EncDecFeatureConverter.MODEL_FEATURES,
        "decoder_target_parts": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
    }

    def __call__(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        """Converts a task's dataset.

        Args:
          ds: examples with int32 features ``inputs``, ``targets`` and perhaps ``part``.
          task_feature_lengths: row lengths of ``inputs`` and ``targets``. What it says of ``part``
            (SeqIO's `Evaluator` measures every feature) does not matter: that has the targets'
            length.

        Returns:
          A dataset of the model features, each of the length of ``inputs`` or ``targets``.

        Raises:
          ValueError: SeqIO's checks of features, types and lengths fail.
          UserError: the data weighs words.
        """
        if WEIGHING in ds.element_spec:
            raise UserError(
                "The data weighs words (a field such as rationale_weights), which T5X's runs do "
                "not read; train with python -m sbs_jax.train, or take the field out."
            )
        lengths = dict(task_feature_lengths)
        if "targets" in lengths:
            lengths["part"] = lengths["targets"]
        if "part" not in ds.element_spec:
            ds = ds.map(_all_label, num_parallel_calls=tf.data.AUTOTUNE)
        return super().__call__(ds, lengths)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        """Returns the length of each model feature."""
        lengths = dict(super().get_model_feature_lengths(task_feature_lengths))
        return {**lengths, "decoder_target_parts": task_feature_lengths["targets"]}

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        ds = ds.map(_spread_part, num_parallel_calls=tf.data.AUTOTUNE)
        return super()._convert_features(ds, task_feature_lengths)

    def _convert_example(self, features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        converted = dict(super()._convert_example(features))
        parts = tf.maximum(features["part"] - _SHIFT, 0)
        return {**converted, "decoder_target_parts": parts}


_SHIFT = 1  # codes are packed one higher: a token of no part must not look like padding


def _all_label(features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {**features, "part": tf.constant([LABEL], tf.int32)}


def _spread_part(features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    part = features["part"]
    # A code for each token was trimmed as the targets were; broadcasting refuses other lengths.
    return {**features, "part": tf.broadcast_to(part, tf.shape(features["targets"])) + _SHIFT}
