#!/usr/bin/env bash
# tpu/delete.sh [--dry-run]
# Deletes the TPU with all that is on its disks, without asking, and lists what is left in the zone. RUN_DIR stays.
set -euo pipefail
# shellcheck source=tpu/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
takes 0 "$@"

run gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet
run gcloud compute tpus queued-resources list "${WHERE[@]}"
run gcloud compute tpus tpu-vm list "${WHERE[@]}"
