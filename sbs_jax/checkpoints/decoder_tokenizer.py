"""Tokenizers of decoders: `tokenizer.json` of a folder, or the one inside a GGUF file."""

from __future__ import annotations

from sbs_jax.chat_templates import ChatTemplate
from sbs_jax.checkpoints.decoder_weights import Checkpoint
from sbs_jax.text_tokenizer import FILE, from_gguf, from_json

# Control tokens after which nothing of a completion follows, whatever `eos_token_id` says; the
# same that llama.cpp stops at.
_ENDS = (
    "<|endoftext|>",
    "<|im_end|>",
    "</s>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<|end|>",
)


class CompletionTokenizer:
    """Encodes prompts and decodes completions.

    Attributes:
      end_ids: Tokens that end a completion.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        source = checkpoint.source
        if checkpoint.metadata is None:
            self._tokenizer = from_json(source / FILE)
            self._chat = ChatTemplate.of_folder(source)
            self._add_bos: int | None = None
        else:
            self._tokenizer = from_gguf(checkpoint.metadata, source)
            self._chat = ChatTemplate.of_gguf(checkpoint.metadata, source)
            add = checkpoint.metadata.get("tokenizer.ggml.add_bos_token", False)
            self._add_bos = checkpoint.bos_id if add else None
        found = (self._tokenizer.token_to_id(token) for token in _ENDS)
        known = {number for number in found if number is not None}
        self.end_ids = tuple(sorted({*checkpoint.eos_ids, *known}))

    def encode(self, prompt: str | list[dict[str, str]]) -> list[int]:
        """Returns the tokens of a text, or of a chat in the model's own template.

        Raises:
          UserError: the model has no chat template.
        """
        if isinstance(prompt, str):
            tokens = self._tokenizer.encode(_whole(prompt)).ids
            return tokens if self._add_bos is None else [self._add_bos, *tokens]
        text = self._chat.render(prompt)
        return self._tokenizer.encode(_whole(text), add_special_tokens=False).ids

    def decode(self, tokens: list[int]) -> str:
        """Returns the text of a completion, without control tokens."""
        return self._tokenizer.decode(tokens)


def _whole(text: str) -> str:
    """Tokenizers take no lone surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8")
