"""What was found about compiled programs, as text for a terminal and as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sbs_jax.planning.compiling import Compiled


def in_bytes(count: float) -> str:
    """A number of bytes, short: `1.50 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def in_flops(count: float) -> str:
    """A number of floating-point operations, short: `1.09 TFLOP`."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}FLOP"
        count /= 1000
    return f"{count:.4g} PFLOP"


def in_seconds(seconds: float) -> str:
    """A time, short: `244 ms`."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def lines(one: Compiled) -> list[str]:
    """All that is known of a compiled program, a line for each kind of fact."""
    found = [f"{one.name} (compiled in {one.seconds:.0f} s), on each of {one.num_devices} devices:"]
    found.append(f"  parameters {in_bytes(one.parameter_bytes)}")
    if one.optimizer_bytes:
        found.append(f"  optimizer {in_bytes(one.optimizer_bytes)}")
    if one.memory is not None:
        found.append(f"  activations and other temporaries {in_bytes(one.memory.temporaries)}")
        found.append(f"  generated code {in_bytes(one.memory.code)}")
    if one.beside_bytes:
        found.append(f"  on the device meanwhile, but not read {in_bytes(one.beside_bytes)}")
    found.append(f"  {verdict(one)}")
    if one.program is not None:
        found.append(
            f"  computes {in_flops(one.program.flops)} ({in_flops(_share(one))} without "
            "recomputation and repetition)"
        )
        found.append(f"  moves {in_bytes(one.program.traffic)} to and from its memory")
        for kind, size in sorted(one.program.collective_bytes().items(), key=lambda pair: -pair[1]):
            times = sum(c.count for c in one.program.collectives if c.kind == kind)
            found.append(f"  {kind}: {in_bytes(size)} in {times} calls")
    if one.bound is not None:
        found.append(f"  {bound_in_words(one)}")
    return found


def verdict(one: Compiled) -> str:
    """`peak 3.21 GiB of 16.00 GiB: fits`."""
    if one.peak_bytes is None:
        return f"does not fit: {_reason(one)}"
    peak = in_bytes(one.peak_bytes)
    if one.target is None:
        return f"peak {peak}"
    answer = "fits" if one.fits else "does not fit"
    text = f"peak {peak} of {in_bytes(one.target.chip.memory_bytes)}: {answer}"
    if one.memory_fraction is not None:
        text += f" with XLA_PYTHON_CLIENT_MEM_FRACTION={one.memory_fraction}"
    return text


def bound_in_words(one: Compiled) -> str:
    """The roofline bound, named as one."""
    if one.bound is None:
        return "no bound"
    text = (
        f"roofline bound: at least {in_seconds(one.bound.seconds)} by {one.bound.limit} (compute "
        f"{in_seconds(one.bound.compute)}, memory {in_seconds(one.bound.memory)}, links "
        f"{in_seconds(one.bound.links)})"
    )
    if one.utilization:
        text += f", which would be an MFU of {one.utilization:.0%}; a real execution takes longer"
    return text


def as_json(one: Compiled) -> dict[str, Any]:
    """The same for programs to read: bytes and operations of one device, and seconds."""
    program, bound = one.program, one.bound
    return {
        "program": one.name,
        "target": None if one.target is None else one.target.name,
        "devices": one.num_devices,
        "fits": one.fits,
        "peak_bytes": one.peak_bytes,
        "device_memory_bytes": None if one.target is None else one.target.chip.memory_bytes,
        "parameter_bytes": one.parameter_bytes,
        "optimizer_bytes": one.optimizer_bytes,
        "temporary_bytes": None if one.memory is None else one.memory.temporaries,
        "code_bytes": None if one.memory is None else one.memory.code,
        "beside_bytes": one.beside_bytes,
        "flops": None if program is None else program.flops,
        "model_flops": _share(one),
        "memory_traffic_bytes": None if program is None else program.traffic,
        "collective_bytes": None if program is None else program.collective_bytes(),
        "bound_seconds": None if bound is None else bound.seconds,
        "bound_by": None if bound is None else bound.limit,
        "bound_mfu": one.utilization,
        "compile_seconds": round(one.seconds, 1),
        "exhausted": one.exhausted and _reason(one),
    }


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of text as a Markdown table; the first row's keys are the columns."""
    if not rows:
        return ""
    columns = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    head = " | ".join(name.ljust(widths[name]) for name in columns)
    rule = "|".join("-" * (widths[name] + 2) for name in columns)
    body = (" | ".join(row[name].ljust(widths[name]) for name in columns) for row in rows)
    return "\n".join([f"| {head} |", f"|{rule}|", *(f"| {line} |" for line in body)])


def table_row(one: Compiled) -> dict[str, str]:
    """The columns of a table that a program fills."""
    short = "–"
    peak = short if one.peak_bytes is None else in_bytes(one.peak_bytes)
    bound, mfu = short, short
    if one.bound is not None:
        bound = f"{in_seconds(one.bound.seconds)} ({one.bound.limit})"
        mfu = f"{one.utilization:.0%}" if one.utilization else short
    return {
        "peak": peak,
        "fits": {True: "yes", False: "no", None: short}[one.fits],
        "bound": bound,
        "MFU at the bound": mfu,
        "compiled in": f"{one.seconds:.0f} s",
    }


def _share(one: Compiled) -> float:
    """Model operations of one device."""
    return one.model_flops / one.num_devices


def _reason(one: Compiled) -> str:
    text = (one.exhausted or "").strip()
    return text.splitlines()[0][:300] if text else "the compiler gave no reason"
