"""What the rest of the package asks of a network: the one place where its kind is looked at.

A network is a Flax module with a frozen config. `Student` lays it out on a mesh; the losses, the
training step, all ways of decoding, ranking and saliency call the methods of `Network` alone.
Three networks have them:

    T5Config        network.Transformer             an encoder, and a decoder with cross-attention
    DecoderConfig   decoder.network.DecoderOnly     one stack: the inputs come first in each text
    T5Gemma2Config  t5gemma2.network.T5Gemma2       an encoder, and a decoder with one attention

Batches are the same for both. A network that is added here needs nothing else in training; its
weights are read and written in `checkpoints`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

from jaxtyping import Array, Bool, Float, Int

from sbs_jax.errors import UserError
from sbs_jax.models.attention import choose_attention
from sbs_jax.models.config import T5Config
from sbs_jax.models.configs import KINDS, ModelConfig
from sbs_jax.models.decoder.config import DecoderConfig, LayerConfig
from sbs_jax.models.decoder.network import DecoderOnly
from sbs_jax.models.network import Transformer
from sbs_jax.models.t5gemma2.network import T5Gemma2

# How a run computed says nothing about how another program should.
# Adapters are merged into the weights where they are read.
_OF_THE_RUN = ("attention", "remat", "scan_layers", "lora_rank", "lora_alpha", "lora_targets")


class Network(Protocol):
    """The methods of a network; `Transformer`, `DecoderOnly` and `T5Gemma2` document them.

    Attributes:
      config: the dimensions of the network. All configs have `vocab_size`, `emb_dim`, `dtype`,
        `dropout_rate`, `axis_sizes` (the sizes of logical axes) and are hashable.
      memory_type: a dataclass of what is remembered of inputs, with `widened` and `spread`.
      cache_type: a dataclass of what decoding remembers of its own tokens, with `spread`.
      absolute_positions: whether more than the differences of positions counts in `extend`.
      reads_prompts: whether the tokens that a decoder is fed first may as well stand at the end of
        its input.
    """

    memory_type: ClassVar[type[Any]]
    cache_type: ClassVar[type[Any]]
    absolute_positions: ClassVar[bool]
    reads_prompts: ClassVar[bool]

    @property
    def config(self) -> Any:
        """The dimensions."""

    # Of `flax.linen.Module`:
    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """Draws the parameters."""

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a method on parameters."""

    def hidden(
        self,
        encoder_input_tokens: Int[Array, "B S"],
        decoder_input_tokens: Int[Array, "B T"],
        *,
        encoder_segment_ids: Int[Array, "B S"] | None = None,
        decoder_segment_ids: Int[Array, "B T"] | None = None,
        decoder_source_ids: Int[Array, "B T"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "B T D"]:
        """The last hidden states of all target tokens."""

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """The output head on any selection of hidden states."""

    def input_segments(self, tokens: Int[Array, "B S"]) -> Int[Array, "B S"]:
        """The segment ids of inputs that are not packed: 1 on tokens that count, else 0."""

    def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Looks tokens up."""

    def encode_embedded(
        self,
        embedded: Float[Array, "B S D"],
        encoder_segment_ids: Int[Array, "B S"],
        deterministic: bool = True,
    ) -> Float[Array, "B S D"]:
        """What `decode_hidden` wants of embedded inputs; a gradient flows through it."""

    def decode_hidden(
        self,
        encoded: Float[Array, "B S D"],
        encoder_segment_ids: Int[Array, "B S"],
        decoder_input_tokens: Int[Array, "B T"],
    ) -> Float[Array, "B T D"]:
        """`hidden`, from the result of `encode_embedded`."""

    def start_decoding(
        self, encoder_input_tokens: Int[Array, "B S"], max_decode_len: int, *, few_queries: bool
    ) -> tuple[Any, Any]:
        """Reads the inputs: a memory (with a `bias` whose first axis is B), and an empty cache.

        With `few_queries`, few tokens will be decoded of each input; the memory may be another one.
        """

    def empty_memory(self, rows: int, length: int, *, few_queries: bool) -> Any:
        """A memory of `rows` inputs of `length` tokens, all zeros."""

    def decode_step(
        self, tokens: Int[Array, " B"], position: Int[Array, ""], memory: Any, cache: Any
    ) -> tuple[Float[Array, "B V"], Any]:
        """Decodes one token of every row."""

    def extend(
        self,
        tokens: Int[Array, "R Q"],
        slot: Int[Array, ""] | int,
        query_positions: Int[Array, "#R #Q"],
        key_positions: Int[Array, "#R L"],
        visible: Bool[Array, "#R #Q L"],
        memory: Any,
        cache: Any,
    ) -> tuple[Float[Array, "R Q D"], Any]:
        """Decodes tokens that need not follow one another; R is a multiple of B."""


def network_of(config: ModelConfig, platform: str | None = None, devices: int = 1) -> Network:
    """Makes the network of a config.

    Args:
      config: the dimensions of the network.
      platform: `gpu`, `tpu` or `cpu`, of the devices that compute it; decides what `attention =
        'auto'` is. None leaves that open.
      devices: how many these are.

    Raises:
      UserError: MODEL is no config of a network, or the platform lacks what it asks for.
    """
    if isinstance(config, T5Config):
        if platform is not None:
            attention = choose_attention(config, platform)
            config = dataclasses.replace(config, attention=attention)
        return Transformer(config)
    if not isinstance(config, LayerConfig):
        known = ", ".join(kind.__name__ for kind in KINDS.values())
        raise UserError(f"MODEL = {config!r} is none of {known}; include a file of gin/models.")
    if config.attention == "auto" and platform == "cpu" and devices == 1:
        config = dataclasses.replace(config, attention="by_head")
    return DecoderOnly(config) if isinstance(config, DecoderConfig) else T5Gemma2(config)


def default_prefix_side(config: ModelConfig) -> Literal["encoder", "decoder"]:
    """Where the task prefixes stand unless PREFIX_SIDE says: see `DataSettings.prefix_side`.

    A decoder-only network reads each input once and writes every part behind it. Encoder-decoders
    have the published code's prefixes, in front of the input.
    """
    return "decoder" if isinstance(config, DecoderConfig) else "encoder"


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """A config's fields as JSON, with its kind under `network` unless it is a T5's."""
    fields = dataclasses.asdict(config)
    kind = next(name for name, known in KINDS.items() if isinstance(config, known))
    return fields if kind == "t5" else {"network": kind, **fields}


def config_from_json(values: Mapping[str, Any], where: object) -> ModelConfig:
    """The config whose fields were saved; fields that it no longer has are left out.

    Args:
      values: the result of `config_to_json`.
      where: begins messages; the file.

    Raises:
      UserError: A value is impossible, or the kind of network is unknown.
    """
    kind = values.get("network", "t5")
    if kind not in KINDS:
        raise UserError(f"{where}: holds a network of kind {kind!r}, unknown to this sbs_jax.")
    chosen_type = KINDS[kind]
    known = {field.name for field in dataclasses.fields(chosen_type)}
    # JSON has no tuples.
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name in known and name not in _OF_THE_RUN
    }
    try:
        return chosen_type(**chosen)
    except (UserError, TypeError) as error:
        raise UserError(f"{where}: holds no {chosen_type.__name__} ({error}).") from None
