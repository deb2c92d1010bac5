#!/bin/sh
# Installs OpenBLIP into .venv: scripts/install.sh [GROUP ...], groups of pyproject.toml's dependency-groups.
# Versions are those of constraints.txt, or of the file in CONSTRAINTS; CONSTRAINTS= takes the newest.
# Without a GPU the CPU build of torch is taken where pip can find one: a minute. Else, and with a GPU,
# it is the ordinary build, on Linux with gigabytes of CUDA packages.
set -eu

PYTHON=${PYTHON:-python3}
CONSTRAINTS=${CONSTRAINTS-constraints.txt}
# Without constraints the newest of pip's own choice.
TORCH_CPU=${CONSTRAINTS:+torch==2.13.0+cpu}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "OpenBLIP needs Python >= 3.11; name one: make PYTHON=python3.12 ..." >&2
  exit 1
}
[ -x .venv/bin/pip ] || "$PYTHON" -m venv .venv
pip=.venv/bin/pip

has_gpu() { nvidia-smi -L >/dev/null 2>&1; }
has_torch() { .venv/bin/python -c 'import torch' >/dev/null 2>&1; }
knows_groups() { $pip install --help | grep -q -- --group; }

for group in "$@"; do set -- "$@" --group "$group"; shift; done
# Groups are known from pip 25.1 on; that of a new environment is as old as its Python.
[ $# = 0 ] || knows_groups || $pip install --upgrade "pip>=25.1"
if [ -n "$TORCH_CPU" ] && ! has_torch && [ "$(uname -s)" = Linux ] && ! has_gpu; then
  $pip install "$TORCH_CPU" 2>/dev/null ||
    echo "pip finds no $TORCH_CPU; installing the ordinary build, gigabytes with its CUDA packages. A CPU build: point PIP_EXTRA_INDEX_URL at PyTorch's CPU wheels." >&2
fi
$pip install ${CONSTRAINTS:+--constraint "$CONSTRAINTS"} --editable . "$@"
