"""Out to Hugging Face and back: logits, text, bits; sentences; the program itself."""

import dataclasses
import json
import logging

import gin
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from sbs_jax.checkpoints import record
from sbs_jax.checkpoints.huggingface import config_to_huggingface
from sbs_jax.checkpoints.loading import identify, load_params
from sbs_jax.checkpoints.manager import CheckpointManager
from sbs_jax.configuration import process
from sbs_jax.decoding.greedy import greedy_decode
from sbs_jax.errors import UserError
from sbs_jax.export import main
from sbs_jax.models.network import Transformer
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.programs.export import export
from sbs_jax.student import Student
from sbs_jax.training.state import TrainState
from tests.checkpoints.t5x_layout import write_orbax
from tests.hf_models import hf_model, torch, transformers
from tests.hf_weights import load_huggingface
from tests.sentencepiece_models import texts, train
from tests.t5_weights import apply, our_model, padded_batch, shift_right

# (transformers 5.23 cannot generate where the decoder has more layers than the encoder.)
CASES = [("v1.0", "plain"), ("v1.1", "plain")]
SETTINGS = {
    "mixture_or_task_name": "svamp_sbs",
    "method": "sbs",
    "label_source": "gold",
    "rationale_source": "teacher",
    "rationale_weight": 0.5,
    "feature_lengths": {"inputs": 96, "targets": 24},
    "initial_checkpoint": "/places/of/one/machine/flan-t5",
    "data_settings": {
        "label_prefix": "[label] ",
        "rationale_prefix": "[rationale] ",
        "data_dir": "/places/of/one/machine/data",
        "vocabulary_path": None,
    },
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """Of no more than 50 pieces, which every model here has room for."""
    folder = tmp_path_factory.mktemp("vocabulary")
    return train(folder / "spiece.model", texts(), vocab_size=50)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0])
def run(request, tmp_path_factory, vocabulary):
    """A MODEL_DIR with one checkpoint, as training writes it; and what it holds."""
    config, params = our_model(*request.param)
    folder = tmp_path_factory.mktemp("run")
    state = TrainState(
        step=jnp.int32(7),
        params=jax.tree.map(jnp.asarray, params),
        opt_state=jnp.zeros(1),
        rng=jnp.zeros(2, jnp.uint32),
    )
    metadata = {"model_config": dataclasses.asdict(config), **SETTINGS}
    with CheckpointManager(folder, best_metric="validation/accuracy") as manager:
        metrics = {"validation/accuracy": 0.625}
        manager.save(7, state, extra={"metadata": metadata}, metrics=metrics)
    record.write(folder, config, metadata)
    record.keep_vocabulary(folder, vocabulary)
    return folder, request.param


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder, case = run
    target = tmp_path_factory.mktemp("out") / "student"
    scores = {"split": "test", "accuracy": 0.75, "accuracy_stderr": 0.02, "examples": 500}
    (folder / "test").mkdir(exist_ok=True)
    (folder / "test" / "eval_metrics.jsonl").write_text(json.dumps(scores) + "\n")
    export(
        checkpoint_path=str(folder),
        output_dir=str(target),
        eval_output_dir=str(folder / "test"),
    )
    return target, case


def assert_same(found, expected):
    found, expected = (traverse_util.flatten_dict(tree, sep="/") for tree in (found, expected))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_round_trips_are_exact(exported):
    folder, case = exported
    config, params = our_model(*case)
    back, found = load_huggingface(folder)
    assert dataclasses.replace(back, scale_logits=None) == config
    assert back.scales_logits == config.scales_logits
    assert_same(found, params)
    # Hugging Face's own weights, too.
    original = {name: x.numpy() for name, x in hf_model(*case).state_dict().items()}
    for name, tensor in load_file(folder / "model.safetensors").items():
        np.testing.assert_array_equal(tensor, original[name])


@pytest.mark.parity
def test_transformers_gives_the_same_logits_and_text(exported):
    folder, case = exported
    config, params = our_model(*case)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs, targets = padded_batch(case[1])
    decoder_inputs = shift_right(targets)
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(inputs).long(),
            attention_mask=torch.tensor(inputs > 0).long(),
            decoder_input_ids=torch.tensor(decoder_inputs).long(),
        ).logits.numpy()
    found = np.asarray(apply(config, params, inputs, decoder_inputs))
    np.testing.assert_allclose(found[targets > 0], expected[targets > 0], atol=1e-4)

    asked = ["[label] How many apples?", "[rationale] Mary buy red 12"]
    encoded = tokenizer(asked, return_tensors="pt", padding=True)
    assert model.generation_config.max_new_tokens == 24
    generated = model.generate(**encoded, do_sample=False)
    tokens = encoded.input_ids.numpy().astype(np.int32)
    ours = np.asarray(greedy_decode(Transformer(config), params, tokens, max_decode_len=24))
    assert tokenizer.batch_decode(ours, skip_special_tokens=True) == tokenizer.batch_decode(
        generated, skip_special_tokens=True
    )


def test_the_folder_knows_its_settings_and_no_places(exported):
    folder, case = exported
    source = identify(folder)
    assert source.settings["rationale_weight"] == 0.5
    assert source.settings["data_settings"]["rationale_prefix"] == "[rationale] "
    assert source.vocabulary_path == folder / "spiece.model"
    assert source.config.emb_dim == our_model(*case)[0].emb_dim
    for file in folder.iterdir():
        assert b"/places" not in file.read_bytes()


def test_the_model_card_tells_what_it_is_and_how_to_ask(exported):
    card = (exported[0] / "README.md").read_text()
    for line in (
        "library_name: transformers",
        "- Method: `sbs`: Distilling step-by-step",
        "- Data: svamp_sbs",
        "- λ (weight of the rationale loss): 0.5",
        "- Steps: 7",
        "- Started from: flan-t5",
        "| test | accuracy | 0.7500 ± 0.0200 | 500 |",
        "| validation | accuracy | 0.6250 |  |",
        'for prefix in ["[label] ", "[rationale] "]:',
    ):
        assert line in card
    params = our_model(*exported[1])[1]
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    assert f"A T5 of {count:,} parameters (float32)" in card


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(run, tmp_path, dtype):
    export(checkpoint_path=str(run[0]), output_dir=str(tmp_path), dtype=dtype)
    numpy_dtype = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    _, found = load_huggingface(tmp_path)
    rounded = jax.tree.map(
        lambda x: x.astype(numpy_dtype).astype(np.float32), our_model(*run[1])[1]
    )
    assert_same(found, rounded)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert model.dtype == getattr(torch, dtype)


def test_from_huggingface_to_huggingface(tmp_path, vocabulary):
    hf_model("v1.1", "plain").save_pretrained(tmp_path / "in", max_shard_size="20KB")
    (tmp_path / "in" / "spiece.model").write_bytes(vocabulary.read_bytes())
    export(checkpoint_path=str(tmp_path / "in"), output_dir=str(tmp_path / "out"))
    config, params = our_model("v1.1", "plain")
    assert load_huggingface(tmp_path / "out")[0] == config
    student = Student(config, make_mesh(2, 4))
    assert_same(load_params(identify(tmp_path / "out"), student.placed_params), params)
    assert "predict" not in (tmp_path / "out" / "README.md").read_text()


def test_too_large_for_float16_is_refused(tmp_path, vocabulary):
    model = hf_model("v1.1", "plain")
    (tmp_path / "in").mkdir()
    model.save_pretrained(tmp_path / "in")
    (tmp_path / "in" / "spiece.model").write_bytes(vocabulary.read_bytes())
    from safetensors.numpy import save_file

    tensors = load_file(tmp_path / "in" / "model.safetensors")
    tensors["encoder.block.0.layer.0.SelfAttention.q.weight"][0, 0] = 7e4
    save_file(tensors, tmp_path / "in" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"q\.weight holds 7e\+04, more than float16 can \(65504\)"):
        export(
            checkpoint_path=str(tmp_path / "in"),
            output_dir=str(tmp_path / "out"),
            dtype="float16",
        )
    assert not list((tmp_path / "out").iterdir())


def test_what_cannot_be_exported_is_told_in_a_sentence(run, tmp_path, vocabulary):
    folder, _ = run

    def message(**options):
        with pytest.raises(UserError) as caught:
            export(
                **{"checkpoint_path": str(folder), "output_dir": str(tmp_path / "out")} | options
            )
        return str(caught.value)

    assert "DTYPE = 'int8' must be one of 'float32', 'float16', 'bfloat16'." in message(
        dtype="int8"
    )
    assert "is the MODEL_DIR of a run" in message(output_dir=str(folder))
    assert "is the folder that is exported" in message(output_dir=str(folder / "checkpoint_7"))
    large = train(tmp_path / "large.model", texts(), vocab_size=400, byte_fallback=True)
    assert "pieces, but the embedding has" in message(vocabulary_path=str(large))
    assert "eval_metrics.jsonl: cannot be read" in message(eval_output_dir=str(tmp_path))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors.index.json").touch()
    assert "holds the shards of other weights" in message()

    config, _ = our_model("v1.1", "plain")
    with pytest.raises(UserError, match=r"\('linear', 'gelu'\): Hugging Face's T5 has no such MLP"):
        config_to_huggingface(dataclasses.replace(config, mlp_activations=("linear", "gelu")))


def test_decoder_prefixes_and_unscaled_umt5_are_told(tmp_path, vocabulary, caplog):
    config = dataclasses.replace(our_model("v1.1", "plain")[0], relative_attention_per_layer=True)
    abstract = Student(config, make_mesh(8, 1)).abstract_params
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4"), abstract)
    write_orbax(tmp_path / "in", params)
    with caplog.at_level(logging.WARNING):
        export(
            checkpoint_path=str(tmp_path / "in"),
            output_dir=str(tmp_path / "out"),
            model_config=config,
            vocabulary_path=str(vocabulary),
        )
    assert "transformers 5 divides the logits of every umT5" in caplog.text
    assert load_huggingface(tmp_path / "out")[0] == config

    from sbs_jax.checkpoints import model_card

    settings = {**SETTINGS, "data_settings": SETTINGS["data_settings"] | {"prefix_side": "decoder"}}
    card = model_card.write(
        name="x",
        config=config,
        dtype="float32",
        settings=settings,
        step=1,
        own_scores={},
        scores={},
    )
    assert "are what the decoder is fed first" in card
    assert "decoder_input_ids=torch.tensor([prompt])" in card


def test_the_program(run, tmp_path, capsys, monkeypatch):
    # It would write to the standard error that belongs to this test alone.
    monkeypatch.setattr(process, "configure_logging", lambda verbosity: None)
    arguments = ["--gin_file=runs/export.gin", f"--gin.CHECKPOINT_PATH={run[0]}/best"]
    assert main([*arguments, f"--gin.OUTPUT_DIR={tmp_path / 'out'}", "--gin.DTYPE=bfloat16"]) == 0
    assert identify(tmp_path / "out").kind == "huggingface"
    assert main([*arguments, f"--gin.OUTPUT_DIR={run[0]}"]) == 1
    assert "error: OUTPUT_DIR" in capsys.readouterr().err
    gin.clear_config()
