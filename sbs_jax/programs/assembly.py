"""Where a training run is put together, once: student, loss, step, data and evaluator.

`assemble` takes a `TrainConfig`, which gin builds from gin/runs/train.gin. The train program, its
dry run, runs that are trained together in one program (`experiments.vectorized`) and the measuring
of batches (`experiments.measuring`) all use what it returns, so they cannot differ. `running` then
trains it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from sbs_jax.checkpoints import folders, loading, networks, record
from sbs_jax.checkpoints import lora as lora_lib
from sbs_jax.checkpoints.manager import CheckpointManager, restore_params
from sbs_jax.data import auto_lengths, pipeline
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.batch_arrays import array_shapes, row_lengths
from sbs_jax.data.batching import AUTO, Batching, TrainBatches
from sbs_jax.data.padding_free.sizes import batch_shapes
from sbs_jax.data.record_texts import Encodes, decoder_prompt
from sbs_jax.data.resolving import ResolvedTask, resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.data.vocabulary import require_fit
from sbs_jax.errors import UserError
from sbs_jax.evaluation.evaluator import Evaluator, write_predictions
from sbs_jax.evaluation.programs import EvalPrograms
from sbs_jax.inference.prompting import Prompting, prompting_from
from sbs_jax.models.config import T5Config
from sbs_jax.models.interface import default_prefix_side
from sbs_jax.models.t5gemma2.config import T5Gemma2Config
from sbs_jax.partitioning.distributed import to_global
from sbs_jax.partitioning.mesh import check_batch_size
from sbs_jax.parts import NAMES
from sbs_jax.programs import resuming
from sbs_jax.programs.train_config import TrainConfig
from sbs_jax.student import Student
from sbs_jax.text_tokenizer import default_frame
from sbs_jax.training import placement
from sbs_jax.training.loop import EvaluateFn, StepFn
from sbs_jax.training.optimizers import Optimizer
from sbs_jax.training.state import TrainState
from sbs_jax.training.step import Loss, make_train_step


def assemble(
    config: TrainConfig,
    *,
    mesh: Mesh | None = None,
    student: Student | None = None,
    bases: dict[str, Any] | None = None,
    writes: bool = True,
) -> Assembly:
    """Puts a run together; nothing is allocated, read or written before it is asked for.

    Args:
      config: the configuration of the run.
      mesh: the mesh to use instead of one over all devices, for example of a named TPU that is
        compiled for ahead of time.
      student: the student to use instead of a new one, where several runs share one program.
      bases: the weights that adapters (LoRA) adapt, by their digest, where several runs share them;
        those that are read are put in. None keeps none.
      writes: whether MODEL_DIR is written to. If not (a dry run), a vocabulary that has to be
        trained goes to the user's cache folder.

    Raises:
      UserError: the task is unknown, or there are no weights that adapters could adapt.
    """
    fresh = config.saving.initial_checkpoint_path is None
    if config.lora is not None and fresh and not folders.complete_checkpoints(config.folder):
        raise UserError(
            "LORA_RANK adapts pretrained weights; name them by INITIAL_CHECKPOINT_PATH."
        )
    settings = config.data or settings_lib.current()
    if settings.prefix_side is None:
        saved = resuming.saved_data_settings(config.folder).get("prefix_side")
        side = saved or default_prefix_side(config.model_config)
        settings = dataclasses.replace(settings, prefix_side=side)
    return Assembly(config, resolve_task(config.task, settings), mesh, student, bases, writes)


class Assembly:
    """The parts of a run, each made when it is first asked for; see `assemble`.

    Attributes:
      config: the configuration of the run.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: ResolvedTask,
        mesh: Mesh | None,
        student: Student | None,
        bases: dict[str, Any] | None,
        writes: bool,
    ) -> None:
        self.config, self._bases = config, bases
        self._choice, self._mesh, self._student, self._writes = task, mesh, student, writes
        self._uncut: pipeline.Records | None = None  # what `proposed_lengths` has read

    @functools.cached_property
    def student(self) -> Student:
        """The network on its mesh.

        Raises:
          UserError: the mesh is impossible, or does not divide the batch.
        """
        if self._student is not None:
            return self._student
        batching, mesh = self.config.batching, self._mesh or self.config.mesh.make()
        if batching.padding_free and isinstance(self.config.model_config, T5Gemma2Config):
            raise UserError("PADDING_FREE = True is not for T5Gemma 2; leave it out.")
        if batching.examples_per_batch is None and not batching.padding_free:
            check_batch_size(batching.batch_size, mesh, batching.num_microbatches)
        return Student(self.config.model_config, mesh, fsdp=self.config.mesh.fsdp)

    @functools.cached_property
    def loss(self) -> Loss:
        """The loss of the task's parts.

        Raises:
          UserError: the tasks of a mixture have different parts.
        """
        return self.config.loss.of(self._choice.method)

    @functools.cached_property
    def optimizer(self) -> Optimizer:
        """The optimizer in use, whose state also holds that of the loss's balancing."""
        return self.loss.balancing.wrap(self.config.optimizer_in_use, self.loss.names)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the training state; nothing is allocated."""
        return placement.abstract_state(self.student, self.optimizer, self.config.seed)

    @functools.cached_property
    def step_fn(self) -> StepFn:
        """The jitted training step; `step_fn.lower(abstract_state, abstract_batch())` compiles it.

        Raises:
          UserError: a hyperparameter is out of its range.
        """
        step = make_train_step(
            self.student.hidden,
            self.optimizer,
            self.loss,
            head=self.student.head,
            num_microbatches=self.config.batching.num_microbatches,
        )
        return placement.jit_train_step(self.student, step, self.abstract_state)

    def abstract_batch(self, rows: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch.

        No data is read, unless row lengths or the sizes of padding-free batches are left to it.

        Args:
          rows: the rows of a batch of rows; by default it is as the run trains on it, padding-free
            or of BATCH_SIZE rows.

        Raises:
          UserError: `rows` is not given, and EXAMPLES_PER_BATCH leaves the number of rows to the
            data.
        """
        batching, shared = self.batching, self._choice.settings.prefix_side == "decoder"
        if rows is None and batching.padding_free:
            sizes, groups = self.batches().sizes, self._row_multiple
            assert sizes is not None
            all_shapes = batch_shapes(sizes, groups, shared_inputs=shared)
            return {n: jax.ShapeDtypeStruct(shape, np.int32) for n, shape in all_shapes.items()}
        if rows is None and batching.examples_per_batch is not None:
            raise UserError(
                f"EXAMPLES_PER_BATCH = {batching.examples_per_batch} leaves the number of rows of "
                "a batch to the data; set BATCH_SIZE instead."
            )
        shapes = array_shapes(
            row_lengths(batching.lengths),
            batching.batch_size if rows is None else rows,
            shared_inputs=shared,
        )
        return {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}

    @functools.cached_property
    def initial_source(self) -> loading.Source | None:
        """The weights that the run begins with; None if it draws them, or resumes.

        Raises:
          UserError: they cannot be read, or are of another network.
        """
        path = self.config.saving.initial_checkpoint_path
        if path is None or folders.complete_checkpoints(self.config.folder):
            return None
        source = loading.identify(path)
        networks.require_same_network(source, self.config.model_config)
        return source

    @functools.cached_property
    def task(self) -> ResolvedTask:
        """The task, with the data settings fitted to this run.

        Raises:
          UserError: the vocabulary of the initial weights is not known.
        """
        settings = self._choice.settings
        folder = self.config.folder if self._writes else None
        own = folder is not None and record.kept_vocabulary(folder).is_file()
        source = self.initial_source
        # Trained weights mean nothing with another vocabulary than their own.
        if source is not None and settings.vocabulary_path is None and not own:
            path = str(source.require_vocabulary())
            settings = dataclasses.replace(settings, vocabulary_path=path)
        settings = dataclasses.replace(
            settings,
            # A vocabulary that is trained for a student is never larger than its embedding.
            vocabulary_size=min(settings.vocabulary_size, self.config.model_config.vocab_size),
            model_dir=None if folder is None else str(folder),
        )
        if settings.input_frame is None:
            settings = dataclasses.replace(settings, input_frame=self._input_frame(settings))
        return self._choice.with_settings(settings)

    def _input_frame(self, settings: DataSettings) -> Sequence[str] | None:
        """What stands around every input, where INPUT_FRAME does not say it."""
        if isinstance(self.config.model_config, T5Config):
            if settings.chat:
                raise UserError("CHAT = True is for pretrained chat models; a T5 knows no chats.")
            return None
        # What a run began with, it goes on with, also where it began before there were frames.
        if saved := resuming.saved_data_settings(self.config.folder):
            return saved.get("input_frame") or ("", "")
        if settings.vocabulary_path is None:
            return default_frame(record.kept_vocabulary(self.config.folder), chat=settings.chat)
        return default_frame(settings.vocabulary_path, chat=settings.chat)

    @functools.cached_property
    def batching(self) -> Batching:
        """How records become batches; row lengths that are left to the data are numbers here.

        A run that goes on has those that it began with, whatever the data say now.

        Raises:
          UserError: the data, which have to be read for it, cannot be read.
        """
        batching = self.config.batching
        if batching.feature_lengths != AUTO:
            return batching
        saved = resuming.saved_feature_lengths(self.config.folder)
        lengths = saved or self.proposed_lengths.lengths
        return dataclasses.replace(batching, feature_lengths=lengths)

    @functools.cached_property
    def proposed_lengths(self) -> auto_lengths.Proposal:
        """The row lengths that the training records propose.

        Raises:
          UserError: the data cannot be read.
        """
        require_fit(self.task.vocabulary, self.config.model_config.vocab_size)
        strict = self.task.settings.strict_lengths
        self._uncut = pipeline.load_whole_records(self.task, "train")
        found = auto_lengths.propose(self._uncut, self.config.batching, cut_nothing=strict)
        if found.cut_inputs or found.cut_targets:
            self._uncut = None
        return found

    @functools.cached_property
    def records(self) -> pipeline.Records:
        """The training records; the vocabulary is read, or trained, before.

        Raises:
          UserError: the data cannot be read, or the vocabulary is larger than the embedding.
        """
        require_fit(self.task.vocabulary, self.config.model_config.vocab_size)
        lengths = self.batching.lengths
        if self._uncut is not None and self._uncut.fits((lengths["inputs"], lengths["targets"])):
            return self._uncut  # Read again, they would be the same.
        return pipeline.load_records(self.task, "train", lengths)

    def batches(
        self, records: pipeline.Records | None = None, row_multiple: int | None = None
    ) -> TrainBatches:
        """Returns the batches from the first one on.

        Args:
          records: the training records, if they have been read already.
          row_multiple: the number of rows is rounded up to a multiple of it; by default that of
            the mesh and the microbatches.

        Raises:
          UserError: there are no records, or an argument is out of its range.
        """
        return TrainBatches(
            self.records if records is None else records,
            self.batching,
            seed=self.config.seed,
            row_multiple=self._row_multiple if row_multiple is None else row_multiple,
        )

    @property
    def _row_multiple(self) -> int:
        """Into how many equal parts the mesh and the microbatches cut a batch."""
        return self.student.mesh.shape["data"] * self.config.batching.num_microbatches

    def evaluator(
        self, splits: Sequence[str] | None = None, *, whole: bool = False, **options: Any
    ) -> Evaluator:
        """Reads what is evaluated.

        Args:
          splits: the splits to evaluate; those of `config.evaluation` by default.
          whole: take all examples of the splits, whatever `config.evaluation` says.
          **options: further arguments of `Evaluator`.

        Raises:
          UserError: a split cannot be read, or a setting is out of its range.
        """
        own, student, lora = self.config.evaluation, self.eval_student, self.config.lora
        options["prepare"] = student.for_inference
        if lora is not None:
            merge = lora_lib.merging(student.jit, lora)
            options["prepare"] = lambda params: student.for_inference(merge(params))
        return Evaluator(
            student,
            self.task,
            self.batching.lengths,
            splits=own.splits if splits is None else splits,
            eval_steps=None if whole else own.steps,
            **self._eval_options,
            **options,
        )

    @functools.cached_property
    def eval_student(self) -> Student:
        """The network that is evaluated: one without adapters.

        They are merged into it once: each token that is decoded would go through all of them.
        """
        student = self.student
        if self.config.lora is None:
            return student
        config = lora_lib.without(student.config)
        return Student(config, student.mesh, fsdp=self.config.mesh.fsdp)

    def eval_programs(self) -> EvalPrograms:
        """The programs of `evaluator`, of which none is compiled yet; no data is read."""
        return EvalPrograms(
            self.eval_student,
            self.batching.lengths,
            parts=self._choice.method.names,
            **self._eval_options,
        )

    @property
    def _eval_options(self) -> dict[str, Any]:
        own = self.config.evaluation
        return {
            "batch_size": own.batch_size or self.config.batching.batch_size,
            "loss_normalization": self.loss.normalizations,
        }

    def prompting(self, **overrides: Any) -> Prompting:
        """Returns how a student of the run is asked; `overrides` that are None change nothing."""
        info = self._choice.info
        trained = vars(self._choice.settings) | {"method": info and info.method}
        return prompting_from(trained, **overrides)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the task declares.

        Raises:
          UserError: it declares none.
        """
        info = self._choice.info
        if info is None or not info.dataset.labels:
            raise UserError(
                f"CANDIDATES = 'task', but the task {self._choice.name} declares no labels: list "
                "them, as in CANDIDATES = ['yes', 'no']."
            )
        return info.dataset.labels

    def label_prompt(self, vocabulary: Encodes) -> list[int]:
        """Returns what the decoder is given before it writes a label, as `vocabulary` counts it."""
        target = self._choice.method.target_of(NAMES[0])
        return decoder_prompt(self._choice.settings, target, vocabulary)

    @functools.cached_property
    def evaluate(self) -> EvaluateFn | None:
        """`evaluate(state, step) -> {split: metrics}`; None where nothing is to be evaluated."""
        if not self.config.evaluation.splits:
            return None
        evaluator = self.evaluator()
        return lambda state, step: self.evaluate_with(evaluator, state.params, step)

    def to_device(self, batch: Mapping[str, np.ndarray]) -> Any:
        """Puts a numpy batch on the mesh."""
        return to_global(batch, self.student.mesh)

    def evaluate_with(
        self, evaluator: Evaluator, params: Any, step: int
    ) -> Mapping[str, Mapping[str, Any]]:
        """Evaluates parameters, and writes the predictions into `MODEL_DIR/predictions`."""
        results, predictions = evaluator(params)
        write_predictions(self.config.folder / "predictions", predictions, step)
        return results

    def checkpoints(self, kind: type[CheckpointManager] = CheckpointManager) -> CheckpointManager:
        """Opens the run's checkpoints.

        Raises:
          UserError: MODEL_DIR cannot be written to, or a setting is out of its range.
        """
        saving = self.config.saving
        return kind(
            self.config.folder,
            keep=saving.keep_checkpoints,
            best_metric=self.config.best_metric,
            best_mode=saving.best_mode,
            saved_params=None if self.config.lora is None else lora_lib.adapters_of,
        )

    def fresh_state(self) -> TrainState:
        """Creates the state of a run that begins, with parameters drawn from the seed."""
        seed = self.config.seed
        params = self.student.init_params(seed)
        return placement.create_state(
            self.student, params, self.optimizer, seed, self.abstract_state
        )

    def initial_params(self, path: str | os.PathLike[str], abstract: Any) -> Any:
        """Reads the first parameters; adapters are drawn from the seed."""
        if self.config.lora is None:
            return loading.load_params_of(path, abstract)
        adapters = lora_lib.adapters_of(self.student.init_params(self.config.seed))
        return lora_lib.join(self._base(loading.identify(path)), adapters)

    def adapted(self, adapters: Any, checkpoints: CheckpointManager, step: int) -> Any:
        """All parameters of a run that goes on, whose checkpoints hold adapters alone."""
        source = loading.identify(checkpoints.path_of(step))
        return lora_lib.join(self._base(loading.base_of(source)), adapters)

    def restored_params(self, checkpoint: epath.Path) -> Any:
        """Reads all parameters of one of the run's checkpoints, adapters apart from the rest.

        Raises:
          UserError: it is damaged, or the weights that it adapts are not there any more.
        """
        placed = self.student.placed_params
        if self.config.lora is None:
            return restore_params(checkpoint, placed)
        adapters = restore_params(checkpoint, lora_lib.adapters_of(placed))
        base = self._base(loading.base_of(loading.identify(checkpoint)))
        return lora_lib.join(base, adapters)

    def _base(self, source: loading.Source) -> Any:
        """The parameters that are adapted, read once where several runs share them."""
        abstract = lora_lib.split(self.student.placed_params)[0]
        if self._bases is None:
            return loading.load_params(source, abstract)
        digest = loading.weights_digest(source)
        if digest not in self._bases:
            self._bases[digest] = loading.load_params(source, abstract)
        return self._bases[digest]
