"""The programs that an evaluation runs on the devices, and the shapes that they have there."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from sbs_jax import losses
from sbs_jax.decoding import shapes
from sbs_jax.decoding.continuous import ContinuousDecoder
from sbs_jax.evaluation.loss_step import make_loss_step
from sbs_jax.student import Student

LOSS_TOKENS = 8192
"""How many tokens, of inputs and targets, a device computes losses of at a time, or one row's."""


class EvalPrograms:
    """What `Evaluator` runs; each program is compiled for a shape when it first occurs.

    Attributes:
      rows: the number of rows of a batch, and of slots that answers are decoded in, at most.
      lengths: the numbers of tokens that decoded inputs are padded to.
      losses: `(params, batch)`, the sums of `loss_step.make_loss_step`.
    """

    def __init__(
        self,
        student: Student,
        feature_lengths: Mapping[str, int],
        *,
        batch_size: int,
        parts: Sequence[str],
        loss_normalization: losses.Normalization
        | Mapping[str, losses.Normalization] = "token_mean",
        max_decode_len: int | None = None,
    ) -> None:
        """Compiles nothing yet; see `Evaluator` for the arguments.

        Args:
          student: the network and its mesh.
          feature_lengths: row lengths in tokens, of `inputs` and `targets`.
          batch_size: rows of a batch, rounded up to a multiple of the mesh's `data` axis.
          parts: the names of the parts of the loss.
          loss_normalization: see `losses.part_weights`.
          max_decode_len: maximum number of tokens of an answer; None takes
            `feature_lengths['targets']`.
        """
        self._groups = student.mesh.shape["data"]
        self.rows = shapes.round_up(batch_size, self._groups)
        self.lengths = shapes.input_lengths(feature_lengths["inputs"])
        decoder = functools.partial(
            ContinuousDecoder,
            student,
            max_decode_len=max_decode_len or feature_lengths["targets"],
        )
        common = {False: decoder()}
        common[True] = decoder(few_queries=True, like=common[False])
        # The splits of a task have the same prompts, and so the same programs.
        self._decoder = functools.cache(
            lambda prompt, short: decoder(prompt=prompt, few_queries=short, like=common[short])
        )
        self.losses = student.jit(
            make_loss_step(
                student.hidden,
                head=student.head,
                loss_normalization=loss_normalization,
                names=parts,
            ),
            out_shardings=student.replicated,
        )

    def decoder(self, prompt: Sequence[int], *, short: bool) -> ContinuousDecoder:
        """What decodes answers behind `prompt`, greedily; `short` ones are labels alone."""
        return self._decoder(tuple(prompt), short)

    def slots(self, count: int) -> int:
        """How many slots `count` inputs are decoded in."""
        # No more slots than inputs: those would only be computed in vain.
        return shapes.round_up(min(self.rows, count), self._groups)

    def loss_rows(self, rows: int, inputs: int, targets: int) -> int:
        """How many rows of a batch have their losses computed at a time.

        Args:
          rows: the rows of the batch.
          inputs: the length of its rows of inputs.
          targets: the length of its rows of targets.

        Returns:
          A multiple of the mesh's `data` axis; the last slice may have fewer rows that count.
        """
        most = max(LOSS_TOKENS // (inputs + targets), 1) * self._groups
        return shapes.round_up(-(-rows // -(-rows // most)), self._groups)
