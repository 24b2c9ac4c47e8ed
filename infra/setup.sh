#!/bin/sh
# Makes .venv and installs everything into it from the lock (infra/constraints.txt).
# usage: infra/setup.sh [extra,extra...]      e.g. infra/setup.sh dev,spark
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3.11}
VENV=${VENV:-.venv}
EXTRAS=${1:+[$1]}
command -v "$PYTHON" >/dev/null || { echo "setup: $PYTHON is not on the PATH; install Python 3.11 or set PYTHON=/path/to/it" >&2; exit 1; }
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/pip" install -q --disable-pip-version-check 'uv>=0.9'
# torch: a machine whose pip has a local folder of wheels that holds it uses that one; elsewhere PyTorch's CPU index
# (or CUDA: MTF_TORCH=cu130 infra/setup.sh).
LINKS=${PIP_FIND_LINKS:-$("$VENV/bin/pip" config get global.find-links 2>/dev/null || true)}
TORCH="--torch-backend ${MTF_TORCH:-cpu}"
for d in $LINKS; do
  if ls "$d"/torch-2.13.0* >/dev/null 2>&1; then TORCH="--find-links $d"; fi
done
# shellcheck disable=SC2086
"$VENV/bin/uv" pip install -q --python "$VENV/bin/python" $TORCH -c infra/constraints.txt -e ".$EXTRAS"
# the editable install records what it was made from: rerun only when that changes
cat pyproject.toml infra/constraints.txt | sha256sum | cut -d' ' -f1 > "$VENV/.mtf-lock${1:+-$1}"
