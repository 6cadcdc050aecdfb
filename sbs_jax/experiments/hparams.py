"""A sweep in TensorBoard's HParams tab: settings and scores of its runs side by side."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from sbs_jax.experiments.runs import SweepFolder
from sbs_jax.training.tensorboard import SummaryWriter

FOLDER = "tensorboard"


def write(sweep: SweepFolder, names: Sequence[str]) -> int:
    """Writes `SWEEP_DIR/tensorboard`, anew: what runs differ in, and what they scored.

    Args:
      sweep: the folder of the sweep.
      names: the names of the sweep's runs; those without a score are left out.

    Returns:
      How many runs are in it.
    """
    shutil.rmtree(sweep.path / FOLDER, ignore_errors=True)
    records = {name: sweep.record(name) for name in names}
    scored = {
        name: {
            f"{split}/accuracy": float(record[split]["accuracy"])
            for split in ("validation", "test")
            if (record.get(split) or {}).get("accuracy") is not None
        }
        for name, record in records.items()
    }
    scored = {name: scores for name, scores in scored.items() if scores}
    if not scored:
        return 0
    with SummaryWriter(str(sweep.path / FOLDER)) as writer:
        for name, scores in scored.items():
            bindings = records[name].get("bindings", {})
            plain = {
                key: value if isinstance(value, bool | str | float | int) else repr(value)
                for key, value in bindings.items()
            }
            writer.add_hparams(plain, scores, name=name)
    return len(scored)
