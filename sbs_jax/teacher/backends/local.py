"""A language model in this process, in JAX, sharded over the same mesh as training.

The backend imports jax when it is made, not when this module is imported.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sbs_jax.errors import UserError, require_at_least
from sbs_jax.teacher.types import Completion, CompletionRequest, Refused

_KNOWN = {"model", "prompt", "messages", "max_tokens", "temperature", "top_p", "stop", "logprobs"}
_BEGINNING = 32  # prompts that agree in so many tokens share a prefix
_SETTLE_SECONDS = 0.05
DTYPES = ("float32", "bfloat16")


@dataclass(slots=True)
class _Waiting:
    job: Any
    future: asyncio.Future[Completion]
    logprobs: bool
    age: int


class LocalBackend:
    """Generates with Llama-family weights (Llama, Qwen2, Qwen2.5, SmolLM2).

    Args:
      path: A Hugging Face folder with safetensors, or a GGUF file.
      model: The name that goes into the journal's keys; by default that of the file or folder.
      batch_size: The most completions at once.
      dtype: 'float32' (CPU) or 'bfloat16' (GPU, TPU).
      data_parallel: Devices along which rows are cut; -1 takes what is left.
      model_parallel: Devices along which weights are cut.
      share_prefix: Whether the prompts' common beginning is computed once.
    """

    name = "local"
    samples_per_request = 1
    one_first = False

    def __init__(
        self,
        path: str,
        model: str | None = None,
        batch_size: int = 32,
        dtype: str = "float32",
        data_parallel: int = -1,
        model_parallel: int = 1,
        share_prefix: bool = True,
    ) -> None:
        if dtype not in DTYPES:
            raise UserError(f"LOCAL_DTYPE = {dtype!r} must be one of {', '.join(DTYPES)}.")
        require_at_least(1, LOCAL_BATCH_SIZE=batch_size)
        from sbs_jax.checkpoints.decoder_tokenizer import CompletionTokenizer
        from sbs_jax.checkpoints.decoder_weights import open_checkpoint

        self._checkpoint = open_checkpoint(path)
        self._tokenizer = CompletionTokenizer(self._checkpoint)
        self.model = model or Path(path).resolve().name
        self.batch_size = batch_size
        # Enough requests must wait for batches of like length to be found among them.
        self.min_concurrency = 4 * batch_size
        self._dtype = dtype
        self._mesh_shape = (data_parallel, model_parallel)
        self._share = share_prefix
        self._engine: Any = None
        self._queue: list[_Waiting] = []
        self._arrived = threading.Condition()
        self._closing = False
        self._count = 0

    async def start(self) -> None:
        """Loads the weights and starts the thread that generates."""
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._engine = await asyncio.to_thread(self._load)
        self._thread = threading.Thread(target=self._work, name="teacher", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Lets the thread finish its batch, and ends it."""
        if self._engine is None:
            return
        with self._arrived:
            self._closing = True
            self._arrived.notify()
        await asyncio.to_thread(self._thread.join)

    async def complete(self, requests: Sequence[CompletionRequest]) -> list[Completion]:
        """Waits for a place in a batch, and for the batch."""
        (request,) = requests
        waiting = self._waiting(request)
        with self._arrived:
            self._queue.append(waiting)
            self._arrived.notify()
        completion = await waiting.future
        completion.prompt_tokens = len(waiting.job.tokens)
        return [completion]

    def count_tokens(self, prompt: str | list[dict[str, str]]) -> tuple[int, bool]:
        """Counts with the model's own tokenizer."""
        return len(self._tokenizer.encode(prompt)), True

    def describe(self) -> dict[str, Any]:
        """Returns the file's name, the mesh, and how much work the shared prefix saved."""
        about = {
            "file": self._checkpoint.source.name,
            "dtype": self._dtype,
            "batch_size": self.batch_size,
            "share_prefix": self._share,
        }
        if self._engine is not None:
            about["mesh"] = dict(self._mesh.shape)
            about["device"] = str(self._mesh.devices.flat[0].device_kind)
            about["work"] = dataclasses.asdict(self._engine.work)
        return about

    def _load(self) -> Any:
        import jax

        from sbs_jax.checkpoints.decoder_weights import load_params
        from sbs_jax.decoding.completions import CompletionEngine
        from sbs_jax.partitioning.mesh import make_mesh

        if jax.process_count() > 1:
            raise UserError(
                "The local teacher runs in one process; start one for each machine, with its own "
                "part of the data and its own OUTPUT_DIR."
            )
        self._mesh = make_mesh(*self._mesh_shape)
        return CompletionEngine(
            self._checkpoint.config,
            load_params(self._checkpoint, self._mesh, self._dtype),
            self._tokenizer,
            self._mesh,
            dtype=self._dtype,
            batch_size=self.batch_size,
            share_prefix=self._share,
        )

    def _waiting(self, request: CompletionRequest) -> _Waiting:
        from sbs_jax.decoding.completions import Job

        body = json.loads(request.body)
        unknown = sorted(set(body) - _KNOWN)
        if unknown:
            raise Refused(f"The local backend does not know {unknown[0]!r}.", fatal=True)
        tokens = self._tokenizer.encode(request.prompt)
        room = self._checkpoint.config.max_positions - len(tokens)
        if room < 1 or not tokens:
            raise Refused(
                f"the prompt has {len(tokens)} tokens; the model's context length is "
                f"{self._checkpoint.config.max_positions}",
                row=True,
            )
        job = Job(
            tokens=tuple(tokens),
            max_new=min(request.max_tokens, room),
            temperature=float(body.get("temperature", 0.0)),
            top_p=float(body.get("top_p", 1.0)),
            seed=request.seed or 0,
            stop=tuple(body.get("stop", ())),
        )
        self._count += 1
        logprobs = body.get("logprobs") not in (None, False)
        return _Waiting(job, self._loop.create_future(), logprobs, self._count)

    def _work(self) -> None:
        while True:
            with self._arrived:
                while not self._queue and not self._closing:
                    self._arrived.wait()
                if self._closing:
                    return
                # The first of many: let the others arrive.
                while len(self._queue) < self.min_concurrency:
                    before = len(self._queue)
                    self._arrived.wait(_SETTLE_SECONDS)
                    if len(self._queue) == before:
                        break
                batch, common = self._pick()
            try:
                said = self._engine.generate([entry.job for entry in batch], common)
            except Exception as error:
                self._loop.call_soon_threadsafe(_fail, batch, error)
                continue
            self._loop.call_soon_threadsafe(_tell, batch, said)

    def _pick(self) -> tuple[list[_Waiting], Sequence[int]]:
        """Takes a batch off the queue: the oldest, with those that are most like it.

        Returns:
          The batch, and the prefix that it shares with all waiting prompts of its kind.
        """
        from sbs_jax.decoding.completions import shared_beginning

        oldest = min(self._queue, key=lambda entry: entry.age)
        start = oldest.job.tokens[:_BEGINNING]
        alike = [entry for entry in self._queue if entry.job.tokens[:_BEGINNING] == start]
        alike.sort(key=lambda entry: (len(entry.job.tokens), entry.age))
        place = alike.index(oldest)
        first = max(0, min(place - self.batch_size // 2, len(alike) - self.batch_size))
        batch = alike[first : first + self.batch_size]
        chosen = {id(entry) for entry in batch}
        self._queue = [entry for entry in self._queue if id(entry) not in chosen]
        return batch, shared_beginning([entry.job.tokens for entry in alike])


def _tell(batch: list[_Waiting], said: list[Any]) -> None:
    for entry, answer in zip(batch, said, strict=True):
        if not entry.future.done():
            entry.future.set_result(
                Completion(
                    text=answer.text,
                    finish_reason=answer.finish_reason,
                    completion_tokens=len(answer.tokens),
                    logprob=answer.logprob if entry.logprobs else None,
                )
            )


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for entry in batch:
        if not entry.future.done():
            entry.future.set_exception(error)
