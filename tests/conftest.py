"""Settings of the whole suite; jax reads them when it is first imported."""

import gc
import importlib.util
import os
from pathlib import Path

import hypothesis
import pytest

# Meshes are tested on 8 virtual CPU devices. Most of the suite's time is LLVM's, which optimizes
# programs that run once on toy shapes: without it the suite takes a third less. XLA's own passes
# stay, and so do all optimizations in the processes that tests start, as users have them.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# PyTorch's threads wait for each other in a loop: on cores that other tests use, one does the same
# work of toy networks in a quarter of the CPU time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Compiled programs are kept between runs of the suite, and shared with the processes it starts.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# epath asks once in a process how to reach gs://, and TensorFlow's client finds no local server.
os.environ.setdefault("EPATH_USE_TF", "false")

# How long an example takes says more about the machine's other work than about the code.
hypothesis.settings.register_profile("sbs_jax", deadline=None)
hypothesis.settings.load_profile("sbs_jax")


def pytest_collection_modifyitems(items):
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if not missing:
        return
    reason = f"{' and '.join(missing)} not installed: pip install -e '.[parity]'"
    for item in items:
        if item.get_closest_marker("parity"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="module")
def _frozen_heap():
    """Garbage is not looked for in what earlier files left: a tenth of the suite's time."""
    gc.collect()
    gc.freeze()


_WITHOUT_RANK_PROMOTION = {
    *("models", "decoder", "t5gemma2", "decoding", "partitioning", "training"),
    *("programs", "evaluation", "experiments"),
    *("test_losses.py", "test_head_loss.py"),
}


@pytest.fixture(autouse=True, scope="module")
def _rank_promotion(request):
    """Networks, losses and steps broadcast on purpose only: (B,) against (B, S) is an error.

    For a whole file, so that what its fixtures have traced is not traced again.
    """
    if not _WITHOUT_RANK_PROMOTION & set(request.path.parts):
        yield
        return
    import jax

    with jax.numpy_rank_promotion("raise"):
        yield
