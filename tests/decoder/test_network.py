"""The decoder against Hugging Face's: random models of each family, and SmolLM2's real weights."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from sbs_jax.checkpoints.decoder_config_json import config_to_huggingface
from sbs_jax.checkpoints.decoder_huggingface import (
    huggingface_sources,
    open_decoder,
)
from sbs_jax.checkpoints.decoder_weights import load_params, open_checkpoint
from sbs_jax.errors import UserError
from sbs_jax.models.decoder.network import DecoderOnly
from sbs_jax.models.decoder.stack import as_prefix
from sbs_jax.partitioning.mesh import make_mesh
from tests.decoder.support import CONFIGS, save_random, smollm2_path
from tests.hf_weights import params_to_huggingface, read_params

TOLERANCE = 1e-4  # absolute, in float32


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def hf_logits(network, tokens):
    import torch

    with torch.no_grad():
        return network(torch.asarray(tokens)).logits.float().numpy()


def empty_cache(model, rows, columns):
    return model.apply({}, method=lambda module: module.decoder.empty_cache(rows, columns))


@functools.partial(jax.jit, static_argnums=0)
def extend(model, params, tokens, column, padding, cache, prefix=None):
    return model.apply(
        {"params": params},
        jnp.asarray(tokens),
        column,
        jnp.asarray(padding),
        cache,
        prefix,
        method="continue_texts",
    )


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, tokens):
    """The logits of whole texts."""
    rows, length = tokens.shape
    padding = jnp.zeros(rows, jnp.int32)
    return extend(model, params, tokens, 0, padding, empty_cache(model, rows, length))[0]


@functools.partial(jax.jit, static_argnums=0)
def branch_logits(model, params, tokens):
    """The logits of texts whose first 7 tokens are the input x, the others a branch."""
    x, branch = tokens[:, :7], tokens[:, 6:]
    branch = branch.at[:, 0].set(0)  # the start token
    return model.apply({"params": params}, jnp.asarray(x), jnp.asarray(branch))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_loss_and_gradients_agree_with_hugging_face(tmp_path, name):
    torch = pytest.importorskip("torch")
    network = save_random(name, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    model = DecoderOnly(checkpoint.config)
    params = read_params(checkpoint.stored)
    tokens = np.random.default_rng(0).integers(3, checkpoint.config.vocab_size, (3, 70))
    theirs = network(torch.asarray(tokens)).logits
    ours = logits_of(model, params, tokens)
    assert np.abs(ours).max() > 0.5  # the comparison says something
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=TOLERANCE, rtol=0)

    # Completion-only training: x has 7 tokens and no loss.
    goal = torch.asarray(tokens[:, 7:])
    their_loss = torch.nn.functional.cross_entropy(
        theirs[:, 6:-1].reshape(-1, theirs.shape[-1]), goal.reshape(-1)
    )
    their_loss.backward()

    def loss(params):
        logits = branch_logits(model, params, tokens[:, :-1])
        chosen = jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.asarray(tokens[:, 7:, None]), -1
        )
        return -chosen.mean()

    our_loss, gradients = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(our_loss, float(their_loss), rtol=1e-5)
    gradients = traverse_util.flatten_dict(gradients, sep="/")
    their_parameters = dict(network.named_parameters())
    for path, source in huggingface_sources(checkpoint.config).items():
        wanted = their_parameters[source.name].grad.numpy()
        wanted = wanted.T if source.transposed else wanted
        scale = np.abs(wanted).max()
        if path.endswith("key/bias"):
            scale = max(scale, 1e-3)  # a softmax ignores one bias for all keys: rounding is left
        np.testing.assert_allclose(
            gradients[path], wanted, atol=TOLERANCE * scale, rtol=0, err_msg=path
        )


@pytest.mark.parametrize("name", ["llama-gqa", "llama-3.1", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_folders_come_out_as_they_went_in(tmp_path, name):
    torch = pytest.importorskip("torch")
    import transformers
    from safetensors.numpy import load_file

    network = save_random(name, tmp_path)
    for pad_id, eos_id in ((0, 1), (41, 2), (1, 0), (0, 57)):
        config, stored = open_decoder(tmp_path, pad_id, eos_id)
        params = read_params(stored)
        embedding = params["token_embedder"]["embedding"]
        wanted = network.get_input_embeddings().weight.detach().numpy()
        np.testing.assert_array_equal(embedding[:2], wanted[[pad_id, eos_id]])
        np.testing.assert_array_equal(
            np.sort(embedding[:, 0]), np.sort(wanted[:, 0])
        )  # no row is lost
        np.testing.assert_array_equal(
            stored["token_embedder/embedding"][30:60, 1:5], embedding[30:60, 1:5]
        )
        back = params_to_huggingface(params, config)
        saved = load_file(tmp_path / "model.safetensors")
        assert set(back) == set(saved)
        for key, value in saved.items():
            np.testing.assert_array_equal(back[key], value)
    # transformers reads the config that we write as the same network.
    raw = config_to_huggingface(config)
    kind = transformers.CONFIG_MAPPING[raw.pop("model_type")]
    again = type(network)(kind(**raw, attn_implementation="eager")).eval()
    again.load_state_dict(network.state_dict())
    tokens = torch.arange(3, 63)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, network(tokens).logits, atol=0, rtol=0)


def test_its_own_rope_theta_matters(tmp_path):
    from sbs_jax.models.decoder.rotary import inverse_frequencies

    save_random("llama-theta", tmp_path)
    config = open_checkpoint(tmp_path).config
    assert config.rope_theta == 500_000.0
    assert inverse_frequencies(config)[1] == pytest.approx(500_000.0 ** (-2 / config.head_dim))


@pytest.mark.parametrize("name", ["llama-gqa", "qwen2", "gemma2"])
def test_prefix_cache_and_padding_change_nothing(tmp_path, name):
    save_random(name, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    config = checkpoint.config
    model = DecoderOnly(config)
    params = read_params(checkpoint.stored)
    rng = np.random.default_rng(1)
    beginning = rng.integers(3, config.vocab_size, 21)
    rests = [rng.integers(3, config.vocab_size, n) for n in (5, 9, 2)]
    # The prefix, padded to 32 places of which 21 are real.
    padded = np.zeros((1, 32), np.int32)
    padded[0, :21] = beginning
    _, cache = extend(model, params, padded, 0, np.zeros(1, int), empty_cache(model, 1, 32))
    prefix = as_prefix(cache, jnp.int32(21))
    tokens = np.zeros((3, 9), np.int32)
    padding = np.asarray([9 - len(rest) for rest in rests])
    for row, rest in enumerate(rests):
        tokens[row, 9 - len(rest) :] = rest
    # Two pieces: columns 0-6, then 7-8, in a cache with room to spare.
    cache = empty_cache(model, 3, 16)
    first, cache = extend(model, params, tokens[:, :7], 0, padding, cache, prefix)
    second, _ = extend(model, params, tokens[:, 7:], 7, padding, cache, prefix)
    ours = np.concatenate([first, second], axis=1)
    for row, rest in enumerate(rests):
        whole = np.concatenate([beginning, rest])[None]
        wanted = logits_of(model, params, whole)[0, 21:]
        np.testing.assert_allclose(ours[row, padding[row] :], wanted, atol=2e-5, rtol=0)
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_logits_do_not_depend_on_the_mesh(tmp_path, shape):
    save_random("llama-gqa", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    model = DecoderOnly(checkpoint.config)
    tokens = np.random.default_rng(2).integers(3, 99, (8, 12))
    wanted = branch_logits(model, load_params(checkpoint, one_device()), tokens)
    params = load_params(checkpoint, make_mesh(*shape))
    if shape[1] == 2:
        kernel = params["decoder"]["layers_0"]["self_attention"]["query"]["kernel"]
        assert kernel.sharding.spec[1] == "model"
    got = branch_logits(model, params, tokens)
    np.testing.assert_allclose(got, wanted, atol=2e-5, rtol=0)


def test_bfloat16_is_near(tmp_path):
    save_random("gemma3", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    params = read_params(checkpoint.stored)
    tokens = np.random.default_rng(0).integers(3, 99, (2, 30))
    wanted = branch_logits(DecoderOnly(checkpoint.config), params, tokens)
    rounded = dataclasses.replace(checkpoint.config, dtype="bfloat16")
    got = branch_logits(DecoderOnly(rounded), params, tokens)
    assert got.dtype == jnp.float32
    assert 0 < np.abs(got - wanted).mean() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize("remat", ["minimal", "full"])
def test_remat_changes_no_gradient(tmp_path, remat):
    save_random("llama-gqa", tmp_path)
    config, stored = open_decoder(tmp_path)
    params = read_params(stored)
    tokens = np.random.default_rng(0).integers(3, 99, (2, 20))

    def gradients(config):
        def loss(params):
            return jnp.square(branch_logits(DecoderOnly(config), params, tokens)).mean()

        return jax.jit(jax.grad(loss))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradients(config),
        gradients(dataclasses.replace(config, remat=remat)),
    )


@pytest.mark.slow
def test_smollm2_agrees_with_hugging_face():
    path = smollm2_path()
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="pip install accelerate: Hugging Face needs it")
    network = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    ).eval()
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.rope_theta == 100_000.0 and checkpoint.config.logits_via_embedding
    params = load_params(checkpoint, one_device())
    tokens = np.random.default_rng(3).integers(17, 49_000, (2, 64))
    model = DecoderOnly(checkpoint.config)
    ours = jax.jit(lambda params: logits_of(model, params, tokens))(params)
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
        ({"num_hidden_layers": 9}, r"the weights lack model\.layers\.2"),
        ({"num_hidden_layers": 1}, r"the weights hold .*model\.layers\.1"),
        ({"intermediate_size": 95}, r"has shape \[96, 64\]"),
    ],
)
def test_what_is_not_read_is_refused(tmp_path, change, sentence):
    save_random("llama-gqa", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=sentence):
        load_params(open_checkpoint(tmp_path), one_device())


def test_a_path_that_is_nothing():
    with pytest.raises(UserError, match="neither a Hugging Face folder nor a GGUF file"):
        open_checkpoint("/nowhere/at/all")
