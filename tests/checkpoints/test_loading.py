"""One loader for all: what a path means, weights straight into shards, sentences of misfits."""

import dataclasses
import json
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from sbs_jax.checkpoints import hub, tensors
from sbs_jax.checkpoints.loading import identify, load_params, stored_params
from sbs_jax.checkpoints.networks import model_config, require_same_network
from sbs_jax.decoding.greedy import greedy_decode
from sbs_jax.errors import UserError
from sbs_jax.models.network import Transformer
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from tests.hf_models import hf_model, require_torch, torch, transformers
from tests.hf_weights import load_huggingface
from tests.t5_weights import apply, our_model, padded_batch, shift_right

MULTILINGUAL = {
    "mt5": ("MT5Config", "MT5ForConditionalGeneration"),
    "umt5": ("UMT5Config", "UMT5ForConditionalGeneration"),
}


@pytest.fixture
def saved(tmp_path):
    """A folder that transformers wrote, of an untied model."""
    hf_model("v1.1", "plain").save_pretrained(tmp_path)
    return tmp_path


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.mark.parametrize(("data", "model", "fsdp"), [(8, 1, False), (2, 4, True)])
@pytest.mark.parametrize("shard_size", ["20KB", "1GB"])
def test_huggingface_goes_straight_into_shards(tmp_path, data, model, fsdp, shard_size):
    hf_model("v1.1", "plain").save_pretrained(tmp_path, max_shard_size=shard_size)
    config, params = our_model("v1.1", "plain")
    student = Student(config, make_mesh(data, model), fsdp=fsdp)
    source = identify(tmp_path)
    assert (source.kind, source.step, source.config) == ("huggingface", None, config)
    loaded = flat(load_params(source, student.placed_params))
    shardings = flat(student.param_shardings)
    for name, expected in flat(params).items():
        assert loaded[name].sharding == shardings[name]
        np.testing.assert_array_equal(loaded[name], expected)


def test_a_tensor_is_read_in_the_parts_that_devices_hold(saved):
    stored = stored_params(identify(saved))["encoder/layers_0/mlp/wi_0/kernel"]
    read = []

    class Spy:
        shape, dtype = stored.shape, stored.dtype

        def __getitem__(self, index):
            read.append(tuple((part.start, part.stop) for part in index))
            return stored[index]

    student = Student(our_model("v1.1", "plain")[0], make_mesh(2, 4))
    leaf = student.placed_params["encoder"]["layers_0"]["mlp"]["wi_0"]["kernel"]
    placed = tensors.place(Spy(), leaf)
    # Four parts of the MLP's axis, each once, although two devices hold it.
    assert sorted(read) == [((0, 32), (start, start + 12)) for start in range(0, 48, 12)]
    np.testing.assert_array_equal(placed, stored[(slice(None),) * 2])


def test_bfloat16_files_become_float32(saved):
    weights = {
        name: tensor.astype(ml_dtypes.bfloat16)
        for name, tensor in load_file(saved / "model.safetensors").items()
    }
    save_file(weights, saved / "model.safetensors")
    config, params = our_model("v1.1", "plain")
    loaded = load_params(identify(saved), Student(config, make_mesh(8, 1)).placed_params)
    for name, expected in flat(params).items():
        assert flat(loaded)[name].dtype == np.float32
        np.testing.assert_array_equal(
            flat(loaded)[name], expected.astype(ml_dtypes.bfloat16).astype(np.float32)
        )


@pytest.fixture(scope="module", params=MULTILINGUAL)
def multilingual(request, tmp_path_factory):
    """A random mT5 or umT5 with a head of its own, and its folder."""
    require_torch()
    make_config, make_model = (getattr(transformers, name) for name in MULTILINGUAL[request.param])
    torch.manual_seed(1)
    sizes = {"vocab_size": 64, "d_model": 32, "num_heads": 4, "d_kv": 8, "d_ff": 48}
    model = make_model(make_config(**sizes, num_layers=2, decoder_start_token_id=0)).eval()
    for name, parameter in model.named_parameters():
        if "relative_attention_bias" in name:
            parameter.data = torch.randn_like(parameter)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 32**-0.5)
    model.shared.weight.data *= 0.25
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


def test_multilingual_logits_and_greedy_text_are_transformers_s(multilingual):
    model, folder = multilingual
    config, params = load_huggingface(folder)
    assert config.relative_attention_per_layer == (model.config.model_type == "umt5")
    inputs, targets = padded_batch("plain")
    decoder_inputs = shift_right(targets)
    mask = torch.tensor(inputs > 0).long()
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(inputs).long(),
            attention_mask=mask,
            decoder_input_ids=torch.tensor(decoder_inputs).long(),
        ).logits.numpy()
    found = np.asarray(apply(config, params, inputs, decoder_inputs))
    np.testing.assert_allclose(found[targets > 0], expected[targets > 0], atol=1e-4)

    generated = model.generate(
        torch.tensor(inputs).long(), attention_mask=mask, max_new_tokens=8, do_sample=False
    )[:, 1:]
    tokens = greedy_decode(Transformer(config), params, inputs, max_decode_len=8)
    width = generated.shape[1]
    np.testing.assert_array_equal(np.asarray(tokens)[:, :width], generated.numpy())


def test_umt5_of_google_does_not_scale_its_logits(multilingual):
    model, folder = multilingual
    config = json.loads((folder / "config.json").read_text())
    scaled = identify(folder).config
    assert scaled.scales_logits == (model.config.model_type == "umt5")
    try:
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
        assert identify(folder).config == dataclasses.replace(scaled, scale_logits=None)
    finally:
        (folder / "config.json").write_text(json.dumps(config))


def test_misfits_name_parameters_and_shapes(saved):
    config, _ = our_model("v1.1", "plain")
    source = identify(saved)

    def message(**changes):
        changed = dataclasses.replace(config, **changes)
        with pytest.raises(UserError) as caught:
            require_same_network(source, changed)
            load_params(source, Student(changed, make_mesh(8, 1)).placed_params)
        return str(caught.value)

    assert (
        f"{saved}: does not fit: the shape of parameter decoder/logits_dense/kernel is [32, 64] in "
        "this checkpoint but [32, 72] in this run (2 parameters differ); use the MODEL of "
    ) in message(vocab_size=72)
    assert (
        "parameter encoder/layers_2/attention/key/kernel is not in this checkpoint but [32, 32] in "
        "this run (9 parameters differ)"
    ) in message(num_encoder_layers=3)
    assert "mlp_activations is ('gelu', 'linear') in this checkpoint but ('silu', 'linear')" in (
        message(mlp_activations=("silu", "linear"))
    )
    assert "num_heads is 4 in this checkpoint but 2 in this run" in message(
        num_heads=2, head_dim=16
    )
    assert "scales_logits is False in this checkpoint" in message(logits_via_embedding=True)


def test_paths_that_lead_to_no_weights(saved, tmp_path_factory):
    def message(path):
        with pytest.raises(UserError) as caught:
            source = identify(path)
            load_params(source, Student(source.config, make_mesh(8, 1)).placed_params)
        return str(caught.value)

    empty = tmp_path_factory.mktemp("empty")
    assert f"{empty}: holds no weights that can be read; expected a MODEL_DIR or" in message(empty)
    assert "nowhere: no such folder; expected a MODEL_DIR" in message(empty / "nowhere")
    (empty / "notes.txt").touch()
    assert "notes.txt: is a file; expected" in message(empty / "notes.txt")

    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert f"{weights}: is no readable safetensors file" in message(saved)
    weights.write_bytes(whole)
    quantized = {"shared.weight": np.zeros((4, 4), np.int8)}
    save_file(quantized, weights)
    assert "shared.weight has the dtype I8; weights must be floating-point numbers" in message(
        saved
    )
    weights.rename(saved / "pytorch_model.bin")
    assert "its pytorch_model.bin is a pickle, which could run any program" in message(saved)
    (saved / "pytorch_model.bin").rename(weights)
    weights.write_bytes(whole)
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"model_type": "bart"}))
    assert "describes a model of type 'bart'" in message(saved)
    (saved / "config.json").unlink()
    assert "config.json: does not exist" in message(saved)


def test_a_folder_without_its_vocabulary(saved):
    source = identify(saved)
    assert source.vocabulary_path is None
    with pytest.raises(UserError, match=r"spiece\.model: the vocabulary that the weights were"):
        source.require_vocabulary()
    (saved / "tokenizer.json").touch()
    with pytest.raises(UserError, match=r"\(tokenizer\.json is no SentencePiece model of a T5\)"):
        source.require_vocabulary()
    (saved / "spiece.model").touch()
    assert identify(saved).require_vocabulary() == saved / "spiece.model"


def test_a_name_on_the_hub(saved, tmp_path_factory, monkeypatch):
    # The hub's cache, as huggingface_hub lays it out; nothing is downloaded.
    cache = tmp_path_factory.mktemp("cache")
    snapshot = cache / "models--someone--tiny-t5" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    saved.rename(snapshot)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)

    import huggingface_hub

    download = huggingface_hub.snapshot_download

    def offline(name, **options):
        return download(name, **options, cache_dir=cache, local_files_only=True)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    config, params = our_model("v1.1", "plain")
    for name in ("someone/tiny-t5", "someone/tiny-t5@main"):
        source = identify(name)
        assert (source.kind, source.config) == ("huggingface", config)
    loaded = load_params(source, Student(config, make_mesh(8, 1)).placed_params)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert model_config("someone/tiny-t5", 0.3, "bfloat16") == dataclasses.replace(
        config, dropout_rate=0.3, dtype="bfloat16"
    )

    with pytest.raises(UserError, match=r"someone/else: no such folder, and the Hugging Face hub"):
        identify("someone/else")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"install\s+sbs_jax\[hub\], which downloads it"):
        identify("someone/tiny-t5")


def test_what_is_downloaded_of_a_decoder(monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}

    def download(name, **options):
        asked.update(options)
        return tmp_path

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.download("someone/tiny-llama") == tmp_path
    assert {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    } <= set(asked["allow_patterns"])  # fmt: skip

    def unreachable(name, **options):
        raise OSError("Got: no network.\nAn error happened at length.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"does not give it \(Got: no network\)\.$"):
        hub.download("someone/tiny-llama")


def test_what_may_be_a_name_on_the_hub():
    assert all(hub.is_name(name) for name in ("google/flan-t5-base", "a/b.c_d-e@v1.0"))
    assert not any(hub.is_name(name) for name in ("/a/b", "./a", "a/b/c", "~/a", "runs", "../a"))
