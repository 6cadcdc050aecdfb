"""The experiment that docs/evidence.md plans, on one accelerator, in one process.

    python benchmarks/evidence.py --release_dir=PATH --checkpoint=SmolLM2-135M-Instruct.Q4_1.gguf \
      [--output=evidence.jsonl] [--minutes=6]

Six runs are trained as one program, each a lane with its own learning rate, λ and order of the
data; the batches, the loss, the step, greedy decoding and the scores are those of
`python -m sbs_jax.train` (a test holds a lane to it). What is done is in `--output`, one JSON
object a run, and is not done again by the next call; the answers of the runs lie beside it.
`--report FILE …` prints the tables of docs/evidence.md from such files:

    python benchmarks/evidence.py --report docs/evidence_runs.jsonl

`--methods permuted right falling teacher_labels` runs the ablations of `sbs` on SVAMP, with the
settings that `sbs` has chosen in `--output`. `--rationales FOLDER` writes the rationales that two
of them train in place of the released ones: `right.jsonl`, without those whose own answer is wrong,
and `permuted.jsonl`, each from another example.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np

LANES = 6
EXAMPLES = 8  # of a batch
EPOCHS = 3
SELECTION_SEED = 100
LEARNING_RATES = (3e-6, 1e-5, 2e-5, 3e-5, 6e-5, 1e-4)
SBS_RATES, LAMBDAS = (1e-5, 3e-5), (0.3, 1.0, 3.0)
DECODED = {"joint": 192}  # tokens of an answer, at most
DECODED_LABEL = 32
DECODED_ROWS, DECODED_INPUTS = 208, 160  # inputs that are decoded at a time, and their tokens
JUDGED_ROWS = 16  # of a batch of the label loss
BOOTSTRAPS = 10_000
LOSS_PERIOD = 30  # steps from one recorded training loss to the next
KEY = ("method", "part", "stage", "seed", "learning_rate", "rationale_weight")


@dataclasses.dataclass(frozen=True)
class Setting:
    """Hyperparameters of a run."""

    learning_rate: float
    rationale_weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Part:
    """A data set and how many of its training examples are used.

    Attributes:
      dataset: its name.
      examples: how many training examples.
    """

    dataset: str
    examples: int

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return round(EPOCHS * self.examples / EXAMPLES)


@dataclasses.dataclass(frozen=True)
class Variant:
    """What runs train.

    Attributes:
      method: METHOD.
      labels: LABEL_SOURCE.
      rationales: which of the files of `write_rationales` is RATIONALES_FILE; None is no file.
      falling: λ falls from twice its value to 0 on a straight line.
    """

    method: str
    labels: str = "gold"
    rationales: str | None = None
    falling: bool = False


METHODS = {
    "standard": Variant("standard"),
    "sbs": Variant("sbs"),
    "joint": Variant("joint"),
    "distillation": Variant("standard", labels="teacher"),
}
ABLATIONS = {  # of sbs, whose settings they take
    "permuted": Variant("sbs", rationales="permuted"),
    "right": Variant("sbs", rationales="right"),
    "falling": Variant("sbs", falling=True),
    "teacher_labels": Variant("sbs", labels="teacher"),
}
VARIANTS = METHODS | ABLATIONS

# Tokens of inputs and targets of a row, without and with rationales; two rows hold eight examples.
ROWS = ((352, 112), (400, 432))
BATCH_ROWS = 2
PARTS = {
    "svamp-240": Part("svamp", 240),
    "svamp-720": Part("svamp", 720),
    "cqa-877": Part("cqa", 877),
    "cqa-8766": Part("cqa", 8766),
}
# In this order, as far as there is time: the part that chooses, the parts that it chooses for.
ORDER = (
    ("svamp-240", "svamp-720", range(LANES)),
    ("svamp-240", "svamp-240", range(LANES)),
    ("cqa-877", "cqa-877", range(LANES)),
    ("svamp-240", "svamp-720", range(LANES, 2 * LANES)),
    ("svamp-240", "svamp-240", range(LANES, 2 * LANES)),
    ("cqa-877", "cqa-8766", range(LANES)),
)


def candidates(method: str) -> list[Setting]:
    """The settings that a method chooses from; each method has six."""
    if method == "sbs":
        return [Setting(rate, weight) for rate in SBS_RATES for weight in LAMBDAS]
    return [Setting(rate) for rate in LEARNING_RATES]


class Trainer:
    """Trains and evaluates groups of six runs of one method on one data set's rows.

    Attributes:
      method: a key of `VARIANTS`.
      variant: what it stands for.
    """

    def __init__(self, start: Start, method: str) -> None:
        """Compiles nothing yet.

        Args:
          start: the pretrained student.
          method: a key of `VARIANTS`.
        """
        self.method, self.variant = method, VARIANTS[method]
        self._start = start
        self._step: Any = start.student.jit(self._lanes(self._step_of_lane), donate_argnums=0)
        self._loss_step: Any = start.student.jit(self._loss_of_lanes)

    def task(self, part: Part) -> Any:
        """The task of the method, with the data settings of a part."""
        import sbs_jax.tasks  # noqa: F401 (registers the data sets)
        from sbs_jax.data import resolving, settings
        from sbs_jax.text_tokenizer import default_frame

        variant, path = self.variant, self._start.vocabulary_path
        file = variant.rationales and str(self._start.rationales / f"{variant.rationales}.jsonl")
        chosen = settings.DataSettings(
            data_dir=self._start.release_dir,
            vocabulary_path=path,
            input_frame=default_frame(path),
            prefix_side="decoder",
            rationales_file=file,
            train_examples=part.examples,
            seed=0,
        )
        choice = resolving.TaskChoice(
            part.dataset, method=variant.method, label_source=variant.labels
        )
        return resolving.resolve_task(choice, chosen)

    @property
    def lengths(self) -> dict[str, int]:
        """Row lengths."""
        inputs, targets = ROWS[self.variant.method != "standard"]
        return {"inputs": inputs, "targets": targets}

    @property
    def decoded(self) -> int:
        """Tokens of an answer, at most."""
        return DECODED.get(self.method, DECODED_LABEL)

    def batches(self, part: Part, seed: int) -> Iterator[Mapping[str, np.ndarray]]:
        """The batches of a run."""
        from sbs_jax.data import pipeline

        batching = pipeline.Batching(self.lengths, examples_per_batch=EXAMPLES)
        return pipeline.TrainBatches(self._records(part, "train"), batching, seed=seed)

    @functools.cache  # noqa: B019 (trainers live as long as the process)
    def _records(self, part: Part, split: str) -> Any:
        from sbs_jax.data import pipeline

        return pipeline.load_records(self.task(part), split, self.lengths)

    def programs(self, part: Part) -> Iterator[tuple[str, Any]]:
        """Traces the programs of `train` and `evaluate` one after another: name and lowered."""
        import jax

        batch = self._stacked([self.batches(part, seed) for seed in range(LANES)])
        state = jax.eval_shape(self._first_state, self._start.params)
        numbers = np.zeros(LANES, np.float32)
        yield "_step", self._step.lower(state, batch, numbers, numbers)
        yield "_loss_step", self._loss_step.lower(state.params, self._judged(part)[0])

    def take(self, name: str, compiled: Any) -> None:
        """Uses a compiled program from now on."""
        setattr(self, name, compiled)

    def train(
        self,
        part: Part,
        settings: Sequence[Setting],
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        deadline: float = float("inf"),
    ) -> tuple[Any, list[list[float]]] | None:
        """Trains six runs; returns their parameters [lanes, …] and losses [steps][lanes].

        None if the deadline came first.
        """
        from sbs_jax.training import schedules

        schedule = schedules.linear_decay(1.0, part.steps, round(part.steps / 10))
        share = schedules.linear_ramp(2.0, 0.0, part.steps)
        heights = [np.float32(schedule(number)) for number in range(steps or part.steps)]
        sources = [self.batches(part, seed) for seed in seeds]
        rates = np.array([setting.learning_rate for setting in settings], np.float32)
        weights = np.array([setting.rationale_weight for setting in settings], np.float32)
        state = self._start.student.jit(self._first_state)(self._start.params)
        losses: list[Any] = []
        for number, height in enumerate(heights):
            if number % 20 == 19:
                losses[-10].block_until_ready()  # So that the deadline is one of work done.
                if time.monotonic() > deadline:
                    return None
            present = weights * np.float32(share(number)) if self.variant.falling else weights
            state, loss = self._step(state, self._stacked(sources), present, rates * height)
            losses.append(loss)
        return state.params, [np.asarray(loss).tolist() for loss in losses]

    def _stacked(self, sources: Sequence[Iterator[Any]]) -> dict[str, np.ndarray]:
        """The next batch of each lane, [lanes, rows, …]; empty rows change nothing."""
        from sbs_jax.experiments.lanes import stack_batches

        batch = stack_batches([next(source) for source in sources])
        more = BATCH_ROWS - batch["decoder_target_tokens"].shape[1]
        if more < 0:
            raise ValueError(f"{EXAMPLES} examples need more than {BATCH_ROWS} rows")
        return {
            name: np.pad(array, [(0, 0), (0, more), *[(0, 0)] * (array.ndim - 2)])
            for name, array in batch.items()
        }

    def _first_state(self, params: Any) -> Any:
        import jax
        import jax.numpy as jnp

        from sbs_jax.training import optimizers
        from sbs_jax.training.state import create_state

        state = create_state(params, optimizers.adamw(1.0), 0)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (LANES, *leaf.shape)), state)

    def _lanes(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """All lanes as one batch, or on a CPU one after another, which is the faster way there."""
        import jax

        if self._start.student.mesh.devices.flat[0].platform != "cpu":
            return jax.vmap(step)
        return lambda *stacked: jax.lax.map(lambda one: step(*one), stacked)

    def _step_of_lane(self, state: Any, batch: Any, weight: Any, rate: Any) -> tuple[Any, Any]:
        from sbs_jax.training import optimizers
        from sbs_jax.training.step import Loss, make_train_step

        student = self._start.student
        loss = Loss(rationale_weight=lambda _: weight).of(self._definition)
        optimizer = optimizers.adamw(lambda _: rate)
        step = make_train_step(student.hidden, optimizer, loss, head=student.head)
        new, metrics = step(state, batch)
        return new, metrics["loss"]

    @property
    def _definition(self) -> Any:
        return self.task(PARTS["svamp-240"]).method

    def evaluate(self, part: Part, split: str, params: Any) -> list[dict[str, Any]]:
        """Accuracy, loss of labels, and answers of each lane on a split."""
        from sbs_jax import metrics
        from sbs_jax.data import pipeline
        from sbs_jax.decoding import shapes

        task = self.task(part)
        examples = pipeline.load_eval_examples(task, split, self.lengths)
        inputs = examples.label_inputs
        answers: list[list[str]] = [[] for _ in range(LANES)]
        for begin in range(0, len(inputs), DECODED_ROWS):
            some = inputs[begin : begin + DECODED_ROWS]
            rows = np.zeros((DECODED_ROWS, DECODED_INPUTS), np.int32)
            rows[: len(some), : inputs.shape[1]] = some
            decode = self._start.decode[self.decoded]
            written = np.asarray(decode(params, rows, examples.label_prompt))
            for lane, tokens in enumerate(written[:, : len(some)]):
                for row in tokens:
                    answers[lane].append(task.vocabulary.decode(shapes.until_end(row.tolist())))
        losses = self._losses(part, split, params)
        score = metrics.SCORERS[examples.scorer]
        found = []
        for lane, texts in enumerate(answers):
            labels = [examples.take_apart(text)[1] for text in texts]
            scores = [int(score(a, b)) for a, b in zip(labels, examples.labels, strict=True)]
            found.append(
                {
                    "accuracy": sum(scores) / len(scores),
                    "label_loss": losses[lane],
                    "scores": "".join(map(str, scores)),
                    "answers": labels,
                }
            )
        return found

    def _judged(self, part: Part, split: str = "validation") -> list[Any]:
        """The batches that the loss of labels is computed on."""
        from sbs_jax.data import pipeline

        return list(pipeline.EvalBatches(self._records(part, split), JUDGED_ROWS, self.lengths))

    def _losses(self, part: Part, split: str, params: Any) -> list[float]:
        """The mean loss of labels' tokens, of each lane."""
        sums = [self._loss_step(params, batch) for batch in self._judged(part, split)]
        total = sum(np.asarray(one["loss"], np.float64) for one in sums)
        weight = sum(np.asarray(one["weight"], np.float64) for one in sums)
        return (total / weight).tolist()

    def _loss_of_lanes(self, params: Any, batch: Any) -> Any:
        import jax

        from sbs_jax.evaluation.loss_step import make_loss_step

        student = self._start.student
        step = make_loss_step(student.hidden, head=student.head, names=self._definition.names)
        return jax.lax.map(lambda one: step(one, batch)["label"], params)


class Start:
    """The pretrained student, and the programs that all methods share.

    Attributes:
      student: the network.
      params: its weights.
      vocabulary_path: where its tokenizer is.
      release_dir: the authors' released data.
      rationales: the folder of `write_rationales`.
      decode: greedy decoding of all lanes, by the most tokens of an answer.
    """

    def __init__(self, student: Any, params: Any, vocabulary_path: str, release_dir: str) -> None:
        """Compiles nothing yet."""
        self.student, self.params = student, params
        self.vocabulary_path, self.release_dir = vocabulary_path, release_dir
        self.rationales = Path()
        limits = {DECODED_LABEL, *DECODED.values()}
        self.decode: dict[int, Any] = {limit: student.jit(self._decode(limit)) for limit in limits}

    @classmethod
    def read(cls, checkpoint: str, release_dir: str) -> Start:
        """Reads the weights that a run would begin with."""
        import jax

        from sbs_jax.checkpoints import loading
        from sbs_jax.partitioning.mesh import make_mesh
        from sbs_jax.student import Student

        source = loading.identify(checkpoint)
        config = dataclasses.replace(source.config, product_dtype="bfloat16")
        student = Student(config, make_mesh(devices=jax.devices()[:1]))
        params = loading.load_params(source, student.placed_params)
        return cls(student, params, str(source.require_vocabulary()), release_dir)

    def _decode(self, limit: int) -> Callable[..., Any]:
        from sbs_jax.decoding.greedy import greedy_decode

        def lanes(params: Any, inputs: Any, prompt: Any) -> Any:
            import jax

            return jax.lax.map(
                lambda one: greedy_decode(
                    self.student.model, one, inputs, max_decode_len=limit, decoder_prompt=prompt
                ),
                params,
            )

        return lanes

    def program(self, limit: int, prompt: np.ndarray) -> Any:
        """Decoding, lowered."""
        import jax

        lanes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((LANES, *leaf.shape), leaf.dtype), self.params
        )
        rows = np.zeros((DECODED_ROWS, DECODED_INPUTS), np.int32)
        return self.decode[limit].lower(lanes, rows, prompt)


def run(arguments: argparse.Namespace) -> None:
    """Trains what is still to be trained, in the order of the plan."""
    deadline = time.monotonic() + 60 * arguments.minutes
    done = read(arguments.output)
    start = Start.read(arguments.checkpoint, arguments.release_dir)
    log("weights read")
    if any(VARIANTS[method].rationales for method in arguments.methods):
        start.rationales = arguments.output.with_suffix(".rationales")
        log(write_rationales(arguments.release_dir, start.rationales))
    trainers = {method: Trainer(start, method) for method in arguments.methods}
    compiling = Compiling(start, list(trainers.values()))

    def group(
        trainer: Trainer, name: str, stage: str, settings: Sequence[Setting], seeds: Sequence[int]
    ) -> bool:
        """Trains and evaluates six runs; False if there was no time for it."""
        part, split = PARTS[name], "validation" if stage == "select" else "test"
        compiling.wait(trainer)
        begun = time.monotonic()
        trained = trainer.train(part, settings, seeds, steps=arguments.steps, deadline=deadline)
        if trained is None:
            return False
        params, losses = trained
        after = time.monotonic()
        found = trainer.evaluate(part, split, params)
        took = [round(after - begun, 1), round(time.monotonic() - after, 1)]
        rows = [
            {
                "method": trainer.method,
                "part": name,
                "stage": stage,
                "split": split,
                "seed": seed,
                **dataclasses.asdict(setting),
                "seconds_of_group": took,
                "losses": [round(step[lane], 4) for step in losses[::LOSS_PERIOD]],
                **values,
            }
            for lane, (seed, setting, values) in enumerate(zip(seeds, settings, found, strict=True))
        ]
        answers = [{name: row[name] for name in (*KEY, "answers")} for row in rows]
        write(arguments.output.with_suffix(".answers.jsonl"), answers)
        rows = [{k: v for k, v in row.items() if k != "answers"} for row in rows]
        write(arguments.output, rows)
        done.extend(rows)
        accuracies = " ".join(f"{100 * row['accuracy']:.1f}" for row in rows)
        log(f"{trainer.method} {stage} {name}: {accuracies}; {took[0]} s, {took[1]} s")
        return True

    for selecting, name, seeds in ORDER:
        if arguments.only and name not in arguments.only:
            continue
        for method, trainer in trainers.items():
            if method in METHODS and not selected(done, method, selecting):
                seed = [SELECTION_SEED] * LANES
                if not group(trainer, selecting, "select", candidates(method), seed):
                    return log("no time left")
        for method, trainer in trainers.items():
            if method in ABLATIONS and PARTS[name].dataset != "svamp":
                continue
            chosen = selected(done, method if method in METHODS else "sbs", selecting)
            if not chosen:
                raise SystemExit(f"{arguments.output}: sbs has chosen no settings on {selecting}.")
            setting = best(chosen)
            key = (method, name, "test")
            have = {r["seed"] for r in done if (r["method"], r["part"], r["stage"]) == key}
            if not set(seeds) <= have and not group(
                trainer, name, "test", [setting] * LANES, list(seeds)
            ):
                return log("no time left")
    return log("all is done")


class Compiling:
    """Traces all programs one after another, in the order of their use, and compiles them at once.

    So no program waits for another one's compilation, and training begins while others compile.
    """

    def __init__(self, start: Start, trainers: Sequence[Trainer]) -> None:
        """Begins."""
        self._done = {trainer.method: threading.Event() for trainer in trainers}
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(start, trainers), daemon=True).start()

    def wait(self, trainer: Trainer) -> None:
        """Returns when the programs of a trainer are compiled."""
        self._done[trainer.method].wait()
        if self._error is not None:
            raise self._error

    def _run(self, start: Start, trainers: Sequence[Trainer]) -> None:
        from sbs_jax.data import pipeline

        part = PARTS["svamp-240"]
        try:
            with futures.ThreadPoolExecutor(8) as pool:
                decoders: dict[int, Any] = {}
                of_method: dict[str, list[Any]] = {}
                for trainer in trainers:
                    # Variants of one method have other data and the same programs.
                    waiting = of_method.setdefault(trainer.variant.method, [])
                    for name, lowered in () if waiting else trainer.programs(part):
                        waiting.append((name, pool.submit(lowered.compile)))
                    limit = trainer.decoded
                    if limit not in decoders:
                        task = trainer.task(part)
                        examples = pipeline.load_eval_examples(task, "validation", trainer.lengths)
                        lowered = start.program(limit, examples.label_prompt)
                        decoders[limit] = pool.submit(lowered.compile)
                    pool.submit(self._take, start, trainer, waiting, limit, decoders[limit])
        except BaseException as error:
            self._fail(error)

    def _take(
        self, start: Start, trainer: Trainer, waiting: Sequence[Any], limit: int, decoder: Any
    ) -> None:
        try:
            for name, compiled in waiting:
                trainer.take(name, compiled.result())
            start.decode[limit] = decoder.result()
        except BaseException as error:
            self._fail(error)
        log(f"{trainer.method}: programs compiled")
        self._done[trainer.method].set()

    def _fail(self, error: BaseException) -> None:
        self._error = error
        for done in self._done.values():
            done.set()


def write_rationales(release_dir: str, folder: Path) -> str:
    """Writes the ablations' RATIONALES_FILEs for SVAMP's training examples.

    Args:
      release_dir: the authors' released data.
      folder: where `right.jsonl` and `permuted.jsonl` are written.

    Returns:
      How many rationales each of them holds.
    """
    import sbs_jax.tasks  # noqa: F401 (registers the data sets)
    from sbs_jax.data import datasets, registry, settings

    dataset = registry.find_dataset("svamp")
    with settings.override(settings.DataSettings(data_dir=release_dir)):
        examples = datasets.load_examples(dataset, "train")
    taught = [one for one in examples if one["llm_rationale"]]
    right = [one for one in taught if dataset.score(one["llm_label"], one["label"])]
    # A cycle through all in a random order, so that none keeps its own.
    order = np.random.default_rng(0).permutation(len(taught))
    others = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    permuted = [
        {**one, "llm_rationale": taught[others[number]]["llm_rationale"]}
        for number, one in enumerate(taught)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    keys = ("id", "input", "llm_label", "llm_rationale")
    for name, chosen in (("right", right), ("permuted", permuted)):
        lines = [json.dumps({key: one[key] for key in keys}) + "\n" for one in chosen]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return (
        f"{len(examples)} examples, {len(taught)} with a rationale; {len(right)} of these have the "
        "right answer"
    )


def selected(done: Sequence[Mapping[str, Any]], method: str, name: str) -> list[Any]:
    """The runs of a method that choose its settings."""
    return [
        row
        for row in done
        if (row["method"], row["part"], row["stage"]) == (method, name, "select")
    ]


def best(rows: Sequence[Mapping[str, Any]]) -> Setting:
    """The setting with the best validation accuracy; of equal ones, that with the lower loss."""
    row = max(rows, key=lambda row: (row["accuracy"], -row["label_loss"]))
    return Setting(row["learning_rate"], row["rationale_weight"])


def read(path: Path) -> list[dict[str, Any]]:
    """The runs that are done; none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds runs to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def log(text: str) -> None:
    """Prints what happened and when."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def report(paths: Sequence[Path]) -> str:
    """The tables: what was chosen, accuracies on the test split, and their differences.

    With the accuracies stands how many questions all runs of a method answer correctly, and none.
    """
    from sbs_jax.scores.compare import bootstrap_runs

    runs = [row for path in paths for row in read(path)]
    lines = ["| set | method | learning rate, λ | validation accuracies of the six settings |"]
    lines += ["|---|---|---|---|"]
    for name in PARTS:
        for method in VARIANTS:
            rows = selected(runs, method, name)
            if rows:
                setting = best(rows)
                accuracies = ", ".join(f"{100 * row['accuracy']:.1f}" for row in rows)
                lines.append(
                    f"| {name} | {method} | {setting.learning_rate:g}, "
                    f"{setting.rationale_weight:g} | {accuracies} |"
                )
    lines += [
        "",
        "| set | method | mean test accuracy | of each seed | label loss | by all | by none |",
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    tested: dict[tuple[str, str], dict[int, Any]] = {}
    for row in runs:
        if row["stage"] == "test":
            tested.setdefault((row["part"], row["method"]), {})[row["seed"]] = row
    for (name, method), rows in sorted(
        tested.items(), key=lambda item: list(PARTS).index(item[0][0])
    ):
        accuracies = [100 * row["accuracy"] for row in rows.values()]
        loss = np.mean([row["label_loss"] for row in rows.values()])
        right = np.array([scores(row) for row in rows.values()])
        each = ", ".join(f"{accuracy:.1f}" for accuracy in accuracies)
        lines.append(
            f"| {name} | {method} | {np.mean(accuracies):.1f} | {each} | {loss:.4f} | "
            f"{right.all(axis=0).sum()} | {(~right.any(axis=0)).sum()} |"
        )
    lines += ["", "| set | sbs − | difference, points | 95 % interval |", "|---|---|---|---|"]
    for name in PARTS:
        ours = tested.get((name, "sbs"))
        for method in VARIANTS:
            theirs = tested.get((name, method))
            if method == "sbs" or not ours or not theirs:
                continue
            seeds = sorted(set(ours) & set(theirs))
            differences = np.array([scores(ours[seed]) - scores(theirs[seed]) for seed in seeds])
            low, high, _ = bootstrap_runs(differences, samples=BOOTSTRAPS)
            lines.append(
                f"| {name} | {method} | {100 * differences.mean():+.1f} | "
                f"[{100 * low:+.1f}, {100 * high:+.1f}] |"
            )
    return "\n".join(lines)


def draw(paths: Sequence[Path], target: Path) -> None:
    """Draws the test accuracies on SVAMP: a dot a run, a bar the mean of a method."""
    from matplotlib.figure import Figure

    runs = [row for path in paths for row in read(path) if row["stage"] == "test"]
    names = [name for name, part in PARTS.items() if part.dataset == "svamp"]
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        for place, method in enumerate(METHODS):
            found = [
                100 * row["accuracy"]
                for row in runs
                if (row["part"], row["method"]) == (name, method)
            ]
            if not found:
                continue
            color = "tab:orange" if method == "sbs" else "tab:blue"
            axis.bar(place, np.mean(found), width=0.7, color=color, alpha=0.3)
            spread = np.linspace(-0.2, 0.2, len(found)) if len(found) > 1 else [0.0]
            axis.plot(place + np.array(spread), found, "o", color=color, markersize=4)
            axis.annotate(f"{np.mean(found):.1f}", (place, 1), ha="center", color="black")
        axis.set_xticks(range(len(METHODS)), METHODS, rotation=15)
        axis.set_title(f"{PARTS[name].examples} training problems", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("SVAMP test accuracy, %")
    figure.savefig(target, dpi=120)


def scores(row: Mapping[str, Any]) -> np.ndarray:
    """Whether a run answers each question correctly, int [questions]."""
    return np.array(list(map(int, row["scores"])))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment, or reports it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release_dir", help="the authors' released data")
    parser.add_argument("--checkpoint", help="the student's first weights")
    parser.add_argument("--methods", nargs="*", choices=VARIANTS, default=list(METHODS))
    parser.add_argument("--output", type=Path, default=Path("evidence.jsonl"))
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--only", nargs="*", help="names of parts")
    parser.add_argument("--steps", type=int, help="end all runs early, to try this out")
    parser.add_argument("--rationales", type=Path, help="write the ablations' rationales there")
    parser.add_argument("--report", nargs="*", type=Path, help="files of results to report on")
    parser.add_argument("--figure", type=Path, help="with --report: a PNG of SVAMP's accuracies")
    arguments = parser.parse_args(argv)
    if arguments.report:
        print(report(arguments.report))
        if arguments.figure:
            draw(arguments.report, arguments.figure)
        return 0
    if arguments.rationales and arguments.release_dir:
        print(write_rationales(arguments.release_dir, arguments.rationales))
        return 0
    if not (arguments.release_dir and arguments.checkpoint):
        parser.error("--release_dir and --checkpoint are needed")
    run(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
