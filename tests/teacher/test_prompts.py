"""Prompt files: the shipped ones are sound, and a user's mistakes are told in a sentence."""

from pathlib import Path

import pytest

from sbs_jax.errors import UserError
from sbs_jax.metrics import SCORERS
from sbs_jax.parsers import find_parser
from sbs_jax.teacher.equations import wrong_equations
from sbs_jax.teacher.prompts import load_prompts
from sbs_jax.teacher.types import AskedExample

SHIPPED = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "sbs_jax/teacher/prompt_files").glob("*.yaml")
)


def test_every_data_set_has_a_prompt_file():
    wanted = ["anli", "asdiv", "cqa", "esnli", "gsm8k", "procedural", "strategyqa", "svamp"]
    assert wanted == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_exemplars_parse_as_they_are_shown(name):
    file = load_prompts(name)
    assert len(file.exemplars) >= 9
    style = file.style("few_shot")
    turns = style.prompt(AskedExample("1", "the input"), chat=True)
    shown = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    header = style.prompt(AskedExample("1", "the input"), chat=False)
    parse = find_parser(file.parser)
    for exemplar, text in zip(file.exemplars, shown, strict=True):
        parsed = parse(text)
        assert parsed.rationale == exemplar.rationale
        label = exemplar.label.partition(") ")[2] if name == "cqa" else exemplar.label
        assert SCORERS[file.metric](parsed.label, label)
        assert list(wrong_equations(exemplar.rationale)) == []
        assert exemplar.input in header and text in header
        if name in ("svamp", "asdiv"):
            assert not list(wrong_equations(f"{exemplar.label} = {parsed.label}"))


@pytest.mark.parametrize("name", SHIPPED)
def test_only_the_conditioned_style_sees_the_label(name):
    file = load_prompts(name)
    example = AskedExample("1", "the input", "SECRET-LABEL")
    for style in file.styles.values():
        for chat in (False, True):
            text = str(style.prompt(example, chat=chat))
            assert ("SECRET-LABEL" in text) == (style.name == "answer_conditioned")
            assert "the input" in text


def test_an_example_is_data_and_never_a_template():
    style = load_prompts("svamp").style("few_shot")
    nasty = "{{ 7*7 }} {% for x in y %} {{ ''.__class__ }}"
    assert nasty in style.prompt(AskedExample("1", nasty), chat=False)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("parser: [", "line 1: not valid YAML"),
        ("- 1", "expected a mapping"),
        ("parser: svamp\nstlyes: {}", "unknown key 'stlyes'"),
        ("styles: {}", "`parser` is missing"),
        ("parser: svamp\nmetric: bleu", "metric is 'bleu'"),
        ("parser: svamp\nexemplars: [{input: a, label: b}]", "exemplar 1"),
        ("parser: svamp\nexemplars: [{input: a, rationale: r, label: 3}]", "quote numbers"),
        ("parser: svamp", "`styles` is missing"),
        ("parser: svamp\nstyles: {many_shot: {}}", "styles.many_shot"),
        ("parser: svamp\nstyles: {few_shot: {}}", "query is missing"),
        ("parser: svamp\nstyles: {few_shot: {query: 'no'}}", "does not show"),
        ("parser: svamp\nstyles: {few_shot: {query: '{{ input'}}", "few_shot.query"),
        ("parser: svamp\nstyles: {few_shot: {query: '{{ input }}{{ label }}'}}", "answer_cond"),
        ("parser: svamp\nstyles: {few_shot: {query: '{{ input }}', quest: 1}}", "'quest'"),
        ("parser: svamp\nstop: [3]\nstyles: {few_shot: {query: '{{ input }}'}}", "stop must be"),
        ("extends: nowhere", "neither a file nor"),
    ],
)
def test_mistakes(tmp_path, text, sentence):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_prompts(str(path))


def test_names():
    with pytest.raises(UserError, match="svamp"):
        load_prompts("nowhere")
    with pytest.raises(UserError, match="has no style 'x'; it has few_shot"):
        load_prompts("svamp").style("x")
