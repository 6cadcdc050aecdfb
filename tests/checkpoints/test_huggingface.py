"""Hugging Face weights in and out: exact round trips, real folders, sentences of misfits."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from sbs_jax.checkpoints.huggingface import config_from_huggingface
from sbs_jax.errors import UserError
from sbs_jax.models.config import T5Config
from tests.hf_models import hf_model
from tests.hf_weights import load_huggingface, params_from_huggingface, params_to_huggingface
from tests.t5_weights import CASES, VERSIONS, our_model, state_dict

COPIES = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}


@pytest.fixture
def saved(tmp_path):
    """A folder that transformers wrote, of an untied model."""
    hf_model("v1.1", "plain").save_pretrained(tmp_path)
    return tmp_path


def assert_same(found, expected):
    found, expected = (traverse_util.flatten_dict(tree, sep="/") for tree in (found, expected))
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf)


@pytest.mark.parametrize(("version", "shape"), CASES)
def test_round_trip_is_exact(version, shape):
    config, params = our_model(version, shape)
    back = params_to_huggingface(params, config)
    original = state_dict(version, shape)
    unnamed = COPIES | ({"lm_head.weight"} if version == "v1.0" else set())
    assert back.keys() == original.keys() - unnamed
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, original[name])
        assert tensor.flags.c_contiguous
    assert_same(params_from_huggingface(back, config), params)


@pytest.mark.parametrize(("version", "shape"), CASES)
def test_folder_written_by_transformers(version, shape, tmp_path):
    hf_model(version, shape).save_pretrained(tmp_path)
    config, params = load_huggingface(tmp_path)
    expected_config, expected_params = our_model(version, shape)
    assert config == expected_config
    assert config.logits_via_embedding == (version == "v1.0")
    assert config.scales_logits == (version == "v1.0")
    assert config.dropout_rate == 0.1
    assert_same(params, expected_params)


@pytest.mark.parametrize("version", VERSIONS)
def test_sharded_folder(version, tmp_path):
    hf_model(version, "plain").save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    _, params = load_huggingface(tmp_path)
    assert_same(params, our_model(version, "plain")[1])
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"names {shard.name}, which is missing"):
        load_huggingface(tmp_path)


def test_tying_is_read_off_the_tensors_and_scaling_off_the_config():
    config_json = hf_model("v1.1", "plain").config.to_dict()
    assert config_json["tie_word_embeddings"] is True  # transformers 5 says so of every T5
    tensors = state_dict("v1.1", "plain")

    def read(tensors, **changes):
        config = config_from_huggingface({**config_json, **changes}, tensors)
        return config.logits_via_embedding, config.scales_logits

    tied = {**tensors, "lm_head.weight": tensors["shared.weight"]}
    headless = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    assert read(tensors) == (False, False)
    assert read(tied) == read(headless) == (True, False)
    assert read(tied, scale_decoder_outputs=True) == (True, True)
    assert read(tensors, scale_decoder_outputs=True) == (False, True)
    # A config of transformers 4 knows only the tensors' tying.
    del config_json["scale_decoder_outputs"]
    assert read(tensors, tie_word_embeddings=False) == (False, False)
    assert read(headless) == (True, True)


def test_half_precision_weights_become_float32():
    config, params = our_model("v1.0", "plain")
    tensors = params_to_huggingface(params, config)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        halves = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
        found = params_from_huggingface(halves, config)
        expected = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), params)
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found))
        assert_same(found, jax.tree.map(lambda leaf: leaf.astype(np.float32), expected))


def test_bfloat16_file(saved):
    config, params = load_huggingface(saved)
    tensors = params_to_huggingface(params, config)
    save_file(
        {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()},
        saved / "model.safetensors",
    )
    _, found = load_huggingface(saved)
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params)
    assert_same(found, rounded)


def test_misfits_name_parameters_and_shapes():
    config, params = our_model("v1.1", "plain")
    tensors = params_to_huggingface(params, config)

    def message(tensors, **changes):
        with pytest.raises(UserError) as caught:
            params_from_huggingface(tensors, dataclasses.replace(config, **changes))
        return str(caught.value)

    assert message(tensors, mlp_dim=56) == (
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight of the Hugging Face weights has shape "
        "[48, 32], but the T5Config wants [56, 32] for encoder/layers_0/mlp/wi_0/kernel."
    )
    assert message(tensors, num_encoder_layers=3).startswith(
        "The Hugging Face weights lack encoder.block.2.layer.0.SelfAttention.k.weight, "
    )
    assert "and 6 more" in message(tensors, num_encoder_layers=3)
    assert "hold what this T5Config has not: decoder.block.1.layer.0." in message(
        tensors, num_decoder_layers=1
    )
    assert "has not: lm_head.weight" in message(tensors, logits_via_embedding=True)
    headless = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    assert message(headless) == "The Hugging Face weights lack lm_head.weight."
    two = {**tensors, "encoder.embed_tokens.weight": tensors["shared.weight"] + 1}
    assert "shared.weight and encoder.embed_tokens.weight" in message(two)


def test_embedding_may_come_under_any_of_its_names():
    config, params = our_model("v1.0", "plain")
    tensors = params_to_huggingface(params, config)
    tensors["decoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    assert_same(params_from_huggingface(tensors, config), params)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_damaged_folders_are_told_in_a_sentence(saved):
    def message():
        with pytest.raises(UserError) as caught:
            load_huggingface(saved)
        return str(caught.value)

    config = saved / "config.json"
    edit(config, lambda c: c.update(feed_forward_proj="gated-tanh"))
    assert f"{saved}: config.json: feed_forward_proj = 'gated-tanh' is not supported" in message()
    edit(config, lambda c: c.update(model_type="bert"))
    assert "describes a model of type 'bert'" in message()
    edit(config, lambda c: (c.update(model_type="t5", feed_forward_proj="relu"), c.pop("d_kv")))
    assert "config.json lacks d_kv." in message()
    edit(config, lambda c: c.update(d_kv=8, num_heads=0))
    assert "T5Config.num_heads = 0 must be a positive integer." in message()
    config.write_text("{")
    assert f"{config}: is no readable JSON file" in message()
    config.unlink()
    assert f"{config}: does not exist." in message()
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert f"{weights}: is no readable safetensors file" in message()
    weights.rename(saved / "pytorch_model.bin")
    assert "call save_pretrained" in message()


def test_nothing_of_the_config_is_lost_but_run_settings():
    expected = T5Config(
        vocab_size=97,
        emb_dim=24,
        num_heads=3,
        num_encoder_layers=1,
        num_decoder_layers=3,
        head_dim=16,
        mlp_dim=40,
        mlp_activations=("gelu", "linear"),
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
    )
    assert our_model("v1.1", "uneven")[0] == expected
