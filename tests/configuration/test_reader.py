import pytest

from sbs_jax import redaction
from sbs_jax.configuration import reader
from sbs_jax.configuration.statements import Macro, Reference
from sbs_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16", 16),
        ("-1", -1),
        ("1_000", 1000),
        ("5e-5", 5e-5),
        ("True", True),
        ("None", None),
        ("[1, 'a']", [1, "a"]),
        ("{'inputs': 64, 'targets': 32}", {"inputs": 64, "targets": 32}),
        ("('gelu', 'linear')", ("gelu", "linear")),
        ("@optimizers.adamw()", Reference("optimizers.adamw", True)),
        ("@a/b.c", Reference("a/b.c", False)),
        ("%BATCH_SIZE", Macro("BATCH_SIZE")),
        ('"runs/x"', "runs/x"),
        ("'runs/x'", "runs/x"),
        ("runs/x", "runs/x"),
        ("/abs/path with spaces", "/abs/path with spaces"),
        ("10/20", "10/20"),
        ("2026-11-22", "2026-11-22"),
        ("1e5x", "1e5x"),
        ("svamp_sbs", "svamp_sbs"),
        ("true", "true"),
        ("None/x", "None/x"),
        ("gs://bucket/x", "gs://bucket/x"),
        ("x = 3", "x = 3"),
        ("predict: ", "predict: "),
    ],
)
def test_flag_values(text, value):
    parsed, _ = reader.parse_flag_value("NAME", text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_plain_text_is_told_from_gin_syntax():
    assert reader.parse_flag_value("X", "10")[1]
    assert reader.parse_flag_value("X", "runs/x")[1]
    assert not reader.parse_flag_value("X", '"10"')[1]
    assert not reader.parse_flag_value("X", "%Y")[1]


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert reader.parse_flag_value("X", "~/runs")[0] == "/home/somebody/runs"
    assert reader.parse_flag_value("X", "'~/runs'")[0] == "~/runs"


@pytest.mark.parametrize(
    "text", ["{'inputs': 64", "[1,", "'x", '"a"b', "(old)/x", "@", "%1", "@a("]
)
def test_broken_gin_is_no_string(text):
    with pytest.raises(UserError, match=r"--gin\.X=.* is not valid gin; check its brackets"):
        reader.parse_flag_value("X", text)


def test_an_empty_value_is_an_error_but_an_empty_string_is_not():
    with pytest.raises(UserError, match=r"--gin\.DATA_DIR= has no value"):
        reader.parse_flag_value("DATA_DIR", " ")
    assert reader.parse_flag_value("DATA_DIR", "''") == ("", False)


def test_secrets_are_not_repeated_in_errors():
    with pytest.raises(UserError) as caught:
        reader.parse_flag_value("API_KEY", "'hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("API_KEY", True),
        ("apiKey", True),
        ("hub.token", True),
        ("HFTOKEN", True),
        ("CLIENT_SECRETS", True),
        ("PASSWORD", True),
        ("MAX_TOKENS", False),
        ("TOKENIZER_PATH", False),
        ("KEEP_CHECKPOINTS", False),
        ("MODEL_DIR", False),
    ],
)
def test_is_secret(name, secret):
    assert redaction.is_secret(name) == secret


def _read(tmp_path, text, name="run.gin"):
    path = tmp_path / name
    path.write_text(text)
    return reader.read_files([str(path)])[0]


def test_bindings_know_their_place_and_their_comment(tmp_path):
    file = _read(
        tmp_path,
        "import os as system\n"
        "A = 1  # the first\n"
        "B = {\n  'x': 2,  # inside\n}\n"
        "scope/system.stat:\n"
        "  path = %A\n"
        "  # a remark\n"
        "  follow = '#'  # the last\n",
    )
    a, b, block, path, follow = file.statements[1:]
    assert (a.name, a.value, a.source.line, a.comment) == ("A", 1, 2, "the first")
    assert (b.value, b.source.line, b.comment) == ({"x": 2}, 3, "")
    assert block.source.line == 6
    assert (path.name, path.value, path.source.line) == ("scope/system.stat.path", Macro("A"), 7)
    assert path.full_name == "os.stat"
    assert (follow.value, follow.comment, follow.source.line) == ("#", "the last", 9)
    assert str(a.source) == f"{tmp_path}/run.gin, line 2"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("A = 1\nB = abc\n", 2, r"'abc' is not a value \(a string needs quotes"),
        ("A = [1,\n", 1, "a bracket or a string is not closed"),
        ("\n\nA =\n", 3, "unable to parse value in `A =`"),
        ("A B = 3\n", 1, "expected ':' or '='"),
        ("f.g:\nA = 3\n", 2, "expected indentation"),
        ("f.g:\n  a = 1\n b = 2\n", 3, "unindent"),
        ("include 3\n", 1, "expected file path as string"),
        ("a..b = 3\n", 1, "malformatted"),
        ("A = 1 2\n", 1, "expected newline"),
        ("A = 'x\n", 1, "not gin"),
        ("from x import\n", 1, "not gin"),
        ("HUB_TOKEN = abcdef\n", 1, "not gin"),
    ],
)
def test_syntax_errors_name_the_file_and_the_line(tmp_path, text, line, reason):
    with pytest.raises(UserError, match=reason) as e:
        _read(tmp_path, text)
    assert str(e.value).startswith(f"{tmp_path}/run.gin, line {line}: this is not gin: ")
    assert "\n" not in str(e.value)


def test_files_are_found_in_the_search_paths_and_among_the_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.gin").write_text("A = 1\n")
    (tmp_path / "b.gin").write_text("include 'a.gin'\n")
    files = reader.read_files(["b.gin", "runs/train.gin"], search_paths=["mine"])
    assert files[0].statements[0].name == "mine/a.gin"
    assert files[1].name == "runs/train.gin"
    assert files[1].statements[0].source.shipped
    with pytest.raises(UserError, match=r"^b\.gin, line 1: the gin file 'a\.gin' does not exist"):
        reader.read_files(["b.gin"])


def test_a_missing_file_is_one_sentence_with_the_nearest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError,
        match=r"'runs/trian\.gin' does not exist \(looked in \., mine and among.*"
        r"did you mean runs/train\.gin",
    ):
        reader.read_files(["runs/trian.gin"], search_paths=["mine"])
    with pytest.raises(UserError, match=r"did you mean runs/train\.gin\?"):
        reader.read_files(["train.gin"])
    with pytest.raises(UserError, match=r"'/nowhere/x\.gin' does not exist\.$"):
        reader.read_files(["/nowhere/x.gin"])


def test_unreadable_files_are_one_sentence(tmp_path):
    (tmp_path / "a.gin").write_bytes(b"A = '\xff'\n")
    with pytest.raises(UserError, match=r"a\.gin: the gin file cannot be read \(it is not UTF-8"):
        reader.read_files([str(tmp_path / "a.gin")])
    (tmp_path / "b.gin").write_bytes(b"A = 1\0\n")
    with pytest.raises(UserError, match=r"b\.gin: the gin file cannot be read \(it is not text"):
        reader.read_files([str(tmp_path / "b.gin")])


def test_a_circle_of_includes_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.gin").write_text("include 'b.gin'\n")
    (tmp_path / "b.gin").write_text("\ninclude 'a.gin'\n")
    with pytest.raises(UserError, match=r"b\.gin, line 2: a\.gin includes itself\."):
        reader.read_files(["a.gin"])


def test_nearest_ignores_case():
    assert reader.nearest("train_steps", ["TRAIN_STEPS", "MODEL_DIR"]) == ["TRAIN_STEPS"]
    assert reader.nearest("xyz", ["TRAIN_STEPS"]) == []
