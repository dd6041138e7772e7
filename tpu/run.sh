#!/usr/bin/env bash
# tpu/run.sh [--dry-run]
# Starts the recipe on every worker, and returns: the run goes on without this connection. tpu/follow.sh shows its log.
set -euo pipefail
# shellcheck source=tpu/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
takes 0 "$@"

train=(--config "$RECIPE" --output "$RUN_DIR" --distributed auto ${TRAIN_OPTIONS[@]+"${TRAIN_OPTIONS[@]}"})
on_workers run "$(quote bash ivl3_jax/tpu/worker_run.sh "${train[@]}")"
