#!/usr/bin/env bash
# Runs the tests: makes .venv if need be, installs what they need, runs pytest with the arguments given.
#
#   [EXTRAS=test,parity] [SBS_RELEASE_DIR=PATH] [SBS_T5X_CHECKPOINTS_DIR=PATH] \
#       bash launch/test.sh [pytest's options, tests]
#
# EXTRAS are those of setup.py that are installed, by default `test`. `parity` adds the tests against
# Hugging Face's transformers and some GB of PyTorch.
# With SBS_RELEASE_DIR, the folder of the authors' released data, the tests on these files run too;
# with SBS_T5X_CHECKPOINTS_DIR, the folder of checkpoints that T5X wrote, those on them.
set -euo pipefail
for name in SBS_RELEASE_DIR SBS_T5X_CHECKPOINTS_DIR; do
  folder=${!name:-}
  if [ -n "$folder" ]; then
    if [ ! -d "$folder" ]; then
      echo "error: $name=$folder: there is no such folder." >&2
      exit 1
    fi
    export "$name=$(cd "$folder" && pwd)"
  fi
done
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ensure_environment "${EXTRAS:-test}"
cd "$ROOT"
if [ $# -eq 0 ]; then
  # The whole suite: many tests wait for processes of theirs, so two go on at a time.
  set -- --numprocesses=2 --dist=loadfile
fi
exec "$VENV_PYTHON" -m pytest "$@"
