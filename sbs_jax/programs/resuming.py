"""Whether a run may be resumed with the configuration that it is given now.

The checkpoints, metrics and `student.json` of a MODEL_DIR describe one student. The settings that
decide what it learns (data, seed, loss, network) must therefore stay as they were; steps, periods,
the batch size and the optimizer's numbers may change, and every change is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sbs_jax.checkpoints import folders
from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import dump, reader
from sbs_jax.errors import UserError
from sbs_jax.files import atomic_write_text

CONFIG = "config.gin"
HISTORY = "config_history"

_MACROS = {
    "feature_lengths": "TASK_FEATURE_LENGTHS",
    "part_weights": "the weights in PARTS",
    "part_normalizations": "the normalizations in PARTS",
}
# Where things lie, and how they are computed: none of it decides what is learned. The examples and
# tokens themselves are compared by the position in the data.
_FREE = {
    "initial_checkpoint",
    "mixture_or_task_module",
    "data_settings.data_dir",
    "data_settings.data_source",
    "data_settings.rationales_file",
    "data_settings.model_dir",
    "data_settings.cache_dir",
    "data_settings.records_cache_dir",
    "data_settings.records_processes",
    "data_settings.use_cached_tasks",
    "data_settings.strict_lengths",
    "data_settings.vocabulary_path",
    "model_config.dropout_rate",
    "model_config.dropout_broadcast_length",
    "model_config.dtype",
    "model_config.embedding_lookup",
    "model_config.product_dtype",
    "model_config.remat",
}


def check(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Compares a start with the latest checkpoint of MODEL_DIR, if there is one.

    Args:
      folder: MODEL_DIR.
      metadata: the metadata that the run would save beside its weights.

    Raises:
      UserError: a setting that decides what is learned has changed; names all such settings.
    """
    saved = _saved_metadata(folder)
    before, now = dict(_flat(saved)), dict(_flat(json.loads(json.dumps(metadata))))
    changed = [
        f"{_macro(name)} = {now[name]!r} instead of {before[name]!r}"
        for name in before
        if name in now and name not in _FREE and now[name] != before[name]
    ]
    if changed:
        raise UserError(
            f"MODEL_DIR {folder} holds a run that this start would change: {'; '.join(changed)}. "
            "These settings decide what is learned: give them as they were, or choose another "
            "MODEL_DIR."
        )


def saved_data_settings(folder: Path) -> Mapping[str, Any]:
    """The `DataSettings` of the run that a MODEL_DIR holds, as JSON; {} without a run."""
    return _saved_metadata(folder).get("data_settings") or {}


def saved_feature_lengths(folder: Path) -> dict[str, int] | None:
    """The row lengths of the run that a MODEL_DIR holds; None without a run."""
    return _saved_metadata(folder).get("feature_lengths")


def changes(folder: Path, config_text: str | None) -> list[str]:
    """Names what differs between `MODEL_DIR/config.gin` and a new configuration.

    Returns:
      `NAME = new (was old)` for each macro or parameter.
    """
    try:
        old = _bindings((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UserError):
        return []
    new = old if config_text is None else _bindings(config_text)
    unset = ("", "unset")
    pairs = ((old.get(key, unset), new.get(key, unset)) for key in sorted(old.keys() | new.keys()))
    return [
        f"{now[0] or was[0]} = {now[1]} (was {was[1]})"
        for was, now in pairs
        if was != now and "MODEL_DIR" not in (was[0], now[0])
    ]


def write_config(folder: Path, config_text: str, step: int) -> None:
    """Writes `config.gin`; what it held until then is kept if it said something else.

    Args:
      folder: MODEL_DIR.
      config_text: the configuration from now on.
      step: the number of steps done; names the old file, `config_history/until_step_STEP.gin`.
    """
    path = folder / CONFIG
    if step and changes(folder, config_text):
        kept = path.read_text(encoding="utf-8")
        atomic_write_text(folder / HISTORY / f"until_step_{step}.gin", kept)
    atomic_write_text(path, config_text)


def _saved_metadata(folder: Path) -> Mapping[str, Any]:
    for checkpoint in reversed(folders.complete_checkpoints(folder).values()):
        try:
            return folders.read_info(checkpoint)["extra"].get("metadata") or {}
        except UserError:
            continue  # Damaged: restoring will set it aside.
    return {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if name in ("data_settings", "model_config") and isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield prefix + name, value


def _macro(name: str) -> str:
    group, _, field = name.rpartition(".")
    if group == "model_config":
        return f"MODEL's {field}"
    return _MACROS.get(field, field.upper())


def _bindings(text: str) -> dict[str, tuple[str, str]]:
    """Name and value of each binding, by its earliest name, which no version changes."""
    config = config_lib.GinConfig(reader.read_text(text, CONFIG))
    return {
        key: (binding.name, dump.format_value(binding))
        for key, binding in config.by_first_name().items()
    }
