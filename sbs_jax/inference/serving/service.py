"""The service: one predictor, the queue in front of it, and what is wanted of its requests.

Texts are tokenized in the caller's thread, and the model runs in a thread of its own (`batcher`).
"""

import itertools
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sbs_jax.errors import UserError
from sbs_jax.inference.serving.batcher import Batcher, More
from sbs_jax.inference.serving.limits import RequestLimits
from sbs_jax.inference.serving.metrics import Metrics
from sbs_jax.inference.warming import WarmUp

if TYPE_CHECKING:
    from sbs_jax.inference.predictor import Predictor

log = logging.getLogger(__name__)

_CHARS_PER_TOKEN = 16
"""T5's longest piece; an input with more characters than all its tokens could hold is too long."""


class Service:
    """One predictor behind a bounded queue.

    Attributes:
      predictor: the student.
      limits: what requests may ask, and how many may wait.
      max_requests: how many requests with bodies may be there at a time.
      max_chars: how many characters an input may have.
      metrics: the metrics that `/metrics` returns.
      batcher: the queue and the thread of the model.
      progress: how many of the shapes of programs are compiled.
    """

    def __init__(self, predictor: "Predictor", limits: RequestLimits) -> None:
        """Starts nothing yet; `predictor` answers batches, in the model's thread."""
        self.predictor = predictor
        self.limits = limits
        # Each that was let in waits with a job at least; as many again may be arriving.
        self.max_requests = 2 * limits.max_waiting + predictor.row_counts[-1]
        self.max_chars = _CHARS_PER_TOKEN * predictor.input_length
        self._warm = self._draining = self._failed = False
        self._compiler: threading.Thread | None = None
        self.progress = WarmUp(0, 0, answers=False)
        self._samples = itertools.count()
        self.batcher = Batcher(
            self._run,
            max_rows=predictor.row_counts[-1],
            max_waiting=limits.max_waiting,
            max_delay=limits.max_delay_ms / 1000,
            on_batch=lambda batch: self.metrics.batch(batch),
        )
        self.metrics = Metrics(lambda: self.batcher.waiting, lambda: self.status == "ready")

    @property
    def status(self) -> str:
        """`ready`, `warming up`, `shutting down` or `failed`."""
        if self._draining:
            return "shutting down"
        if self._failed or (self._warm and not self.batcher.is_alive):
            return "failed"
        return "ready" if self._warm else "warming up"

    @property
    def answers(self) -> bool:
        """Whether requests are answered; while the service drains, they still are."""
        return self._warm and not self._failed and self.batcher.is_alive

    def start(self) -> None:
        """Starts the thread of the model, and one that compiles.

        Requests are answered as soon as each kind has one shape, into which all fit. The others
        are compiled while these are answered.
        """
        self.batcher.start()
        self._compiler = threading.Thread(target=self._warm_up, name="compiler", daemon=True)
        self._compiler.start()

    def drain(self) -> None:
        """Has `/healthz` report that the service shuts down; requests are still answered."""
        self._draining = True

    def close(self, seconds: float | None = None) -> None:
        """Answers what waits, and ends both threads, within `seconds` if they are given."""
        self._draining = True
        begin = time.monotonic()
        self.batcher.close(seconds)
        if self._compiler is not None:
            # It cannot be stopped within a program.
            left = None if seconds is None else max(0.0, begin + seconds - time.monotonic())
            self._compiler.join(left)

    def prepare_rationales(self, request: Any) -> list[tuple[Any, Any]]:
        """Creates the first jobs of a request to a student that answers in two stages.

        Returns:
          Group and query for each input's rationale, which its label reads.

        Raises:
          UserError: an input is too long.
        """
        queries = []
        for where, text, _, _ in _inputs_of(request):
            query = self.predictor.ask_rationale(text, sample=next(self._samples))
            self._require_fit(query, request, where)
            queries.append(query)
        return [(self.predictor.group(query), query) for query in queries]

    def _require_fit(self, query: Any, request: Any, where: str) -> None:
        if query.truncated and not request.truncate:
            raise UserError(
                f"{where}The input has more tokens than {self.predictor.input_length}, prefix "
                "and end included; shorten it, or set truncate."
            )

    def prepare(
        self, request: Any, written: Sequence[str] | None = None
    ) -> tuple[list[tuple[Any, Any]], list[int | None]]:
        """Creates the jobs of a request for the batcher.

        Args:
          request: the client's request.
          written: the rationale that the student has written for each input, if it answers in two
            stages. What does not fit of it is cut.

        Returns:
          Pairs of group and query: one for each input's label, then those for rationales; and for
          each input which of the jobs is its rationale, None for none.

        Raises:
          UserError: an input is too long, or candidates are no label set.
        """
        labels, texts = [], []
        for number, (where, text, own, given) in enumerate(_inputs_of(request)):
            own = own or request.candidates
            if own is not None and not self.limits.max_candidates:
                raise UserError(f"{where}This service takes no candidates of a request's own.")
            try:
                rationale = (given or "") if written is None else written[number]
                query = self.predictor.ask_label(text, own, rationale=rationale)
            except UserError as error:
                raise UserError(f"{where}{error}") from error
            if written is None:
                self._require_fit(query, request, where)
            labels.append(query)
            texts.append(text)
        explained: list[Any] = []
        places: list[int | None] = [None] * len(labels)
        # A joint student explains itself with its label.
        explains_itself = self.predictor.prompting.explains_itself or written is not None
        if request.explain and not explains_itself:
            explained = [
                self.predictor.ask_rationale(text, sample=next(self._samples)) for text in texts
            ]
            places = [len(labels) + number for number in range(len(labels))]
        jobs = [(self.predictor.group(query), query) for query in (*labels, *explained)]
        return jobs, places

    def _run(self, queries: list[Any], more: More) -> Iterator[list[tuple[int, Any]]]:
        # Answers hold the scores of all candidates.
        most = 1
        if queries[0].kind == "label":
            closed = [query.candidates or self.predictor.closed_set for query in queries]
            most = max(len(one.texts) if one else 1 for one in closed)
        return self.predictor.stream(queries, more, num_best=most)

    def _warm_up(self) -> None:
        begin = time.monotonic()
        try:
            for progress in self.predictor.warm_up():
                self.progress = progress
                if self._draining:
                    return
                if progress.answers and not self._warm:
                    self._warm = True
                    log.info(
                        "Ready after %.0f s: %d of %d shapes are compiled, the others follow.",
                        time.monotonic() - begin,
                        progress.compiled,
                        progress.total,
                    )
        except Exception:
            if self._warm:
                log.exception("Compiling failed; requests are answered in the shapes there are.")
                return
            self._failed = True
            log.exception("warming up failed")
            raise
        log.info("All shapes are compiled, after %.0f s.", time.monotonic() - begin)


def _inputs_of(request: Any) -> Iterator[tuple[str, str, Any, str | None]]:
    """Yields of each input its place for errors, its text, its candidates and its rationale."""
    several = isinstance(request.inputs, list)
    for number, one in enumerate(request.inputs if several else [request.inputs]):
        where = f"inputs[{number}]: " if several else ""
        if isinstance(one, str):
            yield where, one, None, None
        else:
            yield where, one.input, one.candidates, one.rationale
