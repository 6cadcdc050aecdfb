"""The programs that answer inputs with a trained student, as `python -m sbs_jax.infer` does."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sbs_jax.decoding import shapes
from sbs_jax.decoding.continuous import ContinuousDecoder
from sbs_jax.errors import UserError
from sbs_jax.inference.loader import Loader
from sbs_jax.inference.programs import Programs
from sbs_jax.inference.prompting import LABEL_KIND, RATIONALE_KIND
from sbs_jax.models.interface import config_from_json, config_to_json
from sbs_jax.partitioning.rules import batch_sharding
from sbs_jax.planning import flops
from sbs_jax.programs.assembly import Assembly
from sbs_jax.programs.plan_programs import RunProgram, WordTokens, decoder_programs
from sbs_jax.student import Student
from sbs_jax.token_ids import EOS_ID


def answering(assembly: Assembly, loader: Loader) -> dict[str, RunProgram]:
    """What answers inputs of full length, in as many rows as there are at most.

    Labels are decoded where they are open, and ranked where they are closed; rationales are decoded
    or searched for, as the strategy says.

    Args:
      assembly: the training run of the student.
      loader: says how the student is asked.

    Raises:
      UserError: another engine than JAX answers.
    """
    if loader.engine != "jax":
        raise UserError(f"ENGINE = {loader.engine!r} is not compiled by XLA; leave infer out.")
    student = _student(assembly, loader)
    params = student.placed_inference_params
    prompting = assembly.prompting(**vars(loader.prompting))
    words = WordTokens(student.config.vocab_size)
    prompts: dict[str, list[int]] = {
        kind: words.encode(text) if (text := prompting.decoder_text(kind)) else []
        for kind in (LABEL_KIND, RATIONALE_KIND)
    }
    lengths = assembly.batching.lengths
    length = loader.max_decode_len or lengths["targets"]
    programs = Programs(student, prompts, length, loader.strategy)
    rows = shapes.row_counts(loader.batch_size, student.mesh.shape["data"])[-1]
    longest = shapes.input_lengths(lengths["inputs"])[-1]
    sharding = batch_sharding(student.mesh)

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)

    def batched(name: str, program: Any, *given: Any) -> RunProgram:
        return RunProgram(
            name,
            program,
            (params, *given),
            lambda: flops.of_jaxpr(program.trace(params, *given).jaxpr.jaxpr, turns=length),
            params,
        )

    found: dict[str, RunProgram] = {}
    candidates = loader.candidates
    if candidates == "task":
        candidates = assembly.labels
    decoded: dict[str, ContinuousDecoder] = {}
    tokens = {"tokens": array(rows, longest)}
    if prompting.explains_itself:
        decoded["answers"] = programs.outputs
    elif candidates is None:
        decoded["labels"] = programs.labels
    elif candidates == "choices":
        # As many as there are places for at least, in labels and in their tokens.
        own = tokens | {"candidates": array(rows, shapes.power_of(1), shapes.power_of(1))}
        name = f"ranking of the labels that each of {rows} inputs lists"
        found["rank"] = batched(name, programs.ranking, own, None)
    else:
        tree = programs.tree(tuple((*words.encode(text), EOS_ID) for text in candidates))
        name = f"ranking of {len(candidates)} labels of {rows} inputs"
        found["rank"] = batched(name, programs.ranking, tokens, tree)
    if not prompting.explains_itself:
        if programs.rationales is None:
            beams = loader.strategy.num_beams
            name = f"search for {rows} rationales with {beams} beams"
            found["search"] = batched(name, programs.searching, tokens)
        else:
            decoded["rationales"] = programs.rationales
    for what, decoder in decoded.items():
        parts = decoder_programs(decoder, params, rows, longest, what)
        for name, part in parts.items():
            if any(part.program is other.program for other in found.values()):
                continue  # It serves labels and rationales.
            if name != "advance":
                part = dataclasses.replace(part, name=f"{part.name} for {what}")
            found[f"{name}-{what}"] = part
    return found


def _student(assembly: Assembly, loader: Loader) -> Student:
    """The student as it is loaded: how its run computed says nothing of how it answers."""
    config = config_from_json(config_to_json(assembly.eval_student.config), "the run")
    product_dtype = loader.inference_dtype or config.product_dtype
    config = dataclasses.replace(config, dtype=loader.dtype, product_dtype=product_dtype)
    return Student(config, assembly.student.mesh, fsdp=loader.mesh.fsdp)
