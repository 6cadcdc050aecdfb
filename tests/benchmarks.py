"""The scripts of `benchmarks/`, which are no package, as modules."""

import importlib.util
import sys

from tests.paths import ROOT


def load(name):
    """Loads benchmarks/NAME.py anew."""
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module
