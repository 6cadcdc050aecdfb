import numpy as np
import pytest

from sbs_jax.data import pipeline
from sbs_jax.data.resolving import resolve_task
from sbs_jax.data.tensorflow_setup import seqio, tf
from sbs_jax.errors import UserError
from sbs_jax.parts import LABEL, RATIONALE
from tests.examples import load_examples

LENGTHS = {"inputs": 128, "targets": 96}
TASKS = ["standard", "rationale", "sbs", "standard_teacher", "sbs_teacher"]


def texts(records, vocabulary):
    """(input, target, part, example) of each record."""
    inputs = np.split(records.input_tokens, records.input_offsets[1:-1])
    targets = np.split(records.target_tokens, records.target_offsets[1:-1])
    parts = np.split(records.target_parts, records.target_offsets[1:-1])
    return [
        (vocabulary.decode(i), vocabulary.decode(t), *set(p.tolist()), int(e))
        for i, t, p, e in zip(inputs, targets, parts, records.example, strict=True)
    ]


@pytest.mark.parametrize(
    ("dataset", "method", "split"),
    [
        *(("svamp", method, split) for method in TASKS for split in ("train", "test")),
        *(("cqa", "sbs", split) for split in ("train", "validation", "test")),
    ],
)
def test_records_are_the_examples_texts(use, dataset, method, split):
    task = f"{dataset}_{method}"
    with use(dataset):
        records = pipeline.load_records(resolve_task(task), split, LENGTHS)
        found = texts(records, resolve_task(task).vocabulary)
        examples = load_examples(dataset, split)
    teacher = method.endswith("_teacher") and split == "train"
    expected = []
    for index, example in enumerate(examples):
        text = " ".join(example["input"].split())
        label = example["llm_label"] if teacher else example["label"]
        if method != "rationale" and label:
            expected.append((f"predict: {text}", label, LABEL, index))
        if not method.startswith("standard") and example["llm_rationale"]:
            expected.append((f"explain: {text}", example["llm_rationale"], RATIONALE, index))
    assert found == expected
    counts = records.counts
    assert counts.examples == len(examples)
    assert counts.label_records == sum(record[2] == LABEL for record in expected)
    assert counts.rationale_records == sum(record[2] == RATIONALE for record in expected)
    blank = sum(not example["llm_rationale"] for example in examples)
    assert counts.blank_rationales == (0 if method.startswith("standard") else blank)
    assert counts.blank_labels == (blank if teacher else 0)
    assert counts.cut_inputs == counts.cut_targets == 0
    # Every sequence ends in EOS and holds no other.
    assert np.all(records.input_tokens[records.input_offsets[1:] - 1] == 1)
    assert (records.input_tokens == 1).sum() == (records.target_tokens == 1).sum() == len(records)
    assert records.target_parts.dtype == np.int8


def test_kept_blank_rationales_train_eos_alone(use):
    with use():
        dropped = pipeline.load_records(resolve_task("svamp_sbs"), "train", LENGTHS)
    with use(keep_blank_rationales=True):
        kept = pipeline.load_records(resolve_task("svamp_sbs"), "train", LENGTHS)
    blank = dropped.counts.blank_rationales
    assert blank == kept.counts.blank_rationales == 4
    assert len(kept) == len(dropped) + blank == 72
    assert (kept.target_lengths == 1).sum() == blank


def test_long_sequences_are_cut_and_counted(use):
    short = {"inputs": 12, "targets": 8}
    with use():
        whole = pipeline.load_records(resolve_task("svamp_sbs"), "train", LENGTHS)
        cut = pipeline.load_records(resolve_task("svamp_sbs"), "train", short)
    assert cut.input_lengths.max() == 12
    assert cut.target_lengths.max() == 8
    assert cut.counts.cut_inputs == (whole.input_lengths > 12).sum() > 0
    assert cut.counts.cut_targets == (whole.target_lengths > 8).sum() > 0
    assert np.all(cut.target_tokens[cut.target_offsets[1:] - 1] == 1)
    assert cut.target_parts.size == cut.target_tokens.size
    first = slice(0, cut.input_lengths[0] - 1)
    assert np.array_equal(cut.input_tokens[first], whole.input_tokens[first])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (
            {"inputs": 12, "targets": 96},
            r"'svamp_sbs' \(train\).* TASK_FEATURE_LENGTHS\['inputs'\]",
        ),
        ({"inputs": 128, "targets": 8}, r"targets of 'svamp_sbs'.* = 8 \(the longest has \d+ tok"),
    ],
)
def test_strict_lengths_refuse_to_cut(use, lengths, message):
    with use(strict_lengths=True):
        pipeline.load_records(resolve_task("svamp_sbs"), "train", LENGTHS)
        with pytest.raises(UserError, match=message):
            pipeline.load_records(resolve_task("svamp_sbs"), "train", lengths)


def test_loading_is_deterministic(use):
    with use():
        one, two = (
            pipeline.load_records(resolve_task("cqa_sbs"), "train", LENGTHS) for _ in range(2)
        )
    assert one.fingerprint() == two.fingerprint()


def test_batches_decode_to_the_records(use):
    with use():
        records = pipeline.load_records(resolve_task("svamp_sbs"), "train", LENGTHS)
        vocabulary = resolve_task("svamp_sbs").vocabulary
        batch = next(
            pipeline.TrainBatches(records, pipeline.Batching(LENGTHS, batch_size=4), seed=0)
        )
    known = {record[:3] for record in texts(records, vocabulary)}
    rows, segments = np.nonzero(np.diff(batch["encoder_segment_ids"], prepend=0, axis=1) > 0)
    seen = 0
    for row in range(4):
        for segment in range(1, batch["encoder_segment_ids"][row].max() + 1):
            inside = batch["decoder_segment_ids"][row] == segment
            record = (
                vocabulary.decode(
                    batch["encoder_input_tokens"][row][batch["encoder_segment_ids"][row] == segment]
                ),
                vocabulary.decode(batch["decoder_target_tokens"][row][inside]),
                int(batch["decoder_target_parts"][row][inside][0]),
            )
            assert record in known
            seen += 1
    assert seen == rows.size == segments.size > 4


def test_any_seqio_program_can_read_our_tasks(use):
    with use():
        dataset = seqio.get_mixture_or_task("svamp_sbs").get_dataset(
            sequence_length={"inputs": 16, "targets": 8}, split="train", shuffle=True, seed=0
        )
        made = list(dataset.as_numpy_iterator())
        assert {len(example["part"]) for example in made} == {1}
        assert max(len(example["inputs"]) for example in made) == 16
        assert all(example["targets"][-1] == 1 for example in made)
        assert {"inputs_pretokenized", "targets_pretokenized", "id"} <= set(made[0])

        long = {"inputs": 256, "targets": 256}
        packed = seqio.EncDecFeatureConverter(pack=True)(
            seqio.get_mixture_or_task("svamp_sbs").get_dataset(
                sequence_length=long, split="validation", shuffle=False
            ),
            long,
        )
        assert next(packed.as_numpy_iterator())["encoder_segment_ids"].max() >= 2

        seqio.MixtureRegistry.add("ours", ["svamp_standard", "svamp_rationale"], default_rate=1)
        try:
            mixed = seqio.get_mixture_or_task("ours").get_dataset(
                sequence_length=LENGTHS, split="train", shuffle=False, num_epochs=1
            )
            parts = {int(example["part"][0]) for example in mixed.as_numpy_iterator()}
            assert parts == {LABEL, RATIONALE}
        finally:
            seqio.MixtureRegistry.remove("ours")


def test_tasks_of_others_are_all_label(use):
    def read(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"inputs": ["a b", "c"], "targets": ["d", "e f"]})

    with use():
        vocabulary = resolve_task("svamp_sbs").vocabulary
        feature = seqio.Feature(vocabulary)
        seqio.TaskRegistry.add(
            "foreign",
            source=seqio.FunctionDataSource(read, splits=["train"]),
            preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
            output_features={"inputs": feature, "targets": feature},
        )
        try:
            records = pipeline.load_records(resolve_task("foreign"), "train", LENGTHS)
            assert texts(records, vocabulary) == [("a b", "d", 1, 0), ("c", "e f", 1, 1)]
            assert records.counts.examples == records.counts.label_records == 2
            with pytest.raises(UserError, match="'foreign' has no split 'test'; it has train"):
                pipeline.load_records(resolve_task("foreign"), "test", LENGTHS)
            with pytest.raises(UserError, match="'foreign' cannot be scored"):
                pipeline.load_eval_examples(resolve_task("foreign"), "train", LENGTHS)
        finally:
            seqio.TaskRegistry.remove("foreign")


@pytest.mark.parametrize("task", ["svamp_sbs", "svamp_standard", "svamp_sbs_teacher"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_eval_examples(use, task, split):
    with use():
        found = pipeline.load_eval_examples(resolve_task(task), split, LENGTHS)
        examples = load_examples("svamp", split)
        vocabulary = resolve_task(task).vocabulary
        records = pipeline.load_records(resolve_task("svamp_standard"), split, LENGTHS)
    assert len(found) == len(examples)
    assert found.labels == [example["label"] for example in examples]
    assert found.ids == [example["id"] for example in examples]
    assert found.inputs == [example["input"] for example in examples]
    assert found.llm_rationales == [example["llm_rationale"] for example in examples]
    assert found.llm_labels == [example["llm_label"] for example in examples]
    assert found.rationales == [""] * len(examples)
    assert found.scorer == "value"
    assert found.label_inputs.dtype == np.int32
    assert found.label_inputs.shape == found.rationale_inputs.shape
    assert found.label_inputs.shape[1] % 16 == 0
    # The same tokens as in training, which come by way of TensorFlow.
    for row, tokens in enumerate(np.split(records.input_tokens, records.input_offsets[1:-1])):
        assert list(found.label_inputs[row, : tokens.size]) == list(tokens)
        assert not found.label_inputs[row, tokens.size :].any()
    assert vocabulary.decode(found.rationale_inputs[0]).startswith("explain: ")
    assert found.cut_inputs == 0


def test_eval_inputs_are_cut_too(use):
    lengths = {"inputs": 10, "targets": 8}
    with use():
        found = pipeline.load_eval_examples(resolve_task("cqa_sbs"), "test", lengths)
    assert found.label_inputs.shape == (12, 10)
    assert np.all(found.label_inputs[:, -1] == 1)
    assert found.cut_inputs == 24
    with use(strict_lengths=True), pytest.raises(UserError, match="24 of the 24 inputs"):
        pipeline.load_eval_examples(resolve_task("cqa_sbs"), "test", lengths)
