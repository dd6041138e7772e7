#!/usr/bin/env bash
# tpu/setup.sh [COMMIT] [--dry-run]
# Sends a commit of this checkout, HEAD by default, to every worker and installs it there; needs no public repository.
set -euo pipefail
# shellcheck source=tpu/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
takes 1 "$@"

commit=$(git -C "$ROOT" rev-parse --verify --quiet "${1:-HEAD}^{commit}") || fail "${1:-HEAD} is not a commit"
git -C "$ROOT" cat-file -e "$commit:$RECIPE" 2>/dev/null ||
  fail "$names: RECIPE is '$RECIPE', which commit ${commit:0:7} does not have; it must be a path from the top of the" \
    "checkout, not through a link, and committed"
[[ -z $(git -C "$ROOT" status --porcelain --untracked-files=no) ]] ||
  echo "setup.sh: warning: changes since the last commit are not sent" >&2

# Not newer than the commit: so every worker gets the same packages, and after a preemption gets them again.
date=$(git -C "$ROOT" log -1 --format=%cI "$commit")
archive=$ROOT/.cache/$NAME.tar.gz
run mkdir -p "$ROOT/.cache"
run git -C "$ROOT" archive --prefix=ivl3_jax/ --output="$archive" "$commit"
for node in $(nodes); do
  run gcloud compute tpus tpu-vm scp "$archive" "$node:ivl3_jax.tar.gz" "${WHERE[@]}" --worker=all
done

install=$(quote bash ivl3_jax/tpu/worker_setup.sh "${EXTRAS:-tpu}" "$date" "${PREPARE:-}")
on_workers run "flock -n ivl3.lock true || { echo 'a run is going on here; tpu/stop.sh ends it' >&2; exit 1; }; \
rm -rf ivl3_jax && tar xzf ivl3_jax.tar.gz && $install"
