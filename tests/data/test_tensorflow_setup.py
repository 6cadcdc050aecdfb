import importlib.util
import os
import subprocess
import sys

import pytest


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


def test_numpy_modules_need_no_tensorflow():
    done = run(
        "import sys, sbs_jax.parsers, sbs_jax.metrics\n"
        "from sbs_jax.data import batching, packing, records, release, settings\n"
        "assert not {'tensorflow', 'seqio'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_after_tensorflow_does_not_end_the_process():
    """It does where TensorFlow is imported first: a segmentation fault (triton 3.7.1)."""
    done = run("from sbs_jax.data.tensorflow_setup import tf\nimport triton\nprint('alive')")
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
