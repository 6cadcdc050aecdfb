"""The generated word problems: right, reproducible, and split without overlap."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sbs_jax.data import pipeline
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.resolving import resolve_task
from sbs_jax.errors import UserError
from sbs_jax.metrics import evaluate_expression
from sbs_jax.tasks import arithmetic
from sbs_jax.tasks.arithmetic_problems import (
    GAINS,
    LARGEST,
    LOSSES,
    NUMBERS,
    SPLITS,
    make_problems,
    split_of,
)
from sbs_jax.teacher.equations import wrong_equations
from tests.examples import load_examples

EQUATION = re.compile(r"(\d+)([+-])(\d+)=(\d+)\.")


def read_story(text):
    """Solves a problem from its text alone, another way than the generator made it."""
    name = re.search(r"How many does (\w+) have\?$", text)[1]
    sentence = re.search(rf"\b{name} has ([^.]*)\.", text)[1]
    first, *clauses = sentence.split(", ")
    total = NUMBERS.index(first.split()[0])
    for clause in clauses:
        verb, number = clause.split()
        assert (verb in GAINS) != (verb in LOSSES)
        total += NUMBERS.index(number) * (1 if verb in GAINS else -1)
    return total


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("split", SPLITS)
def test_answers_and_explanations_are_right(split, seed):
    problems = make_problems(split, 300, seed=seed, min_steps=1, max_steps=4, bystander_share=0.5)
    for problem in problems:
        assert int(problem.label) == read_story(problem.input)
        equations = EQUATION.findall(problem.rationale)
        carried = int(re.search(r"has (\d)\.", problem.rationale)[1])
        for left, sign, right, result in equations:
            assert int(left) == carried
            assert evaluate_expression(f"{left}{sign}{right}") == int(result)
            assert 0 <= int(result) <= LARGEST
            carried = int(result)
        assert 1 <= len(equations) <= 4
        assert problem.label == equations[-1][3]


def test_steps_and_bystanders_are_as_asked_for():
    problems = make_problems("train", 400, min_steps=3, max_steps=3, bystander_share=0.25)
    assert {len(EQUATION.findall(problem.rationale)) for problem in problems} == {3}
    shares = [problem.input.count(".") == 2 for problem in problems]
    assert 0.15 < sum(shares) / len(shares) < 0.35
    alone = make_problems("train", 50, bystander_share=0.0)
    assert all(problem.input.count(".") == 1 for problem in alone)


def test_splits_share_no_text():
    texts = {split: {p.input for p in make_problems(split, 1500)} for split in SPLITS}
    for split, inputs in texts.items():
        assert len(inputs) == 1500
        assert {split_of(text) for text in inputs} == {split}
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]


def test_a_seed_fixes_everything_even_across_processes():
    here = make_problems("train", 20, seed=3)
    assert here == make_problems("train", 20, seed=3)
    assert here == make_problems("train", 100, seed=3)[:20]
    assert here != make_problems("train", 20, seed=4)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from arithmetic_problems import make_problems;"
        "print([p.input for p in make_problems('train', 20, seed=3)]);"
        "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, str(Path(arithmetic.__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert there.strip() == str([problem.input for problem in here])


@pytest.mark.parametrize(
    "options", [{"split": "dev"}, {"min_steps": 0}, {"min_steps": 3, "max_steps": 2},
                {"bystander_share": 1.5}, {"count": -1}]
)  # fmt: skip
def test_impossible_problems_are_refused(options):
    with pytest.raises(ValueError, match=r"split|min_steps"):
        make_problems(**({"split": "train", "count": 1} | options))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"train_examples": 0}, "train_examples = 0 must be at least 1"),
        ({"problem_seed": -1}, "problem_seed = -1 must be a whole number"),
        ({"min_steps": 3, "max_steps": 2}, "max_steps = 2 must lie between min_steps = 3"),
        ({"max_steps": 99}, "max_steps = 99 must lie between"),
        ({"bystander_share": -0.1}, r"bystander_share = -0.1 must lie in \[0, 1\]"),
    ],
)
def test_impossible_difficulties_are_sentences(options, sentence):
    with pytest.raises(UserError, match=sentence):
        arithmetic.Difficulty(**options)


def test_the_task_gives_labels_and_rationales(tmp_path):
    settings = settings_lib.DataSettings(model_dir=str(tmp_path), vocabulary_size=512)
    with settings_lib.override(settings):
        examples = load_examples("arithmetic", "validation")
        records = pipeline.load_records(
            resolve_task("arithmetic_sbs"), "train", {"inputs": 64, "targets": 64}
        )
        judged = pipeline.load_eval_examples(
            resolve_task("arithmetic_standard"), "validation", {"inputs": 64, "targets": 64}
        )
    assert len(examples) == arithmetic.Difficulty().validation_examples
    assert all(example["llm_label"] == example["label"] for example in examples)
    assert judged.labels == [example["label"] for example in examples]
    assert judged.scorer == "exact_match"
    count = arithmetic.Difficulty().train_examples
    assert records.counts.label_records == records.counts.rationale_records == count
    assert records.counts.cut_inputs == records.counts.cut_targets == 0


def test_further_fields_say_what_the_problem_is():
    problems = make_problems("train", 300)
    wrong = [problem for problem in problems if problem.evaluation == "wrong"]
    assert 100 < len(wrong) < 200
    for problem in problems:
        assert evaluate_expression(problem.expression) == int(problem.label)
        assert problem.second_rationale.endswith(f"then {problem.label}.")
        assert (problem.candidate == problem.rationale) == (problem.evaluation == "right")
        assert not list(wrong_equations(f"{problem.rationale} {problem.backward_rationale}"))
        # The backward solution ends in the number that its question leaves out.
        first = problem.second_rationale.split(",")[0]
        assert problem.backward_rationale.endswith(f"={first}.")
        # Another person may have as many of something else.
        owns = f"{problem.backward_question.split()[0]} has {NUMBERS[int(first)]} "
        assert owns in problem.input
        things = problem.input.split(owns)[1].split(",")[0]
        assert f" has some {things}," in problem.backward_question
    assert all(list(wrong_equations(problem.candidate)) for problem in wrong)
