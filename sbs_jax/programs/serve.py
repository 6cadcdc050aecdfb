"""Serves a student over HTTP: `python -m sbs_jax.serve` (gin/runs/serve.gin)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import jax

from sbs_jax.errors import UserError, require_at_least
from sbs_jax.inference.loader import Loader
from sbs_jax.inference.predictor import CHOICES
from sbs_jax.inference.serving.limits import Access, ConnectionLimits, RequestLimits

log = logging.getLogger(__name__)


def serve(
    *,
    loader: Loader,
    host: str = "127.0.0.1",
    port: int = 8000,
    batch_sizes: Sequence[int] = (1, 8),
    drain_seconds: float = 1.0,
    requests: RequestLimits = RequestLimits(),  # noqa: B008 (frozen)
    limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 (frozen)
    access: Access = Access(),  # noqa: B008 (frozen)
) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Args:
      loader: the student; its `batch_size` is the largest batch.
      host: address to listen on.
      port: port to listen on; 0 takes a free one, which is logged.
      batch_sizes: smaller batches that are compiled as well, so that few requests wait less.
      drain_seconds: seconds after SIGTERM in which new connections are still served.
      requests: the limits of requests and of their queue.
      limits: the limits of connections, and of the time that the end may take.
      access: the key that clients bring, and the names that they know the service by.

    Raises:
      UserError: something the user gave does not work; the sentence says what.
    """
    try:
        from sbs_jax.inference.serving import server
        from sbs_jax.inference.serving.service import Service
    except ModuleNotFoundError as error:
        raise UserError(
            f"Serving needs the package {error.name}: pip install 'sbs_jax[serve]'."
        ) from error
    if jax.process_count() > 1:
        raise UserError("Serving works in one process; start one service for each machine.")
    if loader.candidates == CHOICES and not requests.max_candidates:
        raise UserError(
            f"CANDIDATES = '{CHOICES}' needs MAX_CANDIDATES: how many choices an input may list."
        )
    require_at_least(0, DRAIN_SECONDS=drain_seconds)
    api_key = access.key()
    listener = server.listen(host, port)
    predictor = loader.load(row_counts=batch_sizes, own_shape=requests.own_shape)
    service = Service(predictor, requests)
    log.info("%s", predictor.name)
    address = f"[{host}]" if ":" in host else host
    log.info("Listening on http://%s:%d (documentation at /docs)", address, server.port(listener))
    server.run(
        service,
        listener,
        drain_seconds=drain_seconds,
        limits=limits,
        api_key=api_key,
        hosts=access.hosts(host),
    )
