"""CTranslate2 in the place of our programs: the same tokens and scores in float32."""

import dataclasses

import numpy as np
import pytest

from sbs_jax.checkpoints import ctranslate2_weights
from sbs_jax.errors import UserError
from sbs_jax.inference.ctranslate2_programs import CTranslate2Programs
from sbs_jax.inference.loader import Loader
from sbs_jax.inference.programs import Strategy
from sbs_jax.inference.prompting import PromptingOverrides
from sbs_jax.partitioning.mesh import MeshSettings
from tests.inference import toy

pytest.importorskip("ctranslate2")
TEXTS = toy.texts(9)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return toy.write_model_dir(tmp_path_factory.mktemp("student") / "run")


def load(model_dir, engine="ctranslate2", **options):
    options = {"batch_size": 8, "mesh": MeshSettings(data_parallel=8)} | options
    return Loader(str(model_dir), engine=engine, **options).load()


def test_float32_answers_are_those_of_our_programs(model_dir):
    ours, theirs = load(model_dir, "jax"), load(model_dir)
    for one, other in zip(ours.rationales(TEXTS), theirs.rationales(TEXTS), strict=True):
        assert one == other
    for one, other in zip(ours.labels(TEXTS), theirs.labels(TEXTS), strict=True):
        assert one.label == other.label
        assert one.truncated == other.truncated
        # CTranslate2 adds up the scores of greedy outputs less exactly than those of candidates.
        assert np.log(other.confidence) == pytest.approx(np.log(one.confidence), rel=1e-3)
    own, shared = {"candidates": toy.LABELS}, toy.LABELS
    for given in (own, {}):
        found = [
            predictor.labels(TEXTS, num_best=3, **given)
            for predictor in (ours, theirs)
            if given or predictor.closed_set is None
        ]
        for one, other in zip(*found, strict=True):
            assert dict(one.alternatives) == pytest.approx(dict(other.alternatives), rel=1e-3)
    closed = load(model_dir, candidates=list(shared)).labels(TEXTS, num_best=3)
    for one, other in zip(ours.labels(TEXTS, shared, num_best=3), closed, strict=True):
        assert dict(one.alternatives) == pytest.approx(dict(other.alternatives), rel=1e-4)


@pytest.mark.parametrize("method", ["joint", "sbs"])
def test_the_decoders_prompt_and_joint_students(model_dir, method):
    options = {"prompting": PromptingOverrides(method, prefix_side="decoder")}
    ours, theirs = load(model_dir, "jax", **options), load(model_dir, **options)
    for one, other in zip(ours.labels(TEXTS), theirs.labels(TEXTS), strict=True):
        assert (one.label, one.rationale) == (other.label, other.rationale)
        assert one.confidence == pytest.approx(other.confidence, rel=1e-3)


def test_a_stream_answers_what_joins_it(model_dir):
    predictor = load(model_dir)
    queries = [predictor.ask_rationale(text) for text in TEXTS]
    waiting = queries[8:]

    def more(count):
        taken, waiting[:] = waiting[:count], waiting[count:]
        return taken

    answers = dict(pair for ended in predictor.stream(queries[:8], more) for pair in ended)
    assert [answers[number] for number in range(9)] == predictor.rationales(TEXTS)


def test_int8_gives_nearly_the_same_probabilities(model_dir):
    exact = load(model_dir).labels(TEXTS, toy.LABELS, num_best=3)
    rounded = load(model_dir, inference_dtype="int8")
    assert rounded.answers_depend_on()["INFERENCE_DTYPE"] == "int8"
    assert rounded.answers_depend_on()["ENGINE"] == "ctranslate2"
    for one, other in zip(exact, rounded.labels(TEXTS, toy.LABELS, num_best=3), strict=True):
        assert dict(other.alternatives) == pytest.approx(dict(one.alternatives), abs=0.2)
    assert any(
        dict(one.alternatives) != dict(other.alternatives)
        for one, other in zip(exact, rounded.labels(TEXTS, toy.LABELS, num_best=3), strict=True)
    )


def test_v1_0_networks_have_tied_and_scaled_heads():
    config = dataclasses.replace(
        toy.CONFIG, mlp_activations=("relu",), logits_via_embedding=True, num_decoder_layers=2
    )
    from sbs_jax.decoding.ranking import rank_candidates
    from sbs_jax.models.network import Transformer

    model = Transformer(config)
    import jax

    rows = np.random.default_rng(0).integers(3, 400, (4, 12)).astype(np.int32)
    params = model.init(jax.random.key(0), rows, rows)["params"]
    params = jax.tree.map(
        lambda leaf: getattr(leaf, "value", leaf), params, is_leaf=lambda x: hasattr(x, "value")
    )
    prompts = {"label": [], "rationale": []}
    programs = CTranslate2Programs(params, config, "float32", prompts, 8, Strategy())
    candidates = np.array([[5, 6, 1], [7, 1, 0]], np.int32)
    np.testing.assert_allclose(
        programs.rank_shared(None, {"tokens": rows}, candidates),
        rank_candidates(model, params, rows, candidates),
        rtol=1e-5,
    )


def test_mistakes(model_dir, tmp_path):
    with pytest.raises(UserError, match="INFERENCE_DTYPE = 'int8' is unknown to ENGINE = 'jax'"):
        load(model_dir, "jax", inference_dtype="int8")
    with pytest.raises(UserError, match="ENGINE = 'onnx' is unknown; there are jax, ctranslate2"):
        load(model_dir, "onnx")
    with pytest.raises(UserError, match="decodes rationales greedily"):
        load(model_dir, strategy=Strategy(decoding="sample"))
    with pytest.raises(UserError, match="computes no gradients"):
        load(model_dir).saliency(TEXTS[0], "yes")
    config = dataclasses.replace(toy.CONFIG, mlp_activations=("linear",))
    with pytest.raises(UserError, match="cannot run mlp_activations"):
        ctranslate2_weights.save(tmp_path, {}, config, "int8")
