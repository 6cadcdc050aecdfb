"""Slots that are refilled give the tokens of decoding batch by batch, on meshes, in any order."""

import functools

import jax
import numpy as np
import pytest

from sbs_jax.decoding import begin, shapes, slots
from sbs_jax.decoding.continuous import ContinuousDecoder, Request
from sbs_jax.decoding.greedy import greedy_decode
from sbs_jax.decoding.ranking import rank_candidates
from sbs_jax.decoding.sampling import sample_decode
from sbs_jax.decoding.slots import Draws
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from sbs_jax.token_ids import EOS_ID
from tests.toy import CONFIG, DECODER

LENGTH = 12
LENGTHS = (16, 32)
DRAWS = Draws(seed=3, temperature=1.0, top_k=5, top_p=1.0)


@pytest.fixture(autouse=True)
def keys_and_values(monkeypatch):
    """Inputs get keys and values, unless a test wants none, though outputs are short."""
    monkeypatch.setattr(begin, "FEW_QUERIES", 0)
    monkeypatch.setattr(slots, "FEW_QUERIES", 0)


def requests(count=37, longest=32):
    rng = np.random.default_rng(0)
    return [
        Request(rng.integers(3, 500, rng.integers(2, longest + 1)).tolist(), sample=number)
        for number in range(count)
    ]


def student(data=1, model=1):
    made = Student(CONFIG, make_mesh(data, model, jax.devices()[: data * model]))
    return made, made.init_params(0)


def endless(prompt, draws):
    """Tokens [N, T] of all requests in one batch, without any EOS."""
    network, params = student()
    rows = shapes.padded_rows([request.tokens for request in requests()], 40, LENGTHS[-1])
    options = {
        "max_decode_len": LENGTH,
        "eos_id": -1,
        "decoder_prompt": np.array(prompt, np.int32) if prompt else None,
    }
    if draws is None:
        return np.asarray(greedy_decode(network.model, params, rows, **options))[:37]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(draws.seed), np.arange(40, dtype=np.uint32)
    )
    found = sample_decode(network.model, params, rows, rng=keys, top_k=draws.top_k, **options)
    return np.asarray(found[0])[:37, 0]


@pytest.mark.parametrize(
    ("mesh", "prompt", "draws", "on_cpu", "few_queries"),
    [
        ((1, 1), (), None, True, False),
        ((1, 1), (5, 7, 9), DRAWS, False, True),
        ((4, 2), (), None, True, True),
        ((4, 2), (5, 7, 9), None, False, False),
    ],
)
def test_outputs_are_those_of_batches_in_order(mesh, prompt, draws, on_cpu, few_queries):
    tokens = endless(prompt, draws)
    # The token that ends rows at the most different lengths.
    first = {
        token: {int(np.argmax(row == token)) for row in tokens if (row == token).any()}
        for token in np.unique(tokens).tolist()
    }
    eos_id = max(first, key=lambda token: len(first[token]))
    network, params = student(*mesh)
    decoder = ContinuousDecoder(
        network,
        max_decode_len=LENGTH,
        prompt=prompt,
        scored=True,
        draws=draws,
        eos_id=eos_id,
        few_queries=few_queries,
    )
    memory = decoder.arguments(network.placed_params, 8, LENGTHS[0])["insert"][2]
    assert (memory.encoded is not None, memory.keys_values == ()) == (few_queries, few_queries)
    decoder.programs.on_cpu = on_cpu  # or the programs that accelerators get
    outputs = decoder(params, requests(), (8,), LENGTHS)
    assert len({len(output.tokens) for output in outputs}) > 2
    for row, output in zip(tokens, outputs, strict=True):
        ends = np.flatnonzero(row == eos_id)
        assert output.tokens == row[: ends[0] + 1 if ends.size else LENGTH].tolist()
    # Scores are those of teacher forcing.
    written = shapes.padded_rows([output.tokens for output in outputs], 40, LENGTH)
    rows = shapes.padded_rows([request.tokens for request in requests()], 40, LENGTHS[-1])
    network, params = student()
    scores = rank_candidates(
        network.model,
        params,
        rows,
        written[:, None],
        decoder_prompt=np.array(prompt, np.int32) if prompt else None,
    )
    for score, output in zip(np.asarray(scores)[:, 0], outputs, strict=False):
        assert output.log_probability == pytest.approx(score, rel=1e-4, abs=1e-5)


def test_a_decoder_reads_its_prompt_behind_the_text():
    made = Student(DECODER, make_mesh(devices=jax.devices()[:1]))
    params = made.init_params(0)
    rng = np.random.default_rng(1)
    texts = [[*rng.integers(3, 500, length).tolist(), EOS_ID] for length in (0, 3, 9, 15)]
    options = {"max_decode_len": LENGTH, "eos_id": -1}
    decoder = ContinuousDecoder(made, prompt=(5, 7, 9), scored=True, **options)
    found = decoder(params, list(map(Request, texts)), (4,), (16,))
    rows = shapes.padded_rows(texts, 4, 16)
    prompt = np.array((5, 7, 9), np.int32)
    expected = greedy_decode(made.model, params, rows, decoder_prompt=prompt, **options)
    assert [output.tokens for output in found] == np.asarray(expected).tolist()
    # Another prompt's decoder has programs of its own only for what it does differently.
    plain = ContinuousDecoder(made, prompt=(5, 7), like=decoder, **options)
    assert plain.programs.insert is decoder.programs.insert
    assert plain.programs.advance is not decoder.programs.advance
    # The memory of its texts is the same for short outputs; a T5's is not.
    short = ContinuousDecoder(made, prompt=(5, 7), like=decoder, few_queries=True, **options)
    assert short.programs.encode is decoder.programs.encode
    network, _ = student()
    long = ContinuousDecoder(network, **options)
    short = ContinuousDecoder(network, like=long, few_queries=True, **options)
    assert short.programs.encode is not long.programs.encode


def test_programs_are_called_in_the_shapes_that_plans_compile_them_for():
    network = Student(CONFIG, make_mesh(devices=jax.devices()[:2]))
    params = network.placed_params
    decoder = ContinuousDecoder(network, max_decode_len=LENGTH, prompt=(5, 7))
    expected = decoder.arguments(params, 16, LENGTHS[-1])
    _, rows, memory, _ = expected["insert"]
    ended = [np.zeros(rows.written.shape if name == "written" else 16, np.int32)
             for name in ("active", "starts", "written", "scores")]  # fmt: skip
    results = {"empty": rows, "encode": memory, "insert": rows, "advance": (rows, ended)}
    called = {}

    def fake(name, *args):
        called.setdefault(name, args)
        return results[name]

    for name in results:
        setattr(decoder.programs, name, functools.partial(fake, name))
    decoder(params, [Request([3] * LENGTHS[-1])] * 40, (16,), LENGTHS)
    assert called.pop("empty") == (16, LENGTHS[-1])
    assert list(called) == list(expected)
    for name, args in called.items():
        assert jax.tree.structure(args) == jax.tree.structure(expected[name])
        pairs = zip(jax.tree.leaves(args), jax.tree.leaves(expected[name]), strict=True)
        assert all(np.shape(given) == np.shape(mine) for given, mine in pairs)
    assert called["encode"][1].shape == (16, 32) and called["insert"][3].rows.shape == (4,)


def test_requests_join_while_others_are_decoded():
    network, params = student()
    decoder = ContinuousDecoder(network, max_decode_len=LENGTH, eos_id=-1)
    expected = decoder(params, requests(6), (4,), LENGTHS)
    arriving = [[], [0, 1], [2], [], [5, 3], [4], []]
    arriving = [[(number, requests(6)[number]) for number in numbers] for numbers in arriving]
    found = {}
    asked = []

    def feed(count):
        asked.append(count)
        return arriving.pop(0) if arriving else []

    # Nothing there at first: the stream ends at once.
    assert list(decoder.stream(params, feed, 4, LENGTHS)) == []
    for ended in decoder.stream(params, feed, 4, LENGTHS):
        assert ended
        found.update(ended)
    assert [found[number] for number in sorted(found)] == expected[: len(found)]
    assert set(asked) == {4}
    assert len(found) >= 3


def test_few_requests_take_few_slots_and_none_takes_none():
    network, params = student()
    decoder = ContinuousDecoder(network, max_decode_len=LENGTH)
    assert decoder(params, [], (8,), LENGTHS) == []
    few = requests(3)
    assert decoder(params, few, (1, 4, 8), LENGTHS) == decoder(params, few, (8,), LENGTHS)


def test_the_encoder_reads_many_short_inputs_or_few_long_ones(monkeypatch):
    network, params = student()
    decoder = ContinuousDecoder(network, max_decode_len=2, eos_id=-1)
    encode, read = decoder.programs.encode, []
    monkeypatch.setattr(
        decoder.programs,
        "encode",
        lambda params, tokens, length: read.append(tokens) or encode(params, tokens, length),
    )
    several = [*requests(125, 16), *requests(2, 128), Request([3] * 128)]
    decoder(params, several, (8,), (16, 128))
    # Sixteen fillings of the slots: lengths are multiples of 8.
    assert {tokens.shape for tokens in read} == {(8, 8), (8, 16), (8, 128)}

    read.clear()
    decoder(params, several, (128,), (16, 128))
    # 1,024 tokens, or at least a quarter of the slots: with 61 short inputs no long one is read.
    assert [tokens.shape for tokens in read] == [(64, 16), (64, 16), (32, 128)]


def test_shapes():
    assert shapes.until_end([5, 6, 1, 0, 0]) == [5, 6]
    assert shapes.until_end([5, 6]) == [5, 6]
    assert shapes.until_end([1, 5]) == []
    assert shapes.until_end(np.array([5, 0, 1])) == [5]
    assert shapes.until_end([5, 6, 1, 0, 0], keep_eos=True) == [5, 6, 1]
    assert shapes.until_end([5, 0, 1], keep_eos=True) == [5]
    assert shapes.padded_rows([[3, 4], [5]], 3, 3).tolist() == [[3, 4, 0], [5, 0, 0], [5, 0, 0]]
