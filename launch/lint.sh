#!/usr/bin/env bash
# Whatever can be said of the code without running it: makes .venv if need be, then runs ruff,
# codespell, mypy and mkdocs.
#
#   [EXTRAS=test,docs] bash launch/lint.sh
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ensure_environment "${EXTRAS:-test,docs}"
cd "$ROOT"
BIN=$VENV/bin
# The longest, beside the others.
TYPES=$(mktemp)
trap 'rm -f "$TYPES"' EXIT
"$BIN/mypy" >"$TYPES" 2>&1 &
MYPY=$!
echo "== ruff"
"$BIN/ruff" check .
"$BIN/ruff" format --check .
echo "== codespell"
"$BIN/codespell"
echo "== mkdocs"
NO_MKDOCS_2_WARNING=1 "$BIN/mkdocs" build --strict --quiet
echo "== mypy"
wait "$MYPY" || {
  cat "$TYPES"
  exit 1
}
tail -n 1 "$TYPES"
