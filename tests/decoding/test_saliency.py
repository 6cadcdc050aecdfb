"""Saliency is what finite differences say, and what PyTorch's gradients say."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sbs_jax.decoding.saliency import input_saliency
from sbs_jax.models.network import Transformer
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from tests.hf_models import hf_model, torch
from tests.t5_weights import VERSIONS, our_model, padded_batch, shift_right


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("prompt", [(), (7, 8, 9)], ids=["start", "prompt"])
def test_it_is_gradient_times_input(version, prompt):
    config, params = our_model(version, "uneven")
    inputs, targets = padded_batch("uneven")
    prompt = np.array(prompt, np.int32)
    model = hf_model(version, "uneven")
    embedded = model.shared(torch.tensor(inputs, dtype=torch.long)).detach().requires_grad_()
    fed = np.concatenate([np.tile(prompt, (len(targets), 1)), targets], axis=1)
    logits = model(
        inputs_embeds=embedded,
        attention_mask=torch.tensor(inputs > 0),
        decoder_input_ids=torch.tensor(shift_right(fed), dtype=torch.long),
    ).logits[:, prompt.size :]
    chosen = logits.log_softmax(-1).gather(2, torch.tensor(targets, dtype=torch.long)[..., None])
    (chosen[..., 0] * torch.tensor(targets > 0)).sum().backward()
    expected = (embedded.grad * embedded).sum(-1).detach().numpy() * (inputs > 0)
    found = input_saliency(Transformer(config), params, inputs, targets, decoder_prompt=prompt)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=1e-4)
    assert not np.asarray(found)[inputs == 0].any()


@pytest.mark.parametrize(("data", "model"), [(8, 1), (4, 2)])
def test_any_mesh_gives_the_same(data, model):
    config, params = our_model("v1.1", "plain")
    inputs, targets = padded_batch("plain", rows=8)
    expected = input_saliency(Transformer(config), params, inputs, targets)
    student = Student(config, make_mesh(data, model))
    run = student.jit(lambda *args: input_saliency(student.model, *args))
    rows = NamedSharding(student.mesh, PartitionSpec("data"))
    found = run(
        jax.device_put(params, student.param_shardings),
        *jax.device_put((inputs, targets), rows),
    )
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
