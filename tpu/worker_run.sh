#!/usr/bin/env bash
# worker_run.sh ARGUMENTS...
# Runs on every worker, called by run.sh: starts `ivl3 train ARGUMENTS...` and leaves it running. Its log is ~/ivl3.log.
set -euo pipefail
cd ~/ivl3_jax

# The lock is held as long as a process has it open: this script, then the block below. No other run starts meanwhile.
exec 9>~/ivl3.lock
flock -n 9 || {
  echo "$(hostname): a run is going on here already; tpu/stop.sh ends it" >&2
  exit 1
}
trap '' HUP # as nohup does: the end of the ssh connection is not the end of the run
{
  echo "== $(date) ivl3 train $*"
  ~/ivl3_venv/bin/ivl3 train "$@" 9>&- &
  echo $! >~/ivl3.pid
  wait $! && code=0 || code=$?
  echo "== $(date) ivl3 train ended, exit code $code"
} </dev/null >>~/ivl3.log 2>&1 &
echo "$(hostname): started"
