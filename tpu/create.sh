#!/usr/bin/env bash
# Asks for a slice (a queued resource) and waits until it is there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

case "$TYPE" in
    v4-*) image=tpu-ubuntu2204-base ;;
    v5litepod-*) image=v2-alpha-tpuv5-lite ;;
    v5p-*) image=v2-alpha-tpuv5 ;;
    v6e-*) image=v2-alpha-tpuv6e ;;
    *) fail "TYPE=$TYPE is unknown; it is v4-N or v5p-N (N cores, two of a chip), v5litepod-N or v6e-N (N chips)" ;;
esac
case "$CAPACITY" in
    on-demand) capacity=() ;;
    spot) capacity=(--spot) ;;
    reserved) capacity=(--reserved) ;;
    *) fail "CAPACITY=$CAPACITY is unknown; it is on-demand, spot or reserved" ;;
esac

run gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}" --node-id "$NAME" \
    --accelerator-type "$TYPE" --runtime-version "$image" "${capacity[@]}"
$DRY_RUN && exit 0
failures=0
while true; do
    now="$(state)"
    echo "$(date +%T) $NAME: $now"
    case "$now" in
        ACTIVE) exit 0 ;;
        FAILED | SUSPENDED | SUSPENDING | DELETING | NONE) fail "the request is $now; tpu/delete.sh, then ask again" ;;
        UNREACHABLE)
            failures=$((failures + 1))
            [[ $failures -lt $TRIES ]] || fail "gcloud failed $failures times in a row, see above; $NAME is asked for"
            ;;
        *) failures=0 ;;
    esac
    sleep "$POLL"
done
