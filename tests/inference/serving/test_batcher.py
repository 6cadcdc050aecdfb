"""The queue in front of the model; nothing here waits for a clock."""

import threading

import pytest

from sbs_jax.inference.serving.batcher import Batcher, ClosedError, FullError

TIMEOUT = 60


class Model:
    """Answers jobs with their double once `open` is set; remembers its batches.

    With `joins` it lets so many jobs join a batch after its first answers.
    """

    def __init__(self):
        self.open, self.busy = threading.Event(), threading.Event()
        self.batches = []
        self.joins = 0

    def __call__(self, jobs, more):
        self.busy.set()
        assert self.open.wait(TIMEOUT)
        self.batches.append(jobs)
        if "bad" in jobs:
            raise ValueError("bad")
        yield [(number, job * 2) for number, job in enumerate(jobs)]
        if self.joins:
            joined = more(self.joins)
            self.batches.append(joined)
            yield [(len(jobs) + number, job * 2) for number, job in enumerate(joined)]


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def make(model):
    made = []

    def start(**options):
        options = {"max_rows": 4, "max_waiting": 10, "max_delay": 0.0} | options
        made.append(Batcher(model, **options))
        made[-1].start()
        return made[-1]

    yield start
    model.open.set()
    for batcher in made:
        batcher.close()


def results(futures):
    return [future.result(TIMEOUT) for future in futures]


def occupy(batcher, model):
    """Lets the model hang on to one job."""
    (future,) = batcher.submit([("a", 0)])
    assert model.busy.wait(TIMEOUT)
    return future


def test_what_gathers_while_the_model_works_is_answered_together(make, model):
    batcher = make()
    first = occupy(batcher, model)
    futures = batcher.submit([("a", n) for n in range(1, 7)])
    assert batcher.waiting == 6
    model.open.set()
    assert results([first, *futures]) == [0, 2, 4, 6, 8, 10, 12]
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_groups_are_not_mixed_and_the_oldest_comes_first(make, model):
    batcher = make()
    first = occupy(batcher, model)
    futures = batcher.submit([("b", 1), ("a", 2), ("b", 3)])
    futures += batcher.submit([("a", 4)])
    model.open.set()
    assert results([first, *futures]) == [0, 2, 4, 6, 8]
    assert model.batches == [[0], [1, 3], [2, 4]]


def test_jobs_of_the_group_join_a_batch_that_runs_unless_another_waits_longer(make, model):
    batcher = make()
    model.joins = 2
    first = occupy(batcher, model)
    futures = batcher.submit([("a", 1), ("a", 2), ("b", 3), ("a", 4), ("a", 5)])
    model.open.set()
    assert results([first, *futures]) == [0, 2, 4, 6, 8, 10]
    assert model.batches[:2] == [[0], [1, 2]]
    assert [3] in model.batches
    assert batcher.waiting == 0


def test_a_batch_that_is_not_full_waits_for_company(make, model):
    batcher = make(max_delay=TIMEOUT)
    model.open.set()
    futures = batcher.submit([("a", 1)])
    futures += batcher.submit([("a", n) for n in (2, 3, 4)])  # full: nobody waits any longer
    assert results(futures) == [2, 4, 6, 8]
    assert model.batches == [[1, 2, 3, 4]]


def test_the_queue_is_bounded_and_takes_all_of_a_request_or_nothing(make, model):
    batcher = make()
    occupy(batcher, model)
    batcher.submit([("a", n) for n in range(8)])
    with pytest.raises(FullError) as error:
        batcher.submit([("a", n) for n in range(3)])
    assert error.value.retry_after >= 1
    assert batcher.waiting == 8
    batcher.submit([("a", n) for n in range(2)])
    with pytest.raises(FullError):
        batcher.submit([("a", 1)])
    model.open.set()


def test_a_batch_that_fails_fails_alone(make, model):
    batcher = make()
    model.open.set()
    (bad,) = batcher.submit([("a", "bad")])
    with pytest.raises(ValueError, match="bad"):
        bad.result(TIMEOUT)
    assert results(batcher.submit([("a", 1)])) == [2]
    assert batcher.is_alive


def test_cancelled_jobs_are_not_run(make, model):
    batcher = make()
    first = occupy(batcher, model)
    one, two = batcher.submit([("a", 1), ("a", 2)])
    assert one.cancel()
    model.open.set()
    assert results([first, two]) == [0, 4]
    assert model.batches == [[0], [2]]


def test_closing_answers_what_waits_and_takes_nothing_more(make, model):
    batcher = make(max_delay=TIMEOUT)
    futures = batcher.submit([("a", 1)])
    model.open.set()
    batcher.close()
    assert results(futures) == [2]
    assert not batcher.is_alive
    with pytest.raises(ClosedError):
        batcher.submit([("a", 1)])


def test_batches_are_told(make, model):
    told = []
    batcher = make(on_batch=told.append)
    model.open.set()
    assert results(batcher.submit([("a", 1)])) == [2]
    batcher.close()
    (batch,) = told
    assert (batch.group, batch.size) == ("a", 1)
    assert batch.seconds >= 0
    assert batch.waited >= 0
