import pytest

from sbs_jax.errors import UserError
from sbs_jax.inference.inputs import read_items


def read(tmp_path, name, text, **options):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_items(str(path), **options))


def test_json_lines(tmp_path):
    text = (
        '{"input": "a b", "id": 7, "label": "x", "candidates": ["x", "y"], "rationale": "r"}\n'
        '\n{"input": "c", "other": 3}\n'
    )
    one, two = read(tmp_path, "x.jsonl", text)
    assert (one.id, one.input, one.target, one.rationale) == ("7", "a b", "x", "r")
    assert one.candidates == ("x", "y")
    assert (two.id, two.target, two.candidates, two.rationale) == ("3", None, None, "")
    assert two.where.endswith("x.jsonl, line 3")


def test_tables(tmp_path):
    text = '\ufeffid,question,candidates\nq1,"two\nlines",x|y\nq2,b,\n'
    one, two = read(tmp_path, "x.csv", text, input_field="question")
    assert (one.id, one.input, one.candidates) == ("q1", "two\nlines", ("x", "y"))
    assert (two.id, two.candidates) == ("q2", None)
    (item,) = read(tmp_path, "x.tsv", "input\tlabel\na, b\tyes\n")
    assert (item.input, item.target) == ("a, b", "yes")


def test_plain_lines(tmp_path):
    items = read(tmp_path, "x.txt", "first\n\n third \n")
    assert [(item.id, item.input) for item in items] == [("1", "first"), ("3", "third")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.xml", "", r"files of inputs end in \.jsonl"),
        ("x.jsonl", '{"inputs": "a"}\n', r"line 1: has no field 'input' \(fields: inputs\)"),
        ("x.jsonl", '{"input": "a"}\n{"input": " "}\n', "line 2: the input is empty"),
        ("x.jsonl", '{"input": 3}\n', "field 'input' must be a text, not int"),
        ("x.jsonl", '{"input": "a", "id": [1]}\n', "field 'id' must be"),
        ("x.jsonl", '{"input": "a", "candidates": "b"}\n', "'candidates' must be a list"),
        ("x.jsonl", '{"input": "a"', "line 1: not valid JSON"),
        ("x.csv", "input,label\na\n", "line 2: has 1 fields, but the first line names 2"),
        ("x.csv", 'input\n"a" b\n', "line 2: not valid CSV"),
        ("x.txt", b"a\n\xff\n", "line 2: not UTF-8 text"),
    ],
)
def test_mistakes_name_the_line(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, name, text)


def test_a_missing_file(tmp_path):
    for name in ("x.jsonl", "x.csv", "x.txt"):
        with pytest.raises(UserError, match="cannot be read"):
            list(read_items(str(tmp_path / name)))


def test_a_file_is_read_as_it_is_asked_for(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"input": "a"}\n{"broken\n')
    items = read_items(str(path))
    assert next(items).input == "a"  # the second line was not looked at
    with pytest.raises(UserError, match="line 2"):
        next(items)
