import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sbs_jax.checkpoints import folders
from sbs_jax.errors import UserError
from sbs_jax.partitioning import peers as peers_lib
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


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_hear_who_died(connected):
    made, heard = connected
    made[1].drop()
    wait_for(lambda: heard[0] and heard[2])
    assert heard == [[1], [], [1]]


def test_all_hear_that_process_0_died(connected):
    made, heard = connected
    made[0].drop()
    wait_for(lambda: heard[1] and heard[2])
    assert heard == [[], [0], [0]]


def test_a_good_bye_is_no_death(connected):
    made, heard = connected
    made[1].leave()
    made[1].drop()
    made[2].leave()
    made[2].drop()
    time.sleep(0.2)
    assert heard == [[], [], []]


def test_who_leaves_hears_no_more(connected):
    made, heard = connected
    made[0].leave()
    for peers in made[1:]:
        peers.drop()
    time.sleep(0.2)
    assert heard == [[], [], []]


MEET = """
import os, sys, time
from sbs_jax.errors import UserError
from sbs_jax.partitioning import peers
address, count, index = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
try:
    peers.meet(address, count, index)
except UserError as error:
    raise SystemExit(f"error: {error}")
print("met", flush=True)
sys.stdin.readline()
peers.release_port()
print("released", flush=True)
if sys.argv[4:] == ["quiet"]:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # as an import that is too talkative is treated
    print("quiet", flush=True)
time.sleep(float(60))
"""


def meeting(port, count, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", MEET, f"localhost:{port}", str(count), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(processes.ROOT)},
    )


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_before_jax_is_there_ends_the_other_with_a_sentence(victim):
    port = processes.free_port()
    pair = [meeting(port, 2, index, "quiet") for index in range(2)]
    for process in pair:
        assert process.stdout.readline() == "met\n"
    # Nobody gets the port while jax is imported, nor is there anybody to talk to.
    with pytest.raises(OSError, match="already in use"):
        socket.create_server(("", port))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("localhost", port))
    for process in pair:
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "released\n"
        assert process.stdout.readline() == "quiet\n"
    # The port is free again, for jax.
    socket.create_server(("", port)).close()
    pair[victim].kill()
    pair[victim].communicate()
    _, errors = pair[1 - victim].communicate(timeout=20)
    assert pair[1 - victim].returncode == 1
    assert f"error: process {victim} of the run has ended before its time" in errors


def test_a_process_that_dies_while_others_are_waited_for():
    port = processes.free_port()
    three = [meeting(port, 3, index) for index in (0, 1)]
    deadline = time.monotonic() + 20
    while not connected_to(port):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    three[1].kill()
    three[1].communicate()
    _, errors = three[0].communicate(timeout=20)
    assert "process 1 of the run has ended before its time" in errors


def connected_to(port):
    """Whether a connection to this local port is established (Linux)."""
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return any(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


def test_somebody_who_never_comes_is_named(monkeypatch, capfd):
    monkeypatch.setattr(peers_lib, "SECONDS_BETWEEN_NOTES", 0.2)
    monkeypatch.setattr(peers_lib, "PATIENCE", 0.7)
    alone = Peers(0, 3, print)
    server, port = alone.listen()
    with socket.create_connection(("localhost", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(TimeoutError, match="No sign of process 1, 2 of 3 within"):
            alone.accept(server)
    assert "waiting for process 1, 2 of 3" in capfd.readouterr().err
    with pytest.raises(TimeoutError, match="No sign of process 0 at localhost"):
        Peers(1, 3, print).connect("localhost", processes.free_port())


def test_processes_that_contradict_each_other():
    first = Peers(0, 3, print)
    server, port = first.listen()
    Peers(1, 2, print).connect("localhost", port)
    with pytest.raises(UserError, match="Process 1 was started with --process_count=2, this one"):
        first.accept(server)
    first = Peers(0, 3, print)
    server, port = first.listen()
    for _ in range(2):
        Peers(1, 3, print).connect("localhost", port)
    with pytest.raises(UserError, match="Two processes were started with --process_index=1"):
        first.accept(server)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.5, 3.5, 5.0, 6.5])
def test_a_process_that_is_killed_while_it_starts_is_named_within_a_minute(tmp_path, seconds):
    (tmp_path / "tiny.gin").write_text(processes.TINY.replace("svamp", "arithmetic"))
    address = f"localhost:{processes.free_port()}"
    pair = [
        processes.run(
            "train",
            f"--gin_file={tmp_path / 'tiny.gin'}",
            *processes.macros(MODEL_DIR=tmp_path / "model", TRAIN_STEPS=100_000, EVAL_SPLITS="()"),
            f"--coordinator_address={address}",
            "--process_count=2",
            f"--process_index={index}",
            wait=False,
        )
        for index in range(2)
    ]
    time.sleep(seconds)
    pair[1].kill()
    pair[1].communicate()
    begun = time.monotonic()
    for line in pair[0].stderr:
        if "process 1" in line:
            break
    else:
        raise AssertionError("it ended without a sentence")
    assert time.monotonic() - begun < 60
    pair[0].kill()
    pair[0].communicate()


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
        ended = [process.communicate() for process in pair if process.poll() is not None]
        assert not ended, ended
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
