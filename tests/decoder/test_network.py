"""The local decoder against Hugging Face's: random Llama and Qwen2, and SmolLM2's real weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbs_jax.checkpoints.decoder_weights import load_params, open_checkpoint
from sbs_jax.errors import UserError
from sbs_jax.models.decoder import network as model
from sbs_jax.partitioning.mesh import make_mesh
from tests.decoder.support import CONFIGS, save_random, smollm2_path

TOLERANCE = 1e-4  # absolute, in float32


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def hf_logits(network, tokens):
    import torch

    with torch.no_grad():
        return network(torch.asarray(tokens)).logits.float().numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_agree_with_hugging_face(tmp_path, name):
    network = save_random(name, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    params = load_params(checkpoint, one_device())
    tokens = np.random.default_rng(0).integers(3, checkpoint.config.vocab_size, (3, 90))
    ours = model.logits_of(params, checkpoint.config, jnp.asarray(tokens))
    theirs = hf_logits(network, tokens)
    assert np.abs(theirs).max() > 0.5  # the comparison says something
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


def test_its_own_rope_theta_matters(tmp_path):
    save_random("llama-theta", tmp_path)
    config = open_checkpoint(tmp_path).config
    assert config.rope_theta == 500_000.0
    assert config.inverse_frequencies[1] == pytest.approx(500_000.0 ** (-2 / config.head_dim))


@pytest.mark.parametrize("name", ["llama-gqa", "qwen2"])
def test_prefix_cache_and_padding_change_nothing(tmp_path, name):
    save_random(name, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    config = checkpoint.config
    params = load_params(checkpoint, one_device())
    rng = np.random.default_rng(1)
    beginning = rng.integers(3, config.vocab_size, 21)
    rests = [rng.integers(3, config.vocab_size, n) for n in (5, 9, 2)]
    # The prefix, padded to 32 places of which 21 are real.
    cache = model.new_cache(config, 1, 32)
    padded = np.zeros((1, 32), np.int32)
    padded[0, :21] = beginning
    _, cache = model.forward(params, config, jnp.asarray(padded), 0, jnp.zeros(1, int), cache)
    prefix = model.Prefix(jax.tree.map(lambda a: a[0], cache), jnp.int32(21))
    tokens = np.zeros((3, 9), np.int32)
    padding = np.asarray([9 - len(rest) for rest in rests])
    for row, rest in enumerate(rests):
        tokens[row, 9 - len(rest) :] = rest
    # Two pieces: columns 0-6, then 7-8, in a cache with room to spare.
    cache = model.new_cache(config, 3, 16)
    first, cache = model.forward(
        params, config, jnp.asarray(tokens[:, :7]), 0, jnp.asarray(padding), cache, prefix
    )
    second, _ = model.forward(
        params, config, jnp.asarray(tokens[:, 7:]), 7, jnp.asarray(padding), cache, prefix
    )
    ours = np.concatenate([first, second], axis=1)
    for row, rest in enumerate(rests):
        whole = np.concatenate([beginning, rest])[None]
        wanted = model.logits_of(params, config, jnp.asarray(whole))[0, 21:]
        np.testing.assert_allclose(ours[row, padding[row] :], wanted, atol=2e-5, rtol=0)
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_logits_do_not_depend_on_the_mesh(tmp_path, shape):
    save_random("llama-gqa", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    tokens = jnp.asarray(np.random.default_rng(2).integers(3, 99, (8, 12)))
    wanted = model.logits_of(load_params(checkpoint, one_device()), checkpoint.config, tokens)
    params = load_params(checkpoint, make_mesh(*shape))
    if shape[1] == 2:
        assert params["layers"][0]["qkv"].sharding.spec[1] == "model"
    got = model.logits_of(params, checkpoint.config, tokens)
    np.testing.assert_allclose(got, wanted, atol=2e-5, rtol=0)


def test_smollm2_agrees_with_hugging_face():
    path = smollm2_path()
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for needed in ("gguf", "accelerate"):
        pytest.importorskip(needed, reason="pip install gguf accelerate: Hugging Face needs them")
    network = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    ).eval()
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.rope_theta == 100_000.0 and checkpoint.config.tied
    params = load_params(checkpoint, one_device())
    tokens = np.random.default_rng(3).integers(17, 49_000, (2, 64))
    ours = model.logits_of(params, checkpoint.config, jnp.asarray(tokens))
    theirs = hf_logits(network, tokens)
    assert (np.argmax(ours, -1) == np.argmax(theirs, -1)).all()
    # Logits reach 34 here, and after 30 layers each of the two lies 5e-5 to 1e-4 from the same
    # network in float64; their largest difference was measured as 1.05e-4. Hence a relative part.
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_type 'yarn'"),
        ({"use_sliding_window": True}, "sliding windows"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_hidden_layers": 9}, "the weights lack model.layers.2"),
    ],
)
def test_what_is_not_read_is_refused(tmp_path, change, sentence):
    import json

    save_random("llama-gqa", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=sentence):
        load_params(open_checkpoint(tmp_path), one_device())


def test_a_path_that_is_nothing():
    with pytest.raises(UserError, match="neither a Hugging Face folder nor a GGUF file"):
        open_checkpoint("/nowhere/at/all")
