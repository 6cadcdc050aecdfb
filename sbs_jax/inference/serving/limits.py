"""ASGI middleware: who may ask, and how large a body may be before the application sees it."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import json
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from sbs_jax.errors import UserError, require_at_least

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_SECONDS = 30.0
"""A body that takes longer to arrive is given up (408)."""
_LINGER_SECONDS = 5.0
_LINGER_BYTES = 64 * 2**20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
TRUSTED = "sbs_jax.trusted"
"""A key of the ASGI scope: whether `Guard` would let the request ask anything."""


@dataclasses.dataclass(frozen=True)
class RequestLimits:
    """What a request may ask, and how many may wait; gin/runs/serve.gin binds it.

    Attributes:
      max_waiting: the most queries in the queue: a label is one, its explanation another. Beyond
        it, requests get 503.
      max_inputs: the most inputs of a request.
      max_body_bytes: the largest body; beyond it, requests get 413.
      max_candidates: the most labels of a request's own label set; 0: requests bring none.
      max_candidate_length: the most tokens of such a label, EOS included.
      max_delay_ms: milliseconds for which a batch that is not full waits for further requests.

    Raises:
      UserError: a value is out of its range, or a request with `max_inputs` explained inputs would
        never fit into the queue.
    """

    max_waiting: int = 256
    max_inputs: int = 64
    max_body_bytes: int = 1_000_000
    max_candidates: int = 0
    max_candidate_length: int = 16
    max_delay_ms: float = 2.0

    def __post_init__(self) -> None:
        if self.max_inputs < 1 or self.max_waiting < 2 * self.max_inputs:
            raise UserError(
                f"MAX_WAITING = {self.max_waiting} must be at least twice MAX_INPUTS = "
                f"{self.max_inputs}, so that a request with so many inputs, explained, fits into "
                "the queue."
            )
        if self.max_candidates == 1 or self.max_candidates < 0:
            raise UserError(f"MAX_CANDIDATES = {self.max_candidates} must be 0, or at least 2.")
        require_at_least(0, MAX_DELAY_MS=self.max_delay_ms)

    @property
    def own_shape(self) -> tuple[int, int] | None:
        """How many labels a request's own label set may have, and of how many tokens."""
        return (self.max_candidates, self.max_candidate_length) if self.max_candidates else None


@dataclasses.dataclass(frozen=True)
class ConnectionLimits:
    """What a connection may do; gin/runs/serve.gin binds it.

    Attributes:
      max_connections: connections at a time. Beyond them, the one that has waited longest without
        a request is closed; if all have one, the new connection gets 503.
      header_seconds: from the first byte of a request (of the first one: from connecting) to the
        end of its head.
      idle_seconds: from an answer to the next request's head.
      write_seconds: for which a client may not read while an answer waits to be sent.
      shutdown_seconds: from the end of draining to the end of the process, at most.
    """

    max_connections: int = 1000
    header_seconds: float = 10.0
    idle_seconds: float = 30.0
    write_seconds: float = 20.0
    shutdown_seconds: float = 20.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value <= 0:
                raise UserError(f"{field.name.upper()} = {value} must be above 0.")


@dataclasses.dataclass(frozen=True)
class Access:
    """Who may ask; gin/runs/serve.gin binds it.

    Attributes:
      api_key_env: the name of the environment variable that holds the key that clients have to
        bring; None for no key.
      allowed_hosts: names that clients may know the service by, ports left out. None for those of
        this machine itself where the service listens on loopback, and for any elsewhere.
    """

    api_key_env: str | None = None
    allowed_hosts: Sequence[str] | None = None

    def __post_init__(self) -> None:
        hosts = self.allowed_hosts
        if hosts is not None and (isinstance(hosts, str) or not all(hosts) or not hosts):
            raise UserError(f"ALLOWED_HOSTS = {hosts!r} must be a list of names, or None.")

    def key(self) -> str | None:
        """Reads the key from the environment; None where none is wanted.

        Raises:
          UserError: the variable is not set.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise UserError(
                f"--api_key_env={self.api_key_env}: this environment variable is not set; put the "
                "key that clients have to bring into it."
            )
        return key

    def hosts(self, listening_on: str) -> Sequence[str] | None:
        """Returns the names in force for a service that listens on an address; None for any."""
        if self.allowed_hosts is not None:
            return self.allowed_hosts
        name = _host_name(listening_on)
        return [*_LOOPBACK, name] if name in _LOOPBACK or name.startswith("127.") else None


class BodyLimit:
    """Answers 413 to bodies above a limit, and 503 to requests beyond a number at a time.

    So the bodies that are held are bounded in number and size.
    """

    def __init__(
        self, app: App, *, max_bytes: int, max_requests: int, seconds: float = BODY_SECONDS
    ) -> None:
        """Wraps `app`.

        Args:
          app: the application that gets the requests, each with its whole body.
          max_bytes: the largest size of a body.
          max_requests: with bodies, at a time, from their heads to the ends of their answers.
          seconds: seconds that a body may take to arrive.
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
            # At once, body or not: whoever lingers here holds what there is too little of.
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
            await self._too_large(receive, send)
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
                        await self._too_large(receive, send)
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

    async def _too_large(self, receive: Receive, send: Send) -> None:
        limit = f"{self._max_bytes:,} bytes"
        sentence = f"The body is larger than {limit}; send fewer or shorter inputs."
        await problem(send, 413, sentence, rest=receive)


class Guard:
    """Answers 421 to requests for other hosts, and 401 to requests without the key.

    A page of another site that has its own name point to this machine (DNS rebinding) asks for its
    own host, not for this one.
    """

    def __init__(
        self,
        app: App,
        *,
        hosts: Sequence[str] | None,
        api_key: str | None,
        probe: str,
        keyless: frozenset[str],
    ) -> None:
        """Wraps `app`.

        Args:
          app: the application that gets the requests that may ask.
          hosts: names that clients may know this service by, without ports; None allows any.
          api_key: what they have to bring as `Authorization: Bearer KEY` or `X-API-Key: KEY`;
            None for nothing.
          probe: a path that any client may request under any host name; the scope's `TRUSTED` holds
            whether it might request the other paths, too.
          keyless: paths that need no key.
        """
        self._app = app
        self._hosts = None if hosts is None else frozenset(map(_host_name, hosts))
        self._digest = None if api_key is None else _digest(api_key.encode())
        self._probe, self._keyless = probe, keyless

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request; see ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        host, key = self._host_and_key(scope)
        known = self._hosts is None or host in self._hosts
        allowed = self._digest is None or (
            key is not None and hmac.compare_digest(_digest(key), self._digest)
        )
        path = scope["path"]
        scope[TRUSTED] = known and allowed
        if scope[TRUSTED] or path == self._probe or (known and path in self._keyless):
            await self._app(scope, receive, send)
        elif not known:
            sentence = (
                "This service does not go by that Host; its operator can allow it with "
                "ALLOWED_HOSTS."
            )
            await problem(send, 421, sentence, rest=receive)
        else:
            sentence = "This service wants its key: Authorization: Bearer KEY."
            challenge = [(b"www-authenticate", b"Bearer")]
            await problem(send, 401, sentence, rest=receive, headers=challenge)

    def _host_and_key(self, scope: Scope) -> tuple[str, bytes | None]:
        host, key = "", None
        for name, value in scope["headers"]:
            if name == b"host":
                host = _host_name(value.decode("latin-1"))
            elif name == b"authorization" and value[:7].lower() == b"bearer ":
                key = value[7:].strip()
            elif name == b"x-api-key" and key is None:
                key = value.strip()
        return host, key


def _host_name(text: str) -> str:
    """The host of `host:port`, in lower case.

    >>> _host_name("Example.org:8000"), _host_name("[::1]:80"), _host_name("::1")
    ('example.org', '::1', '::1')
    """
    text = text.strip().lower().rstrip(".")
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text if text.count(":") > 1 else text.partition(":")[0].rstrip(".")


def _digest(key: bytes) -> bytes:
    # Of one length, so that not even that can be found out from the time of a comparison.
    return hashlib.sha256(key).digest()


class Observe:
    """Calls a function for every answer: path (one of `paths`, or `other`), status, seconds."""

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


async def problem(
    send: Send,
    status: int,
    sentence: str,
    *,
    retry_after: int | None = None,
    rest: Receive | None = None,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Sends an error and closes the connection, because the rest of a body may still arrive.

    Args:
      send: ASGI's.
      status: the status of HTTP.
      sentence: says what is wrong.
      retry_after: seconds after which to try again.
      rest: ASGI's `receive`. What the client still sends is read and dropped, for a while, before
        the connection is closed. Else the system would reset it while the client is sending, and
        the client might never see the answer.
      headers: further ones.
    """
    body = json.dumps({"error": sentence}).encode()
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *headers,
    ]
    if retry_after is not None:
        head.append((b"retry-after", str(retry_after).encode()))
    await send({"type": "http.response.start", "status": status, "headers": head})
    if rest is None:
        await send({"type": "http.response.body", "body": body})
        return
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await _drop(rest)
    await send({"type": "http.response.body", "body": b""})


async def _drop(receive: Receive) -> None:
    """Reads what is left of a body, up to a time and a size."""
    size, more = 0, True
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while more and size <= _LINGER_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        return
