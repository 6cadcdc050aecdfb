"""Completes commands, gin files and macros in the shell.

    eval "$(sbs completion bash)"    # in ~/.bashrc
    eval "$(sbs completion zsh)"     # in ~/.zshrc

After `--gin_file=` the shipped gin files are offered, and the working folder's; after `--gin.`
the macros of the gin files that the line names.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sbs_jax.__main__ import commands
from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import flags as flags_lib
from sbs_jax.configuration import reader
from sbs_jax.errors import UserError

BASH = r"""
_sbs() {
  local IFS=$'\n' line="${COMP_LINE:0:COMP_POINT}"
  COMPREPLY=($(sbs completion --for "$line" 2>/dev/null))
  local word="${line##* }"
  # Bash takes "=" for the end of a word: only what follows it is replaced.
  if [[ $word == *=* && $COMP_WORDBREAKS == *=* ]]; then
    COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}")
  fi
}
complete -o nospace -F _sbs sbs
"""
ZSH = r"""
_sbs() {
  local -a found
  found=("${(@f)$(sbs completion --for "${BUFFER[1,CURSOR]}" 2>/dev/null)}")
  compadd -Q -S '' -- $found
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _sbs sbs
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the script of a shell, or what may follow a line that is being typed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    match arguments:
        case ["bash"]:
            print(BASH.strip())
        case ["zsh"]:
            print(ZSH.strip())
        case ["--for", line]:
            print("\n".join(candidates(line)))
        case ["--help" | "-h"]:
            print(__doc__)
        case _:
            print("error: sbs completion takes one argument, bash or zsh.", file=sys.stderr)
            return 1
    return 0


def candidates(line: str) -> list[str]:
    """What the last word of a line may become, sorted.

    Args:
      line: from the command's name up to the cursor, such as `sbs train --gin_f`.
    """
    *before, word = line.split(" ")
    before = [text for text in before if text]
    if len(before) < 2:
        found: Sequence[str] = commands()
    elif word.startswith("--gin."):
        found = [f"--gin.{name}=" for name in _macros(before[2:])]
    elif word.startswith("--gin_file="):
        found = [f"--gin_file={name}" for name in _gin_files(word.removeprefix("--gin_file="))]
    elif before[-1] == "--gin_file":
        found = _gin_files(word)
    else:
        options = flags_lib.parser()._option_string_actions.items()
        takes_value = {name: action.nargs != 0 for name, action in options}
        found = [
            "--gin." if name == "--gin.NAME" else name + "=" * takes
            for name, takes in takes_value.items()
            if name.startswith("--")
        ]
    return sorted(name for name in found if name.startswith(word))


def _gin_files(typed: str) -> list[str]:
    """The shipped gin files, and files and folders that continue the path that was typed."""
    folder = Path(typed).expanduser() if typed.endswith("/") else Path(typed).expanduser().parent
    own = []
    if folder.is_dir():
        prefix = typed[: typed.rfind("/") + 1]
        own = [
            f"{prefix}{path.name}{'/' if path.is_dir() else ''}"
            for path in folder.iterdir()
            if (path.is_dir() or path.suffix == ".gin") and not path.name.startswith(".")
        ]
    return [*reader.shipped_files(), *own]


def _macros(arguments: Sequence[str]) -> list[str]:
    try:
        flags = flags_lib.parse_flags([text for text in arguments if text.startswith("--gin_")])
        config = config_lib.read(flags.gin_file, search_paths=flags.gin_search_paths)
    except UserError:  # A line that is still being typed may be wrong.
        return []
    return list(config.macros)
