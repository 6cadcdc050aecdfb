"""Clients that hold connections for nothing, and who may ask, over real sockets."""

import concurrent.futures
import contextlib
import http.client
import logging
import re
import socket
import struct
import threading
import time

import pytest

from sbs_jax.errors import UserError
from sbs_jax.inference.serving import server
from sbs_jax.inference.serving.limits import Access, ConnectionLimits
from tests.inference.serving.support import TIMEOUT, FakePredictor, Served

BODY = b'{"inputs": "a"}'
HEAD = (
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
)
REQUEST = HEAD % len(BODY) + b"\r\n" + BODY
QUICK = {"header_seconds": 0.3, "idle_seconds": 0.3, "write_seconds": 0.3, "shutdown_seconds": 1.0}


@pytest.fixture
def serve():
    running = []

    def start(predictor=None, **options):
        options["limits"] = ConnectionLimits(**(QUICK | options.pop("limits", {})))
        running.append(Served(predictor or FakePredictor(), **options).wait_until_ready())
        return running[-1]

    yield start
    for served in running:
        served.predictor.open.set()
        served.stop()


@contextlib.contextmanager
def connected(served, count=1):
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port), TIMEOUT))
            for _ in range(count)
        ]


def closed_connections(served):
    text = served.request("GET", "/metrics")[2].decode()
    found = re.findall(r'sbs_closed_connections_total{reason="([^"]+)"} ([\d.]+)', text)
    return {reason: float(count) for reason, count in found}


def read_all(connection):
    content = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            content += piece
    return content


def test_heads_that_trickle_are_given_up(serve):
    served = serve()
    with connected(served, 20) as sockets:
        for one in sockets:
            one.sendall(b"POST /predict HTTP/1.1\r\nHo")
        begun = time.monotonic()
        alive = set(sockets)
        while alive:
            assert time.monotonic() < begun + 5
            for one in list(alive):
                try:
                    one.sendall(b"s")
                except OSError:
                    alive.discard(one)
            time.sleep(0.05)
    assert closed_connections(served) == {"too slow a head": 20}


def test_the_rest_of_a_body_that_nobody_reads_keeps_no_connection(serve):
    """GET is answered without its body, whose bytes must not count as signs of life."""
    served = serve()
    with connected(served) as (one,):
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            while True:
                assert time.monotonic() < begun + 5
                one.sendall(b"x")
                time.sleep(0.05)


def test_silent_connections_make_room_for_requests(serve, caplog):
    served = serve(limits={"max_connections": 10, "header_seconds": 60.0, "idle_seconds": 60.0})
    with connected(served, 30), caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert served.predict({"inputs": "a"})[0] == 200
    assert closed_connections(served)["too many connections"] >= 20
    served.request("GET", "/metrics")


def test_connections_at_work_are_never_closed_for_others(serve):
    served = serve(limits={"max_connections": 4})
    served.predictor.open.clear()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(served.predict, {"inputs": "a"}) for _ in range(4)]
        while served.service.metrics.text().count(b"sbs_connections 4.0") == 0:
            time.sleep(0.01)
        time.sleep(0.2)  # all of their heads are there
        with connected(served) as (fifth,):
            assert b"503" in read_all(fifth)
        served.predictor.open.set()
        assert [future.result()[0] for future in futures] == [200] * 4


def test_pipelined_requests_and_a_close_leave_no_traceback(serve, caplog):
    served = serve()
    served.predictor.open.clear()
    for number in range(8):
        with connected(served) as (one,):
            one.sendall(REQUEST * 20)
            time.sleep(0.02 * (number % 3))
            if number % 2:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    time.sleep(0.2)
    served.predictor.open.set()
    assert served.predict({"inputs": "a"})[0] == 200
    assert "Traceback" not in caplog.text
    assert caplog.text.count("\n") < 10


def test_pipelined_requests_are_answered_in_order(serve):
    served = serve()
    requests = b""
    for number in range(20):
        body = b'{"inputs": "t%d"}' % number
        requests += HEAD % len(body) + b"\r\n" + body
    with connected(served) as (one,):
        one.sendall(requests)
        content = read_all(one)  # until the connection has been idle for too long
    assert re.findall(rb'"label":"(T\d+)"', content) == [b"T%d" % n for n in range(20)]


def test_clients_that_never_read_do_not_hold_up_the_end(serve):
    served = serve(limits={"write_seconds": 60.0})
    stuck = []
    with connected(served, 3) as sockets:
        for one in sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.settimeout(0.5)

            def fill(one=one):
                # The schema is some kilobytes: the system's buffers are soon full.
                with contextlib.suppress(OSError):
                    while True:
                        one.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 50)

            stuck.append(threading.Thread(target=fill))
            stuck[-1].start()
        for thread in stuck:
            thread.join()
        begun = time.monotonic()
        served.stop()
        assert time.monotonic() - begun < 20  # 60 s without the limit on the end


def test_clients_that_never_read_are_given_up(serve):
    served = serve()
    with connected(served) as (one,):
        one.settimeout(0.5)
        with contextlib.suppress(OSError):
            while True:
                one.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        while not closed_connections(served):
            time.sleep(0.05)
    assert "a client that does not read" in closed_connections(served)


@pytest.mark.parametrize("endless", ["header", "trailer", "url"])
def test_heads_and_trailers_without_an_end(serve, endless):
    served = serve(limits={"header_seconds": 60.0})
    begin = {
        "header": b"POST /predict HTTP/1.1\r\nX: ",
        "url": b"GET /",
        "trailer": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    }[endless]
    with connected(served) as (one,):
        sent = 0
        with contextlib.suppress(OSError):
            one.sendall(begin)
            while sent < 2**26:
                sent += one.send(b"x" * 65536)
        assert sent < 2**26
    assert sum(closed_connections(served).values()) == 1


def test_all_oversized_bodies_see_413(serve):
    served = serve(max_body_bytes=1000)

    def post(number):
        size = 200_000 * (1 + number % 7)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", served.port, TIMEOUT)) as c:
            body = (b"x" * 1000 for _ in range(size // 1000)) if number % 2 else b"x" * size
            c.request("POST", "/predict", body, {"Content-Type": "application/json"})
            return c.getresponse().status

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(post, range(60))) == {413}


def test_a_client_that_goes_away_cancels_its_jobs(serve):
    served = serve(max_waiting=8, max_inputs=4)
    served.predictor.open.clear()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.predict, {"inputs": "a"})
        assert served.predictor.busy.wait(TIMEOUT)
        with connected(served, 4) as sockets:
            for one in sockets:
                one.sendall(REQUEST)
            while served.service.batcher.waiting < 4:
                time.sleep(0.01)
        while served.service.batcher.waiting:
            time.sleep(0.01)
        served.predictor.open.set()
        assert first.result()[0] == 200
    assert served.predict({"inputs": "b"})[0] == 200
    assert sum(served.predictor.sizes) == 2


KEY = "a-key-of-some-length"


def test_the_key_is_wanted_and_healthz_needs_none(serve):
    served = serve(api_key=KEY)
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": KEY}, {"X-API-Key": "ä"}):
        status, answer_headers, answer = served.predict({"inputs": "a"}, **headers)
        assert (status, answer_headers["www-authenticate"]) == (401, "Bearer")
        assert KEY not in str(answer)
        assert served.request("GET", "/metrics", headers=headers)[0] == 401
    for headers in ({"Authorization": f"bearer {KEY}"}, {"X-API-Key": KEY}):
        assert served.predict({"inputs": "a"}, **headers)[0] == 200
    assert served.request("GET", "/healthz")[2] == {
        "status": "ready",
        "model": "",
        "compiled_shapes": 1,
        "shapes": 1,
    }
    for path in ("/docs", "/openapi.json"):
        status, _, content = served.request("GET", path)
        assert status == 200
        assert "fake" not in str(content)


def test_other_hosts_are_refused(serve):
    served = serve(hosts=["localhost", "api.example.org"])
    for host, status in (
        ("localhost", 200),
        (f"LOCALHOST:{served.port}", 200),
        ("api.example.org.:80", 200),
        ("evil.example.org", 421),
        ("localhost.evil.org", 421),
        ("", 421),
    ):
        assert served.predict({"inputs": "a"}, Host=host)[0] == status, host
        assert served.request("GET", "/docs", headers={"Host": host})[0] == status
        assert served.request("GET", "/healthz", headers={"Host": host})[0] == 200


def test_the_hosts_and_the_key_that_a_configuration_means(monkeypatch):
    assert Access().hosts("127.0.0.1") == ["localhost", "127.0.0.1", "::1", "127.0.0.1"]
    assert Access().hosts("0.0.0.0") is None
    assert Access(allowed_hosts=["a"]).hosts("127.0.0.1") == ["a"]
    with pytest.raises(UserError, match="ALLOWED_HOSTS = 'a' must be a list"):
        Access(allowed_hosts="a")
    monkeypatch.setenv("SERVICE_KEY", f" {KEY}\n")
    assert Access("SERVICE_KEY").key() == KEY
    monkeypatch.delenv("SERVICE_KEY")
    with pytest.raises(UserError, match="SERVICE_KEY: this environment variable is not set"):
        Access("SERVICE_KEY").key()
    with pytest.raises(UserError, match="HEADER_SECONDS = 0 must be above 0"):
        ConnectionLimits(header_seconds=0)


def test_the_documentation_loads_nothing_from_elsewhere(serve):
    served = serve()
    status, headers, content = served.request("GET", "/docs")
    page = content.decode()
    assert (status, headers.get_content_type()) == (200, "text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page)
    for expected in ("POST /predict", "GET /healthz", "PredictRequest", "truncate", "413"):
        assert expected in page


def test_more_connections_than_files():
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert server.most_connections(10) == 10
    if hard != resource.RLIM_INFINITY:
        assert server.most_connections(hard) == hard - 64
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
