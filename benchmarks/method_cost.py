"""What a training step of each method costs, relative to `standard`, on the bundled word problems.

    python benchmarks/method_cost.py --steps=20

One process and one thread. The steps of all methods take turns, so that whatever else the machine
does hits all alike; CPU seconds of the whole process, the median over steps, each with 32 examples.
Compilation and making the batches are not timed. Rows have the lengths that suit a method: those of
gin/sweeps/quickstart_methods.gin where it has the method. FLOPs are those of `sbs_jax.sweep`.
"""

from __future__ import annotations

import os

# XLA reads these when it is imported.
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import dataclasses
import statistics
import tempfile
import time
from typing import Any

import gin
import jax

from sbs_jax.configuration import config as config_lib
from sbs_jax.models.costs import step_flops
from sbs_jax.programs.assembly import assemble
from sbs_jax.programs.train_config import TrainConfig

TARGET = "sbs_jax.programs.train.train"
METHODS = {
    "standard": (96, 16),
    "sbs": (96, 48),
    "joint": (96, 96),
    "rationale_input": (128, 16),
    "weighted_joint": (96, 96),
    "answer_first": (96, 96),
    "several_teachers": (96, 48),
    "self_evaluation": (128, 48),
    "mixed": (96, 48),
    "cascaded": (128, 48),
    "reverse": (96, 96),
}
OF_THE_TABLE = ("standard", "sbs", "joint", "rationale_input")
"""The methods of `methods.METHODS`; the others have a file of gin/methods."""


@dataclasses.dataclass
class Method:
    """A method whose step is timed.

    Attributes:
      name: for the table.
      step: moves the state by one step.
      batches: as many as there are steps, on the device.
      state: of training.
      flops: of a step, the mean over the batches.
      seconds: CPU seconds of each step.
    """

    name: str
    step: Any
    batches: list[Any]
    state: Any
    flops: float
    seconds: list[float] = dataclasses.field(default_factory=list)

    def run(self, number: int, *, timed: bool = True) -> None:
        """Takes the step with the batch of that number."""
        begin = time.process_time()
        self.state, metrics = self.step(self.state, self.batches[number])
        jax.block_until_ready(metrics)
        if timed:
            self.seconds.append(time.process_time() - begin)


def prepare(name: str, folder: str, steps: int) -> Method:
    """Assembles a method, makes its batches, and compiles its step for each number of rows."""
    inputs, targets = METHODS[name]
    files = ["examples/quickstart.gin"]
    flags = {
        "MIXTURE_OR_TASK_NAME": "'arithmetic'",
        "MODEL_DIR": repr(f"{folder}/{name}"),
        "TASK_FEATURE_LENGTHS": repr({"inputs": inputs, "targets": targets}),
    }
    if name in OF_THE_TABLE:
        flags["METHOD"] = repr(name)
    else:
        files.append(f"methods/{name}.gin")
    gin.clear_config()
    config = config_lib.read(files, flags=list(flags.items()), target=TARGET)
    config.check()
    config.apply()
    run = assemble(gin.get_configurable(TrainConfig)())
    batches = []
    rows = []
    made = iter(run.batches())
    for _ in range(steps):
        batch = next(made)
        rows.append(len(batch["decoder_target_tokens"]))
        batches.append(run.to_device(batch))
    flops = step_flops(run.student.config, statistics.fmean(rows), inputs, targets)
    method = Method(name, run.step_fn, batches, run.fresh_state(), flops)
    for count in sorted(set(rows)):
        method.run(rows.index(count), timed=False)
    return method


def main() -> None:
    """Prints the table, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=20, help="of each method; default 20")
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        methods = [prepare(name, folder, steps) for name in METHODS]
        for number in range(steps):
            for method in methods:
                method.run(number)
    first = methods[0]
    print("| method | rows | FLOPs of a step | relative | CPU ms of a step | relative |")
    print("|---|---|---|---|---|---|")
    for method in methods:
        inputs, targets = METHODS[method.name]
        median = statistics.median(method.seconds)
        print(
            f"| `{method.name}` | {inputs} × {targets} | {method.flops / 1e9:.2f} G "
            f"| {method.flops / first.flops:.2f} | {1000 * median:.0f} "
            f"| {median / statistics.median(first.seconds):.2f} |"
        )


if __name__ == "__main__":
    main()
