"""SeqIO's preprocessors of our tasks: `record_texts` and what finishes a target, in TensorFlow.

The input pipeline does not go this way (`reading`): these are for SeqIO's own programs, its cache,
and T5X. An *element* here is a dict of scalar tensors, with what `elements.read_targets` gives of
an example, and the features `KEPT`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from sbs_jax.data import record_texts
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.elements import WEIGHTS_OF
from sbs_jax.data.record_texts import WEIGHING, RecordMaker
from sbs_jax.data.tensorflow_setup import seqio, tf
from sbs_jax.methods import METHODS as METHODS
from sbs_jax.parts import PADDING, Method

Elements = Mapping[str, tf.Tensor]

KEPT = ("id", "label", "example", "example_count")
"""Features of an element that its records keep: its name, its gold label, its number, and how many
examples there are (whoever counts records must know of those that give none)."""

CHUNK = 1024  # examples that one call turns into records


def to_records(
    dataset: tf.data.Dataset,
    method: Method | str,
    output_features: Mapping[str, seqio.Feature] | None = None,
) -> tf.data.Dataset:
    """Makes the records of `method` of each element; see `record_texts.RecordMaker`.

    Args:
      dataset: a dataset of elements.
      method: or its name in `methods.METHODS`.
      output_features: whose vocabularies tokenize; the texts are kept as ``inputs_pretokenized``
        and ``targets_pretokenized``, as SeqIO's own preprocessor does, but many at a time. None
        leaves the texts as they are. Of a target with several parts each is tokenized by itself,
        and ``part`` has a code for each token; without vocabularies that of the first part.

    Returns:
      A dataset of records, with the features `KEPT` of their elements and ``variant`` besides, and
      `WEIGHING` where the data weighs words; those of one example are neighbours.
    """
    if isinstance(method, str):
        method = METHODS[method]
    weights = [key for key in dataset.element_spec if key.startswith(WEIGHTS_OF)]
    make = RecordMaker(method, settings_lib.current(), weighs=bool(weights))
    keys = [*make.keys, *weights]
    most = max(len(target.parts) for target in method.targets)

    def texts(variants: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
        """Inputs [R], texts of the parts [most, R], their codes, variants, elements, weighings."""
        records, numbers = [], []
        for number, (variant, *values) in enumerate(zip(variants, *columns, strict=True)):
            element = dict(zip(keys, (value.decode() for value in values), strict=True))
            found = list(make({**element, "variant": int(variant)}))
            records += found
            numbers += [number] * len(found)
        return [
            np.array([record.inputs.encode() for record in records], object),
            np.array(
                [
                    [
                        record.targets[i].encode() if i < len(record.targets) else b""
                        for record in records
                    ]
                    for i in range(most)
                ],
                object,
            ),
            np.array(
                [
                    [(*record.target.codes, *[PADDING] * most)[i] for record in records]
                    for i in range(most)
                ],
                np.int32,
            ),
            np.array([record.variant for record in records], np.int32),
            np.array(numbers, np.int32),
            np.array([record.weighing.encode() for record in records], object),
        ]

    @tf.autograph.experimental.do_not_convert  # there is no control flow, and converting takes long
    def expand(elements: Elements) -> dict[str, tf.Tensor]:
        types = (tf.string, tf.string, tf.int32, tf.int32, tf.int32, tf.string)
        arguments = [elements["variant"], *(elements[key] for key in keys)]
        made = tf.numpy_function(texts, arguments, types, stateful=False)
        shapes = ([None], [most, None], [most, None], [None], [None], [None])
        inputs, targets, codes, variant, number, weighing = map(tf.ensure_shape, made, shapes)
        features = {
            "inputs": inputs,
            "targets": tf.strings.reduce_join(targets, axis=0),
            "part": codes[0][:, None],
            "variant": variant,
        }
        if weights:
            features[WEIGHING] = weighing
        for key in KEPT:
            features[key] = tf.gather(elements[key], number)
        for key in ("inputs", "targets"):
            if output_features is None:
                break
            vocabulary = output_features[key].vocabulary
            features[f"{key}_pretokenized"] = features[key]
            if key == "inputs" or most == 1:
                features[key] = vocabulary.encode_tf(features[key])
            else:
                tokens = [vocabulary.encode_tf(column) for column in tf.unstack(targets, most)]
                features[key], features["part"] = _in_one_target(tokens, tf.unstack(codes, most))
        return features

    return dataset.batch(CHUNK).map(expand).unbatch()


def _in_one_target(
    tokens: Sequence[tf.RaggedTensor], codes: Sequence[tf.Tensor]
) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    """Joins the tokens of several parts; returns them, and the code of each token."""
    spread = [
        one.with_values(tf.repeat(code, one.row_lengths()))
        for one, code in zip(tokens, codes, strict=True)
    ]
    return tf.concat(list(tokens), axis=1), tf.concat(spread, axis=1)


def finish_targets(
    dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature], method: Method
) -> tf.data.Dataset:
    """Gives EOS its part, and puts the task prefix in front where the settings want it there.

    The prompt's tokens are of no part, so nothing learns to write them. Follows tokenizing and EOS:

        {'inputs': [8, 9, 1], 'targets': [5, 1], 'part': [1]}
        -> {'inputs': [8, 9, 1], 'targets': [3, 4, 5, 1], 'part': [0, 0, 1, 1]}

    Of a target with several parts, each token has its own code, and EOS that of the last one:

        {'inputs': [8, 9, 1], 'targets': [6, 7, 5, 1], 'part': [2, 2, 1]}
        -> {'inputs': [8, 9, 1], 'targets': [6, 7, 5, 1], 'part': [2, 2, 1, 1]}
    """
    if settings_lib.current().prefix_side != "decoder" and not method.shares_targets:
        return dataset
    finish = functools.partial(_finish, output_features=output_features, method=method)
    return dataset.ragged_batch(CHUNK).map(finish).unbatch()


def _finish(
    batch: Elements, output_features: Mapping[str, seqio.Feature], method: Method
) -> dict[str, tf.Tensor]:
    """`finish_targets` for a batch, whose ``inputs`` and ``targets`` are ragged."""
    settings = settings_lib.current()
    targets, part = batch["targets"], batch["part"]
    if not isinstance(part, tf.RaggedTensor):
        part = tf.RaggedTensor.from_tensor(part)
    first = part[:, :1].flat_values
    # What was cut from a target has lost its codes; a code that is missing is the last one.
    at = tf.minimum(tf.ragged.range(targets.row_lengths()), part.row_lengths()[:, None] - 1)
    own = tf.gather(part, at, batch_dims=1)
    if settings.prefix_side != "decoder":
        return {**batch, "part": own}
    vocabulary = output_features["targets"].vocabulary
    asked = {target.codes[0]: target for target in method.targets}
    by_part = tf.ragged.constant(
        [
            record_texts.decoder_prompt(settings, asked[code], vocabulary) if code in asked else []
            for code in range(len(method.names) + 1)
        ],
        dtype=targets.dtype,
    )
    prompts = tf.gather(by_part, first)
    none = prompts.with_values(tf.fill(tf.shape(prompts.values), PADDING))
    return {
        **batch,
        "targets": tf.concat([prompts, targets], axis=1),
        "part": tf.concat([none, own], 1),
    }
