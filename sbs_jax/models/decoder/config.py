"""The dimensions and the variant of rotary layers and of a decoder-only language model.

Pure Python.
"""

from __future__ import annotations

import dataclasses
import math

from sbs_jax.models.config import ACTIVATIONS, NetworkConfig, is_count, is_number
from sbs_jax.token_ids import moved_ids

ROPE_SCALINGS = ("none", "linear", "llama3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig(NetworkConfig):
    """Dimensions and variant of layers with rotary positions, RMS norms and gated MLPs.

    `DecoderConfig` and `T5Gemma2Config` add how many layers there are. The defaults are those of
    Llama. Dropout is off by default: pretrained decoders are finetuned without. The dtype `float64`
    needs JAX's x64 mode, and is there for numerical tests.

    Attributes:
      emb_dim: width of the residual stream, D.
      num_heads: query heads, H.
      num_kv_heads: heads of keys and values, KV; divides H (grouped-query attention).
      head_dim: width of one head, K, even. H · K may differ from D.
      mlp_dim: hidden width of the gated MLP, F.
      mlp_activations: its two branches, which are multiplied; out of `ACTIVATIONS`. `gelu` is the
        tanh approximation.
      logits_via_embedding: the output head is the transposed embedding table (tied).
      attention: how attention to one set of keys is computed, as in training: `whole`, with the
        logits of all heads in memory; `by_head`, one head of one row after another, computing
        logits again for the gradient, which needs less memory and no more time on a CPU; or
        `auto`, which is `by_head` on a single CPU device. Where weights are dropped, it is `whole`.
      norm_adds_one: a norm scales by 1 + its weight (Gemma).
      post_norms: norms after attention and MLP, too, before the residual is added (Gemma).
      qk_norm: norms on each query and key head before the rotation (Qwen3, Gemma 3).
      attention_bias: query, key and value projections add biases (Qwen2).
      attention_out_bias: the output projection of attention adds a bias.
      attention_scalar: attention logits are multiplied by attention_scalar^-0.5; None is K.
      attention_softcap: c in c · tanh(logits / c), applied to attention logits (Gemma 2); None
        does not cap.
      logits_softcap: the same on the output (Gemma 2).
      scale_embeddings: embeddings are multiplied by D^0.5 (Gemma).
      sliding_window: a local layer's token attends to itself and the sliding_window - 1 positions
        before; None where all layers are global.
      full_attention_every: layer i, from 0, is global if i + 1 is divisible by this: 2 in Gemma 2,
        6 in Gemma 3. Has an effect only with sliding_window.
      rope_theta: the base of the rotary embedding's frequencies.
      local_rope_theta: that of local layers; None is rope_theta. Scaling is for global layers only
        where this is given (Gemma 3).
      rope_scaling: `none`, `linear` or `llama3`, as in transformers' modeling_rope_utils.
      rope_factor: the factor of that scaling.
      rope_low_freq_factor: the rope low freq factor of `llama3`.
      rope_high_freq_factor: the rope high freq factor of `llama3`.
      rope_original_max_positions: the rope original max positions of `llama3`.
      rope_divisors: K / 2 divisors of the frequencies, as some GGUF files hold them instead of
        the scaling's name; None for none.
      max_positions: longest context, in tokens.
      pad_id: the id, in the files' own numbering, of a token that never occurs within a text.
      eos_id: the id there of the token that ends a text. In this package padding is 0 and EOS is 1
        everywhere, as T5 has them: `checkpoints` and the vocabulary exchange ids (`moved_ids`), in
        the rows of tables and in texts. The defaults exchange nothing.

    Raises:
      UserError: a value is impossible; names it and the possible ones.
    """

    attentions = ("auto", "whole", "by_head")
    dtypes = ("float32", "bfloat16", "float64")

    emb_dim: int = 576
    num_heads: int = 9
    num_kv_heads: int = 3
    head_dim: int = 64
    mlp_dim: int = 1536
    mlp_activations: tuple[str, str] = ("silu", "linear")
    dropout_rate: float = 0.0
    logits_via_embedding: bool = True
    layer_norm_epsilon: float = 1e-5
    norm_adds_one: bool = False
    post_norms: bool = False
    qk_norm: bool = False
    attention_bias: bool = False
    attention_out_bias: bool = False
    attention_scalar: float | None = None
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    scale_embeddings: bool = False
    sliding_window: int | None = None
    full_attention_every: int = 1
    rope_theta: float = 10_000.0
    local_rope_theta: float | None = None
    rope_scaling: str = "none"
    rope_factor: float = 1.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_max_positions: int = 8192
    rope_divisors: tuple[float, ...] | None = None
    max_positions: int = 8192
    pad_id: int = 0
    eos_id: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts(
            "emb_dim",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "mlp_dim",
            "full_attention_every",
            "rope_original_max_positions",
            "max_positions",
        )
        self._require("head_dim", self.head_dim % 2 == 0, "must be even")
        self._require(
            "num_kv_heads",
            self.num_heads % self.num_kv_heads == 0,
            f"must divide num_heads = {self.num_heads}",
        )
        names = self.mlp_activations
        self._require(
            "mlp_activations",
            isinstance(names, tuple)
            and len(names) == 2
            and all(name in ACTIVATIONS for name in names),
            f"must be a tuple of two names out of {', '.join(ACTIVATIONS)}",
        )
        self._require_choice("rope_scaling", ROPE_SCALINGS)
        self._require_positive(
            "rope_theta", "rope_factor", "rope_low_freq_factor", "rope_high_freq_factor"
        )
        for name in (
            "attention_scalar",
            "attention_softcap",
            "logits_softcap",
            "local_rope_theta",
        ):
            value = getattr(self, name)
            ok = value is None or (is_number(value) and value > 0)
            self._require(name, ok, "must be positive, or None")
        window = self.sliding_window
        self._require(
            "sliding_window", window is None or is_count(window), "must be a positive integer"
        )
        divisors = self.rope_divisors
        self._require(
            "rope_divisors",
            divisors is None or len(divisors) == self.head_dim // 2,
            f"must have head_dim / 2 = {self.head_dim // 2} entries",
        )
        for name in ("pad_id", "eos_id"):
            value = getattr(self, name)
            ok = isinstance(value, int) and not isinstance(value, bool)
            self._require(
                name,
                ok and 0 <= value < self.vocab_size,
                f"must be an id below vocab_size = {self.vocab_size}",
            )
        self._require("eos_id", self.eos_id != self.pad_id, "must differ from pad_id")

    @property
    def moved_ids(self) -> dict[int, int]:
        """The file's id of each of our ids that is another one; see `token_ids`."""
        return moved_ids(self.pad_id, self.eos_id)

    @property
    def groups(self) -> int:
        """Query heads for each head of keys and values."""
        return self.num_heads // self.num_kv_heads

    @property
    def attention_scale(self) -> float:
        """What queries are multiplied by."""
        return (self.attention_scalar or self.head_dim) ** -0.5

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied by."""
        return math.sqrt(self.emb_dim) if self.scale_embeddings else 1.0

    def is_local(self, layer: int) -> bool:
        """Whether a layer, from 0, sees no farther than the sliding window."""
        return self.sliding_window is not None and (layer + 1) % self.full_attention_every != 0

    @property
    def axis_sizes(self) -> dict[str, int]:
        """Size of every logical axis that a parameter has; the mesh may cut them.

        Query heads are cut where their heads of keys and values can be, so that what attends to one
        another stays on one device.
        """
        return {
            "vocab": self.vocab_size,
            "embed": self.emb_dim,
            "heads": self.num_kv_heads,
            "joined_kv": self.num_kv_heads,
            "kv": self.head_dim,
            "mlp": self.mlp_dim,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(LayerConfig):
    """Dimensions and variant of a decoder: Llama, SmolLM2, Qwen2, Qwen2.5, Qwen3, Gemma 2 and 3.

    Attributes:
      num_layers: layers.

    Raises:
      UserError: a value is impossible; names it and the possible ones.
    """

    num_layers: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts("num_layers")
