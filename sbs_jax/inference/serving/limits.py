"""ASGI middleware: bodies are read whole before the application sees them, up to a limit."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_SECONDS = 30.0
"""A body that takes longer to arrive is given up (408)."""


class BodyLimit:
    """Answers 413 to bodies above a limit, and 503 to requests beyond a number at a time.

    So the bodies that are held are bounded in number and size.
    """

    def __init__(
        self, app: App, *, max_bytes: int, max_requests: int, seconds: float = BODY_SECONDS
    ) -> None:
        """Wraps `app`.

        Args:
          app: what gets the requests, each with its whole body.
          max_bytes: of a body.
          max_requests: with bodies, at a time, from their heads to the ends of their answers.
          seconds: for which a body may take to arrive.
        """
        self._app = app
        self._max_bytes = max_bytes
        self._max_requests = max_requests
        self._seconds = seconds
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request; see ASGI."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        if self._requests >= self._max_requests:
            await problem(send, 503, "Too many requests at a time; try again later.", retry_after=1)
            return
        self._requests += 1
        try:
            await self._limited(scope, receive, send)
        finally:
            self._requests -= 1

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max_bytes:
            await self._too_large(send)
            return
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._max_bytes:
                        await self._too_large(send)
                        return
        except TimeoutError:
            await problem(send, 408, f"The body did not arrive within {self._seconds:g} s.")
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()  # http.disconnect, when it comes
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, replay, send)

    async def _too_large(self, send: Send) -> None:
        limit = f"{self._max_bytes:,} bytes"
        await problem(send, 413, f"The body is larger than {limit}; send fewer or shorter inputs.")


class Observe:
    """Tells a function about every answer: path (of `paths`, else `other`), status and seconds."""

    def __init__(
        self, app: App, *, paths: frozenset[str], tell: Callable[[str, int, float], None]
    ) -> None:
        """Wraps `app`."""
        self._app, self._paths, self._tell = app, paths, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request; see ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.monotonic()
        # A path of the client's own would make a new time series each.
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._tell(path, message["status"], time.monotonic() - begin)
            await send(message)

        await self._app(scope, receive, send_on)


async def problem(send: Send, status: int, sentence: str, retry_after: int | None = None) -> None:
    """Sends an error, and lets the connection be closed: there may be more of a body to come."""
    body = json.dumps({"error": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
