# Each habit has one word. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python

.PHONY: help setup run test check bench docs clean

help: ## list these
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## install what is missing: packages, .venv, guest agent
	@tools/setup.sh

run: setup ## set up, then run a command in a microVM
	@.venv/bin/spore setup
	@echo '$$ spore run -- python3 -c "print(6*7)"'
	@.venv/bin/spore run -- python3 -c "print(6*7)"

test: setup ## set up, then run every test, real microVMs included
	@.venv/bin/spore setup kernel
	@.venv/bin/spore setup kernel --arch aarch64
	@.venv/bin/spore setup rootfs
	@$(PY) -m pytest $(ARGS)

check: setup ## the fast ones: style, types, layers, unit tests
	@$(PY) -m pytest tests/style tests/unit $(ARGS)

bench: ## measure against the bare floor, in one run; prints a table, writes bench/results/
	@tools/setup.sh bench
	@.venv/bin/spore setup
	@$(PY) -m bench.bench $(ARGS)

docs: setup ## write the generated pages again
	@$(PY) tools/gen_cli_docs.py
	@$(PY) tools/gen_openapi.py
	@$(PY) tools/gen_sync.py

clean: ## remove what was built here (SPORE_HOME stays)
	@rm -rf .venv build dist guest/build src/sporevm/_bin src/*.egg-info bench/results \
	  .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
