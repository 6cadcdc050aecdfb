"""Loads a student to be asked: from any checkpoint, with all that gin says about it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from sbs_jax.checkpoints import loading, networks, trees
from sbs_jax.errors import UserError
from sbs_jax.inference.predictor import CHOICES, Predictor
from sbs_jax.inference.programs import Strategy
from sbs_jax.inference.prompting import PromptingOverrides, prompting_from
from sbs_jax.inference.tokenizer import open_tokenizer
from sbs_jax.models.config import T5Config
from sbs_jax.models.interface import ModelConfig, default_prefix_side
from sbs_jax.partitioning.mesh import MeshSettings, make_mesh
from sbs_jax.student import Student
from sbs_jax.text_tokenizer import default_frame

ENGINES = {"jax": ("float32", "bfloat16"), "ctranslate2": ("float32", "int8")}
"""What can run a student, and the dtypes of its products."""

TASK = "task"
"""A value of `candidates`: the labels that the student's task declares."""


@dataclasses.dataclass(frozen=True)
class Loader:
    """A student, how it is asked, and its mesh. gin/runs/predictor.gin binds it.

    An attribute that is None is taken from the settings that the checkpoint was trained with.

    Attributes:
      checkpoint_path: see `checkpoints.loading.identify`.
      model_config: the network's dimensions, for checkpoints that do not say them.
      dtype: dtype of activations, `float32` or `bfloat16`.
      inference_dtype: dtype of weights and inputs of matrix products, whose results keep `dtype`;
        see `T5Config.product_dtype`. None is `dtype`. `int8` needs the engine `ctranslate2`.
      engine: `jax`; or `ctranslate2`, which runs on the CPU alone and needs its package.
      vocabulary_path: a SentencePiece model.
      feature_lengths: `inputs` and `targets`: maximum numbers of tokens of an input, of an answer;
        `auto` is None.
      max_decode_len: maximum number of tokens of an answer, instead of `targets`.
      batch_size: rows of a batch, and slots of continuous batching.
      candidates: a closed label set; `choices`: each input lists its own; `task`: those that the
        task declares; None: labels are open.
      prompting: the method and the prefixes, where they are not to be as trained.
      strategy: how rationales are decoded.
      mesh: how devices are arranged.
      trust_modules: whether the module that the checkpoint names may be imported, which runs its
        code; only candidates = `task` needs it.
    """

    checkpoint_path: str
    model_config: ModelConfig | None = None
    dtype: str = "float32"
    inference_dtype: str | None = None
    engine: str = "jax"
    vocabulary_path: str | None = None
    feature_lengths: Mapping[str, int] | Literal["auto"] | None = None
    max_decode_len: int | None = None
    batch_size: int = 32
    candidates: Sequence[str] | str | None = None
    prompting: PromptingOverrides = dataclasses.field(default_factory=PromptingOverrides)
    strategy: Strategy = dataclasses.field(default_factory=Strategy)
    mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)
    trust_modules: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.candidates, str) and self.candidates not in (CHOICES, TASK):
            raise UserError(
                f"CANDIDATES = {self.candidates!r} is no list of labels; write ['yes', 'no'], or "
                f"'{CHOICES}' where each input lists its own, or '{TASK}' for those that the task "
                "declares."
            )

    def load(self, **options: Any) -> Predictor:
        """Loads the student; `options` are further ones of `Predictor`.

        Raises:
          UserError: something does not work; the sentence says what.
        """
        given = vars(self) | options
        given["mesh"], given["fsdp"] = self.mesh.make(), self.mesh.fsdp
        given["prompting"] = vars(self.prompting)
        if given["feature_lengths"] == "auto":
            given["feature_lengths"] = None
        return load_predictor(**given)


def load_predictor(
    checkpoint_path: str,
    *,
    mesh: Mesh | None = None,
    batch_size: int = Loader.batch_size,
    model_config: ModelConfig | None = None,
    dtype: str | None = None,
    inference_dtype: str | None = None,
    engine: str = Loader.engine,
    vocabulary_path: str | None = None,
    feature_lengths: Mapping[str, int] | None = None,
    max_decode_len: int | None = None,
    candidates: Sequence[str] | str | None = None,
    prompting: Mapping[str, Any] | None = None,
    fsdp: bool = False,
    trust_modules: bool = False,
    **options: Any,
) -> Predictor:
    """Loads a student from any checkpoint; by default it is asked as it was trained.

    Args:
      checkpoint_path: see `checkpoints.loading.identify`.
      mesh: all devices along `data` by default.
      batch_size: see `Loader`.
      model_config: see `Loader`.
      dtype: dtype of activations; by default as the checkpoint says.
      inference_dtype: see `Loader`.
      engine: see `Loader`.
      vocabulary_path: a SentencePiece model; by default the one beside the weights.
      feature_lengths: `inputs` and `targets` in tokens; by default as trained, or 512 and 128.
      max_decode_len: see `Loader`.
      candidates: see `Loader`.
      prompting: attributes of `Prompting` that override those of the checkpoint.
      fsdp: see `MeshSettings`.
      trust_modules: see `Loader`.
      **options: further arguments of `Predictor`.

    Raises:
      UserError: the checkpoint cannot be read, or does not fit something else that was given.
    """
    source = loading.identify(checkpoint_path)
    advice = "name a file of gin/models besides, such as --gin_file=models/t5_1_1_small.gin"
    config = networks.require_config(source, model_config, advice)
    if engine not in ENGINES:
        raise UserError(f"ENGINE = {engine!r} is unknown; there are {', '.join(ENGINES)}.")
    if inference_dtype is not None and inference_dtype not in ENGINES[engine]:
        known = ", ".join(ENGINES[engine])
        raise UserError(
            f"INFERENCE_DTYPE = {inference_dtype!r} is unknown to ENGINE = {engine!r}; there are "
            f"{known}."
        )
    config = dataclasses.replace(config, dtype=dtype or config.dtype)
    if engine == "jax":
        config = dataclasses.replace(config, product_dtype=inference_dtype or config.product_dtype)
    settings = source.settings
    tokenizer = open_tokenizer(vocabulary_path or source.require_vocabulary())
    lengths = {"inputs": 512, "targets": 128} | dict(
        feature_lengths or settings.get("feature_lengths") or {}
    )
    student = Student(config, mesh or make_mesh(), fsdp=fsdp)
    params = loading.load_params(source, student.placed_params)
    found = trees.inspect(params)
    for name, leaf in found.items():
        if leaf.has_nan or leaf.has_infinity:
            raise UserError(f"{source.folder}: the parameter {name} holds NaN or infinity.")
    trained = {
        "prefix_side": default_prefix_side(config),
        # Weights of others; a student of ours says how its inputs were framed.
        "input_frame": None if settings else default_frame(tokenizer.path),
        **(settings.get("data_settings") or {}),
        "method": settings.get("method"),
    }
    step = "" if source.step is None else f" (step {source.step})"
    digests = ",".join(f"{name}={leaf.digest}" for name, leaf in sorted(found.items()))
    digests += hashlib.sha256(Path(tokenizer.path).read_bytes()).hexdigest()
    if engine == "ctranslate2":
        if jax.process_count() > 1:
            raise UserError("ENGINE = 'ctranslate2' works in one process.")
        if not isinstance(config, T5Config):
            raise UserError("ENGINE = 'ctranslate2' runs T5 alone; use 'jax' for other networks.")
        from sbs_jax.inference.ctranslate2_programs import CTranslate2Programs

        quantization = inference_dtype or "float32"
        options["make_programs"] = functools.partial(
            CTranslate2Programs, params, config, quantization
        )
        params = None
    else:
        params = student.for_inference(params)
    predictor = Predictor(
        student,
        params,
        tokenizer,
        name=f"{source.folder}{step}",
        prompting=prompting_from(trained, **(prompting or {})),
        candidates=_task_labels(source, trust_modules) if candidates == TASK else candidates,
        input_length=lengths["inputs"],
        max_decode_len=max_decode_len or lengths["targets"],
        batch_size=batch_size,
        engine=engine,
        inference_dtype=inference_dtype,
        **options,
    )
    predictor.fingerprint = hashlib.sha256(digests.encode()).hexdigest()[:16]
    return predictor


def _task_labels(source: loading.Source, trust_modules: bool) -> tuple[str, ...]:
    # The only thing here that needs TensorFlow.
    from sbs_jax.data import choosing, registration

    task = source.settings.get("mixture_or_task_name")
    registration.import_tasks(source.task_module(trust=trust_modules))
    info = choosing.task_info(task) if task else None
    if info is None or not info.dataset.labels:
        raise UserError(
            f"{source.folder}: CANDIDATES = 'task', but the task it was trained on "
            f"({task or 'unknown'}) declares no labels, or is not registered: name its file of "
            "gin/tasks, or list them, as in CANDIDATES = ['yes', 'no']."
        )
    return info.dataset.labels
