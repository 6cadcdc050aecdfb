"""Writes weights for Hugging Face's transformers: `python -m sbs_jax.export`."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from sbs_jax.checkpoints import (
    decoder_config_json,
    decoder_huggingface,
    folders,
    gguf_export,
    huggingface,
    loading,
    model_card,
    networks,
    record,
    state_dicts,
    t5gemma2,
    tokenizer_files,
)
from sbs_jax.checkpoints import lora as lora_lib
from sbs_jax.checkpoints.huggingface import CONFIG_FILE, config_to_huggingface
from sbs_jax.checkpoints.safetensors_files import INDEX_FILE, WEIGHTS_FILE, write_safetensors
from sbs_jax.checkpoints.state_dicts import TensorName, parameter_shapes
from sbs_jax.checkpoints.tensors import StoredTensor, Transposed, require_same_shapes
from sbs_jax.errors import UserError
from sbs_jax.files import atomic_open, atomic_write_text, refuse_remote
from sbs_jax.json_files import read_jsonl
from sbs_jax.models.config import T5Config
from sbs_jax.models.decoder.config import DecoderConfig, LayerConfig
from sbs_jax.models.interface import ModelConfig
from sbs_jax.models.t5gemma2.config import T5Gemma2Config
from sbs_jax.text_tokenizer import TextTokenizer, is_tokenizer

FORMATS = ("huggingface", "gguf")
DTYPES = ("float32", "float16", "bfloat16")

_LOG = logging.getLogger(__name__)


def export(
    *,
    checkpoint_path: str,
    output_dir: str,
    dtype: str = "float32",
    model_config: ModelConfig | None = None,
    vocabulary_path: str | None = None,
    eval_output_dir: str | None = None,
    adapters_only: bool = False,
    file_format: str = "huggingface",
) -> Path:
    """Writes a folder that transformers, and what converts from it, can load.

    Adapters (LoRA) are merged into the weights, or written by themselves for the package `peft`.

    It holds `config.json`, `generation_config.json`, `model.safetensors`, `spiece.model` (unless
    the student has a pretrained tokenizer), `tokenizer.json` with its configuration, `README.md`
    (a model card), and `student.json`, by which sbs_jax knows a student's settings again.

    Args:
      checkpoint_path: see `loading.identify`.
      output_dir: the folder; files of the same names are replaced.
      dtype: the dtype of the weights, `float32`, `float16` or `bfloat16`; see `file_format`.
      model_config: the network's dimensions, for checkpoints that do not say theirs (T5X's).
      vocabulary_path: a SentencePiece model; by default the checkpoint's own.
      eval_output_dir: the eval output dir of `sbs_jax.eval`, whose scores go into the model card.
      file_format: `huggingface`, or `gguf`: one file `OUTPUT_DIR/NAME.gguf` for llama.cpp, NAME
        being that of the folder; `dtype` is `float32`, `float16` or `q8_0` then.
      adapters_only: write `adapter_model.safetensors` and `adapter_config.json` alone.

    Returns:
      The folder.

    Raises:
      UserError: something the user gave does not work; the sentence says what.
    """
    if file_format not in FORMATS:
        raise UserError(f"FORMAT = {file_format!r} must be one of {', '.join(map(repr, FORMATS))}.")
    dtypes = tuple(gguf_export.TYPES) if file_format == "gguf" else DTYPES
    if dtype not in dtypes:
        raise UserError(f"DTYPE = {dtype!r} must be one of {', '.join(map(repr, dtypes))}.")
    source = loading.identify(checkpoint_path)
    refuse_remote(output_dir)
    folder = Path(output_dir).expanduser().absolute()
    _require_free(folder, source)
    config = networks.require_config(source, model_config, "give MODEL (a file of gin/models)")
    if adapters_only:
        return _export_adapters(source, config, folder, dtype)
    vocabulary = Path(vocabulary_path or source.require_vocabulary()).expanduser()
    tokenizer = proto = None
    if is_tokenizer(vocabulary):
        tokenizer = TextTokenizer(vocabulary)
        size = tokenizer.size
    else:
        proto = tokenizer_files.read_sentencepiece(vocabulary)
        size = len(proto.pieces)
    if size > config.vocab_size:
        raise UserError(
            f"{vocabulary}: has {size} pieces, but the embedding has "
            f"{config.vocab_size} rows; name the vocabulary that the weights were trained with by "
            "--gin.VOCABULARY_PATH=PATH."
        )
    if file_format == "gguf":
        if not isinstance(config, DecoderConfig) or tokenizer is None:
            raise UserError(
                "FORMAT = 'gguf' is for decoder-only students with a pretrained tokenizer; "
                "llama.cpp's own converter makes a GGUF file of an exported T5."
            )
        path = folder / f"{folder.name}.gguf"
        gguf_export.write_gguf(
            path, config, _in_own_order(source, config), tokenizer, dtype=dtype, name=folder.name
        )
        _LOG.info("Written to %s", path)
        return path
    generation: dict[str, Any]
    if isinstance(config, DecoderConfig):
        config_json = decoder_config_json.config_to_huggingface(config, dtype)
        generation = {"eos_token_id": config.eos_id, "pad_token_id": config.pad_id}
    elif isinstance(config, T5Gemma2Config):
        config_json = t5gemma2.config_to_huggingface(config, dtype)
        generation = t5gemma2.generation_to_huggingface(config)
    else:
        config_json = config_to_huggingface(config, dtype)
        generation = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    scores = {} if eval_output_dir is None else _eval_scores(Path(eval_output_dir).expanduser())
    settings = _without_paths(source.settings)
    lengths = settings.get("feature_lengths") or {}

    # The weights first: they are what may fail.
    tensors = _weights(source, config)
    write_safetensors(folder / WEIGHTS_FILE, tensors, dtype)
    _write_json(folder / CONFIG_FILE, config_json)
    if "targets" in lengths:
        generation["max_new_tokens"] = lengths["targets"]
    _write_json(folder / "generation_config.json", generation)
    if tokenizer is not None:
        texts = {
            "tokenizer.json": tokenizer.serialized().decode(),
            "tokenizer_config.json": tokenizer.config_text(),
        }
    else:
        with atomic_open(folder / loading.VOCABULARY_FILE, "wb") as file:
            file.write(vocabulary.read_bytes())
        texts = tokenizer_files.tokenizer_files(
            proto, max_length=lengths.get("inputs"), add_eos=isinstance(config, T5Config)
        )
    for name, text in texts.items():
        atomic_write_text(folder / name, text)
    record.write(folder, config, settings)
    # What the run's own evaluation of this very checkpoint gave.
    own_scores: dict[str, float] = {}
    if source.kind == "sbs_jax":
        own_scores = folders.read_info(source.folder)["metrics"] or {}
    card = model_card.write(
        name=folder.name,
        config=config,
        dtype=dtype,
        settings=settings,
        step=source.step,
        own_scores=own_scores,
        scores=scores,
    )
    atomic_write_text(folder / "README.md", card)
    if (
        isinstance(config, T5Config)
        and config.relative_attention_per_layer
        and not config.scales_logits
    ):
        _LOG.warning(
            "transformers 5 divides the logits of every umT5 by the square root of d_model, which "
            "this network does not: greedy text is the same, probabilities are not."
        )
    _LOG.info("Written to %s", folder)
    return folder


def _export_adapters(source: loading.Source, config: ModelConfig, folder: Path, dtype: str) -> Path:
    lora = source.lora
    if isinstance(config, T5Gemma2Config):
        raise UserError(
            "ADAPTERS_ONLY is not for a T5Gemma 2; export it without, its adapters merged."
        )
    if lora is None:
        raise UserError(
            f"{source.folder}: holds no adapters (it was not trained with LORA_RANK); export it "
            "without ADAPTERS_ONLY."
        )
    task_type = "CAUSAL_LM" if isinstance(config, DecoderConfig) else "SEQ_2_SEQ_LM"
    names = {path: theirs.name for path, theirs in _sources(config).items()}
    tensors, adapter_config = lora_lib.to_peft(
        loading.load_adapters(source, lora, _on_host(config)),
        lora,
        names,
        os.path.basename(str(source.settings.get("initial_checkpoint") or "").rstrip("/")),
        task_type,
    )
    stored = {name: Transposed(tensor) for name, tensor in tensors.items()}
    write_safetensors(folder / "adapter_model.safetensors", stored, dtype)
    _write_json(folder / "adapter_config.json", adapter_config)
    _LOG.info("Written to %s", folder)
    return folder


def _require_free(folder: Path, source: loading.Source) -> None:
    if folders.same_place(folder, os.fspath(source.folder)):
        raise UserError(f"OUTPUT_DIR {folder}: is the folder that is exported; choose another one.")
    if folders.complete_checkpoints(folder):
        raise UserError(f"OUTPUT_DIR {folder}: is the MODEL_DIR of a run; choose another folder.")
    if (folder / INDEX_FILE).exists():
        raise UserError(
            f"OUTPUT_DIR {folder}: holds the shards of other weights ({INDEX_FILE}); choose "
            "another folder."
        )


def _weights(source: loading.Source, config: ModelConfig) -> dict[str, StoredTensor]:
    """Hugging Face's tensors by name, still to be read where that is possible."""
    stored = _in_own_order(source, config)
    tensors = state_dicts.named(stored, _sources(config))
    return tensors | (t5gemma2.no_images(config) if isinstance(config, T5Gemma2Config) else {})


def _in_own_order(source: loading.Source, config: ModelConfig) -> Mapping[str, StoredTensor]:
    """The parameters by path, in our layout, the vocabulary in the order of its own file."""
    abstract = _on_host(config)
    if source.kind == "sbs_jax":
        stored = traverse_util.flatten_dict(loading.load_params(source, abstract), sep="/")
    else:
        stored = loading.stored_params(source)
    shapes = traverse_util.flatten_dict(abstract, sep="/")
    require_same_shapes(
        {name: tuple(tensor.shape) for name, tensor in stored.items()},
        {name: tuple(leaf.shape) for name, leaf in shapes.items()},
        where=str(source.folder),
        advice="use the MODEL of this checkpoint",
    )
    if isinstance(config, LayerConfig):
        stored = decoder_huggingface.in_own_order(stored, config)
    return stored


def _sources(config: ModelConfig) -> dict[str, TensorName]:
    """Where each of our parameters lies in Hugging Face's files."""
    if isinstance(config, DecoderConfig):
        return decoder_huggingface.huggingface_sources(config)
    if isinstance(config, T5Gemma2Config):
        return t5gemma2.huggingface_sources(config)
    return huggingface.huggingface_sources(config)


def _on_host(config: ModelConfig) -> Any:
    """The tree of the parameters, in the host's memory.

    A mesh may have trained more of them than any of its devices has room for.
    """
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out.
        device = jax.local_devices()[0]
    host = jax.sharding.SingleDeviceSharding(device)
    leaves = {
        path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=host)
        for path, shape in parameter_shapes(config).items()
    }
    return traverse_util.unflatten_dict(leaves, sep="/")


def _eval_scores(folder: Path) -> dict[str, dict[str, Any]]:
    """The metrics of each split that `sbs_jax.eval` wrote."""
    rows = [row for _, row in read_jsonl(folder / "eval_metrics.jsonl")]
    return {str(row["split"]): row for row in rows if "split" in row}


def _without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without the places of one machine."""
    kept = copy.deepcopy(dict(settings))
    for name in ("data_dir", "model_dir", "vocabulary_path"):
        (kept.get("data_settings") or {}).pop(name, None)
    if kept.get("initial_checkpoint"):
        kept["initial_checkpoint"] = os.path.basename(str(kept["initial_checkpoint"]).rstrip("/"))
    kept.pop("model_config", None)
    return kept


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    atomic_write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
