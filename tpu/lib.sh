# What the scripts share: the names, --dry-run, and the questions they ask of gcloud. Sourced, not run.
# shellcheck shell=bash
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  echo "$(basename "$0"): error: $*" >&2
  exit 1
}

# Takes --dry-run and --help out of the script's arguments; the others are left to it.
DRY_RUN=''
words=()
for word; do
  case $word in
    --dry-run) DRY_RUN=--dry-run ;;
    -h | --help)
      sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
      exit
      ;;
    -*) fail "$word is not an option; there are --dry-run and --help" ;;
    *) words+=("$word") ;;
  esac
done
set -- ${words[@]+"${words[@]}"}

takes() { # MOST "$@": refuses more arguments than that
  (($# - 1 <= $1)) || fail "${!#} is an argument too many; --help says what it takes"
}

unset PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION SLICES CREATE_OPTIONS RECIPE RUN_DIR TRAIN_OPTIONS EXTRAS PREPARE
names=${IVL3_NAMES:-tpu/names.sh} # as messages have it
file=${IVL3_NAMES:-$ROOT/tpu/names.sh}
[[ -f $file ]] || fail "$names does not exist; copy tpu/names.sh.example there and fill it in"
# shellcheck source=tpu/names.sh.example
source "$file"

require() { # VARIABLE WHAT-IT-IS
  [[ -n ${!1:-} ]] || fail "$names: $1 is missing; it is $2"
}
require PROJECT "the Google Cloud project, such as my-project"
require ZONE "the zone of the TPU, such as europe-west4-b"
require NAME "the name of the TPU, such as ivl3-first"
require ACCELERATOR_TYPE "the kind and size of the slice, such as v5litepod-16"
require RUNTIME_VERSION "the software of the TPU VM, such as v2-alpha-tpuv5-lite"
require RECIPE "the recipe's path from the top of the checkout, such as configs/finetune.yaml"
require RUN_DIR "the run's directory, such as gs://my-bucket/runs/first"
case $RUN_DIR in
  gs://?*/?*) RUN_DIR=${RUN_DIR%/} ;;
  *) fail "$names: RUN_DIR is '$RUN_DIR'; it must be gs://BUCKET/DIRECTORY, since a preempted TPU takes its disks with it" ;;
esac
SLICES=${SLICES:-1}
[[ $SLICES =~ ^[1-9][0-9]*$ ]] || fail "$names: SLICES is '$SLICES'; it must be a whole number of at least 1"
WHERE=(--project="$PROJECT" --zone="$ZONE")

# A command as a shell reads it, with quotes where they are needed.
quote() {
  local word option line='' single="'" escaped="'\\''"
  for word; do
    option=''
    [[ $word != --*=* ]] || option=${word%%=*}=
    word=${word#"$option"}
    case $word in
      *[!A-Za-z0-9_@%+=:,./-]* | '') word="'${word//$single/$escaped}'" ;;
    esac
    line+=" $option$word"
  done
  echo "${line# }"
}

# Runs a command; with --dry-run prints it instead.
ask() { if [[ -n $DRY_RUN ]]; then quote "$@"; else "$@"; fi; }

# The same for what changes something, and is therefore printed either way.
run() {
  [[ -n $DRY_RUN ]] || echo "+ $(quote "$@")" >&2
  ask "$@"
}

nodes() { # the names of the slices
  local slice
  if ((SLICES == 1)); then
    echo "$NAME"
  else
    for ((slice = 0; slice < SLICES; slice++)); do echo "$NAME-$slice"; done
  fi
}

on_workers() { # ask|run COMMAND: in the home directory of every worker; fails if it fails on one of them
  local node
  for node in $(nodes); do
    "$1" gcloud compute tpus tpu-vm ssh "$node" "${WHERE[@]}" --worker=all --command="$2" || return
  done
}

# A run holds ivl3.lock on its worker for as long as it lives, however it ends: see worker_run.sh.
# shellcheck disable=SC2034 # for status.sh and resume.sh
IDLE_OR_RUNNING='flock -n ivl3.lock true && echo idle || echo running'

queued_state() { # of the queued resource; nothing where there is none
  ask gcloud compute tpus queued-resources list "${WHERE[@]}" --filter="name~/$NAME\$" --format='value(state.state)'
}

node_state() { # NODE
  ask gcloud compute tpus tpu-vm describe "$1" "${WHERE[@]}" --format='value(state)'
}

# One word: NONE where nothing was asked for; the state of the queued resource until it is ACTIVE; then READY, or the
# state of the first slice that is not.
slice_state() {
  local state node
  state=$(queued_state) || return
  if [[ $state == ACTIVE ]]; then
    for node in $(nodes); do
      state=$(node_state "$node") || return
      [[ $state == READY ]] || break
    done
  fi
  echo "${state:-NONE}"
}

# The objects in RUN_DIR. The run is done when its last checkpoint is there, of which SHA256SUMS is written last.
run_files() { ask gcloud storage objects list "$RUN_DIR/**" --format='value(name)'; }
is_done() { grep -qxF "${RUN_DIR#gs://*/}/checkpoint/SHA256SUMS" <<<"$1"; }
