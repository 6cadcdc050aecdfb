"""The OpenAI Batch format, also read by `vllm run-batch`: write requests, fetch results later.

    OUTPUT_DIR/batch/requests-0001.jsonl    written by the teacher
    OUTPUT_DIR/batch/results*.jsonl         put there by you; then run the same command again

A plan of several calls (two-call zero-shot, retries) takes several rounds of this.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sbs_jax.errors import UserError, require_at_least
from sbs_jax.files import writing
from sbs_jax.redaction import secrets_in
from sbs_jax.teacher.journal import LineIndex
from sbs_jax.teacher.types import Completion, CompletionRequest, Deferred, Refused

MAX_REQUESTS = 50_000
MAX_BYTES = 190 * 2**20
_LATER = (408, 409, 425, 429)


class BatchFileBackend:
    """Writes requests to files and reads results from files.

    Args:
      model: The model's name, as the service knows it.
      output_dir: The files lie in its folder `batch`.
      max_requests: The most lines of one file (OpenAI takes 50,000 and 200 MB).
    """

    name = "batch_file"
    samples_per_request = 1
    one_first = False
    min_concurrency = 1

    def __init__(self, model: str, output_dir: str, max_requests: int = MAX_REQUESTS) -> None:
        if not model:
            raise UserError("TEACHER_MODEL is missing: the model's name, as the service knows it.")
        require_at_least(1, BATCH_MAX_REQUESTS=max_requests)
        self.model = model
        self.folder = Path(output_dir) / "batch"
        self._max_requests = max_requests
        self._written = self._bytes = self._part = 0
        self._file: Any = None

    async def start(self) -> None:
        """Reads the results that are there and begins new request files."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in self.folder.glob(".requests-*.jsonl.new"):
                old.unlink()
        self._results = LineIndex()
        self._files: list[Any] = []
        for path in sorted(self.folder.glob("results*.jsonl")):
            self._index(path)

    async def close(self) -> None:
        """Puts the new request files in the place of the old ones."""
        for file in self._files:
            file.close()
        self._results.close()
        with writing(self.folder):
            if self._file is not None:
                self._file.close()
                self._file = None
            for old in self.folder.glob("requests-*.jsonl"):
                old.unlink()
            for new in sorted(self.folder.glob(".requests-*.jsonl.new")):
                os.replace(new, self.folder / new.name.removeprefix(".").removesuffix(".new"))

    async def complete(self, requests: Sequence[CompletionRequest]) -> list[Completion]:
        """Returns the result if it is there; else writes the request down and defers."""
        (request,) = requests
        row = self._result(request.key)
        if row is not None:
            return self._read(row, request)
        self._write(request)
        raise Deferred

    def count_tokens(self, prompt: str | list[dict[str, str]]) -> tuple[int, bool]:
        """Estimates four characters a token."""
        text = prompt if isinstance(prompt, str) else "".join(m["content"] for m in prompt)
        return len(text) // 4 + 1, False

    def describe(self) -> dict[str, Any]:
        """Returns the format."""
        return {"format": "OpenAI batch"}

    def _index(self, path: Path) -> None:
        try:
            file = open(path, "rb")  # noqa: SIM115 (read from until close)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
        self._files.append(file)
        offset = 0
        for number, line in enumerate(file, start=1):
            start, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                key = json.loads(line)["custom_id"]
                self._results.put(key, start, len(line), len(self._files) - 1)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(
                    f"{path}, line {number}: not a batch result with a custom_id of ours; fetch "
                    "the file again, or move it away."
                ) from error

    def _result(self, key: str) -> dict[str, Any] | None:
        place = self._results.get(key)
        if place is None:
            return None
        start, length, number = place
        return json.loads(os.pread(self._files[number].fileno(), length, start))

    def _read(self, row: dict[str, Any], request: CompletionRequest) -> list[Completion]:
        from sbs_jax.teacher.backends.openai_compat import completions_of

        response = row.get("response") or {}
        status = response.get("status_code", 200 if response.get("body") else 0)
        if status == 200:
            try:
                return completions_of(response["body"], 1, 0.0, self.model)
            except (ValueError, KeyError, TypeError, AttributeError):
                status = 0
        if status in _LATER or status >= 500 or status == 0:
            # Expired, rate limited, broken: it goes into the next file.
            self._write(request)
            raise Deferred
        error = (response.get("body") or {}).get("error") or row.get("error") or {}
        said = error.get("message", "") if isinstance(error, dict) else str(error)
        raise Refused(f"the batch answered {status}: {said}"[:300], row=True)

    def _write(self, request: CompletionRequest) -> None:
        line = b'{"custom_id":"%s","method":"POST","url":"%s","body":%s}\n' % (
            request.key.encode("ascii"),
            b"/v1/completions" if isinstance(request.prompt, str) else b"/v1/chat/completions",
            request.payload,
        )
        full = self._written >= self._max_requests or self._bytes + len(line) > MAX_BYTES
        with writing(self.folder):
            if self._file is None or full:
                if any(secrets_in(json.loads(request.payload))):
                    raise UserError(
                        "EXTRA_BODY holds a key, and requests for a batch service are written to "
                        "files; leave the key out, and give it to the service itself."
                    )
                if self._file is not None:
                    self._file.close()
                self._part += 1
                self._written = self._bytes = 0
                path = self.folder / f".requests-{self._part:04d}.jsonl.new"
                self._file = open(path, "wb")  # noqa: SIM115 (written to until close)
            self._file.write(line)
        self._written += 1
        self._bytes += len(line)
