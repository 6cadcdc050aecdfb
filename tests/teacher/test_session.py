"""Everything together: previews, filters on the journal, tables, hostile completions."""

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from sbs_jax.errors import UserError
from sbs_jax.teacher.backends.scripted import ScriptedBackend, explain_expression
from sbs_jax.teacher.choose import Choosing
from sbs_jax.teacher.plan import Asking
from sbs_jax.teacher.sampling import Sampling
from sbs_jax.teacher.stats import show_stats
from sbs_jax.teacher.types import AskedExample
from tests.teacher.support import ask, examples, read_jsonl


def scripted(*texts):
    return ScriptedBackend(lambda example, sample: texts[sample % len(texts)])


class Forbidden(ScriptedBackend):
    async def complete(self, requests):
        raise AssertionError("the teacher was asked")


def test_the_scripted_teacher_explains_expressions(tmp_path):
    run, rows, _ = ask(tmp_path, examples(20), backend=ScriptedBackend())
    assert run["result"]["accuracy"] == 1.0
    assert rows[3]["llm_rationale"] == "3 + 10 = 13."
    assert rows[3]["llm_label"] == "(3 + 10)"
    nested = explain_expression(AskedExample("", "", "( ( 17.0 + 15.0 ) * 2.0 )"), 0)
    assert nested == "17 + 15 = 32. 32 * 2 = 64. The answer is ((17 + 15) * 2)."
    assert explain_expression(AskedExample("", "", "blue"), 0) == "I do not know."


def test_filters_run_on_the_journal_again_and_again(tmp_path):
    texts = (
        "0 + 7 = 8. The answer is (0 + 7).",
        "0 + 7 = 7. The answer is (0 + 7).",
        "0 + 1 = 1. The answer is (0 + 1).",
    )
    sampling = Sampling(temperature=0.5, samples=3)
    ask(tmp_path, examples(1), backend=scripted(*texts), sampling=sampling)
    size = (tmp_path / "generations.jsonl").stat().st_size
    for choosing, rationales in (
        (Choosing(), ["0 + 7 = 8."]),
        (Choosing(keep_consistent=True), ["0 + 7 = 7."]),
        (Choosing(choose="all", keep=9), [f"{t.split(' The')[0]}" for t in texts]),
        (Choosing(choose="all", keep=9, keep_right=True), ["0 + 7 = 8.", "0 + 7 = 7."]),
        (Choosing(choose="self_consistency", keep_consistent=True), ["0 + 7 = 7."]),
    ):
        _, (row,), _ = ask(
            tmp_path, examples(1), backend=Forbidden(), sampling=sampling, choosing=choosing
        )
        assert row.get("llm_rationales", [row["llm_rationale"]]) == rationales
    assert (tmp_path / "generations.jsonl").stat().st_size == size


def test_changed_parameters_make_new_keys_and_no_mixture(tmp_path):
    ask(tmp_path, examples(3), backend=scripted("The answer is (1)."))
    hot = Sampling(temperature=0.9)
    _, rows, _ = ask(tmp_path, examples(3), backend=scripted("The answer is (2)."), sampling=hot)
    assert {row["llm_label"] for row in rows} == {"(2)"}
    # And the old ones are still there.
    _, rows, _ = ask(tmp_path, examples(3), backend=Forbidden())
    assert {row["llm_label"] for row in rows} == {"(1)"}
    assert len(read_jsonl(tmp_path / "generations.jsonl")) == 6


def test_offline_asks_nothing_and_says_what_is_missing(tmp_path):
    ask(tmp_path, examples(3), backend=ScriptedBackend())
    run, rows, _ = ask(tmp_path, examples(5), backend=Forbidden(), offline=True)
    assert run["status"] == "incomplete: 2 examples lack a completion"
    assert [row["flags"].get("missing", False) for row in rows] == [False] * 3 + [True] * 2
    # Missing answers are not wrong answers.
    assert run["result"]["scored"] == 3


def test_preview_prints_prompts_and_touches_nothing(tmp_path):
    run, _, said = ask(tmp_path / "out", examples(9), backend=Forbidden(), preview=2)
    assert run == {} and not (tmp_path / "out").exists()
    assert said.count("How many has she?") == 2
    assert "about" in said and "tokens" in said and "nothing was sent" in said
    _, _, said = ask(
        tmp_path / "out", examples(9), backend=Forbidden(), preview=1, asking=Asking(chat=True)
    )
    assert "[assistant]" in said


def test_predictions_are_the_baseline(tmp_path):
    run, _, _ = ask(
        tmp_path, examples(4), backend=scripted("Hm. The answer is (0 + 7)."), predictions=True
    )
    rows = read_jsonl(tmp_path / "predictions.jsonl")
    assert [row["score"] for row in rows] == [1, 0, 0, 0]
    assert rows[1]["target"] == "( 1.0 + 8.0 )" and rows[1]["prediction"] == "(0 + 7)"
    assert run["result"]["accuracy"] == 0.25
    assert run["result"]["standard_error"] == pytest.approx(0.25)  # sqrt(.25 · .75 / 3)


def test_stats_show_the_table_and_examples_of_each_failure(tmp_path):
    ask(tmp_path, examples(4), backend=scripted("\x1b[31mNonsense [bold]x[/bold]"))
    console = Console(file=io.StringIO(), width=120)
    show_stats(tmp_path, console)
    said = console.file.getvalue()
    assert "completions unparsed  4 of 4 (100.0%)" in said
    assert "Nonsense [bold]x[/bold]" in said and "\x1b" not in said
    with pytest.raises(UserError, match="OUTPUT_DIR"):
        show_stats(tmp_path / "nowhere")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        show_stats(tmp_path)


HOSTILE = [
    "Q: Ann has 3 apples\nA: 3. The answer is (0 + 7).",
    "\x00\x07\x1b[2J\x1b]0;pwned\x07 7. The answer is (0 + 7).",
    "__import__('os').system('x'). The answer is (__import__('os').system('rm -rf /')).",
    "x" * 100_000 + " The answer is (0 + 7).",
    "The answer is (" + "(" * 100_000,
    "\ud800 \udfff lone. The answer is (0 + 7\udc00).",
    "a\u2028b\u2029c\x85d\re\r\nf. The answer is (0 + 7).",
    '", "llm_label": "hacked"}\n{"id": "e9"}. The answer is (0 + 7).',
    "{{ 7*7 }}{% raw %} The answer is (0 + 7).",
    "\u202egnirts\u2066. The answer is (0 + 7).",
    "",
    "The answer is (9**9**9**9).",
    "1 = " * 30_000 + "The answer is (0 + 7).",
]


@pytest.mark.parametrize("asking", [Asking(), Asking(style="zero_shot_two_calls")])
def test_hostile_completions_break_nothing(tmp_path, asking):
    rows = [{**row, "label": "( 0.0 + 7.0 )"} for row in examples(len(HOSTILE))]
    by_id = dict(zip((row["id"] for row in rows), HOSTILE, strict=True))
    backend = ScriptedBackend(lambda example, sample: by_id[example.id])
    _, done, said = ask(tmp_path, rows, backend=backend, asking=asking, predictions=True)
    assert [row["id"] for row in done] == [row["id"] for row in rows]
    for name in ("rationales.jsonl", "predictions.jsonl", "run.json", "generations.jsonl"):
        text = (tmp_path / name).read_bytes().decode("utf-8")  # strictly UTF-8
        assert not any(ord(c) < 32 and c != "\n" for c in text)
        assert len(text.splitlines()) == text.count("\n")
    for row in done:
        for field in ("llm_label", "llm_rationale"):
            row[field].encode("utf-8")
            assert not set(row[field]) & set("\0\x1b\x07\r\u2028\u202e")
    console = Console(file=io.StringIO(), width=120)
    show_stats(tmp_path, console)
    assert not set(said + console.file.getvalue()) & set("\0\x1b\x07\u202e")
    # The journal keeps what was said, to the character.
    kept = {row["id"]: row["text"] for row in read_jsonl(tmp_path / "generations.jsonl")}
    if asking.style == "few_shot":
        assert kept == by_id
        assert done[2]["flags"]["right"] is False
        assert done[5]["llm_label"] == "(0 + 7)"


def test_a_source_without_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="Example 1 has no text"):
        ask(tmp_path, [*examples(1), {"id": "x"}], backend=ScriptedBackend())


def test_nothing_heavy_is_imported():
    code = (
        "import sys, sbs_jax.teacher.session, sbs_jax.teacher.backends.openai_compat, "
        "sbs_jax.teacher.backends.batch_file, sbs_jax.teacher.backends.local\n"
        "bad = {'jax', 'tensorflow', 'seqio', 'flax', 'torch'} & set(sys.modules)\n"
        "print(sorted(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_run_json_says_where_it_comes_from(tmp_path):
    run, _, _ = ask(tmp_path, examples(2), backend=ScriptedBackend())
    written = json.loads((tmp_path / "run.json").read_text())
    assert written == json.loads(json.dumps(run, default=str))
    copies = list((tmp_path / "prompts").glob("svamp.*.yaml"))
    assert len(copies) == 1
    assert written["prompts"]["sha256"].startswith(copies[0].stem.split(".")[1])
    for key in ("model", "backend", "sampling", "versions", "totals", "history"):
        assert key in written
