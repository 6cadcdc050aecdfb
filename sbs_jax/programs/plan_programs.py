"""The programs of a run, ready to be compiled: the training step, and those of an evaluation.

`plan_answers` has those of a student that is trained.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Callable
from typing import Any

from sbs_jax.decoding.continuous import ContinuousDecoder
from sbs_jax.planning import compiling, flops
from sbs_jax.planning.targets import TargetDevices
from sbs_jax.programs.assembly import Assembly


@dataclasses.dataclass(frozen=True)
class RunProgram:
    """A program, and the shapes that it has.

    Attributes:
      name: what a plan calls it.
      program: has `lower` and `trace`, as what `jax.jit` returns.
      arguments: arrays' shapes with their shardings, and static integers.
      model_flops: counts the network's products; see `compiling.Compiled`.
      params: the abstract parameters.
      opt_state: the optimizer's abstract state.
      resident: abstract arrays that are on the devices while it runs; see `compile_program`.
      turns: how often its loops turn whose end depends on data.
    """

    name: str
    program: Any
    arguments: tuple[Any, ...]
    model_flops: Callable[[], float]
    params: Any
    opt_state: Any = ()
    resident: Any = ()
    turns: int = 1

    def compile(self, mesh: Any, target: TargetDevices | None) -> compiling.Compiled:
        """Compiles it; see `compiling.compile_program`."""
        return compiling.compile_program(
            self.name,
            lambda: self.program.lower(*self.arguments),
            mesh=mesh,
            target=target,
            params=self.params,
            opt_state=self.opt_state,
            model_flops=self.model_flops(),
            resident=self.resident,
            turns=self.turns,
        )


def training(assembly: Assembly) -> dict[str, RunProgram]:
    """The training step of a run."""
    student, state, batch = assembly.student, assembly.abstract_state, assembly.abstract_batch()

    def forward_and_backward() -> float:
        # The gradient of a product is two products.
        return 3 * _forward(student, state.params, batch)

    return {
        "train": RunProgram(
            "train step",
            assembly.step_fn,
            (state, batch),
            forward_and_backward,
            state.params,
            state.opt_state,
        )
    }


def losses(assembly: Assembly) -> dict[str, RunProgram]:
    """The losses of an evaluation, of as many rows as it computes them of at a time."""
    programs, student = assembly.eval_programs(), assembly.eval_student
    lengths, params = assembly.batching.lengths, student.placed_inference_params
    rows = programs.loss_rows(programs.rows, lengths["inputs"], lengths["targets"])
    batch = assembly.abstract_batch(rows)
    return {
        "eval": RunProgram(
            f"eval step of {rows} rows",
            programs.losses,
            (params, batch),
            lambda: _forward(student, params, batch),
            params,
        )
    }


def decoding(assembly: Assembly) -> dict[str, RunProgram]:
    """What decodes the labels of an evaluation: all slots in use, inputs of full length."""
    programs, student = assembly.eval_programs(), assembly.eval_student
    prompt = assembly.label_prompt(WordTokens(student.config.vocab_size))
    decoder = programs.decoder(prompt, short=not assembly.prompting().explains_itself)
    return decoder_programs(
        decoder, student.placed_inference_params, programs.rows, programs.lengths[-1], "answers"
    )


def decoder_programs(
    decoder: ContinuousDecoder, params: Any, rows: int, longest: int, what: str
) -> dict[str, RunProgram]:
    """The programs of a continuous batch, which are called by turns.

    Args:
      decoder: what decodes.
      params: the abstract parameters, with shardings.
      rows: the number of slots, all of which are in use.
      longest: the number of tokens of all inputs.
      what: what is decoded, in a word.
    """
    arguments = decoder.arguments(params, rows, longest)
    _, slots, pool, taken = arguments["insert"]
    steps, count = decoder.max_decode_len, taken.rows.shape[0]
    inputs = pool.bias.shape[0]
    names = {
        "encode": f"encoding of {inputs} inputs",
        "insert": f"insertion of {count} encoded inputs into {rows} slots",
        "advance": f"decoding of {what}, {steps} tokens in {rows} slots",
    }

    def made(name: str) -> RunProgram:
        program, given = getattr(decoder.programs, name), arguments[name]
        turns = steps if name == "advance" else 1
        return RunProgram(
            names[name],
            program,
            given,
            lambda: flops.of_jaxpr(program.trace(*given).jaxpr.jaxpr, turns),
            params,
            # While a pool is encoded, the one before it is still there.
            resident=(params, slots, pool),
            turns=turns,
        )

    return {name: made(name) for name in names}


MAKERS: dict[str, Callable[[Assembly], dict[str, RunProgram]]] = {
    "train": training,
    "eval": losses,
    "decode": decoding,
}
"""What makes the programs of a run that a plan names."""


class WordTokens:
    """Stands for a vocabulary that need not be there: a token for each word and each mark.

    What it is asked for, prompts and labels, are a few common words.
    """

    def __init__(self, size: int) -> None:
        """Takes the size of the vocabulary."""
        self._size = size

    def encode(self, s: str) -> list[int]:
        """Returns a token for each word and each mark; of different words mostly another one."""
        words = re.findall(r"\w+|[^\w\s]", s)
        return [2 + zlib.crc32(word.encode()) % (self._size - 2) for word in words]


def _forward(student: Any, params: Any, batch: Any) -> float:
    return flops.count_flops(
        lambda params, batch: student.apply(params, batch, None), params, batch
    )
