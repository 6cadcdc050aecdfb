"""Registers public data sets, and reads them from wherever DATA_SOURCE says.

``release`` is the authors' layout (`sbs_jax.data.release`). ``tfds`` is what tensorflow-datasets
has prepared in DATA_DIR (its own folder by default). ``huggingface`` is a folder ``DATA_DIR/NAME/``
that ``Dataset.save_to_disk`` wrote, or that holds the Parquet files of a data set's page.
Nothing is ever downloaded here: where data are missing, the error names the command that prepares
them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sbs_jax.data.datasets import Dataset
from sbs_jax.data.pieces import ReleasePieces
from sbs_jax.data.registration import code_of, register_dataset
from sbs_jax.data.registry import find_dataset
from sbs_jax.data.release import (
    ConvertFn,
    Example,
    LoadFn,
    completions_of,
    load_release,
    make_examples,
)
from sbs_jax.data.rows import Row, read_rows
from sbs_jax.data.settings import HUGGING_FACE, TFDS, DataSettings
from sbs_jax.errors import UserError
from sbs_jax.parsers import find_parser

FinishFn = Callable[[list[Example], str, DataSettings], list[Example]]


def register_public(
    name: str,
    *,
    convert: ConvertFn,
    parser: str,
    scorer: str = "exact_match",
    labels: Sequence[str] = (),
    own_validation: bool = False,
    aliases: Sequence[str] = (),
    tfds: str | None = None,
    tfds_splits: Mapping[str, str] | None = None,
    huggingface: Sequence[str] = (),
    huggingface_splits: Mapping[str, str] | None = None,
    release: LoadFn | None = None,
    finish: FinishFn | None = None,
) -> Dataset:
    """Registers the tasks of a data set that is public: `DataSettings.data_source` says from where.

    Args:
      name: the name of the data set, and of its folder in DATA_DIR.
      convert: makes the fields of an example of a row, whose fields are those of the source; see
        `sbs_jax.data.release.ConvertFn`.
      parser: key of `sbs_jax.parsers.PARSERS`, for the completions that lie in
        ``DATA_DIR/NAME/llm/``. They go with the rows by their order, so they are read for all
        sources but tensorflow-datasets, which shuffles the rows.
      scorer: see `registration.register_dataset`.
      labels: see `registration.register_dataset`.
      own_validation: see `registration.register_dataset`.
      aliases: other names that the folder and the files of the release may have.
      tfds: its builder with the configuration (``anli/r1``); None if there is none.
      tfds_splits: what tensorflow-datasets calls our splits, where it calls them otherwise.
      huggingface: its page and configuration, for the command that fetches it.
      huggingface_splits: what that page calls our splits, where it calls them otherwise.
      release: reads the release, where that is not plain `release.load_release`.
      finish: called with the examples of whatever source, the split and the settings; returns the
        examples that the data set has.

    Returns:
      The data set.

    Raises:
      UserError: the name is taken, or the parser or the scorer unknown.
    """
    public = _PublicDataset(
        name=name,
        convert=convert,
        parser=parser,
        aliases=aliases,
        tfds=tfds,
        tfds_splits=tfds_splits or {},
        huggingface=huggingface,
        huggingface_splits=huggingface_splits or {},
        release=release,
        finish=finish,
    )
    # What `release` and `finish` read, and of what they make it, is not known.
    plain = release is None and finish is None
    return register_dataset(
        name,
        load=public.load,
        scorer=scorer,
        labels=labels,
        own_validation=own_validation,
        public=True,
        origin=public.origin if plain else None,
        pieces=ReleasePieces((name, *aliases), convert, find_parser(parser)) if plain else None,
    )


@dataclasses.dataclass(frozen=True)
class _PublicDataset:
    """Where a data set is found, and how it is read; see `register_public`."""

    name: str
    convert: ConvertFn
    parser: str
    aliases: Sequence[str]
    tfds: str | None
    tfds_splits: Mapping[str, str]
    huggingface: Sequence[str]
    huggingface_splits: Mapping[str, str]
    release: LoadFn | None
    finish: FinishFn | None

    def __post_init__(self) -> None:
        find_parser(self.parser)

    def origin(self, split: str, settings: DataSettings) -> list[Path]:
        """Returns what `load` reads; see `registration.register_dataset`."""
        del split
        found = [code_of(self.convert)]
        if settings.source_of(self.name) == TFDS:
            return []  # The library knows where they are.
        return [*found, *map(settings.folder, (self.name, *self.aliases))]

    def load(self, split: str, settings: DataSettings) -> list[Example]:
        """Returns the examples of a split in the source's order.

        Raises:
          UserError: data are missing or malformed, or the source does not have this data set.
        """
        examples = self._read(split, settings)
        return examples if self.finish is None else self.finish(examples, split, settings)

    def _read(self, split: str, settings: DataSettings) -> list[Example]:
        parser = find_parser(self.parser)
        if isinstance(settings.data_source, Mapping):
            for name in settings.data_source:
                find_dataset(name)  # a misspelt name would be ignored
        source = settings.source_of(self.name)
        if source == TFDS:
            rows = _tfds_rows(settings, self.name, self.tfds, self.tfds_splits.get(split, split))
            return make_examples(rows, None, convert=self.convert, parser=parser)
        if source == HUGGING_FACE:
            folder = _huggingface_folder(settings, self.name, self.huggingface)
            rows = _huggingface_rows(folder, self.huggingface_splits.get(split, split))
            completions = completions_of(folder / "llm", split, len(rows), folder)
            return make_examples(
                rows,
                completions,
                convert=self.convert,
                parser=parser,
                keep_unlabeled=settings.keep_blank_rationales,
            )
        if self.release is not None:
            return self.release(split, settings)
        return load_release(
            settings, self.name, split, convert=self.convert, parser=parser, aliases=self.aliases
        )


def _tfds_rows(
    settings: DataSettings, dataset: str, builder_name: str | None, split: str
) -> list[Row]:
    if builder_name is None:
        raise UserError(
            f"DATA_SOURCE = 'tfds': tensorflow-datasets has no data set '{dataset}'; take "
            "'release' or 'huggingface'."
        )
    from sbs_jax.data.tensorflow_setup import tfds

    folder = None if settings.data_dir is None else str(Path(settings.data_dir).expanduser())
    builder = tfds.builder(builder_name, data_dir=folder)
    if not builder.data_path.exists():
        shown = "" if folder is None else f", data_dir='{settings.data_dir}'"
        raise UserError(
            f"DATA_SOURCE = 'tfds': '{builder_name}' is not prepared in {builder.data_path}; run: "
            f"python -c \"import tensorflow_datasets as tfds; tfds.builder('{builder_name}'{shown})"
            '.download_and_prepare()"'
        )
    if split not in builder.info.splits:
        raise UserError(
            f"{builder.data_path}: has no split '{split}'; it has {', '.join(builder.info.splits)}."
        )
    # One file after the other: the order, which names the examples, is always the same.
    config = tfds.ReadConfig(interleave_cycle_length=1)
    found = builder.as_dataset(split=split, shuffle_files=False, read_config=config)
    place = Path(str(builder.data_path)) / split
    return [
        Row({key: _plain(value) for key, value in values.items()}, place, number)
        for number, values in enumerate(tfds.as_numpy(found), start=1)
    ]


def _plain(value: Any) -> Any:
    """Converts numpy's values to JSON's types: bytes to texts, arrays to lists."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value


def _huggingface_folder(settings: DataSettings, dataset: str, page: Sequence[str]) -> Path:
    if not page:
        raise UserError(f"DATA_SOURCE = 'huggingface' is not known for the data set '{dataset}'.")
    folder = settings.folder(dataset)
    if not folder.is_dir():
        called = ", ".join(map(repr, page))
        raise UserError(
            f"DATA_SOURCE = 'huggingface': there is no folder {folder}; run: python -c \"import "
            f"datasets; datasets.load_dataset({called}).save_to_disk('{folder}')\""
        )
    return folder


def _huggingface_rows(folder: Path, split: str) -> list[Row]:
    """Reads what `save_to_disk` wrote, or the Parquet files of a split in the order of their names.

    These are called ``train-00000-of-00001.parquet``, ``train.parquet`` or ``train/0000.parquet``,
    in `folder` or one below it (``data/``, or a configuration's).
    """
    if any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        return _saved_rows(folder, split)
    pattern = re.compile(rf"(?:.*/)?{re.escape(split)}(?:-\d+-of-\d+(?:-\w+)?|/\d+)?\.parquet")
    files = sorted(
        path
        for path in folder.rglob("*.parquet")
        if pattern.fullmatch(path.relative_to(folder).as_posix())
    )
    if not files:
        present = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.parquet"))
        raise UserError(
            f"{folder}: holds neither what Dataset.save_to_disk writes nor a Parquet file of the "
            f"split '{split}' such as {split}-00000-of-00001.parquet (Parquet files: "
            f"{', '.join(present[:5]) or 'none'})."
        )
    if len({path.parent for path in files}) > 1:
        raise UserError(
            f"{folder}: several folders hold Parquet files of the split '{split}' "
            f"({', '.join(sorted({path.parent.name for path in files}))}); leave one of them there."
        )
    return [row for path in files for row in read_rows(path)]


def _saved_rows(folder: Path, split: str) -> list[Row]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{folder} was written by Hugging Face datasets, which is not installed; run: "
            "pip install 'sbs_jax[datasets]'"
        ) from error
    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be read by Hugging Face datasets ({error}).") from error
    if isinstance(found, datasets.Dataset):
        found = {str(found.split or "train"): found}
    if split not in found:
        raise UserError(f"{folder}: has no split '{split}'; it has {', '.join(found)}.")
    place = folder / split
    return [Row(dict(values), place, n) for n, values in enumerate(found[split], start=1)]
