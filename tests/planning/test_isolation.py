"""A process of its own compiles, and may crash."""

import pickle
import subprocess
import sys

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


def test_a_mistake_ends_the_process_in_order_and_so_does_its_parents_end():
    start = "from sbs_jax.planning import isolation; isolation.end_with_parent(); "
    for then, code in (("raise SystemExit(3)", 3), ("import time; time.sleep(60)", 1)):
        with subprocess.Popen([sys.executable, "-c", start + then], stdin=subprocess.PIPE) as one:
            if code == 1:
                one.stdin.close()
            assert one.wait(50) == code
