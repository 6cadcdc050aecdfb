"""The HTTP face over real sockets, in front of a model that does as it is told."""

import concurrent.futures
import contextlib
import itertools
import socket
import threading

import pytest

from sbs_jax.errors import UserError
from sbs_jax.inference.prompting import Prompting
from sbs_jax.inference.serving import server
from sbs_jax.inference.serving.limits import RequestLimits
from tests.inference.serving.support import TIMEOUT, FakePredictor, Served


@pytest.fixture
def serve():
    running = []

    def start(predictor=None, **options):
        running.append(Served(predictor or FakePredictor(), **options))
        served = running[-1]
        if served.predictor.warm.is_set():
            served.wait_until_ready()
        return served

    yield start
    for served in running:
        served.predictor.open.set()
        served.predictor.warm.set()
        served.stop()


def labels(answer):
    return [prediction["label"] for prediction in answer["predictions"]]


def test_one_input_and_many(serve):
    served = serve()
    status, _, answer = served.predict({"inputs": "abc"})
    assert (status, answer) == (
        200,
        {
            "model": "fake (step 3)",
            "predictions": [
                {
                    "label": "ABC",
                    "confidence": 1.0,
                    "scores": None,
                    "rationale": None,
                    "truncated": False,
                }
            ],
        },
    )
    many = ["a", {"input": "b", "rationale": "r"}, {"input": "c", "candidates": ["y", "n"]}]
    status, _, answer = served.predict({"inputs": many, "explain": True})
    assert status == 200
    assert labels(answer) == ["A", "BR", "y"]
    assert [one["rationale"] for one in answer["predictions"]] == [
        f"because of {text}" for text in "abc"
    ]
    assert answer["predictions"][2]["scores"] == {"y": 0.5, "n": 0.5}
    _, _, answer = served.predict({"inputs": ["a", "b"], "candidates": ["yes", "no"]})
    assert labels(answer) == ["yes", "yes"]


LONG = "w " * 9


@pytest.fixture(scope="module")
def small():
    served = Served(FakePredictor(), max_inputs=4).wait_until_ready()
    yield served
    served.stop()


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 422, "body"),
        (b"{", 422, "The body is no JSON."),
        (b'{"inputs": "\xff"}', 400, "error parsing the body"),
        (b'{"inputs": ' + b"[" * 100_000, 400, "error parsing the body"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", 400, "error parsing the body"),
        ([], 422, "The body is no JSON object"),
        ({}, 422, "inputs: Field required"),
        ({"inputs": ""}, 422, "inputs: String should have at least 1 character"),
        ({"inputs": []}, 422, "inputs: "),
        ({"inputs": ["a"] * 5}, 422, "at most 4 items"),
        ({"inputs": ["a", 1]}, 422, "inputs.1: "),
        ({"inputs": "a", "explain": "yes"}, 422, "explain: Input should be a valid boolean"),
        ({"inputs": "a", "expl\ud800in": True}, 422, "valid string"),
        ({"inputs": [{"input": "a", "x": 1}]}, 422, "inputs.0.x: Extra inputs"),
        (b'{"inputs": NaN}', 422, "inputs: "),
        (b'{"inputs": "\\ud800"}', 422, "inputs: "),
        ({"inputs": "x" * 200}, 422, "at most 128 characters"),
        ({"inputs": ["a", LONG]}, 422, "inputs[1]: The input has more tokens than 8"),
        ({"inputs": "a", "candidates": ["y"]}, 422, "candidates: List should have at least 2"),
        ({"inputs": "a", "candidates": ["y", "y"]}, 422, "is there twice"),
        ({"inputs": "a", "candidates": list("abcde")}, 422, "at most 4 items"),
    ],
)
def test_malformed_requests_are_told_what_is_wrong(small, body, status, sentence):
    found, _, answer = small.predict(body)
    assert list(answer) == ["error"]
    assert sentence in answer["error"]
    assert found == status
    assert len(answer["error"]) < 600


def test_a_key_of_an_input_in_the_wrong_place_is_named_once(small):
    _, _, answer = small.predict({"inputs": ["a"], "rationale": "r"})
    assert answer["error"] == "rationale: Extra inputs are not permitted."


def test_other_methods_paths_and_types(serve):
    served = serve()
    assert served.request("GET", "/predict")[0] == 405
    assert served.request("POST", "/nowhere")[0] == 404
    status, _, answer = served.request("POST", "/predict", b'{"inputs": "a"}')
    assert (status, "Content-Type" in answer["error"]) == (422, True)
    assert served.request("GET", "/openapi.json")[2]["info"]["title"] == "sbs_jax"
    assert served.request("GET", "/docs")[0] == 200


def test_long_inputs_are_cut_if_asked_for(serve):
    status, _, answer = serve().predict({"inputs": LONG, "truncate": True})
    assert status == 200
    assert answer["predictions"][0]["truncated"] is True


def test_a_service_without_candidates_of_requests_own(serve):
    status, _, answer = serve(max_candidates=0).predict({"inputs": "a", "candidates": ["y", "n"]})
    assert status == 422
    assert "takes no candidates" in answer["error"]


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_refused_before_they_are_held(serve, chunked):
    served = serve(max_body_bytes=1000)
    body = b'{"inputs": "' + b"x" * 5000 + b'"}'
    if chunked:
        pieces = [body[start : start + 100] for start in range(0, len(body), 100)]
        status, headers, answer = served.request("POST", "/predict", iter(pieces))
    else:
        status, headers, answer = served.predict(body)
    assert status == 413
    assert headers["connection"] == "close"
    assert "larger than 1,000 bytes" in answer["error"]
    assert served.predict({"inputs": "a"})[0] == 200


def test_requests_that_never_finish_their_bodies_are_few(serve):
    """With MAX_WAITING = 2 and batches of 4 rows, 8 requests are under way at most."""
    served = serve(max_waiting=2, max_inputs=1)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n"
    with contextlib.ExitStack() as stack:
        slow = []
        for _ in range(8):
            slow.append(socket.create_connection(("127.0.0.1", served.port), TIMEOUT))
            stack.enter_context(slow[-1]).sendall(head)
        # The eight are all seen when the ninth is refused.
        while (found := served.predict({"inputs": "a"}))[0] == 200:
            pass
        assert (found[0], found[1]["retry-after"]) == (503, "1")
        assert served.request("GET", "/healthz")[0] == 200
    while served.predict({"inputs": "a"})[0] == 503:
        pass


def test_not_ready_until_warm(serve):
    predictor = FakePredictor()
    predictor.warm.clear()
    served = serve(predictor)
    assert served.request("GET", "/healthz")[::2] == (
        503,
        {"status": "warming up", "model": "fake (step 3)", "compiled_shapes": 0, "shapes": 0},
    )
    status, headers, answer = served.predict({"inputs": "a"})
    assert (status, headers["retry-after"]) == (503, "1")
    assert "not ready: warming up" in answer["error"]
    predictor.warm.set()
    served.wait_until_ready()
    assert served.predict({"inputs": "a"})[0] == 200


def test_overload_is_refused_at_once_and_the_queue_is_bounded(serve):
    served = serve(max_waiting=8, max_inputs=4)
    predictor = served.predictor
    predictor.open.clear()
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        first = pool.submit(served.predict, {"inputs": "a"})
        assert predictor.busy.wait(TIMEOUT)
        # Fewer than may be under way at a time, so that it is the queue that refuses.
        futures = [pool.submit(served.predict, {"inputs": ["b", "c"]}) for _ in range(16)]
        # The model hangs: whoever is answered now was refused.
        answered = concurrent.futures.as_completed(futures, timeout=TIMEOUT)
        for future in itertools.islice(answered, 12):
            status, headers, answer = future.result()
            assert status == 503
            assert int(headers["retry-after"]) >= 1
            assert "queue is full" in answer["error"]
            assert served.service.batcher.waiting <= 8
        # Meanwhile the event loop is free.
        assert served.request("GET", "/healthz")[0] == 200
        text = served.request("GET", "/metrics")[2].decode()
        assert "sbs_waiting_jobs 8.0" in text
        assert "sbs_rejected_inputs_total 24.0" in text
        predictor.open.set()
        assert first.result()[0] == 200
        assert sorted(future.result()[0] for future in futures) == [200] * 4 + [503] * 12
    assert max(predictor.sizes) <= 4


def test_requests_under_way_are_answered_at_the_end(serve):
    served = serve()
    predictor = served.predictor
    predictor.open.clear()
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        futures = [pool.submit(served.predict, {"inputs": f"t{n}"}) for n in range(8)]
        assert predictor.busy.wait(TIMEOUT)
        while served.service.batcher.waiting + 1 < 8 - 3:  # up to 4 run already
            pass
        stopping = threading.Thread(target=served.stop)
        stopping.start()
        predictor.open.set()
        assert sorted(labels(future.result()[2])[0] for future in futures) == [
            f"T{n}" for n in range(8)
        ]
        stopping.join(TIMEOUT)


def test_a_failing_batch_is_a_500_and_the_service_goes_on(serve):
    served = serve()
    status, _, answer = served.predict({"inputs": "fail"})
    assert (status, answer) == (500, {"error": "The service failed; its log says why."})
    assert served.predict({"inputs": "a"})[0] == 200


def test_metrics_tell_what_happened(serve):
    served = serve()
    served.predict({"inputs": ["a", "b"]})
    served.predict({})
    served.request("GET", "/some/path")
    status, headers, text = served.request("GET", "/metrics")
    assert status == 200
    assert headers.get_content_type() == "text/plain"
    lines = text.decode().splitlines()
    for line in (
        'sbs_requests_total{path="/predict",status="200"} 1.0',
        'sbs_requests_total{path="/predict",status="422"} 1.0',
        'sbs_requests_total{path="other",status="404"} 1.0',
        "sbs_inputs_total 2.0",
        'sbs_batch_rows_sum{kind="label"} 2.0',
        "sbs_waiting_jobs 0.0",
        "sbs_ready 1.0",
    ):
        assert line in lines


def test_limits_that_contradict_each_other():
    with pytest.raises(UserError, match="MAX_WAITING = 8 must be at least twice MAX_INPUTS = 5"):
        RequestLimits(max_waiting=8, max_inputs=5)


def test_a_port_that_is_taken():
    listener = server.listen("127.0.0.1", 0)
    listener.listen()
    with pytest.raises(UserError, match="cannot listen there"):
        server.listen("127.0.0.1", server.port(listener))
    listener.close()
    with pytest.raises(UserError, match="PORT = 99999: cannot listen there"):
        server.listen("127.0.0.1", 99999)


def test_a_cascaded_student_answers_in_two_stages(serve):
    predictor = FakePredictor()
    predictor.prompting = Prompting(
        method="cascaded", parts={"label": {"reads": "{input} {rationale}"}, "rationale": {}}
    )
    served = serve(predictor)
    # The label reads what the student has written, not what the client gives.
    status, _, answer = served.predict({"inputs": ["a", {"input": "b", "rationale": "r"}]})
    assert status == 200
    assert labels(answer) == ["ABECAUSE OF A", "BBECAUSE OF B"]
    assert [one["rationale"] for one in answer["predictions"]] == [None, None]
    _, _, answer = served.predict({"inputs": "c", "explain": True})
    assert [one["rationale"] for one in answer["predictions"]] == ["because of c"]
