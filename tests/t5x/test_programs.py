"""T5X's programs on our gin files, as a user calls them."""

import json
import os
import subprocess
import sys

import pytest

from sbs_jax.configuration import reader
from tests.release_layout import write_release

pytestmark = pytest.mark.t5x

TINY = """
from __gin__ import dynamic_registration
from t5x.examples.t5 import network
network.T5Config:
  vocab_size = 512
  dtype = 'float32'
  emb_dim = 16
  num_heads = 2
  num_encoder_layers = 1
  num_decoder_layers = 1
  head_dim = 8
  mlp_dim = 16
"""


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5x")
    write_release(folder / "release")
    (folder / "tiny.gin").write_text(TINY)
    # One device; and the tests' own folder is not where Python looks first.
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}

    def run(program, file, **macros):
        macros = {"DATA_DIR": str(folder / "release"), "VOCABULARY_SIZE": 512} | macros
        flags = [
            f"--gin.{name.replace('__', '.')}={json.dumps(value)}" for name, value in macros.items()
        ]
        done = subprocess.run(
            [sys.executable, "-m", program, f"--gin_search_paths={reader.gin_folder()},{folder}",
             f"--gin_file={file}", "--gin_file=tiny.gin", *flags],
            cwd=folder, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    run.folder = folder
    return run


@pytest.mark.slow
def test_training_going_on_and_inference(call):
    model_dir = call.folder / "run"
    train = {
        "MIXTURE_OR_TASK_NAME": "svamp_sbs",
        "MODEL_DIR": str(model_dir),
        "RATIONALE_WEIGHT": 0.5,
        "TASK_FEATURE_LENGTHS": {"inputs": 96, "targets": 64},
        "BATCH_SIZE": 4,
        "NUM_MICROBATCHES": 2,
        "EVAL_PERIOD": 2,
        "EVAL_STEPS": 1,
        "EVALUATOR_NUM_EXAMPLES": 4,
        "utils__SaveCheckpointConfig__period": 2,
    }
    said = call("t5x.train", "t5x/finetune_sbs.gin", TRAIN_STEPS=2, **train)
    assert "label_loss=" in said and "rationale_loss=" in said
    assert "svamp_sbs/accuracy at step 2" in said
    said = call("t5x.train", "t5x/finetune_sbs.gin", TRAIN_STEPS=4, **train)
    assert "Training for 2 steps" in said
    assert {f"checkpoint_{step}" for step in (0, 2, 4)} <= {p.name for p in model_dir.iterdir()}

    ready = {
        "MIXTURE_OR_TASK_NAME": "svamp_standard",
        "CHECKPOINT_PATH": str(model_dir / "checkpoint_4"),
    }
    output = call.folder / "predictions"
    call(
        "t5x.infer",
        "t5x/infer_sbs.gin",
        TASK_FEATURE_LENGTHS={"inputs": 96, "targets": 8},
        INFER_OUTPUT_DIR=str(output),
        **ready,
    )
    (file,) = output.glob("svamp_standard-predict.jsonl-00000-of-00001")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 12
    assert all(line["inputs"]["inputs_pretokenized"].startswith("predict: ") for line in lines)
    output = call.folder / "evaluation"
    said = call("t5x.eval", "t5x/eval_sbs.gin", EVAL_OUTPUT_DIR=str(output), **ready)
    assert "svamp_standard/accuracy at step 4" in said


@pytest.mark.slow
def test_a_data_set_is_no_task(call):
    with pytest.raises(AssertionError, match=r"svamp' is a data set.*svamp_sbs"):
        call(
            "t5x.train",
            "t5x/finetune_sbs.gin",
            MIXTURE_OR_TASK_NAME="svamp",
            MODEL_DIR=str(call.folder / "other"),
            TRAIN_STEPS=1,
        )
