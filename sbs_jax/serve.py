r"""Serves a trained student over HTTP (needs the extra `serve`).

For instance:
    python -m sbs_jax.serve --checkpoint PATH --port 8000
    curl localhost:8000/predict -H 'Content-Type: application/json' \
      -d '{"inputs": "Ann has 2 apples and buys 3. How many are there?", "explain": true}'

`--checkpoint`, `--host`, `--port` and `--api_key_env` stand for the macros CHECKPOINT_PATH, HOST,
PORT and API_KEY_ENV of gin/runs/serve.gin, which is always read. All other macros are given as
--gin.NAME=VALUE.
"""

import sys
from collections.abc import Sequence

from sbs_jax.configuration.flags import with_gin_file
from sbs_jax.configuration.main import run_main

_MACROS = {
    "--checkpoint": "CHECKPOINT_PATH",
    "--host": "HOST",
    "--port": "PORT",
    "--api_key_env": "API_KEY_ENV",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    argv = with_gin_file(as_gin(argv), "runs/serve.gin")
    return run_main("sbs_jax.programs.serve:serve", argv, description=__doc__)


def as_gin(argv: Sequence[str]) -> list[str]:
    """Writes this program's own flags as macros.

    >>> as_gin(['--checkpoint', 'runs/x', '--port=80', '--gin.EXPLAIN=True'])
    ['--gin.CHECKPOINT_PATH=runs/x', '--gin.PORT=80', '--gin.EXPLAIN=True']
    """
    flags = []
    rest = iter(argv)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name not in _MACROS:
            flags.append(argument)
            continue
        if not equals:
            value = next(rest, "")
        flags.append(f"--gin.{_MACROS[name]}={value}")
    return flags


if __name__ == "__main__":
    sys.exit(main())
