"""The service and its HTTP interface.

`Service` holds one predictor and its queue; `create_app` wraps it in a FastAPI application. The
event loop only parses, queues and writes: texts are tokenized in a thread pool, and the model runs
in a thread of its own (`batcher`).
"""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import sbs_jax
from sbs_jax.errors import UserError
from sbs_jax.inference.serving import docs_page, limits, schema
from sbs_jax.inference.serving.batcher import Batcher, ClosedError, FullError, More
from sbs_jax.inference.serving.metrics import CONTENT_TYPE, Metrics
from sbs_jax.inference.warming import Progress

if TYPE_CHECKING:
    from sbs_jax.inference.predictor import Predictor

log = logging.getLogger(__name__)

_CHARS_PER_TOKEN = 16
"""T5's longest piece; an input with more characters than all its tokens could hold is too long."""
_FIELDS = frozenset({"inputs", "input", "explain", "truncate", "candidates", "rationale"})
_PATHS = frozenset({"/predict", "/healthz", "/metrics", "/docs", "/openapi.json"})


class Service:
    """One predictor behind a bounded queue.

    Attributes:
      metrics: the metrics that `/metrics` returns.
      batcher: the queue and the thread of the model.
      progress: how many of the shapes of programs are compiled.
    """

    def __init__(
        self,
        predictor: "Predictor",
        *,
        max_waiting: int = 256,
        max_inputs: int = 64,
        max_body_bytes: int = 1_000_000,
        max_candidates: int = 0,
        max_delay: float = 0.002,
    ) -> None:
        """Starts nothing yet.

        Args:
          predictor: answers batches, in the model's thread.
          max_waiting: the most queries in the queue: a label is one, its explanation another.
          max_inputs: the most inputs of a request.
          max_body_bytes: the largest body of a request.
          max_candidates: the most labels of a request's own label set; 0 allows none.
          max_delay: seconds for which a batch that is not full waits for company.

        Raises:
          UserError: a request with `max_inputs` explained inputs would never fit into the queue.
        """
        if max_inputs < 1 or max_waiting < 2 * max_inputs:
            raise UserError(
                f"MAX_WAITING = {max_waiting} must be at least twice MAX_INPUTS = {max_inputs}, so "
                "that a request with so many inputs, explained, fits into the queue."
            )
        self.predictor = predictor
        self.max_inputs = max_inputs
        self.max_body_bytes = max_body_bytes
        self.max_candidates = max_candidates
        # Each that was let in waits with a job at least; as many again may be arriving.
        self.max_requests = 2 * max_waiting + predictor.row_counts[-1]
        self.max_chars = _CHARS_PER_TOKEN * predictor.input_length
        self._warm = self._draining = self._failed = False
        self._compiler: threading.Thread | None = None
        self.progress = Progress(0, 0, answers=False)
        self._samples = itertools.count()
        self.batcher = Batcher(
            self._run,
            max_rows=predictor.row_counts[-1],
            max_waiting=max_waiting,
            max_delay=max_delay,
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
          request: of the client.
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
            if own is not None and not self.max_candidates:
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


def create_app(
    service: Service, *, api_key: str | None = None, hosts: Sequence[str] | None = None
) -> FastAPI:
    """Makes the HTTP application around a service that has been started, or will be.

    Args:
      service: answers.
      api_key: what clients have to bring; None for nothing.
      hosts: names that they may know the service by; None for any.
    """
    model = schema.request_model(
        max_inputs=service.max_inputs,
        max_chars=service.max_chars,
        max_candidates=service.max_candidates,
    )
    descriptions = {
        400: "the body is no JSON",
        401: "the key is missing or wrong",
        408: "the body did not arrive in time",
        413: "the body is too large",
        421: "the Host is none that this service goes by",
        422: "the request does not fit the schema, or an input is too long",
        503: "the queue is full, or the service is not ready: try again after Retry-After",
    }
    if api_key is None:
        del descriptions[401]
    if hosts is None:
        del descriptions[421]
    problems: dict[int | str, dict[str, Any]] = {
        status: {"model": schema.Problem, "description": what}
        for status, what in descriptions.items()
    }
    app = FastAPI(
        title="sbs_jax",
        version=sbs_jax.__version__,
        # Without a key, this page is all that one may read: no name.
        description="Labels and explanations of "
        + (service.predictor.name if api_key is None else "a student")
        + ".",
        docs_url=None,  # FastAPI's own page loads its scripts from a foreign host
        redoc_url=None,
    )

    @app.post(
        "/predict",
        response_model=schema.PredictResponse,
        responses=problems,
        summary="Labels, and explanations if asked for",
    )
    async def predict(
        http: Request,
        request: model = Body(),  # type: ignore[valid-type]  # noqa: B008  # made above
    ) -> Response:
        asked: Any = request
        if not service.answers:
            return _busy(f"The service is not ready: {service.status}.", 1)
        count = len(asked.inputs) if isinstance(asked.inputs, list) else 1
        try:
            service.batcher.require_room(count)  # before any work: under overload that counts
            written = None
            if service.predictor.prompting.is_cascaded:
                first = service.batcher.submit(
                    await asyncio.to_thread(service.prepare_rationales, request)
                )
                rationales = await _unless_gone(http, first)
                if rationales is None:
                    service.batcher.cancel(first)
                    return Response(status_code=499)
                written = [rationale.text for rationale in rationales]
            jobs, places = await asyncio.to_thread(service.prepare, request, written)
            futures = service.batcher.submit(jobs)
        except FullError as error:
            service.metrics.rejected(count)
            return _busy("The queue is full; try again later.", error.retry_after)
        except ClosedError:
            return _busy("The service is shutting down.", 1)
        answers = await _unless_gone(http, futures)
        if answers is None:
            service.batcher.cancel(futures)
            return Response(status_code=499)  # for the metrics alone: the client is gone
        service.metrics.inputs(count)
        explained = [None if place is None else answers[place].text for place in places]
        if written is not None and asked.explain:
            explained = written
        predictions = [
            _prediction(answer, rationale, asked.explain)
            for answer, rationale in zip(answers, explained, strict=False)
        ]
        return JSONResponse({"model": service.predictor.name, "predictions": predictions})

    @app.get(
        "/healthz",
        response_model=schema.Health,
        responses={503: {"model": schema.Health, "description": "not ready"}},
        summary="Whether requests are answered",
    )
    async def healthz(http: Request) -> Response:
        status = service.status
        # A probe needs no key, and does not learn the name of the model.
        name = service.predictor.name if http.scope.get(limits.TRUSTED, True) else ""
        progress = service.progress
        content = {
            "status": status,
            "model": name,
            "compiled_shapes": progress.compiled,
            "shapes": progress.total,
        }
        return JSONResponse(content, 200 if status == "ready" else 503)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format"}},
        summary="Counters for Prometheus",
    )
    async def metrics() -> Response:
        # Given as a header: Starlette would add a second charset.
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(
            docs_page.page(app.openapi()),
            media_type="text/html",
            headers={"content-security-policy": docs_page.POLICY},
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # FastAPI's own answer repeats the input, which may be large, or no JSON (NaN, surrogates).
        return JSONResponse({"error": _sentence(error)}, 422)

    @app.exception_handler(UserError)
    async def wrong(request: Request, error: UserError) -> Response:
        return JSONResponse({"error": str(error)}, 422)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "The service failed; its log says why."}, 500)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    app.add_middleware(
        limits.BodyLimit, max_bytes=service.max_body_bytes, max_requests=service.max_requests
    )
    app.add_middleware(
        limits.Guard,
        hosts=hosts,
        api_key=api_key,
        probe="/healthz",
        keyless=frozenset({"/docs", "/openapi.json"}),
    )
    app.add_middleware(limits.Observe, paths=_PATHS, tell=service.metrics.request)
    return app


async def _unless_gone(request: Request, futures: Sequence[Future[Any]]) -> list[Any] | None:
    """Waits for answers; returns None when the client goes away before they are there."""
    answers = asyncio.gather(*map(asyncio.wrap_future, futures))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((answers, gone), return_when=asyncio.FIRST_COMPLETED)
        if answers.done():
            return answers.result()
        # Retrieves the exception, which asyncio would log otherwise.
        answers.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        answers.cancel()
        return None
    finally:
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _inputs_of(request: Any) -> Iterator[tuple[str, str, Any, str | None]]:
    """Yields of each input its place for errors, its text, its candidates and its rationale."""
    several = isinstance(request.inputs, list)
    for number, one in enumerate(request.inputs if several else [request.inputs]):
        where = f"inputs[{number}]: " if several else ""
        if isinstance(one, str):
            yield where, one, None, None
        else:
            yield where, one.input, one.candidates, one.rationale


def _prediction(answer: Any, rationale: str | None, explain: bool) -> dict[str, Any]:
    if rationale is None and explain:
        rationale = answer.rationale
    scores = dict(answer.alternatives) if len(answer.alternatives) > 1 else None
    return {
        "label": answer.label,
        "confidence": answer.confidence,
        "scores": scores,
        "rationale": rationale,
        "truncated": answer.truncated,
    }


def _busy(sentence: str, retry_after: int) -> Response:
    return JSONResponse({"error": sentence}, 503, {"Retry-After": str(retry_after)})


def _sentence(error: RequestValidationError) -> str:
    """The most specific of a request's mistakes, with its place: `inputs.3.candidates: …`."""
    # Where a value may be of several types, those that it has not say the least.
    worst = max(
        error.errors(),
        key=lambda found: (not found["type"].endswith("_type"), len(found["loc"])),
    )
    if worst["type"] == "json_invalid":
        return "The body is no JSON."
    # The place contains names of types that were tried; an unknown key of the client is shown.
    place = [part for part in worst["loc"][1:] if isinstance(part, int) or part in _FIELDS]
    if worst["type"] == "extra_forbidden":
        place.append(worst["loc"][-1])
    if not place and (worst["type"] == "missing" or worst["type"].endswith("_type")):
        return "The body is no JSON object; send one with Content-Type: application/json."
    where = f"{'.'.join(map(str, place))}: " if place else ""
    sentence = f"{where}{worst['msg']}."
    return sentence.encode("utf-8", "replace").decode("utf-8")[:500]
