import json

import pytest

from sbs_jax.errors import UserError
from sbs_jax.inference.output import ResumableOutput

MADE_WITH = {"parameters": "abc", "EXPLAIN": True}


def opened(path, made_with=MADE_WITH, checkpoint="run/checkpoint_1"):
    return ResumableOutput(str(path), made_with, checkpoint=checkpoint)


def test_rows_are_on_disk_and_gone_on_with(tmp_path):
    path = tmp_path / "new" / "out.jsonl"
    with opened(path) as output:
        output.append([{"a": "é\ud800"}, {"a": 2}])
        assert path.read_text() == '{"a": "é?"}\n{"a": 2}\n'
    with opened(path, checkpoint="moved/checkpoint_1") as output:
        assert list(output.rows()) == [{"a": "é?"}, {"a": 2}]
        output.cut(1)
        output.append([{"a": 3}])
    assert path.read_text() == '{"a": "é?"}\n{"a": 3}\n'


@pytest.mark.parametrize("torn", ["{", '{"a": 1', "x" * 200_000])
def test_a_torn_line_is_dropped(tmp_path, torn):
    path = tmp_path / "out.jsonl"
    with opened(path) as output:
        output.append([{"a": 1}])
    with path.open("a") as file:
        file.write(torn)
    with opened(path):
        assert path.read_text() == '{"a": 1}\n'


def test_a_file_with_a_torn_line_alone_is_empty(tmp_path):
    path = tmp_path / "out.jsonl"
    opened(path).append([])
    path.write_text('{"a"')
    with opened(path):
        assert path.read_text() == ""


def test_what_was_made_with_something_else_is_refused_and_kept(tmp_path):
    path = tmp_path / "out.jsonl"
    with opened(path) as output:
        output.append([{"a": 1}])
    with pytest.raises(UserError, match=r"begun with EXPLAIN = True, not False"):
        opened(path, MADE_WITH | {"EXPLAIN": False})
    with pytest.raises(UserError, match=r"another checkpoint \(run/checkpoint_1\) than other"):
        opened(path, MADE_WITH | {"parameters": "xyz"}, "other")
    with pytest.raises(UserError, match=r"begun with EXPLAIN = True, not None"):
        opened(path, {"parameters": "abc"})
    assert path.read_text() == '{"a": 1}\n'


def test_a_file_of_someone_elses_is_refused_and_kept(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("mine\n")
    with pytest.raises(UserError, match=r"out\.jsonl\.run\.json beside it"):
        opened(path)
    (tmp_path / "out.jsonl.run.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="begin anew"):
        opened(path)
    assert path.read_text() == "mine\n"


def test_two_writers_do_not_mix(tmp_path):
    path = tmp_path / "out.jsonl"
    with opened(path), pytest.raises(UserError, match="another process is writing it"):
        opened(path)


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        opened(tmp_path / "file" / "out.jsonl")
