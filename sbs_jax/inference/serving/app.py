"""The HTTP interface of a service: `create_app` wraps it in a FastAPI application.

The event loop only parses, queues and writes: texts are tokenized in a thread pool, and the model
runs in a thread of its own (`batcher`).
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import sbs_jax
from sbs_jax.errors import UserError
from sbs_jax.inference.serving import docs_page, limits, schema
from sbs_jax.inference.serving.batcher import ClosedError, FullError
from sbs_jax.inference.serving.metrics import CONTENT_TYPE
from sbs_jax.inference.serving.service import Service

_FIELDS = frozenset({"inputs", "input", "explain", "truncate", "candidates", "rationale"})
_PATHS = frozenset({"/predict", "/healthz", "/metrics", "/docs", "/openapi.json"})


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
        max_inputs=service.limits.max_inputs,
        max_chars=service.max_chars,
        max_candidates=service.limits.max_candidates,
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
        limits.BodyLimit, max_bytes=service.limits.max_body_bytes, max_requests=service.max_requests
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
    unknown = worst["loc"][-1:] if worst["type"] == "extra_forbidden" else ()
    known = worst["loc"][1 : len(worst["loc"]) - len(unknown)]
    place = [part for part in known if isinstance(part, int) or part in _FIELDS] + list(unknown)
    if not place and (worst["type"] == "missing" or worst["type"].endswith("_type")):
        return "The body is no JSON object; send one with Content-Type: application/json."
    where = f"{'.'.join(map(str, place))}: " if place else ""
    sentence = f"{where}{worst['msg']}."
    return sentence.encode("utf-8", "replace").decode("utf-8")[:500]
