"""Further fields of an example: what is asked, what is kept, resuming, and refusals."""

import pytest

from sbs_jax.errors import UserError
from sbs_jax.teacher.backends.scripted import ScriptedBackend, explain_expression, write_field
from sbs_jax.teacher.fields import load_field_files
from tests.teacher.support import ask, examples

REVERSE = ("backward_question", "backward_rationale")


class Counting(ScriptedBackend):
    """Counts what it is asked, and keeps the last prompt of each field."""

    def __init__(self, fields=write_field, script=explain_expression):
        super().__init__(script, fields=fields)
        self.asked = 0
        self.prompts = {}

    async def complete(self, requests):
        self.asked += len(requests)
        self.prompts |= {request.kind: request.prompt for request in requests}
        return await super().complete(requests)


def test_fields_are_asked_after_the_answer_and_written(tmp_path):
    backend = Counting()
    _, plain, _ = ask(tmp_path, examples(3), backend=backend)
    assert backend.asked == 3
    run, rows, _ = ask(
        tmp_path, examples(3), backend=backend, fields=["reverse", "expression", "evaluation"]
    )
    # The journal has the rationales: only six questions of each example are new.
    assert backend.asked == 3 + 3 * 6
    assert run["status"] == "complete"
    assert {"reverse.yaml", "expression.yaml", "evaluation.yaml"} == set(run["fields"])
    assert run["result"]["counts"]["with_backward_question"] == 3
    for old, row in zip(plain, rows, strict=True):
        assert {name: row[name] for name in old if name != "flags"} == {
            name: text for name, text in old.items() if name != "flags"
        }
        assert row["expression"] == row["label"]
        assert (row["evaluation"] == "right") == (row["candidate"] == row["llm_rationale"])
        assert "some apples" in row["backward_question"]
        assert row["backward_rationale"] == f"It is {row['id'][1:]}."
        assert "consistent" not in row
    assert rows[2]["backward_question"] in backend.prompts["field:backward_rationale"]
    assert rows[2]["candidate"] in backend.prompts["field:evaluation"]
    assert rows[2]["label"] not in backend.prompts["field:expression"]
    # Offline, the same file comes of the journal alone.
    before = (tmp_path / "rationales.jsonl").read_bytes()
    ask(tmp_path, examples(3), backend=backend, fields=["reverse", "expression", "evaluation"],
        offline=True)  # fmt: skip
    assert (tmp_path / "rationales.jsonl").read_bytes() == before
    # A field that was never asked is missing, not empty without a word.
    run, rows, _ = ask(tmp_path / "b", examples(2), backend=Counting())
    run, rows, _ = ask(
        tmp_path / "b", examples(2), backend=Counting(), fields=["expression"], offline=True
    )
    assert run["status"].startswith("incomplete: 2 examples lack")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("(0 + 7)", "(0 + 7)"),
        ("It is 0 + 7 apples", "0 + 7"),
        ("8 - 1", "8 - 1"),  # another way to the same value
        ("0 + 8", ""),  # another value
        ("7", ""),  # the answer alone is no arithmetic
        ("__import__('os')", ""),
    ],
)
def test_an_expression_is_kept_where_it_has_the_labels_value(tmp_path, said, kept):
    backend = Counting(lambda example, name: said)
    _, (row,), _ = ask(tmp_path, examples(1), backend=backend, fields=["expression"])
    assert row["expression"] == kept


def test_a_verdict_rejects_what_it_judges_and_an_empty_field_asks_nothing_more(tmp_path):
    def verdict(example, name):
        return "No." if name == "consistent" else write_field(example, name)

    _, (row,), _ = ask(tmp_path / "a", examples(1), backend=Counting(verdict), fields=["reverse"])
    assert [row[name] for name in REVERSE] == ["", ""]
    assert row["flags"]["rejected_by"] == ["consistent"]
    assert row["llm_rationale"]
    silent = Counting(lambda example, name: "")
    _, (row,), _ = ask(tmp_path / "b", examples(1), backend=silent, fields=["reverse"])
    assert silent.asked == 2 and row["flags"].get("rejected_by") is None
    # A question without its rationale cannot be judged, and is not kept.
    half = Counting(lambda example, name: "Why?" if name == "backward_question" else "")
    _, (row,), _ = ask(tmp_path / "d", examples(1), backend=half, fields=["reverse"])
    assert half.asked == 3 and [row[name] for name in REVERSE] == ["", ""]
    # Where no rationale passes, nothing that belongs to it is written.
    unparsed = Counting(script=lambda example, sample: "I do not know.")
    _, (row,), _ = ask(tmp_path / "c", examples(1), backend=unparsed, fields=["reverse"])
    assert unparsed.asked == 1 and row["backward_question"] == row["llm_rationale"] == ""


def test_a_chat_gets_the_fields_own_system_message(tmp_path):
    backend = Counting()
    ask(tmp_path, examples(1), backend=backend, fields=["expression"],
        prompts="gsm8k")  # fmt: skip
    assert isinstance(backend.prompts["field:expression"], str)
    (file,) = load_field_files(["expression"])
    system, user = file.fields[0].prompt({"input": "How many?"}, chat=True)
    assert system["role"] == "system" and "one arithmetic expression" in system["content"]
    assert user["content"].startswith("Question: How many?")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("fields: {label: {query: a}}", "fields.label is no name for a field"),
        ("fields: {hint: {ask: a}}", "fields.hint.query is missing"),
        ("fields: {hint: {query: a, ask: b}}", "has an unknown key 'ask'"),
        ("fields: {hint: {query: '{{ gold }}'}}", "query uses 'gold'; known here are input"),
        ("fields: {hint: {query: '{{'}}", "fields.hint.query: "),
        ("fields: {hint: {query: a, accept: b}}", "`accept` and `rejects` belong together"),
        ("fields: {hint: {query: a, accept: b, rejects: [x]}}", "must be a list of earlier"),
        ("fields: {hint: {query: a, extract: '('}}", "extract is no regular expression"),
        ("fields: {hint: {query: a, check: python}}", "check = 'python' must be 'expression'"),
        ("hint: {query: a}", "expected one key `fields`"),
    ],
)
def test_mistakes_in_field_files_are_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        load_field_files([str(path)])
    assert str(path) in str(caught.value)


def test_names_of_field_files():
    with pytest.raises(UserError, match="neither a file nor one of evaluation, expression, rev"):
        load_field_files(["backward"])
    with pytest.raises(UserError, match=r"write \['reverse'\]"):
        load_field_files("reverse")
    with pytest.raises(UserError, match="backward_question is asked for by"):
        load_field_files(["reverse", "reverse"])
