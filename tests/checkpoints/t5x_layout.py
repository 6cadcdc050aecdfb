"""Writes checkpoints as T5X does."""

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from flax import serialization, traverse_util


def zarr(folder, name, array):
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{folder / name}/"},
        "metadata": {"compressor": {"id": "gzip"}},
    }
    store = tensorstore.open(spec, create=True, dtype=array.dtype, shape=array.shape).result()
    store.write(array).result()


def spec_of(name, array, style):
    """What the msgpack file says of an array, in the words of different times and places."""
    metadata = {"shape": list(array.shape), "chunks": list(array.shape)}
    base = {"driver": "zarr", "dtype": str(array.dtype), "metadata": metadata}
    return {
        "now": base | {"kvstore": {"driver": "file", "path": f"{name}/"}},
        "gfile": base | {"kvstore": {"driver": "gfile", "path": name}},
        "bucket": base | {"kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket"}, "path": name},
        "moved": base | {"kvstore": {"driver": "gcs", "bucket": "b", "path": f"old/place/{name}/"}},
    }[style]


def write_legacy(folder, params, style="now", flat=False, dtype=None, nested_in="optimizer"):
    """Writes a checkpoint as T5X's `Checkpointer` does, large arrays beside the msgpack file."""
    folder.mkdir(parents=True)
    target = {}
    for path, array in params.items():
        if array.ndim < 2:
            target[path] = array
            continue
        name = f"target.{path.replace('/', '.')}"
        stored = array if dtype is None else array.astype(ml_dtypes.bfloat16).view(np.uint16)
        zarr(folder, name, stored)
        target[path] = spec_of(name, array, style)
    state = {
        "state": {"step": np.int32(120)},
        "target": target if flat else traverse_util.unflatten_dict(target, sep="/"),
    }
    contents = {"version": 3, nested_in: state} if nested_in else state
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(contents))
    return folder


def write_orbax(folder, params, *, ocdbt=True):
    """Writes what T5X's `OrbaxCheckpointManagerInterface` does, as far as parameters go."""
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)
    with ocp.Checkpointer(handler) as checkpointer:
        tree = {"target": params, "state": {"step": np.int32(80)}}
        checkpointer.save(folder / "state", args=ocp.args.PyTreeSave(tree))
    return folder
