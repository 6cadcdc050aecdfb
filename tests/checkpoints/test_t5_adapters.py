"""Adapters of an encoder-decoder: on meshes, in lanes, saved alone, merged, and read by peft."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import traverse_util

from sbs_jax.checkpoints import folders, lora
from sbs_jax.checkpoints.loading import identify
from sbs_jax.errors import UserError
from sbs_jax.experiments.lanes import make_lane_step
from sbs_jax.models import costs
from sbs_jax.models.config import T5Config
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.programs.export import export
from sbs_jax.student import Student
from sbs_jax.training import optimizers, placement
from sbs_jax.training.step import Loss, make_train_step
from tests import toy
from tests.batches import random_batch
from tests.decoder.students import params_of, run

ADAPTERS = {"lora_rank": 2, "lora_alpha": 3.0, "lora_targets": ("query", "value", "wi_0")}
CONFIG = dataclasses.replace(toy.CONFIG, vocab_size=64, dropout_rate=0.0, **ADAPTERS)
TINY = T5Config(
    vocab_size=512,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=8,
    mlp_dim=32,
)
STEPS = 2


@pytest.fixture(scope="module")
def optimizer():
    return optimizers.freeze(optimizers.adamw(1e-2), (lora.FROZEN,))


def flat(params):
    return traverse_util.flatten_dict(jax.device_get(params), sep="/")


def trained(optimizer, *mesh):
    """Parameters before and after some steps on a mesh."""
    student = Student(CONFIG, make_mesh(*mesh, jax.devices()[: np.prod(mesh)]))
    abstract = placement.abstract_state(student, optimizer, 0)
    step = make_train_step(student.hidden, optimizer, Loss(), head=student.head)
    step = placement.jit_train_step(student, step, abstract)
    state = placement.create_state(student, student.init_params(0), optimizer, 0)
    before = flat(state.params)
    for number in range(STEPS):
        state, _ = step(state, random_batch(seed=number))
    return before, flat(state.params)


@pytest.fixture(scope="module")
def alone(optimizer):
    return trained(optimizer, 1, 1)


def test_adapters_alone_are_trained_the_same_on_a_mesh(optimizer, alone):
    before, after = alone
    for path, leaf in after.items():
        trains = path.rpartition("/")[2] in (lora.DOWN, lora.UP)
        assert np.array_equal(leaf, before[path]) != trains, path
        assert not trains or path.split("/")[-2] in ADAPTERS["lora_targets"]
    assert costs.num_params(CONFIG) == sum(leaf.size for leaf in after.values())
    for path, leaf in trained(optimizer, 2, 2)[1].items():
        np.testing.assert_allclose(leaf, after[path], rtol=1e-5, atol=1e-5, err_msg=path)


def test_lanes_train_what_separate_runs_train(optimizer, alone):
    student = Student(CONFIG, make_mesh(1, 1, jax.devices()[:1]))
    step = student.jit(jax.vmap(make_lane_step(student, optimizer, Loss()), in_axes=(0, None, 0)))
    lanes = [placement.create_state(student, student.init_params(0), optimizer, 0)] * 2
    state = jax.tree.map(lambda *leaves: np.stack(leaves), *lanes)
    for number in range(STEPS):
        state, _ = step(state, random_batch(seed=number), np.array([1.0, 3.0], np.float32))
    found = flat(state.params)
    differs = False
    for path, leaf in alone[1].items():
        np.testing.assert_allclose(found[path][0], leaf, rtol=1e-5, atol=1e-5, err_msg=path)
        differs |= not np.allclose(found[path][1], leaf, atol=1e-4)
    assert differs  # by the weight of rationales


@pytest.mark.slow
def test_peft_computes_what_the_merged_weights_compute(tmp_path):
    base = run(tmp_path / "base", TINY, steps=1)
    adapted = run(
        tmp_path / "adapted", dataclasses.replace(TINY, **ADAPTERS), steps=2, initial=base
    )
    source = identify(adapted)
    names = set(folders.read_info(source.folder)["digests"][folders.PARAMS])
    assert len(names) == 2 * 8  # A and B; query and value of three attentions, two MLPs
    assert source.config == TINY
    before, after = params_of(base, TINY), params_of(adapted, TINY)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert {path.split("/")[-2] for path in changed} == set(ADAPTERS["lora_targets"])

    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    options = {"checkpoint_path": str(adapted)}
    adapters = export(**options, output_dir=str(tmp_path / "adapters"), adapters_only=True)
    merged = export(**options, output_dir=str(tmp_path / "merged"))
    plain = export(checkpoint_path=str(base), output_dir=str(tmp_path / "plain"))
    x, y = torch.arange(40, 60)[None], torch.arange(70, 80)[None]

    def logits(folder, adapters=None):
        # In float64, so that what is compared is the weights and not the order of sums.
        network = transformers.T5ForConditionalGeneration.from_pretrained(folder).double()
        if adapters is not None:
            network = peft.PeftModel.from_pretrained(network, str(adapters)).double()
        with torch.no_grad():
            return network.eval()(input_ids=x, decoder_input_ids=y).logits.numpy()

    theirs = logits(plain, adapters)
    np.testing.assert_allclose(logits(merged), theirs, atol=1e-5)
    assert np.abs(theirs - logits(plain)).max() > 1e-4


def test_bad_settings():
    for wrong in ({"lora_rank": 0}, {"lora_targets": ("kernel",)}, {"scan_layers": True}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            dataclasses.replace(CONFIG, **wrong)
