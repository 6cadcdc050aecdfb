"""The converter for T5X and other SeqIO programs; all it needs is SeqIO."""

import numpy as np
import pytest

from sbs_jax.data import pipeline
from sbs_jax.data.feature_converter import PartFeatureConverter
from sbs_jax.data.resolving import resolve_task
from sbs_jax.data.tensorflow_setup import seqio, tf
from sbs_jax.parts import LABEL, RATIONALE
from tests.data.synthetic import expected_records, unpack

RECORDS = [
    ([7, 8, 1], [3, 1], LABEL),
    ([9, 8, 7, 1], [4, 5, 6, 1], RATIONALE),
    ([6, 1], [2, 1], LABEL),
    ([6, 5, 1], [1], RATIONALE),  # a blank one that was kept
]
LENGTHS = {"inputs": 8, "targets": 7}


def dataset_of(records, part=lambda code, targets: [code]):
    def examples():
        for inputs, targets, code in records:
            yield {"inputs": inputs, "targets": targets, "part": part(code, targets)}

    feature = tf.TensorSpec([None], tf.int32)
    return tf.data.Dataset.from_generator(
        examples, output_signature=dict.fromkeys(("inputs", "targets", "part"), feature)
    )


def stack(dataset):
    rows = list(dataset.as_numpy_iterator())
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def convert(dataset, *, pack=True, lengths=LENGTHS):
    return stack(PartFeatureConverter(pack=pack)(dataset, lengths))


def found(batch):
    return [(list(i), list(t), part) for i, t, part in unpack(batch)]


def ours(batch):
    """The features that our own batches have."""
    names = (
        "encoder_input_tokens", "encoder_segment_ids", "decoder_input_tokens",
        "decoder_target_tokens", "decoder_target_parts", "decoder_segment_ids",
    )  # fmt: skip
    return {name: batch[name] for name in names}


def test_parts_are_spread_over_targets_and_packed_with_them():
    batch = convert(dataset_of(RECORDS))
    assert sorted(found(ours(batch))) == sorted(RECORDS)
    assert batch["decoder_target_parts"].shape[0] < len(RECORDS)
    assert batch["decoder_target_parts"].dtype == np.int32
    tokens = batch["decoder_target_tokens"]
    assert np.array_equal(batch["decoder_target_parts"] > 0, tokens > 0)
    assert np.array_equal(batch["decoder_loss_weights"], tokens > 0)


def test_rows_that_are_not_packed():
    batch = convert(dataset_of(RECORDS), pack=False)
    assert batch["decoder_target_parts"].tolist() == [
        [LABEL] * 2 + [0] * 5,
        [RATIONALE] * 4 + [0] * 3,
        [LABEL] * 2 + [0] * 5,
        [RATIONALE] + [0] * 6,
    ]
    assert "decoder_segment_ids" not in batch


def test_a_task_without_parts_is_all_label():
    dataset = dataset_of(RECORDS).map(lambda x: {"inputs": x["inputs"], "targets": x["targets"]})
    parts = convert(dataset)["decoder_target_parts"]
    assert set(parts[parts > 0]) == {LABEL}


def test_a_code_for_each_token_may_be_none():
    """Tokens of no part within a target keep their place; the packer must not drop them."""
    records = [([7, 1], [8, 8, 3, 1], LABEL), ([6, 1], [9, 4, 1], RATIONALE)]
    batch = convert(dataset_of(records, lambda code, t: [0] * (len(t) - 2) + [code] * 2))
    assert batch["decoder_target_tokens"].tolist() == [[8, 8, 3, 1, 9, 4, 1]]
    assert batch["decoder_target_parts"].tolist() == [[0, 0, 1, 1, 0, 2, 2]]


def test_lengths_of_parts_do_not_matter():
    measured = {**LENGTHS, "part": 1}  # as SeqIO's Evaluator measures them
    first, second = convert(dataset_of(RECORDS)), convert(dataset_of(RECORDS), lengths=measured)
    for name, array in first.items():
        assert np.array_equal(array, second[name])


def test_codes_of_another_length_are_refused():
    with pytest.raises(tf.errors.InvalidArgumentError):
        convert(dataset_of(RECORDS, lambda code, targets: [code] * (len(targets) + 2)))


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("task", ["svamp_sbs", "svamp_joint", "svamp_standard_teacher"])
def test_a_task_gives_the_records_of_our_own_pipeline(use, task, pack):
    lengths = {"inputs": 96, "targets": 40}
    with use():
        expected = expected_records(pipeline.load_records(resolve_task(task), "train", lengths))
        dataset = seqio.get_dataset(
            task, lengths, feature_converter=PartFeatureConverter(pack=pack)
        )
        batch = stack(dataset)
    if not pack:
        for side, tokens in (("encoder", "encoder_input"), ("decoder", "decoder_target")):
            segments = (batch[f"{tokens}_tokens"] > 0).astype(np.int32)
            batch[f"{side}_segment_ids"] = segments
        # Shifting rows that are not packed leaves the EOS behind the last segment.
        batch["decoder_input_tokens"] *= batch["decoder_segment_ids"]
    assert sorted(unpack(ours(batch))) == sorted(expected)


def test_the_evaluator_judges_labels_alone(use):
    """SeqIO's evaluator measures every feature, decodes every record and asks the task's metric."""
    with use():
        evaluator = seqio.Evaluator(
            "svamp_sbs",
            feature_converter=PartFeatureConverter(pack=False),
            eval_split="test",
            async_compute_metrics=False,  # settings of `use` are this thread's
        )

        def repeat(dataset, spoilt):
            for i, row in dataset.as_numpy_iterator():
                tokens = row["decoder_target_tokens"]
                yield i, np.zeros_like(tokens) if spoilt in row["decoder_target_parts"] else tokens

        for spoilt, accuracy in ((None, 1.0), (RATIONALE, 1.0), (LABEL, 0.0)):
            metrics, _ = evaluator.evaluate(
                compute_metrics=True,
                step=1,
                predict_fn=lambda dataset, spoilt=spoilt: list(repeat(dataset, spoilt)),
                score_fn=None,
            )
            assert metrics.result() == {"svamp_sbs": {"accuracy": accuracy}}
        evaluator.close()
