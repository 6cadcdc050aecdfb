"""Processes of one run that watch each other: when one dies, the others say so and end.

Without this, a process whose peer died waits in a collective operation, for minutes or for ever,
and the launcher sees nothing to restart. Process 0 holds a connection to every other one; the
system closes it the moment a process ends, however that happens, and TCP's keep-alive finds hosts
that went silent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

from sbs_jax.errors import UNFINISHED

_BYE, _DEATH = b"b", b"d"
_INDEX = struct.Struct("!i")
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # seconds, and probes
_PATIENCE = 60.0  # seconds to connect


class Peers:
    """One process's connections to its peers.

    Attributes:
      index: of this process.
    """

    def __init__(self, index: int, count: int, on_death: Callable[[int], None]) -> None:
        """Connects nothing yet.

        Args:
          index: of this process, from 0.
          count: of all processes.
          on_death: called in a thread, with the index of a process that ended without a good-bye.
        """
        self.index = index
        self._count = count
        self._on_death = on_death
        self._connections: dict[int, socket.socket] = {}
        self._leaving = False
        self._lock = threading.Lock()

    def listen(self) -> tuple[socket.socket, int]:
        """Process 0: opens the port that the others connect to; returns it and its number."""
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(
            ("", 0), family=family, backlog=self._count, dualstack_ipv6=both
        )
        server.settimeout(_PATIENCE)
        return server, server.getsockname()[1]

    def accept(self, server: socket.socket) -> None:
        """Process 0: takes the connections of all others.

        Raises:
          OSError: they did not come.
        """
        with server:
            for _ in range(self._count - 1):
                connection, _ = server.accept()
                connection.settimeout(_PATIENCE)
                (peer,) = _INDEX.unpack(_receive(connection, _INDEX.size))
                self._watch(peer, connection)

    def connect(self, host: str, port: int) -> None:
        """The others: connects to process 0.

        Raises:
          OSError: it cannot be reached.
        """
        connection = socket.create_connection((host, port), timeout=_PATIENCE)
        connection.sendall(_INDEX.pack(self.index))
        self._watch(0, connection)

    def leave(self) -> None:
        """Says good-bye: that this process ends is as it should be."""
        self._leaving = True
        self._tell(_BYE)

    def _watch(self, peer: int, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._connections[peer] = connection
        threading.Thread(
            target=self._listen_to, args=(peer, connection), name=f"peer-{peer}", daemon=True
        ).start()

    def _listen_to(self, peer: int, connection: socket.socket) -> None:
        dead = peer
        try:
            word = connection.recv(1)
            if word == _BYE:
                return
            if word == _DEATH:
                (dead,) = _INDEX.unpack(_receive(connection, _INDEX.size))
        except OSError:
            pass  # As good as closed.
        with self._lock:
            if self._leaving:
                return
            self._leaving = True
        self._tell(_DEATH + _INDEX.pack(dead))
        self._on_death(dead)

    def _tell(self, word: bytes) -> None:
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.sendall(word)


_peers: Peers | None = None


def watch() -> None:
    """Connects this process with the others, if there are any; from now on it ends when one dies.

    Every process calls this after `distributed.initialize`. Where process 0 cannot be reached on a
    port of its own, jax's heartbeats have to do.
    """
    global _peers
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return
    peers = Peers(jax.process_index(), jax.process_count(), _end)
    server, port = peers.listen() if peers.index == 0 else (None, 0)
    port = int(multihost_utils.broadcast_one_to_all(np.int32(port)))
    try:
        if server is not None:
            peers.accept(server)
        else:
            peers.connect(_coordinator_host(), port)
    except OSError as error:
        print(f"Processes cannot watch each other ({error}).", file=sys.stderr)
    _peers = peers


def leave(code: int) -> None:
    """Ends the watch before this process ends with `code`; after a failure, ends it here and now.

    jax would wait minutes for the others at exit, which themselves wait for this one.
    """
    if _peers is None:
        return
    if code in (0, UNFINISHED):  # all of them end so, at the same point
        _peers.leave()
        return
    _flush()
    os._exit(code)


def watching() -> bool:
    """Whether this process watches others."""
    return _peers is not None


def await_news(seconds: float = 5.0) -> None:
    """Waits a little: an error may come of a peer's death, which is told, and ends this process."""
    if _peers is not None:
        time.sleep(seconds)


def _end(dead: int) -> None:
    # At once: jax's own threads are about to abort this process, with many lines that say less.
    os.write(
        2,
        f"error: process {dead} of the run has ended before its time (its own log may say why), so "
        "this one ends, too; start all of them again, and the run goes on from its last "
        "checkpoint.\n".encode(),
    )
    os._exit(1)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _coordinator_host() -> str:
    """The host that jax itself reaches process 0 at."""
    from jax._src import distributed

    address = distributed.global_state.coordinator_address or "localhost:0"
    return address.rsplit(":", 1)[0].strip("[]")


def _receive(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = connection.recv(size - len(found))
        if not more:
            raise ConnectionError("the peer closed the connection")
        found += more
    return found
