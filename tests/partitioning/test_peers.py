import signal
import subprocess
import sys
import threading
import time

import pytest

from sbs_jax.checkpoints import folders
from sbs_jax.partitioning.peers import Peers
from tests import processes

COUNT = 3


@pytest.fixture
def connected():
    """Three processes' peers, in one process, and what each heard of deaths."""
    heard = [[] for _ in range(COUNT)]
    made = [Peers(index, COUNT, heard[index].append) for index in range(COUNT)]
    server, port = made[0].listen()
    accepting = threading.Thread(target=made[0].accept, args=(server,))
    accepting.start()
    for peers in made[1:]:
        peers.connect("localhost", port)
    accepting.join()
    yield made, heard
    for peers in made:
        peers.leave()


def close(peers):
    """What the system does when a process ends."""
    for connection in peers._connections.values():
        connection.shutdown(2)


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_hear_who_died(connected):
    made, heard = connected
    made[1]._leaving = True  # It is dead: it hears nothing any more.
    close(made[1])
    wait_for(lambda: heard[0] and heard[2])
    assert heard == [[1], [], [1]]


def test_all_hear_that_process_0_died(connected):
    made, heard = connected
    made[0]._leaving = True
    close(made[0])
    wait_for(lambda: heard[1] and heard[2])
    assert heard == [[], [0], [0]]


def test_a_good_bye_is_no_death(connected):
    made, heard = connected
    made[1].leave()
    close(made[1])
    made[2].leave()
    close(made[2])
    time.sleep(0.2)
    assert heard == [[], [], []]


def test_who_leaves_hears_no_more(connected):
    made, heard = connected
    made[0].leave()
    for peers in made[1:]:
        close(peers)
    time.sleep(0.2)
    assert heard == [[], [], []]


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.slow
def test_a_killed_process_ends_the_other_within_a_minute_and_the_run_goes_on(tmp_path, victim):
    (tmp_path / "tiny.gin").write_text(processes.TINY.replace("svamp", "arithmetic"))
    folder = tmp_path / "model"

    def start(steps):
        address = f"localhost:{processes.free_port()}"
        return [
            processes.run(
                "train",
                f"--gin_file={tmp_path / 'tiny.gin'}",
                *processes.macros(
                    MODEL_DIR=folder,
                    TRAIN_STEPS=steps,
                    BATCH_SIZE=4,
                    TRAIN_PROBLEMS=64,
                    EVAL_SPLITS="()",
                    CHECKPOINT_PERIOD=2,
                    LOG_PERIOD=1,
                ),
                f"--coordinator_address={address}",
                "--process_count=2",
                f"--process_index={index}",
                wait=False,
            )
            for index in range(2)
        ]

    pair = start(100_000)
    wait_for_checkpoint(folder, pair)
    pair[victim].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    other = pair[1 - victim]
    _, errors = other.communicate(timeout=120)
    assert time.monotonic() - begun < 60
    assert other.returncode not in (0, None)
    assert f"error: process {victim} of the run has ended before its time" in errors
    assert "Traceback" not in errors
    pair[victim].communicate()
    step = folders.read_info(folders.find_checkpoint(folder))["step"]
    for process in (again := start(step + 2)):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    del again
    assert folders.read_info(folders.find_checkpoint(folder))["step"] == step + 2


def wait_for_checkpoint(folder, pair):
    deadline = time.monotonic() + 300
    while not folders.complete_checkpoints(folder):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in pair)
        time.sleep(0.05)


def test_nothing_happens_in_a_run_of_one_process():
    program = (
        "from sbs_jax.partitioning import peers\n"
        "peers.watch()\n"
        "assert not peers.watching()\n"
        "peers.leave(1)\n"
        "print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "alive\n", done.stderr
