"""Reads public data sets from wherever DATA_SOURCE says.

``release`` is the authors' layout (`sbs_jax.data.release`). ``tfds`` is what tensorflow-datasets
has prepared in DATA_DIR (its own folder by default). ``huggingface`` is a folder ``DATA_DIR/NAME/``
that ``Dataset.save_to_disk`` wrote, or that holds the Parquet files of a data set's page.
Nothing is ever downloaded here: where data are missing, the sentence names the command that
prepares them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sbs_jax.data.release import Example, completions_of, load_release, make_examples
from sbs_jax.data.rows import Row, read_rows
from sbs_jax.data.settings import HUGGING_FACE, TFDS, DataSettings
from sbs_jax.data.tensorflow_setup import tfds
from sbs_jax.errors import UserError
from sbs_jax.parsers import ParsedCompletion

Loader = Callable[[], list[Example]]


@dataclasses.dataclass(frozen=True)
class PublicNames:
    """Where a data set is found besides the release.

    Attributes:
      tfds: its builder, with the configuration (``anli/r1``); None if there is none.
      tfds_splits: what our splits are called there, where they are called otherwise.
      huggingface: its page and configuration, for the command that fetches it.
      huggingface_splits: likewise.
    """

    tfds: str | None = None
    tfds_splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    huggingface: tuple[str, ...] = ()
    huggingface_splits: Mapping[str, str] = dataclasses.field(default_factory=dict)


def load_public(
    settings: DataSettings,
    dataset: str,
    split: str,
    names: PublicNames,
    *,
    convert: Callable[[Row], Example | None],
    parser: Callable[[str], ParsedCompletion],
    release: Loader | None = None,
) -> list[Example]:
    """Reads a split of a public data set from `DataSettings.data_source`.

    Args:
      settings: tell the source and the folder.
      dataset: name of its folder.
      split: ``train``, ``validation`` or ``test``.
      names: where it is found.
      convert: makes an example of a row, whose fields are those of the source.
      parser: of the completions that lie in ``DATA_DIR/dataset/llm/``, for sources that keep the
        order of the published files (all but tensorflow-datasets).
      release: reads the release, where that is not plain `release.load_release`.

    Returns:
      The examples in the source's order.

    Raises:
      UserError: data are missing or malformed, or the source does not have this data set.
    """
    if settings.data_source == TFDS:
        rows = _tfds_rows(settings, dataset, names.tfds, names.tfds_splits.get(split, split))
        return make_examples(rows, None, convert=convert, parser=parser)
    if settings.data_source == HUGGING_FACE:
        their_split = names.huggingface_splits.get(split, split)
        folder = _huggingface_folder(settings, dataset, names)
        rows = _huggingface_rows(folder, their_split)
        completions = completions_of(folder / "llm", split, len(rows), folder)
        return make_examples(rows, completions, convert=convert, parser=parser)
    if release is not None:
        return release()
    return load_release(settings, dataset, split, convert=convert, parser=parser)


def _tfds_rows(
    settings: DataSettings, dataset: str, builder_name: str | None, split: str
) -> list[Row]:
    if builder_name is None:
        raise UserError(
            f"DATA_SOURCE = 'tfds': tensorflow-datasets has no data set '{dataset}'; take "
            "'release' or 'huggingface'."
        )
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
    """Makes JSON's types of numpy's: texts of bytes, lists of arrays."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value


def _huggingface_folder(settings: DataSettings, dataset: str, names: PublicNames) -> Path:
    if not names.huggingface:
        raise UserError(f"DATA_SOURCE = 'huggingface' is not known for the data set '{dataset}'.")
    folder = settings.folder(dataset)
    if not folder.is_dir():
        called = ", ".join(map(repr, names.huggingface))
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


def first_text(row: Row, keys: Sequence[str], *, blank: bool = False) -> str:
    """Returns the text of the one of `keys` that a row has: sources name their fields differently.

    Raises:
      UserError: it has none of them (unless `blank`), or that is no text.
    """
    if blank and not any(key in row for key in keys):
        return ""
    return row.text(row.first_of(*keys), blank=blank)
