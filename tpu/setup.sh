#!/usr/bin/env bash
# Copies this commit to every worker and installs it there; again after a change, or after the slice was made anew.
# What is installed already is left alone. The images bring Python 3.10, which is too old: uv fetches another.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

archive=audiolm_jax.tar.gz
run git -C "$HERE/.." archive --prefix=audiolm_jax/ --output="${TMPDIR:-/tmp}/$archive" HEAD
run gcloud compute tpus tpu-vm scp "${TMPDIR:-/tmp}/$archive" "$NAME:$archive" "${WHERE[@]}" --worker all
on all "tar -xzf $archive && bash audiolm_jax/tpu/worker.sh $(printf '%q' "$BUCKET")"
