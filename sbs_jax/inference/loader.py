"""Everything that gin says about the student to be asked, in one place for all programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sbs_jax.errors import UserError
from sbs_jax.inference.predictor import CHOICES, TASK, Predictor, load_predictor
from sbs_jax.inference.programs import Strategy
from sbs_jax.methods import METHODS
from sbs_jax.models.interface import ModelConfig
from sbs_jax.partitioning.mesh import make_mesh


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
      method: how the student was trained: `sbs`, `standard`, `joint`, `rationale_input`.
      label_prefix: the task prefix of labels.
      rationale_prefix: the task prefix of rationales.
      prefix_side: which side reads the prefixes, `encoder` or `decoder`.
      strategy: how rationales are decoded.
      data_parallel: devices along the mesh's `data` axis; -1 takes all that are left.
      model_parallel: devices along the mesh's `model` axis.
      fsdp: also shard parameters along `data`.
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
    method: str | None = None
    label_prefix: str | None = None
    rationale_prefix: str | None = None
    prefix_side: str | None = None
    strategy: Strategy = dataclasses.field(default_factory=Strategy)
    data_parallel: int = -1
    model_parallel: int = 1
    fsdp: bool = False
    trust_modules: bool = False

    def __post_init__(self) -> None:
        known = {
            "METHOD": (self.method, METHODS),
            "PREFIX_SIDE": (self.prefix_side, ("encoder", "decoder")),
        }
        for macro, (value, values) in known.items():
            if value is not None and value not in values:
                raise UserError(f"{macro} = {value!r} is unknown; there are {', '.join(values)}.")
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
        return load_predictor(
            self.checkpoint_path,
            mesh=make_mesh(self.data_parallel, self.model_parallel),
            batch_size=self.batch_size,
            model_config=self.model_config,
            dtype=self.dtype,
            inference_dtype=self.inference_dtype,
            engine=self.engine,
            vocabulary_path=self.vocabulary_path,
            feature_lengths=None if self.feature_lengths == "auto" else self.feature_lengths,
            max_decode_len=self.max_decode_len,
            candidates=self.candidates,
            prompting={
                "method": self.method,
                "label_prefix": self.label_prefix,
                "rationale_prefix": self.rationale_prefix,
                "prefix_side": self.prefix_side,
            },
            strategy=self.strategy,
            fsdp=self.fsdp,
            trust_modules=self.trust_modules,
            **options,
        )
