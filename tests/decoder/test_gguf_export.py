"""GGUF files out: bit for bit what was written, and llama.cpp goes on with the same text."""

import dataclasses
import json
import urllib.request

import gguf
import jax
import numpy as np
import pytest
from flax import traverse_util
from gguf.constants import GGMLQuantizationType
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sbs_jax.checkpoints import gguf_export
from sbs_jax.checkpoints.decoder_gguf import open_gguf
from sbs_jax.checkpoints.loading import identify, stored_params
from sbs_jax.errors import UserError
from sbs_jax.models.decoder.config import DecoderConfig
from sbs_jax.models.decoder.network import DecoderOnly
from sbs_jax.models.decoder.rotary import inverse_frequencies
from sbs_jax.programs.export import export
from sbs_jax.text_tokenizer import TextTokenizer
from tests.decoder.support import save_random

LLAMA = DecoderConfig(
    vocab_size=288,
    emb_dim=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    mlp_dim=96,
    max_positions=256,
    pad_id=0,
    eos_id=2,
)
CONFIGS = {
    "llama": LLAMA,
    "llama3": dataclasses.replace(
        LLAMA,
        logits_via_embedding=False,
        rope_scaling="llama3",
        rope_factor=8.0,
        rope_original_max_positions=32,
    ),
    "qwen2": dataclasses.replace(LLAMA, attention_bias=True, rope_theta=1e6),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return TextTokenizer(save_byte_level(tmp_path_factory.mktemp("tokenizer")))


def save_byte_level(folder):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ("<pad>", "<s>", "</s>")
    vocabulary = {token: number for number, token in enumerate((*special, *letters, "ab"))}
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(token, special=True) for token in special])
    built.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return folder / "tokenizer.json"


def random_params(config, seed=0):
    tokens = np.ones((1, 2), np.int32)
    params = jax.jit(DecoderOnly(config).init)(jax.random.key(seed), tokens, tokens)["params"]
    flat = traverse_util.flatten_dict(jax.device_get(params), sep="/")
    rng = np.random.default_rng(seed)
    return {
        path: np.asarray(rng.normal(1.0 if "scale" in path else 0.0, 0.2, x.value.shape), "f")
        for path, x in flat.items()
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_a_float32_file_holds_what_was_written(name, tokenizer, tmp_path):
    config = CONFIGS[name]
    params = random_params(config)
    path = tmp_path / "a.gguf"
    gguf_export.write_gguf(path, config, params, tokenizer)
    found, stored, metadata = open_gguf(path)
    expected = dataclasses.replace(config, pad_id=0, eos_id=1)
    if name == "llama3":
        angles = inverse_frequencies(found)
        np.testing.assert_allclose(angles, inverse_frequencies(config), rtol=1e-6)
        assert found.rope_divisors[-1] == pytest.approx(8)
        found = dataclasses.replace(found, rope_divisors=None)
        expected = dataclasses.replace(
            expected, rope_scaling="none", rope_factor=1.0, rope_original_max_positions=8192
        )
    assert found == expected
    for parameter, value in params.items():
        np.testing.assert_array_equal(whole(stored[parameter]), value, err_msg=parameter)
    again = TextTokenizer(path)
    assert (again.pad_id, again.eos_id) == (tokenizer.pad_id, tokenizer.eos_id)
    for text in ("abab 12 c", "né\n  x", "</s>ab"):
        assert again.encode(text) == tokenizer.encode(text)
    assert len(metadata["tokenizer.ggml.tokens"]) == config.vocab_size


@pytest.mark.parametrize(("dtype", "kind"), [("float16", "F16"), ("q8_0", "Q8_0")])
def test_narrow_files(dtype, kind, tokenizer, tmp_path):
    params = random_params(LLAMA)
    path = tmp_path / "a.gguf"
    gguf_export.write_gguf(path, LLAMA, params, tokenizer, dtype=dtype)
    _, stored, _ = open_gguf(path)
    for parameter, value in params.items():
        found = whole(stored[parameter])
        # Half a step of the block, whose scale is a float16.
        step = np.abs(value).max() / (2048 if kind == "F16" else 254)
        np.testing.assert_allclose(found, value, atol=0 if value.ndim == 1 else 1.13 * step)
    types = {tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    assert types == {GGMLQuantizationType.F32, GGMLQuantizationType[kind]}


def test_a_network_without_a_name_and_a_tokenizer_without_one(tmp_path, tokenizer):
    save_random("llama-gqa", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    asked = {"checkpoint_path": str(tmp_path), "output_dir": str(tmp_path / "out")}
    with pytest.raises(UserError, match="has none of them"):
        export(**asked, file_format="gguf")
    with pytest.raises(UserError, match="DTYPE = 'bfloat16' must be one of 'float32'"):
        export(**asked, file_format="gguf", dtype="bfloat16")
    with pytest.raises(UserError, match="FORMAT = 'onnx' must be one of"):
        export(**asked, file_format="onnx")
    odd = dataclasses.replace(LLAMA, scale_embeddings=True)
    with pytest.raises(UserError, match="No family of transformers"):
        gguf_export.write_gguf(tmp_path / "b.gguf", odd, {}, tokenizer)
    assert not (tmp_path / "b.gguf").exists()


def test_llama_cpp_goes_on_with_the_same_text(tmp_path):
    xllamacpp = pytest.importorskip("xllamacpp", reason="pip install 'sbs_jax[smollm2]'")
    save_byte_level(tmp_path)
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json")
    params = random_params(LLAMA, seed=1)
    path = tmp_path / "a.gguf"
    gguf_export.write_gguf(path, LLAMA, params, tokenizer)
    prompt = "abab and 12 more"
    said = said_by_llama_cpp(xllamacpp, path, prompt, 12)

    source = identify(path)
    network = DecoderOnly(source.config)
    stored = stored_params(source)
    own = traverse_util.unflatten_dict({name: whole(stored[name]) for name in stored}, sep="/")
    forward = jax.jit(lambda x, y: network.apply({"params": own}, x, y))
    ids, written = tokenizer.encode(prompt), []
    for _ in range(12):
        given = np.zeros((1, 12), np.int32)
        given[0, 1 : len(written) + 1] = written
        logits = forward(np.asarray([ids], np.int32), given)
        written.append(int(logits[0, len(written)].argmax()))
        if written[-1] == 1:
            break
    assert said == tokenizer.decode(written)
    assert said


def whole(tensor):
    return tensor[(slice(None),) * len(tensor.shape)]


def said_by_llama_cpp(xllamacpp, path, prompt, count):
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = 128
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = 1
    parameters.warmup = False
    server = xllamacpp.Server(parameters)
    body = {"prompt": prompt, "max_tokens": count, "temperature": 0}
    request = urllib.request.Request(
        server.listening_address + "/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["text"]
