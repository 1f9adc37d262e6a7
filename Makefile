# Two commands on a fresh machine: `make run` and `make test`. `make help` shows the rest.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
NEEDS := constraints.txt pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help run test check bench peers clean

help:  ## Show what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  The environment is made once, in $(VENV). PYTHON=... names another Python 3.11 or 3.12."

run: $(VENV)/ready  ## Start the main job: replay MovieLens, learn it, serve it (ARGS="--fresh" ...)
	@$(BIN)/headrace run $(ARGS)

test: $(VENV)/ready-dev  ## Run all tests (ARGS="-k table", JOBS=1 ...)
	@echo "Running the tests (some minutes) ..."
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

check: $(VENV)/ready-dev  ## Lint, types, house rules
	@echo "ruff ..." && $(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .
	@echo "mypy --strict ..." && $(BIN)/mypy
	@echo "house rules ..." && $(BIN)/python -m pytest -q tests/test_house.py

bench: $(VENV)/ready-dev  ## List the benchmarks, or run one (NAME=frequency)
	@$(BIN)/headrace bench $(NAME) $(ARGS)

peers: $(VENV)/ready-dev  ## Add what `bench tables`, `train`, `rankers`, `index` and `retrieval` compare with
	@$(PIP) --no-deps fbgemm-gpu-cpu torchrec tensordict pyvers pyre-extensions typing-inspect
	@$(PIP) faiss-cpu hnswlib usearch
	@$(PIP) --no-deps recbole colorlog texttable tensorboard absl-py
	@$(PIP) implicit torch-rechub

clean:  ## Remove the environment and all caches; the state in .headrace stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/python-ready: $(NEEDS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || { \
	  echo "Headrace needs Python 3.11 or 3.12; name one with PYTHON=..."; exit 1; }
	@echo "Making the environment in $(VENV), once: 1 of 2, torch for the CPU ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@touch $@

$(VENV)/ready: $(VENV)/python-ready
	@echo "Making the environment in $(VENV), once: 2 of 2, everything else (a minute or two) ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@echo "Adding what tests and checks need ..."
	@$(PIP) --editable '.[dev]'
	@touch $@
