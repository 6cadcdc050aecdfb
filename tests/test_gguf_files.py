"""GGUF files through the `gguf` package: metadata, tensors of several types, damaged files."""

import gguf
import numpy as np
import pytest

from sbs_jax.errors import UserError
from sbs_jax.gguf_files import GGUFFile

TOKENS = ["<s>", "a", "é", ""]
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


@pytest.fixture
def written(tmp_path):
    """A file with a tensor of each type, and the values before they were rounded."""
    values = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_float32("llama.rope.freq_base", 1e5)
    writer.add_array("tokenizer.ggml.tokens", TOKENS)
    writer.add_array("tokenizer.ggml.token_type", [3, 1, 1, 1])
    writer.add_string("tokenizer.chat_template", "{{ messages }}")
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        data = gguf.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, values


def test_metadata_are_what_the_package_itself_reads(written):
    path, _ = written
    ours = GGUFFile(path).metadata
    reader = gguf.GGUFReader(path)
    theirs = {name: field.contents() for name, field in reader.fields.items()}
    assert ours == {name: v for name, v in theirs.items() if not name.startswith("GGUF.")}
    assert ours["tokenizer.ggml.tokens"] == TOKENS
    assert ours["tokenizer.ggml.token_type"] == [3, 1, 1, 1]


@pytest.mark.parametrize("name", TYPES)
def test_tensors_are_dequantised(written, name):
    path, values = written
    file = GGUFFile(path)
    got = file.tensor(name)
    assert got.shape == values.shape and got.dtype == np.float32
    # A block of 32 has one scale: the error is at most about a step of the block.
    bits = {"F32": 30, "F16": 10, "BF16": 7, "Q8_0": 7, "Q5_0": 4, "Q5_1": 4}.get(name, 3)
    blocks = np.abs(values.reshape(6, 2, 32)).max(-1, keepdims=True)
    assert (np.abs(got - values).reshape(6, 2, 32) <= blocks * 2.0**-bits * 1.07).all()
    np.testing.assert_array_equal(file.tensors[name][1:3, 5:9], got[1:3, 5:9])


def test_q8_0_to_the_bit(written):
    path, values = written
    scale = (np.abs(values).reshape(-1, 32).max(-1, keepdims=True) / 127).astype(np.float32)
    whole = np.round(values.reshape(-1, 32) / scale)
    wanted = whole * scale.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(GGUFFile(path).tensor("Q8_0"), wanted.reshape(6, 64))


@pytest.mark.parametrize("kept", [3, 40, 200, -100])
def test_a_damaged_file_is_one_sentence(written, kept):
    path, _ = written
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"small\.gguf: is no complete GGUF file"):
        GGUFFile(path)


def test_what_is_no_gguf_file(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(UserError, match="no complete GGUF file"):
        GGUFFile(path)
    with pytest.raises(UserError, match=r"none\.gguf: cannot be read"):
        GGUFFile(tmp_path / "none.gguf")


def test_a_missing_tensor_is_named(written):
    path, _ = written
    with pytest.raises(UserError, match="the tensor nothing is missing"):
        GGUFFile(path).tensor("nothing")
