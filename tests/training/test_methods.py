"""Each file of gin/methods: its targets are the paper's, and its loss is the formula, in numpy."""

import numpy as np
import optax
import pytest

from sbs_jax.configuration import config as config_lib
from sbs_jax.data import pipeline, registration, registry
from sbs_jax.data.resolving import TaskChoice, resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.training.optimizers import Optimizer
from sbs_jax.training.state import create_state
from sbs_jax.training.step import Loss, make_train_step

NAME = "formulas_toy"
LENGTHS = {"inputs": 96, "targets": 64}
VOCAB, WIDTH, COUNT = 400, 8, 6
FIELDS = (
    "rationale", "second_rationale", "candidate", "evaluation", "expression", "backward_question",
    "backward_rationale",
)  # fmt: skip

# For each file: the texts (input → what each part writes) of an example e, and the loss of means m.
METHODS = {
    "several_teachers": (
        lambda e: {
            f"predict: {e['input']}": {"label": e["label"]},
            f"explain: {e['input']}": {"rationale": e["rationale"]},
            f"explain again: {e['input']}": {"second_rationale": e["second_rationale"]},
        },
        lambda m: m["label"] + 0.5 * m["rationale"] + 0.5 * m["second_rationale"],
    ),
    "self_evaluation": (
        lambda e: {
            f"predict: {e['input']}": {"label": e["label"]},
            f"explain: {e['input']}": {"rationale": e["rationale"]},
            f"evaluate: {e['input']} explanation: {e['candidate']}": {
                "evaluation": e["evaluation"]
            },
        },
        lambda m: m["label"] + m["rationale"] + m["evaluation"],
    ),
    "mixed": (
        lambda e: {
            f"predict: {e['input']}": {"label": e["label"]},
            f"explain: {e['input']}": {"rationale": e["rationale"]},
            f"calculate: {e['input']}": {"expression": e["expression"]},
        },
        lambda m: m["label"] + m["rationale"] + m["expression"],
    ),
    "reverse": (
        lambda e: {
            f"predict: {e['input']}": {"label": f"{e['rationale']} Answer: {e['label']}"},
            f"turn around: {e['input']}": {"backward_question": e["backward_question"]},
            f"explain backwards: {e['backward_question']}": {
                "backward_rationale": e["backward_rationale"]
            },
        },
        lambda m: (m["label"] + m["backward_question"] + m["backward_rationale"]) / 3,
    ),
    "cascaded": (
        lambda e: {
            f"predict: {e['input']} explanation: {e['rationale']}": {"label": e["label"]},
            f"explain: {e['input']}": {"rationale": e["rationale"]},
        },
        lambda m: m["rationale"] + m["label"],
    ),
    "answer_first": (
        lambda e: {
            f"predict: {e['input']}": {"label": f"{e['label']} explanation: {e['rationale']}"}
        },
        lambda m: m["label"],
    ),
    "weighted_joint": (
        lambda e: {
            f"predict: {e['input']}": {
                "rationale": e["rationale"],
                "label": f"Answer: {e['label']}",
            }
        },
        lambda m: m["label"] + 0.8 * m["rationale"],
    ),
}


def load(split, settings):
    del split, settings
    examples = []
    for i in range(COUNT):
        # Lengths differ, so that means over tokens are none over examples.
        texts = {name: f"{name} {i}" + f" and {i} more" * (i % 3) for name in FIELDS}
        texts |= {"llm_rationale": texts["rationale"], "llm_label": f"{i}"}
        examples.append({"id": f"{i}", "input": f"question {i}", "label": f"{i}", **texts})
    return examples


if not registry.is_dataset(NAME):
    registration.register_dataset(NAME, load=load, own_validation=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("vocabulary"))


def macros_of(name):
    config = config_lib.read([f"methods/{name}.gin"])
    return {key: macro.value for key, macro in config.macros.items()}


def apply(params, batch, dropout_rng):
    del dropout_rng
    return params["embedding"][batch["decoder_input_tokens"]] @ params["head"]


def written(task, batch):
    """By the text of the encoder what stands in each part of its target; and the codes' names."""
    decode = task.vocabulary.tokenizer.decode
    names, found = task.method.names, {}
    for row in range(len(batch["decoder_target_tokens"])):
        for segment in range(1, batch["decoder_segment_ids"][row].max(initial=0) + 1):
            inputs = batch["encoder_input_tokens"][row][
                batch["encoder_segment_ids"][row] == segment
            ]
            mine = batch["decoder_segment_ids"][row] == segment
            tokens = batch["decoder_target_tokens"][row][mine]
            codes = batch["decoder_target_parts"][row][mine]
            found[decode(inputs.tolist())] = {
                names[code - 1]: decode(tokens[codes == code].tolist())
                for code in dict.fromkeys(codes.tolist())
            }
    return found


def means(params, batch, names):
    """The mean cross-entropy of each part over its tokens in the batch, in numpy."""
    logits = params["embedding"][batch["decoder_input_tokens"]] @ params["head"]
    logits = logits.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_p, batch["decoder_target_tokens"][..., None], -1)[..., 0]
    found = {}
    for code, name in enumerate(names, start=1):
        mine = batch["decoder_target_parts"] == code
        found[name] = -chosen[mine].mean() if mine.any() else 0.0
    return found


@pytest.mark.parametrize("name", METHODS)
def test_targets_and_loss(folder, name):
    macros = macros_of(name)
    texts, formula = METHODS[name]
    settings = DataSettings(
        model_dir=folder, vocabulary_size=VOCAB, parts=macros.get("PARTS"),
        rationale_prefix="explain: ",
    )  # fmt: skip
    task = resolve_task(TaskChoice(NAME, method=macros["METHOD"]), settings)
    records = pipeline.load_records(task, "train", LENGTHS)
    (batch,) = pipeline.EvalBatches(records, 24, LENGTHS)
    expected = {}
    for example in load("train", settings):
        expected |= texts(example)
    assert written(task, batch) == expected

    rng = np.random.default_rng(0)
    params = {
        "embedding": rng.normal(size=(VOCAB, WIDTH)).astype(np.float32),
        "head": rng.normal(size=(WIDTH, VOCAB)).astype(np.float32),
    }
    optimizer = Optimizer(optax.sgd(0.1), lambda step: 0.1)
    loss = Loss(rationale_weight=macros.get("RATIONALE_WEIGHT", 1.0)).of(task.method)
    step = make_train_step(apply, optimizer, loss)
    _, metrics = step(create_state(params, optimizer, 0), batch)
    found = means(params, batch, task.method.names)
    assert float(metrics["loss"]) == pytest.approx(formula(found), rel=1e-5)
    for part, mean in found.items():
        assert float(metrics[f"{part}_loss"]) == pytest.approx(mean, rel=1e-5)


def test_every_file_of_methods_is_held_to_its_formula():
    from sbs_jax.configuration import reader

    shipped = {file for file in reader.shipped_files() if file.startswith("methods/")}
    assert shipped == {f"methods/{name}.gin" for name in METHODS}
