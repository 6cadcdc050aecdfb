"""T5Gemma 2 against transformers' own class: a small random one with both kinds of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from sbs_jax.checkpoints.t5gemma2 import huggingface_sources, open_t5gemma2
from sbs_jax.decoding.greedy import greedy_decode
from sbs_jax.errors import UserError
from sbs_jax.models.t5gemma2.config import T5Gemma2Config
from sbs_jax.models.t5gemma2.network import T5Gemma2
from tests.t5gemma2 import support

TOLERANCE = 1e-4
BOS, EOS = 1, 2  # in the order of the file, where padding is 0; here EOS is 1
INPUTS = (21, 21, 30)  # tokens of each text; the sliding window has 7 positions
TARGETS = (7, 10, 17)


@pytest.fixture(scope="module")
def reference():
    return support.make()


@pytest.fixture(scope="module")
def opened(reference, tmp_path_factory):
    """The config and the parameters."""
    folder = tmp_path_factory.mktemp("reference")
    config, stored = open_t5gemma2(support.save(reference, folder), 0, EOS)
    whole = {path: tensor[(slice(None),) * len(tensor.shape)] for path, tensor in stored.items()}
    return config, traverse_util.unflatten_dict(whole, sep="/")


@pytest.fixture(scope="module")
def texts():
    """Three padded inputs, of which the first two are the same, and their targets."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(3, 133, (3, max(INPUTS)))
    targets = rng.integers(3, 133, (3, max(TARGETS)))
    inputs[1] = inputs[0]
    inputs[:, 4] = targets[:, 5] = support.EOI
    for ids, lengths in ((inputs, INPUTS), (targets, TARGETS)):
        ids[np.arange(ids.shape[1]) >= np.asarray(lengths)[:, None]] = 0
    return inputs, targets


def shifted(targets, start=0):
    return np.pad(targets, ((0, 0), (1, 0)), constant_values=start)[:, :-1]


@pytest.fixture(scope="module")
def losses(opened):
    """The mean over targets that are not 0, its gradients and the logits, by one program."""
    config, params = opened
    model = T5Gemma2(config)

    @jax.jit
    def compute(inputs, starts, targets, **segments):
        def loss(params):
            logits = model.apply({"params": params}, inputs, starts, **segments)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
            return -jnp.sum(chosen[..., 0], where=targets > 0) / jnp.sum(targets > 0), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    def of_rows(inputs, starts, targets, **segments):
        """Pads to three rows of 60 and 40 tokens."""
        ids = [in_rows(array, 60) for array in (inputs, segments.pop("encoder_segment_ids"))]
        outputs = {
            name: in_rows(array, 40)
            for name, array in {"starts": starts, "targets": targets, **segments}.items()
        }
        (value, logits), gradients = compute(ids[0], encoder_segment_ids=ids[1], **outputs)
        return value, traverse_util.flatten_dict(gradients, sep="/"), np.asarray(logits)

    return of_rows


def in_rows(ids, length):
    ids = np.asarray(ids)
    return np.pad(ids, ((0, 3 - ids.shape[0]), (0, length - ids.shape[1])))


@pytest.fixture(scope="module")
def separate(losses, texts):
    """What the texts give, one a row."""
    inputs, targets = texts
    own = {"decoder_segment_ids": targets > 0, "decoder_source_ids": targets > 0}
    segments = {"encoder_segment_ids": inputs > 0, **own}
    segments = {name: ids.astype(np.int32) for name, ids in segments.items()}
    return losses(inputs, shifted(targets), targets, **segments)


def assert_near(ours, wanted, tolerance, path):
    scale = np.abs(wanted).max()
    assert scale > 0, path
    np.testing.assert_allclose(ours, wanted, atol=tolerance * scale, rtol=0, err_msg=path)


def test_logits_loss_and_gradients_agree_with_transformers(reference, opened, texts, separate):
    import torch

    config, _ = opened
    inputs, targets = (torch.asarray(ids) for ids in texts)
    out = reference(
        input_ids=inputs,
        attention_mask=(inputs > 0).long(),
        decoder_input_ids=torch.asarray(shifted(texts[1], start=BOS)),
    )
    their_loss = torch.nn.functional.cross_entropy(
        out.logits.flatten(0, 1), targets.flatten(), ignore_index=0
    )
    reference.zero_grad()
    their_loss.backward()
    loss, gradients, logits = separate
    own_order = np.arange(config.vocab_size)
    own_order[[1, 2]] = 2, 1
    assert np.abs(logits).max() > 0.5  # the comparison says something
    real, theirs = texts[1] > 0, out.logits.detach().numpy()[..., own_order]
    logits = logits[:, : real.shape[1]]
    np.testing.assert_allclose(logits[real], theirs[real], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(loss, their_loss.item(), rtol=TOLERANCE)
    wanted = {
        name.replace("encoder.text_model.", "encoder."): parameter.grad
        for name, parameter in reference.named_parameters()
    }
    for path, source in huggingface_sources(config).items():
        gradient = wanted[source.name].numpy()
        if path == "token_embedder/embedding":
            gradient = gradient[own_order]
        assert_near(gradients[path], gradient.T if source.transposed else gradient, TOLERANCE, path)


def test_packed_rows_and_shared_inputs_equal_separate_texts(losses, texts, separate):
    """One row holds two inputs, each with EOS, and three targets, two of them of one input."""
    inputs, targets = texts
    once = [np.append(inputs[row, : INPUTS[row]], 1) for row in (0, 2)]
    real = targets > 0
    loss, gradients, logits = losses(
        np.concatenate(once)[None],
        shifted(targets)[real][None],
        targets[real][None],
        encoder_segment_ids=np.repeat([1, 2], [len(text) for text in once])[None],
        decoder_segment_ids=np.repeat([1, 2, 3], TARGETS)[None],
        decoder_source_ids=np.repeat([1, 1, 2], TARGETS)[None],
    )
    np.testing.assert_allclose(loss, separate[0], rtol=1e-5)
    alone = separate[2][:, : real.shape[1]][real]
    np.testing.assert_allclose(logits[0, : real.sum()], alone, atol=1e-4)
    for path, gradient in separate[1].items():
        assert_near(gradients[path], gradient, 1e-5, path)


def test_greedy_decoding_with_a_cache_is_that_of_generate(reference, opened, texts):
    import torch

    config, params = opened
    inputs = torch.asarray(texts[0][1:])
    with torch.no_grad():
        theirs = reference.generate(
            inputs,
            attention_mask=(inputs > 0).long(),
            decoder_start_token_id=BOS,
            max_new_tokens=20,
            do_sample=False,
        ).numpy()[:, 1:]
    ours = np.asarray(greedy_decode(T5Gemma2(config), params, texts[0][1:], max_decode_len=20))
    assert len(set(ours.flatten().tolist())) > 3  # it says something
    np.testing.assert_array_equal(np.where(ours == 1, EOS, ours)[:, : theirs.shape[1]], theirs)


def test_what_no_t5gemma_2_has_is_refused():
    for field, value, said in (
        ("num_decoder_layers", 0, "T5Gemma2Config.num_decoder_layers = 0 must be a positive"),
        ("logits_via_embedding", False, "must be True in a T5Gemma 2"),
        ("attention_softcap", 50.0, "must be None in a T5Gemma 2"),
        ("bos_id", 600, "must be an id below vocab_size = 512"),
    ):
        with pytest.raises(UserError, match=said):
            T5Gemma2Config(**{"vocab_size": 512, field: value})
