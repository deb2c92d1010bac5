#!/bin/sh
# Installs OpenBLIP into .venv: scripts/install.sh [EXTRA,...]
# Without a GPU the CPU build of torch is taken where pip can find one: a minute. Else, and with a GPU,
# it is the ordinary build, on Linux with gigabytes of CUDA packages.
set -eu

PYTHON=${PYTHON:-python3}
EXTRAS=${1:+"[$1]"}
TORCH_CPU="torch==2.13.0+cpu"

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "OpenBLIP needs Python >= 3.11; name one: make PYTHON=python3.12 ..." >&2
  exit 1
}
[ -x .venv/bin/pip ] || "$PYTHON" -m venv .venv

has_gpu() { nvidia-smi -L >/dev/null 2>&1; }
has_torch() { .venv/bin/python -c 'import torch' >/dev/null 2>&1; }

if ! has_torch && [ "$(uname -s)" = Linux ] && ! has_gpu; then
  .venv/bin/pip install "$TORCH_CPU" 2>/dev/null ||
    echo "pip finds no $TORCH_CPU; installing the ordinary build, gigabytes with its CUDA packages. A CPU build: point PIP_EXTRA_INDEX_URL at PyTorch's CPU wheels." >&2
fi
.venv/bin/pip install --editable ".$EXTRAS"
