"""Serves a student over HTTP: `python -m sbs_jax.serve` (gin/runs/serve.gin)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import jax

from sbs_jax.errors import UserError, require_at_least
from sbs_jax.inference.loader import Loader
from sbs_jax.inference.predictor import CHOICES
from sbs_jax.inference.serving.limits import Access, ConnectionLimits

log = logging.getLogger(__name__)


def serve(
    *,
    loader: Loader,
    host: str = "127.0.0.1",
    port: int = 8000,
    batch_sizes: Sequence[int] = (1, 8),
    max_waiting: int = 256,
    max_inputs: int = 64,
    max_body_bytes: int = 1_000_000,
    max_candidates: int = 0,
    max_candidate_length: int = 16,
    max_delay_ms: float = 2.0,
    drain_seconds: float = 1.0,
    limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 (frozen)
    access: Access = Access(),  # noqa: B008 (frozen)
) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Args:
      loader: the student; its `batch_size` is the largest batch.
      host: address to listen on.
      port: port to listen on; 0 takes a free one, which is logged.
      batch_sizes: smaller batches that are compiled as well, so that few requests wait less.
      max_waiting: the most labels and rationales in the queue; beyond it, requests get 503.
      max_inputs: the most inputs of a request.
      max_body_bytes: the largest body; beyond it, requests get 413.
      max_candidates: the most labels of a request's own label set; 0: requests bring none.
      max_candidate_length: the most tokens of such a label, EOS included.
      max_delay_ms: milliseconds that a batch which is not full waits for further requests.
      drain_seconds: seconds after SIGTERM in which new connections are still served.
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
    if loader.candidates == CHOICES and max_candidates < 2:
        raise UserError(
            f"CANDIDATES = '{CHOICES}' needs MAX_CANDIDATES: how many choices an input may list."
        )
    if max_candidates == 1 or max_candidates < 0:
        raise UserError(f"MAX_CANDIDATES = {max_candidates} must be 0, or at least 2.")
    require_at_least(0, MAX_DELAY_MS=max_delay_ms, DRAIN_SECONDS=drain_seconds)
    api_key = access.key()
    listener = server.listen(host, port)
    predictor = loader.load(
        row_counts=batch_sizes,
        own_shape=(max_candidates, max_candidate_length) if max_candidates else None,
    )
    service = Service(
        predictor,
        max_waiting=max_waiting,
        max_inputs=max_inputs,
        max_body_bytes=max_body_bytes,
        max_candidates=max_candidates,
        max_delay=max_delay_ms / 1000,
    )
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
