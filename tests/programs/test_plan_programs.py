"""The programs that a plan compiles are those that an evaluation and an inference choose."""

import jax
import pytest

from sbs_jax.data.batching import Batching
from sbs_jax.errors import UserError
from sbs_jax.inference.loader import Loader
from sbs_jax.inference.programs import Strategy
from sbs_jax.programs import plan_programs
from sbs_jax.programs.assembly import assemble
from sbs_jax.programs.plan_answers import answering
from tests.evaluation import toy
from tests.programs.tiny import config_of, one_device


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    batching = Batching(toy.LENGTHS, batch_size=12, padding_free=True)
    config = config_of(tmp_path_factory.mktemp("run"), batching=batching)
    return assemble(config, mesh=one_device(), writes=False)


def test_an_evaluation_has_rows_whatever_training_has(run):
    (step,) = plan_programs.losses(run).values()
    assert step.name == "eval step of 12 rows"
    assert step.arguments[1]["encoder_input_tokens"].shape == (12, toy.LENGTHS["inputs"])
    assert step.model_flops() > 0
    decoding = plan_programs.decoding(run)
    assert [part.name for part in decoding.values()] == [
        "encoding of 12 inputs",
        "insertion of 3 encoded inputs into 12 slots",
        f"decoding of answers, {toy.LENGTHS['targets']} tokens in 12 slots",
    ]
    assert decoding["encode"].model_flops() > 0 == decoding["insert"].model_flops()


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        (
            {},
            [
                *("encode-labels", "insert-labels", "advance-labels"),
                *("encode-rationales", "insert-rationales", "advance-rationales"),
            ],
        ),
        (
            {"candidates": "choices"},
            ["rank", "encode-rationales", "insert-rationales", "advance-rationales"],
        ),
        (
            {"candidates": ["yes", "no"], "strategy": Strategy("beam", num_beams=2)},
            ["rank", "search"],
        ),
    ],
)
def test_an_inference_has_the_strategy_that_it_is_given(run, asked, parts):
    found = answering(run, Loader("plan", batch_size=4, **asked))
    assert list(found) == parts
    if "search" in found:
        assert found["search"].name == "search for 4 rationales with 2 beams"
        assert found["rank"].name == "ranking of 2 labels of 4 inputs"


def test_inferences_that_cannot_be_compiled_are_refused(run):
    with pytest.raises(UserError, match="ENGINE = 'ctranslate2' is not compiled by XLA"):
        answering(run, Loader("plan", engine="ctranslate2"))
    with pytest.raises(UserError, match="declares no labels"):
        answering(run, Loader("plan", candidates="task"))


def test_weights_that_answer_have_the_dtype_of_the_products(run):
    found = answering(run, Loader("plan", inference_dtype="bfloat16"))
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(found["encode-labels"].params)}
    assert dtypes == {"float32", "bfloat16"}
