"""A process of its own compiles, and may crash."""

import pickle

import pytest

from sbs_jax.errors import UserError
from sbs_jax.planning import isolation


def test_what_becomes_of_the_process(tmp_path, monkeypatch):
    python = tmp_path / "python"
    monkeypatch.setattr(isolation.sys, "executable", str(python))

    def compile_apart(script):
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        return isolation.compile_apart(["--target=v5e:2x4"], {"program": "train", "layout": None})

    (tmp_path / "made").write_bytes(pickle.dumps("compiled"))
    passed = '[ "$2 $3 $4" = "sbs_jax.plan --target=v5e:2x4 --compile={\\"program\\": \\"train\\", '
    passed += '\\"layout\\": null}" ] || exit 3'
    copied = f'{passed}\ncp {tmp_path}/made "${{5#--result=}}"'
    assert compile_apart(copied) == "compiled"
    with pytest.raises(isolation.CompilerCrash, match="SIGSEGV"):
        compile_apart("kill -SEGV $$")
    with pytest.raises(UserError, match=r"^no such macro$"):
        compile_apart("echo error: no such macro >&2; exit 1")
