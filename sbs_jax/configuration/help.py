"""What `--help` prints: the flags, and the macros of the gin files that were named."""

from __future__ import annotations

import shutil
import textwrap

from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import dump, reader
from sbs_jax.configuration.flags import Flags, parser
from sbs_jax.configuration.statements import Binding


def help_text(program: str, description: str, flags: Flags, config: config_lib.GinConfig) -> str:
    """The flags, and the macros of the given gin files with their values.

    REQUIRED ones come first; the others are grouped as the comments of the gin files group them.
    """
    lines = [parser(program, description).format_help().rstrip(), ""]
    if not flags.gin_file:
        lines.append("sbs_jax's own gin files (give one with --help to see its macros):")
        lines += [f"  {name}" for name in reader.shipped_files()]
        return "\n".join(lines)
    lines.append(f"macros of {', '.join(flags.gin_file)} (give as --gin.NAME=VALUE):")
    shown = [binding for binding in config.macros.values() if config.is_live(binding)]
    groups: dict[str, list[Binding]] = {"": []}
    for binding in shown:
        heading = "" if binding.is_required else binding.heading or "the command line"
        groups.setdefault(heading, []).append(binding)
    width = max((len(binding.name) for binding in shown), default=0)
    columns = max(60, shutil.get_terminal_size((100, 24)).columns)
    for heading, bindings in groups.items():
        lines += ["", f"{heading}:"] if heading else []
        for binding in bindings:
            value = "REQUIRED" if binding.is_required else dump.format_value(binding)
            line = f"  {binding.name:<{width}}  {value:<12}  {binding.comment or binding.source}"
            lines += textwrap.wrap(
                line.rstrip(), columns, subsequent_indent=" " * (width + 18), break_long_words=False
            )
    return "\n".join(lines)
