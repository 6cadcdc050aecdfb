"""One loader for weights of every origin: ours, Hugging Face's, and both of T5X's formats.

    source = identify("runs/svamp")  # or a Hugging Face folder, a T5X checkpoint, …
    student = Student(source.config, mesh)
    params = load_params(source, student.placed_params)

Nothing here knows of TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
from etils import epath
from flax import traverse_util

from sbs_jax import remote, remote_copies
from sbs_jax.checkpoints import folders, hub, record, safetensors_files, t5gemma2, t5x, tensors
from sbs_jax.checkpoints import lora as lora_lib
from sbs_jax.checkpoints.decoder_config_json import FAMILIES
from sbs_jax.checkpoints.decoder_gguf import open_gguf
from sbs_jax.checkpoints.decoder_huggingface import open_decoder
from sbs_jax.checkpoints.huggingface import CONFIG_FILE, open_huggingface
from sbs_jax.checkpoints.manager import restore_params
from sbs_jax.checkpoints.safetensors_files import read_json
from sbs_jax.errors import UserError
from sbs_jax.models import stacking
from sbs_jax.models.interface import ModelConfig, config_from_json
from sbs_jax.text_tokenizer import FILE, TextTokenizer, is_tokenizer

Kind = Literal["sbs_jax", "huggingface", "gguf", "t5x", "t5x_orbax"]

VOCABULARY_FILE = "spiece.model"

ADVICE = (
    "use the MODEL of this checkpoint (--gin_file=models/from_checkpoint.gin reads it off, except "
    "for T5X's), or another checkpoint"
)
_STEP = re.compile(rf"{folders.PREFIX}_(\d+)")


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights that were found; nothing big has been read of them.

    Attributes:
      kind: the format that they have.
      folder: the folder of the checkpoint itself; for `huggingface` the folder of `config.json`.
      step: the step of the training that wrote them; None where the format has no such thing.
    """

    kind: Kind
    folder: epath.Path
    step: int | None = None

    @functools.cached_property
    def config(self) -> ModelConfig | None:
        """The network's dimensions; None for T5X's, which lie in T5X's gin files.

        Raises:
          UserError: what says so is damaged, or it is no T5.
        """
        if self.kind in ("huggingface", "gguf"):
            return self._opened[0]
        if self.kind == "sbs_jax":
            if saved := self._metadata.get("model_config"):
                return config_from_json(saved, self.folder)
            return self._record.model_config
        return None

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """How a student of ours was trained; {} for weights of others.

        Keys: `mixture_or_task_name`, `mixture_or_task_module`, `method`, `label_source`,
        `rationale_source`, `rationale_weight` (None under a schedule), `loss_normalization`,
        `feature_lengths` (`inputs`, `targets`), `initial_checkpoint`, and `data_settings`: the
        fields of `data.settings.DataSettings`, `label_prefix` and `rationale_prefix` among them. A
        run of an older version lacks some.
        """
        return {**self._record.settings, **self._metadata}

    @property
    def lora(self) -> lora_lib.Lora | None:
        """The adapters that a checkpoint of ours consists of; None where it has all weights."""
        return lora_lib.of_config(self._metadata.get("model_config"))

    def task_module(self, *, trust: bool) -> str | None:
        """Returns the module that registers the task that the student was trained on.

        Importing it runs its code, and a folder from elsewhere may bring a module along or name
        any other: that needs the user's consent, as `trust_remote_code` of transformers does.

        Args:
          trust: whether the user has consented.

        Returns:
          Its name; None where nothing needs to be imported (any more).

        Raises:
          UserError: the folder names a module that was not imported yet, without consent.
        """
        module = self.settings.get("mixture_or_task_module")
        if module is None or module in sys.modules:
            return None
        if not isinstance(module, str):
            raise UserError(f"{self.folder}: mixture_or_task_module = {module!r} is no name.")
        if trust or module == "sbs_jax.tasks" or module.startswith("sbs_jax.tasks."):
            return module
        raise UserError(
            f"{self.folder}: was trained on a task of the module {module!r}, whose code would run "
            "here; add --trust_modules if you trust this folder and that module, or name the "
            "module yourself: --gin.MIXTURE_OR_TASK_MODULE=NAME (eval), or a gin file that imports "
            "it."
        )

    @functools.cached_property
    def vocabulary_path(self) -> Path | None:
        """The vocabulary beside the weights, or that of their MODEL_DIR; None without.

        It is a file of this machine, if need be a copy: a SentencePiece model; for decoders and
        T5Gemma 2 also a `tokenizer.json` or the GGUF file itself.
        """
        path = self._vocabulary_place
        if not path.is_file():
            return None
        if is_tokenizer(path):
            return Path(TextTokenizer(path).path)
        return remote_copies.local(path)

    def require_vocabulary(self) -> Path:
        """`vocabulary_path`.

        Raises:
          UserError: there is none; says what there is.
        """
        if self.vocabulary_path is not None:
            return self.vocabulary_path
        others = [
            name
            for name in ("sentencepiece.bpe.model", "tokenizer.json", "vocab.json")
            if (self.folder / name).exists()
        ]
        beside = f" ({others[0]} is no SentencePiece model of a T5)" if others else ""
        raise UserError(
            f"{self._vocabulary_place}: the vocabulary that the weights were trained with is not "
            f"there{beside}; name it with --gin.VOCABULARY_PATH=PATH."
        )

    @functools.cached_property
    def _opened(self) -> tuple[ModelConfig, Mapping[str, tensors.StoredTensor]]:
        """The config and the tensors of weights of others."""
        if self.kind == "huggingface" and not self._has_own_tokenizer:
            return open_huggingface(Path(self.folder))
        # Padding and EOS are those of the tokenizer beside the weights.
        ids: tuple[int, ...] = ()
        if self.vocabulary_path is not None:
            tokenizer = TextTokenizer(self.vocabulary_path)
            ids = (tokenizer.pad_id, tokenizer.eos_id)
        if self.kind == "gguf":
            return open_gguf(Path(self.folder), *ids)[:2]
        if self._family == t5gemma2.FAMILY:
            return t5gemma2.open_t5gemma2(Path(self.folder), *ids)
        return open_decoder(Path(self.folder), *ids)

    @functools.cached_property
    def _family(self) -> str | None:
        """The `model_type` of a Hugging Face folder."""
        file = Path(self.folder) / CONFIG_FILE
        return read_json(file).get("model_type") if file.is_file() else None

    @property
    def _has_own_tokenizer(self) -> bool:
        """Whether models of this family have a `tokenizer.json`, no SentencePiece model."""
        return self._family in (*FAMILIES, t5gemma2.FAMILY)

    @property
    def layers_are_stacked(self) -> bool:
        """Whether a run of ours saved all layers of a stack in one array (`SCAN_LAYERS`)."""
        if self.kind != "sbs_jax":
            return False
        names = (folders.read_info(self.folder).get("digests") or {}).get(folders.PARAMS) or {}
        return any(f"/{stacking.STACKED}/" in name for name in names)

    @property
    def _vocabulary_place(self) -> epath.Path:
        if self.kind == "gguf":
            return self.folder  # the tokenizer lies in the file itself
        if self.kind == "huggingface" and self._has_own_tokenizer:
            return self.folder / FILE
        of_run = record.kept_vocabulary(self.folder.parent)
        # A run of T5X on gin/t5x keeps its vocabulary where ours do.
        if self.kind == "sbs_jax" or (self.kind != "huggingface" and of_run.is_file()):
            return of_run
        return self.folder / VOCABULARY_FILE

    @functools.cached_property
    def _metadata(self) -> dict[str, Any]:
        """What training saved with the checkpoint itself."""
        if self.kind != "sbs_jax":
            return {}
        metadata = (folders.read_info(self.folder).get("extra") or {}).get("metadata") or {}
        return dict(metadata)

    @functools.cached_property
    def _record(self) -> record.Record:
        if self.kind not in ("sbs_jax", "huggingface"):
            return record.Record(None, {})
        return record.read(self.folder if self.kind == "huggingface" else self.folder.parent)


def identify(path: str | os.PathLike[str]) -> Source:
    """Finds out what weights a user means.

    Args:
      path: a MODEL_DIR (its latest checkpoint), `MODEL_DIR/best`, a checkpoint in it; a GGUF file
        of a decoder; a Hugging Face folder, or (with the extra `hub`) a name on the Hugging Face
        hub, `google/flan-t5-base` or `google/flan-t5-base@REVISION`; a checkpoint of T5X, its
        `checkpoint` file, or the folder of T5X's checkpoints (its latest).

    Returns:
      Where they are and of what kind.

    Raises:
      UserError: there are none, or none that can be read.
    """
    folder = folders.absolute(path)
    if not folder.exists() and hub.is_name(os.fspath(path)):
        return Source("huggingface", epath.Path(hub.download(os.fspath(path))))
    if folder.is_file() and folder.suffix == ".gguf":
        return _at_hand(Source("gguf", folder))
    if folder.is_file():
        folder = _folder_of_file(folder)
    if source := _checkpoint(folder):
        return _at_hand(source)
    if folder.is_dir():
        steps = {
            int(match[1]): child
            for child in folder.iterdir()
            if (match := _STEP.fullmatch(child.name)) and child.is_dir()
        }
        for _, child in sorted(steps.items(), reverse=True):
            if (child / folders.PARAMS).is_dir() and not folders.is_complete(child):
                continue  # A run is still writing it, or was stopped while it did.
            if source := _checkpoint(child):
                return source
    if folder.name == "best" and not folder.exists():
        return _ours(folders.find_checkpoint(folder))
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; {_EXPECTED}.")
    if t5x.is_tensorflow(folder):
        raise UserError(
            f"{folder}: is a TensorFlow checkpoint; T5X's convert_tf_checkpoint.py makes one of "
            "T5X's format of it, which can be read."
        )
    raise UserError(f"{folder}: holds no weights that can be read; {_EXPECTED}.")


def _at_hand(source: Source) -> Source:
    """The same weights; remote ones of a format whose files are mapped into memory as a copy."""
    if source.kind in ("huggingface", "gguf") and remote.is_remote(source.folder):
        return dataclasses.replace(source, folder=epath.Path(remote_copies.local(source.folder)))
    return source


_EXPECTED = (
    "expected a MODEL_DIR or a checkpoint in one, a Hugging Face folder (config.json and "
    "model.safetensors), or a T5X checkpoint"
)


def load_params(source: Source, abstract_params: Any, *, advice: str = ADVICE) -> Any:
    """Reads parameters straight into the shards of a mesh, one tensor at a time.

    All processes of a run call this together; each reads what its own devices hold.

    Args:
      source: the result of `identify`.
      abstract_params: the tree wanted, of `jax.ShapeDtypeStruct` with shardings; values are cast
        to its dtypes.
      advice: ends the sentence on parameters that do not fit; of weights of others.

    Returns:
      The parameters on the devices.

    Raises:
      UserError: they do not fit (names the first parameter that differs, and its shapes), or a
        file is missing or damaged.
    """
    if source.kind == "sbs_jax":
        if source.lora is not None:
            return _restore_merged(source, source.lora, abstract_params)
        return _restore(source, abstract_params)
    stored: Any = stored_params(source)
    if stacking.is_stacked(abstract_params):
        nested = stacking.stack_layers(
            traverse_util.unflatten_dict(dict(stored), sep="/"), tensors.Stacked
        )
        stored = traverse_util.flatten_dict(nested, sep="/")
    return tensors.place_tree(stored, abstract_params, where=str(source.folder), advice=advice)


def base_of(source: Source) -> Source:
    """The weights whose adapters `source`, a checkpoint of ours, holds.

    Raises:
      UserError: they are not there any more, or are others.
    """
    model_dir, settings = source.folder.parent, source.settings
    place = lora_lib.find_base(model_dir, settings.get("initial_checkpoint"))
    base = identify(place)
    recorded = settings.get("lora_base_digest")
    lora_lib.require_same(weights_digest(base), recorded, place, model_dir)
    return base


def load_adapters(source: Source, lora: lora_lib.Lora, abstract_base: Any) -> Any:
    """Reads the adapters of a checkpoint of ours, given the abstract parameters that they adapt."""
    return restore_params(source.folder, lora_lib.abstract_adapters(abstract_base, lora))


def weights_digest(source: Source) -> str:
    """A digest of weights: of what a checkpoint of ours records, or of the files of others."""
    if source.kind == "sbs_jax":
        return str(folders.read_info(source.folder).get("digest"))
    return lora_lib.digest_of_files(source.folder)


def _restore_merged(source: Source, lora: lora_lib.Lora, abstract: Any) -> Any:
    adapters = load_adapters(source, lora, abstract)
    base = load_params(base_of(source), abstract)
    merge = jax.jit(
        functools.partial(lora_lib.merge, lora=lora),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
        donate_argnums=0,
    )
    return jax.block_until_ready(merge(base, adapters))


def _restore(source: Source, abstract: Any) -> Any:
    """Reads parameters of ours, layers stacked or one by one, whichever way they were saved."""
    if source.layers_are_stacked == stacking.is_stacked(abstract):
        return restore_params(source.folder, abstract)
    convert: Callable[[Any], Any]
    if source.layers_are_stacked:
        saved = stacking.stack_layers(abstract, stacking.stack_abstract)
        convert = stacking.unstack_layers
    else:
        saved = stacking.unstack_layers(abstract, stacking.take_abstract)
        convert = stacking.stack_layers
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    converted = jax.jit(convert, out_shardings=shardings, donate_argnums=0)
    return jax.block_until_ready(converted(restore_params(source.folder, saved)))


def load_params_of(path: str | os.PathLike[str], abstract_params: Any) -> Any:
    """`load_params` of what `identify` finds at `path`."""
    return load_params(identify(path), abstract_params)


def stored_params(source: Source) -> Mapping[str, tensors.StoredTensor]:
    """The parameters in files of others by path, in our layout, before they are read.

    Raises:
      UserError: a file is missing or damaged, or of another kind of model.
      ValueError: `source` is a checkpoint of ours, which Orbax reads.
    """
    if source.kind in ("huggingface", "gguf"):
        return source._opened[1]
    if source.kind == "t5x":
        return t5x.open_legacy(source.folder).params
    if source.kind == "t5x_orbax":
        return t5x.open_orbax(source.folder).params
    raise ValueError(f"{source.kind} is read by restore_params")


def _folder_of_file(file: epath.Path) -> epath.Path:
    known = (
        t5x.LEGACY_FILE,
        CONFIG_FILE,
        safetensors_files.WEIGHTS_FILE,
        safetensors_files.INDEX_FILE,
    )
    if file.name not in known:
        raise UserError(f"{file}: is a file; {_EXPECTED}.")
    return file.parent


def _checkpoint(folder: epath.Path) -> Source | None:
    """The weights in this very folder."""
    if not folder.is_dir():
        return None
    if (folder / folders.PARAMS).is_dir():
        return _ours(folders.find_checkpoint(folder))
    if (
        (folder / CONFIG_FILE).exists()
        or any(folder.glob("*.safetensors"))
        or any(folder.glob("pytorch_model*.bin"))
    ):
        return Source("huggingface", folder)
    if t5x.is_orbax(folder):
        return Source("t5x_orbax", folder, t5x.open_orbax(folder).step)
    if t5x.is_legacy(folder):
        return Source("t5x", folder, t5x.open_legacy(folder).step)
    return None


def _ours(folder: epath.Path) -> Source:
    return Source("sbs_jax", folder, int(folders.read_info(folder)["step"]))
