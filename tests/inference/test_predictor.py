"""Answers of a random student, held against the network itself."""

import itertools

import jax
import numpy as np
import pytest

from sbs_jax.decoding.continuous import Output
from sbs_jax.decoding.greedy import greedy_decode
from sbs_jax.errors import UserError
from sbs_jax.inference.loader import load_predictor
from sbs_jax.inference.predictor import Predictor
from sbs_jax.inference.programs import Programs, Strategy
from sbs_jax.inference.prompting import Prompting
from sbs_jax.inference.tokenizer import EOS_ID, SentencePieceTokenizer
from sbs_jax.inference.warming import CompiledShapes
from sbs_jax.parts import Part
from tests import sentencepiece_models
from tests.inference import toy
from tests.toy import CONFIG

TEXTS = toy.texts(11)


def encoded(prompting, kind, text):
    ids = toy.predictor().tokenizer.encode(prompting.encoder_text(kind, text))
    ids = [*ids[: toy.INPUT_LENGTH - 1], EOS_ID]
    return np.pad(ids, (0, toy.INPUT_LENGTH - len(ids))).astype(np.int32)


def log_probability(tokens, target):
    """Of `target` after `tokens`, by one plain pass of the network."""
    student, params = toy.student()
    inputs = np.concatenate([[0], target[:-1]])[None].astype(np.int32)
    width = 40  # one compiled shape
    padded = np.pad(inputs, ((0, 0), (0, width - inputs.shape[1])))
    rows = len(student.mesh.devices.flat)
    logits = _logits(student, params, np.tile(tokens, (rows, 1)), np.tile(padded, (rows, 1)))
    logits = np.asarray(logits[0, : len(target)], np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_probs[np.arange(len(target)), target].sum()


def _logits(student, params, encoder, decoder):
    if not hasattr(_logits, "fn"):
        _logits.fn = student.jit(lambda p, x, y: student.model.apply({"params": p}, x, y))
    return _logits.fn(params, encoder, decoder)


@pytest.fixture(scope="module")
def greedy():
    """Labels of TEXTS in order, by plain greedy decoding of all rows in one shape."""
    student, params = toy.student()
    rows = np.stack([encoded(Prompting(), "label", text) for text in TEXTS])
    rows = np.concatenate([rows, np.tile(rows[-1:], (16 - len(TEXTS), 1))])
    decode = student.jit(
        lambda p, x: greedy_decode(student.model, p, x, max_decode_len=toy.DECODE_LENGTH)
    )
    return np.asarray(decode(params, rows))[: len(TEXTS)]


def test_open_labels_are_greedy_ones_in_order(greedy):
    predictions = toy.predictor().labels(TEXTS)
    tokenizer = toy.predictor().tokenizer
    for text, tokens, prediction in zip(TEXTS, greedy, predictions, strict=True):
        assert prediction.label == tokenizer.decode(tokens).strip()
        whole = log_probability(encoded(Prompting(), "label", text), tokens[tokens != 0])
        np.testing.assert_allclose(np.log(prediction.confidence), whole, rtol=1e-4)
        assert prediction.alternatives == ((prediction.label, prediction.confidence),)
        long = len(tokenizer.encode("predict: " + text)) >= toy.INPUT_LENGTH
        assert prediction.truncated == long
    assert {prediction.truncated for prediction in predictions} == {True, False}


def test_closed_labels_are_ranked_by_the_softmax_of_their_probabilities():
    tokenizer = toy.predictor().tokenizer
    predictions = toy.predictor(candidates=toy.LABELS).labels(TEXTS[:3], num_best=3)
    own = toy.predictor().labels(TEXTS[:3], toy.LABELS, num_best=3)
    for text, prediction, other in zip(TEXTS, predictions, own, strict=False):
        tokens = encoded(Prompting(), "label", text)
        scores = [
            log_probability(tokens, [*tokenizer.encode(label), EOS_ID]) for label in toy.LABELS
        ]
        shares = np.exp(scores - np.max(scores))
        shares /= shares.sum()
        expected = dict(zip(toy.LABELS, shares, strict=True))
        assert dict(prediction.alternatives) == pytest.approx(expected, rel=1e-4, abs=1e-9)
        assert prediction.label == max(expected, key=expected.get)
        assert prediction.confidence == prediction.alternatives[0][1]
        # Candidates of a query's own go another way through the network.
        assert dict(other.alternatives) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_each_input_may_list_its_own_choices():
    predictor = toy.predictor(candidates="choices")
    texts = ["Where? (a) zoo (b) sea (c) zoo (d) ｚoo", "Who? (a) Anna (b) she (c) you"]
    found = predictor.labels(texts, num_best=5)
    assert {label for label, _ in found[0].alternatives} == {"zoo", "sea"}
    assert {label for label, _ in found[1].alternatives} == {"Anna", "she", "you"}
    for prediction in found:
        assert sum(share for _, share in prediction.alternatives) == pytest.approx(1)
    with pytest.raises(UserError, match="lists no choices"):
        predictor.labels(["Where?"])


def test_best_labels_are_ordered_by_probability():
    found = toy.predictor(strategy=Strategy(num_beams=4)).labels(TEXTS[:2], num_best=3)
    for prediction in found:
        values = [value for _, value in prediction.alternatives]
        assert values == sorted(values, reverse=True)
        assert len({label for label, _ in prediction.alternatives}) == len(values)
        assert prediction.confidence == values[0]


@pytest.mark.parametrize("decoding", ["greedy", "sample", "beam"])
def test_rationales_do_not_depend_on_their_company(decoding):
    predictor = toy.predictor(strategy=Strategy(decoding=decoding, num_beams=2, seed=3))
    together = predictor.rationales(TEXTS)
    assert len({rationale.text for rationale in together}) > 3
    queries = [predictor.ask_rationale(text, sample=n) for n, text in enumerate(TEXTS)]
    alone = predictor.run(queries[4:6])
    assert alone == together[4:6]


def test_queries_join_a_stream_and_get_the_answers_of_a_batch():
    predictor = toy.predictor()
    together = predictor.rationales(TEXTS)
    queries = [predictor.ask_rationale(text, sample=n) for n, text in enumerate(TEXTS)]
    group = predictor.group(queries[0])
    same = [n for n, query in enumerate(queries) if predictor.group(query) == group]
    first, waiting = same[:1] * 8, same[1:]

    def more(count):
        taken, waiting[:] = waiting[:count], waiting[count:]
        return [queries[n] for n in taken]

    given = first + waiting
    answers = [
        pair for ended in predictor.stream([queries[n] for n in first], more) for pair in ended
    ]
    assert sorted(number for number, _ in answers) == list(range(len(given)))
    assert all(answer == together[given[number]] for number, answer in answers)
    assert not waiting


@pytest.fixture
def compiled():
    """One entry for each program that XLA compiles."""
    found = []

    def heard(event, seconds, **details):
        del seconds
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(details)

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield found
    jax.monitoring.unregister_event_duration_listener(heard)


def test_a_warm_up_compiles_all_that_is_run_in_its_first_shapes(compiled):
    predictor = toy.predictor(input_length=16, batch_size=4, row_counts=(2,), own_shape=(3, 8))
    texts = ["a", "bc", "d e", "f"]
    kinds = (
        [predictor.ask_label(text) for text in texts],
        [predictor.ask_label(text, ["yes", "no"]) for text in texts],
        [predictor.ask_rationale(text) for text in texts],
    )

    warm_up = predictor.warm_up()
    progress = [next(warm_up) for _ in kinds]
    assert [(one.compiled, one.total, one.answers) for one in progress] == [
        (1, 6, False),
        (2, 6, False),
        (3, 6, True),
    ]
    assert compiled
    compiled.clear()
    for queries in kinds:
        # Four queries in two slots, by turns.
        found = dict(itertools.chain.from_iterable(predictor.stream(queries, lambda count: [])))
        assert not compiled
        expected = toy.predictor().run(queries)
        for number, answer in enumerate(expected):
            for name in ("label", "text"):
                assert getattr(found[number], name, "") == getattr(answer, name, "")
        compiled.clear()


def test_queries_are_put_into_shapes_that_are_compiled():
    known = CompiledShapes((1, 8, 32), (16, 64))
    use, other = ("label", (0, 0)), ("rationale", (0, 0))
    assert known.in_order() == [(1, 64), (8, 64), (32, 64), (1, 16), (8, 16), (32, 16)]
    assert (known.fit(use, 3, 16), known.fit(use, 40, 64)) == ((8, 16), (32, 64))
    known.add(use, (1, 64))
    assert (known.fit(use, 3, 16), known.most_rows(use, 16)) == ((1, 64), 1)
    known.add(use, (8, 64))
    known.add(use, (1, 16))
    assert known.fit(use, 1, 16) == (1, 16)
    assert known.fit(use, 3, 16) == known.fit(use, 40, 16) == (8, 64)
    assert known.fit(other, 3, 16) == (8, 16)


def test_prefixes_may_be_the_decoders():
    predictor = toy.predictor(prefix_side="decoder")
    (prediction,) = predictor.labels(TEXTS[:1])
    prompt = predictor.tokenizer.encode("predict: ")
    tokens = encoded(Prompting(prefix_side="decoder"), "label", TEXTS[0])
    ids = [*predictor.tokenizer.encode("yes"), EOS_ID]
    scores = predictor.labels(TEXTS[:1], ["yes", "no"], num_best=2)[0]
    ratio = dict(scores.alternatives)["yes"] / dict(scores.alternatives)["no"]
    other = [*predictor.tokenizer.encode("no"), EOS_ID]
    expected = log_probability(tokens, [*prompt, *ids]) - log_probability(tokens, [*prompt, *other])
    np.testing.assert_allclose(np.log(ratio), expected, rtol=1e-3)
    assert prediction.label != toy.predictor().labels(TEXTS[:1])[0].label


def test_a_joint_students_label_is_ranked_behind_its_own_rationale():
    predictor = toy.predictor(method="joint", candidates=("yes", "no"))
    prompting = predictor.prompting
    (prediction,) = predictor.labels(TEXTS[:1], num_best=2)
    (written,) = toy.predictor().labels(TEXTS[:1])  # the same prefix, so the same words
    assert prediction.rationale == prompting.take_apart(written.label)[0]
    tokens = encoded(prompting, "label", TEXTS[0])
    before = prediction.rationale + prompting.joint_separator
    scores = {
        label: log_probability(tokens, [*predictor.tokenizer.encode(before + label), EOS_ID])
        for label in ("yes", "no")
    }
    shares = dict(prediction.alternatives)
    np.testing.assert_allclose(
        np.log(shares["yes"] / shares["no"]), scores["yes"] - scores["no"], rtol=1e-3
    )
    with pytest.raises(UserError, match="explains itself with its label"):
        predictor.rationales(TEXTS[:1])


def saying(ids, method="joint", **options):
    """A predictor that decodes these tokens, whatever it is asked."""

    def make_programs(*arguments):
        student, _ = toy.student()
        programs = Programs(student, *arguments)
        programs.outputs = lambda *arguments: [Output(ids, 0.0)]
        return programs

    return toy.predictor(method=method, make_programs=make_programs, **options)


def test_an_open_joint_answer_is_taken_apart():
    tokenizer = toy.predictor(method="joint").tokenizer
    ids = [*tokenizer.encode("She had 3. Answer: 7"), EOS_ID]
    predictor = saying(ids)
    (prediction,) = predictor.labels(TEXTS[:1])
    assert (prediction.rationale, prediction.label) == ("She had 3.", "7")
    tokens = encoded(predictor.prompting, "label", TEXTS[0])
    start = next(n for n in range(len(ids)) if tokenizer.decode(ids[:n]).endswith("Answer:"))
    expected = log_probability(tokens, ids) - log_probability(tokens, ids[:start])
    np.testing.assert_allclose(np.log(prediction.confidence), expected, rtol=1e-4)
    # Without the separator there is no label, and no confidence in it.
    cut = [*tokenizer.encode("She had"), EOS_ID]
    (prediction,) = saying(cut).labels(TEXTS[:1])
    assert (prediction.label, prediction.confidence) == ("", 0.0)


@pytest.mark.parametrize(
    "parts",
    [
        (Part("label", writes="{label}{RATIONALE_INPUT_SEPARATOR}{rationale}"),),
        (Part("label"), Part("rationale", after="label")),
    ],
)
def test_a_label_in_front_of_its_rationale(parts):
    """Its probability is its own: what ends it is the text in front of the rationale, not EOS."""
    tokenizer = toy.predictor().tokenizer
    ending = tokenizer.encode(" explanation:")
    answers = {
        label: [*tokenizer.encode(f"{label} explanation: she had 3"), EOS_ID]
        for label in ("yes", "no")
    }
    options = {"method": "answer_first", "parts": parts}
    tokens = encoded(saying(answers["yes"], **options).prompting, "label", TEXTS[0])
    expected = {
        label: log_probability(tokens, [*tokenizer.encode(label), *ending]) for label in answers
    }
    explained = []
    for label, ids in answers.items():
        (free,) = saying(ids, **options).labels(TEXTS[:1])
        assert (free.label, free.rationale) == (label, "she had 3")
        np.testing.assert_allclose(np.log(free.confidence), expected[label], rtol=1e-4)
        (best,) = saying(ids, candidates=("yes", "no"), **options).labels(TEXTS[:1], num_best=2)
        shares = dict(best.alternatives)
        np.testing.assert_allclose(
            np.log(shares["yes"] / shares["no"]), expected["yes"] - expected["no"], rtol=1e-3
        )
        # What was written behind another label does not explain this one.
        assert best.rationale == ("she had 3" if best.label == label else "")
        explained.append(best.rationale)
    assert sorted(explained) == ["", "she had 3"]
    # Cut before the rationale.
    (free,) = saying([*tokenizer.encode("yes"), EOS_ID], **options).labels(TEXTS[:1])
    assert (free.label, free.rationale) == ("yes", "")


def test_saliency_is_of_the_input_alone():
    predictor = toy.predictor(candidates=("yes", "no"))
    found = predictor.saliency("Anna has 3 apples", "yes")
    assert "".join(found.pieces).strip() == "Anna has 3 apples"
    assert len(found.scores) == len(found.pieces)
    assert max(map(abs, found.scores)) > 0
    assert found.scores != predictor.saliency("Anna has 3 apples", "no").scores
    by_itself = predictor.saliency("Anna has 3 apples")
    assert by_itself.label == predictor.labels(["Anna has 3 apples"])[0].label
    with pytest.raises(UserError, match="none of the candidates"):
        predictor.saliency("Anna", "perhaps")


def test_a_checkpoint_is_asked_as_it_was_trained(tmp_path):
    folder = toy.write_model_dir(
        tmp_path / "run", method="joint", data_settings={"label_prefix": "[label] "}
    )
    mesh = toy.student()[0].mesh
    loaded = load_predictor(str(folder), mesh=mesh, batch_size=8)
    assert loaded.prompting == Prompting(method="joint", label_prefix="[label] ")
    assert loaded.input_length == toy.INPUT_LENGTH
    given = load_predictor(
        str(folder),
        mesh=mesh,
        batch_size=8,
        prompting={"method": "sbs", "label_prefix": "predict: "},
    )
    assert given.labels(TEXTS[:2]) == toy.predictor().labels(TEXTS[:2])
    assert loaded.fingerprint == given.fingerprint != ""
    with pytest.raises(UserError, match="declares no labels, or is not registered"):
        load_predictor(str(folder), mesh=mesh, candidates="task")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": ("a", "a ")}, "are the same to the vocabulary"),
        ({"candidates": "yes"}, "is no list of labels"),
        ({"batch_size": 0}, "BATCH_SIZE = 0 must be at least 1"),
        ({"input_length": 1}, "must be at least 2"),
        ({"max_decode_len": 0}, "MAX_DECODE_LENGTH = 0"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        toy.predictor(**options)


def test_a_tokenizer_that_does_not_fit_the_embedding_is_told():
    import dataclasses

    from sbs_jax.student import Student

    student, params = toy.student()
    small = Student(dataclasses.replace(CONFIG, vocab_size=128), student.mesh)
    with pytest.raises(UserError, match=r"pieces, but the embedding of student has 128 rows"):
        Predictor(
            small,
            params,
            SentencePieceTokenizer(sentencepiece_models.with_bytes()),
            input_length=64,
            max_decode_len=8,
            batch_size=8,
            engine="jax",
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decoding": "nucleus"}, "RATIONALE_DECODING = 'nucleus' is unknown"),
        ({"temperature": -1.0}, "TEMPERATURE = -1.0"),
        ({"top_p": 0.0}, "TOP_P"),
        ({"num_beams": 0}, "NUM_BEAMS"),
    ],
)
def test_strategies_out_of_range(values, message):
    with pytest.raises(UserError, match=message):
        Strategy(**values)


def test_a_cascaded_student_writes_the_rationale_that_its_label_reads():
    network, params = toy.student()
    parts = {
        "label": {"reads": "{input}{RATIONALE_INPUT_SEPARATOR}{rationale}"},
        "rationale": {},
    }
    shape = {
        "input_length": 64,
        "max_decode_len": toy.DECODE_LENGTH,
        "batch_size": 8,
        "engine": "jax",
    }
    tokenizer = toy.predictor().tokenizer

    def asked(method, parts=None):
        prompting = Prompting(method=method, parts=parts)
        return Predictor(network, params, tokenizer, prompting=prompting, **shape)

    cascaded, reader = asked("cascaded", parts), asked("rationale_input")
    texts = ["Ann has 2", "Bo has 3 and 4"]
    predictions = cascaded.labels(texts)
    rationales = [rationale.text for rationale in reader.rationales(texts)]
    assert any(rationales)
    assert [prediction.rationale for prediction in predictions] == rationales
    queries = [
        reader.ask_label(text, rationale=rationale)
        for text, rationale in zip(texts, rationales, strict=True)
    ]
    assert [p.label for p in predictions] == [answer.label for answer in reader.run(queries)]
