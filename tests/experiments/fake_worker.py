"""A worker that trains nothing: how a run fares is in its bindings, SEED and RATIONALE_WEIGHT.

SEED 7 fails always, SEED 8 at its first attempt, SEED 9 goes on until it is asked to stop. Accuracy
is RATIONALE_WEIGHT.
"""

import argparse
import os
import signal
import sys
import time

from sbs_jax.experiments import runs as runs_lib
from sbs_jax.experiments.runs import SweepFolder


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweep_dir")
    parser.add_argument("--cpus")
    parser.add_argument("--until", type=float, default=1.0)
    parser.add_argument("--watch_stdin", action="store_true")
    parser.add_argument("names", nargs="+")
    args = parser.parse_args()
    sweep = SweepFolder(args.sweep_dir)
    base, all_runs, _ = sweep.read()
    os.chdir(base.working_dir)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    code = 0
    for name in args.names:
        folder = sweep.folder(name)
        attempts = folder / "attempts"
        attempts.parent.mkdir(parents=True, exist_ok=True)
        with attempts.open("a") as file:
            file.write(f"{args.until:g} {args.cpus}\n")
        seed = all_runs[name].bindings.get("SEED")
        first = len(attempts.read_text().splitlines()) == 1
        config = base.config(all_runs[name], folder)
        sweep.write_record(
            name,
            status="running",
            bindings=dict(all_runs[name].bindings),
            fingerprint=runs_lib.fingerprint(config),
        )
        if seed == 7 or (seed == 8 and first):
            print(f"error: {name} cannot be trained", flush=True)
            code = 1
            continue
        while seed == 9:
            time.sleep(0.02)
        accuracy = all_runs[name].bindings.get("RATIONALE_WEIGHT", 0.5)
        (folder / "metrics.jsonl").write_text(
            '{"step": 3, "split": "train", "loss": 2.0}\n'
            f'{{"step": 3, "split": "validation", "accuracy": {accuracy}}}\n'
        )
        if args.until < 1.0:
            sweep.write_rung(name, args.until)
            continue
        (folder / "predictions").mkdir(exist_ok=True)
        for split in ("validation", "test"):
            (folder / "predictions" / f"{split}.jsonl").write_text("{}\n")
        score = {"accuracy": accuracy, "standard_error": 0.1, "n": 10}
        sweep.write_record(name, status="done", validation=score, test=score, seconds=1.0)
    sys.exit(code)


if __name__ == "__main__":
    main()
