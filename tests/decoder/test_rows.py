"""Rows `[x | p_y y | p_r r]`: what they compute is what separate texts give, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sbs_jax import losses
from sbs_jax.decoding.greedy import greedy_decode
from sbs_jax.models.decoder.config import DecoderConfig
from sbs_jax.models.decoder.network import DecoderOnly
from sbs_jax.parts import LABEL, RATIONALE
from tests.batches import network_inputs, part_sums

SMALL = {
    "vocab_size": 61,
    "emb_dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 48,
}
GEMMA = {
    **SMALL,
    "norm_adds_one": True,
    "post_norms": True,
    "qk_norm": True,
    "scale_embeddings": True,
    "attention_softcap": 3.0,
    "logits_softcap": 5.0,
    "sliding_window": 5,
    "full_attention_every": 2,
    "local_rope_theta": 100.0,
}
PROMPTS = {LABEL: (7, 8), RATIONALE: (9,)}
LAMBDA = 0.7


def random_params(config, dtype):
    model = DecoderOnly(config)
    tokens = jnp.ones((1, 2), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    rng = np.random.default_rng(5)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), dtype), nn.unbox(shapes)
    )


def examples(count=5):
    rng = np.random.default_rng(3)
    return [
        {
            "x": rng.integers(10, 60, rng.integers(2, 9)).tolist(),
            LABEL: [*rng.integers(10, 60, rng.integers(1, 4)).tolist(), 1],
            RATIONALE: [*rng.integers(10, 60, rng.integers(3, 9)).tolist(), 1],
        }
        for _ in range(count)
    ]


def rows_of(rows, length_x, length_y):
    """Batches of given rows, each a list of examples."""
    batch = {
        name: np.zeros((len(rows), length_x if name.startswith("enc") else length_y), np.int32)
        for name in (
            "encoder_input_tokens",
            "encoder_segment_ids",
            "decoder_input_tokens",
            "decoder_target_tokens",
            "decoder_target_parts",
            "decoder_segment_ids",
            "decoder_source_ids",
        )
    }
    for row, members in enumerate(rows):
        at_x = at_y = segment = 0
        for number, example in enumerate(members, start=1):
            x = slice(at_x, at_x := at_x + len(example["x"]))
            batch["encoder_input_tokens"][row, x] = example["x"]
            batch["encoder_segment_ids"][row, x] = number
            for part in (LABEL, RATIONALE):
                target = [*PROMPTS[part], *example[part]]
                segment += 1
                y = slice(at_y, at_y := at_y + len(target))
                batch["decoder_input_tokens"][row, y] = [0, *target[:-1]]
                batch["decoder_target_tokens"][row, y] = target
                parts = [0] * len(PROMPTS[part]) + [part] * len(example[part])
                batch["decoder_target_parts"][row, y] = parts
                batch["decoder_segment_ids"][row, y] = segment
                batch["decoder_source_ids"][row, y] = number
    return {name: jnp.asarray(array) for name, array in batch.items()}


def row_loss(params, model, batch):
    """The two-part loss of a batch of rows."""
    logits = model.apply({"params": params}, **network_inputs(batch))
    chosen = jnp.take_along_axis(
        jax.nn.log_softmax(logits), batch["decoder_target_tokens"][..., None], -1
    )[..., 0]
    total = 0.0
    for part, weight in ((LABEL, 1.0), (RATIONALE, LAMBDA)):
        mine = batch["decoder_target_parts"] == part
        total -= weight * jnp.where(mine, chosen, 0.0).sum() / mine.sum()
    return total


@functools.partial(jax.jit, static_argnums=1)
def whole_texts(params, model, texts):
    """The logits of plain texts."""
    rows, length = texts.shape
    cache = model.apply({}, method=lambda module: module.decoder.empty_cache(rows, length))
    return model.apply(
        {"params": params}, texts, 0, jnp.zeros(rows, int), cache, method="continue_texts"
    )[0]


def separate_loss(params, model, members):
    """The same from plain texts `x p y`, one at a time, through the cache-free whole-text path."""
    total = 0.0
    for part, weight in ((LABEL, 1.0), (RATIONALE, LAMBDA)):
        count = sum(len(example[part]) for example in members)
        for example in members:
            text = jnp.asarray([[*example["x"], *PROMPTS[part], *example[part]]])
            logits = whole_texts(params, model, text)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), text[:, 1:, None], -1)[
                0, :, 0
            ]
            total -= weight * chosen[-len(example[part]) :].sum() / count
    return total


@pytest.mark.parametrize("settings", [SMALL, GEMMA], ids=["llama", "gemma"])
def test_rows_equal_separate_texts_in_float64(settings):
    with jax.enable_x64(True):
        config = DecoderConfig(**settings, dtype="float64")
        model, members = DecoderOnly(config), examples()
        params = random_params(config, jnp.float64)
        wanted, their_gradients = jax.value_and_grad(separate_loss)(params, model, members)
        packed = rows_of([members[:3], members[3:]], 24, 56)
        single = rows_of([[member] for member in members], 10, 20)
        for batch in (packed, single):
            got, gradients = jax.jit(jax.value_and_grad(row_loss), static_argnums=1)(
                params, model, batch
            )
            assert got.dtype == jnp.float64
            np.testing.assert_allclose(got, wanted, rtol=1e-12)
            for ours, theirs in zip(
                jax.tree.leaves(gradients), jax.tree.leaves(their_gradients), strict=True
            ):
                scale = np.abs(theirs).max()
                np.testing.assert_allclose(ours, theirs, atol=1e-12 * scale, rtol=0)


def test_attention_by_heads_is_that_of_all_at_once():
    batch = rows_of([examples()[:2], examples()[2:]], 40, 48)
    params = random_params(DecoderConfig(**GEMMA), jnp.float32)

    def gradients(attention):
        model = DecoderOnly(DecoderConfig(**GEMMA, attention=attention))
        function = jax.jit(jax.value_and_grad(functools.partial(row_loss, model=model)))
        # There is a loop over heads exactly where it is asked for.
        text = function.lower(params, batch=batch).as_text()
        assert ("stablehlo.while" in text) == (attention == "by_head")
        return function(params, batch=batch)

    (loss, found), (expected_loss, expected) = map(gradients, ("by_head", "whole"))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


def test_the_project_s_loss_on_rows():
    config = DecoderConfig(**SMALL)
    model, members = DecoderOnly(config), examples()
    params = random_params(config, jnp.float32)
    batch = rows_of([members[:3], members[3:]], 24, 56)
    logits = model.apply({"params": params}, **network_inputs(batch))
    sums = part_sums(logits, batch)
    np.testing.assert_allclose(losses.join(sums, LAMBDA), row_loss(params, model, batch), rtol=1e-6)


@pytest.mark.parametrize("settings", [SMALL, GEMMA], ids=["llama", "gemma"])
@pytest.mark.parametrize("prompt", [None, (7, 8)])
def test_decoding_follows_the_plain_text(settings, prompt):
    config = DecoderConfig(**settings)
    model, members = DecoderOnly(config), examples(3)
    params = random_params(config, jnp.float32)
    tokens = np.zeros((3, 9), np.int32)
    for row, example in enumerate(members):
        tokens[row, : len(example["x"])] = example["x"]
    decoded = greedy_decode(
        model,
        params,
        jnp.asarray(tokens),
        max_decode_len=6,
        eos_id=1,
        decoder_prompt=None if prompt is None else jnp.asarray(prompt),
    )
    # The plain texts, with what was decoded behind them, all at once.
    texts = [
        [*example["x"], *(prompt or ()), *np.asarray(row)]
        for example, row in zip(members, decoded, strict=True)
    ]
    padded = np.zeros((3, 20), np.int32)
    for row, text in enumerate(texts):
        padded[row, : len(text)] = text
    best = np.asarray(whole_texts(params, model, jnp.asarray(padded)).argmax(-1))
    for row, text in enumerate(texts):
        for step, token in enumerate(np.asarray(decoded[row])):
            assert best[row, len(text) - 6 + step - 1] == token
            if token == 1:
                break


def test_the_end_of_the_input_is_not_read():
    config = DecoderConfig(**SMALL)
    model = DecoderOnly(config)
    params = random_params(config, jnp.float32)
    x = jnp.asarray([[11, 12, 13, 0, 0], [14, 15, 0, 0, 0]])
    ended = jnp.asarray([[11, 12, 13, 1, 0], [14, 15, 1, 0, 0]])
    branch = jnp.asarray([[0, 20, 21], [0, 22, 23]])
    apply = jax.jit(functools.partial(model.apply, {"params": params}))
    np.testing.assert_array_equal(apply(x, branch), apply(ended, branch))
    decode = functools.partial(greedy_decode, model, params, max_decode_len=4)
    np.testing.assert_array_equal(decode(x), decode(ended))


def test_nothing_leaks():
    """A branch sees neither its sister, nor other examples, nor anything that comes later."""
    config = DecoderConfig(**SMALL)
    model, members = DecoderOnly(config), examples(2)
    params = random_params(config, jnp.float32)
    batch = rows_of([members], 24, 56)

    @jax.jit
    def hidden(batch):
        return model.apply(
            {"params": params},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            encoder_segment_ids=batch["encoder_segment_ids"],
            decoder_segment_ids=batch["decoder_segment_ids"],
            decoder_source_ids=batch["decoder_source_ids"],
            method="hidden",
        )[0]

    before = hidden(batch)
    segments = np.asarray(batch["decoder_segment_ids"][0])
    for place in np.flatnonzero(segments):
        if place == 0 or segments[place] != segments[place - 1]:
            continue  # a start token stands for the last token of x, whatever it is
        changed = batch["decoder_input_tokens"].at[0, place].set(3)
        after = hidden({**batch, "decoder_input_tokens": changed})
        differs = np.flatnonzero(np.abs(after - before).max(-1) > 0)
        assert set(differs) <= set(
            np.flatnonzero((segments == segments[place]) & (np.arange(segments.size) >= place))
        )
        assert place in differs
