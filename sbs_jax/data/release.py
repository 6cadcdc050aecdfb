"""Reads examples from files: the layout of the authors' released data, and plain ones.

    DATA_DIR/svamp/svamp_train.json           one JSON object a line: the examples
    DATA_DIR/svamp/llm/train_CoT_0.json, ...  JSON lists of the teacher's raw completions

The lists, joined in numeric order, hold one completion for each example of the file beside them.
The examples may also be called ``train.json``, and be JSONL, CSV, TSV or Parquet.
"""

from __future__ import annotations

import collections
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from sbs_jax.data.rows import FORMATS, Row, kind_of, read_rows
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.parsers import ParsedCompletion, kept_rationale

__all__ = ["Example", "Row", "load_release", "load_rows", "rationale_texts", "read_completions"]

log = logging.getLogger(__name__)


class Example(TypedDict):
    """One example of a data set.

    Attributes:
      id: unique within the data set.
      input: the text x, without task prefix.
      label: the gold label y.
      rationale: a person's rationale, ``''`` where the data set has none; a list if several people
        wrote one.
      llm_label: the teacher's label, ``''`` when its completion does not parse. The key is missing
        where there are no completions at all.
      llm_rationale: the teacher's rationale, or a list of several; ``''`` or missing as `llm_label`
        is.
    """

    id: str
    input: str
    label: str
    rationale: str | list[str]
    llm_label: NotRequired[str]
    llm_rationale: NotRequired[str | list[str]]


LoadFn = Callable[[str, DataSettings], list[Example]]
"""``load(split, settings)`` returns the examples of a split."""

ConvertFn = Callable[[Row], Mapping[str, Any] | None]
"""Makes the fields of an `Example` of a row. ``id`` may be missing (it is made of the file's name
and the line then) and so may ``rationale`` (blank then). None leaves the row out."""

ParseFn = Callable[[str], ParsedCompletion]
"""Takes a teacher's completion apart, as the functions in `sbs_jax.parsers.PARSERS` do."""


_FIELDS = Example.__annotations__.keys()


class _ReadExample(dict[str, Any]):
    """An `Example` that knows the file and the line it was read from, as a `Row` does.

    Attributes:
      fields: the row of the file, or the fields of one.
      where: the file and the line, where `fields` is no `Row`, which says that itself.
    """

    __slots__ = ("fields", "where")

    where: str
    fields: Mapping[str, Any]


def own_fields(example: Example) -> Mapping[str, Any]:
    """Returns the fields of an example that methods of a user's own may read or write, by name.

    They are those of the file's row (also where a task gives them another name) and those that the
    example has itself.
    """
    own: Any = example
    return collections.ChainMap(own, getattr(example, "fields", {}))


def own_field(example: Example, name: str) -> Any:
    """Returns one of `own_fields`; None if there is none of that name."""
    if name in example:
        return example[name]  # type: ignore[literal-required]
    return getattr(example, "fields", {}).get(name)


def where(example: Example) -> str:
    """Returns the file and the line of an example, or its id if it comes from no file."""
    found = getattr(example, "where", None)
    if found is None and isinstance(row := getattr(example, "fields", None), Row):
        return f"{row.path}, line {row.line}"
    return found or f"example '{example['id']}'"


def changed(example: Example, **fields: Any) -> Example:
    """Returns a copy of `example` with other values in `fields`; it keeps its file and line."""
    copy = _ReadExample({**example, **fields})
    copy.where = where(example)
    copy.fields = getattr(example, "fields", {})
    return cast(Example, copy)


def add_fields(example: Example, fields: Mapping[str, Any]) -> None:
    """Adds to `own_fields` of an example that `changed` returned."""
    example.fields = {**getattr(example, "fields", {}), **fields}  # type: ignore[attr-defined]


def rationale_texts(value: Any) -> list[str]:
    """Returns the rationales in a field of `Example` that are not blank; ``['']`` if all are.

    >>> rationale_texts(['Because.', '']), rationale_texts('')
    (['Because.'], [''])
    """
    if isinstance(value, str):
        return [value if value.strip() else ""]
    return [text for text in value if text.strip()] or [""]


def load_release(
    settings: DataSettings,
    dataset: str,
    split: str,
    *,
    convert: ConvertFn,
    parser: ParseFn,
    aliases: Sequence[str] = (),
) -> list[Example]:
    """Reads one split of a data set in the release layout.

    Args:
      settings: give the data folder.
      dataset: the folder's name, which is also the first word of the files' names.
      split: as it stands in the files' names, ``train`` or ``test``; ``validation`` may also be
        called ``valid`` or ``dev`` there.
      convert: makes the fields of an example of one row of the examples' file; a row that it leaves
        out takes its completion along.
      parser: takes the teacher's completion apart.
      aliases: other names that the folder and its files may have.

    Returns:
      The examples in the file's order. With no file of completions for this split they lack
      ``llm_label`` and ``llm_rationale``.

    Raises:
      UserError: a file is missing, malformed or empty, or the counts differ; names file and line.
    """
    path, completions = release_files(settings, dataset, split, aliases)
    keep = settings.keep_blank_rationales
    return load_rows(path, completions, split, convert=convert, parser=parser, keep_unlabeled=keep)


def release_files(
    settings: DataSettings, dataset: str, split: str, aliases: Sequence[str] = ()
) -> tuple[Path, Path]:
    """Returns the file of a split's examples and the folder of completions; see `load_release`."""
    names = (dataset, *aliases)
    name = next((name for name in names if settings.folder(name).is_dir()), dataset)
    folder = settings.folder(name)
    stem = next((stem for stem in names if any(folder.glob(f"{stem}_*"))), name)
    return _examples_file(folder, stem, split), folder / "llm"


def load_rows(
    path: Path,
    completions_folder: Path,
    split: str,
    *,
    convert: ConvertFn,
    parser: ParseFn,
    keep_unlabeled: bool = False,
) -> list[Example]:
    """Reads one file of examples, and the completions that go with it; see `load_release`.

    Args:
      path: the file of the examples, in any format that `read_rows` knows.
      completions_folder: where ``{split}_CoT_0.json`` and so on may lie.
      split: see `load_release`.
      convert: see `load_release`.
      parser: see `load_release`.
      keep_unlabeled: see `make_examples`.
    """
    rows = read_rows(path)
    completions = completions_of(completions_folder, split, len(rows), path)
    return make_examples(
        rows, completions, convert=convert, parser=parser, keep_unlabeled=keep_unlabeled
    )


def completions_of(folder: Path, split: str, count: int, path: Path) -> list[str] | None:
    """Reads the completions of a split; None if there are none.

    Args:
      folder: where ``{split}_CoT_0.json`` and so on may lie.
      split: see `load_release`.
      count: the number of examples, of which each needs one.
      path: the file of the examples, which the error names.

    Raises:
      UserError: see `load_release`.
    """
    files = completion_files_of(folder, split)
    if not files:
        return None
    completions = [completion for file in files for completion in read_completions(file)]
    if len(completions) != count:
        span = str(files[0]) if len(files) == 1 else f"{files[0]} to {files[-1].name}"
        raise UserError(
            f"{path} holds {count} examples but {span} {len(completions)} "
            f"completions; every example needs one, in the same order."
        )
    return completions


def make_examples(
    rows: Sequence[Row],
    completions: Sequence[str] | None,
    *,
    convert: ConvertFn,
    parser: ParseFn,
    keep_unlabeled: bool = False,
) -> list[Example]:
    """Makes examples of rows and the completions that go with them; see `load_release`.

    With `keep_unlabeled`, a completion whose label does not parse still gives the rationale that
    the published code takes from it (`parsers.kept_rationale`).
    """
    examples = []
    said: Sequence[str | None] = completions or [None] * len(rows)
    for row, completion in zip(rows, said, strict=True):
        try:
            fields = convert(row)
        except UserError:
            raise
        except Exception as error:  # Of the task's own code: its traceback says what.
            name = getattr(convert, "__name__", "`convert`")
            error.add_note(f"{row.path}, line {row.line}: {name} fails for this row.")
            raise
        if fields is None:
            continue
        example = example_of(row, fields)
        if completion is not None:
            parsed = parser(completion)
            example["llm_label"] = parsed.label
            unlabeled = keep_unlabeled and not parsed.label
            example["llm_rationale"] = (
                kept_rationale(parser, completion) if unlabeled else parsed.rationale
            )
        examples.append(example)
    path = rows[0].path if rows else "the data set"
    if not examples:
        raise UserError(f"{path}: holds no examples.")
    if len(examples) < len(rows):
        log.warning("%s: %d of %d lines left out.", path, len(rows) - len(examples), len(rows))
    return examples


def example_of(row: Row, fields: Mapping[str, Any]) -> Example:
    """Makes an example of the fields that a task's ``convert`` gave for `row`.

    Raises:
      UserError: a field is missing, unknown, or no text; names the file and the line.
    """
    example = _ReadExample(id="", input=None, label=None, rationale="")
    example.update(fields)
    if not example.keys() <= _FIELDS:
        name = next(name for name in fields if name not in _FIELDS)
        known = ", ".join(sorted(_FIELDS))
        raise row.error(f"the task makes a field {name!r}, but an example has {known}")
    if "id" not in fields:
        example["id"] = f"{row.path.stem}-{row.line}"
    for name, value in example.items():
        if type(value) is str:
            continue
        several = name.endswith("rationale") and isinstance(value, list)
        for text in value if several else [value]:
            if not isinstance(text, str):
                raise row.error(f"the task must make a text of the field '{name}', not {value!r}")
    example.fields = row
    return cast(Example, example)


def _words(split: str) -> tuple[str, ...]:
    return ("valid", "validation", "dev") if split == "validation" else (split,)


def _examples_file(folder: Path, dataset: str, split: str) -> Path:
    names = [
        f"{stem}{ending}"
        for word in _words(split)
        for stem in (f"{dataset}_{word}", word)
        for ending in FORMATS
    ]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    return folder / names[0]  # the error about its absence names it


def completion_files_of(folder: Path, split: str) -> list[Path]:
    """Returns the files of a split's completions, by whichever name it goes; [] if none.

    Raises:
      UserError: see `completion_files`.
    """
    found = (completion_files(folder, word) for word in _words(split))
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
