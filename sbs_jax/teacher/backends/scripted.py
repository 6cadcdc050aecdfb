"""A teacher without a model: a Python function writes the completions.

It is what the quickstart and the tests use, and is called just that wherever it is shown.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from sbs_jax import metrics
from sbs_jax.teacher.types import AskedExample, Completion, CompletionRequest

Script = Callable[[AskedExample, int], str]
"""(example, sample) → completion."""
FieldScript = Callable[[AskedExample, str], str]
"""(example, name of the field) → completion."""


def explain_expression(example: AskedExample, sample: int) -> str:
    """Works a gold expression out: it says `84 / 2 = 42. The answer is (84 / 2).`.

    An example whose label is no expression gets a sentence that does not parse.
    """
    del sample
    expression = re.sub(r"(\d+)\.0\b", r"\1", example.label)
    if metrics.evaluate_expression(expression) is None:
        return "I do not know."
    steps: list[str] = []
    rest = expression
    while (found := re.search(r"\(([^()]*)\)", rest)) and len(steps) < 20:
        value = metrics.evaluate_expression(found[1])
        if value is None or value.denominator != 1:
            steps, rest = [], expression
            break
        if re.search(r"\d\s*[-+*/]", found[1]):
            steps.append(f"{found[1].strip()} = {value}.")
        rest = f"{rest[: found.start()]}{value}{rest[found.end() :]}"
    value = metrics.evaluate_expression(rest)
    if re.search(r"\d\s*[-+*/]", rest) and value is not None and value.denominator == 1:
        steps.append(f"{rest.strip()} = {value}.")
    answer = expression.replace("( ", "(").replace(" )", ")").strip()
    if not answer.startswith("("):
        answer = f"({answer})"
    return " ".join([*steps, f"The answer is {answer}."])


def write_field(example: AskedExample, name: str) -> str:
    """Writes a further field (`sbs_jax.teacher.fields`) of an example with a gold expression.

    It knows those of the field files that come along: ``expression`` is the label,
    ``backward_question`` hides the first number of the input and states the answer,
    ``backward_rationale`` names that number, ``consistent`` is yes, ``candidate`` is what
    `explain_expression` says, in every second example with a wrong end, and ``evaluation`` says
    which it is. Any other field gets no text.
    """
    number = re.search(r"\d+", example.input)
    if name == "expression":
        return example.label.strip()
    if name in ("backward_question", "backward_rationale") and number:
        hidden = f"{example.input[: number.start()]}some{example.input[number.end() :]}"
        question = f"{hidden} The answer is {example.label}. How many is some?".replace("\n", " ")
        return question if name == "backward_question" else f"It is {number[0]}."
    is_wrong = zlib.crc32(example.input.encode()) % 2 == 1
    if name == "candidate":
        said = explain_expression(example, 0).split(" The answer is")[0]
        return re.sub(r"\d+\.$", "0.", said) if is_wrong else said
    if name == "evaluation":
        return "wrong" if is_wrong else "right"
    return "yes" if name == "consistent" else ""


class ScriptedBackend:
    """Answers with `script(example, sample)`, and further fields with `fields(example, name)`."""

    name = "scripted"
    samples_per_request = 1
    one_first = False
    min_concurrency = 1

    def __init__(
        self,
        script: Script = explain_expression,
        model: str = "scripted",
        fields: FieldScript = write_field,
    ) -> None:
        self.model = model
        self._script = script
        self._fields = fields

    async def start(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def complete(self, requests: Sequence[CompletionRequest]) -> list[Completion]:
        """Calls the script for each request."""
        await asyncio.sleep(0)
        said = []
        for request in requests:
            field = request.kind.removeprefix("field:")
            if field != request.kind:
                text = self._fields(request.example, field)
            else:
                text = self._script(request.example, request.sample)
            words = len(request.body.split()), len(text.split())
            said.append(Completion(text, "stop", *words, usage_estimated=True))
        return said

    def count_tokens(self, prompt: str | list[dict[str, str]]) -> tuple[int, bool]:
        """Counts words: a script has no tokens."""
        return len(str(prompt).split()), False

    def describe(self) -> dict[str, Any]:
        """Returns the script's name."""
        return {"script": getattr(self._script, "__name__", str(self._script))}
