#!/usr/bin/env bash
# tpu/resume.sh [--dry-run]
# Keeps the run going until it is done: starts it where it does not run, and after a preemption asks for the TPU again.
# Leave it running on a machine that stays awake; it may be interrupted and called again at any time. At the end the TPU
# is still there: tpu/resume.sh && tpu/delete.sh
set -euo pipefail
# shellcheck source=tpu/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
takes 0 "$@"

commit=$(git -C "$ROOT" rev-parse HEAD) # what is committed later does not get into this run
tpu=$ROOT/tpu

if [[ -n $DRY_RUN ]]; then
  echo "# every minute:"
  queued_state
  for node in $(nodes); do node_state "$node"; done
  on_workers ask "$IDLE_OR_RUNNING"
  echo "# where no worker runs, to see whether the run is done:"
  run_files
  echo "# if it is not, and the TPU was preempted:"
  "$tpu/delete.sh" --dry-run
  "$tpu/create.sh" --dry-run
  echo "# then:"
  "$tpu/setup.sh" "$commit" --dry-run
  "$tpu/run.sh" --dry-run
  exit
fi

tell() { echo "$(date '+%F %T') $*"; }

errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
told=''
tries=0
before='' # the files of the run at the last try
while :; do
  state=$(slice_state) || state=UNKNOWN # gcloud has said why
  if [[ $state == READY ]]; then
    if workers=$(on_workers ask "$IDLE_OR_RUNNING" 2>"$errors"); then
      [[ $workers != *running* ]] || state=RUNNING
    else
      cat "$errors" >&2
      state=UNREACHABLE
    fi
  fi
  [[ $state == "$told" ]] || tell "$NAME is $state"
  told=$state

  case $state in
    RUNNING | UNREACHABLE | UNKNOWN | SUSPENDING | DELETING) ;; # wait
    *)
      if files=$(run_files | sort -u); then
        ! is_done "$files" || break
        # A mistake in a recipe is one each time: what saves nothing is not started for ever.
        [[ $files == "$before" ]] || tries=0
        before=$files
        ((++tries <= 6)) || fail "six tries brought nothing new into $RUN_DIR; tpu/follow.sh shows the log." \
          "$NAME may still cost money: tpu/delete.sh"
        case $state in
          READY) "$tpu/setup.sh" "$commit" && "$tpu/run.sh" ;;
          FAILED | SUSPENDED | PREEMPTED | TERMINATED) "$tpu/delete.sh" && "$tpu/create.sh" ;;
          *) "$tpu/create.sh" ;; # asks for it if nobody has, and waits for it
        esac || tell "that failed; trying again"
      fi
      ;;
  esac
  sleep 60
done
tell "the run is done: $RUN_DIR/checkpoint. $NAME costs money until tpu/delete.sh"
