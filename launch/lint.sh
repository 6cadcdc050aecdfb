#!/usr/bin/env bash
# Whatever can be said of the code without running it: makes .venv if need be, then runs ruff,
# codespell and mkdocs.
#
#   [EXTRAS=test,docs] bash launch/lint.sh
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ensure_environment "${EXTRAS:-test,docs}"
cd "$ROOT"
BIN=$VENV/bin
echo "== ruff"
"$BIN/ruff" check .
"$BIN/ruff" format --check .
echo "== codespell"
"$BIN/codespell"
echo "== mkdocs"
NO_MKDOCS_2_WARNING=1 "$BIN/mkdocs" build --strict --quiet
