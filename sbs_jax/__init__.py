"""sbs_jax: Distilling step-by-step (Hsieh et al. 2023) in JAX."""

import importlib as _importlib
from pathlib import Path as _Path
from typing import TYPE_CHECKING
from typing import Any as _Any

if TYPE_CHECKING:
    from sbs_jax.data.registration import register_dataset as register_dataset
    from sbs_jax.data.registry import find_dataset as find_dataset
    from sbs_jax.data.release import Example as Example
    from sbs_jax.data.rows import Row as Row
    from sbs_jax.data.rows import read_rows as read_rows
    from sbs_jax.data.settings import DataSettings as DataSettings
    from sbs_jax.data.sources import register_public as register_public
    from sbs_jax.inference.loader import load_predictor as load_predictor
    from sbs_jax.programs.train import train as train
    from sbs_jax.programs.train_config import TrainConfig as TrainConfig

__version__ = "0.1.0"

# A wheel holds `tasks/` and `gin/` inside this package (setup.py, PACKAGE_DIRS). In a checkout they
# lie beside it: let `sbs_jax.tasks` and `sbs_jax.gin` resolve there too, installed or not.
_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "setup.py").is_file() and (_checkout / "tasks").is_dir():
    __path__.append(str(_checkout))

# Where `from sbs_jax import NAME` finds each name, when it is first asked for. Importing `sbs_jax`
# itself loads neither TensorFlow nor JAX. (The module `sbs_jax.train`, the command, takes the place
# of the function once it is imported: nothing in this package does that.)
_PUBLIC = {
    "DataSettings": "sbs_jax.data.settings",
    "TrainConfig": "sbs_jax.programs.train_config",
    "Example": "sbs_jax.data.release",
    "Row": "sbs_jax.data.rows",
    "find_dataset": "sbs_jax.data.registry",
    "read_rows": "sbs_jax.data.rows",
    "register_dataset": "sbs_jax.data.registration",
    "register_public": "sbs_jax.data.sources",
    "load_predictor": "sbs_jax.inference.loader",
    "train": "sbs_jax.programs.train",
}


def __getattr__(name: str) -> _Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
