#!/usr/bin/env bash
# Follows the log of one worker: logs.sh [WORKER], 0 if none is given.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
on "${ARGUMENTS[0]:-0}" "tail -n 100 -F audiolm.log"
