import base64
import hashlib
import html.parser
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from sbs_jax.errors import UserError
from sbs_jax.reports import examples, page
from sbs_jax.reports.aggregate import aggregate
from sbs_jax.reports.make import make_report
from sbs_jax.reports.reading import read_sweep
from tests.reports import synthetic

VOID = {"meta", "link", "input", "br", "path", "use"}


class _Parser(html.parser.HTMLParser):
    """Checks that elements are closed in order; keeps texts of scripts, ids and addresses."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.scripts, self.ids, self.addresses, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        for name in ("src", "href", "xlink:href"):
            if name in attributes:
                self.addresses.append(attributes[name])
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.text.append(data)


def _parse(text):
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def _spoil(folder):
    """Puts dangerous texts wherever a user's text can stand."""
    sweep = json.loads((folder / "sweep.json").read_text())
    sweep["name"] = synthetic.NASTY[0]
    sweep["command"] = synthetic.NASTY[1]
    (folder / "sweep.json").write_text(json.dumps(sweep))
    for number, path in enumerate(sorted(folder.glob("runs/*/run.json"))):
        record = json.loads(path.read_text())
        record["settings"]["NOTE"] = synthetic.NASTY[3]
        if number == 0:
            record |= {"status": "failed", "error": synthetic.NASTY[2]}
        path.write_text(json.dumps(record))
    for path in folder.glob("runs/*/predictions/*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row, nasty in zip(rows, synthetic.NASTY * 3, strict=False):
            for name in ("id", "input", "prediction", "rationale", "llm_rationale"):
                if name in row:
                    row[name] += f" {nasty}"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def nasty_page(tmp_path_factory):
    folder = synthetic.write_sweep(
        tmp_path_factory.mktemp("nasty") / "s", {"METHOD": ("standard", "sbs"), "SEED": (0, 1)}
    )
    _spoil(folder)
    make_report([folder])
    return (folder / "report" / "report.html").read_text(encoding="utf-8"), folder


def test_no_text_breaks_out_of_its_place(nasty_page):
    text, _ = nasty_page
    parser = _parse(text)
    assert len(parser.scripts) == 2
    shown = "".join(parser.text)
    assert "</script><script>document.title='broken'</script> – sbs_jax report" in shown
    assert "<!-- <b onclick=x>bold</b> & &amp; \"quoted\" 'single'" in shown
    assert "control ␀␇␛[31m and ? half a character" in shown
    # A field's name within a text is not filled in.
    assert "${x} $data$ $css$" in shown
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text)


def test_texts_of_examples_come_back_unchanged(nasty_page):
    text, folder = nasty_page
    (found,) = json.loads(_parse(text).scripts[0])
    path = folder / "runs" / "method=sbs,seed=1" / "predictions" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    run = next(run for run in found["runs"] if run["name"].endswith("sbs, seed 1"))
    assert found["ids"] == [row["id"] for row in rows]
    assert found["inputs"] == [row["input"] for row in rows]
    assert found["teacher"] == [row["llm_rationale"] for row in rows]
    assert run["labels"] == [row["prediction"] for row in rows]
    assert run["rationales"] == [row["rationale"] for row in rows]
    assert any("\ud800" in text for text in run["rationales"])


def test_the_script_is_the_only_one_allowed(nasty_page):
    text, _ = nasty_page
    script = _parse(text).scripts[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_the_page_needs_no_network_and_no_other_file(nasty_page):
    parser = _parse(nasty_page[0])
    assert len(set(parser.ids)) == len(parser.ids)
    outside = [a for a in parser.addresses if not a.startswith(("#", "data:"))]
    assert outside == []
    assert {a[1:] for a in parser.addresses if a.startswith("#")} <= set(parser.ids)
    style = re.search("<style>(.*?)</style>", nasty_page[0], re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_tables_and_figures_are_there_without_javascript(sweeps, tmp_path):
    make_report([sweeps["sizes"]], tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    shown = " ".join("".join(_parse(text).text).split())
    assert text.count("<svg role=") == 4
    for words in ("Table 1 of the paper", "Gain on standard", "24 of 24 runs are done", "62.63"):
        assert words in shown
    assert "<noscript>" in text
    assert '<div id="browser" hidden>' in text


def test_names_in_figures_are_no_markup_either(tmp_path, monkeypatch):
    sizes = {f"{nasty}$\\frac$": i + 1 for i, nasty in enumerate(synthetic.NASTY)}
    monkeypatch.setattr(synthetic, "SIZES", sizes)
    folder = tmp_path / "s"
    axes = {"MODEL": tuple(sizes), "TRAIN_FRACTION": (0.5, 1.0), "SEED": (0, 1)}
    monkeypatch.setattr(synthetic, "run_name", lambda bindings: f"run-{len(runs)}-{runs.append(1)}")
    runs = []
    synthetic.write_sweep(folder, axes, accuracy=lambda settings: 0.5, examples=4, config=False)
    make_report([folder])
    parser = _parse((folder / "report/report.html").read_text(encoding="utf-8"))
    assert len(parser.scripts) == 2
    assert "<b onclick=x>bold</b>" in "".join(parser.text)
    for path in (folder / "report").glob("*.svg"):
        ElementTree.parse(path)


def test_runs_that_failed_are_shown(nasty_page):
    shown = "".join(_parse(nasty_page[0]).text)
    assert "3 of 4 runs are done" in shown
    assert "1 failed" in shown


@pytest.mark.parametrize(
    "text",
    [
        "</script>",
        "<!--<script>",
        "&lt;",
        "a\u2028b\u2029c",
        "\ud800",
        "\x00\x7f\x85",
        "\ufeff😀 é",
    ],
)
def test_script_json_is_json_without_signs_that_html_knows(text):
    written = examples.script_json([text])
    assert json.loads(written) == [text]
    assert not re.search("[<>&\u2028\u2029\ud800-\udfff]", written)
    written.encode("utf-8")


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("one_seed", ["standard, seed 0", "sbs, seed 0"]),
        ("all_seeds", ["standard, seed 0", "standard, seed 1", "sbs, seed 0", "sbs, seed 1"]),
    ],
)
def test_whose_examples_are_shown(tmp_path, choice, names):
    folder = synthetic.write_sweep(
        tmp_path / "s", {"METHOD": ("standard", "sbs"), "SEED": (0, 1)}, examples=5
    )
    results = aggregate([read_sweep(folder)])
    (found,) = examples.collect(results, choice)
    assert found["name"] == "arithmetic · test"
    assert [run["name"] for run in found["runs"]] == names
    assert [run["rationales"] is None for run in found["runs"]] == ["standard" in n for n in names]
    # `standard` beside the best.
    first, second = (found["runs"][place]["name"] for place in found["compare"])
    assert first.startswith("standard")
    assert second.startswith("sbs")


def test_examples_are_joined_by_what_they_are(tmp_path):
    folder = synthetic.write_sweep(
        tmp_path / "s", {"METHOD": ("standard", "sbs"), "SEED": (0,)}, examples=3
    )
    path = folder / "runs" / "method=sbs,seed=0" / "predictions" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["input"] = "Another problem with the same id?"
    del rows[2]
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    (found,) = examples.collect(aggregate([read_sweep(folder)]), "one_seed")
    assert found["ids"] == ["test-0", "test-1", "test-2", "test-1"]
    standard, sbs = found["runs"]
    assert standard["labels"][3] is None
    assert [label is None for label in sbs["labels"]] == [False, True, True, False]


def test_a_page_without_examples_holds_no_text_of_the_data(sweeps, tmp_path):
    make_report([sweeps["fractions"]], tmp_path, examples="none")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "apples" not in text
    assert json.loads(_parse(text).scripts[0]) == []
    assert 'id="browser"' not in text


def test_predictions_that_are_missing_leave_a_page_without_examples(tmp_path):
    folder = synthetic.write_sweep(tmp_path / "s", {"SEED": (0, 1)}, predictions=False)
    report = make_report([folder])
    assert 'id="browser"' not in (folder / "report/report.html").read_text(encoding="utf-8")
    assert len(report.files) == 5


def test_the_first_field_of_the_template_is_known():
    names = set(re.findall(r"\$([a-z_]+)\$", page.page_file("page.html")))
    assert {"title", "data", "script", "script_hash"} <= names


def test_a_broken_file_of_predictions_is_told(tmp_path):
    folder = synthetic.write_sweep(tmp_path / "s", {"SEED": (0,)}, examples=3)
    (folder / "runs/seed=0/predictions/test.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"test\.jsonl, line 1: not valid JSON"):
        make_report([folder])
    assert not (folder / "report").exists()
