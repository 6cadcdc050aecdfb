"""From examples to records: one (task prefix + input, target) pair for each target of the method.

An *element* here is a dict of scalar tensors as `registration` makes it from an example: ``input``,
``target_label`` and ``target_rationale`` (texts), the further fields that the method's parts name
(`element_key`), those that records keep (`KEPT`), and more. An example with several rationales
gives as many elements, told apart by ``variant``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from sbs_jax import parts as parts_lib
from sbs_jax.data import settings as settings_lib
from sbs_jax.data import token_weights
from sbs_jax.data.datasets import WEIGHTS_OF, element_key
from sbs_jax.data.joint import split_joint as split_joint
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.tensorflow_setup import seqio, tf
from sbs_jax.parts import METHODS as METHODS
from sbs_jax.parts import PADDING, Method, Pieces, Target

Elements = Mapping[str, tf.Tensor]


def make_record(
    target: Target, elements: Elements, settings: DataSettings
) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
    """``PREFIX INPUT`` -> the text of each part of a target.

    The method ``sbs`` has ``predict: INPUT`` -> ``LABEL`` and ``explain: INPUT`` -> ``RATIONALE``
    (Eq. 3); ``joint`` has ``predict: INPUT`` -> ``RATIONALE Answer: LABEL``, all of it one part, so
    that its loss is the plain mean over all tokens (Eq. 5); ``rationale_input`` has
    ``predict: INPUT explanation: RATIONALE`` -> ``LABEL`` (Eq. 2). With the prefixes on
    the decoder's side the input stands alone; see `finish_targets`.

    Args:
      target: of a method.
      elements: a batch of elements, texts of shape [N].
      settings: give the prefixes and separators.

    Returns:
      The inputs (texts [N]), the text of each part (texts [N]), and whether the record trains (bool
      [N]): not where a field that it reads or writes is blank. Blank rationales stay if the
      settings say so; what is in front of one in an input is left out with it.
    """
    inputs = _join(target.inputs(settings.texts), elements, settings)
    if prefix := encoder_prefix(settings, target):
        inputs = tf.strings.join([prefix, inputs])
    outputs = [_join(pieces, elements, settings) for pieces in target.outputs(settings.texts)]
    trains = tf.ones(tf.shape(inputs), tf.bool)
    for field in target.fields:
        kept = field == "rationale" and settings.keep_blank_rationales
        if field != "input" and not kept:
            trains &= _not_blank(elements[element_key(field)])
    return inputs, outputs, trains


def _join(pieces: Pieces, elements: Elements, settings: DataSettings) -> tf.Tensor:
    """Joins fields and the texts in front of them; texts [N]."""
    joined = []
    for text, field in pieces:
        if field is None:
            joined.append(tf.constant(text))
            continue
        value = elements[element_key(field)]
        if text:
            value = tf.strings.join([text, value])
            if field == "rationale" and settings.keep_blank_rationales:
                value = tf.where(_not_blank(elements[element_key(field)]), value, "")
        joined.append(value)
    return joined[0] if len(joined) == 1 else tf.strings.join(joined)


def _weighing(target: Target, elements: Elements, settings: DataSettings) -> tf.Tensor:
    """Says of which pieces each part of a target is made, with the weights of their words."""
    none = tf.fill(tf.shape(elements["input"]), "")
    parts = []
    for pieces in target.outputs(settings.texts):
        texts = []
        for text, field in pieces:
            value = none if field is None else elements[element_key(field)]
            weights = none if field is None else elements.get(WEIGHTS_OF + field, none)
            texts.append(tf.strings.join([text, value, weights], token_weights.ITEM))
        parts.append(tf.strings.join(texts, token_weights.PIECE))
    return tf.strings.join(parts, token_weights.PART)


def encoder_prefix(settings: DataSettings, target: Target) -> str:
    """Returns what stands in front of an input that asks for `target`."""
    if settings.prefix_side == "decoder":
        return ""
    return parts_lib.fill(target.prefix, settings.texts)


def decoder_prompt(
    settings: DataSettings, target: Target, vocabulary: seqio.Vocabulary
) -> list[int]:
    """Returns the tokens that the decoder is given before it writes `target`; none by default."""
    if settings.prefix_side == "encoder":
        return []
    prefix = parts_lib.fill(target.prefix, settings.texts)
    return list(vocabulary.encode(prefix)) if prefix else []


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
    if settings_lib.current().prefix_side == "encoder" and not method.shares_targets:
        return dataset
    finish = functools.partial(_finish, output_features=output_features, method=method)
    return dataset.ragged_batch(_CHUNK).map(finish).unbatch()


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
    if settings.prefix_side == "encoder":
        return {**batch, "part": own}
    vocabulary = output_features["targets"].vocabulary
    asked = {target.codes[0]: target for target in method.targets}
    by_part = tf.ragged.constant(
        [
            decoder_prompt(settings, asked[code], vocabulary) if code in asked else []
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


def _not_blank(texts: tf.Tensor) -> tf.Tensor:
    return tf.strings.length(tf.strings.strip(texts)) > 0


KEPT = ("id", "label", "example", "example_count")
"""Features of an element that its records keep: its name, its gold label, its number, and how many
examples there are (whoever counts records must know of those that give none)."""

WEIGHING = "weighing"
"""The feature of a record that holds a `token_weights.spec`, where the data weighs words."""

SHARED = -1
"""The ``variant`` of a record that all rationales of an example share."""

_CHUNK = 1024  # examples that one call turns into records


def to_records(
    dataset: tf.data.Dataset,
    method: Method | str,
    output_features: Mapping[str, seqio.Feature] | None = None,
) -> tf.data.Dataset:
    """Makes the records of `method` of each element; see `record_batches`."""
    return record_batches(dataset, method, output_features).unbatch()


def finished_batches(
    dataset: tf.data.Dataset, method: Method, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """Makes batches of what a task's preprocessors make one by one, which takes much longer."""

    @tf.autograph.experimental.do_not_convert
    def finish(batch: Elements) -> dict[str, tf.Tensor]:
        batch = seqio.preprocessors.append_eos_after_trim_impl(
            dict(batch), output_features=output_features, sequence_length=None
        )
        finishes = settings_lib.current().prefix_side == "decoder" or method.shares_targets
        return _finish(batch, output_features, method) if finishes else batch

    return record_batches(dataset, method, output_features).map(finish)


def record_batches(
    dataset: tf.data.Dataset,
    method: Method | str,
    output_features: Mapping[str, seqio.Feature] | None = None,
) -> tf.data.Dataset:
    """Makes the records of `method` of each element; those of one example are neighbours.

    Blank targets are dropped: an unparsed completion trains nothing. Blank rationales (not blank
    labels) stay if the settings say so.

    For example, with the method ``sbs`` (as texts):

        {'input': '2 apples and 3', 'target_label': '5', 'target_rationale': '2 + 3 = 5.'}
        -> {'inputs': 'predict: 2 apples and 3', 'targets': '5', 'part': [1]}
           {'inputs': 'explain: 2 apples and 3', 'targets': '2 + 3 = 5.', 'part': [2]}

    Args:
      dataset: of elements.
      method: or its name in `parts.METHODS`.
      output_features: whose vocabularies tokenize; the texts are kept as ``inputs_pretokenized``
        and ``targets_pretokenized``, as SeqIO's own preprocessor does, but many at a time. None
        leaves the texts as they are. Of a target with several parts each is tokenized by itself,
        and ``part`` has a code for each token; without vocabularies that of the first part.

    Returns:
      A dataset of batches of records, with the features `KEPT` of their elements and ``variant``
      besides, and `WEIGHING` where the data weighs words. A record without a rationale comes once
      for each example, its variant is `SHARED`; so
      the records' order is that of (example, variant).
    """
    settings = settings_lib.current()
    if isinstance(method, str):
        method = METHODS[method]
    targets = method.targets
    shared = ["rationale" not in target.fields for target in targets]
    most = max(len(target.parts) for target in targets)

    @tf.autograph.experimental.do_not_convert  # there is no control flow, and converting takes long
    def expand(elements: Elements) -> dict[str, tf.Tensor]:
        made = [make_record(target, elements, settings) for target in targets]
        # [records, N, ...] -> [N, records, ...] -> [N * records, ...]: neighbours stay together.
        features = {"inputs": _interleave([inputs for inputs, _, _ in made])}
        blank = tf.fill(tf.shape(elements["input"]), "")
        columns = [
            _interleave([texts[i] if i < len(texts) else blank for _, texts, _ in made])
            for i in range(most)
        ]
        features["targets"] = columns[0] if most == 1 else tf.strings.join(columns)
        codes = [
            _interleave(
                [
                    tf.fill(tf.shape(blank), (*target.codes, *[PADDING] * most)[i])
                    for target in targets
                ]
            )
            for i in range(most)
        ]
        features["part"] = codes[0][:, None]
        variant = elements["variant"]
        features["variant"] = _interleave(
            [tf.fill(tf.shape(variant), SHARED) if alike else variant for alike in shared]
        )
        for key in KEPT:
            features[key] = tf.repeat(elements[key], len(targets), axis=0)
        if any(key.startswith(WEIGHTS_OF) for key in elements):
            features[WEIGHING] = _interleave(
                [_weighing(target, elements, settings) for target in targets]
            )
        repeated = _interleave(
            [variant > 0 if alike else tf.zeros_like(variant, tf.bool) for alike in shared]
        )
        trains = _interleave([trains for _, _, trains in made]) & ~repeated
        features = {key: tf.boolean_mask(value, trains) for key, value in features.items()}
        columns, codes = (
            [tf.boolean_mask(one, trains) for one in all_] for all_ in (columns, codes)
        )
        for key in ("inputs", "targets") if output_features is not None else ():
            texts = features[key]
            features[f"{key}_pretokenized"] = texts
            vocabulary = output_features[key].vocabulary
            if key == "inputs" or most == 1:
                features[key] = vocabulary.encode_tf(texts)
            else:
                tokens = [vocabulary.encode_tf(column) for column in columns]
                features[key], features["part"] = _in_one_target(tokens, codes)
        return features

    return dataset.batch(_CHUNK).map(expand)


def _in_one_target(
    tokens: Sequence[tf.RaggedTensor], codes: Sequence[tf.Tensor]
) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    """Joins the tokens of several parts; returns them, and the code of each token."""
    spread = [
        one.with_values(tf.repeat(code, one.row_lengths()))
        for one, code in zip(tokens, codes, strict=True)
    ]
    return tf.concat(list(tokens), axis=1), tf.concat(spread, axis=1)


def _interleave(tensors: list[tf.Tensor]) -> tf.Tensor:
    stacked = tf.stack(tensors, axis=1)
    return tf.reshape(stacked, tf.concat([[-1], tf.shape(stacked)[2:]], axis=0))
