"""What a folder of weights says of its student: `student.json`.

Training writes it into MODEL_DIR, export into the exported folder:

    {"format": 1, "model_config": {"vocab_size": 512, …}, "settings": {"method": "sbs", …}}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from sbs_jax.errors import UserError
from sbs_jax.files import atomic_open, atomic_write_text
from sbs_jax.models.config import T5Config

FILE = "student.json"
VOCABULARY = "vocabulary/spiece.model"

_FORMAT = 1
_OF_THE_RUN = ("attention", "remat", "scan_layers")


@dataclasses.dataclass(frozen=True)
class Record:
    """The student of a folder.

    Attributes:
      model_config: its dimensions; None where the folder does not say.
      settings: how it was trained; see `loading.Source`.
    """

    model_config: T5Config | None
    settings: dict[str, Any]


def write(folder: Path, model_config: T5Config, settings: Mapping[str, Any]) -> None:
    """Writes `folder/student.json`; `settings` must be JSON."""
    content = {
        "format": _FORMAT,
        "model_config": dataclasses.asdict(model_config),
        "settings": dict(settings),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    atomic_write_text(folder / FILE, text + "\n")


def read(folder: epath.Path) -> Record:
    """Reads `folder/student.json`; an empty record where there is none.

    Raises:
      UserError: it is damaged, or newer than this program.
    """
    file = folder / FILE
    try:
        content = json.loads(file.read_text())
        if content["format"] != _FORMAT:
            raise UserError(
                f"{file}: has the format {content['format']}, this sbs_jax knows {_FORMAT}; "
                "update it."
            )
        settings = dict(content["settings"])
        return Record(config_from_json(content["model_config"], file), settings)
    except FileNotFoundError:
        return Record(None, {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: is not what sbs_jax writes ({error}); remove it to do without."
        ) from None


def config_from_json(values: Mapping[str, Any], where: object) -> T5Config:
    """The T5Config whose fields were saved; fields that it no longer has are left out.

    Raises:
      UserError: a value is impossible.
    """
    known = {field.name for field in dataclasses.fields(T5Config)}
    # JSON has no tuples.
    chosen = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name in known
    }
    # How the run computed says nothing about how another program should.
    chosen = {name: value for name, value in chosen.items() if name not in _OF_THE_RUN}
    try:
        return T5Config(**chosen)
    except (UserError, TypeError) as error:
        raise UserError(f"{where}: holds no T5Config ({error}).") from None


def require_same_vocabulary(model_dir: Path, named: str | Path) -> None:
    """Compares a run's vocabulary with the one that a start names.

    Raises:
      UserError: the run has another vocabulary already.
    """
    target, given = model_dir / VOCABULARY, epath.Path(named)
    if target.is_file() and given.is_file() and target.read_bytes() != given.read_bytes():
        raise UserError(
            f"{target}: this run's vocabulary is another one than {named}; choose another "
            "MODEL_DIR, or leave out VOCABULARY_PATH."
        )


def keep_vocabulary(model_dir: Path, named: str | Path) -> None:
    """Copies a run's vocabulary into its MODEL_DIR, which then holds all that its student needs.

    Raises:
      UserError: the run has another vocabulary already.
    """
    require_same_vocabulary(model_dir, named)
    target = model_dir / VOCABULARY
    if not target.is_file():
        content = epath.Path(named).read_bytes()
        with atomic_open(target, "wb") as file:
            file.write(content)
