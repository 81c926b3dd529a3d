# The developer's commands. `make` alone lists them; each makes and fills .venv by itself first.
#
#   PYTHON=python3.12    the interpreter for .venv; else the first suitable one of python3, python3.13, 3.12, 3.11
#   TORCH_INDEX=URL      a further package index. On Linux, PyPI's torch brings several GB of CUDA packages; without a
#                        GPU, the CPU build saves them: make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                        Unset, pip's own configuration decides.
#   WORKERS=2            processes that share the tests; one torch thread each

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

STARTED := $(shell date +%s)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS := 2
PYTHONS := python3 python3.13 python3.12 python3.11

PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# What tests and quickstart run with: .venv's tools first on the PATH, and nothing looked up on the network.
OFFLINE := env -u OMP_NUM_THREADS PATH="$(CURDIR)/$(BIN):$$PATH" \
	TOKENIZERS_PARALLELISM=false WANDB_MODE=offline HF_HUB_OFFLINE=1

# A worker that has run its half of the tests takes over some of another's.
PYTEST := $(OFFLINE) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help install quickstart test test-full lint format types contracts clean

help: ## list these targets
	@echo "Usage: make TARGET [PYTHON=python3.12] [TORCH_INDEX=https://download.pytorch.org/whl/cpu]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

install: $(STAMP) ## make and fill .venv (the other targets do it when needed)
	@:

quickstart: $(STAMP) ## train, evaluate and score on synthetic videos, into outputs/quickstart
	@echo "Running the quickstart ..."
	@$(OFFLINE) $(BIN)/python scripts/quickstart.py --out outputs/quickstart --started $(STARTED)

test: $(STAMP) ## the fast tests
	@echo "Running the fast tests ..."
	@$(PYTEST) -m "not slow"

test-full: $(STAMP) ## all tests: also kills, ZeRO stages x ranks, fuzzing
	@echo "Running all tests ..."
	@$(PYTEST)

lint: $(STAMP) ## style and common mistakes (ruff)
	@echo "Checking style ..."
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP) ## put the code into ruff's format, with its safe fixes
	@echo "Formatting ..."
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

types: $(STAMP) ## type annotations (mypy)
	@echo "Checking types ..."
	@$(BIN)/mypy

contracts: $(STAMP) ## the order of imports, as setup.cfg states it (import-linter)
	@echo "Checking the import contract ..."
	@PYTHONPATH="$(CURDIR)" $(BIN)/lint-imports --no-logo --config setup.cfg

clean: ## remove .venv, caches and build products; outputs/ stays
	@echo "Removing .venv, caches and build products ..."
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Written last, so that an interrupted installation is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	suits() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }; \
	if ! { suits $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1; }; then \
		chosen=; \
		for candidate in $(or $(PYTHON),$(PYTHONS)); do \
			if suits "$$candidate"; then chosen=$$candidate; break; fi; \
		done; \
		if [ -z "$$chosen" ]; then \
			echo "Python 3.11 or newer is needed; $(if $(PYTHON),$(PYTHON) is not,none of $(PYTHONS) is). Name one: make PYTHON=/path/to/python3" >&2; \
			exit 1; \
		fi; \
		echo "Creating .venv with Python $$("$$chosen" -c 'import platform; print(platform.python_version())') ..."; \
		if ! "$$chosen" -m venv --clear $(VENV) >/dev/null 2>&1; then \
			echo "$$chosen cannot make virtual environments: install its venv package (Debian, Ubuntu: apt-get install python3-venv) or name another with make PYTHON=..." >&2; \
			exit 1; \
		fi; \
	fi; \
	echo "Installing PyTorch into .venv (1 of 2; downloads about 200 MB, several GB with CUDA) ..."; \
	$(PIP_INSTALL) torch; \
	echo "Installing the other packages (2 of 2; downloads about 290 MB, 1 to 3 minutes) ..."; \
	$(PIP_INSTALL) -e ".[dev]"; \
	touch $(STAMP); \
	echo "Installed: $$(du -sh $(VENV) | cut -f1) in .venv, $$(( $$(date +%s) - $(STARTED) )) s."
