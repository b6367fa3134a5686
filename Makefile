# Every target does its own set-up in .venv. PYTHON=... chooses the interpreter (3.11 or newer);
# ARGS=... goes to the command that the target runs.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help quickstart test check venv clean
.DEFAULT_GOAL := help

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 14

quickstart: .venv/.base  ## train the embedded model for some minutes and watch it improve
	@$(BIN)/python train.py configs/quickstart.yaml $(ARGS)

test: .venv/.dev  ## run the whole test suite
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

check: .venv/.dev  ## run everything a change must pass (ARGS=--no-tests leaves the tests out)
	@scripts/check.sh $(ARGS)

venv: .venv/.dev  ## set up .venv with the tools of a developer

clean:  ## delete .venv, caches and builds; runs/ stays
	@rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "jgrpo needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." \
	       "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up .venv: once, some minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install --editable .
	@touch $@

.venv/.dev: .venv/.base
	@echo "Adding the developer's tools to .venv: once."
	@$(PIP) install --editable '.[dev]'
	@touch $@
