import importlib
import importlib.util
import os
import subprocess
import sys

import pytest

from sbs_jax.errors import UserError
from tests.paths import ROOT


def run(code):
    env = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


def test_tensorflow_comes_in_silence_and_without_gpus():
    done = run(
        "import sys; print('before', file=sys.stderr)\n"
        "from sbs_jax.data.tensorflow_setup import seqio, tf\n"
        "assert not tf.config.get_visible_devices('GPU')\n"
        "print(sum(tf.data.Dataset.range(4).as_numpy_iterator()))\n"
        "print('after', file=sys.stderr)"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "6\n", "before\nafter\n")


def test_what_is_no_log_line_stays_visible():
    code = (
        "import os, sys, types\n"
        "class Loud:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'tensorflow':\n"
        "            os.write(2, b'I0000 00:00 noise\\nsomething else\\n')\n"
        "            {}\n"
        "sys.meta_path.insert(0, Loud())\n"
        "import sbs_jax.data.tensorflow_setup\n"
    )
    done = run(code.format("pass"))
    assert (done.returncode, done.stderr) == (0, "something else\n")
    done = run(code.format("raise ImportError('broken')"))
    assert done.returncode == 1
    assert done.stderr.startswith("I0000 00:00 noise\nsomething else\nTraceback")


def test_without_it_a_sentence_says_what_is_missing(monkeypatch):
    for name in ("tensorflow", "sbs_jax.data.tensorflow_setup"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "sbs_jax.data.tensorflow_setup")
    with pytest.raises(UserError, match="need the package tensorflow, which is not installed"):
        importlib.import_module("sbs_jax.data.tensorflow_setup")


def test_numpy_modules_need_no_tensorflow():
    done = run(
        "import sys, sbs_jax.parsers, sbs_jax.metrics\n"
        "from sbs_jax.data import batching, packing, records, release, settings\n"
        "assert not {'tensorflow', 'seqio'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


TRAIN = """
import json, sys
import sbs_jax.train
fields = lambda n: {"input": f"{n} and 1", "label": str(n + 1), "rationale": "It is one more."}
rows = [fields(n) for n in range(30)]
open("train.jsonl", "w").writelines(json.dumps(row) + "\\n" for row in rows)
values = ["TRAIN_FILE='train.jsonl'", "MODEL_DIR='run'", "TRAIN_STEPS=1", "VOCABULARY_SIZE=400"]
values += ["TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 32}"]
values += ["EXAMPLES_PER_BATCH=4", "EVAL_SPLITS=[]"]
files = ["models/quickstart.gin", "optimizers/adamw.gin", "tasks/your_data.gin", "runs/train.gin"]
arguments = [f"--gin_file={name}" for name in files] + [f"--gin.{value}" for value in values]
code = sbs_jax.train.main(arguments)
assert code == 0, code
assert not {"tensorflow", "seqio", "tensorflow_datasets"} & set(sys.modules)
import seqio
assert seqio.get_mixture_or_task("your_data_sbs").output_features["part"]
assert "sbs_jax.data.tensorflow_setup" in sys.modules
"""


def test_own_files_are_trained_without_tensorflow_and_seqio_still_finds_the_tasks(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_after_tensorflow_does_not_end_the_process():
    """It does where TensorFlow is imported first: a segmentation fault (triton 3.7.1)."""
    done = run("from sbs_jax.data.tensorflow_setup import tf\nimport triton\nprint('alive')")
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
