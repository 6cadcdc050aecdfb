"""What is asked for one example, and what is made of the answers."""

import pytest

from sbs_jax.errors import UserError
from sbs_jax.teacher.plan import Asking, RequestPlan, majority
from sbs_jax.teacher.prompts import load_prompts
from sbs_jax.teacher.sampling import Sampling, make_request
from sbs_jax.teacher.types import AskedExample, Completion

EXAMPLE = AskedExample("7", "Bo has 5 pens and buys 3.\nHow many has he?", "( 5.0 + 3.0 )")


def drive(plan, *rounds):
    """Feeds rounds of texts (or completions) to a plan; returns (candidates, all requests)."""
    steps = plan.outcome(EXAMPLE)
    asked = []
    answers = None
    for said in [*rounds, None]:
        try:
            asked.append(steps.send(answers))
        except StopIteration as end:
            assert said is None, f"{said} was not asked for"
            return end.value, asked
        assert said is not None, f"more is asked: {asked[-1]}"
        answers = [Completion(s, "stop", 10, 5) if isinstance(s, str) else s for s in said]
    raise AssertionError


def make(prompts="svamp", sampling=None, **asking):
    return RequestPlan(load_prompts(prompts), sampling or Sampling(), Asking(**asking), model="m")


def test_one_call():
    (candidate,), ((request,),) = drive(make(), ["5 + 3 = 8. The answer is (5 + 3)."])
    assert candidate.rationale == "5 + 3 = 8."
    assert candidate.label == "(5 + 3)"
    assert candidate.right is True
    assert request.prompt.endswith("How many has he?\nA:")
    assert b'"stop":["\\nQ:","\\n\\n"]' in request.body


def test_the_gold_label_is_in_no_prompt_but_the_conditioned_one():
    for style in ("few_shot", "zero_shot"):
        _, ((request,),) = drive(make(style=style), ["The answer is (8)."])
        assert "5.0 + 3.0" not in str(request.prompt)
    _, ((request,),) = drive(make(style="answer_conditioned"), ["Because 5 + 3 = 8."])
    assert "The right answer is ( 5.0 + 3.0 ). Explain why." in request.prompt


def test_answer_conditioned_takes_a_bare_explanation():
    (candidate,), _ = drive(make(style="answer_conditioned"), ["He has 5 and 3."])
    assert (candidate.rationale, candidate.label) == ("He has 5 and 3.", EXAMPLE.label)


def test_two_calls_show_the_first_completion_to_the_second():
    (candidate,), ((_,), (second,)) = drive(
        make(style="zero_shot_two_calls"), [" He has 5 and 3, so 8."], [" 8."]
    )
    assert second.kind == "answer"
    assert second.prompt.endswith(
        "step by step. He has 5 and 3, so 8.\nTherefore, the answer (arabic numerals) is"
    )
    assert (candidate.rationale, candidate.label) == ("He has 5 and 3, so 8.", "8")
    assert candidate.right is True


def test_two_calls_as_a_chat():
    plan = make(style="zero_shot_two_calls", chat=True)
    _, ((first,), (second,)) = drive(plan, ["So 8."], ["8"])
    assert first.prompt[-1]["role"] == "user"
    assert [turn["role"] for turn in second.prompt[-2:]] == ["assistant", "user"]
    assert second.prompt[-2]["content"] == "So 8."


def test_star_asks_again_only_when_the_answer_is_wrong():
    plan = make(rationalize_wrong=True)
    candidates, rounds = drive(plan, ["The answer is (5 + 3)."])
    assert len(rounds) == 1 and candidates[0].kind == "rationale"
    candidates, rounds = drive(
        plan, ["The answer is (5 - 3)."], ["He adds. The answer is (5 + 3)."]
    )
    assert [c.kind for c in candidates] == ["rationale", "rationalize"]
    assert "The right answer is" in rounds[1][0].prompt


def test_retry_unparsed_asks_hotter_and_under_another_key():
    plan = make(retry_unparsed=2, retry_temperature=0.9)
    (candidate,), rounds = drive(plan, ["Hm."], ["Hm?"], ["The answer is (8)."])
    assert candidate.label == "(8)" and candidate.attempt == 2
    assert b'"temperature":0.0' in rounds[0][0].body
    assert b'"temperature":0.9' in rounds[1][0].body
    keys = {round_[0].key for round_ in rounds}
    seeds = {round_[0].seed for round_ in rounds}
    assert len(keys) == len(seeds) == 3


def test_retry_asks_only_for_the_samples_that_did_not_parse():
    plan = make(sampling=Sampling(temperature=0.7, samples=3), retry_unparsed=1)
    candidates, rounds = drive(plan, ["The answer is (1).", "x", "The answer is (2)."], ["y"])
    assert [r.sample for r in rounds[1]] == [1]
    assert [c.label for c in candidates] == ["(1)", "", "(2)"]


@pytest.mark.parametrize(
    ("on_length", "rounds", "label"),
    [
        ("keep", 1, "(8)"),
        ("drop", 1, ""),
        ("retry", 2, "(5 + 3)"),
    ],
)
def test_what_ran_out_of_tokens(on_length, rounds, label):
    cut = Completion("The answer is (8).", "length", 10, 5)
    said = [[cut], ["The answer is (5 + 3)."]][:rounds]
    (candidate,), asked = drive(make(on_length=on_length), *said)
    assert candidate.label == label
    if rounds == 2:
        assert b'"max_tokens":512' in asked[1][0].body


def test_a_row_with_an_error_or_without_completion_ends_there():
    error = Completion("", error="too long")
    (candidate,), _ = drive(make(retry_unparsed=2, style="zero_shot_two_calls"), [error])
    assert candidate.error == "too long" and not candidate.parsed
    (candidate,), _ = drive(make(retry_unparsed=2), [None])
    assert candidate.missing


def test_the_key_depends_on_everything_that_is_asked_and_on_nothing_else():
    def key(prompt="p", model="m", sample=0, attempt=0, stop=("a",), **sampling):
        return make_request(
            EXAMPLE,
            prompt,
            model=model,
            sampling=Sampling(**sampling),
            stop=stop,
            sample=sample,
            attempt=attempt,
        ).key

    variants = [
        key(),
        key(prompt="q"),
        key(prompt=[{"role": "user", "content": "p"}]),
        key(model="n"),
        key(sample=1),
        key(attempt=1),
        key(stop=()),
        key(temperature=0.5),
        key(top_p=0.9),
        key(max_tokens=7),
        key(seed=1),
        key(seed=None),
        key(logprobs=True),
        key(extra_body={"top_k": 3}),
    ]
    assert len(set(variants)) == len(variants)
    # The number of samples does not change the samples that are there already.
    assert key() == key(temperature=0.0) == key(samples=1)
    assert key(temperature=0.5) == key(temperature=0.5, samples=9)


def test_extra_body_replaces_and_removes_fields():
    sampling = Sampling(extra_body={"max_tokens": None, "max_completion_tokens": 9})
    request = make_request(EXAMPLE, "p", model="m", sampling=sampling, stop=())
    assert b"max_tokens" not in request.body
    assert b'"max_completion_tokens":9' in request.body
    assert request.payload.endswith(b',"seed":0}')


def test_majority_votes_by_value_and_breaks_ties_by_order():
    def said(*labels):
        plan = make(sampling=Sampling(temperature=1.0, samples=len(labels)))
        return drive(plan, [f"The answer is ({x})." for x in labels])[0]

    assert majority(said("1 + 1", "3", "4 / 2"), by_value=True).label == "(1 + 1)"
    assert majority(said("5", "3", "3", "5"), by_value=True).label == "(5)"
    assert majority([], by_value=True) is None


@pytest.mark.parametrize(
    ("make_it", "sentence"),
    [
        (lambda: Asking(style="x"), "STYLE"),
        (lambda: Asking(on_length="x"), "ON_LENGTH"),
        (lambda: Asking(retry_unparsed=-1), "RETRY_UNPARSED"),
        (lambda: Asking(retry_unparsed=1, retry_temperature=0), "RETRY_TEMPERATURE"),
        (lambda: Sampling(samples=2), "TEMPERATURE = 0"),
        (lambda: Sampling(temperature=-1), "TEMPERATURE"),
        (lambda: Sampling(top_p=0), "TOP_P"),
        (lambda: Sampling(max_tokens=0), "MAX_TOKENS"),
        (lambda: Sampling(stop=("",)), "STOP"),
        (lambda: make(prompts="cqa", style="zero_shot_two_calls"), "has no style"),
    ],
)
def test_bad_settings_are_refused_with_a_sentence(make_it, sentence):
    with pytest.raises(UserError, match=sentence):
        make_it()
