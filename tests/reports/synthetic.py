"""Folders of sweeps as `sbs_jax.sweep` leaves them, without training anything."""

import itertools
import json
import random
from pathlib import Path

SIZES = {"t5_1_1_tiny": 9_400_000, "t5_1_1_small": 76_961_152, "t5_1_1_base": 247_577_856}
NASTY = (
    "</script><script>document.title='broken'</script>",
    "<!-- <b onclick=x>bold</b> & &amp; \"quoted\" 'single'",
    "control \x00\x07\x1b[31m and \ud800 half a character",
    "line\u2028separator \u202eright to left\u202c ]]> ${x} $data$ $css$",
)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def run_name(bindings):
    return ",".join(f"{name.lower()}={value}" for name, value in bindings.items())


def write_sweep(
    folder,
    axes,
    *,
    examples=12,
    task="arithmetic",
    accuracy=None,
    teacher=None,
    config=True,
    predictions=True,
    name=None,
    parts=(),
):
    """Writes a sweep whose runs are all done.

    Args:
      folder: of the sweep.
      axes: values by name; `MODEL` is one of `SIZES`.
      examples: of a split.
      task: data set.
      accuracy: of the settings (a dict) gives a number from 0 to 1.
      teacher: its accuracy, if there is one.
      config: whether runs have a config.gin.
      predictions: whether they have predictions.
      name: of the sweep, the folder's by default.
      parts: whose losses are recorded, 0.5 and so on by their places, and more in training.
    """
    folder = Path(folder)
    runs = []
    for values in itertools.product(*axes.values()):
        bindings = dict(zip(axes, values, strict=True))
        runs.append({"name": run_name(bindings), "bindings": bindings})
        settings = {
            "METHOD": "sbs", "RATIONALE_WEIGHT": 1.0, "TRAIN_FRACTION": 1.0, "SEED": 0,
            "MODEL": "t5_1_1_tiny", "LABEL_SOURCE": "gold", "RATIONALE_SOURCE": "teacher",
            "TRAIN_EXAMPLES": None, "TRAIN_STEPS": 500, "task": task,
        } | bindings  # fmt: skip
        settings["parameters"] = SIZES[settings["MODEL"]]
        rng = random.Random(runs[-1]["name"])
        mean = (accuracy or default_accuracy)(settings)
        if accuracy is None:
            mean = min(1.0, max(0.0, rng.gauss(mean, 0.015)))
        write_run(
            folder / "runs" / runs[-1]["name"], bindings, settings, mean, rng, examples,
            config=config, predictions=predictions, parts=parts,
        )  # fmt: skip
    write_json(
        folder / "sweep.json",
        {
            "name": name or folder.name,
            "command": f"python -m sbs_jax.sweep --gin_file=sweeps/{folder.name}.gin",
            "axes": {axis: list(values) for axis, values in axes.items()},
            "runs": runs,
        },
    )
    if teacher is not None:
        write_json(
            folder / "teacher.json",
            {"accuracy": teacher, "standard_error": 0.02, "n": examples, "name": "PaLM 540B"},
        )
    return folder


def write_run(
    folder, bindings, settings, mean, rng, examples, *, config=True, predictions=True, parts=()
):
    rows = make_rows(settings, mean, rng, examples)
    accuracy = sum(row["score"] for row in rows) / len(rows)
    if not predictions:  # Not bound to multiples of 1 / examples.
        accuracy = min(1.0, max(0.0, rng.gauss(mean, 0.01)))
    losses = {f"{part}_loss": 0.5 + place for place, part in enumerate(parts)}
    score = {"accuracy": accuracy, "standard_error": 0.03, "n": examples, **losses}
    write_json(
        folder / "run.json",
        {
            "status": "done", "bindings": bindings, "settings": settings, "selected_step": 400,
            "validation": score | {"accuracy": min(1.0, max(0.0, rng.gauss(mean, 0.01)))},
            "test": score, "seconds": 61.5,
        },
    )  # fmt: skip
    lines = [{"step": 50, "split": "train", "loss": 2.0}]
    for step in range(50, 501, 50):
        seen = min(1.0, max(0.0, rng.gauss(mean * (1 - 0.75 ** (step / 50)), 0.01)))
        lines.append({"step": step, "split": "validation", "accuracy": seen, "label_loss": None})
        lines[-1] |= {name: value + 50 / step for name, value in losses.items()}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if predictions:
        for split in ("validation", "test"):
            path = folder / "predictions" / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if config:
        (folder / "config.gin").write_text(
            "# sbs_jax 0.1.0: python -m sbs_jax.train\n\n"
            "from __gin__ import dynamic_registration\n"
            "from sbs_jax import trainer\n\n"
            "# Macros:\n"
            f"BATCH_SIZE = 64\nINITIAL_CHECKPOINT_PATH = None\nMETHOD = '{settings['METHOD']}'\n"
            f"MODEL_DIR = '{folder}'\nSEED = {settings['SEED']}\n"
            "TASK_FEATURE_LENGTHS = \\\n    {'inputs': 96,\n     'targets': 48}\n"
            f"VOCABULARY_PATH = '{folder}/vocabulary/spiece.model'\n\n"
            "trainer.train.seed = %SEED\n"
        )


def make_rows(settings, mean, rng, examples):
    """Predictions as evaluation writes them."""
    rows = []
    right = set(rng.sample(range(examples), round(mean * examples)))
    problems = random.Random(7)
    for i in range(examples):
        first, more, lost = (problems.randint(2, 60) for _ in range(3))
        answer = first + more - lost
        name = problems.choice(("Anna", "Omar", "Mei", "Luis"))
        said = answer if i in right else answer + rng.randint(1, 9)
        row = {
            "id": f"test-{i}",
            "input": f"{name} has {first} apples, buys {more} more and gives {lost} away. "
            "How many are left?",
            "target": str(answer),
            "prediction": str(said),
            "score": int(i in right),
        }
        if settings["METHOD"] in ("sbs", "joint"):
            row["rationale"] = (
                f"{name} has {first} apples. {first} + {more} = {first + more}. "
                f"{first + more} - {lost} = {said}."
            )
            row["llm_rationale"] = (
                f"{name} starts with {first} apples and buys {more}: {first} + {more} = "
                f"{first + more}. {first + more} - {lost} = {answer}."
            )
        rows.append(row)
    return rows


def default_accuracy(settings):
    weight = settings["RATIONALE_WEIGHT"] if settings["METHOD"] == "sbs" else 0
    value = 0.28 + 0.38 * settings["TRAIN_FRACTION"] ** 0.5
    value += {0: 0.0, 0.1: 0.04, 0.3: 0.08, 1: 0.1, 3: 0.05}.get(weight, 0.1)
    value += {"t5_1_1_tiny": 0, "t5_1_1_small": 0.06, "t5_1_1_base": 0.11}[settings["MODEL"]]
    return value - (0.06 if settings["METHOD"] == "joint" else 0)


LAMBDA = {"RATIONALE_WEIGHT": (0.0, 0.1, 0.3, 1.0, 3.0), "SEED": (0, 1, 2)}
FRACTIONS = {
    "METHOD": ("standard", "sbs", "joint"),
    "TRAIN_FRACTION": (0.125, 0.25, 0.5, 1.0),
    "SEED": (0, 1, 2),
}
SIZE = {
    "METHOD": ("standard", "sbs"),
    "MODEL": tuple(SIZES),
    "TRAIN_FRACTION": (0.25, 1.0),
    "SEED": (0, 1),
}
