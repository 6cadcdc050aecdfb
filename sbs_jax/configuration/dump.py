"""Gin's bindings as text, without secrets."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import gin.config

import sbs_jax
from sbs_jax.configuration.statements import Binding
from sbs_jax.redaction import holds_secret, is_secret, redact


def config_text() -> str:
    """All of gin's current bindings, as a gin file that can be read again.

    Secrets are blotted out: strings bound under a name with a word such as `key`, `token` or
    `secret`, and macros that such parameters refer to.
    """
    config = gin.config._CONFIG
    secret = {
        reference.config_key[0]
        for bindings in config.values()
        for name, value in bindings.items()
        if is_secret(name)
        for reference in gin.config.iterate_references({"value": value})
    }
    redacted = {}
    used = {reference.config_key[0] for reference in gin.config.iterate_references(config)}
    for (scope, selector), bindings in config.items():
        is_macro = selector == "gin.macro"
        if is_macro and scope not in used:
            continue  # A macro that nothing refers to would be taken for a misspelt one.
        redacted[scope, selector] = {
            name: redact(
                value,
                secret=is_secret(scope if is_macro else name) or (is_macro and scope in secret),
            )
            for name, value in bindings.items()
        }
    return gin.config._config_str(redacted, max_line_length=100)


def header(program: str, argv: Sequence[str]) -> str:
    """The version and the command, as a comment for a file's beginning; secrets blotted out."""
    shown = []
    for argument in argv:
        name, equals, text = argument.partition("=")
        secret = bool(equals) and holds_secret(name, text)
        shown.append(f"{name}=<redacted>" if secret else argument)
    command = " ".join([program, *map(shlex.quote, shown)]).replace("\n", " ")
    return f"# sbs_jax {sbs_jax.__version__}: {command}\n\n"


def format_value(binding: Binding) -> str:
    """The right-hand side of a binding, for people; secrets blotted out."""
    return repr(redact(binding.value, secret=is_secret(binding.name)))
