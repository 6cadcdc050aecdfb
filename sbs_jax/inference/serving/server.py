"""Runs the service: a socket, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType

import uvicorn

from sbs_jax.errors import UserError
from sbs_jax.inference.serving.app import Service, create_app

log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """uvicorn's, which on a signal first lets clients know, and only then stops listening."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
        super().__init__(config)
        self._service = service
        self._drain_seconds = drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1 or self._loop is None:
            self.force_exit = self._signals > 2
            self.should_exit = True
            return
        log.info("Shutting down: requests under way are answered.")
        self._service.drain()
        # From here on every answer tells its client to close the connection, so that none sends a
        # request into one that is about to be closed.
        self._loop.call_soon_threadsafe(self._say_goodbye)

    def _say_goodbye(self) -> None:
        self.config.headers.append(("connection", "close"))
        self.config.encoded_headers.append((b"connection", b"close"))
        self.server_state.default_headers.append((b"connection", b"close"))
        self._loop.call_later(self._drain_seconds, setattr, self, "should_exit", True)


def listen(host: str, port: int) -> socket.socket:
    """Opens the socket that the service listens on; port 0 takes a free one.

    Raises:
      UserError: it is taken, or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"HOST = {host!r}, PORT = {port}: cannot listen there ({reason}); choose another port, "
            "or 0 for a free one."
        ) from error
    return listener


def make_server(service: Service, *, drain_seconds: float) -> uvicorn.Server:
    """The HTTP server around a service; see `run`."""
    config = uvicorn.Config(
        create_app(service),
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
    )
    return _Server(config, service, drain_seconds)


def run(service: Service, listener: socket.socket, *, drain_seconds: float) -> None:
    """Serves until SIGTERM or SIGINT; answers every request under way before it returns.

    Args:
      service: not started yet.
      listener: from `listen`.
      drain_seconds: for so long after the signal, new connections are still served, while
        `/healthz` says 503: time for a load balancer to look elsewhere.
    """
    server = make_server(service, drain_seconds=drain_seconds)
    service.start()
    try:
        server.run(sockets=[listener])
    finally:
        service.close()
    log.info("All requests were answered.")


def port(listener: socket.socket) -> int:
    """The port of a socket from `listen`."""
    return listener.getsockname()[1]
