"""Everything that gin says about the student to be asked, in one place for all programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sbs_jax.errors import UserError
from sbs_jax.inference.predictor import CHOICES, TASK, Predictor, load_predictor
from sbs_jax.inference.programs import Strategy
from sbs_jax.models.config import T5Config
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.parts import METHODS


@dataclasses.dataclass(frozen=True)
class Loader:
    """Which student, how it is asked, and on what mesh. gin/runs/predictor.gin binds it.

    What is None is as the checkpoint was trained.

    Attributes:
      checkpoint_path: see `checkpoints.loading.identify`.
      model_config: the network's dimensions, for checkpoints that do not say them.
      dtype: of activations, `float32` or `bfloat16`.
      vocabulary_path: a SentencePiece model.
      feature_lengths: `inputs` and `targets`, the most tokens of an input and of an answer.
      max_decode_len: the most tokens of an answer, instead of `targets`.
      batch_size: rows at a time.
      candidates: a closed label set; `choices`: each input lists its own; `task`: those that the
        task declares; None: labels are open.
      method: how the student was taught: `sbs`, `standard`, `joint`, `rationale_input`.
      label_prefix: asks for the label.
      rationale_prefix: asks for the rationale.
      prefix_side: where these stand, `encoder` or `decoder`.
      strategy: how rationales are written.
      data_parallel: devices along the mesh's `data` axis; -1 takes what is left.
      model_parallel: devices along the mesh's `model` axis.
      fsdp: also cut parameters along `data`.
      trust_modules: whether the module that the checkpoint names may be imported, which runs its
        code; only candidates = `task` needs it.
    """

    checkpoint_path: str
    model_config: T5Config | None = None
    dtype: str = "float32"
    vocabulary_path: str | None = None
    feature_lengths: Mapping[str, int] | None = None
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
            vocabulary_path=self.vocabulary_path,
            feature_lengths=self.feature_lengths,
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
