"""Processes of one run that watch each other: when one dies, the others say so and end.

Without this, a process whose peer died waits in a collective operation, for minutes or for ever,
and the launcher sees nothing to restart. Process 0 holds a connection to every other one; the
system closes it the moment a process ends, however that happens, and TCP's keep-alive finds hosts
that went silent.

Where the address of process 0 is given, the processes meet there before anything slow is imported,
and the coordinator of jax takes the port over afterwards: a process that dies while jax starts is
found out as well. Until then the port is kept, since the system would give it to whoever asks for a
free one. This module needs no jax until `watch`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator

from sbs_jax.errors import UNFINISHED, UserError

_BYE, _DEATH, _ALL = b"b", b"d", b"a"
_INDEX = struct.Struct("!i")
_HELLO = struct.Struct("!8sii")
_MAGIC = b"sbs_jax1"
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # seconds, and probes
PATIENCE = 300.0  # seconds to wait for the others, as jax does
_HELLO_SECONDS = 5.0
SECONDS_BETWEEN_NOTES = 20.0


class Peers:
    """One process's connections to its peers.

    Attributes:
      index: the index of this process.
    """

    def __init__(self, index: int, count: int, on_death: Callable[[int], None]) -> None:
        """Connects nothing yet.

        Args:
          index: the index of this process, from 0.
          count: the number of all processes.
          on_death: called in a thread, with the index of a process that ended without a good-bye.
        """
        self.index = index
        self._count = count
        self._on_death = on_death
        self._connections: dict[int, socket.socket] = {}
        self._all_there = threading.Event()
        self._leaving = False
        self._lock = threading.Lock()

    def listen(self, port: int = 0) -> tuple[socket.socket, int]:
        """Process 0: opens the port that the others connect to; returns it and its number.

        Args:
          port: 0 takes a free one.

        Raises:
          OSError: it is taken.
        """
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(
            ("", port), family=family, backlog=self._count, dualstack_ipv6=both
        )
        return server, server.getsockname()[1]

    def accept(self, server: socket.socket) -> None:
        """Process 0: takes the connections of all others, and tells them that all are there.

        `server` stays open.

        Raises:
          TimeoutError: they did not all come.
          UserError: two processes have the same number, or another count than this one.
        """
        for left in _waiting(self._missing):
            server.settimeout(left)
            with contextlib.suppress(TimeoutError):
                connection, _ = server.accept()
                self._greet(connection)
            if len(self._connections) == self._count - 1:
                break
        self._tell(_ALL)

    def connect(self, host: str, port: int) -> None:
        """The others: connects to process 0.

        Raises:
          OSError: it cannot be reached.
        """
        for left in _waiting(lambda: f"process 0 at {host}:{port}"):
            begun = time.monotonic()
            try:
                connection = socket.create_connection((host, port), timeout=left)
                break
            except OSError:  # not there yet, perhaps
                time.sleep(max(0.0, min(0.2, left) - (time.monotonic() - begun)))
        connection.sendall(_HELLO.pack(_MAGIC, self.index, self._count))
        self._watch(0, connection)

    def await_all(self) -> None:
        """The others: waits until process 0 says that all are there.

        Raises:
          TimeoutError: they did not all come.
        """
        for left in _waiting(lambda: "other processes, which process 0 names"):
            if self._all_there.wait(left):
                return

    def _missing(self) -> str:
        known = {0, *self._connections}
        missing = [str(index) for index in range(self._count) if index not in known]
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        return f"process {', '.join(missing[:8])}{more} of {self._count}"

    def _greet(self, connection: socket.socket) -> None:
        """Takes a connection, if it is one of this run's."""
        connection.settimeout(_HELLO_SECONDS)
        try:
            magic, peer, count = _HELLO.unpack(_receive(connection, _HELLO.size))
        except OSError:
            magic = b""
        if magic != _MAGIC:
            connection.close()  # Somebody who looks for open ports.
            return
        if count != self._count or not 0 < peer < count:
            raise UserError(
                f"Process {peer} was started with --process_count={count}, this one with "
                f"{self._count}; start all with the same."
            )
        if peer in self._connections:
            raise UserError(f"Two processes were started with --process_index={peer}.")
        self._watch(peer, connection)

    def leave(self) -> None:
        """Says good-bye: that this process ends is as it should be."""
        self._leaving = True
        self._tell(_BYE)

    def drop(self) -> None:
        """Closes all connections without a word, as the system does when a process is killed."""
        self._leaving = True
        for connection in self._connections.values():
            connection.shutdown(socket.SHUT_RDWR)

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
            while (word := connection.recv(1)) == _ALL:
                self._all_there.set()
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
        for connection in list(self._connections.values()):
            with contextlib.suppress(OSError):
                connection.sendall(word)


_peers: Peers | None = None
_kept_port: socket.socket | None = None
_stderr = 2


def meet(address: str | None, count: int | None, index: int | None) -> None:
    """Connects this process with the others before jax does; from now on it ends when one dies.

    Does nothing unless all is given and makes sense; `distributed.initialize` says what does not.
    Process 0 keeps the coordinator's port for jax, without listening, until `release_port`.

    Args:
      address: `host:port` of process 0.
      count: the number of processes.
      index: the index of this one.

    Raises:
      UserError: the others do not come, or process 0 cannot listen.
    """
    global _kept_port
    host, _, port = (address or "").rpartition(":")
    if not (host and port.isdecimal()) or count is None or index is None:
        return
    if not 0 <= index < count or count == 1:
        return
    host = host.strip("[]")
    peers = _begin(index, count)
    try:
        if index == 0:
            _kept_port, _ = peers.listen(int(port))
            peers.accept(_kept_port)
            _stop_listening(_kept_port)
        else:
            peers.connect(host, int(port))
            peers.await_all()
    except TimeoutError as error:
        raise UserError(
            f"{error}; start all {count} processes, with the same --coordinator_address, or look "
            "into their logs."
        ) from error
    except OSError as error:
        raise UserError(
            f"--coordinator_address={address}: process 0 cannot listen there "
            f"({error.strerror or error}); choose another port."
        ) from error


def release_port() -> None:
    """Gives up the port that `meet` has kept, if it has: jax's coordinator is about to take it."""
    global _kept_port
    if _kept_port is not None:
        _kept_port.close()
        _kept_port = None


def watch() -> None:
    """Connects this process with the others, if `meet` has not; from now on it ends when one dies.

    Every process calls this after `distributed.initialize`. Where process 0 cannot be reached on a
    port of its own, jax's heartbeats have to do.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if _peers is not None or jax.process_count() == 1:
        return
    peers = _begin(jax.process_index(), jax.process_count())
    server, port = peers.listen() if peers.index == 0 else (None, 0)
    port = int(multihost_utils.broadcast_one_to_all(np.int32(port)))
    try:
        if server is not None:
            with server:
                peers.accept(server)
        else:
            peers.connect(_coordinator_host(), port)
    except OSError as error:
        print(f"Processes cannot watch each other ({error}).", file=sys.stderr)


@contextlib.contextmanager
def saying_what_takes_long(what: str) -> Iterator[None]:
    """Says every now and then that the block is still waiting for `what`."""
    done = threading.Event()

    def say() -> None:
        begun = time.monotonic()
        while not done.wait(SECONDS_BETWEEN_NOTES):
            _say(f"waiting for {what} ({time.monotonic() - begun:.0f} s so far)")

    thread = threading.Thread(target=say, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def _begin(index: int, count: int) -> Peers:
    global _peers, _stderr
    # Others may point standard error elsewhere for a while (TensorFlow's import, for instance).
    _stderr = os.dup(2)
    _peers = Peers(index, count, _end)
    return _peers


def _stop_listening(server: socket.socket) -> None:
    """Refuses connections from now on, and leaves the port taken where the system can do that."""
    try:
        server.shutdown(socket.SHUT_RDWR)
        # Else a program that binds with this option, as most servers do, could take it.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError:  # Linux can.
        release_port()


def _waiting(what: Callable[[], str]) -> Iterator[float]:
    """Yields seconds to wait for, until it is time to say `what` is missing or to give up.

    Raises:
      TimeoutError: it took too long.
    """
    begun = time.monotonic()
    last_note = 0.0
    while (waited := time.monotonic() - begun) < PATIENCE:
        if waited - last_note >= SECONDS_BETWEEN_NOTES:
            last_note = waited
            _say(f"waiting for {what()} ({waited:.0f} s so far, {PATIENCE:.0f} at most)")
        yield min(SECONDS_BETWEEN_NOTES / 4, max(0.01, PATIENCE - waited))
    raise TimeoutError(f"No sign of {what()} within {PATIENCE:.0f} s")


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):
        os.write(_stderr, f"{sentence}\n".encode())


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


def await_news() -> None:
    """Waits 5 s: an error may come of a peer's death, whose report ends this process."""
    if _peers is not None:
        time.sleep(5.0)


def _end(dead: int) -> None:
    # At once: jax's own threads are about to abort this process, with many lines that say less.
    _say(
        f"error: process {dead} of the run has ended before its time (its own log may say why), so "
        "this one ends, too; start all of them again, and the run goes on from its last checkpoint."
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
