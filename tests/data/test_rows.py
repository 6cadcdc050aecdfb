import json
import sys

import pyarrow
import pyarrow.parquet
import pytest

from sbs_jax.data.rows import read_rows
from sbs_jax.errors import UserError
from sbs_jax.json_files import read_jsonl

ROWS = [{"input": 'a, "b"\nc', "label": "ä"}, {"input": "x" * 20, "label": ""}]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_every_format_gives_the_same_rows(tmp_path):
    as_csv = 'input,label\r\n"a, ""b""\nc",ä\r\n' + "x" * 20 + ",\r\n"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "p.parquet")
    paths = [
        write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n\n" for row in ROWS)),
        write(tmp_path / "a.json", "".join(json.dumps(row) + "\n" for row in ROWS)),
        write(tmp_path / "b.json", json.dumps(ROWS)),
        write(tmp_path / "c.json", "\n" + json.dumps(ROWS, indent=2)),
        write(tmp_path / "d.json", json.dumps({"version": 1, "examples": ROWS}, indent=2)),
        write(tmp_path / "e.csv", as_csv),
        write(tmp_path / "bom.csv", "\ufeff" + as_csv),
        write(tmp_path / "f.TSV", as_csv.replace(",", "\t").replace("a\t", "a,")),
        tmp_path / "p.parquet",
    ]
    for path in paths:
        assert [dict(row) for row in read_rows(path)] == ROWS, path
    latin = write(tmp_path / "l.csv", as_csv, "latin-1")
    assert [dict(row) for row in read_rows(latin, encoding="latin-1")] == ROWS


def test_parquet_without_its_reader(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="Parquet is read by pyarrow: pip install pyarrow"):
        read_rows(write(tmp_path / "a.parquet", "x"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": ', r"a\.jsonl, line 2: not valid JSON"),
        ("a.jsonl", '{"a": 1}\n[1]', "line 2: expected a JSON object, found list"),
        ("a.jsonl", '{"a": 1, "b": 2, "a": 3}', "line 1: the key 'a' occurs twice"),
        ("a.json", '[{"a": 1, "a": 3}]', "the key 'a' occurs twice"),
        ("a.json", '[{"a": 1},\n 3]', "entry 2: expected an object, found a number"),
        ("a.json", '[{"a": 1},\n', r"a\.json, line 2: not valid JSON"),
        ("a.jsonl", "", r"a\.jsonl: holds no examples"),
        ("a.json", "[]", r"a\.json: holds no examples"),
        ("a.csv", "", r"a\.csv: holds no examples"),
        ("a.csv", "x,y\n", r"a\.csv: holds no examples"),
        ("a.csv", "x,y\n1,2\n3\n", "line 3: has 1 fields, but the first line names 2"),
        ("a.csv", "x,x\n1,2\n", "line 1: names the field 'x' twice"),
        ("a.csv", 'x\n"1', "line 2: not valid CSV"),
        ("a.parquet", "no", r"a\.parquet: cannot be read as Parquet"),
        ("a.xlsx", "no", "files of examples end in .json, .jsonl, .csv"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        read_rows(write(tmp_path / name, text))


def test_other_encodings_are_named_with_the_line(tmp_path):
    text = "input,label\n" + "plain,x\n" * 5000 + "ä,x\n"
    with pytest.raises(UserError, match=r"line 5002: not UTF-8 text .*ENCODING \('latin-1'\)"):
        read_rows(write(tmp_path / "a.csv", text, "latin-1"))
    lines = '{"a": "plain"}\n' * 5000 + '{"a": "ä"}\n{"a": "plain"}\n'
    for name in ("a.jsonl", "a.json"):
        path = write(tmp_path / name, lines, "latin-1")
        with pytest.raises(UserError, match=r", line 5001: not UTF-8 text .*ENCODING"):
            read_rows(path)
        assert read_rows(path, encoding="Latin-1")[5000]["a"] == "ä"
        assert [path for _, path in read_jsonl(path, encoding="latin_1")][5000] == {"a": "ä"}
    with pytest.raises(UserError, match=r"a\.jsonl, line 5001: .*; convert the file to UTF-8\."):
        list(read_jsonl(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_encodings_and_byte_order_marks(tmp_path, name, encoding):
    text = {"a.jsonl": '{"a": "ä"}\n', "a.json": '[{"a": "ä"}]', "a.csv": "a\nä\n"}[name]
    path = write(tmp_path / name, text, encoding)
    given = "utf-8" if encoding == "utf-8-sig" else encoding
    assert [dict(row) for row in read_rows(path, encoding=given)] == [{"a": "ä"}]
    if not encoding.startswith("utf-8"):
        with pytest.raises(UserError, match=rf"{name}, line [12]: not (UTF-8 text|valid JSON)"):
            read_rows(path)
    with pytest.raises(UserError, match="ENCODING = 'klingon' is no encoding of texts"):
        read_rows(path, encoding="klingon")
    with pytest.raises(UserError, match="ENCODING = 'base64' is no encoding of texts"):
        read_rows(path, encoding="base64")


def test_long_lines_and_nul_bytes_are_read(tmp_path):
    big = "x" * 10_000_000
    path = write(tmp_path / "a.jsonl", json.dumps({"input": big, "label": "a\0b"}))
    assert dict(read_rows(path)[0]) == {"input": big, "label": "a\0b"}
    assert read_rows(write(tmp_path / "a.csv", f"input\n{big}\n"))[0]["input"] == big


def test_a_missing_file_is_named(tmp_path):
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet"):
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            read_rows(tmp_path / name)
