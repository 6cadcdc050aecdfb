"""Adapters: trained and saved alone, resumed exactly, merged for all readers, and read by peft."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from flax import traverse_util

from sbs_jax.checkpoints import folders, lora
from sbs_jax.checkpoints.loading import identify
from sbs_jax.errors import UserError
from sbs_jax.inference.loader import load_predictor
from sbs_jax.programs.export import export
from sbs_jax.student import Student
from tests.decoder.students import one_device, params_of, run
from tests.decoder.support import save_random

ADAPTERS = {"lora_rank": 2, "lora_alpha": 3.0, "lora_targets": ("query", "value", "wo")}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "llama"
    network = save_random("llama-gqa", folder)
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text()) | {"eos_token": "</s>"}
    settings.write_text(json.dumps(content))
    return folder, network


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "adapted"
    return run(folder, config_of(base), steps=4, initial=base[0])


def config_of(base):
    return dataclasses.replace(identify(base[0]).config, **ADAPTERS)


def test_only_adapters_are_trained_and_saved(base, adapted):
    source = identify(adapted)
    digests = folders.read_info(source.folder)["digests"]
    names = set(digests[folders.PARAMS])
    assert len(names) == 2 * 3 * 2  # layers, targets, A and B
    assert all(name.rpartition("/")[2] in ("lora_a", "lora_b") for name in names)
    assert not [name for name in digests[folders.TRAINING] if "kernel" in name]
    assert source.config == identify(base[0]).config
    before, after = params_of(base[0], source.config), params_of(adapted, source.config)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert {path.split("/")[-2] for path in changed} == set(ADAPTERS["lora_targets"])


def test_adapters_begin_as_nothing(base):
    student = Student(config_of(base), one_device())
    flat = traverse_util.flatten_dict(student.init_params(0), sep="/")
    for path, leaf in flat.items():
        if path.endswith("lora_b"):
            assert not leaf.any()
        if path.endswith("lora_a"):
            bound = leaf.shape[0] ** -0.5
            assert 0.8 * bound < np.abs(leaf).max() <= bound


def test_a_resumed_run_equals_one_that_was_not_stopped(base, adapted, tmp_path):
    run(tmp_path / "halves", config_of(base), steps=2, initial=base[0])
    run(tmp_path / "halves", config_of(base), steps=4)
    whole, halves = (
        params_of(folder, identify(base[0]).config) for folder in (adapted, tmp_path / "halves")
    )
    for path, value in whole.items():
        np.testing.assert_array_equal(value, halves[path], err_msg=path)


def test_peft_computes_what_the_merged_weights_compute(base, adapted, tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    alone = export(checkpoint_path=str(adapted), output_dir=str(tmp_path / "a"), adapters_only=True)
    merged = export(checkpoint_path=str(adapted), output_dir=str(tmp_path / "merged"))
    # In float64, so that what is compared is the weights and not the order of sums.
    network = transformers.AutoModelForCausalLM.from_pretrained(base[0]).double()
    ids = torch.arange(40, 90)[None]
    with torch.no_grad():
        plain = network(ids).logits.numpy()
        theirs = peft.PeftModel.from_pretrained(network, str(alone)).double()(ids).logits.numpy()
        network = transformers.AutoModelForCausalLM.from_pretrained(merged).double()
        whole = network(ids).logits.numpy()
    np.testing.assert_allclose(whole, theirs, atol=1e-5)
    assert np.abs(theirs - plain).max() > 1e-3


def test_a_student_of_adapters_answers(adapted):
    predictor = load_predictor(
        str(adapted), mesh=one_device(), batch_size=2, max_decode_len=2, candidates=["1", "2"]
    )
    assert predictor.prompting.prefix_side == "decoder"
    assert predictor.labels(["1 + 1"])[0].label in ("1", "2")


def test_weights_that_moved_or_changed(base, adapted, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(base[0], tmp_path / "copy")
    config = config_of(base)
    run(moved, config, steps=1, initial=tmp_path / "copy")
    (tmp_path / "copy").rename(moved / lora.BASE)
    params_of(moved, identify(moved).config)
    weights = moved / lora.BASE / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="are other weights than those that"):
        params_of(moved, identify(moved).config)
    shutil.rmtree(moved / lora.BASE)
    with pytest.raises(UserError, match="which are not there any more"):
        params_of(moved, identify(moved).config)


def test_bad_settings(base, tmp_path):
    with pytest.raises(UserError, match="name them by INITIAL_CHECKPOINT_PATH"):
        run(tmp_path / "a", config_of(base))
    for wrong in ({"lora_rank": 0}, {"lora_targets": ("kernel",)}, {"lora_alpha": 0.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            dataclasses.replace(config_of(base), **wrong)
    with pytest.raises(UserError, match="holds no adapters"):
        export(checkpoint_path=str(base[0]), output_dir=str(tmp_path / "b"), adapters_only=True)
