# Sourced by the other scripts: makes .venv in the checkout and installs sbs_jax into it.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
VENV_PYTHON=$VENV/bin/python

# Whether command $1 is a Python that sbs_jax supports and that can make a virtual environment.
# It is run, not only looked up: pyenv's shims exist for versions that are not installed.
python_fits() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
    >/dev/null 2>&1
}

# Prints the first Python that fits: $PYTHON if it is set, or else what is on the PATH.
find_python() {
  local candidates=(python3.11 python3.12 python3.13 python3 python) candidate
  if [ -n "${PYTHON:-}" ]; then
    candidates=("$PYTHON")
  fi
  for candidate in "${candidates[@]}"; do
    if python_fits "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: sbs_jax needs Python 3.11, 3.12 or 3.13 with its venv module, and none of these is one:" \
    "${candidates[*]}; install it (Debian, Ubuntu: apt install python3.11-venv), or name it as in" \
    "PYTHON=/path/to/python3.11 bash launch/quickstart.sh" >&2
  return 1
}

# What an installation depends on: setup.py, which names the versions, where the checkout lies (the
# installation points at it), and the Python.
fingerprint() {
  "$VENV_PYTHON" - "$ROOT" <<'PYTHON'
import hashlib, pathlib, sys
root = sys.argv[1]
key = pathlib.Path(root, "setup.py").read_bytes() + f"\n{root}\n{sys.version}".encode()
print(hashlib.sha256(key).hexdigest())
PYTHON
}

# Makes .venv if need be and installs sbs_jax with the extras "$1" ('', 'test' or 'test,parity', ...).
# What has been installed from the same setup.py is not installed again.
ensure_environment() {
  local extras=$1 python want stamp
  if ! python_fits "$VENV_PYTHON"; then
    python=$(find_python)
    echo "Making .venv with $("$python" --version) ..."
    "$python" -m venv --clear "$VENV"
  fi
  want=$(fingerprint)
  for stamp in "$VENV/sbs_jax-$extras.stamp" "$VENV/sbs_jax-test.stamp"; do
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
      return
    fi
  done
  echo "Installing sbs_jax and what it needs into .venv (once; some minutes) ..."
  "$VENV_PYTHON" -m pip install --quiet --quiet --disable-pip-version-check --no-input \
    --editable "$ROOT${extras:+[$extras]}"
  # Only now: an installation that was interrupted is taken up again.
  echo "$want" >"$VENV/sbs_jax-$extras.stamp"
}
