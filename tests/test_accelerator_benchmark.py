"""benchmarks/accelerator.py in miniature, on a CPU: what it keeps, and what a second call does."""

import fcntl
import json
import threading
import types

import numpy as np
import pytest

from tests import benchmarks
from tests.batches import random_batch
from tests.hf_weights import params_to_huggingface
from tests.paths import ROOT


@pytest.fixture(scope="module")
def benchmark():
    return benchmarks.load("accelerator")


@pytest.fixture
def flags(benchmark, tmp_path):
    arrays = {
        f"{side}/{number}/{name}": array
        for side in ("encoder", "decoder")
        for number in range(benchmark.BATCHES)
        for name, array in random_batch(seed=number).items()
    }
    for number in range(benchmark.BATCHES):  # each target is about the input of its number
        source = arrays[f"decoder/{number}/decoder_segment_ids"]
        arrays[f"decoder/{number}/decoder_source_ids"] = source
    np.savez(tmp_path / "batches.npz", **arrays)
    return ["--tiny", f"--data={tmp_path / 'batches.npz'}", f"--json={tmp_path / 'found.json'}"]


class Case:
    """A process that has ended with `found`, or with None goes on until it is killed."""

    returncode = 1

    def __init__(self, found):
        self.found, self.killed = found, False

    def poll(self):
        return None if self.found is None else self.returncode

    def kill(self):
        self.killed = True

    def wait(self):
        assert self.killed


def test_every_case_is_kept_and_not_measured_again(benchmark, flags, monkeypatch, tmp_path, capsys):
    begun = {}

    def begin_apart(arguments, name, lock):
        log = benchmark.log_of(arguments, name)
        log.parent.mkdir(exist_ok=True)
        found = {"seconds_per_step": 0.5, "model_tflops_per_second": 40.0, "peak_bytes": 2**30}
        if name == "matrix rate":
            found = {"tflops_per_second": 100.0, "device": "Abacus"}
        if name.startswith("peer"):
            found = None if name == "peer base" else "no torch"
            log.write_text("Traceback …\nno torch\n")
        else:
            log.write_text(f"a warning\nresult: {json.dumps(found)}\n")
        begun[name] = Case(found)
        return begun[name]

    monkeypatch.setattr(benchmark, "begin_apart", begin_apart)
    flags += ["--least_seconds=0", "--minutes=0.02"]
    assert benchmark.main([*flags, "--only=rate|(train|peer) base$"]) == 0
    assert list(begun) == ["matrix rate", "train base", "peer base"]
    # What did not get ready in time is left for another call.
    assert begun["peer base"].killed
    kept = json.loads((tmp_path / "found.json").read_text())
    assert list(kept) == ["matrix rate", "train base"]
    printed = capsys.readouterr().out
    assert "Abacus: 100.0 TFLOP/s" in printed
    assert "| train base | 500 | – | – | 40% | 1.00 GiB, – |" in printed
    begun.clear()
    assert benchmark.main([*flags, "--only=rate|train base$|peer small"]) == 0
    assert list(begun) == ["peer small"]
    assert "| peer small | failed: no torch |" in capsys.readouterr().out


def test_a_case_is_measured_alone(benchmark, tmp_path):
    """Others that compile, or are measured, keep it waiting; then it keeps them waiting."""
    path = tmp_path / "lock"
    with path.open("a") as first, path.open("a") as second:
        fcntl.flock(first, fcntl.LOCK_SH)
        fcntl.flock(second, fcntl.LOCK_SH)
        thread = threading.Thread(target=benchmark.alone, args=[types.SimpleNamespace(lock=first)])
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        fcntl.flock(second, fcntl.LOCK_UN)
        thread.join()
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_without_time_nothing_begins(benchmark, flags, tmp_path, capsys):
    assert benchmark.main([*flags, "--minutes=0.1"]) == 0
    assert "no time left for matrix rate" in capsys.readouterr().out
    assert not (tmp_path / "found.json").exists()


def test_without_batches_a_sentence(benchmark, tmp_path, capsys):
    assert benchmark.main([f"--data={tmp_path / 'none.npz'}"]) == 1
    assert "none.npz: is not there; --prepare writes it" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        *("matrix rate", "train base remat=full", "decode base", "lanes 2"),
        *("train smollm2-135m side=decoder", "ctranslate2 decode base", "local teacher"),
    ],
)
def test_a_case_on_a_cpu(benchmark, flags, tmp_path, case):
    assert benchmark.main([*flags, f"--only=^{case}$"]) == 0
    (row,) = json.loads((tmp_path / "found.json").read_text()).values()
    assert "failed" not in row, row
    if case.startswith("train"):
        assert row["tokens_per_second"] > row["examples_per_second"] > 0
        assert row["planned_peak_bytes"] > 0
    if case == "local teacher":
        assert row["written_tokens"] == 4 * 8


@pytest.mark.slow
@pytest.mark.parity
def test_the_peer_s_decoder_has_the_loss_of_ours(benchmark, monkeypatch):
    """The same weights, the same texts: `pad_texts` takes a batch apart as our network reads it."""
    import torch

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import jax
    from published_peer import pad_texts, peer_decoder

    from sbs_jax.partitioning.mesh import make_mesh
    from sbs_jax.student import Student

    config, _ = benchmark.decoder_network("smollm2-135m", True, dtype="float32")
    batch = random_batch(seed=1)
    batch["decoder_source_ids"] = batch["decoder_segment_ids"]
    segments = batch["encoder_segment_ids"]
    last = (segments > 0) & (segments != np.roll(segments, -1, axis=1))
    batch["encoder_input_tokens"][last] = 1  # EOS, which ends an input and is not read
    student = Student(config, make_mesh(devices=jax.devices()[:1]))
    params = student.init_params(0)
    logits = student.apply(params, batch, None)
    trained = batch["decoder_target_parts"] > 0
    logs = jax.nn.log_softmax(logits)
    ours = -np.take_along_axis(np.array(logs), batch["decoder_target_tokens"][..., None], -1)
    model = peer_decoder(config, "eager").eval()
    state = params_to_huggingface(jax.device_get(params), config)
    model.load_state_dict({n: torch.tensor(a) for n, a in state.items()}, strict=False)
    model.tie_weights()
    with torch.no_grad():
        theirs = model(**pad_texts(batch)).loss
    np.testing.assert_allclose(float(theirs), ours[..., 0][trained].mean(), rtol=1e-5)
