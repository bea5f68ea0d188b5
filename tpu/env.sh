# Settings of every script here, each of which can also be given in the environment:
#   TYPE=v6e-256 CAPACITY=spot tpu/create.sh
# and what the scripts share. Sourced with the arguments of the script; --dry-run prints the commands and runs none.
: "${PROJECT:=my-project}"
: "${ZONE:=us-east5-b}"
: "${NAME:=audiolm}"          # of the slice and of the request for it
: "${TYPE:=v5litepod-16}"     # v4-32, v5litepod-256 (or v5e-256), v5p-512, v6e-256, ...
: "${CAPACITY:=on-demand}"    # on-demand, spot (cheaper, may be taken away) or reserved
: "${BUCKET:=}"               # gs://..., mounted at ~/bucket of every worker; "" mounts nothing
: "${POLL:=30}"               # seconds between looks at a request or a run
: "${TRIES:=20}"              # failures in a row after which watch.sh gives up

TYPE="${TYPE/#v5e-/v5litepod-}"
DRY_RUN=false
ARGUMENTS=()
for argument in "$@"; do
    if [[ $argument == --dry-run ]]; then DRY_RUN=true; else ARGUMENTS+=("$argument"); fi
done
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
WHERE=(--project "$PROJECT" --zone "$ZONE")

# Runs a command, or prints it, each word quoted as a shell takes it.
run() {
    if $DRY_RUN; then printf '%q ' "$@" | sed 's/ $//' && echo; else "$@"; fi
}

# The state of the request for the slice: ACTIVE, PROVISIONING, SUSPENDED, ..., NONE if there is no such request, or
# UNREACHABLE if gcloud fails for another reason (no network, no login, no permission), which it says on stderr.
state() {
    local errors answer
    errors="$(mktemp)"
    if answer="$(gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" \
        --format='value(state.state)' 2>"$errors")"; then
        echo "$answer"
    elif grep -q NOT_FOUND "$errors"; then
        echo NONE
    else
        cat "$errors" >&2
        echo UNREACHABLE
    fi
    rm -f "$errors"
}

# A command on one worker or on all.
on() {
    local worker="$1"
    shift
    run gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker "$worker" --command "$*"
}

fail() {
    echo "${0##*/}: $*" >&2
    exit 2
}
