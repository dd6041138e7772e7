#!/usr/bin/env bash
# tpu/follow.sh [WORKER [SLICE]] [--dry-run]
# Shows the log of a worker, 0 by default, as it grows, until Ctrl-C. The run is not touched.
set -euo pipefail
# shellcheck source=tpu/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
takes 2 "$@"

node=$NAME
((SLICES == 1)) || node=$NAME-${2:-0}
run gcloud compute tpus tpu-vm ssh "$node" "${WHERE[@]}" --worker="${1:-0}" --command='tail -n 100 -F ivl3.log'
