#!/usr/bin/env bash
# Runs on a worker, from setup.sh: worker.sh [BUCKET]. Does only what is not done yet.
set -euo pipefail
if [[ ${1:-} == --dry-run ]]; then
    echo "on the worker: a virtual environment in ~/audiolm_jax/.venv, the package with jax[tpu], BUCKET at ~/bucket"
    exit 0
fi
cd "$HOME/audiolm_jax"

wanted="$(cat pyproject.toml constraints.txt | sha256sum)"
if [[ "$(cat .venv/installed 2>/dev/null || true)" != "$wanted" ]]; then
    [[ -x "$HOME/.local/bin/uv" ]] || python3 -m pip install --quiet --user uv
    [[ -x .venv/bin/python ]] || "$HOME/.local/bin/uv" venv --quiet --seed --python 3.12 .venv
    .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[tpu,gcs]'
    echo "$wanted" >.venv/installed
fi

bucket="${1:-}"
if [[ -n "$bucket" ]] && ! mountpoint --quiet "$HOME/bucket"; then
    mkdir -p "$HOME/bucket"
    gcsfuse --implicit-dirs --rename-dir-limit 100000 "${bucket#gs://}" "$HOME/bucket"
fi
