"""Gin's bindings as text, without secrets."""

from __future__ import annotations

import gin.config

from sbs_jax.configuration.reader import Binding
from sbs_jax.redaction import is_secret, redact


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
    for (scope, selector), bindings in config.items():
        is_macro = selector == "gin.macro"
        redacted[scope, selector] = {
            name: redact(
                value,
                secret=is_secret(scope if is_macro else name) or (is_macro and scope in secret),
            )
            for name, value in bindings.items()
        }
    return gin.config._config_str(redacted, max_line_length=100)


def format_value(binding: Binding) -> str:
    """The right-hand side of a binding, for people; secrets blotted out."""
    return repr(redact(binding.value, secret=is_secret(binding.name)))
