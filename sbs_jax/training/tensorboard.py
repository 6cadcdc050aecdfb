"""tensorboardX's `SummaryWriter`, without the second or two that importing torch takes.

Where torch is installed, tensorboardX imports it, to recognise tensors among values of histograms.
Numbers are all that is written here. torch itself can be imported afterwards as ever.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def _import_without_torch() -> ModuleType:
    if "torch" in sys.modules:  # nothing to be saved
        return importlib.import_module("tensorboardX")
    sys.modules["torch"] = None  # type: ignore[assignment]  # importing it is an ImportError now
    try:
        return importlib.import_module("tensorboardX")
    finally:
        del sys.modules["torch"]


SummaryWriter = _import_without_torch().SummaryWriter
