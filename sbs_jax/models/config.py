"""What every network's config has, and the dimensions and the variant of a T5. Pure Python."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from sbs_jax.errors import UserError

ACTIVATIONS = ("relu", "gelu", "gelu_erf", "silu", "linear")
EMBEDDING_LOOKUPS = ("gather", "one_hot")
REMATS = ("none", "dots", "minimal", "full")
LORA_TARGETS = ("query", "key", "value", "out", "wi_0", "wi_1", "wo")
"""The projections of a layer that may have adapters: those of attention and of the MLP."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What the configs of all networks have: dropout, how the network computes, and its adapters.

    Attributes:
      attentions: the values that `attention` may have.
      dtypes: the values that `dtype` and `product_dtype` may have.
      vocab_size: rows of the embedding table, V.
      dropout_rate: in [0, 1); on embeddings, attention weights, MLP hidden units, block outputs
        and the outputs of all stacks.
      dropout_broadcast_length: draw one mask for all positions of a sequence, as T5X does; by
        default each position draws its own, as Hugging Face does.
      dtype: dtype of activations, `float32` or `bfloat16`. Parameters are always float32.
      product_dtype: dtype of the operands of projections (weights and inputs), whose results keep
        the activations' dtype; None is `dtype`. `bfloat16` beside float32 activations is made for
        inference on CPUs, where a bfloat16 product is fast exactly if its result is float32.
      float32_attention_logits: compute attention logits and softmax in float32 even if activations
        are bfloat16.
      attention: what computes attention, one of `attentions`.
      layer_norm_epsilon: added to the mean square of a layer norm's input.
      embedding_lookup: `gather`, or `one_hot` for a matrix product with one-hot rows: V times the
        work, but no scatter in the gradient.
      remat: what a layer keeps for the gradient: `none` recomputes nothing, `dots` keeps the
        results of all matrix products, `minimal` only those of projections, `full` only the
        layer's input.
      lora_rank: r of low-rank adapters (LoRA, Hu et al. 2021): a projection by W becomes one by
        W + (lora_alpha / r) · A · B. A is drawn uniformly within ± inputs^-0.5, B begins as zeros,
        and both alone are trained. None has no adapters.
      lora_alpha: see `lora_rank`.
      lora_targets: the projections that have adapters, out of `LORA_TARGETS`, in all attention and
        all MLPs. `wi_0` also means the one inward projection of T5 v1.0's MLP.

    Raises:
      UserError: a value is impossible; names it and the possible ones.
    """

    attentions: ClassVar[tuple[str, ...]]
    dtypes: ClassVar[tuple[str, ...]]

    vocab_size: int
    dropout_rate: float
    dropout_broadcast_length: bool = False
    dtype: str = "float32"
    product_dtype: str | None = None
    float32_attention_logits: bool = True
    attention: str = "auto"
    layer_norm_epsilon: float
    embedding_lookup: str = "gather"
    remat: str = "none"
    lora_rank: int | None = None
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = LORA_TARGETS

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            # Gin and JSON may give a list, which would make the config unhashable.
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
            if field.type == "bool":
                self._require(field.name, isinstance(value, bool), "must be True or False")
        self._require_counts("vocab_size")
        self._require_choice("dtype", self.dtypes)
        self._require_choice("product_dtype", (None, *self.dtypes))
        self._require_choice("attention", self.attentions)
        self._require_choice("embedding_lookup", EMBEDDING_LOOKUPS)
        self._require_choice("remat", REMATS)
        rate = self.dropout_rate
        self._require("dropout_rate", is_number(rate) and 0 <= rate < 1, "must lie in [0, 1)")
        self._require_positive("layer_norm_epsilon", "lora_alpha")
        rank, targets = self.lora_rank, self.lora_targets
        self._require(
            "lora_rank", rank is None or is_count(rank), "must be a positive integer, or None"
        )
        self._require(
            "lora_targets",
            isinstance(targets, tuple)
            and 0 < len(targets) == len(set(targets))
            and all(name in LORA_TARGETS for name in targets),
            f"must name some of {', '.join(LORA_TARGETS)}, each once",
        )

    def _require(self, name: str, condition: bool, what: str) -> None:
        if not condition:
            raise UserError(f"{type(self).__name__}.{name} = {getattr(self, name)!r} {what}.")

    def _require_counts(self, *names: str) -> None:
        for name in names:
            self._require(name, is_count(getattr(self, name)), "must be a positive integer")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._require(name, is_number(value) and value > 0, "must be positive")

    def _require_choice(self, name: str, choices: tuple[str | None, ...]) -> None:
        known = ", ".join(repr(choice) for choice in choices)
        self._require(name, getattr(self, name) in choices, f"must be one of {known}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config(NetworkConfig):
    """Dimensions and variant of a T5, with T5X's field names (`t5x/examples/t5/network.py`).

    T5 v1.0 has `mlp_activations=('relu',)` and `logits_via_embedding=True`; v1.1 (and Flan-T5) has
    `mlp_activations=('gelu', 'linear')` and `logits_via_embedding=False`, the default here.

    Attributes:
      emb_dim: width of the residual stream, D.
      num_heads: attention heads, H.
      num_encoder_layers: layers of the encoder.
      num_decoder_layers: layers of the decoder.
      head_dim: width of one head, K. T5 lets H · K differ from D.
      mlp_dim: hidden width of the MLP, F.
      mlp_activations: one name, or two for a gated MLP whose branches are multiplied; out of
        `ACTIVATIONS`. `gelu` is the tanh approximation, as in T5; `gelu_erf` is exact.
      logits_via_embedding: the output head is the transposed embedding table (T5 v1.0).
      scale_logits: multiply the head's input by D^-0.5; None does what T5 does, namely exactly
        when the head is tied.
      head_init_stddev: standard deviation of a fresh untied head; None is T5X's, D^-0.5.
      attention: what computes attention: `xla`, `cudnn` (NVIDIA GPUs, bfloat16; the logits never
        get into memory), or `auto`, which is `cudnn` where it is available. cuDNN cannot drop
        attention weights as this network does: where weights are dropped, XLA computes.
      dropout_attention_weights: whether dropout applies to attention weights, too, as in T5.
      relative_attention_num_buckets: buckets of relative positions, of both directions together.
      relative_attention_max_distance: farther positions share the last bucket.
      relative_attention_per_layer: every layer has a table of position biases of its own (umT5);
        by default all layers of a stack share one.
      scan_layers: run the layers of a stack as a loop over stacked parameters (`models.stacking`).
        The time to compile then does not grow with the number of layers. The network computes the
        same.

    Raises:
      UserError: a value is impossible; names it and the possible ones.
    """

    attentions = ("auto", "xla", "cudnn")
    dtypes = ("float32", "bfloat16")

    emb_dim: int = 512
    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    head_dim: int = 64
    mlp_dim: int = 2048
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    dropout_rate: float = 0.1
    logits_via_embedding: bool = False
    scale_logits: bool | None = None
    head_init_stddev: float | None = None
    dropout_attention_weights: bool = True
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    relative_attention_per_layer: bool = False
    layer_norm_epsilon: float = 1e-6
    scan_layers: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_dimensions()
        self._check_activations()
        if self.lora_rank is not None and self.scan_layers:
            raise UserError(
                f"T5Config.lora_rank = {self.lora_rank} needs scan_layers = False "
                "(--gin.SCAN_LAYERS=False): adapters are read and written layer by layer."
            )
        self._require("scale_logits", self.scale_logits in (None, True, False), "must be a bool")
        self._check_cudnn()
        stddev = self.head_init_stddev
        self._require(
            "head_init_stddev",
            stddev is None or (is_number(stddev) and stddev > 0),
            "must be positive",
        )
        if stddev is not None and self.logits_via_embedding:
            raise UserError(
                f"T5Config.head_init_stddev = {stddev} has no effect, because logits_via_embedding "
                "ties the head to the embedding; leave it out."
            )

    @property
    def scales_logits(self) -> bool:
        """Whether the head's input is multiplied by D^-0.5."""
        return self.logits_via_embedding if self.scale_logits is None else self.scale_logits

    @property
    def axis_sizes(self) -> dict[str, int]:
        """Size of every logical axis that a parameter has; the mesh may cut them."""
        return {
            "vocab": self.vocab_size,
            "embed": self.emb_dim,
            "heads": self.num_heads,
            "joined_kv": self.num_heads * self.head_dim,
            "mlp": self.mlp_dim,
            "relpos_buckets": self.relative_attention_num_buckets,
        }

    def _check_dimensions(self) -> None:
        self._require_counts(
            "emb_dim",
            "num_heads",
            "num_encoder_layers",
            "num_decoder_layers",
            "head_dim",
            "mlp_dim",
        )
        buckets = self.relative_attention_num_buckets
        # The encoder halves the buckets for the two directions, and halves them again: near
        # positions have one each, far ones share logarithmic ones.
        self._require(
            "relative_attention_num_buckets",
            is_count(buckets) and buckets >= 4,
            "must be an integer of at least 4",
        )
        distance = self.relative_attention_max_distance
        self._require(
            "relative_attention_max_distance",
            is_count(distance) and distance > buckets // 2,
            f"must be an integer above relative_attention_num_buckets / 2 = {buckets // 2}",
        )

    def _check_cudnn(self) -> None:
        """What is asked for by name is not silently replaced."""
        if self.attention != "cudnn":
            return
        self._require("dtype", self.dtype == "bfloat16", "does not go with attention = 'cudnn'")
        fits = self.head_dim % 8 == 0 and self.head_dim <= 128
        self._require("head_dim", fits, "must be a multiple of 8 up to 128 for attention = 'cudnn'")

    def _check_activations(self) -> None:
        names = self.mlp_activations
        valid = (
            isinstance(names, tuple)
            and 1 <= len(names) <= 2
            and all(name in ACTIVATIONS for name in names)
        )
        self._require(
            "mlp_activations",
            valid,
            f"must be a tuple of one or two (gated) names out of {', '.join(ACTIVATIONS)}",
        )


def adapted_name(module: str) -> str:
    """Returns the name out of `LORA_TARGETS` that a projection of this name goes by.

    >>> adapted_name("query"), adapted_name("wi")
    ('query', 'wi_0')
    """
    return "wi_0" if module == "wi" else module


def is_count(value: object) -> bool:
    """Whether a value is a positive integer, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: object) -> bool:
    """Whether a value is a number, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)
