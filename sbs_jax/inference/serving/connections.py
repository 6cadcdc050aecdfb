"""Connections within limits: how many there are, and how long one may hold its place for nothing.

uvicorn waits for a request's head, for a client that does not read, and for the next request
without an end; a few hundred sockets that say nothing would shut everybody out.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sbs_jax.inference.serving.limits import ConnectionLimits

log = logging.getLogger(__name__)

_MAX_HEAD = 64 * 1024
"""Bytes of a request's head; FastAPI needs far fewer."""
_FRAMING = 8
"""A body may come in so many times its bytes: chunks of one byte take six."""
_SECONDS_BETWEEN_LINES = 10.0


class Connections:
    """All connections of a service, those that wait for a request in the order of their waiting.

    Attributes:
      limits: the limits of each connection.
      max_body_bytes: the largest body of a request.
      open: all of them.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        *,
        most: int,
        max_body_bytes: int,
        on_close: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Holds nothing yet.

        Args:
          limits: the limits of each connection.
          most: connections at a time, at most.
          max_body_bytes: the largest body of a request, as in `limits.BodyLimit`.
          on_close: called with the reason for each connection that is closed before its time.
        """
        self.limits = limits
        self.max_body_bytes = max_body_bytes
        self._most = most
        self.open: set[Connection] = set()
        self._waiting: collections.OrderedDict[Connection, None] = collections.OrderedDict()
        self._on_close = on_close
        self._closed: collections.Counter[str] = collections.Counter()
        self._told = -_SECONDS_BETWEEN_LINES
        self._telling: asyncio.TimerHandle | None = None

    def add(self, connection: Connection) -> bool:
        """Takes a new connection; False where there is no room for it."""
        if len(self.open) >= self._most:
            if not self._waiting:
                self.closing("too many requests")
                return False
            longest, _ = self._waiting.popitem(last=False)
            self.open.discard(longest)
            self.closing("too many connections")
            longest.transport.abort()
        self.open.add(connection)
        self.waits(connection)
        return True

    def remove(self, connection: Connection) -> None:
        """Forgets a connection that was lost."""
        self.open.discard(connection)
        self._waiting.pop(connection, None)

    def waits(self, connection: Connection) -> None:
        """The connection has no request under way."""
        if connection in self.open:
            self._waiting[connection] = None

    def works(self, connection: Connection) -> None:
        """The connection has a request under way."""
        self._waiting.pop(connection, None)

    def closing(self, reason: str) -> None:
        """Counts a connection that is closed early; the log reports them in sums."""
        self._on_close(reason)
        self._closed[reason] += 1
        if self._telling is None:
            left = self._told + _SECONDS_BETWEEN_LINES - time.monotonic()
            self._telling = asyncio.get_running_loop().call_later(max(0.0, left), self._tell)

    def _tell(self) -> None:
        self._telling = None
        self._told = time.monotonic()
        summary = ", ".join(f"{count} × {why}" for why, count in self._closed.items())
        log.warning("Connections closed by the service: %s.", summary)
        self._closed.clear()

    def abort(self) -> None:
        """Closes all connections at once; whoever waits for one of them goes on."""
        for connection in list(self.open):
            connection.transport.abort()


class _Flow(FlowControl):
    """uvicorn's flow control, which may be asked to read on after the connection is closed."""

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            super().resume_reading()

    def pause_reading(self) -> None:
        if not self._transport.is_closing():
            super().pause_reading()


class Connection(HttpToolsProtocol):
    """uvicorn's protocol within limits, which also ends in order when its client goes away."""

    def __init__(self, *args: Any, connections: Connections, **options: Any) -> None:
        """Takes uvicorn's own arguments, and the `connections` that it will belong to."""
        super().__init__(*args, **options)
        self._connections = connections
        self._limits = connections.limits
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._running: Any = None
        self._in_head = True
        self._messages = 0
        self._received = 0  # bytes of the stage, head or body, that the last request is in

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio: arms the deadline of the first request."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        if self._connections.add(self):
            self._expect(self._limits.header_seconds)
        else:
            self._refuse(503, b"Too many requests at a time; try again later.")

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio: ends the request under way, which is not always the last one received."""
        self._connections.remove(self)
        self._expect(None)
        self._stop_stalling()
        self.pipeline.clear()
        running, self._running = self._running, None
        super().connection_lost(exc)
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()

    def data_received(self, data: bytes) -> None:
        """See asyncio: bounds what a request may send besides its body."""
        if self.parser is None or self.transport.is_closing():
            return
        before = self._messages, self._in_head
        # How much of a body is read, `limits` decides: it answers 413 and reads on for a while.
        self._body = 0
        super().data_received(data)
        # How much of a piece belongs to a stage that begins in it is not known, nor much.
        same = before == (self._messages, self._in_head)
        self._received = self._received + len(data) - self._body if same else 0
        limit = _MAX_HEAD
        if not self._in_head:
            limit += _FRAMING * max(self._connections.max_body_bytes, _MAX_HEAD)
        if self._received > limit and not self.transport.is_closing():
            self._connections.closing("too long a head" if self._in_head else "too long a body")
            if self._in_head and not self._is_working():
                self._refuse(431, b"The request's head is too long.")
            else:
                self.transport.abort()

    def on_body(self, body: bytes) -> None:
        """See httptools: a piece of a request's body."""
        self._body += len(body)
        super().on_body(body)

    def on_message_begin(self) -> None:
        """See httptools: the first byte of a request."""
        super().on_message_begin()
        self._in_head = True
        self._messages += 1
        if not self._is_working() and self.cycle is not None:
            self._expect(self._limits.header_seconds)

    def on_headers_complete(self) -> None:
        """See httptools: the request gets under way, or behind others."""
        self._in_head = False
        self._expect(None)
        self._connections.works(self)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """See uvicorn: the next request begins, or is waited for."""
        self._running = None
        super().on_response_complete()
        if self._running is None and not self.transport.is_closing():
            self._connections.waits(self)
            self._expect(self._limits.idle_seconds)

    def pause_writing(self) -> None:
        """See asyncio: the client does not read what it asked for."""
        super().pause_writing()
        self._stop_stalling()
        self._stalled = self.loop.call_later(self._limits.write_seconds, self._abort_stalled)

    def resume_writing(self) -> None:
        """See asyncio: the client reads again."""
        super().resume_writing()
        self._stop_stalling()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _is_working(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _expect(self, seconds: float | None) -> None:
        """Sets the time within which a request's head has to be complete; None for no limit."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if seconds is not None:
            self._deadline = self.loop.call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self._is_working():
            self._expect(self._limits.header_seconds)
            return
        if self._messages and self._in_head:
            self._connections.closing("too slow a head")
            self._refuse(408, b"The request's head did not arrive in time.")
        else:
            if self.cycle is None:
                self._connections.closing("no request")
            self.transport.close()

    def _refuse(self, status: int, sentence: bytes) -> None:
        body = b'{"error": "%s"}' % sentence
        self.transport.write(
            b"HTTP/1.1 %d Refused\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%s" % (status, len(body), body)
        )
        self.transport.close()

    def _abort_stalled(self) -> None:
        self._stalled = None
        self._connections.closing("a client that does not read")
        self.transport.abort()

    def _stop_stalling(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
