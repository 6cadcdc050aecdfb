"""Tokenizers of decoders: `tokenizer.json` of a folder, or the one inside a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox

from sbs_jax.checkpoints.decoder_weights import Checkpoint
from sbs_jax.errors import UserError
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


class Tokenizer:
    """Encodes prompts and decodes completions.

    Attributes:
      end_ids: Tokens that end a completion.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        source = checkpoint.source
        if checkpoint.metadata is None:
            self._tokenizer = from_json(source / FILE)
            settings = _optional_json(source / "tokenizer_config.json")
            template = settings.get("chat_template")
            if isinstance(template, list):
                template = {t["name"]: t["template"] for t in template}.get("default")
            file = source / "chat_template.jinja"
            if template is None and file.is_file():
                template = file.read_text(encoding="utf-8")
            self._specials = {
                name: _content(settings.get(name)) for name in ("bos_token", "eos_token")
            }
            self._add_bos: int | None = None
        else:
            self._tokenizer = from_gguf(checkpoint.metadata, source)
            template = checkpoint.metadata.get("tokenizer.chat_template")
            tokens = checkpoint.metadata["tokenizer.ggml.tokens"]
            self._specials = {
                f"{name}_token": tokens[number] if number is not None else ""
                for name in ("bos", "eos")
                for number in (checkpoint.metadata.get(f"tokenizer.ggml.{name}_token_id"),)
            }
            add = checkpoint.metadata.get("tokenizer.ggml.add_bos_token", False)
            self._add_bos = checkpoint.bos_id if add else None
        self._template = _compile(template, source) if template else None
        self._source = source
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
        if self._template is None:
            raise UserError(f"{self._source} has no chat template; set CHAT = False.")
        text = self._template.render(
            messages=prompt, add_generation_prompt=True, tools=None, **self._specials
        )
        return self._tokenizer.encode(_whole(text), add_special_tokens=False).ids

    def decode(self, tokens: list[int]) -> str:
        """Returns the text of a completion, without control tokens."""
        return self._tokenizer.decode(tokens)


def _whole(text: str) -> str:
    """Tokenizers take no lone surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _compile(template: str, source: Path) -> jinja2.Template:
    # The file is somebody else's: sandboxed, as transformers does it.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _fixed_date
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise UserError(f"{source}: its chat template does not compile ({error}).") from error


def _refuse(message: str) -> None:
    raise UserError(f"The model's chat template refuses these messages: {message}")


def _fixed_date(form: str) -> str:
    # A prompt that changes every day would change every key.
    del form
    return "26 Jul 2024"


def _content(token: Any) -> str:
    return (token.get("content") if isinstance(token, dict) else token) or ""


def _optional_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}).") from error
