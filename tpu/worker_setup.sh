#!/usr/bin/env bash
# worker_setup.sh EXTRAS DATE PREPARE
# Runs on every worker, called by setup.sh: installs ~/ivl3_jax with its extras, from packages not newer than DATE, into
# ~/ivl3_venv, then runs the shell command PREPARE.
set -euo pipefail
cd

# The Python of the image may be too old: Ubuntu 22.04 has 3.10. uv brings 3.11 along and needs neither root, as the PPA
# `deadsnakes` would, nor apt, whose lock a VM that has just started may hold for its own upgrades.
PATH=$HOME/.local/bin:$PATH
command -v uv >/dev/null || python3 -m pip install --quiet --user uv
[[ -x ivl3_venv/bin/python ]] || uv venv --quiet --allow-existing --python 3.11 ivl3_venv
uv pip install --quiet --python ivl3_venv/bin/python --exclude-newer "$2" --editable "./ivl3_jax[$1]"
bash -c "$3"
echo "$(hostname): $(ivl3_venv/bin/ivl3 --version) is installed"
