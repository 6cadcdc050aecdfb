"""The dimensions of a decoder-only language model; pure Python, as the teacher imports it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a Llama-family decoder.

    Attributes:
      vocab_size, emb_dim, mlp_dim, num_layers, num_heads, num_kv_heads, head_dim: Sizes.
      inverse_frequencies: Of the rotary embedding, K/2 of them, scaling included.
      rope_theta: Their base, as the file gives it.
      norm_eps: Of the RMS norms.
      max_positions: Longest context.
      tied: Whether the output head is the token embedding.
      eos_ids: Tokens that end a completion.
      bos_id: Token that starts a text, or None.
    """

    vocab_size: int
    emb_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    inverse_frequencies: tuple[float, ...]
    rope_theta: float
    norm_eps: float
    max_positions: int
    tied: bool
    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None

    @property
    def groups(self) -> int:
        """Query heads per key head."""
        return self.num_heads // self.num_kv_heads
