"""GGUF files (llama.cpp's format), read with the `gguf` package: metadata, dequantised tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gguf
import numpy as np
from gguf.constants import GGUFValueType

from sbs_jax.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Buffer


class GGUFFile:
    """An open GGUF file; its tensors are memory-mapped.

    Attributes:
      path: The file.
      metadata: All key-value pairs, as Python values.
      tensors: The tensors by name; each is dequantised when it is read.

    Raises:
      UserError: The file cannot be read, or is not a GGUF file of version 2 or 3, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            reader = _Reader(path)
            self.metadata: dict[str, Any] = {
                name: reader.value(field)
                for name, field in reader.fields.items()
                if not name.startswith("GGUF.")
            }
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
        except (ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
            raise UserError(
                f"{path}: is no complete GGUF file of version 2 or 3 ({error}); download or copy "
                "it again."
            ) from error
        self.tensors = {
            tensor.name: GGUFTensor(path, tensor.name, tuple(tensor.shape.tolist()[::-1]), tensor)
            for tensor in reader.tensors
        }

    def tensor(self, name: str) -> np.ndarray:
        """Returns a whole tensor in float32, in row-major shape (llama.cpp writes it reversed).

        Raises:
          UserError: The file lacks the tensor, or `gguf` cannot dequantise its type.
        """
        if name not in self.tensors:
            raise UserError(f"{self.path}: the tensor {name} is missing.")
        return self.tensors[name].read()


@dataclasses.dataclass(frozen=True)
class GGUFTensor:
    """A tensor in a GGUF file; see `checkpoints.tensors.StoredTensor`.

    Attributes:
      file: The file that holds it.
      name: The name of the tensor in the file.
      shape: The dimensions of the tensor, row-major.
      stored: The description of the tensor by `gguf`.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    stored: gguf.ReaderTensor
    dtype = np.dtype(np.float32)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a part; the whole tensor is dequantised for it."""
        return self.read()[index]

    def read(self) -> np.ndarray:
        """Returns the whole tensor, float32.

        Raises:
          UserError: `gguf` cannot dequantise the tensor's type.
        """
        try:
            values = gguf.dequantize(self.stored.data, self.stored.tensor_type)
        except NotImplementedError as error:
            raise UserError(
                f"{self.file}: {self.name} has the ggml type {self.stored.tensor_type.name}, "
                f"which the package gguf cannot dequantise ({error})."
            ) from error
        return np.ascontiguousarray(values, np.float32).reshape(self.shape)


class _Reader(gguf.GGUFReader):
    """`gguf.GGUFReader`, except that arrays are unpacked in one pass.

    The original makes several numpy views for each element: opening a file with a vocabulary of
    49,152 tokens and its merges took 2.5 s.
    """

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        (length,) = self._get(orig_offs + 4, np.uint64)
        start = orig_offs + 12
        if kind == GGUFValueType.STRING:
            values, end = self._strings(start, int(length))
        elif kind in self.gguf_scalar_to_np:
            array = self._get(start, self.gguf_scalar_to_np[kind], int(length))
            if len(array) < length:
                raise ValueError("an array is cut short")
            values, end = array.tolist(), start + array.nbytes
        else:
            raise ValueError(f"an array of {kind.name} is not supported")
        return end - orig_offs, [values], [], [GGUFValueType.ARRAY, kind]

    def _strings(self, start: int, count: int) -> tuple[list[str], int]:
        size = struct.Struct("<Q" if self.byte_order == "I" else ">Q")
        # numpy's types miss that a memory map is a buffer in Python 3.11.
        data, at, found = memoryview(cast("Buffer", self.data)), start, []
        for _ in range(count):
            (length,) = size.unpack_from(data, at)
            at += size.size
            found.append(str(data[at : at + length], "utf-8"))
            at += length
        return found, at

    def value(self, field: gguf.ReaderField) -> Any:
        """Returns a field's value."""
        return field.parts[-1] if field.types[0] == GGUFValueType.ARRAY else field.contents()
