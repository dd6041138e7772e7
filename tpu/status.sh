#!/usr/bin/env bash
# tpu/status.sh [--dry-run]
# Says how the TPU is, whether the run is done, and for every worker whether it runs, with the last line of its log.
set -euo pipefail
# shellcheck source=tpu/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
takes 0 "$@"

look="echo \"\$(hostname): \$($IDLE_OR_RUNNING): \$(tail -n 1 ivl3.log 2>/dev/null)\""
if [[ -n $DRY_RUN ]]; then
  queued_state
  for node in $(nodes); do node_state "$node"; done
  run_files
  on_workers ask "$look"
  exit
fi

state=$(slice_state)
echo "$NAME: $state"
files=$(run_files)
if is_done "$files"; then echo "$RUN_DIR: done"; else echo "$RUN_DIR: not done"; fi
[[ $state != READY ]] || on_workers ask "$look"
