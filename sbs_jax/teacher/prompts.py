r"""Prompt files: few-shot exemplars (x, r, y) in YAML, rendered with jinja2.

A prompt file holds::

    parser: svamp              # name of a parser in sbs_jax/parsers.py
    metric: value              # how a label is compared with gold: a key of metrics.SCORERS
    stop: ["\nQ:"]
    exemplars:                 # about ten triplets
      - {input: "…", rationale: "…", label: "…"}
    styles:
      few_shot:                # any of STYLES
        system: "…"            # chat models only, optional
        exemplar: "Q: {{ input }}\nA: {{ rationale }} The answer is ({{ label }}).\n\n"
        query: "Q: {{ input }}\nA:"
        answer: "…"            # chat only: the assistant's turn of an exemplar

A style's `exemplar` is rendered once with each triplet, `query` once with each example (and its
`label`, which only the answer-conditioned style may use: elsewhere the gold answer would leak, and
is undefined). For chat models the exemplars become turns: `query` is the user's, `answer` the
assistant's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.nodes
import jinja2.sandbox
import yaml

from sbs_jax.errors import UserError
from sbs_jax.metrics import SCORERS
from sbs_jax.teacher.types import AskedExample

FEW_SHOT = "few_shot"
ZERO_SHOT = "zero_shot"
ZERO_SHOT_TWO_CALLS = "zero_shot_two_calls"
ANSWER_CONDITIONED = "answer_conditioned"
STYLES = (FEW_SHOT, ZERO_SHOT, ZERO_SHOT_TWO_CALLS, ANSWER_CONDITIONED)

Prompt = str | list[dict[str, str]]


@dataclass(frozen=True)
class Exemplar:
    """A triplet (x, r, y) that the teacher is shown."""

    input: str
    rationale: str
    label: str


class Style:
    """One way to ask, for completion and for chat models."""

    def __init__(
        self, name: str, fields: Mapping[str, Any], exemplars: tuple[Exemplar, ...], path: Path
    ) -> None:
        known = {"system", "exemplar", "query", "answer", "answer_query", "stop", "parser"}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise UserError(
                f"{path}: styles.{name} has an unknown field {unknown[0]!r}; known are "
                f"{', '.join(sorted(known))}."
            )
        if not isinstance(fields.get("query"), str):
            raise UserError(
                f"{path}: styles.{name}.query is missing; it is the text of a question."
            )
        templates = environment()
        self.name = name
        self.system = fields.get("system") or ""
        stop = fields.get("stop")
        self.stop: tuple[str, ...] | None = None if stop is None else tuple(stop)
        self.parser: str | None = fields.get("parser")
        self._shows_label = name == ANSWER_CONDITIONED

        def template(field: str) -> Callable[..., str] | None:
            source = fields.get(field)
            if source is None:
                return None
            try:
                compiled = templates.from_string(source)
                pieces = _plain_pieces(templates.parse(source))
            except jinja2.TemplateError as error:
                raise UserError(f"{path}: styles.{name}.{field}: {error}.") from error

            def render(**values: str) -> str:
                try:
                    if pieces is not None:
                        return "".join(values[text] if named else text for named, text in pieces)
                    return compiled.render(**values)
                except KeyError as missing:
                    raise UserError(
                        f"{path}: styles.{name}.{field}: {missing} is undefined (an example's "
                        f"`label` may be used in {ANSWER_CONDITIONED} alone)."
                    ) from missing
                except jinja2.TemplateError as error:
                    raise UserError(
                        f"{path}: styles.{name}.{field}: {error} (an example's `label` may be "
                        f"used in {ANSWER_CONDITIONED} alone)."
                    ) from error

            return render

        query = template("query")
        assert query is not None  # Its text was looked for above.
        self._query = query
        self._answer_query = template("answer_query")
        shown, answer = template("exemplar"), template("answer")
        # The header is shared by every example: rendered once, and a server or the local backend
        # computes it once.
        triplets = [vars(exemplar) for exemplar in exemplars]
        self._header = "".join(shown(**t) for t in triplets) if shown else ""
        self._turns: list[dict[str, str]] = []
        if self.system:
            self._turns.append({"role": "system", "content": self.system})
        if answer is not None:
            for triplet in triplets:
                visible = self._visible(triplet["input"], triplet["label"])
                self._turns.append({"role": "user", "content": self._query(**visible)})
                self._turns.append({"role": "assistant", "content": answer(**triplet)})
        self._check(name, path)

    def _check(self, name: str, path: Path) -> None:
        probe = self._query(**self._visible("\u2603input\u2603", "\u2603label\u2603"))
        if "\u2603input\u2603" not in probe:
            raise UserError(f"{path}: styles.{name}.query does not show {{{{ input }}}}.")
        if name == ZERO_SHOT_TWO_CALLS and self._answer_query is None:
            raise UserError(
                f"{path}: styles.{name}.answer_query is missing; it is the text of the second call."
            )

    def _visible(self, text: str, label: str) -> dict[str, str]:
        text = readable_input(text)
        return {"input": text, "label": label} if self._shows_label else {"input": text}

    def prompt(self, example: AskedExample, *, chat: bool) -> Prompt:
        """Renders the question about `example`: a text, or the messages of a chat."""
        query = self._query(**self._visible(example.input, example.label))
        if chat:
            return [*self._turns, {"role": "user", "content": query}]
        return self._header + query

    def answer_prompt(self, example: AskedExample, first: Prompt, said: str) -> Prompt:
        """Renders the second call of zero-shot: the first, what was said, and the question."""
        assert self._answer_query is not None
        ask = self._answer_query(input=readable_input(example.input))
        if isinstance(first, str):
            return f"{first}{said}{ask}"
        return [
            *first,
            {"role": "assistant", "content": said},
            {"role": "user", "content": ask.strip()},
        ]


@dataclass(frozen=True)
class PromptFile:
    """A prompt file, read and checked.

    Attributes:
      path: The path that it was read from.
      sha256: The hash of its bytes and of those of the file that it extends; `run.json` records it.
      parser: Name of the parser of completions, in `sbs_jax.parsers.PARSERS`.
      answer_parser: Name of the parser of a second call's answer.
      metric: A key of `sbs_jax.metrics.SCORERS`.
      stop: Default stop strings.
      exemplars: The triplets.
      styles: The styles, by name.
    """

    path: Path
    sha256: str
    parser: str
    answer_parser: str | None
    metric: str
    stop: tuple[str, ...]
    exemplars: tuple[Exemplar, ...]
    styles: Mapping[str, Style]

    def style(self, name: str) -> Style:
        """Returns the style `name`.

        Raises:
          UserError: the file does not have it.
        """
        if name not in self.styles:
            raise UserError(f"{self.path} has no style {name!r}; it has {', '.join(self.styles)}.")
        return self.styles[name]


def environment() -> jinja2.sandbox.SandboxedEnvironment:
    """Returns what templates are compiled with: sandboxed, and an undefined name is an error."""
    return jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )


def readable_input(text: str) -> str:
    r"""Returns an input as an LLM is to read it: without the student's EOS between its pieces.

    >>> readable_input('A dog runs.</s>It sleeps.')
    'Premise: A dog runs.\nHypothesis: It sleeps.'
    """
    if "</s>" not in text:
        return text
    pieces = [piece.strip() for piece in text.split("</s>")]
    if len(pieces) == 2:  # natural language inference; an empty hypothesis is one, too
        return f"Premise: {pieces[0]}\nHypothesis: {pieces[1]}"
    return "\n".join(piece for piece in pieces if piece)


def find_prompt_file(name: str) -> Path:
    """Resolves a path, or the name of a prompt file that comes with sbs_jax (`svamp`).

    A data set's number may follow the name: `anli1` is asked as `anli`.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = Path(__file__).parent / "prompt_files"
    for stem in (name, name.rstrip("0123456789")):
        if "/" not in name and (folder / f"{stem}.yaml").is_file():
            return folder / f"{stem}.yaml"
    names = sorted(p.stem for p in folder.glob("*.yaml"))
    raise UserError(
        f"PROMPTS = {name!r} is neither a file nor a shipped prompt file ({', '.join(names)})."
    )


def load_prompts(name: str) -> PromptFile:
    """Reads a prompt file.

    Raises:
      UserError: it cannot be read or says something that this module does not know.
    """
    path = find_prompt_file(name)
    content, data = read_yaml(path)
    if "extends" in content:
        base, base_data = read_yaml(find_prompt_file(str(content.pop("extends"))))
        if "extends" in base:
            raise UserError(f"{path}: `extends` names a file that itself extends another.")
        content, data = {**base, **content}, base_data + data
    known = {"parser", "answer_parser", "metric", "stop", "exemplars", "styles"}
    unknown = sorted(set(map(str, content)) - known)
    if unknown:
        raise UserError(
            f"{path}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}."
        )
    if not isinstance(content.get("parser"), str):
        raise UserError(f"{path}: `parser` is missing; it names a parser of sbs_jax/parsers.py.")
    metric = content.get("metric", "exact_match")
    if metric not in SCORERS:
        raise UserError(f"{path}: metric is {metric!r}; it must be one of {', '.join(SCORERS)}.")
    exemplars = []
    for number, entry in enumerate(content.get("exemplars") or [], start=1):
        fields = {"input", "rationale", "label"}
        if (
            not isinstance(entry, dict)
            or set(entry) != fields
            or not all(isinstance(v, str) and v.strip() for v in entry.values())
        ):
            raise UserError(
                f"{path}: exemplar {number} must have input, rationale and label, each a "
                "non-empty text (quote numbers)."
            )
        exemplars.append(Exemplar(**entry))
    styles = content.get("styles")
    if not isinstance(styles, dict) or not styles:
        raise UserError(f"{path}: `styles` is missing; it holds any of {', '.join(STYLES)}.")
    for style, fields in styles.items():
        if style not in STYLES or not isinstance(fields, dict):
            raise UserError(
                f"{path}: styles.{style} must be a mapping under one of {', '.join(STYLES)}."
            )
    return PromptFile(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        parser=content["parser"],
        answer_parser=content.get("answer_parser"),
        metric=metric,
        stop=stop_strings(content.get("stop"), path),
        exemplars=tuple(exemplars),
        styles={
            style: Style(style, fields, tuple(exemplars), path) for style, fields in styles.items()
        },
    )


def _plain_pieces(template: jinja2.nodes.Template) -> list[tuple[bool, str]] | None:
    """Takes a template apart that only puts names between texts, which joins much faster.

    Returns:
      (whether it is a name, name or text) in order; None when the template does anything else.
    """
    pieces = []
    for output in template.body:
        if not isinstance(output, jinja2.nodes.Output):
            return None
        for node in output.nodes:
            if isinstance(node, jinja2.nodes.TemplateData):
                pieces.append((False, node.data))
            elif isinstance(node, jinja2.nodes.Name):
                pieces.append((True, node.name))
            else:
                return None
    return pieces


def read_yaml(
    path: Path, expected: str = "a mapping with parser, exemplars and styles"
) -> tuple[dict[str, Any], bytes]:
    """Returns the mapping that a YAML file holds, and the bytes of the file.

    Raises:
      UserError: it cannot be read, or is not `expected`.
    """
    try:
        data = path.read_bytes()
        content = yaml.safe_load(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "not UTF-8 YAML"
        raise UserError(f"{path}{line}: not valid YAML ({reason}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected {expected}.")
    return content, data


def stop_strings(value: Any, path: Path) -> tuple[str, ...]:
    """Returns the stop strings that a YAML file lists; none where `value` is None."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(s, str) and s for s in value):
        raise UserError(f"{path}: stop must be a list of non-empty texts.")
    return tuple(value)
