#!/usr/bin/env bash
# tpu/stop.sh [--dry-run]
# Asks the run on every worker to save and end (SIGTERM), and waits up to ten minutes. The TPU stays, and costs money.
set -euo pipefail
# shellcheck source=tpu/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
takes 0 "$@"

# First all of them, then the waiting: a run saves when every process of every slice knows.
# shellcheck disable=SC2016 # for the worker's shell
on_workers run 'flock -n ivl3.lock true || kill -TERM "$(cat ivl3.pid)"'
on_workers run 'flock -w 600 ivl3.lock true || { echo "still running after ten minutes" >&2; exit 1; }; tail -n 1 ivl3.log'
