"""Hugging Face's T5 weights, in and out: names, layouts and configs; torch is never imported.

`open_huggingface(folder)` finds what `save_pretrained` of transformers wrote and reads nothing big.
The mapping itself is pure: `config_from_huggingface`, `match_huggingface`, `config_to_huggingface`
and `huggingface_sources` work on dictionaries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sbs_jax.checkpoints import state_dicts
from sbs_jax.checkpoints.safetensors_files import open_safetensors, read_json
from sbs_jax.checkpoints.state_dicts import TensorName, parameter_shapes
from sbs_jax.checkpoints.tensors import StoredTensor, same_values
from sbs_jax.errors import UserError, located
from sbs_jax.models.config import T5Config

CONFIG_FILE = "config.json"

_EMBEDDING = "shared.weight"
_HEAD = "lm_head.weight"
# The stacks' own names of the shared embedding; files may hold copies under them, or only one.
_EMBEDDING_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# In some published files, although no T5 has a position bias in cross-attention.
_IGNORED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)

_MODEL_TYPES = ("t5", "mt5", "umt5")
_DEFAULT_ACTIVATION = {"t5": "relu", "mt5": "gated-gelu", "umt5": "gated-gelu"}
_ACTIVATIONS = {
    "relu": ("relu",),
    "gated-relu": ("relu", "linear"),
    # Hugging Face's `gated-gelu` is the tanh approximation; its plain `gelu` is not.
    "gelu": ("gelu_erf",),
    "gated-gelu": ("gelu", "linear"),
    "gelu_new": ("gelu",),
    "gated-gelu_new": ("gelu", "linear"),
    "silu": ("silu",),
    "gated-silu": ("silu", "linear"),
}


def open_huggingface(folder: str | Path) -> tuple[T5Config, dict[str, StoredTensor]]:
    """Finds the weights of a T5 that transformers saved; their values are read later.

    Args:
      folder: holds `config.json`, and `model.safetensors` or its shards with their index.

    Returns:
      The config, and where each of our parameters (by path) is read from, in our layout. Dropout is
      Hugging Face's, the dtype of activations float32; `dataclasses.replace` changes them.

    Raises:
      UserError: a file is missing or damaged, or holds another kind of model.
    """
    folder = Path(folder).expanduser()
    tensors = open_safetensors(folder)
    config_json = read_json(folder / CONFIG_FILE)
    with located(folder):
        config = config_from_huggingface(config_json, tensors)
        return config, match_huggingface(tensors, config)


def config_from_huggingface(
    config_json: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> T5Config:
    """The config of a Hugging Face T5.

    Whether the head is tied is read off the tensors: transformers 5 writes
    `tie_word_embeddings: true` for every T5, also when the head is its own.

    Args:
      config_json: `config.json`.
      tensors: the weights; only the embedding and the head are looked at.

    Returns:
      The config.

    Raises:
      UserError: it is no T5, or one of a kind that `T5Config` cannot say.
    """
    kind = config_json.get("model_type")
    if kind not in _MODEL_TYPES or not config_json.get("is_encoder_decoder", True):
        raise UserError(
            f"{CONFIG_FILE} describes a model of type {kind!r}; this reads encoder-decoders of "
            f"type {' or '.join(_MODEL_TYPES)}."
        )
    activation = config_json.get("feed_forward_proj", _DEFAULT_ACTIVATION[kind])
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{CONFIG_FILE}: feed_forward_proj = {activation!r} is not supported; supported are "
            f"{', '.join(_ACTIVATIONS)}."
        )
    fields = {
        "vocab_size": "vocab_size",
        "emb_dim": "d_model",
        "num_heads": "num_heads",
        "num_encoder_layers": "num_layers",
        "head_dim": "d_kv",
        "mlp_dim": "d_ff",
    }
    if missing := [name for name in fields.values() if name not in config_json]:
        raise UserError(f"{CONFIG_FILE} lacks {', '.join(missing)}.")
    decoder_layers = config_json.get("num_decoder_layers")
    tied = _is_tied(tensors)
    scaled = _scales_logits(config_json)
    return T5Config(
        **{ours: config_json[theirs] for ours, theirs in fields.items()},
        num_decoder_layers=config_json["num_layers"] if decoder_layers is None else decoder_layers,
        mlp_activations=_ACTIVATIONS[activation],
        dropout_rate=config_json.get("dropout_rate", 0.1),
        logits_via_embedding=tied,
        scale_logits=None if scaled is None or scaled == tied else scaled,
        relative_attention_num_buckets=config_json.get("relative_attention_num_buckets", 32),
        relative_attention_max_distance=config_json.get("relative_attention_max_distance", 128),
        relative_attention_per_layer=kind == "umt5",
        layer_norm_epsilon=config_json.get("layer_norm_epsilon", 1e-6),
    )


def match_huggingface(
    state_dict: Mapping[str, StoredTensor], config: T5Config
) -> dict[str, StoredTensor]:
    """Finds our parameters in a Hugging Face state dict; reads no more than it must.

    Args:
      state_dict: name → tensor, any float dtype.
      config: the config that it must fit, from `config_from_huggingface`.

    Returns:
      The tensor of each of our parameters, by path, in our layout.

    Raises:
      UserError: tensors are missing, unknown or of another shape; names them.
    """
    state_dict = _with_shared_embedding(state_dict)
    spare = {*_EMBEDDING_COPIES, *_IGNORED}
    if config.logits_via_embedding and _is_tied(state_dict):
        spare.add(_HEAD)
    return state_dicts.match(
        state_dict,
        huggingface_sources(config),
        parameter_shapes(config),
        weights="The Hugging Face weights",
        config="T5Config",
        is_spare=spare.__contains__,
    )


def config_to_huggingface(config: T5Config, dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` of a T5 or umT5, as transformers 4 and 5 read it.

    Args:
      config: the network.
      dtype: the dtype of the weights' file.

    Returns:
      JSON.

    Raises:
      UserError: transformers has no such network.
    """
    activation = next(
        (name for name, ours in _ACTIVATIONS.items() if ours == config.mlp_activations), None
    )
    if activation is None:
        raise UserError(
            f"mlp_activations = {config.mlp_activations!r}: Hugging Face's T5 has no such MLP; it "
            f"has {', '.join(str(ours) for ours in dict.fromkeys(_ACTIVATIONS.values()))}."
        )
    per_layer = config.relative_attention_per_layer
    tied = config.logits_via_embedding
    if per_layer and tied and not config.scales_logits:
        raise UserError(
            "Hugging Face's umT5 scales the logits of a tied head; this network does not."
        )
    return {
        "architectures": [f"{'UMT5' if per_layer else 'T5'}ForConditionalGeneration"],
        "model_type": "umt5" if per_layer else "t5",
        "vocab_size": config.vocab_size,
        "d_model": config.emb_dim,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_heads": config.num_heads,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": activation,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "dropout_rate": config.dropout_rate,
        "is_encoder_decoder": True,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        # To transformers 4 this says whether the head is tied, to 5 (which sees that by itself)
        # whether logits are scaled; T5 of 5 has the second key as well.
        "tie_word_embeddings": tied if not per_layer else config.scales_logits,
        **({} if per_layer else {"scale_decoder_outputs": config.scales_logits}),
        "dtype": dtype,
    }


def huggingface_sources(config: T5Config) -> dict[str, TensorName]:
    """Where each of our parameters (`encoder/layers_0/mlp/wo/kernel`) lies in Hugging Face's."""
    return dict(_sources(config))


def _sources(config: T5Config) -> Iterator[tuple[str, TensorName]]:
    def norm(ours: str, theirs: str) -> tuple[str, TensorName]:
        return f"{ours}/scale", TensorName(f"{theirs}.weight", transposed=False)

    def linear(ours: str, theirs: str) -> tuple[str, TensorName]:
        return f"{ours}/kernel", TensorName(f"{theirs}.weight", transposed=True)

    def attention(ours: str, theirs: str) -> Iterator[tuple[str, TensorName]]:
        for name in ("query", "key", "value", "out"):
            yield linear(f"{ours}/{name}", f"{theirs}.{'o' if name == 'out' else name[0]}")

    def mlp(ours: str, theirs: str) -> Iterator[tuple[str, TensorName]]:
        gated = len(config.mlp_activations) == 2
        for name in ("wi_0", "wi_1", "wo") if gated else ("wi", "wo"):
            yield linear(f"{ours}/{name}", f"{theirs}.{name}")

    yield "token_embedder/embedding", TensorName(_EMBEDDING, transposed=False)
    stacks = {
        "encoder": (
            config.num_encoder_layers,
            [("attention", "pre_attention_layer_norm", "SelfAttention")],
        ),
        "decoder": (
            config.num_decoder_layers,
            [
                ("self_attention", "pre_self_attention_layer_norm", "SelfAttention"),
                ("encoder_decoder_attention", "pre_cross_attention_layer_norm", "EncDecAttention"),
            ],
        ),
    }
    for stack, (num_layers, attentions) in stacks.items():
        for index in range(num_layers):
            ours, theirs = f"{stack}/layers_{index}", f"{stack}.block.{index}.layer"
            owner = ours if config.relative_attention_per_layer else stack
            if config.relative_attention_per_layer or index == 0:
                bias = f"{theirs}.0.SelfAttention.relative_attention_bias.weight"
                yield f"{owner}/relpos_bias/rel_embedding", TensorName(bias, transposed=True)
            for block, (name, norm_name, their_name) in enumerate(attentions):
                yield from attention(f"{ours}/{name}", f"{theirs}.{block}.{their_name}")
                yield norm(f"{ours}/{norm_name}", f"{theirs}.{block}.layer_norm")
            block = len(attentions)
            yield from mlp(f"{ours}/mlp", f"{theirs}.{block}.DenseReluDense")
            yield norm(f"{ours}/pre_mlp_layer_norm", f"{theirs}.{block}.layer_norm")
        yield norm(f"{stack}/{stack}_norm", f"{stack}.final_layer_norm")
    if not config.logits_via_embedding:
        yield linear("decoder/logits_dense", _HEAD.removesuffix(".weight"))


def _with_shared_embedding(state_dict: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Names the embedding `shared.weight`, whichever of its copies are there."""
    copies = [name for name in (_EMBEDDING, *_EMBEDDING_COPIES) if name in state_dict]
    for name in copies[1:]:
        if not same_values(state_dict[copies[0]], state_dict[name]):
            raise UserError(
                f"{copies[0]} and {name} of the Hugging Face weights differ; a T5Config has one "
                "embedding for both stacks."
            )
    result = dict(state_dict)
    if copies:
        result[_EMBEDDING] = state_dict[copies[0]]
    return result


def _is_tied(tensors: Mapping[str, StoredTensor]) -> bool:
    if _HEAD not in tensors:
        return True
    embedding = _with_shared_embedding(tensors).get(_EMBEDDING)
    return embedding is not None and same_values(tensors[_HEAD], embedding)


def _scales_logits(config_json: Mapping[str, Any]) -> bool | None:
    """What the config says of scaling; None leaves it to tying, as transformers 4 did."""
    kind = config_json["model_type"]
    if kind == "t5":
        # transformers 5 has a key of its own, and still listens to a config of 4.
        scaled = config_json.get("scale_decoder_outputs")
        return (
            False if scaled is None and config_json.get("tie_word_embeddings") is False else scaled
        )
    if kind == "umt5":
        # 5 scales the logits of every umT5; but Google's configs, of 4, say that theirs are not.
        return config_json.get("tie_word_embeddings", True) is not False
    return False  # mT5's code has no scaling
