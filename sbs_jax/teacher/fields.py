r"""Further fields of an example that the teacher writes after its rationale.

Methods with more parts than a label and a rationale need more texts for each example: the backward
question of reverse thinking, say, or an expression beside the rationale. A field file (YAML) says
how each is asked for; ``FIELDS = ['reverse']`` names one that comes along
(``sbs_jax/teacher/field_files``), or a file of your own::

    fields:                        # asked in this order
      backward_question:
        system: "…"                # chat models only, optional
        query: "Q: {{ input }}\nThe answer is {{ label }}. …"
        stop: ["\n"]               # by default those of the prompt file
        extract: "…"               # a regular expression; its first group, or all of it, is kept
        check: expression          # keeps arithmetic with an operation and the label's value
        accept: "(?i)^yes"         # a verdict: where it does not match, `rejects` become empty
        rejects: [backward_question, backward_rationale]

A template may use ``input``, ``label`` (gold, or the teacher's own where there is none), the
teacher's ``rationale`` and every earlier field. A verdict itself is not written to
`rationales.jsonl`; every other field is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta

from sbs_jax.errors import UserError
from sbs_jax.metrics import value_match
from sbs_jax.teacher.prompts import Prompt, environment, read_yaml, readable_input, stop_strings
from sbs_jax.teacher.text import clean
from sbs_jax.teacher.types import AskedExample, Completion, CompletionRequest

_FOLDER = Path(__file__).parent / "field_files"
_KNOWN = ("system", "query", "stop", "extract", "check", "accept", "rejects")
EXPRESSION = "expression"
_OPERATION = re.compile(r"[0-9)]\s*[-+*/×÷−]")
RESERVED = frozenset(
    {"id", "input", "label", "rationale", "flags", "weight", "rationale_scores"}
    | {"llm_label", "llm_labels", "llm_rationale", "llm_rationales"}
)
"""Fields of a row that have a meaning of their own."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One field: how it is asked for, and what of the completion is kept.

    Attributes:
      name: the name of the field in `rationales.jsonl`.
      template: the template of the question.
      used: names of the earlier fields that the template uses.
      system: the system message of chat models; '' for none.
      stop: stop strings; None for those of the prompt file.
      extract: the part of the completion that is kept; None keeps all of it.
      check: `EXPRESSION`, or None.
      accept: makes the field a verdict, see the module's docstring.
      rejects: names of the fields that become empty where the verdict is no.
      path: the file, for errors.
    """

    name: str
    template: jinja2.Template
    used: frozenset[str]
    system: str
    stop: tuple[str, ...] | None
    extract: re.Pattern[str] | None
    check: str | None
    accept: re.Pattern[str] | None
    rejects: tuple[str, ...]
    path: Path

    def prompt(self, values: Mapping[str, str], *, chat: bool) -> Prompt:
        """Renders the question: a text, or the messages of a chat."""
        try:
            text = self.template.render(**values)
        except jinja2.TemplateError as error:
            known = ", ".join(values)
            raise UserError(
                f"{self.path}: fields.{self.name}.query: {error}; known here are {known}."
            ) from error
        if not chat:
            return text
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": text}]

    def value(self, completion: str, label: str) -> str:
        """Returns what of a completion is the field's text; '' where there is nothing of use."""
        text = clean(completion).strip()
        if self.extract is not None:
            found = self.extract.search(text)
            text = (found[1] if found and found.re.groups else found[0]) if found else ""
            text = (text or "").strip()
        if self.check == EXPRESSION and not (_OPERATION.search(text) and value_match(text, label)):
            return ""
        return text


@dataclasses.dataclass(frozen=True)
class FieldFile:
    """The fields of one file.

    Attributes:
      path: The path that it was read from.
      sha256: The hash of its bytes, which `run.json` records.
      fields: The fields, in the order in which they are asked for.
    """

    path: Path
    sha256: str
    fields: tuple[Field, ...]


@dataclasses.dataclass
class Written:
    """The further fields of one example.

    Attributes:
      values: The text of each field, '' where the teacher said nothing of use.
      missing: Whether the journal lacks a completion (yet).
      error: The first error of a completion, or None.
      rejected: Names of the verdicts that were no.
    """

    values: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: bool = False
    error: str | None = None
    rejected: list[str] = dataclasses.field(default_factory=list)


def find_field_file(name: str) -> Path:
    """Resolves a path, or the name of a field file that comes with sbs_jax (`reverse`)."""
    path = Path(name)
    if path.is_file():
        return path
    if "/" not in name and (_FOLDER / f"{name}.yaml").is_file():
        return _FOLDER / f"{name}.yaml"
    names = ", ".join(sorted(path.stem for path in _FOLDER.glob("*.yaml")))
    raise UserError(f"FIELDS names {name!r}, which is neither a file nor one of {names}.")


def load_field_files(names: Sequence[str]) -> tuple[FieldFile, ...]:
    """Reads field files.

    Raises:
      UserError: one cannot be read or says something that this module does not know, or two of
        them ask for one field.
    """
    if isinstance(names, str):
        raise UserError(f"FIELDS = {names!r} must be a list of names; write [{names!r}].")
    files = tuple(_load(find_field_file(name)) for name in names)
    seen: dict[str, Path] = {}
    for file in files:
        for field in file.fields:
            if field.name in seen:
                raise UserError(
                    f"{file.path}: fields.{field.name} is asked for by {seen[field.name]}, too."
                )
            seen[field.name] = file.path
    return files


def ask(
    fields: Sequence[Field],
    example: AskedExample,
    rationale: str,
    label: str,
    request: Callable[[Field, dict[str, str]], CompletionRequest],
) -> Generator[list[CompletionRequest], list[Completion | None], Written]:
    """Goes through the fields of one example.

    Args:
      fields: The fields, in the order in which they are asked for.
      example: The example that they are about.
      rationale: The teacher's rationale.
      label: The gold label, or the teacher's own.
      request: Makes the request for a field from the values that its template may use.

    Yields:
      A round of one request; it is sent the completion, or None where there is none yet.

    Returns:
      What was written. A field is not asked for where an earlier field that its template uses is
      missing or empty; a verdict that cannot be asked for is a no.
    """
    written = Written()
    values = {"input": readable_input(example.input), "label": label, "rationale": rationale}
    for field in fields:
        if not all(values[name] for name in field.used):
            # What cannot be judged, for want of a part of it, is not kept either.
            for name in (field.name,) if field.accept is None else field.rejects:
                values[name] = written.values[name] = ""
            continue
        (completion,) = yield [request(field, dict(values))]
        said = ""
        if completion is None:
            written.missing = True
        elif completion.error:
            written.error = written.error or completion.error
        else:
            said = field.value(completion.text, label)
        if field.accept is None:
            values[field.name] = written.values[field.name] = said
        elif not field.accept.search(said):
            written.rejected.append(field.name)
            written.values.update(dict.fromkeys(field.rejects, ""))
            values.update(dict.fromkeys(field.rejects, ""))
    return written


def _load(path: Path) -> FieldFile:
    content, data = read_yaml(path, "a mapping with the key `fields`")
    entries = content.get("fields")
    if set(content) != {"fields"} or not isinstance(entries, dict) or not entries:
        raise UserError(f"{path}: expected one key `fields`, a mapping from names to questions.")
    fields: list[Field] = []
    for name, entry in entries.items():
        fields.append(_field(path, str(name), entry, [field.name for field in fields]))
    return FieldFile(path, hashlib.sha256(data).hexdigest(), tuple(fields))


def _field(path: Path, name: str, entry: Any, earlier: Sequence[str]) -> Field:
    where = f"{path}: fields.{name}"
    if name in RESERVED or not name.isidentifier():
        raise UserError(f"{where} is no name for a field; take another identifier.")
    if not isinstance(entry, dict) or not isinstance(entry.get("query"), str):
        raise UserError(f"{where}.query is missing; it is the text of a question.")
    unknown = sorted(set(map(str, entry)) - set(_KNOWN))
    if unknown:
        raise UserError(
            f"{where} has an unknown key {unknown[0]!r}; known are {', '.join(_KNOWN)}."
        )
    if entry.get("check") not in (None, EXPRESSION):
        raise UserError(f"{where}.check = {entry['check']!r} must be '{EXPRESSION}'.")
    rejects = entry.get("rejects") or []
    if bool(rejects) != ("accept" in entry):
        raise UserError(f"{where}: `accept` and `rejects` belong together.")
    if not isinstance(rejects, list) or not set(rejects) <= set(earlier):
        raise UserError(f"{where}.rejects must be a list of earlier fields.")
    source = environment()
    try:
        template = source.from_string(entry["query"])
        used = jinja2.meta.find_undeclared_variables(source.parse(entry["query"]))
    except jinja2.TemplateError as error:
        raise UserError(f"{where}.query: {error}.") from error
    known = {"input", "label", "rationale", *earlier}
    if used - known:
        raise UserError(
            f"{where}.query uses {sorted(used - known)[0]!r}; known here are "
            f"{', '.join(sorted(known))}."
        )
    return Field(
        name=name,
        template=template,
        used=frozenset(used) & set(earlier),
        system=str(entry.get("system") or ""),
        stop=None if entry.get("stop") is None else stop_strings(entry["stop"], path),
        extract=_pattern(where, "extract", entry),
        check=entry.get("check"),
        accept=_pattern(where, "accept", entry),
        rejects=tuple(rejects),
        path=path,
    )


def _pattern(where: str, key: str, entry: Mapping[str, Any]) -> re.Pattern[str] | None:
    if entry.get(key) is None:
        return None
    try:
        return re.compile(str(entry[key]))
    except re.error as error:
        raise UserError(f"{where}.{key} is no regular expression ({error}).") from error
