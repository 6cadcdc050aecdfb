"""The programs of a run, ready to be compiled: the training step, and those of an evaluation."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from sbs_jax.planning import compiling, flops
from sbs_jax.planning.targets import Target


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

    def compile(self, mesh: Any, target: Target | None) -> compiling.Compiled:
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


def training(assembly: Any) -> dict[str, RunProgram]:
    """The training step of a run (`programs.assembly.Assembly`)."""
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


def losses(assembly: Any) -> dict[str, RunProgram]:
    """The losses of an evaluation, of as many rows as it computes them of at a time."""
    programs, student = assembly.eval_programs(), assembly.eval_student
    lengths, params = assembly.batching.lengths, student.placed_params
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


def decoding(assembly: Any) -> dict[str, RunProgram]:
    """What decodes the labels of an evaluation: slots that are all in use, inputs of full length.

    An evaluation calls these three by turns; see `decoding.continuous`.
    """
    programs, params = assembly.eval_programs(), assembly.eval_student.placed_params
    decoder = programs.decoder(assembly.label_prompt(_Words()))
    rows, longest = programs.rows, programs.lengths[-1]
    arguments = decoder.arguments(params, rows, longest)
    _, slots, pool, taken = arguments["insert"]
    steps, count = decoder.max_decode_len, taken.rows.shape[0]
    inputs = arguments["encode"][1].shape[0]
    names = {
        "encode": f"encoding of {inputs} inputs",
        "insert": f"insertion of {count} encoded inputs into {rows} slots",
        "advance": f"decoding of {steps} tokens in {rows} slots",
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


def find(assembly: Any, name: str) -> RunProgram:
    """The program of a run that is called `name` within a plan."""
    makers = {"train": training, "eval": losses}
    return makers.get(name, decoding)(assembly)[name]


class _Words:
    """Stands for a vocabulary that may not be there: a token for each word and each mark.

    The prompts that it is asked for are a few common words.
    """

    def encode(self, s: str) -> list[int]:
        """Returns a token, which is no real one, for each word and each mark."""
        return [2] * len(re.findall(r"\w+|[^\w\s]", s))


def _forward(student: Any, params: Any, batch: Any) -> float:
    return flops.count_flops(
        lambda params, batch: student.apply(params, batch, None), params, batch
    )
