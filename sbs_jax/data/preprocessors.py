"""From examples to records: one (task prefix + input, target) pair for each part that is trained.

An *element* here is a dict of scalar tensors as `registration` makes it from an example: ``input``,
``target_label`` and ``target_rationale`` (texts), those that records keep (`KEPT`), and more. An
example with several rationales gives as many elements, told apart by ``variant``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from sbs_jax.data import settings as settings_lib
from sbs_jax.data.joint import explained_input as explained_input
from sbs_jax.data.joint import split_joint as split_joint
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.tensorflow_setup import seqio, tf
from sbs_jax.parts import LABEL, PADDING, RATIONALE

Elements = Mapping[str, tf.Tensor]
RecordFn = Callable[[Elements, DataSettings], dict[str, tf.Tensor]]


def label_record(elements: Elements, settings: DataSettings) -> dict[str, tf.Tensor]:
    """``predict: INPUT`` -> the label.

    With the prefixes on the decoder's side the input stands alone; see `prompt_decoder`.

    Args:
      elements: a batch of elements, texts of shape [N].
      settings: gives the prefix.

    Returns:
      ``inputs`` and ``targets`` (texts [N]) and ``part`` (int32 [N, 1]).
    """
    return _record(
        encoder_prefix(settings, LABEL), elements["input"], elements["target_label"], LABEL
    )


def rationale_record(elements: Elements, settings: DataSettings) -> dict[str, tf.Tensor]:
    """``explain: INPUT`` -> the rationale; see `label_record`."""
    prefix = encoder_prefix(settings, RATIONALE)
    return _record(prefix, elements["input"], elements["target_rationale"], RATIONALE)


def joint_record(elements: Elements, settings: DataSettings) -> dict[str, tf.Tensor]:
    """``predict: INPUT`` -> ``RATIONALE Answer: LABEL``: one target, all of it of the part LABEL.

    So its loss is the plain mean over all tokens (Eq. 5), and λ has no part in it. `split_joint`
    takes such a text apart again.
    """
    separator = tf.constant(settings.joint_separator)
    targets = tf.strings.join([elements["target_rationale"], separator, elements["target_label"]])
    # Both are needed: a target that lacks one is blank, and so is dropped, as other blank ones are.
    complete = _not_blank(elements["target_label"])
    if not settings.keep_blank_rationales:
        complete &= _not_blank(elements["target_rationale"])
    targets = tf.where(complete, targets, "")
    return _record(encoder_prefix(settings, LABEL), elements["input"], targets, LABEL)


def rationale_input_record(elements: Elements, settings: DataSettings) -> dict[str, tf.Tensor]:
    """``predict: INPUT explanation: RATIONALE`` -> the label (Eq. 2)."""
    inputs = tf.strings.join(
        [elements["input"], settings.rationale_input_separator, elements["target_rationale"]]
    )
    explained = _not_blank(elements["target_rationale"])
    targets = elements["target_label"]
    if settings.keep_blank_rationales:
        inputs = tf.where(explained, inputs, elements["input"])
    else:
        targets = tf.where(explained, targets, "")
    return _record(encoder_prefix(settings, LABEL), inputs, targets, LABEL)


def encoder_prefix(settings: DataSettings, part: int) -> str:
    """Returns what stands in front of an input that asks for `part`."""
    if settings.prefix_side == "decoder":
        return ""
    return settings.label_prefix if part == LABEL else settings.rationale_prefix


def decoder_prompt(settings: DataSettings, part: int, vocabulary: seqio.Vocabulary) -> list[int]:
    """Returns the tokens that the decoder is given before it writes `part`; none by default."""
    if settings.prefix_side == "encoder":
        return []
    prefix = settings.label_prefix if part == LABEL else settings.rationale_prefix
    return list(vocabulary.encode(prefix)) if prefix else []


def prompt_decoder(
    dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """Puts the task prefix in front of the tokenized target, where the settings want it there.

    The prompt's tokens are of no part, so nothing learns to write them. Follows tokenizing and EOS:

        {'inputs': [8, 9, 1], 'targets': [5, 1], 'part': [1]}
        -> {'inputs': [8, 9, 1], 'targets': [3, 4, 5, 1], 'part': [0, 0, 1, 1]}
    """
    if settings_lib.current().prefix_side == "encoder":
        return dataset
    prompt = functools.partial(_prompt, output_features=output_features)
    return dataset.ragged_batch(_CHUNK).map(prompt).unbatch()


def _prompt(batch: Elements, output_features: Mapping[str, seqio.Feature]) -> dict[str, tf.Tensor]:
    """`prompt_decoder` for a batch, whose ``inputs`` and ``targets`` are ragged."""
    settings = settings_lib.current()
    vocabulary = output_features["targets"].vocabulary
    part = batch["part"]
    part = (part.to_tensor() if isinstance(part, tf.RaggedTensor) else part)[:, 0]
    by_part = tf.ragged.constant(
        [[], *(decoder_prompt(settings, part, vocabulary) for part in (LABEL, RATIONALE))],
        dtype=batch["targets"].dtype,
    )
    prompts, targets = tf.gather(by_part, part), batch["targets"]
    own = targets.with_values(tf.repeat(part, targets.row_lengths()))
    return {
        **batch,
        "targets": tf.concat([prompts, targets], axis=1),
        "part": tf.concat(
            [prompts.with_values(tf.fill(tf.shape(prompts.values), PADDING)), own], 1
        ),
    }


def _not_blank(texts: tf.Tensor) -> tf.Tensor:
    return tf.strings.length(tf.strings.strip(texts)) > 0


def _record(prefix: str, inputs: tf.Tensor, targets: tf.Tensor, part: int) -> dict[str, tf.Tensor]:
    return {
        "inputs": tf.strings.join([prefix, inputs]) if prefix else inputs,
        "targets": targets,
        "part": tf.fill([tf.size(inputs), 1], tf.constant(part, tf.int32)),
    }


METHODS: dict[str, tuple[RecordFn, ...]] = {
    "standard": (label_record,),
    "rationale": (rationale_record,),
    "sbs": (label_record, rationale_record),
    "joint": (joint_record,),
    "rationale_input": (rationale_input_record,),
}
"""The records that each example gives, by method and in the order in which they follow."""

KEPT = ("id", "label", "example", "example_count")
"""Features of an element that its records keep: its name, its gold label, its number, and how many
examples there are (whoever counts records must know of those that give none)."""

SHARED = -1
"""The ``variant`` of a record that all rationales of an example share."""

_CHUNK = 1024  # examples that one call turns into records


def to_records(
    dataset: tf.data.Dataset,
    method: str,
    output_features: Mapping[str, seqio.Feature] | None = None,
) -> tf.data.Dataset:
    """Makes the records of `method` of each element; see `record_batches`."""
    return record_batches(dataset, method, output_features).unbatch()


def finished_batches(
    dataset: tf.data.Dataset, method: str, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """Makes batches of what a task's preprocessors make one by one, which takes much longer."""

    @tf.autograph.experimental.do_not_convert
    def finish(batch: Elements) -> dict[str, tf.Tensor]:
        batch = seqio.preprocessors.append_eos_after_trim_impl(
            dict(batch), output_features=output_features, sequence_length=None
        )
        prompted = settings_lib.current().prefix_side == "decoder"
        return _prompt(batch, output_features) if prompted else batch

    return record_batches(dataset, method, output_features).map(finish)


def record_batches(
    dataset: tf.data.Dataset,
    method: str,
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
      method: a key of `METHODS`.
      output_features: whose vocabularies tokenize; the texts are kept as ``inputs_pretokenized``
        and ``targets_pretokenized``, as SeqIO's own preprocessor does, but many at a time. None
        leaves the texts as they are.

    Returns:
      A dataset of batches of records, with the features `KEPT` of their elements and ``variant``
      besides. A label that has rationales beside it comes once for each example, its variant is
      `SHARED`; so the records' order is that of (example, variant).
    """
    settings = settings_lib.current()
    makers = METHODS[method]
    shared = [maker is label_record for maker in makers]

    @tf.autograph.experimental.do_not_convert  # there is no control flow, and converting takes long
    def expand(elements: Elements) -> dict[str, tf.Tensor]:
        records = [maker(elements, settings) for maker in makers]
        # [records, N, ...] -> [N, records, ...] -> [N * records, ...]: neighbours stay together.
        features = {
            key: _interleave([record[key] for record in records])
            for key in ("inputs", "targets", "part")
        }
        variant = elements["variant"]
        features["variant"] = _interleave(
            [tf.fill(tf.shape(variant), SHARED) if label else variant for label in shared]
        )
        for key in KEPT:
            features[key] = tf.repeat(elements[key], len(records), axis=0)
        repeated = _interleave(
            [variant > 0 if label else tf.zeros_like(variant, tf.bool) for label in shared]
        )
        trains = _not_blank(features["targets"])
        if settings.keep_blank_rationales:
            trains |= features["part"][:, 0] == RATIONALE
        trains &= ~repeated
        features = {key: tf.boolean_mask(value, trains) for key, value in features.items()}
        for key in ("inputs", "targets") if output_features is not None else ():
            texts = features[key]
            features[f"{key}_pretokenized"] = texts
            features[key] = output_features[key].vocabulary.encode_tf(texts)
        return features

    return dataset.batch(_CHUNK).map(expand)


def _interleave(tensors: list[tf.Tensor]) -> tf.Tensor:
    stacked = tf.stack(tensors, axis=1)
    return tf.reshape(stacked, tf.concat([[-1], tf.shape(stacked)[2:]], axis=0))
