"""Low-rank adapters (LoRA, Hu et al. 2021): apart from the weights that they adapt.

A run with adapters saves the adapters alone, and says where the weights lie that it began from,
with a digest of them. Whoever reads such a checkpoint gets both, merged:

    kernel = kernel + (alpha / rank) · lora_a · lora_b

The tree is that of the network: `…/query/kernel` [I, O], `…/query/lora_a` [I, r] and
`…/query/lora_b` [r, O].
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from sbs_jax.errors import UserError
from sbs_jax.models.config import adapted_name
from sbs_jax.models.interface import ModelConfig

DOWN, UP = "lora_a", "lora_b"
FROZEN = rf"^(?!.*/({DOWN}|{UP})$)"
"""The regular expression, for `training.optimizers.freeze`, of all parameters but adapters."""
BASE = "base"
"""The name, in MODEL_DIR, of the weights that were adapted, or of a link to them, if they have
been moved."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """The adapters of a network; see `T5Config`.

    Attributes:
      rank: r.
      alpha: adapters are multiplied by alpha / rank.
      targets: the projections that have adapters.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """What products of adapters are multiplied by."""
        return self.alpha / self.rank


def of_config(config: Any) -> Lora | None:
    """The adapters of a network's config, or of the JSON that was saved of it; None without any."""
    if isinstance(config, ModelConfig):
        config = dataclasses.asdict(config)
    if not isinstance(config, Mapping) or config.get("lora_rank") is None:
        return None
    return Lora(config["lora_rank"], config["lora_alpha"], tuple(config["lora_targets"]))


def without(config: ModelConfig) -> ModelConfig:
    """The config of the network whose weights are merged."""
    return dataclasses.replace(config, lora_rank=None)


def split(params: Any) -> tuple[Any, Any]:
    """The tree of all parameters but adapters, and that of the adapters."""
    parts: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        parts[path.rpartition("/")[2] in (DOWN, UP)][path] = leaf
    base, adapters = (traverse_util.unflatten_dict(part, sep="/") for part in parts)
    return base, adapters


def adapters_of(params: Any) -> Any:
    """The second tree of `split`."""
    return split(params)[1]


def join(base: Any, adapters: Any) -> Any:
    """Undoes `split`."""
    flat = traverse_util.flatten_dict(base, sep="/")
    flat |= traverse_util.flatten_dict(adapters, sep="/")
    return traverse_util.unflatten_dict(flat, sep="/")


def abstract_adapters(abstract_base: Any, lora: Lora) -> Any:
    """The adapters that belong to abstract parameters, each whole on every device."""
    found = {}
    for path, leaf in traverse_util.flatten_dict(abstract_base, sep="/").items():
        module, _, name = path.rpartition("/")
        if name != "kernel" or adapted_name(module.rpartition("/")[2]) not in lora.targets:
            continue
        sharding = leaf.sharding
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec())
        inputs, outputs = leaf.shape
        for name, shape in ((DOWN, (inputs, lora.rank)), (UP, (lora.rank, outputs))):
            whole = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
            found[f"{module}/{name}"] = whole
    return traverse_util.unflatten_dict(found, sep="/")


def merge(base: Any, adapters: Any, lora: Lora) -> Any:
    """Adds the products of adapters to the kernels that they adapt; sums are float32."""
    flat = traverse_util.flatten_dict(base, sep="/")
    small = traverse_util.flatten_dict(adapters, sep="/")
    for path in small:
        module, _, name = path.rpartition("/")
        if name == DOWN:
            kernel = flat[f"{module}/kernel"]
            product = jnp.matmul(small[path], small[f"{module}/{UP}"], precision="highest")
            added = kernel.astype(jnp.float32) + lora.scale * product
            flat[f"{module}/kernel"] = added.astype(kernel.dtype)
    return traverse_util.unflatten_dict(flat, sep="/")


def merging(jit: Callable[..., Any], lora: Lora) -> Callable[[Any], Any]:
    """Returns `merge` of all parameters, compiled; what no adapter adapts is not copied.

    Args:
      jit: compiles a function, as `Student.jit` does.
      lora: the settings of the adapters.
    """
    compiled = jit(functools.partial(merge, lora=lora))

    def merged(params: Any) -> Any:
        base, adapters = split(params)
        flat = traverse_util.flatten_dict(base, sep="/")
        adapted = traverse_util.flatten_dict(adapters, sep="/")
        names = {f"{path.rpartition('/')[0]}/kernel" for path in adapted}
        kernels = {name: flat[name] for name in sorted(names)}
        return join(base, compiled(traverse_util.unflatten_dict(kernels, sep="/"), adapters))

    return merged


def find_base(model_dir: epath.Path, recorded: str | None) -> epath.Path:
    """Where the weights lie that a run adapted.

    Args:
      model_dir: MODEL_DIR of the run; what is called `base` in it comes first.
      recorded: the path of the weights that the run began from.

    Raises:
      UserError: they are in neither place.
    """
    for place in (model_dir / BASE, *([epath.Path(recorded)] if recorded else [])):
        if place.exists():
            return place
    raise UserError(
        f"{model_dir}: holds adapters (LoRA) of the weights in {recorded}, which are not there any "
        f"more; put them, or a link to them, at {model_dir / BASE}."
    )


def require_same(found: str, recorded: str | None, base: epath.Path, model_dir: epath.Path) -> None:
    """Compares the digest of weights with the one that a run recorded.

    Raises:
      UserError: these are other weights than those that were adapted.
    """
    if recorded is not None and found != recorded:
        raise UserError(
            f"{base}: are other weights than those that {model_dir} has adapters (LoRA) of; put "
            f"these, or a link to them, at {model_dir / BASE}."
        )


def digest_of_files(place: epath.Path) -> str:
    """SHA-256 of a file of weights, or of all files of weights in a folder, by name."""
    files = [place]
    if place.is_dir():
        suffixes = (".safetensors", ".bin")
        files = sorted(file for file in place.iterdir() if file.suffix in suffixes)
    digest = hashlib.sha256()
    for file in files:
        with Path(file).open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def to_peft(
    adapters: Any, lora: Lora, names: Mapping[str, str], base: str, task_type: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The adapters as the package `peft` reads them.

    Args:
      adapters: the tree of adapters.
      lora: the settings of the adapters.
      names: the name in transformers of each kernel's weight, by our path of the kernel.
      base: a name or a place of the weights that they adapt, for `adapter_config.json`.
      task_type: peft's name of what the network does, `CAUSAL_LM` or `SEQ_2_SEQ_LM`.

    Returns:
      The tensors of `adapter_model.safetensors`, [r, I] and [O, r], and `adapter_config.json`.
    """
    tensors: dict[str, Any] = {}
    modules = set()
    for path, leaf in traverse_util.flatten_dict(adapters, sep="/").items():
        module, _, name = path.rpartition("/")
        theirs = names[f"{module}/kernel"].removesuffix(".weight")
        modules.add(theirs.rpartition(".")[2])
        kind = "lora_A" if name == DOWN else "lora_B"
        tensors[f"base_model.model.{theirs}.{kind}.weight"] = leaf
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(modules),
        "inference_mode": True,
    }
    return tensors, config
