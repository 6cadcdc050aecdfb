"""Records made in pieces are those that the whole split gives, whoever makes them, and when."""

import dataclasses
import os

import numpy as np
import pytest

from sbs_jax.data import first_pass, pipeline
from sbs_jax.data.resolving import resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from tests import disks
from tests.release_layout import write_release

LENGTHS = {"inputs": 64, "targets": 24}


@pytest.fixture
def settings(tmp_path, model_dirs, monkeypatch):
    monkeypatch.setattr(first_pass, "ROWS", 7)  # six pieces of the forty rows
    return DataSettings(
        data_dir=str(write_release(tmp_path / "release")),
        model_dir=str(model_dirs("svamp")),
        records_cache_dir=str(tmp_path / "kept"),
        records_processes=1,
    )


@pytest.fixture
def made(monkeypatch):
    """The pieces that this process makes, as they are begun."""
    found = []
    make = first_pass.make_portion

    def spied(task, split, portion, folder, limits):
        found.append(portion.name)
        make(task, split, portion, folder, limits)

    monkeypatch.setattr(first_pass, "make_portion", spied)
    return found


def load(settings, name="svamp_sbs", split="train"):
    return pipeline.load_records(resolve_task(name, settings), split, LENGTHS)


def whole(settings, **given):
    return load(dataclasses.replace(settings, records_cache_dir=None), **given)


def assert_same(records, expected):
    for field in dataclasses.fields(expected):
        value, other = getattr(records, field.name), getattr(expected, field.name)
        if isinstance(other, np.ndarray):
            assert value.dtype == other.dtype
            np.testing.assert_array_equal(value, other)
        elif field.name not in ("longest", "checksum"):
            assert value == other
    assert records.fingerprint() == expected.fingerprint()
    assert records.longest_lengths == expected.longest_lengths


@pytest.mark.parametrize(
    ("name", "split", "changes"),
    [
        ("svamp_sbs", "train", {"prefix_side": "decoder"}),
        ("svamp_joint_teacher", "train", {"train_fraction": 0.7}),
        ("svamp_standard", "validation", {}),
        ("svamp_sbs", "train", {"keep_blank_rationales": True}),
    ],
)
def test_pieces_are_the_whole(settings, made, name, split, changes):
    settings = dataclasses.replace(settings, **changes)
    records = load(settings, name, split)
    assert len(made) == 6 or split == "validation"
    assert_same(records, whole(settings, name=name, split=split))
    assert records.counts.cut_targets or name != "svamp_sbs"
    assert len(os.listdir(settings.records_cache_dir)) == 1


def test_processes_make_the_same(settings, monkeypatch):
    monkeypatch.setattr(first_pass, "make_portion", None)  # not in this one
    assert_same(load(dataclasses.replace(settings, records_processes=2)), whole(settings))


def test_a_killed_pass_is_taken_up_where_it_ended(settings, made, monkeypatch, tmp_path):
    spied = first_pass.make_portion

    def killed(task, split, portion, folder, limits):
        assert list(folder.parent.glob(".svamp_sbs-train-*.lock"))  # others wait
        spied(task, split, portion, folder, limits)
        if len(made) == 4:
            (folder / portion.name / "target_tokens.npy").unlink()  # not written to the end
            raise KeyboardInterrupt

    monkeypatch.setattr(first_pass, "make_portion", killed)
    with pytest.raises(KeyboardInterrupt):
        load(settings)
    (left,) = (tmp_path / "kept").iterdir()
    (left.parent / f"{left.name.removesuffix('.pieces')}.abcdefgh.partial").mkdir()
    before = made.copy()
    made.clear()
    monkeypatch.setattr(first_pass, "make_portion", spied)
    records = load(settings)
    assert len(made) == 3 and set(made) & set(before) == {before[-1]}
    assert_same(records, whole(settings))
    assert [path.name[0] for path in (tmp_path / "kept").iterdir()] == ["s"]


def test_a_full_disk_ends_the_pass_and_what_was_done_is_kept(settings, made, monkeypatch, tmp_path):
    spied = first_pass.make_portion

    def on_a_small_disk(task, split, portion, folder, limits):
        with disks.full_after(1 if len(made) == 2 else 1 << 20):
            spied(task, split, portion, folder, limits)

    monkeypatch.setattr(first_pass, "make_portion", on_a_small_disk)
    with pytest.raises(UserError, match=r"svamp_sbs-train-.* cannot be written"):
        load(settings)
    assert len(made) == 3  # and nothing is read whole
    made.clear()
    monkeypatch.setattr(first_pass, "make_portion", spied)
    assert_same(load(settings), whole(settings))
    assert len(made) == 4
    assert len(os.listdir(tmp_path / "kept")) == 1


def test_errors_are_those_of_the_whole(settings, made):
    (path,) = settings.folder("svamp").glob("svamp_train.json")
    lines = path.read_text().splitlines(keepends=True)
    lines[30] = '{"input": 7}\n'
    path.write_text("".join(lines))
    with pytest.raises(UserError) as expected:
        whole(settings)
    with pytest.raises(UserError, match="line 31") as found:
        load(settings)
    assert str(found.value) == str(expected.value)
    assert len(made) == 5


def test_other_line_ends_and_missing_completions_are_read_whole(settings, made):
    (path,) = settings.folder("svamp").glob("svamp_train.json")
    text = path.read_text()
    path.write_text(text.replace("\n", "\r", 1), newline="")
    assert_same(load(settings), whole(settings))
    path.write_text(text + text.splitlines()[0])
    with pytest.raises(UserError, match=r"41 examples but .* 40 completions"):
        load(settings)
    assert not made


def test_an_id_that_two_pieces_have_is_an_error(tmp_path, settings, made):
    row = '{"uid": "%d", "premise": "It is %d.", "hypothesis": "No.", "label": 0}\n'
    vocabulary = resolve_task("svamp_sbs", settings).vocabulary.sentencepiece_model_file
    settings = dataclasses.replace(settings, vocabulary_path=vocabulary)
    folder = tmp_path / "release" / "anli1"
    folder.mkdir()
    (folder / "anli1_train.json").write_text("".join(row % (n % 39, n) for n in range(40)))
    with pytest.raises(UserError, match="line 40: the id '0' occurs twice"):
        load(settings, "anli1_standard")
    assert len(made) == 6
    (folder / "anli1_train.json").write_text("".join(row % (n, n) for n in range(40)))
    assert_same(load(settings, "anli1_standard"), whole(settings, name="anli1_standard"))
    assert len(made) == 12
