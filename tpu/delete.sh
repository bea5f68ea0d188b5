#!/usr/bin/env bash
# Gives the slice back, with the request for it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
run gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet
