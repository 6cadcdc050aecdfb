"""Runs the service: its socket, signals, and an orderly shutdown."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import resource
import socket
from collections.abc import Sequence
from types import FrameType
from typing import Any

import uvicorn

from sbs_jax.errors import UserError
from sbs_jax.inference.serving.app import create_app
from sbs_jax.inference.serving.connections import Connection, Connections
from sbs_jax.inference.serving.limits import ConnectionLimits
from sbs_jax.inference.serving.service import Service

log = logging.getLogger(__name__)

_OWN_FILES = 64  # besides connections: libraries, logs, devices


class _Server(uvicorn.Server):
    """A uvicorn server that announces its shutdown to clients before it stops listening."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        connections: Connections,
        *,
        drain_seconds: float,
    ) -> None:
        super().__init__(config)
        self._service = service
        self._connections = connections
        self._drain_seconds = drain_seconds
        self._shutdown_seconds = connections.limits.shutdown_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Clients that never read, and requests that take too long, do not delay the shutdown: their
        # connections are closed, and what waits for them ends in order.
        late = asyncio.get_running_loop().call_later(self._shutdown_seconds, self._too_late)
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()

    def _too_late(self) -> None:
        count = len(self._connections.open)
        log.warning("%d connections are not done after %g s: closed.", count,
                    self._shutdown_seconds)  # fmt: skip
        self._connections.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1 or self._loop is None:
            self.force_exit = self._signals > 2
            self.should_exit = True
            return
        log.info("Shutting down: requests under way are answered.")
        self._service.drain()
        # From here on every answer asks its client to close the connection, so that no request is
        # sent into a connection that is about to be closed.
        self._loop.call_soon_threadsafe(self._say_goodbye)

    def _say_goodbye(self) -> None:
        self.config.headers.append(("connection", "close"))
        self.config.encoded_headers.append((b"connection", b"close"))
        self.server_state.default_headers.append((b"connection", b"close"))
        assert self._loop is not None  # It serves.
        self._loop.call_later(self._drain_seconds, setattr, self, "should_exit", True)


def listen(host: str, port: int) -> socket.socket:
    """Opens the socket that the service listens on; port 0 chooses a free one.

    Raises:
      UserError: the port is in use, or this user may not listen on it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        raise UserError(
            f"HOST = {host!r}, PORT = {port}: cannot listen there ({reason}); choose another port, "
            "or 0 for a free one."
        ) from error
    return listener


def most_connections(wanted: int) -> int:
    """Returns how many connections there can be, with `wanted` of them at most.

    Each is an open file; the limit of this process is raised as far as the system lets it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = wanted + _OWN_FILES
    if soft != resource.RLIM_INFINITY and soft < enough:
        try:
            most = enough if hard == resource.RLIM_INFINITY else min(enough, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
        except (OSError, ValueError) as error:  # macOS has limits that it does not tell
            log.info("No more than %d files may be open (%s).", soft, error)
    if soft == resource.RLIM_INFINITY or soft >= enough:
        return wanted
    fewer = max(1, soft - _OWN_FILES)
    log.warning(
        "MAX_CONNECTIONS = %d needs more open files than this process may have (ulimit -n: %d); "
        "taking %d.",
        wanted,
        soft,
        fewer,
    )
    return fewer


def make_server(
    service: Service,
    *,
    drain_seconds: float,
    limits: ConnectionLimits | None = None,
    api_key: str | None = None,
    hosts: Sequence[str] | None = None,
) -> uvicorn.Server:
    """Makes the HTTP server around a service; see `run`."""
    limits = limits or ConnectionLimits()
    connections = Connections(
        limits,
        most=most_connections(limits.max_connections),
        max_body_bytes=service.limits.max_body_bytes,
        on_close=service.metrics.closed,
    )
    service.metrics.watch_connections(lambda: len(connections.open))
    # Uvicorn calls it; its types want a class.
    protocol: Any = functools.partial(Connection, connections=connections)
    config = uvicorn.Config(
        create_app(service, api_key=api_key, hosts=hosts),
        http=protocol,
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=math.ceil(limits.idle_seconds),
        timeout_graceful_shutdown=math.ceil(limits.shutdown_seconds) + 5,
    )
    return _Server(config, service, connections, drain_seconds=drain_seconds)


def run(
    service: Service,
    listener: socket.socket,
    *,
    drain_seconds: float,
    limits: ConnectionLimits,
    api_key: str | None,
    hosts: Sequence[str] | None,
) -> None:
    """Serves until SIGTERM or SIGINT; answers the requests under way before it returns.

    Args:
      service: not started yet.
      listener: the listener, from `listen`.
      drain_seconds: for so long after the signal, new connections are still served, while
        `/healthz` says 503: time for a load balancer to look elsewhere.
      limits: the limits of connections.
      api_key: what clients have to bring; None for nothing.
      hosts: names that they may know the service by; None for any.
    """
    server = make_server(
        service, drain_seconds=drain_seconds, limits=limits, api_key=api_key, hosts=hosts
    )
    service.start()
    try:
        server.run(sockets=[listener])
    finally:
        service.close(limits.shutdown_seconds)
    log.info("All requests were answered.")


def port(listener: socket.socket) -> int:
    """Returns the port of a socket from `listen`."""
    return listener.getsockname()[1]
