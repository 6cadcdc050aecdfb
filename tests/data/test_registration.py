import itertools
import shutil

import numpy as np
import pytest

from sbs_jax.data import choosing, elements, registration, registry
from sbs_jax.data.registration import register_dataset
from sbs_jax.data.tensorflow_setup import seqio
from sbs_jax.errors import UserError
from sbs_jax.parts import LABEL, PADDING, RATIONALE
from tests.examples import load_examples


def ids(dataset, split):
    return [example["id"] for example in load_examples(dataset, split)]


@pytest.fixture
def toy():
    """Registers data sets under passing names."""
    names = []

    def register(load, **kwargs):
        name = f"toy_{len(names)}"
        names.append(name)
        return register_dataset(name, load=load, **kwargs)

    yield register
    for name in names:
        registry.DATASETS.pop(name, None)
        for task in [task for task in registry.TASKS if task.startswith(name + "_")]:
            registry.TASKS.pop(task)
            seqio.TaskRegistry.remove(task)


def examples_of(count, text="x"):
    return [
        {"id": f"{text}{i}", "input": text, "label": text, "rationale": ""} for i in range(count)
    ]


def test_a_data_set_gives_its_tasks():
    for name in ("svamp", "cqa"):
        for suffix in (
            *("standard", "rationale", "sbs", "joint", "rationale_input"),
            *("standard_teacher", "sbs_teacher", "joint_teacher", "rationale_input_teacher"),
            *("sbs_human", "joint_human", "rationale_human", "rationale_input_human_teacher"),
        ):
            task = seqio.get_mixture_or_task(f"{name}_{suffix}")
            assert set(task.output_features) == {"inputs", "targets", "part"}
            assert set(task.splits) == {"train", "validation", "test"}
        assert f"{name}_rationale_teacher" not in seqio.TaskRegistry.names()


def test_validation_is_a_tenth_of_train_as_the_published_code_draws_it(use):
    with use():
        train, validation = ids("svamp", "train"), ids("svamp", "validation")
        assert (len(train), len(validation), len(ids("svamp", "test"))) == (36, 4, 12)
        assert not set(train) & set(validation)
        # Dataset.train_test_split(test_size=0.1, seed=0) of Hugging Face's datasets: test first.
        held_out = np.random.default_rng(0).permutation(40)[:4]
        assert validation == [f"svamp_train-{line + 1}" for line in sorted(held_out)]
        assert ids("svamp", "validation") == validation
    with use(validation_seed=1):
        assert ids("svamp", "validation") != validation


def test_train_fractions_are_nested_and_leave_the_rest_alone(use):
    found = {}
    for fraction in (0.125, 0.25, 0.5, 0.9, 1.0):
        with use(train_fraction=fraction, seed=3):
            found[fraction] = ids("svamp", "train")
            assert len(ids("svamp", "validation")) == 4
            assert len(ids("svamp", "test")) == 12
    assert [len(chosen) for chosen in found.values()] == [5, 9, 18, 33, 36]
    sizes = list(found.values())
    for smaller, larger in itertools.pairwise(sizes):
        assert set(smaller) < set(larger)
        assert smaller == [name for name in larger if name in set(smaller)]
    with use(train_fraction=0.25, seed=4):
        assert ids("svamp", "train") != found[0.25]


def test_a_data_set_may_bring_its_own_validation(toy):
    dataset = toy(lambda split, settings: examples_of(3, split), own_validation=True)
    assert ids(dataset, "validation") == ["validation0", "validation1", "validation2"]
    assert len(ids(dataset, "train")) == 3


def test_too_few_examples_to_hold_some_out(toy):
    dataset = toy(lambda split, settings: examples_of(1))
    assert ids(dataset, "validation") == ["x0"]
    with pytest.raises(UserError, match="has 1 training examples: too few"):
        ids(dataset, "train")


def test_broken_unicode_is_replaced(toy):
    dataset = toy(lambda split, settings: examples_of(1, "a\ud800b"))
    assert load_examples(dataset, "test")[0]["input"] == "a?b"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("svamp_sb", "no task 'svamp_sb'; did you mean .*'svamp_sbs'"),
        ("cqa-sbs", "did you mean 'cqa_sbs'"),
        ("zzzzzzzzz", r"no task 'zzzzzzzzz'; there are anli1, .*cqa, .*, svamp, .*\.$"),
    ],
)
def test_unknown_tasks_get_the_nearest_names(name, message):
    with pytest.raises(UserError, match=message):
        choosing.find_task(name)


def test_other_unknown_names(use):
    with pytest.raises(UserError, match=r"no data set 'svmp'; did you mean 'svamp'"):
        registry.find_dataset("svmp")
    with use(), pytest.raises(UserError, match="no split 'valid'; there are train, validation"):
        load_examples("svamp", "valid")
    with pytest.raises(UserError, match="'svamp_sbs' has no split 'dev'"):
        registration.check_split(choosing.find_task("svamp_sbs"), "dev")


def test_without_registered_tasks_the_import_is_named(monkeypatch):
    monkeypatch.setattr(seqio.TaskRegistry, "names", classmethod(lambda cls: set()))
    with pytest.raises(UserError, match="none is registered: add the gin file"):
        choosing.find_task("svamp_sbs")


def test_a_mixture_is_not_a_task():
    seqio.MixtureRegistry.add("toy_mixture", [("svamp_sbs", 1), ("svamp_standard", 1)])
    try:
        with pytest.raises(UserError, match="'toy_mixture' is a SeqIO mixture, where one"):
            choosing.find_task("toy_mixture")
    finally:
        seqio.MixtureRegistry.remove("toy_mixture")


def test_names_are_registered_once(toy):
    with pytest.raises(UserError, match="data set 'svamp' is registered already"):
        register_dataset("svamp", load=lambda split, settings: [])
    with pytest.raises(UserError, match="scorer 'bleu', but there are exact_match, value"):
        toy(lambda split, settings: [], scorer="bleu")


def test_teacher_labels_train_but_never_judge(use):
    with use():
        task = choosing.task_info("svamp_standard_teacher")
        train = elements.read_targets(task, "train")
        assert all(example["target_label"] == example["llm_label"] for example in train)
        assert any(example["target_label"] == "" for example in train)
        for split in ("validation", "test"):
            for example in elements.read_targets(task, split):
                assert example["target_label"] == example["label"]
                assert example["target_rationale"] == example["llm_rationale"]


def test_completions_are_needed_only_where_they_train(use, release_dir, tmp_path):
    shutil.copytree(release_dir / "svamp", tmp_path / "svamp")
    shutil.rmtree(tmp_path / "svamp" / "llm")
    with use(data_dir=str(tmp_path)):
        gold = elements.read_targets(choosing.task_info("svamp_standard"), "train")
        assert len(gold) == 36
        assert gold[0]["llm_label"] == ""
        for task in ("svamp_sbs", "svamp_rationale", "svamp_standard_teacher"):
            with pytest.raises(UserError, match=rf"'{task}' needs the teacher's completions.*llm/"):
                elements.read_targets(choosing.task_info(task), "train")
            assert len(elements.read_targets(choosing.task_info(task), "test")) == 12


def test_scores():
    assert registry.find_dataset("svamp").score("(2 + 2)", "( 1.0 + 3.0 )")
    assert not registry.find_dataset("cqa").score("(2 + 2)", "( 1.0 + 3.0 )")
    (accuracy,) = seqio.get_mixture_or_task("svamp_sbs").metric_fns
    assert accuracy(targets=["4", "5"], predictions=["2 + 2", "x"]) == {"accuracy": 0.5}


def test_seqio_judges_labels_alone():
    for name, target, prediction in (
        ("svamp_sbs", "4", "2 + 2"),
        ("svamp_joint", "2 + 2 is 4. Answer: 4", "So it is. Answer: (2 + 2)"),
    ):
        task = seqio.get_mixture_or_task(name)
        label = {"part": np.array([LABEL])}
        rationale = {"part": np.array([PADDING, RATIONALE])}
        targets = [task.postprocess_fn(target, example=label, is_target=True)]
        predictions = [task.postprocess_fn(prediction, example=label, is_target=False)]
        if name == "svamp_sbs":
            targets.append(task.postprocess_fn("2 and 2", example=rationale, is_target=True))
            predictions.append(task.postprocess_fn("2, 2", example=rationale, is_target=False))
            assert targets[1] is predictions[1] is None
        (accuracy,) = task.metric_fns
        assert accuracy(targets=targets, predictions=predictions) == {"accuracy": 1.0}
    assert not seqio.get_mixture_or_task("svamp_rationale").metric_fns
