r"""Compiles a run's programs for named hardware that need not be there, and says what they take.

For instance:
    python -m sbs_jax.plan --target=v5e:4x4 --gin_file=examples/svamp_t5_1_1_small.gin \
      --gin.FSDP=True
    python -m sbs_jax.plan --target=h100:8 --search --gin_file=examples/svamp_t5_1_1_small.gin

It takes the gin files and the flags of a training run, reads no data and allocates nothing. Memory,
operations and the bytes of collectives are those of the program that XLA compiled; the time is a
bound from the chip's published figures, which no real execution reaches.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sbs_jax.configuration import config as config_lib
from sbs_jax.configuration import flags as flags_lib
from sbs_jax.configuration.help import help_text
from sbs_jax.errors import UserError, with_exit_code
from sbs_jax.experiments import runs
from sbs_jax.files import atomic_write_jsonl
from sbs_jax.planning import targets

PROGRAMS = ("train", "eval", "decode", "infer")

_MAX_COMPILES = 12


@with_exit_code
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0 also for a run that does not fit."""
    command = sys.argv[1:] if argv is None else None
    argv = list(sys.argv[1:] if argv is None else argv)
    own, flags = parse(argv)
    # Nothing is written to the one, or read from the other.
    config = _read(flags, ["MODEL_DIR"])
    if "CHECKPOINT_PATH" in config.used_macros:
        config = _read(flags, ["MODEL_DIR", "CHECKPOINT_PATH"])
    if flags.help:
        shared = help_text("python -m sbs_jax.plan", __doc__ or "", flags, config)
        print(f"{shared}\n\nflags of a plan:{parser().format_help().partition('options:')[2]}")
        return 0
    config.check()
    logging.basicConfig(level=logging.WARNING)
    if own.compile is not None:
        compile_for_parent(config, own)
        return 0
    found = []
    try:
        for record in plan(config, own, command if own.target else None):
            found.append(record)
    finally:  # What took minutes to compile is kept when a later program fails.
        if own.json is not None and found:
            atomic_write_jsonl(own.json, found)
    return 0


def _read(flags: flags_lib.Flags, unused: Sequence[str]) -> config_lib.GinConfig:
    """Reads the gin files and flags; macros that must have a value, but are not used, have one."""
    return config_lib.read(
        flags.gin_file,
        flags.gin_bindings,
        [*((name, "plan") for name in unused), *flags.gin],
        flags.gin_search_paths,
        target=runs.TRAIN,
    )


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, flags_lib.Flags]:
    """Parses the command line: the flags of a plan, and those that all programs share.

    Raises:
      UserError: a flag is unknown, its value is malformed, or it would do nothing.
    """
    own, others = parser().parse_known_args(argv)
    flags = flags_lib.parse_flags(others)
    if own.max_compiles is not None and own.max_compiles < 1:
        raise UserError(f"--max_compiles={own.max_compiles} must be at least 1.")
    if own.max_compiles is not None and not own.search:
        raise UserError("--max_compiles limits a search; add --search, or leave it out.")
    if own.programs is not None and own.search:
        raise UserError("--search compiles the training step alone; leave --programs out.")
    for name in _names(own):
        if name not in PROGRAMS:
            raise UserError(
                f"--programs={own.programs}: {name!r} is none; choose among {', '.join(PROGRAMS)}."
            )
    if own.target is not None:
        targets.parse_target(own.target)
    return own, flags


def _names(flags: argparse.Namespace) -> list[str]:
    """The programs that are compiled without `--search`."""
    text = "train" if flags.programs is None else flags.programs
    return [name.strip() for name in text.split(",")]


def parser() -> argparse.ArgumentParser:
    """The flags that a plan has besides those of a training run."""
    result = flags_lib.Parser(add_help=False, allow_abbrev=False)
    result.add_argument(
        "--target",
        metavar="KIND:SIZE",
        help="what to compile for, such as v5e:4x4, v5p:4x4x4, a100-80:8, h100:8; without it, the "
        "devices of this machine.",
    )
    result.add_argument(
        "--programs",
        metavar="NAMES",
        help="what to compile, separated by commas: train (if the flag is left out), eval (the "
        "losses of a batch), decode (what decodes answers in an evaluation), infer (what answers "
        "with the trained student; --gin_file=runs/predictor.gin says how).",
    )
    result.add_argument(
        "--search",
        action="store_true",
        help="try meshes, FSDP, rematerialisation and microbatches, and rank those that fit.",
    )
    result.add_argument(
        "--max_compiles",
        type=int,
        metavar="N",
        help=f"with --search: compile N layouts at most (default: {_MAX_COMPILES}).",
    )
    result.add_argument("--json", metavar="FILE", help="also write what was found, a line each.")
    # How a plan asks a process of its own for one program; see `planning.isolation`.
    result.add_argument("--compile", help=argparse.SUPPRESS)
    result.add_argument("--result", help=argparse.SUPPRESS)
    return result


def plan(
    config: config_lib.GinConfig, flags: argparse.Namespace, command: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Compiles what the flags ask for and prints what is found.

    Args:
      config: the configuration of a training run, checked.
      flags: the flags of a plan, from `parse`.
      command: the arguments of the command line; each program is then compiled by a process of its
        own, since compilers of devices may crash. None compiles in this process.

    Yields:
      A record for each program that was compiled, as `planning.report.as_json` writes it.

    Raises:
      UserError: the target's compiler is not installed; or of the run itself.
    """
    planned = _planned(config, flags, command)
    if flags.search:
        yield from planned.search(flags.max_compiles or _MAX_COMPILES)
    else:
        yield from planned.describe(_names(flags))


def compile_for_parent(config: config_lib.GinConfig, flags: argparse.Namespace) -> None:
    """Compiles the program that another plan asks for; see `planning.isolation.compile_apart`."""
    from sbs_jax.planning import isolation
    from sbs_jax.planning.search import Layout

    isolation.end_with_parent()
    asked = json.loads(flags.compile)
    layout = None if asked["layout"] is None else Layout(**asked["layout"])
    planned = _planned(config, flags, None)
    isolation.hand_over(planned.compiled(asked["program"], layout), Path(flags.result))


def _planned(
    config: config_lib.GinConfig, flags: argparse.Namespace, command: Sequence[str] | None
) -> Planned:
    # Only now: a mistake on the command line should not wait for JAX.
    from sbs_jax.planning import topology

    target = None if flags.target is None else targets.parse_target(flags.target)
    devices = None if target is None else topology.devices_of(target)
    import gin

    config.apply()
    run = gin.get_bindings(runs.TRAIN)["config"]
    if run.batching.feature_lengths == "auto":
        from sbs_jax.programs.assembly import assemble

        run = dataclasses.replace(run, batching=assemble(run, writes=False).batching)
        print(f"TASK_FEATURE_LENGTHS = 'auto': {run.batching.feature_lengths}")
    return Planned(run, target, devices, command)


class Planned:
    """A run that is planned for a target."""

    def __init__(
        self,
        run: Any,
        target: Any,
        devices: Sequence[Any] | None,
        command: Sequence[str] | None = None,
    ) -> None:
        """Plans `run`; see `plan` for `command`, and `topology.devices_of` for the others."""
        import jax

        self.run, self.target, self.command = run, target, command
        self._lay_out = functools.cache(self._lay_out_anew)
        self.devices = list(jax.devices() if devices is None else devices)

    def describe(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Compiles the run as it is configured, and prints all that is known of each program."""
        from sbs_jax.planning import isolation, report

        print(_title(self._lay_out(None), self.target), flush=True)
        for name in (part for group in names for part in self._parts(group)):
            try:
                compiled = self.compiled(name, None)
            except isolation.CompilerCrash as crash:
                raise UserError(
                    f"--target={self.target.name}: {crash} while it compiled {name}, which is "
                    "an error of its own; other values of REMAT, MODEL_PARALLEL, FSDP or "
                    "BATCH_SIZE may pass."
                ) from None
            print("\n".join(report.lines(compiled)), flush=True)
            yield report.as_json(compiled)

    def search(self, most: int) -> list[dict[str, Any]]:
        """Tries layouts of the run's step, and prints them, the best first."""
        from sbs_jax.planning import report
        from sbs_jax.planning import search as search_lib

        batching = self.run.batching
        if batching.padding_free:
            raise UserError("--search compares batches of rows; set PADDING_FREE to False for it.")
        if batching.examples_per_batch is not None:
            raise UserError(
                "EXAMPLES_PER_BATCH leaves the number of rows to the data; set BATCH_SIZE instead."
            )
        usable = None if self.target is None else self.target.usable_bytes
        fewest = search_lib.fewest_rows(len(self.devices))
        if batching.batch_size % fewest:
            raise UserError(
                f"BATCH_SIZE = {batching.batch_size} rows cannot be divided among "
                f"{len(self.devices)} devices; set it to a multiple of {fewest}."
            )

        def note(one: search_lib.Tried) -> None:
            print(f"{one.layout}: {_outcome(one)}", flush=True)

        tried = search_lib.search(
            len(self.devices),
            batching.batch_size,
            static_bytes=lambda layout: _static_bytes(self._lay_out(layout)),
            usable_bytes=usable,
            compile_layout=functools.partial(self.compiled, "train"),
            most=most,
            note=note,
        )
        rows = [
            {"layout": str(one.layout)} | report.table_row(one.compiled)
            for one in tried
            if one.compiled is not None
        ]
        if rows:
            print(f"\n{report.table(rows)}")
        if tried and tried[0].fits:
            print(f"\nthe least bound has: {tried[0].layout.macros()}")
        else:
            print(
                "\nnothing that was tried fits; take more devices, fewer rows (BATCH_SIZE), "
                "Adafactor, or MOMENT_DTYPE=bfloat16 with AdamW"
            )
        return [
            {
                "layout": dataclasses.asdict(one.layout),
                "static_bytes": one.static_bytes,
                "failure": one.failure,
            }
            | ({} if one.compiled is None else report.as_json(one.compiled))
            for one in tried
        ]

    def _assemble(self, data: int, model: int, **changes: Any) -> Any:
        from sbs_jax.partitioning.mesh import make_mesh
        from sbs_jax.programs.assembly import assemble

        run = dataclasses.replace(self.run, **changes)
        return assemble(run, mesh=make_mesh(data, model, self.devices), writes=False)

    def _parts(self, group: str) -> Sequence[str]:
        """What a name of `PROGRAMS` stands for, as `compiled` wants it."""
        if group in ("train", "eval"):  # Made here, too, the one might read the data twice.
            return [group]
        return [f"{group}/{part}" for part in self._group(group, self._lay_out(None))]

    def _group(self, group: str, assembly: Any) -> dict[str, Any]:
        from sbs_jax.programs import plan_programs

        if group != "infer":
            return plan_programs.MAKERS[group](assembly)
        from sbs_jax.inference.loader import Loader
        from sbs_jax.programs.plan_answers import answering

        try:
            import gin

            make = gin.get_configurable(Loader)
        except ValueError:  # No gin file has named it.
            make = Loader
        return answering(assembly, make(checkpoint_path="plan"))

    def compiled(self, name: str, layout: Any) -> Any:
        """Compiles one program of the run, laid out as `layout` or, None, as it is configured.

        Args:
          name: one of `PROGRAMS`, or `GROUP/PROGRAM` for one of several that it stands for.
          layout: a `planning.search.Layout`, or None.

        Raises:
          CompilerCrash: the process that compiled it died.
        """
        from sbs_jax.planning import isolation

        if self.command is None:
            group, _, part = name.partition("/")
            assembly = self._lay_out(layout)
            chosen = self._group(group, assembly)[part or group]
            return chosen.compile(assembly.student.mesh, self.target)

        asked = None if layout is None else dataclasses.asdict(layout)
        return isolation.compile_apart(self.command, {"program": name, "layout": asked})

    def _lay_out_anew(self, layout: Any) -> Any:
        run = self.run
        if layout is None:
            return self._assemble(run.mesh.data_parallel, run.mesh.model_parallel)
        return self._assemble(
            layout.data,
            layout.model,
            mesh=dataclasses.replace(
                run.mesh,
                data_parallel=layout.data,
                model_parallel=layout.model,
                fsdp=layout.fsdp,
            ),
            batching=dataclasses.replace(run.batching, num_microbatches=layout.microbatches),
            model_config=dataclasses.replace(run.model_config, remat=layout.remat),
        )


def _title(assembly: Any, target: Any) -> str:
    mesh = " × ".join(f"{axis} {size}" for axis, size in assembly.student.mesh.shape.items())
    where = "the devices of this machine" if target is None else target.name
    return f"{assembly.student.num_params:,} parameters on {where} ({mesh})"


def _static_bytes(assembly: Any) -> int:
    from sbs_jax.planning.compiling import device_bytes

    state = assembly.abstract_state
    return device_bytes(state.params) + device_bytes(state.opt_state)


def _outcome(one: Any) -> str:
    from sbs_jax.planning import report

    if one.failure is not None:
        return one.failure
    if one.compiled is None:
        size = report.in_bytes(one.static_bytes)
        return f"parameters and optimizer alone are {size} on each device"
    return f"{report.verdict(one.compiled)}; {report.bound_in_words(one.compiled)}"
