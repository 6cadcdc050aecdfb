"""Chat templates of pretrained models: Jinja, rendered as transformers does it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from sbs_jax.errors import UserError
from sbs_jax.json_files import optional_json

FILE = "chat_template.jinja"

_SENTINEL = "\ue000input\ue001"


class ChatTemplate:
    """What a model's files say of how chats are written.

    Attributes:
      source: names the model in messages.
      specials: `bos_token` and `eos_token`, '' where there is none.
    """

    def __init__(self, template: str | None, specials: Mapping[str, str], source: object) -> None:
        self.source, self.specials = source, dict(specials)
        self._template = _compile(template, source) if template else None

    @classmethod
    def of_folder(cls, folder: Path) -> ChatTemplate:
        """Reads `tokenizer_config.json` and `chat_template.jinja`, where they are there.

        Raises:
          UserError: one is damaged.
        """
        settings = optional_json(folder / "tokenizer_config.json")
        template = settings.get("chat_template")
        if isinstance(template, list):
            template = {t["name"]: t["template"] for t in template}.get("default")
        file = folder / FILE
        if template is None and file.is_file():
            template = file.read_text(encoding="utf-8")
        names = ("bos_token", "eos_token")
        return cls(template, {name: content_of(settings.get(name)) for name in names}, folder)

    @classmethod
    def of_gguf(cls, metadata: Mapping[str, Any], path: Path) -> ChatTemplate:
        """Reads a GGUF file's metadata.

        Raises:
          UserError: the template does not compile.
        """
        specials = {f"{name}_token": gguf_token(metadata, name) for name in ("bos", "eos")}
        return cls(metadata.get("tokenizer.chat_template"), specials, path)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Returns the text of a chat, up to where the model answers.

        Raises:
          UserError: the model has no chat template, or it refuses these messages.
        """
        if self._template is None:
            raise UserError(f"{self.source} has no chat template; set CHAT = False.")
        return self._template.render(
            messages=messages, add_generation_prompt=True, tools=None, **self.specials
        )

    def frame(self) -> tuple[str, str]:
        """Returns what stands before and after the one message of a user.

        Raises:
          UserError: see `render`; or the template does more than put text around a message.
        """
        before, found, after = self.render([{"role": "user", "content": _SENTINEL}]).partition(
            _SENTINEL
        )
        if not found or _SENTINEL in after:
            raise UserError(
                f"{self.source}: its chat template does not say a user's message once; set CHAT = "
                "False, and INPUT_FRAME = ['before', 'after'] to the texts around an input."
            )
        return before, after


class _Generation(jinja2.ext.Extension):
    """``{% generation %}``: some templates mark with it what a chat model learns to write."""

    tags = {"generation"}  # noqa: RUF012  # as the base class has it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Keeps what stands in between."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(template: str, source: object) -> jinja2.Template:
    # The file is somebody else's: sandboxed, as transformers does it.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.globals["raise_exception"] = _refuse
    # A prompt that changes every day would change every key.
    environment.globals["strftime_now"] = lambda form: "26 Jul 2024"
    # As transformers' own `tojson`, which escapes nothing for HTML.
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise UserError(f"{source}: its chat template does not compile ({error}).") from error


def _refuse(message: str) -> None:
    raise UserError(f"The model's chat template refuses these messages: {message}")


def content_of(token: Any) -> str:
    """Returns the text of a special token in `tokenizer_config.json`; '' where there is none."""
    return (token.get("content") if isinstance(token, dict) else token) or ""


def gguf_token(metadata: Mapping[str, Any], name: str) -> str:
    """Returns the special token `name` (`bos`, `eos`, `padding`) of a GGUF file; '' for none."""
    number = metadata.get(f"tokenizer.ggml.{name}_token_id")
    return "" if number is None else metadata["tokenizer.ggml.tokens"][number]
