"""The record of a run."""

import json

import numpy as np
import pytest

from sbs_jax.errors import UserError
from sbs_jax.training.writers import MetricsWriter
from tests import disks
from tests.training.events import events_of


def lines_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def write_steps(path, steps, *, after_step=None, **options):
    with MetricsWriter(path, **options) as writer:
        writer.begin(after_step)
        for step in steps:
            writer.write(step, "train", {"loss": 1.0 / step, "rationale_loss": None})


def test_a_line_for_each_call_at_once(tmp_path):
    writer = MetricsWriter(tmp_path / "new" / "run", tensorboard=False)
    writer.begin(None)
    writer.write(1, "train", {"loss": 0.5, "label_tokens": 7, "rationale_loss": None})
    writer.write(1, "validation", {"label_accuracy": np.float32(0.1)})
    # Not closed: flushed.
    text = (tmp_path / "new" / "run" / "metrics.jsonl").read_text()
    assert text == (
        '{"step": 1, "split": "train", "loss": 0.5, "label_tokens": 7, "rationale_loss": null}\n'
        '{"step": 1, "split": "validation", "label_accuracy": 0.100000001}\n'
    )
    writer.close()


def test_numbers(tmp_path):
    """float32 comes back exactly; what is not finite is null, so every reader can parse it."""
    values = np.random.default_rng(0).standard_normal(100).astype(np.float32) * 1e-3
    with MetricsWriter(tmp_path) as writer:
        writer.begin(None)
        writer.write(1, "train", {str(i): v for i, v in enumerate(values)})
        writer.write(2, "train", {"a": float("nan"), "b": float("inf"), "c": -float("inf")})
    first, second = lines_of(tmp_path)
    assert [np.float32(first[str(i)]) for i in range(100)] == list(values)
    assert second == {"step": 2, "split": "train", "a": None, "b": None, "c": None}
    for value in first.values():
        assert not isinstance(value, float) or len(f"{value!r}") <= 16


def test_goes_on_behind_the_restored_step(tmp_path):
    write_steps(tmp_path, range(1, 8))
    (tmp_path / ".metrics.jsonl.abc.tmp").write_text("left by a kill")
    write_steps(tmp_path, [5, 6], after_step=4)
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


@pytest.mark.parametrize("torn", ['{"step": 4, "spl', '{"step": 4, "split": "train"}', "\0\0\0\n"])
def test_drops_a_torn_last_line(tmp_path, torn):
    """Without its line end a line may lack more than that, so it is done again."""
    write_steps(tmp_path, range(1, 4))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    write_steps(tmp_path, [4], after_step=9)
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 4]


def test_a_line_of_something_else_is_not_touched(tmp_path):
    write_steps(tmp_path, [1])
    text = "my notes\n" + (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1: not a line of metrics"):
        write_steps(tmp_path, [2], after_step=1)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_new_run_starts_a_new_record(tmp_path):
    write_steps(tmp_path, range(1, 4))
    write_steps(tmp_path, [1], after_step=None)
    assert [line["step"] for line in lines_of(tmp_path)] == [1]


def test_tensorboard(tmp_path):
    write_steps(tmp_path, [1, 2, 3])
    write_steps(tmp_path, [3, 4], after_step=2)
    events = events_of(tmp_path)
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in events
        for value in event.summary.value
    ]
    assert [(step, tag) for step, tag, _ in scalars] == [
        (step, "train/loss") for step in (1, 2, 3, 3, 4)
    ]
    np.testing.assert_allclose([value for *_, value in scalars], [1, 1 / 2, 1 / 3, 1 / 3, 1 / 4])
    # This is what makes TensorBoard forget step 3 of the first file.
    starts = [event.step for event in events if event.HasField("session_log")]
    assert starts == [0, 3]


def test_only_process_0_writes(tmp_path):
    write_steps(tmp_path, [1], enabled=False)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written"):
        write_steps(tmp_path / "file", [1])


def test_a_full_disk(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    words = r"cannot be written \(File too large\)"
    with writer:
        writer.begin(None)
        with pytest.raises(UserError, match=words), disks.full_after(0):
            writer.write(1, "train", {"loss": 1.0})
