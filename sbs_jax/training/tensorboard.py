"""tensorboardX's `SummaryWriter`, without the seconds that importing torch and others takes.

Where they are installed, tensorboardX imports torch, to recognise tensors among values of
histograms, and the clients of object stores. Numbers are all that is written here, into local files
(`writers` sends them to a remote MODEL_DIR). The packages can be imported afterwards as ever.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_UNUSED = ("torch", "boto3", "google.cloud.storage")


def _import_alone() -> ModuleType:
    hidden = [name for name in _UNUSED if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # importing it is an ImportError now
    try:
        return importlib.import_module("tensorboardX")
    finally:
        for name in hidden:
            del sys.modules[name]


SummaryWriter = _import_alone().SummaryWriter
