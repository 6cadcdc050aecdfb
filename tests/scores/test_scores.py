import doctest
import json
import math
import random
import re
import statistics
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from sbs_jax import eval as eval_main
from sbs_jax.errors import UserError
from sbs_jax.scores import calculator, classes, compare, faithfulness, overlap
from sbs_jax.scores.calculator import last_equation, recalculated


@pytest.mark.parametrize("module", [calculator, classes, faithfulness, overlap])
def test_docstring_examples(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("48/2 = <<48/2=25>>25 clips. 1 + 1 = 3.", ("25", 24)),
        ("48/2 = <<48/2=24>>24 clips.\n24 + 1 = 26 clips", ("26", 25)),
        ("So 7 * 36 = 252 pencils and 7 x 30 = 9.", ("9", 210)),
        ("He has 3. 3 + 4 = 8.", ("8", 7)),
        ("(102 - 22) / 8 = 11", ("11", 10)),
        ("It costs $4 * 3 = $13.", ("13", 12)),
        ("1,000 + 1 = 1,002", ("1,002", 1001)),
        ("2 + 3 = 5 + 1 = 7", ("7", 6)),
        # Signs, as people write them.
        ("He worked 20x8= 160 h and 7 × 30 = 9.", ("9", 210)),
        ("There are 97 – 12 = 84 left.", ("84", 85)),
        ("144 divided by 9 equals 17 and 14 plus 12 equals 27.", ("27", 26)),
        ("- 30 - 4 = 25", ("25", 26)),
        ("Buicks: 12+8(26)=219", ("219", 220)),
        # Units, words and money among the numbers.
        ("30 snakes * 3 birds/snake = 91 snakes", ("91", 90)),
        ("$28 - $8 on soft drinks = $21 on candy", ("21", 20)),
        ("$0.40 / $0.05/nickel = 9 nickels", ("9", 8)),
        ("60min ÷ 10min/pizza = 7 pizzas", ("7", 6)),
        ("After 2 days he paints the 8-inch one 5 + 6 = 12 times.", ("12", 11)),
        ("It drove 5 km at the 1st turn + 8 km after the 2nd turn = 14 km", ("14", 13)),
        ("3 lbs. coffee * 40 cups of coffee per lb. = 121", ("121", 120)),
        ("He jumps 4 times/minute * 10 minutes = 41 times", ("41", 40)),
        ("3 x the height of 12 inches = 37 inches", ("37", 36)),
        ("5 (red) + 3 (blue) = 9", ("9", 8)),
        ("So there are 6. 3 + 4 = 8", ("8", 7)),
        # Fractions and per cent.
        ("8 people x 1 1/2 = 13 rolls", ("13", 12)),
        ("3/4 of the 360 coins = 271", ("271", 270)),
        ("1/2 * 1/2 = 1/3", ("1/3", Fraction(1, 4))),
        ("25% of 60 x 2 = 31", ("31", 30)),
        ("100% - 40% = 60% are left", ("60", 60)),
        ("A tip of 20% * 50 = $10", ("10", 10)),
        # Algebra is not arithmetic, and a damaged number has no value.
        ("4 * x + 600 = 10000. x + 5 = 10. 8m + m = 27", None),
        ("4y + 6y = 100", None),
        ("4m + 6m = 11m", ("11", 10)),
        ("(X - $40) = $250", None),
        ("16,0000/10=16000", None),
        ("5^2 + 1 = 26", None),
        ("x = 5", None),
        ("5 = 5", None),
        ("1 / 0 = 3", None),
        ("no sums", None),
        ("", None),
    ],
)
def test_last_equation(text, expected):
    found = last_equation(text)
    assert (found and (found.stated, found.value)) == (
        expected and (expected[0], Fraction(expected[1]))
    )


def test_an_answer_is_recalculated_only_where_it_copies_the_equation():
    assert recalculated("48 / 2 = 25. The answer is 25.", "25") == "24"
    assert recalculated("48 / 2 = 25.", "25.0") == "24"
    assert recalculated("48 / 2 = 25.", "(50 / 2)") == "24"
    assert recalculated("48 / 2 = 25.", "26") == "26"
    assert recalculated("nothing", "26") == "26"
    assert recalculated("1 / 4 = 0.5", "0.5") == "1/4"


@given(st.one_of(st.text(), st.text(alphabet="0123456789+-*/()=<>. $")))
def test_no_text_breaks_calculator_or_faithfulness(text):
    equation = last_equation(text)
    assert equation is None or isinstance(equation.value, Fraction)
    assert isinstance(recalculated(text, text), str)
    faithfulness.implied_label(text, "exact_match")


def test_the_error_of_macro_f1_is_that_of_drawing_examples_again():
    rng = random.Random(3)
    labels = ("a", "b", "c")
    targets = [rng.choice(labels) for _ in range(150)]
    predictions = [t if rng.random() < 0.7 else rng.choice([*labels, "?"]) for t in targets]
    matrix = classes.confusion_matrix(predictions, targets, labels)
    drawn = []
    for _ in range(600):
        sample = rng.choices(list(zip(predictions, targets, strict=True)), k=150)
        drawn.append(classes.macro_f1(classes.confusion_matrix(*zip(*sample, strict=True), labels)))
    error = classes.macro_f1_error(matrix)
    # Two estimates of a standard deviation from 600 and 1000 draws: each within some 3 %.
    assert error == pytest.approx(statistics.stdev(drawn), rel=0.15)
    assert classes.macro_f1_error(matrix) == error
    assert math.isnan(classes.macro_f1_error(classes.confusion_matrix(["a"], ["a"], labels)))
    certain = classes.confusion_matrix(["a", "b"] * 9, ["a", "b"] * 9, ("a", "b"))
    assert classes.macro_f1_error(certain) == 0


def test_class_scores_are_the_textbooks():
    labels = ("a", "b", "c")
    targets = ["a", "a", "a", "b", "b"]
    predictions = ["a", " a ", "b", "b", "zzz"]
    matrix = classes.confusion_matrix(predictions, targets, labels)
    assert matrix["a"] == {"a": 2, "b": 1, "c": 0, "other": 0}
    assert matrix["b"] == {"a": 0, "b": 1, "c": 0, "other": 1}
    assert classes.class_accuracies(matrix) == {"a": 2 / 3, "b": 1 / 2, "c": None}
    # a: P 1, R 2/3; b: P 1/2, R 1/2; c neither occurs nor is predicted.
    assert classes.macro_f1(matrix) == pytest.approx((0.8 + 0.5) / 2)
    assert classes.class_accuracy_errors(matrix) == {
        "a": pytest.approx((2 / 9 / 2) ** 0.5),
        "b": pytest.approx((1 / 4) ** 0.5),
        "c": None,
    }
    with pytest.raises(ValueError, match="'x' is none of the labels"):
        classes.confusion_matrix(["a"], ["x"], labels)


def test_overlaps():
    assert overlap.rouge_l("The CAT sat.", "the cat sat") == 1
    assert overlap.rouge_l("", "") == overlap.chrf("", "") == 1
    assert overlap.rouge_l("a", "") == overlap.chrf("a", " ") == 0
    assert overlap.rouge_l("a b c d", "b d a") == pytest.approx(2 * (2 / 4) * (2 / 3) / (7 / 6))
    # n = 1: 2 of 3 and 2 of 2; n = 2: 1 of 2 and 1 of 1.
    precision, recall = (2 / 3 + 1 / 2) / 2, 1.0
    expected = 5 * precision * recall / (4 * precision + recall)
    assert overlap.chrf("a b c", "ab") == pytest.approx(expected)


@given(st.text(max_size=60), st.text(max_size=60))
def test_overlaps_lie_between_0_and_1_and_are_1_for_the_same(a, b):
    for score in (overlap.rouge_l, overlap.chrf):
        assert 0 <= score(a, b) <= 1 + 1e-12
        assert score(a, a) == pytest.approx(1)


def test_faithfulness():
    labels = ("entailment", "neutral")
    rationales = ["So it is neutral, not entailment.", "neutral", "none", "neutrality"]
    answers = ["neutral", "neutral", "neutral", "neutral"]
    assert faithfulness.agreements(rationales, answers, "exact_match", labels) == [0, 1]
    assert faithfulness.agreements(["2 + 2 = 5.", "1 + 1 = 2"], ["4", "3"], "value") == [1, 0]
    assert faithfulness.implied_label("Why. The answer is a dog. More", "exact_match") == "a dog"


def write(path, scores):
    path.write_text("".join(json.dumps({"id": k, "score": v}) + "\n" for k, v in scores.items()))
    return path


def test_paired_bootstrap(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    a = (rng.random(400) < 0.5).astype(float)
    better = np.maximum(a, rng.random(400) < 0.2)
    found = compare.bootstrap(a, better, samples=2000)
    difference = better - a
    stderr = difference.std(ddof=1) / 20
    assert found.second - found.first == pytest.approx(difference.mean())
    assert found.low == pytest.approx(difference.mean() - 1.96 * stderr, abs=0.2 * stderr)
    assert found.high == pytest.approx(difference.mean() + 1.96 * stderr, abs=0.2 * stderr)
    assert found.p_value < 0.001
    same = compare.bootstrap(a, rng.permutation(a), samples=2000)
    assert same.p_value > 0.05
    assert compare.bootstrap(a, a, samples=100).p_value == 1

    first = write(tmp_path / "a.jsonl", {f"e{i}": int(v) for i, v in enumerate(a)})
    second = write(
        tmp_path / "b.jsonl", {f"e{i}": int(v) for i, v in reversed(list(enumerate(better)))}
    )
    monkeypatch.setattr("sys.argv", ["eval", "--compare", str(first), str(second)])
    assert eval_main.main() == 0
    told = capsys.readouterr().out
    assert re.search(r"on 400 examples\nB - A \+0\.\d{4}, 95 % interval \[\+0", told)


def test_several_runs_are_resampled_together_with_their_examples(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(1)
    scores = (rng.random((2, 3, 50)) < [[[0.4]], [[0.6]]]).astype(float)
    for side, runs in zip("ab", scores, strict=True):
        # The tenth comes after the ninth, and the latest predictions count.
        for number, values in zip((0, 9, 10), runs, strict=True):
            folder = tmp_path / f"{side}-{number}" / "predictions"
            folder.mkdir(parents=True)
            write(folder / "test-100.jsonl", {f"e{i}": int(v) for i, v in enumerate(values)})
            write(folder / "test-20.jsonl", {"e0": 0})
    sides = [str(tmp_path / f"{side}-*") for side in "ab"]
    found = compare.compare(*sides)
    difference = scores[1] - scores[0]
    assert found.first == pytest.approx(scores[0].mean(1))
    assert found.second == pytest.approx(scores[1].mean(1))
    # In NumPy, each example of each run by itself, with other random numbers.
    rng = np.random.default_rng(7)
    runs, examples = rng.integers(0, 3, (20_000, 3, 1)), rng.integers(0, 50, (20_000, 1, 50))
    means = difference[runs, examples].mean((1, 2))
    expected = np.quantile(means, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.01)
    extreme = np.abs(means - difference.mean()) >= abs(difference.mean()) - 1e-12
    assert found.p_value == pytest.approx(extreme.mean(), abs=0.01)
    # Wider than by the examples alone.
    alone = compare.bootstrap(*scores.mean(1), samples=2000)
    assert found.high - found.low > 1.1 * (alone.high - alone.low)
    monkeypatch.setattr("sys.argv", ["eval", "--compare", *sides])
    assert eval_main.main() == 0
    told = capsys.readouterr().out.splitlines()
    assert [re.findall(r"[ab]-\d+", line) for line in told[:3]] == [
        ["a-0", "b-0"],
        ["a-9", "b-9"],
        ["a-10", "b-10"],
    ]
    assert "means of 3 runs on 50 examples" in told[3]
    for wrong, message in (
        ((sides[0], str(tmp_path / "b-1*")), "are 3 runs and .* are 1"),
        ((str(tmp_path / "c-*"), sides[1]), "nothing is there"),
        ((str(tmp_path), sides[1]), "has no predictions/test"),
    ):
        with pytest.raises(UserError, match=message):
            compare.compare(*wrong)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "x"}', "line 1: needs the fields 'id' and 'score'"),
        ('{"id": "x", "score": "1"}', "line 1: needs the fields"),
        (
            '{"id": "e", "score": 1}\n{"id": "e", "score": 1}',
            "line 2: the example 'e' occurs twice",
        ),
        ('{"id": "f", "score": 1}', "lacks 1 of the other file's examples, such as 'e'"),
        ("", "holds no predictions"),
    ],
)
def test_files_that_cannot_be_compared(tmp_path, text, message):
    first = write(tmp_path / "a.jsonl", {"e": 1})
    (tmp_path / "b.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        compare.compare_files(first, tmp_path / "b.jsonl")
    assert eval_main.compare(["--compare", "a"]) == 1


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("the cat sat", "the cat is here", 0.5714285714285715),
        ("snake_case is_one word", "snake case is one word", 1.0),
        ("für über Öl", "fur uber ol", 0.0),
        ("Naïve café, 3.5 km!", "naive cafe 3 5 km", 0.5454545454545454),
        ("A B C D E F", "f e d c b a", 0.16666666666666666),
        ("48/2=24 clips", "48 / 2 = 24 Clips.", 1.0),
        ("İstanbul is BIG", "istanbul is big", 0.5714285714285715),
        ("\N{KELVIN SIGN} is kelvin", "k is kelvin", 1.0),
        ("日本 go", "go 日本", 1.0),
    ],
)
def test_rouge_l_is_that_of_rouge_score(text, reference, expected):
    # Recorded of rouge_score 0.1.2, RougeScorer(['rougeL'], use_stemmer=False).
    assert overlap.rouge_l(text, reference) == pytest.approx(expected, abs=1e-12)


def test_rouge_l_of_texts_without_words():
    assert overlap.rouge_l("日", "日") == 1
    assert overlap.rouge_l("日", "本") == overlap.rouge_l("!", "") == 0


def test_non_entailment_is_not_entailment_and_case_does_not_count():
    labels = ("entailment", "neutral", "contradiction")

    def implied(text):
        return faithfulness.implied_label(text, "exact_match", labels)

    assert implied("So the answer is ENTAILMENT.") == "entailment"
    assert implied("It is a non-entailment.") is None
    assert implied("Neutral, for it is Non-Entailment.") == "neutral"
    assert implied("It is canon entailment.") == "entailment"
    binary = ("entailment", "Non-Entailment")
    assert faithfulness.implied_label("so non-entailment", "", binary) == "Non-Entailment"
