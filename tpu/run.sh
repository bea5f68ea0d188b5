#!/usr/bin/env bash
# Starts a command of audiolm on all workers, which go on when the connection ends; output in ~/audiolm.log of each.
#   tpu/run.sh train --config size_300m --data bucket/data --workdir bucket/runs/mine
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

[[ ${#ARGUMENTS[@]} -gt 0 ]] || fail "which command? for example: tpu/run.sh train --config size_300m ..."
case "${ARGUMENTS[0]}" in
    prepare | train | evaluate) ARGUMENTS+=(--processes tpu) ;; # the workers are the processes of one run
esac
command="$(printf ' %q' "${ARGUMENTS[@]}")"
# The exit code in ~/audiolm.exit is what watch.sh looks at; the lock keeps a second run from starting beside the first.
job="rm -f audiolm.exit; audiolm_jax/.venv/bin/audiolm$command >>audiolm.log 2>&1; echo \$? >audiolm.exit"
on all "setsid nohup flock --nonblock audiolm.lock bash -c $(printf %q "$job") </dev/null >/dev/null 2>&1 &"
