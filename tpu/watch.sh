#!/usr/bin/env bash
# Keeps a run going until it is done: a slice that was taken away is asked for again, a run that was stopped is started
# again and resumes. Takes the arguments of run.sh. Ends with the run: 0 when done, 1 diverged, 2 bad input; and with 3
# after TRIES failures of gcloud in a row, so that nobody is asked for ever.
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

start_again() { "$HERE/setup.sh" && "$HERE/run.sh" "${ARGUMENTS[@]}"; }

if $DRY_RUN; then # what happens after a preemption
    "$HERE/delete.sh" --dry-run
    begin
    exit 0
fi
failures=0
attempt() { if "$@"; then failures=0; else failures=$((failures + 1)); fi; }
while true; do
    now="$(state)"
    case "$now" in
        ACTIVE)
            ended="$(on 0 "$look" || echo unreachable)"
            echo "$(date +%T) $NAME: $ended"
            case "$ended" in
                0 | 1 | 2) exit "$ended" ;;
                runs) failures=0 ;;
                unreachable) attempt false ;;
                *) attempt start_again ;;
            esac
            ;;
        NONE) attempt begin ;;
        FAILED | SUSPENDED) attempt "$HERE/delete.sh" ;;
        UNREACHABLE) attempt false ;;
        *) echo "$(date +%T) $NAME: $now" ;;
    esac
    if [[ $failures -ge $TRIES ]]; then
        echo "${0##*/}: gave up after $failures failures in a row, the last one with $NAME $now; see above" >&2
        exit 3
    fi
    sleep "$POLL"
done
