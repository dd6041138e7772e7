# Every target does its own set-up: the first call makes a virtual environment, the next ones see its stamp.
# PYTHON=... names another interpreter (3.11 or newer) for it, NEWEST_PYTHON=... one for `make test-newest`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-newest check lint format clean

VENV := .venv
NEWEST := .venv-newest
BIN := $(VENV)/bin
PACKAGING := setup.py pyproject.toml
INSTALL := -m pip install -qq --disable-pip-version-check
# Pinned, and installed before anything that asks for "torch": that is the CPU build. Unpinned it may bring gigabytes of
# GPU packages.
TORCH := torch==2.13.0
# For one test, which puts it on its path: built for GPUs, it is not to be found by anything else here.
TORCHVISION := torchvision==0.28.0
PYTEST := -m pytest -n 2 --dist worksteal
# Most of a test's time is compiling: with little optimisation half of it. `make test-all` runs what users run.
QUICKLY := JAX_DISABLE_MOST_OPTIMIZATIONS=1

# The first interpreter that runs and is of version $(1), on PATH or among pyenv's; nothing if there is none.
find_python = $(firstword $(foreach python,python$(1) $(wildcard $(HOME)/.pyenv/versions/$(1)*/bin/python),\
	$(shell $(python) -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(1)")' 2>/dev/null && echo $(python))))
PYTHON ?= $(call find_python,3.11)
NEWEST_PYTHON ?= $(call find_python,3.12)

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

demo: $(VENV)/demo.stamp ## train a small InternVL3 on real handwritten digits and let it answer
	@$(BIN)/ivl3 demo

test: $(VENV)/dev.stamp lint ## lint, and all tests but the long ones
	@$(QUICKLY) $(BIN)/python $(PYTEST) -m "not long"

test-all: $(VENV)/dev.stamp lint ## all tests, the long ones too
	@$(BIN)/python $(PYTEST)

test-newest: ## the tests on Python 3.12 with the newest jax, without PyTorch
	@python="$(NEWEST_PYTHON)"; \
	if [ -z "$$python" ]; then echo "make test-newest: no Python 3.12 found, nothing tested"; exit 0; fi; \
	$(MAKE) --no-print-directory $(NEWEST)/dev.stamp NEWEST_PYTHON="$$python"; \
	$(QUICKLY) $(NEWEST)/bin/python $(PYTEST) -m "not long"

check: $(VENV)/dev.stamp lint ## quick: lint, import direction, and the tests that take no more than seconds
	@$(BIN)/lint-imports --no-logo --cache-dir .cache/import-linter
	@$(QUICKLY) $(BIN)/python $(PYTEST) -m "not long and not slow"

lint: $(VENV)/dev.stamp ## style, format and types
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/ruff format --quiet --check . || { echo "some files are not formatted: make format" >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary

format: $(VENV)/dev.stamp ## format, and repair what ruff can
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

clean: ## remove the virtual environments and caches
	rm -rf $(VENV) $(NEWEST) .cache build dist *.egg-info

$(BIN)/python:
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
		echo "Python 3.11 is needed and was not found; to try another: make PYTHON=python3" >&2; exit 1; \
	fi; \
	echo "setting up $(VENV); once, a few minutes"; \
	"$$python" -m venv $(VENV)

$(VENV)/demo.stamp: $(PACKAGING) | $(BIN)/python
	@$(BIN)/python $(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/dev.stamp: $(PACKAGING) | $(BIN)/python
	@$(BIN)/python $(INSTALL) $(TORCH)
	@$(BIN)/python $(INSTALL) -e '.[demo,dev,parity,parquet,serve,shards,tpu,video,watch]'
	@$(BIN)/python $(INSTALL) --no-deps --upgrade --target $(VENV)/torchvision $(TORCHVISION)
	@touch $@ $(VENV)/demo.stamp

$(NEWEST)/dev.stamp: $(PACKAGING)
	@echo "setting up $(NEWEST); once, a few minutes"
	@$(NEWEST_PYTHON) -m venv $(NEWEST)
	@$(NEWEST)/bin/python $(INSTALL) --upgrade --upgrade-strategy eager -e '.[demo,dev,parquet,serve,shards,tpu,video,watch]'
	@touch $@
