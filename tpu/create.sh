#!/usr/bin/env bash
# tpu/create.sh [--dry-run]
# Asks for the TPU and waits until it is there. It may be interrupted and called again: what was asked for stays.
set -euo pipefail
# shellcheck source=tpu/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
takes 0 "$@"

create=(gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}")
create+=(--accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION")
if ((SLICES == 1)); then
  create+=(--node-id="$NAME")
else
  create+=(--node-count="$SLICES" --node-prefix="$NAME")
fi
create+=(${CREATE_OPTIONS[@]+"${CREATE_OPTIONS[@]}"})

if [[ -n $DRY_RUN ]]; then
  run "${create[@]}"
  echo "# then, until they say ACTIVE and READY:"
  queued_state
  for node in $(nodes); do node_state "$node"; done
  exit
fi

state=$(slice_state)
[[ $state != NONE ]] || run "${create[@]}"
told=''
while
  state=$(slice_state) || state=UNKNOWN # gcloud has said why
  [[ $state != READY ]]
do
  [[ $state == "$told" ]] || echo "$(date +%T) $NAME is $state"
  told=$state
  case $state in
    NONE | FAILED | SUSPENDING | SUSPENDED | DELETING | PREEMPTED | TERMINATED)
      gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" --format='yaml(state)' >&2 || true
      fail "$NAME is $state and will not become ready; tpu/delete.sh removes it, then it can be asked for again"
      ;;
  esac
  sleep 30
done
echo "$NAME is READY, and costs money until tpu/delete.sh"
