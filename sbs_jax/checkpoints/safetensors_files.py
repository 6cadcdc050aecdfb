"""Safetensors files, one or several with an index, as Hugging Face's transformers writes them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from sbs_jax.checkpoints.tensors import Index, StoredTensor, read_whole
from sbs_jax.errors import UserError
from sbs_jax.files import atomic_open

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """A tensor in a safetensors file; see `tensors.StoredTensor`.

    Attributes:
      file: the file that holds it.
      name: the name of the tensor in the file.
      shape: the dimensions of the tensor.
      dtype: the dtype in which it is stored.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads a part."""
        # The file is opened for each tensor: what was read of it is mapped into memory until it is
        # closed.
        index = tuple(
            slice(*part.indices(size)[:2]) for part, size in zip(index, self.shape, strict=True)
        )
        try:
            with safe_open(self.file, framework="numpy") as file:
                return file.get_slice(self.name)[index]
        except (SafetensorError, OSError) as error:
            raise _unreadable(self.file, error) from None


def open_safetensors(folder: str | Path) -> dict[str, FileTensor]:
    """Finds the tensors of a folder that transformers saved; reads none of them yet.

    Args:
      folder: a folder that holds `model.safetensors`, or its shards and their index.

    Returns:
      The tensors by their names in the files.

    Raises:
      UserError: a file is missing or damaged, or holds no floating-point numbers.
    """
    folder = Path(folder).expanduser()
    if (folder / WEIGHTS_FILE).exists():
        return _open_file(folder / WEIGHTS_FILE)
    index = folder / INDEX_FILE
    if not index.exists():
        hint = ""
        if any(folder.glob("pytorch_model*.bin")):
            hint = (
                "; its pytorch_model.bin is a pickle, which could run any program when it is read: "
                "load it with transformers where you trust it, and call save_pretrained"
            )
        raise UserError(f"{folder}: holds neither {WEIGHTS_FILE} nor {INDEX_FILE}{hint}.")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no `weight_map` from tensors to files.")
    tensors: dict[str, FileTensor] = {}
    for name in sorted(set(weight_map.values())):
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index}: names {name!r}, which is no file of this folder.")
        if not (folder / name).exists():
            raise UserError(f"{index}: names {name}, which is missing from the folder.")
        tensors.update(_open_file(folder / name))
    if lost := sorted(set(weight_map) - set(tensors)):
        raise UserError(f"{index}: {some(lost)} not in the shard that it names.")
    return tensors


def write_safetensors(path: Path, tensors: Mapping[str, StoredTensor], dtype: str) -> None:
    """Writes tensors into one file, atomically; one of them at a time is in memory.

    Args:
      path: the file.
      tensors: the tensors by name. They are read whole, one after another.
      dtype: the dtype of the file, `float32`, `float16` or `bfloat16`; values are rounded to it.

    Raises:
      UserError: a value is too large for float16.
    """
    kind = next(kind for kind, known in _DTYPES.items() if known.name == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers insists on it
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + math.prod(tensor.shape) * _DTYPES[kind].itemsize
        header[name] = {
            "dtype": kind,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with atomic_open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, tensor in tensors.items():
            whole = read_whole(tensor)
            with np.errstate(over="ignore"):
                rounded = np.ascontiguousarray(whole, dtype=_DTYPES[kind])
            if kind == "F16":
                _require_no_overflow(name, whole, rounded)
            # bfloat16 has no buffer protocol.
            file.write(rounded.reshape(-1).view(np.uint8).data)


def _require_no_overflow(name: str, values: np.ndarray, rounded: np.ndarray) -> None:
    if not np.isfinite(rounded).all() and np.isfinite(values).all():
        raise UserError(
            f"{name} holds {float(np.abs(values).max()):.4g}, more than float16 can (65504); "
            "export with --gin.DTYPE=bfloat16 or float32."
        )


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UserError: the file is missing, damaged, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no readable JSON file ({error}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object.")
    return content


def some(names: list[str], shown: int = 3) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _open_file(path: Path) -> dict[str, FileTensor]:
    found = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                part = file.get_slice(name)
                kind = part.get_dtype()
                if kind not in _DTYPES:
                    raise UserError(
                        f"{path}: {name} has the dtype {kind}; weights must be floating-point "
                        f"numbers ({', '.join(_DTYPES)}), not quantized ones."
                    )
                found[name] = FileTensor(path, name, tuple(part.get_shape()), _DTYPES[kind])
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None
    return found


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: is no readable safetensors file ({error}); download or copy it again."
    )
