"""The dimensions and the variant of a T5Gemma 2; pure Python."""

from __future__ import annotations

import dataclasses

from sbs_jax.models.decoder.config import LayerConfig

_FIXED = {
    "logits_via_embedding": True,
    "norm_adds_one": True,
    "post_norms": True,
    "qk_norm": True,
    "scale_embeddings": True,
    "attention_softcap": None,
    "rope_divisors": None,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Gemma2Config(LayerConfig):
    """Dimensions of the text's part of a T5Gemma 2 (Zhang et al. 2025, arXiv 2512.14856).

    Both stacks have layers of these dimensions. The defaults that differ from `LayerConfig`'s are
    those that the published sizes share.

    Attributes:
      num_encoder_layers: layers of the encoder.
      num_decoder_layers: layers of the decoder.
      bos_id: the id, in the files' own numbering, of the token that the decoder begins with. The
        decoder's inputs have 0 in its place, as those of a T5.
      eoi_id: the id there of the token that ends an image. Its embedding is a parameter of its own,
        which is not scaled. Texts do not have it; an id beyond the vocabulary is no token at all.
      sliding_window: in local layers a token of the decoder attends to itself and the
        sliding_window - 1 positions before, and one of the encoder to sliding_window positions
        around it. All layers of the decoder see the whole input.

    Raises:
      UserError: a value is impossible, or is another one than every T5Gemma 2 has; names it.
    """

    num_encoder_layers: int = 18
    num_decoder_layers: int = 18
    emb_dim: int = 640
    num_heads: int = 4
    num_kv_heads: int = 1
    head_dim: int = 256
    mlp_dim: int = 2048
    mlp_activations: tuple[str, str] = ("gelu", "linear")
    layer_norm_epsilon: float = 1e-6
    norm_adds_one: bool = True
    post_norms: bool = True
    qk_norm: bool = True
    scale_embeddings: bool = True
    sliding_window: int | None = 512
    full_attention_every: int = 6
    rope_theta: float = 1e6
    local_rope_theta: float | None = 1e4
    rope_scaling: str = "linear"
    rope_factor: float = 8.0
    max_positions: int = 32768
    bos_id: int = 2
    eoi_id: int = 256_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts("num_encoder_layers", "num_decoder_layers")
        for name, value in _FIXED.items():
            self._require(name, getattr(self, name) == value, f"must be {value} in a T5Gemma 2")
        biases = self.attention_bias == self.attention_out_bias
        self._require("attention_bias", biases, "must be that of attention_out_bias")
        self._require(
            "sliding_window",
            self.sliding_window is not None,
            "must be a number of positions; full_attention_every = 1 makes all layers global",
        )
        known = isinstance(self.bos_id, int) and 0 <= self.bos_id < self.vocab_size
        self._require("bos_id", known, f"must be an id below vocab_size = {self.vocab_size}")

    @property
    def our_bos_id(self) -> int:
        """The id of `bos_id` here, where those of padding and EOS may be exchanged."""
        return self._ours(self.bos_id)

    @property
    def our_eoi_id(self) -> int:
        """The id of `eoi_id` here."""
        return self._ours(self.eoi_id)

    def _ours(self, number: int) -> int:
        ours = {theirs: here for here, theirs in self.moved_ids.items()}
        return ours.get(number, number)
