import pytest

from sbs_jax.decoding import shapes
from sbs_jax.errors import UserError
from sbs_jax.inference.prompting import (
    Candidates,
    Prompting,
    check_candidates,
    choices_in,
    prompting_from,
)


def test_settings_are_as_trained_but_for_what_is_given():
    trained = {"label_prefix": "[label] ", "method": None, "seed": 3, "prefix_side": "decoder"}
    prompting = prompting_from(trained, method="joint", label_prefix=None)
    assert prompting == Prompting("joint", "[label] ", prefix_side="decoder")


def test_words_around_an_input():
    assert Prompting().encoder_text("label", "x") == "predict: x"
    assert Prompting().encoder_text("rationale", "x", "r") == "explain: x"
    with_rationale = Prompting(method="rationale_input")
    assert with_rationale.encoder_text("label", "x", "r") == "predict: x explanation: r"
    assert with_rationale.encoder_text("label", "x", " ") == "predict: x"
    decoder = Prompting(prefix_side="decoder")
    assert decoder.encoder_text("label", "x") == "x"
    assert decoder.decoder_text("rationale") == "explain: "
    assert Prompting().decoder_text("label") is None


def test_parts_of_ones_own():
    """Of a method's parts the answers are its label and its rationale, wherever they stand."""
    first = Prompting("first", parts={"label": {}, "rationale": {"after": "label"}, "hint": {}})
    assert first.explains_itself and not first.is_joint
    assert first.take_apart("5 explanation: why") == ("why", "5")
    assert first.behind_label == " explanation: "
    trained = {"method": "weighted", "parts": [part.record() for part in first.parts][::-1]}
    assert prompting_from(trained).take_apart("5") == ("", "5")
    joint = Prompting("weighted_joint", joint_separator=" => ")
    assert joint.is_joint and joint.separator == " => " and joint.behind_label == ""
    assert joint.take_apart("why => 5") == ("why", "5")
    reads = Prompting("reading", parts={"label": {"reads": "{input} ({kind}): {rationale}"}})
    assert reads.encoder_text("label", "x", "r") == "predict: x): r"
    with pytest.raises(UserError, match=r"METHOD = 'nothing' is unknown"):
        Prompting("nothing")


def test_choices_of_commonsense_questions():
    text = "Is (b) right?\nAnswer Choices:\n(a) train station\n(b) doctor's office (old)\n(c) sea"
    assert choices_in(text) == ("train station", "doctor's office (old)", "sea")
    assert choices_in("(a) x (b) y (c) x") == ("x", "y")


@pytest.mark.parametrize("text", ["none", "(a) one", "(b) x (c) y", "(a) x (c) y", "(a) x (b) x"])
def test_texts_without_choices(text):
    with pytest.raises(UserError):
        choices_in(text)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["yes"], "two labels or more, not 1"),
        (["yes", " "], "must be a text that is not blank, not ' '"),
        (["yes", 3], "not 3"),
        (["yes", "no", "yes"], "'yes' is there twice"),
    ],
)
def test_label_sets_that_are_none(labels, message):
    with pytest.raises(UserError, match=message):
        check_candidates(labels)


def test_a_label_outside_the_closed_set_is_told():
    candidates = Candidates(("yes", "no way"), ((5, 1), (6, 1)))
    assert candidates.find("no \n way") == "no way"
    with pytest.raises(UserError, match=r"'maybe' is none of the candidates 'yes', 'no way'\."):
        candidates.find("maybe")


@pytest.mark.parametrize("longest", [2, 15, 16, 100, 512, 1024])
def test_lengths_are_few_and_hold_the_longest(longest):
    lengths = shapes.input_lengths(longest)
    assert len(lengths) <= shapes.LENGTHS
    assert lengths[-1] == longest
    assert list(lengths) == sorted(set(lengths))


def test_row_counts_fit_the_mesh():
    assert shapes.row_counts(32, 8, (1, 8)) == (8, 32)
    assert shapes.row_counts(3, 1, (1, 64)) == (1, 3)
