"""A service in a thread with a real socket, and a model that does as it is told."""

import contextlib
import http.client
import json
import threading
import time
from types import SimpleNamespace

import uvloop

from sbs_jax.errors import UserError
from sbs_jax.inference.prompting import Prompting
from sbs_jax.inference.serving import server
from sbs_jax.inference.serving.limits import RequestLimits
from sbs_jax.inference.serving.service import Service
from sbs_jax.inference.warming import WarmUp

TIMEOUT = 60


class FakePredictor:
    """Answers `text` with `TEXT`; waits for `open` before each batch and before it is warm."""

    name = "fake (step 3)"
    input_length = 8
    row_counts = (4,)
    prompting = Prompting()
    closed_set = None

    def __init__(self):
        self.open, self.busy, self.warm = (threading.Event() for _ in range(3))
        self.open.set()
        self.warm.set()
        self.sizes = []

    def warm_up(self):
        while not self.warm.wait(0.01):
            yield WarmUp(0, 0, answers=False)
        yield WarmUp(1, 1, answers=True)

    def ask_label(self, text, candidates=None, *, rationale=""):
        if candidates is not None and len(set(candidates)) < len(candidates):
            raise UserError("The candidate label is there twice.")
        own = None if candidates is None else SimpleNamespace(texts=tuple(candidates))
        long = len(text.split()) > self.input_length
        return SimpleNamespace(kind="label", text=text + rationale, candidates=own, truncated=long)

    def ask_rationale(self, text, *, sample=0):
        return SimpleNamespace(kind="rationale", text=text, candidates=None, truncated=False)

    def group(self, query):
        return SimpleNamespaceGroup(query.kind, query.candidates is not None)

    def stream(self, queries, more, *, num_best=1):
        self.busy.set()
        assert self.open.wait(TIMEOUT)
        self.sizes.append(len(queries))
        yield list(enumerate(self._answer(query, num_best) for query in queries))

    def _answer(self, query, num_best):
        if query.text == "fail":
            raise RuntimeError("out of memory")
        if query.kind == "rationale":
            return SimpleNamespace(text=f"because of {query.text}", truncated=False)
        labels = query.candidates.texts if query.candidates else (query.text.upper(),)
        pairs = tuple((label, 1 / len(labels)) for label in labels)[:num_best]
        return SimpleNamespace(
            label=pairs[0][0],
            confidence=pairs[0][1],
            alternatives=pairs,
            rationale=None,
            truncated=query.truncated,
        )


class SimpleNamespaceGroup(tuple):
    """A group with a kind, as the predictor's."""

    def __new__(cls, kind, own):
        return super().__new__(cls, (kind, own))

    @property
    def kind(self):
        return self[0]


class Served:
    """A running service and its port."""

    def __init__(self, predictor, *, limits=None, api_key=None, hosts=None, **options):
        self.predictor = predictor
        self.service = Service(predictor, RequestLimits(**({"max_candidates": 4} | options)))
        self._listener = server.listen("127.0.0.1", 0)
        self.port = server.port(self._listener)
        self._server = server.make_server(
            self.service, drain_seconds=0.0, limits=limits, api_key=api_key, hosts=hosts
        )
        self._thread = threading.Thread(target=self._run)
        self.service.start()
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.001)

    def wait_until_ready(self):
        while self.request("GET", "/healthz")[0] != 200:
            time.sleep(0.001)
        return self

    def _run(self):
        # On uvloop, as the program: its transports are stricter than asyncio's.
        uvloop.run(self._server.serve(sockets=[self._listener]))

    def stop(self):
        self._server.should_exit = True
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        self.service.close()

    def request(self, method, path, body=None, headers=None):
        """Returns status, headers and the body (parsed if it is JSON)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            content = response.read()
            if response.headers.get_content_type() == "application/json":
                content = json.loads(content)
            return response.status, response.headers, content

    def predict(self, body, **headers):
        """Posts `body`, JSON unless it is bytes."""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request(
            "POST", "/predict", body, {"Content-Type": "application/json"} | headers
        )
