# Sourced by the other tools: finds Python, makes the virtual environment, installs medseg.
# After `prepare EXTRAS` the variable PYTHON names the interpreter to use.

fail() { printf 'medseg: %s\n' "$1" >&2; exit 2; }

find_python() {
  for name in python3.13 python3.12 python3.11 python3 python; do
    if command -v "$name" >/dev/null 2>&1 &&
      "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  return 1
}

has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; }

prepare() {
  local extras=$1 base stamp free
  if [ -n "${VIRTUAL_ENV:-}" ]; then
    PYTHON=$VIRTUAL_ENV/bin/python
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
      fail "the active virtual environment needs Python 3.11 or newer: deactivate it or make a new one"
  else
    base=$(find_python) || fail "Python 3.11 or newer is needed and none was found: install it first"
    PYTHON=$PWD/.venv/bin/python
    if ! "$PYTHON" -c 'import pip' >/dev/null 2>&1; then
      free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
      [ "$free" -ge 5 ] || fail "5 GiB of free disk are needed and only $free are there: make room"
      echo "making a virtual environment in .venv with $base" >&2
      "$base" -m venv .venv || fail "python's venv module is needed: install it (python3-venv)"
    fi
  fi
  stamp=$(dirname "$PYTHON")/../.medseg-installed-$extras
  if [ -f "$stamp" ] && cmp -s "$stamp" pyproject.toml; then return; fi
  echo "installing medseg and what it needs (a few minutes the first time)" >&2
  if ! has_gpu && ! "$PYTHON" -c 'import torch' >/dev/null 2>&1; then
    # The newest release that is also offered as a build without CUDA.
    "$PYTHON" -m pip install --quiet --disable-pip-version-check 'torch==2.13.0' ||
      fail "torch could not be installed: is the network, or the package index of pip, reachable?"
  fi
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -e ".[$extras]" ||
    fail "the packages could not be installed: is the network, or the package index of pip, reachable?"
  cp pyproject.toml "$stamp"
}

# After `prepare_peers` the variable PEERS names the interpreter that has MONAI and nnU-Net. They get an
# environment of their own with the very same torch: nnU-Net would replace ours.
prepare_peers() {
  local base=$PWD/.bench-peers versions stamp
  versions=$("$PYTHON" -c '
from importlib.metadata import version
torch = version("torch").split("+")[0]
_, minor, patch = torch.split(".")[:3]
vision, monai = f"0.{int(minor) + 15}.{patch}", version("monai")
print(f"torch=={torch}\ntorchvision=={vision}\nmonai=={monai}")')
  PEERS=$base/venv/bin/python stamp=$base/installed
  if [ -x "$PEERS" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$versions" ]; then return; fi
  echo "installing the peers into .bench-peers (a few minutes the first time)" >&2
  mkdir -p "$base"
  printf '%s\n' "$versions" >"$base/constraints.txt"
  "$PEERS" -c 'import pip' >/dev/null 2>&1 || "$PYTHON" -m venv "$base/venv"
  "$PEERS" -m pip install --quiet --disable-pip-version-check \
    --constraint "$base/constraints.txt" torch torchvision monai nnunetv2 safetensors ||
    fail "the peers could not be installed: is the package index of pip reachable?"
  printf '%s\n' "$versions" >"$stamp"
}
