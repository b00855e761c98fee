#!/usr/bin/env bash
# Make the virtual environment $VENV from $PYTHON and install Tessera into it at the versions of constraints.txt.
# Where $PYTHON already has a torch that drives a GPU, that torch is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} VENV=${VENV:-.venv}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Tessera needs Python 3.11 or newer; '$PYTHON' is $("$PYTHON" --version 2>&1). Try: make PYTHON=python3.12" >&2
    exit 2
}
own_torch() {
    "$PYTHON" -c 'import torch; assert torch.cuda.is_available(); print(torch.__version__)' 2>/dev/null || true
}

constraints=constraints.txt
torch=$(own_torch)
if [ -n "$torch" ]; then
    echo "keeping torch $torch, which drives this machine's GPU"
    constraints=$(mktemp)
    trap 'rm -f "$constraints"' EXIT
    grep -v '^torch==' constraints.txt >"$constraints"
    options=--system-site-packages
fi
if [ ! -x "$VENV/bin/python" ]; then
    "$PYTHON" -m venv ${options:-} "$VENV" || {
        echo "python3 cannot make a virtual environment; on Debian or Ubuntu: sudo apt-get install python3-venv" >&2
        exit 2
    }
fi
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" --editable '.[dev]'
