"""A teacher without a model: a Python function writes the completions.

It is what the quickstart and the tests use, and is called just that wherever it is shown.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

from sbs_jax import metrics
from sbs_jax.teacher.types import AskedExample, Completion, Request

Script = Callable[[AskedExample, int], str]
"""(example, sample) → completion."""


def explain_expression(example: AskedExample, sample: int) -> str:
    """Works a gold expression out: it says `84 / 2 = 42. The answer is (84 / 2).`.

    An example whose label is no expression gets a sentence that does not parse.
    """
    del sample
    expression = re.sub(r"(\d+)\.0\b", r"\1", example.label)
    if metrics.evaluate_expression(expression) is None:
        return "I do not know."
    steps, rest = [], expression
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


class ScriptedBackend:
    """Answers with `script(example, sample)`."""

    name = "scripted"
    samples_per_request = 1
    one_first = False
    min_concurrency = 1

    def __init__(self, script: Script = explain_expression, model: str = "scripted") -> None:
        self.model = model
        self._script = script

    async def start(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Calls the script for each request."""
        await asyncio.sleep(0)
        said = []
        for request in requests:
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
