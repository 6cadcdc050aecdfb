"""Reads the layout of the authors' released data.

    DATA_DIR/svamp/svamp_train.json           one JSON object a line: the examples
    DATA_DIR/svamp/llm/train_CoT_0.json, ...  JSON lists of the teacher's raw completions

The lists, joined in numeric order, hold one completion for each example of the file beside them.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from sbs_jax.data.rows import Row, kind_of, read_rows
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.parsers import ParsedCompletion

__all__ = ["Example", "Row", "load_release", "load_rows", "rationale_texts", "read_completions"]

log = logging.getLogger(__name__)


class Example(TypedDict):
    """One example of a data set, whoever explained it.

    Attributes:
      id: unique within the data set.
      input: the text x, without task prefix.
      label: the gold label y.
      rationale: a person's rationale, ``''`` where the data set has none; a list if several people
        wrote one.
      llm_label: the teacher's label, ``''`` when its completion does not parse. The key is missing
        where there are no completions at all.
      llm_rationale: likewise, the teacher's rationale, or a list of several.
    """

    id: str
    input: str
    label: str
    rationale: str | list[str]
    llm_label: NotRequired[str]
    llm_rationale: NotRequired[str | list[str]]


def rationale_texts(value: str | list[str]) -> list[str]:
    """Returns the rationales in a field of `Example` that are not blank; ``['']`` if all are.

    >>> rationale_texts(['Because.', '']), rationale_texts('')
    (['Because.'], [''])
    """
    texts = [value] if isinstance(value, str) else value
    return [text for text in texts if text.strip()] or [""]


def load_release(
    settings: DataSettings,
    dataset: str,
    split: str,
    *,
    convert: Callable[[Row], Example | None],
    parser: Callable[[str], ParsedCompletion],
    stem: str | None = None,
) -> list[Example]:
    """Reads one split of a data set in the release layout.

    Args:
      settings: tells the data folder.
      dataset: the folder's name, which is also the first word of the files' names.
      stem: the first word of the files' names, where it is not the folder's.
      split: as it stands in the files' names, ``train`` or ``test``; ``validation`` may also be
        called ``valid`` or ``dev`` there.
      convert: makes an example (without the teacher's texts) of one line of the examples' file;
        None leaves the line and its completion out.
      parser: takes the teacher's completion apart.

    Returns:
      The examples in the file's order. With no file of completions for this split they lack
      ``llm_label`` and ``llm_rationale``.

    Raises:
      UserError: a file is missing, malformed or empty, or the counts differ; names file and line.
    """
    folder = settings.folder(dataset)
    path = _examples_file(folder, stem or dataset, split)
    return load_rows(path, folder / "llm", split, convert=convert, parser=parser)


def load_rows(
    path: Path,
    completions_folder: Path,
    split: str,
    *,
    convert: Callable[[Row], Example | None],
    parser: Callable[[str], ParsedCompletion],
) -> list[Example]:
    """Reads one file of examples, and the completions that go with it; see `load_release`.

    Args:
      path: of the examples, in any format that `read_rows` knows.
      completions_folder: where ``{split}_CoT_0.json`` and so on may lie.
      split: see `load_release`.
      convert: see `load_release`.
      parser: see `load_release`.
    """
    rows = read_rows(path)
    completions = completions_of(completions_folder, split, len(rows), path)
    return make_examples(rows, completions, convert=convert, parser=parser)


def completions_of(folder: Path, split: str, count: int, path: Path) -> list[str] | None:
    """Reads the completions of a split; None if there are none.

    Args:
      folder: where ``{split}_CoT_0.json`` and so on may lie.
      split: see `load_release`.
      count: of the examples, of which each needs one.
      path: where these are, for the sentence of the error.

    Raises:
      UserError: see `load_release`.
    """
    files = _first_of(completion_files(folder, word) for word in _words(split))
    if not files:
        return None
    completions = [completion for file in files for completion in read_completions(file)]
    if len(completions) != count:
        raise UserError(
            f"{path} holds {count} examples but {_span(files)} {len(completions)} "
            f"completions; every example needs one, in the same order."
        )
    return completions


def make_examples(
    rows: Sequence[Row],
    completions: Sequence[str] | None,
    *,
    convert: Callable[[Row], Example | None],
    parser: Callable[[str], ParsedCompletion],
) -> list[Example]:
    """Makes examples of rows and the completions that go with them; see `load_release`."""
    examples = []
    for row, completion in zip(rows, completions or [None] * len(rows), strict=True):
        example = convert(row)
        if example is None:
            continue
        if completion is not None:
            parsed = parser(completion)
            example["llm_label"] = parsed.label
            example["llm_rationale"] = parsed.rationale
        examples.append(example)
    path = rows[0].path if rows else "the data set"
    if not examples:
        raise UserError(f"{path}: holds no examples.")
    if len(examples) < len(rows):
        log.warning("%s: %d of %d lines left out.", path, len(rows) - len(examples), len(rows))
    return examples


def _words(split: str) -> tuple[str, ...]:
    return ("valid", "validation", "dev") if split == "validation" else (split,)


def _examples_file(folder: Path, dataset: str, split: str) -> Path:
    names = [
        f"{stem}{ending}"
        for word in _words(split)
        for stem in (f"{dataset}_{word}", word)
        for ending in (".json", ".jsonl")
    ]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    return folder / names[0]  # whose absence will be told


def _first_of(found: Iterable[list[Path]]) -> list[Path]:
    return next((files for files in found if files), [])


def completion_files(folder: Path, split: str) -> list[Path]:
    """Returns the files ``{split}_CoT_{number}.json`` of `folder` in numeric order.

    Raises:
      UserError: the numbers do not run from 0 without a gap.
    """
    pattern = re.compile(rf"{re.escape(split)}_CoT_(\d+)\.json")
    numbered = {}
    for path in folder.glob(f"{split}_CoT_*.json"):
        if match := pattern.fullmatch(path.name):
            numbered[int(match[1])] = path
    for number in range(len(numbered)):
        if number not in numbered:
            raise UserError(
                f"{folder / f'{split}_CoT_{number}.json'}: is missing, though there is "
                f"{numbered[max(numbered)].name}; the files are numbered from 0 without a gap."
            )
    return [numbered[number] for number in sorted(numbered)]


def read_completions(path: Path) -> list[str]:
    """Reads a JSON list of texts, or of objects with the text in one of `COMPLETION_FIELDS`.

    Raises:
      UserError: the file cannot be read or is something else; names the line or the entry.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); convert the file.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from error
    except RecursionError as error:
        raise UserError(f"{path}, line 1: not valid JSON (nested too deeply).") from error
    if not isinstance(values, list):
        raise UserError(f"{path}: expected a JSON list of completions, found {kind_of(values)}.")
    return [_completion(path, number, value) for number, value in enumerate(values, start=1)]


COMPLETION_FIELDS = ("completion", "output", "response", "text", "generated_text", "content")
"""What a completion is called in files that hold objects."""


def _completion(path: Path, number: int, value: Any) -> str:
    if isinstance(value, dict):
        found = [value[key] for key in COMPLETION_FIELDS if isinstance(value.get(key), str)]
        if len(found) != 1:
            raise UserError(
                f"{path}, entry {number}: expected a text in one of the fields "
                f"{', '.join(COMPLETION_FIELDS)}, found {', '.join(map(str, value)) or 'none'}."
            )
        return found[0]
    if not isinstance(value, str):
        raise UserError(f"{path}, entry {number}: expected a text, found {kind_of(value)}.")
    return value


def _span(files: list[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} to {files[-1].name}"
