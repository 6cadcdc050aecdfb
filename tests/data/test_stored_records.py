"""Records that are kept in files are those that would be made again, to the bit."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from sbs_jax.data import pipeline, record_files, stored_records, tokenizing
from sbs_jax.data import records as records_lib
from sbs_jax.data.batching import Batching
from sbs_jax.data.resolving import resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from tests.disks import read_only_folder
from tests.release_layout import write_release

LENGTHS = {"inputs": 64, "targets": 64}


@pytest.fixture
def settings(tmp_path, model_dirs):
    return DataSettings(
        data_dir=str(write_release(tmp_path / "release")),
        vocabulary_path=None,
        model_dir=str(model_dirs("svamp")),
        records_cache_dir=str(tmp_path / "kept"),
        prefix_side="decoder",
    )


def load(settings, name="svamp_sbs", lengths=LENGTHS):
    return pipeline.load_records(resolve_task(name, settings), "train", lengths)


def arrays(records):
    fields = (field.name for field in dataclasses.fields(records))
    values = {name: getattr(records, name) for name in fields}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def folders(settings):
    return sorted(os.listdir(settings.records_cache_dir))


def test_mapped_records_and_their_batches_are_those_that_are_made(settings, monkeypatch):
    made = load(dataclasses.replace(settings, records_cache_dir=None))
    load(settings)
    monkeypatch.setattr(tokenizing, "read_columns", None)  # the second start tokenizes nothing
    mapped = load(settings)
    assert arrays(made).keys() == arrays(mapped).keys() >= {"input_tokens", "source"}
    for name, array in arrays(made).items():
        assert isinstance(getattr(mapped, name), np.memmap)
        assert array.dtype == getattr(mapped, name).dtype
        np.testing.assert_array_equal(array, getattr(mapped, name))
    assert (mapped.counts, mapped.draw) == (made.counts, made.draw)
    assert mapped.fingerprint() == made.fingerprint()
    batches = [
        pipeline.TrainBatches(records, Batching(LENGTHS, batch_size=4), seed=1)
        for records in (made, mapped)
    ]
    for _ in range(3):
        first, second = map(next, batches)
        assert all(np.array_equal(first[name], second[name]) for name in first)
    batches[1].restore(batches[0].state())


def test_other_data_settings_and_lengths_have_records_of_their_own(settings):
    whole = load(settings)
    assert len(load(dataclasses.replace(settings, train_fraction=0.5))) < len(whole)
    load(settings, lengths={"inputs": 32, "targets": 64})
    load(settings, name="svamp_joint")
    assert len(folders(settings)) == 4
    (path,) = settings.folder("svamp").glob("svamp_train.json")
    os.utime(path, ns=(1, 1))
    load(settings)
    assert len(folders(settings)) == 5


def test_records_of_which_nothing_is_cut_serve_all_lengths_that_they_fit(settings):
    settings = dataclasses.replace(settings, strict_lengths=True)
    whole = pipeline.load_whole_records(resolve_task("svamp_sbs", settings), "train")
    inputs, targets = whole.longest_lengths
    same = load(settings, lengths={"inputs": inputs, "targets": targets})
    assert len(folders(settings)) == 1
    made = load(dataclasses.replace(settings, records_cache_dir=None))
    assert (same.counts, same.fingerprint()) == (made.counts, made.fingerprint())
    plain = dataclasses.replace(settings, strict_lengths=False)
    assert load(plain, lengths={"inputs": inputs, "targets": targets - 1}).counts.cut_targets
    assert len(folders(settings)) == 2


@pytest.mark.parametrize("damage", ["cut", "missing", "no record"])
def test_damaged_records_are_made_again(settings, damage, caplog):
    made = load(settings)
    (folder,) = folders(settings)
    path = os.path.join(settings.records_cache_dir, folder, "target_tokens.npy")
    if damage == "cut":
        os.truncate(path, 100)
    else:
        os.remove(
            path if damage == "missing" else os.path.join(os.path.dirname(path), "records.json")
        )
    again = load(settings)
    assert "is damaged" in caplog.text
    assert folders(settings) == [folder]
    np.testing.assert_array_equal(made.example, again.example)
    assert again.fingerprint() == made.fingerprint()


def test_what_reads_unknown_files_is_not_kept(settings, caplog, monkeypatch):
    task = resolve_task("cqa_sbs", settings)
    assert task.info.dataset.origin is None  # it has people's rationales from elsewhere
    assert stored_records.origin_of(task, "train") is None
    assert "it is not known which files 'cqa_sbs' reads" in caplog.text


def test_a_folder_that_cannot_be_written_is_one_sentence(settings, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        load(dataclasses.replace(settings, records_cache_dir=str(tmp_path / "file")))


def test_who_may_read_them(settings):
    load(settings)
    (folder,) = folders(settings)
    path = Path(settings.records_cache_dir) / folder
    assert path.stat().st_mode & 0o777 == path.parent.stat().st_mode & 0o777
    path.chmod(0)
    with read_only_folder() as other:  # as another user, if this one may do everything
        with pytest.raises(UserError, match=f"{folder}: cannot be read"):
            record_files.open_folder(path)
        with (
            pytest.raises(UserError, match="choose a folder that this user may write to"),
            stored_records.making(other / folder),
        ):
            pytest.fail("records are made that cannot be kept")
    path.chmod(0o755)


def test_code_counts_by_its_content_wherever_and_whenever_it_was_installed(tmp_path):
    first, second = tmp_path / "a" / "code.py", tmp_path / "b" / "code.py"
    for path in (first, second):
        path.parent.mkdir()
        path.write_text("x = 1\n")
    os.utime(first, ns=(1, 1))
    assert [*stored_records.listing(first.parent)] == [*stored_records.listing(second)]
    second.write_text("x = 2\n")
    assert [*stored_records.listing(first)] != [*stored_records.listing(second)]


def test_the_same_tokenizer_with_another_end_of_texts_has_records_of_its_own(settings, tmp_path):
    words = {word: number for number, word in enumerate(["<pad>", "<end>", "<stop>", "a"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    made.add_special_tokens(list(words)[:3])
    for number, end in enumerate(["<end>", "<stop>"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        made.save(str(folder / "tokenizer.json"))
        config = json.dumps({"eos_token": end, "pad_token": "<pad>"})
        (folder / "tokenizer_config.json").write_text(config)
        load(dataclasses.replace(settings, vocabulary_path=str(folder / "tokenizer.json")))
    assert len(folders(settings)) == 2


def test_a_mixture_is_joined_in_files_as_it_is_in_memory(settings, monkeypatch):
    monkeypatch.setattr(records_lib, "PIECE", 50)
    monkeypatch.setattr(record_files, "RANDOM_ABOVE", 0)
    plain = dataclasses.replace(settings, prefix_side="encoder")
    parts = [load(settings, "svamp_sbs"), load(plain, "svamp_standard")]
    rates = [1.0, 0.5]
    made = records_lib.join_records(parts, rates)
    mapped = stored_records.join(settings, parts, rates)
    assert arrays(made).keys() == arrays(mapped).keys() >= {"input_tokens", "source", "variant"}
    for name, array in arrays(made).items():
        assert isinstance(getattr(mapped, name), np.memmap)
        assert array.dtype == getattr(mapped, name).dtype
        np.testing.assert_array_equal(array, getattr(mapped, name))
    assert (mapped.counts, mapped.mixture) == (made.counts, made.mixture)
    assert mapped.fingerprint() == made.fingerprint()
    assert mapped.longest == made.longest_lengths
    assert np.array_equal(mapped.starts, records_lib.find_starts(made.example))
    count = len(folders(settings))
    again = stored_records.join(settings, parts, [1.0, 2.0])  # only the rates are others
    assert len(folders(settings)) == count and again.mixture[1][1] == 2.0
