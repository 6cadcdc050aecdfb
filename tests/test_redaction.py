import pytest

from sbs_jax import redaction

KEY = "sk-0123456789"


def test_nested_secrets_are_found_and_hidden():
    body = {"top_k": 20, "api_key": KEY, "extra": [{"headers": {"Authorization": f"Bearer {KEY}"}}]}
    body["eos_token"] = "</s></s></s>"
    assert list(redaction.secrets_in(body)) == [KEY, f"Bearer {KEY}"]
    shown = repr(redaction.redact(body))
    assert KEY not in shown
    assert "'top_k': 20" in shown


@pytest.mark.parametrize(
    ("name", "text", "holds"),
    [
        ("API_KEY", "x", True),
        ("EXTRA_BODY", "{'api_key': 'x'}", True),
        ("EXTRA_BODY", '{"a": {"auth-token" : "x"}}', True),
        ("EXTRA_BODY", "{'top_k': 20}", False),
        ("MODEL_DIR", "runs/key", False),
    ],
)
def test_arguments_that_hold_secrets(name, text, holds):
    assert redaction.holds_secret(name, text) is holds


def test_blotting():
    blotter = redaction.Blotter([f"Bearer {KEY}", "EMPTY", " "])
    assert blotter.in_message(f"a {KEY}, Bearer {KEY}: EMPTY") == "a [key], [key]: [key]"
    # A word that stands for no key at all may be a word of the text.
    assert blotter.in_text(f"{KEY} EMPTY") == "[key] EMPTY"
    assert blotter.in_value({"a": [KEY, 1, (KEY,)]}) == {"a": ["[key]", 1, ("[key]",)]}
