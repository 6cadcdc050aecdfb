"""`python -m sbs_jax.serve` as a process: real weights, signals, and a client that lies."""

import contextlib
import http.client
import json
import re
import signal
import threading

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from sbs_jax import serve
from tests import processes
from tests.inference import toy

TIMEOUT = 120


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return toy.write_model_dir(tmp_path_factory.mktemp("student") / "run")


class Process:
    """A service that is ready, and its port."""

    def __init__(self, model_dir, **macros):
        self.process = processes.run(
            "serve",
            "--checkpoint",
            model_dir,
            "--port=0",
            *processes.macros(BATCH_SIZE=4, BATCH_SIZES=[4], **macros),
            wait=False,
        )
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
            if line.startswith("Ready"):
                break
        assert self.process.poll() is None, self.log

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)

    def predict(self, connection, body):
        connection.request(
            "POST", "/predict", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        content = json.loads(response.read())
        return response, content

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, "".join(self.log) + errors


def test_own_flags_are_macros():
    assert serve.as_gin(["--checkpoint", "x", "--host=::", "--port", "0", "--dry_run"]) == [
        "--gin.CHECKPOINT_PATH=x",
        "--gin.HOST=::",
        "--gin.PORT=0",
        "--dry_run",
    ]


@pytest.mark.slow
def test_sigterm_under_load_loses_no_request(model_dir):
    served = Process(model_dir, MAX_WAITING=128, DRAIN_SECONDS=2.0)
    texts = toy.texts(40)
    expected = [prediction.label for prediction in toy.predictor().labels(texts)]
    lost, wrong, answered = [], [], []
    under_way = threading.Barrier(9)

    def client(number):
        with contextlib.closing(served.connect()) as connection:
            for count in range(10_000):
                place = (number * 7 + count) % len(texts)
                try:
                    body = {"inputs": texts[place], "truncate": True, "explain": count % 5 == 0}
                    response, content = served.predict(connection, body)
                except OSError as error:
                    lost.append(error)
                    return
                if count == 3:
                    under_way.wait(TIMEOUT)
                answered.append(response.status)
                if response.status != 200 or content["predictions"][0]["label"] != expected[place]:
                    wrong.append(content)
                if response.headers["connection"] == "close":
                    return  # the service said goodbye

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    under_way.wait(TIMEOUT)
    returncode, log = served.end()
    for thread in threads:
        thread.join(TIMEOUT)
    assert (lost, wrong) == ([], [])
    assert set(answered) == {200}
    assert len(answered) >= 8 * 4
    assert returncode == 0, log
    assert "All requests were answered." in log


def requests(strategy, url):
    """Sends requests; returns the statuses of their answers."""
    statuses = set()

    @given(case=strategy)
    @settings(
        max_examples=80,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case):
        response = case.call(base_url=url)
        statuses.add(response.status_code)
        if response.status_code != 200:
            assert list(response.json()) == ["error"]

    check()
    return statuses


@pytest.mark.slow
def test_random_requests_get_no_5xx(model_dir):
    """What schemathesis makes of the OpenAPI document: broken requests, and ones that fit it."""
    import schemathesis

    served = Process(model_dir, MAX_CANDIDATES=3)
    try:
        url = f"http://127.0.0.1:{served.port}"
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for mode, usual, rare in (("negative", 422, 400), ("positive", 200, 422)):
            mode = schemathesis.GenerationMode(mode)
            statuses = requests(schema["/predict"]["POST"].as_strategy(generation_mode=mode), url)
            assert {usual} <= statuses <= {usual, rare}
    finally:
        returncode, log = served.end()
    assert returncode == 0
    assert "Traceback" not in log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint", "/nowhere"], "/nowhere: no such folder"),
        ([], "CHECKPOINT_PATH"),
        (["--checkpoint=x", "--gin.CANDIDATES=choices"], "needs MAX_CANDIDATES"),
    ],
)
def test_mistakes_are_one_sentence(flags, message):
    process = processes.run("serve", *flags, check=False)
    assert process.returncode == 1
    assert message in process.errors
    assert process.errors.startswith("error: ")
    assert len(process.errors.splitlines()) == 1
