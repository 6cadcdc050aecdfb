"""What is said where T5X is missing. (These tests run everywhere.)"""

import subprocess
import sys

import pytest

from sbs_jax.configuration import reader
from sbs_jax.errors import UserError

PROGRAM = """
import sys
sys.modules["t5x"] = None  # as if it were not installed
try:
    import sbs_jax.t5x.model
except ImportError as error:
    print(error)
"""


def test_one_sentence_says_how_to_install_it():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert "sbs_jax.t5x needs T5X" in done.stdout
    assert "https://github.com/google-research/t5x" in done.stdout
    assert "docs/t5x.md" in done.stdout


def test_our_own_programs_do_not_offer_t5xs_files():
    assert (reader.gin_folder() / "t5x" / "finetune_sbs.gin").is_file()
    assert not [name for name in reader.shipped_files() if name.startswith("t5x/")]


@pytest.mark.parametrize("name", ["finetune", "eval", "infer"])
def test_a_file_of_t5xs_is_refused_by_our_own_programs(name):
    with pytest.raises(UserError, match=r"for T5X's own programs.*docs/t5x\.md"):
        reader.read_files([f"t5x/{name}_sbs.gin"])
