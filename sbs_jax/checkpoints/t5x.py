"""T5X's checkpoints, both of its formats, read through TensorStore; T5X itself is not needed.

* legacy, that of the public checkpoints: a msgpack file `checkpoint`, which holds small arrays
  itself and for a large one a TensorStore spec, `{"driver": "zarr", "kvstore": {"path":
  "target.encoder.…"}}`; the zarr array lies beside it;
* Orbax: a folder `state` with the arrays `target.encoder.…` as zarr, in one OCDBT store or as
  folders.

The parameters are the tree `target`, whose names are ours (`t5x/checkpoints.py`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import tensorstore
from etils import epath
from flax import serialization

from sbs_jax.checkpoints.tensors import Index, OneLayer, StoredTensor
from sbs_jax.errors import UserError

LEGACY_FILE = "checkpoint"
ORBAX_ITEM = "state"

_TARGET = "target"
_OCDBT_MANIFEST = "manifest.ocdbt"
_ORBAX_TREE = "_METADATA"
# T5X's scalable networks run `lax.scan` over layers, whose parameters are stacked in one array.
_STACKED = re.compile(r"(encoder|decoder)/(\1|layers)/")
_EMBEDDING = "token_embedder/embedding"


@dataclasses.dataclass(frozen=True)
class ZarrTensor:
    """An array that TensorStore reads; see `tensors.StoredTensor`.

    Attributes:
      name: the name that messages use.
      store: open for reading.
      dtype: the dtype of what is read. bfloat16 that old versions of T5X wrote as uint16 is
        bfloat16.
    """

    name: str
    store: tensorstore.TensorStore
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions of the tensor."""
        return tuple(self.store.shape)

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads a part."""
        try:
            values = self.store[index].read().result()
        except (ValueError, OSError) as error:
            raise UserError(f"{self.name}: cannot be read ({_reason(error)}).") from None
        return values.view(self.dtype) if values.dtype == np.uint16 else values


@dataclasses.dataclass(frozen=True)
class T5XCheckpoint:
    """A T5X checkpoint, opened.

    Attributes:
      step: the step of the training that wrote it; None where it does not say.
      params: the parameters by path, `encoder/layers_0/mlp/wi_0/kernel`; large ones are not read
        yet.
    """

    step: int | None
    params: dict[str, StoredTensor]


def is_legacy(folder: epath.Path) -> bool:
    """Whether the folder looks like a checkpoint in T5X's own format."""
    file = folder / LEGACY_FILE
    return file.is_file() and not is_tensorflow(folder)


def is_tensorflow(folder: epath.Path) -> bool:
    """Whether it is a TensorFlow checkpoint, of Mesh TensorFlow's T5: it has such a file, too."""
    return any(folder.glob("*.ckpt-*.index")) or any(folder.glob("*.ckpt-*.meta"))


def is_orbax(folder: epath.Path) -> bool:
    """Whether the folder looks like a checkpoint that T5X wrote through Orbax."""
    state = folder / ORBAX_ITEM
    return state.is_dir() and (
        (state / _OCDBT_MANIFEST).exists()
        or (state / _ORBAX_TREE).exists()
        or any(state.glob(f"{_TARGET}.*"))
    )


def open_legacy(folder: epath.Path) -> T5XCheckpoint:
    """Opens a checkpoint in T5X's own format.

    Raises:
      UserError: it is damaged, or no T5X checkpoint.
    """
    file = folder / LEGACY_FILE
    try:
        contents = serialization.msgpack_restore(file.read_bytes())
        # Version 0 had no frame around the optimizer's state.
        state = contents.get("optimizer", contents)
        target = state[_TARGET]
        leaves = _leaves(target)
    except Exception as error:  # msgpack and flax raise whatever their bytes lead them to
        reason = f"{type(error).__name__}: {_reason(error)}"
        raise UserError(
            f"{file}: is no T5X checkpoint that can be read ({reason[:200]})."
        ) from None
    context = _context()
    params = {
        name: _open_spec(folder, name, leaf, context) if isinstance(leaf, Mapping) else leaf
        for name, leaf in leaves.items()
    }
    step = (state.get("state") or {}).get("step")
    params = _layer_by_layer(folder, params)
    return T5XCheckpoint(int(step) if isinstance(step, np.ndarray | np.generic) else None, params)


def open_orbax(folder: epath.Path) -> T5XCheckpoint:
    """Opens a checkpoint that T5X wrote through Orbax.

    Raises:
      UserError: it is damaged.
    """
    state = folder / ORBAX_ITEM
    tree = _orbax_tree(state)
    if not (names := [name for name in tree.names if name.startswith(f"{_TARGET}.")]):
        raise UserError(f"{state}: holds no parameters (arrays {_TARGET}.…).")
    paths = {name.removeprefix(f"{_TARGET}.").replace(".", "/"): name for name in names}
    context = _context()

    def open_array(name: str) -> ZarrTensor:
        kvstore = _kvstore(state, name, ocdbt=tree.ocdbt)
        return _open_zarr(f"{state}: {name}", tree.driver, kvstore, context)

    params = {path: open_array(name) for path, name in paths.items()}
    step = None
    if f"{ORBAX_ITEM}.step" in tree.names:
        step = int(open_array(f"{ORBAX_ITEM}.step")[()])
    return T5XCheckpoint(step, _layer_by_layer(folder, params))


@dataclasses.dataclass(frozen=True)
class _OrbaxTree:
    names: tuple[str, ...]
    ocdbt: bool
    driver: str


def _orbax_tree(state: epath.Path) -> _OrbaxTree:
    """The names of the arrays, and how they are stored."""
    ocdbt = (state / _OCDBT_MANIFEST).exists()
    file = state / _ORBAX_TREE
    if not file.exists():
        names = sorted(child.name for child in state.iterdir() if child.is_dir())
        if ocdbt:
            store = tensorstore.KvStore.open(_kvstore(state, "", ocdbt=True)).result()
            keys = [key.decode() for key in store.list().result()]
            names = sorted({key.partition("/")[0] for key in keys})
        return _OrbaxTree(tuple(names), ocdbt, "zarr")
    try:
        content = json.loads(file.read_text())
        entries = [entry["key_metadata"] for entry in content["tree_metadata"].values()]
        names = [".".join(str(part["key"]) for part in entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: is no readable description of an Orbax checkpoint ({_reason(error)})."
        ) from None
    return _OrbaxTree(tuple(names), ocdbt, "zarr3" if content.get("use_zarr3") else "zarr")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Arrays and specs by path; a flat tree (`encoder/layers_0/…` or with dots) as a nested one."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{str(key).replace('.', '/')}"
        if isinstance(value, Mapping) and not {"driver", "kvstore"} <= set(value):
            found.update(_leaves(value, f"{path}/"))
        elif isinstance(value, Mapping | np.ndarray):
            found[path] = value
        else:
            raise TypeError(f"{path} is a {type(value).__name__}")
    return found


def _open_spec(
    folder: epath.Path, name: str, spec: Mapping[str, Any], context: tensorstore.Context
) -> ZarrTensor:
    """Opens the array of a spec that the msgpack file holds.

    The spec says where the array was when it was written (a bucket's path has its place beside
    `kvstore` in old ones). The array always lies beside the file, under the path's last part.
    """
    kvstore = spec["kvstore"]
    written = kvstore.get("path") if isinstance(kvstore, Mapping) else kvstore
    written = written or spec.get("path") or f"{_TARGET}.{name.replace('/', '.')}"
    array = str(written).rstrip("/").rpartition("/")[2]
    label = f"{folder / array}"
    return _open_zarr(label, str(spec["driver"]), _kvstore(folder, array, ocdbt=False), context)


def _open_zarr(
    name: str, driver: str, kvstore: str | dict[str, Any], context: tensorstore.Context
) -> ZarrTensor:
    # Without `fill_missing_data_reads`, a chunk whose file is lost would be read as zeros.
    spec = {"driver": driver, "kvstore": kvstore, "fill_missing_data_reads": False}
    try:
        store = tensorstore.open(spec, open=True, read=True, context=context).result()
    except (ValueError, OSError) as error:
        raise UserError(f"{name}: cannot be read ({_reason(error)}).") from None
    dtype = store.dtype.numpy_dtype
    return ZarrTensor(name, store, np.dtype(ml_dtypes.bfloat16) if dtype == np.uint16 else dtype)


def _kvstore(folder: epath.Path, name: str, *, ocdbt: bool) -> str | dict[str, Any]:
    """TensorStore's words for the array `name` below `folder`; folders may be in a bucket."""
    text = str(folder)
    path = f"{name}/" if name else ""
    local = "://" not in text
    if ocdbt:
        base = {"driver": "file", "path": f"{text}/"} if local else f"{text}/"
        return {"driver": "ocdbt", "base": base, "path": path}
    return {"driver": "file", "path": f"{text}/{path}"} if local else f"{text}/{path}"


def _context() -> tensorstore.Context:
    return tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})


def _layer_by_layer(
    folder: epath.Path, params: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The parameters with each layer's own arrays, where a stack's layers lie in one array.

    T5X's scalable networks (`t5x/examples/scalable_t5/network.py`) scan over layers: the axis of
    the layers is the second one by default, the first with `param_scan_axis = 0`. Each of their
    layers has position biases of its own (`relative_attention_per_layer`).

    Raises:
      UserError: there are such arrays, and which axis is that of the layers cannot be recognised.
    """
    if not any(_STACKED.match(name) for name in params):
        return dict(params)
    found: dict[str, StoredTensor] = {}
    width = params[_EMBEDDING].shape[1] if _EMBEDDING in params else None
    axes = {
        tuple(tensor.shape).index(width) ^ 1
        for name, tensor in params.items()
        if _STACKED.match(name)
        and name.endswith("layer_norm/scale")
        and width in tensor.shape
        # With as many layers as dimensions either axis could be it.
        and tensor.shape[0] != tensor.shape[1]
    }
    if len(axes) != 1:
        raise UserError(
            f"{folder}: holds all layers of a stack in one array, and neither axis of its norms "
            f"has the embedding's width ({width}), so the layers cannot be told apart."
        )
    (axis,) = axes
    for name, tensor in params.items():
        match = _STACKED.match(name)
        if match is None:
            found[name] = tensor
            continue
        rest = name[match.end() :].replace("relative_posemb/", "relpos_bias/")
        for layer in range(tensor.shape[axis]):
            found[f"{match[1]}/layers_{layer}/{rest}"] = OneLayer(tensor, axis, layer)
    return found


def _reason(error: Exception) -> str:
    """TensorStore's and other libraries' messages, cut to what people read."""
    text = str(error).partition(" [tensorstore_spec")[0].partition("\n")[0]
    return text.partition(" [source locations")[0][:200]
