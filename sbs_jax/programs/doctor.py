"""Says what this installation has: versions, devices, folders, and what each extra lacks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Sequence

from packaging.requirements import Requirement
from rich.console import Console
from rich.text import Text

import sbs_jax
from sbs_jax.configuration import process

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "gin-config")
WITH_TENSORFLOW = ("tensorflow", "tensorflow-text", "tensorflow-datasets", "seqio")
"""Packages that only caches, tasks and mixtures of SeqIO, tensorflow-datasets and T5X need."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report; returns 1 if something that training needs is missing, else 0."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(arguments):
        print(__doc__)
        return 0
    if arguments:
        print(f"error: {arguments[0]}: sbs doctor takes no arguments.", file=sys.stderr)
        return 1
    console = Console(highlight=False, markup=False)
    problems: list[str] = []
    for section in (versions(problems), devices(problems), folders(), extras()):
        for name, text in section:
            console.print(Text(f"{name:<18} {text}"), soft_wrap=True)
        console.print()
    for problem in problems:
        console.print(Text(f"problem: {problem}"), soft_wrap=True)
    console.print("Nothing is missing for training." if not problems else "")
    return 1 if problems else 0


def versions(problems: list[str]) -> Iterator[tuple[str, str]]:
    """Versions of Python, of this package and of what it stands on."""
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "sbs_jax", f"{sbs_jax.__version__} in {os.path.dirname(sbs_jax.__file__)}"
    for name in PACKAGES:
        version = _version(name)
        yield name, version or "not installed"
        if version is None:
            problems.append(f"{name} is not installed: pip install {name}")
    for name in WITH_TENSORFLOW:
        yield name, _version(name) or "not installed"
    if lacking := [name for name in WITH_TENSORFLOW if _version(name) is None]:
        yield (
            "",
            "only caches, tasks and mixtures of SeqIO, tensorflow-datasets and T5X need that: "
            f"pip install {' '.join(lacking)}",
        )


def devices(problems: list[str]) -> Iterator[tuple[str, str]]:
    """The devices that JAX finds."""
    try:
        import jax

        found = jax.devices()
    except (ImportError, RuntimeError) as error:
        problems.append(f"JAX finds no device ({str(error).splitlines()[0]})")
        return
    kinds = sorted({device.device_kind for device in found})
    yield "devices", f"{len(found)} × {', '.join(kinds)} ({jax.default_backend()})"
    if jax.default_backend() == "cpu":
        yield (
            "",
            "JAX computes on the CPU; the extras [cuda] and [tpu] add other devices",
        )
    yield "processors", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}"


def folders() -> Iterator[tuple[str, str]]:
    """Where compiled programs are kept."""
    folder = process.cache_folder()
    if process.is_writable(folder):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        yield "compiled programs", f"{folder}, {size / 2**20:,.0f} MiB"
    else:
        yield "compiled programs", f"{folder} is not writable: each run compiles anew"


def extras() -> Iterator[tuple[str, str]]:
    """For each extra, what of it is not installed."""
    try:
        distribution = importlib.metadata.distribution("sbs_jax")
    except importlib.metadata.PackageNotFoundError:
        yield "extras", "unknown: sbs_jax is not installed (pip install -e .)"
        return
    for extra in distribution.metadata.get_all("Provides-Extra") or ():
        if lacking := missing_from(distribution, extra):
            yield f"[{extra}]", f"lacks {', '.join(lacking)}: pip install 'sbs_jax[{extra}]'"
        else:
            yield f"[{extra}]", "installed"


def missing_from(distribution: importlib.metadata.Distribution, extra: str) -> list[str]:
    """Names what an extra asks for that is not installed, also by extras of others (`jax[tpu]`)."""
    lacking = []
    for requirement in map(Requirement, distribution.requires or ()):
        if not _only_for(requirement, extra):
            continue
        if _version(requirement.name) is None:
            lacking.append(requirement.name)
            continue
        inner = importlib.metadata.distribution(requirement.name)
        for name in sorted(requirement.extras):
            lacking += missing_from(inner, name)
    return lacking


def _only_for(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    if marker is None:
        return False
    return marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
