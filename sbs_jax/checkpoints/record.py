"""What a folder of weights says of its student: `student.json`.

Training writes it into MODEL_DIR, export into the exported folder:

    {"format": 1, "model_config": {"vocab_size": 512, …}, "settings": {"method": "sbs", …}}
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from sbs_jax import remote, text_tokenizer
from sbs_jax.errors import UserError
from sbs_jax.files import atomic_open, atomic_write_text
from sbs_jax.models.interface import ModelConfig, config_from_json, config_to_json

FILE = "student.json"
VOCABULARY = "vocabulary/spiece.model"
_TOKENIZER = f"vocabulary/{text_tokenizer.FILE}"

_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Record:
    """The student of a folder.

    Attributes:
      model_config: the dimensions of the network; None where the folder does not say.
      settings: how it was trained; see `loading.Source`.
    """

    model_config: ModelConfig | None
    settings: dict[str, Any]


def write(folder: Path, model_config: ModelConfig, settings: Mapping[str, Any]) -> None:
    """Writes `folder/student.json`; `settings` must be JSON."""
    content = {
        "format": _FORMAT,
        "model_config": config_to_json(model_config),
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


def kept_vocabulary(model_dir: epath.PathLike) -> epath.Path:
    """Returns a run's vocabulary: its tokenizer if it has one, else its SentencePiece model.

    The file need not exist.
    """
    tokenizer = epath.Path(model_dir) / _TOKENIZER
    return tokenizer if tokenizer.is_file() else epath.Path(model_dir) / VOCABULARY


def require_same_vocabulary(model_dir: Path, named: str | Path) -> None:
    """Compares a run's vocabulary with the one that a start names.

    Raises:
      UserError: the run has another vocabulary already.
    """
    target = kept_vocabulary(model_dir)
    if not target.is_file() or not remote.epath_of(os.fspath(named)).is_file():
        return
    of_file = text_tokenizer.is_tokenizer(target)
    if of_file != text_tokenizer.is_tokenizer(named) or target.read_bytes() != _content(named):
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
    if text_tokenizer.is_tokenizer(named):
        target = model_dir / _TOKENIZER
        # What the tokenizer's own file does not say: which token is EOS, and which one padding.
        settings = text_tokenizer.TextTokenizer(named).config_text()
        atomic_write_text(target.with_name(text_tokenizer.CONFIG_FILE), settings)
    else:
        target = model_dir / VOCABULARY
    if not target.is_file():
        with atomic_open(target, "wb") as file:
            file.write(_content(named))


def _content(named: str | Path) -> bytes:
    """The bytes under which a run keeps a vocabulary."""
    if text_tokenizer.is_tokenizer(named):
        return text_tokenizer.TextTokenizer(named).serialized()
    return remote.epath_of(os.fspath(named)).read_bytes()
