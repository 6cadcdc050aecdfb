"""Models by their names on the Hugging Face hub, through the extra `hub`."""

from __future__ import annotations

import re
from pathlib import Path

from sbs_jax.errors import UserError

# `t5-small`, `google/flan-t5-base`, `google/flan-t5-base@0123abc`.
_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_FILES = (
    "config.json",
    "generation_config.json",
    "student.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "spiece.model",
    # Of decoders.
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def is_name(path: str) -> bool:
    """Whether a path that leads nowhere may be a name on the hub: `owner/name`."""
    return _NAME.fullmatch(path) is not None


def download(name: str) -> Path:
    """Brings a model's files into Hugging Face's cache, or finds them there.

    Args:
      name: `owner/name`, or `owner/name@revision`.

    Returns:
      Their folder.

    Raises:
      UserError: the extra is not installed, or the hub has no such model, or cannot be reached.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{name}: no such folder; if it is a name on the Hugging Face hub, install "
            "sbs_jax[hub], which downloads it."
        ) from None
    match = _NAME.fullmatch(name)
    assert match is not None
    try:
        folder = huggingface_hub.snapshot_download(
            match["name"], revision=match["revision"], allow_patterns=list(_FILES)
        )
    except Exception as error:  # its own, and those of whichever HTTP library it uses
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{name}: no such folder, and the Hugging Face hub does not give it "
            f"({reason.rstrip('.')})."
        ) from None
    return Path(folder)
