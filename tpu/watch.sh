#!/usr/bin/env bash
# Keeps a run going until it is done: a slice that was taken away is asked for again, a run that was stopped is started
# again and resumes. Takes the arguments of run.sh. Ends with the run: 0 when done, 1 diverged, 2 bad input.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

[[ ${#ARGUMENTS[@]} -gt 0 ]] || fail "which command? for example: tpu/watch.sh train --config size_300m ..."
dry=()
if $DRY_RUN; then dry=(--dry-run); fi

# What became of the run on worker 0: its exit code, or whether it runs.
look="cat audiolm.exit 2>/dev/null || { flock --nonblock audiolm.lock true && echo none || echo runs; }"

begin() {
    "$HERE/create.sh" "${dry[@]}" && "$HERE/setup.sh" "${dry[@]}" && "$HERE/run.sh" "${dry[@]}" "${ARGUMENTS[@]}"
}

if $DRY_RUN; then # what happens after a preemption
    "$HERE/delete.sh" --dry-run
    begin
    exit 0
fi
while true; do
    now="$(state)"
    case "$now" in
        ACTIVE)
            ended="$(on 0 "$look" || echo unreachable)"
            echo "$(date +%T) $NAME: $ended"
            case "$ended" in
                0 | 1 | 2) exit "$ended" ;;
                runs | unreachable) ;;
                *) "$HERE/setup.sh" && "$HERE/run.sh" "${ARGUMENTS[@]}" || true ;;
            esac
            ;;
        NONE) begin || true ;;
        FAILED | SUSPENDED) "$HERE/delete.sh" || true ;;
        *) echo "$(date +%T) $NAME: $now" ;;
    esac
    sleep "$POLL"
done
