import pytest

from sbs_jax.data.resolving import TaskChoice, resolve_task
from sbs_jax.data.tensorflow_setup import seqio
from sbs_jax.errors import UserError
from sbs_jax.programs.inspect_task import inspect_task, report

LENGTHS = {"inputs": 30, "targets": 20}


def lines(use, task, dataset="svamp", **options):
    with use(dataset):
        return list(report(resolve_task(task), LENGTHS, **options))


def test_what_is_told_of_a_task(use):
    text = "\n".join(lines(use, "svamp_sbs", examples=2))
    assert (
        "svamp_sbs: data set svamp, method sbs, labels gold, rationales teacher, judged by" in text
    )
    assert "train: 36 examples, 36 label and" in text
    assert "validation: 4 examples" in text
    assert "test: 12 examples" in text
    assert text.count("tokens of label targets: 50 %") == 3
    assert "cut at 30" in text
    assert text.count("rows with packing") == text.count("rows without packing: ") == 3
    assert "teacher: accuracy 0." in text
    assert "unparsed" in text
    assert text.count("  example ") == 2
    assert "label input: 'predict: " in text
    assert "rationale target: " in text
    assert "▁explain" in text


def test_percentiles_are_of_the_whole_sequences_and_cuts_are_counted(use):
    (told,) = [
        line for line in lines(use, "cqa_standard", "cqa", splits=["train"]) if "inputs:" in line
    ]
    cut = int(told.split(";")[1].split()[0])
    longest = int(told.split("100 % ")[1].split(";")[0])
    assert longest > 30
    assert cut == 36


def test_a_split_that_cannot_be_read_is_told(use, tmp_path):
    with (
        use(data_dir=str(tmp_path)),
        pytest.raises(UserError, match=r"svamp_train\.json"),
    ):
        list(report(resolve_task("svamp_sbs"), LENGTHS))


def test_mixtures_are_told_task_by_task(use):
    seqio.MixtureRegistry.add("told_mixture", [("svamp_standard", 3), ("svamp_joint", 1)])
    try:
        text = "\n".join(lines(use, "told_mixture", splits=["train"], examples=0))
    finally:
        seqio.MixtureRegistry.remove("told_mixture")
    assert "told_mixture: a mixture of svamp_joint 25.0%, svamp_standard 75.0%" in text
    assert "method joint" in text


def test_the_main_function_prints(use, capsys):
    with use():
        inspect_task(
            task=TaskChoice("svamp", method="joint"),
            feature_lengths=LENGTHS,
            splits=["test"],
            examples=1,
        )
    assert "svamp_joint: data set svamp, method joint" in capsys.readouterr().out
