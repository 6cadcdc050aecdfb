"""SeqIO's cache: what is read from it is what would be tokenized, and a stale one is told."""

import dataclasses
import importlib.util
import json
import shutil

import numpy as np
import pytest

from sbs_jax.data import cache_writer, choosing, datasets, pipeline
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.resolving import TaskChoice, resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.programs.cache import write_cache

LENGTHS = {"inputs": 128, "targets": 64}


@pytest.fixture(scope="module")
def cached(release_dir, model_dirs, tmp_path_factory):
    """Settings, and the folder in which `svamp_sbs` is cached."""
    folder = tmp_path_factory.mktemp("cache")
    settings = DataSettings(
        data_dir=str(release_dir), model_dir=str(model_dirs("svamp")), cache_dir=str(folder)
    )
    with settings_lib.override(settings):
        write_cache(task=TaskChoice("svamp"), shards=3)
    return settings, folder / "svamp_sbs"


def load(settings, split="train", task="svamp_sbs", **changes):
    with settings_lib.override(dataclasses.replace(settings, **changes)):
        return pipeline.load_records(resolve_task(task), split, LENGTHS)


def assert_same(left, right):
    for field in dataclasses.fields(left):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b), field.name
        else:
            assert a == b


@pytest.mark.parametrize("split", datasets.SPLITS)
def test_cached_records_are_the_uncached_ones(cached, split):
    settings, folder = cached
    plain = load(settings, split)
    assert len(plain) > 3
    assert_same(load(settings, split, use_cached_tasks=True), plain)
    assert sorted(path.name for path in folder.glob(f"{split}.tfrecord*")) == [
        f"{split}.tfrecord-0000{n}-of-00003" for n in range(3)
    ]


def test_seqio_reads_it_by_itself(cached):
    settings, folder = cached
    with settings_lib.override(settings):
        task = choosing.find_task("svamp_sbs").replace()
        task._cache_dir = str(folder)
        records = task.get_dataset(LENGTHS, "test", use_cached=True, shuffle=False)
        count = sum(1 for _ in records)
        assert task.get_cached_stats("test")["examples"] == count
    assert count == len(load(settings, "test"))


def test_beam_writes_the_same(cached, tmp_path):
    settings = dataclasses.replace(cached[0], cache_dir=str(tmp_path))
    if importlib.util.find_spec("apache_beam") is None:
        with (
            settings_lib.override(settings),
            pytest.raises(
                UserError, match=r"Caching with WRITER = 'beam' needs .*sbs_jax\[cache\]"
            ),
        ):
            cache_writer.cache_task(resolve_task("svamp_sbs"), writer="beam")
        return
    with settings_lib.override(settings):
        folder = cache_writer.cache_task(
            resolve_task("svamp_sbs"), writer="beam", shards=2, splits=["train"]
        )
    assert_same(load(settings, use_cached_tasks=True), load(settings))
    for name in ("info", "stats"):
        ours, theirs = (
            json.loads((f / f"{name}.train.json").read_text()) for f in (cached[1], folder)
        )
        assert ours | {"num_shards": 2} == theirs | {"num_shards": 2}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label_prefix": "x "}, r"stale, LABEL_PREFIX was 'predict: ' and is 'x '; run python -m"),
        ({"keep_blank_rationales": True}, "KEEP_BLANK_RATIONALES was False and is True"),
        ({"prefix_side": "decoder"}, "PREFIX_SIDE was 'encoder' and is 'decoder'"),
        ({"train_fraction": 0.5}, r"the examples are others \(data files, TRAIN_FRACTION"),
        ({"vocabulary_size": 350, "model_dir": None}, "the vocabulary is another one"),
        ({"cache_dir": None}, "CACHE_DIR is missing"),
    ],
)
def test_what_makes_a_cache_stale(cached, changes, sentence, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=sentence):
        load(cached[0], use_cached_tasks=True, **changes)


def test_changed_data_and_missing_caches(cached, tmp_path):
    settings, folder = cached
    data = tmp_path / "data"
    shutil.copytree(settings.data_dir, data)
    path = data / "svamp" / "svamp_test.json"
    assert_same(
        load(settings, "test", use_cached_tasks=True, data_dir=str(data)), load(settings, "test")
    )
    path.write_text(path.read_text().replace("How many", "How few", 1))
    with pytest.raises(UserError, match=r"svamp_sbs' \(test\) in .* is stale, the examples are"):
        load(settings, "test", use_cached_tasks=True, data_dir=str(data))
    with pytest.raises(UserError, match=r"svamp_joint' \(train\) is not cached in .*run python -m"):
        load(settings, task="svamp_joint", use_cached_tasks=True)
    shutil.copytree(folder, tmp_path / "svamp_sbs")
    (tmp_path / "svamp_sbs" / "sbs_jax.json").unlink()
    with pytest.raises(UserError, match=r"sbs_jax\.json does not tell what it was made of"):
        load(settings, use_cached_tasks=True, cache_dir=str(tmp_path))


def test_what_cannot_be_cached(cached):
    settings, _ = cached
    with settings_lib.override(settings):
        with pytest.raises(UserError, match="WRITER must be 'local' or 'beam'"):
            cache_writer.cache_task(resolve_task("svamp_sbs"), writer="spark")
        with pytest.raises(UserError, match=r"No split of 'svamp_sbs_human' can be cached"):
            cache_writer.cache_task(resolve_task("svamp_sbs_human"), splits=["train"])
