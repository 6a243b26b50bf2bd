# Each target does all of its own set-up in .venv; nothing outside this folder is changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := constraints.txt
# A CPU build is all that training the small models and the tests need.
TORCH ?= torch==2.13.0

.DEFAULT_GOAL := help
.PHONY: help demo test lint offline-kit bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/runtime: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable .
	@touch $@

$(VENV)/dev: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) install --quiet "$(TORCH)"
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable ".[dev]"
	@touch $@ $(VENV)/runtime

demo: $(VENV)/runtime ## Install the runtime (no PyTorch) and answer for a series, with a picture
	$(BIN)/decipher-rt demo

lint: $(VENV)/dev ## ruff, mypy (strict) and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## Install everything and pass lint, types, import contracts and all tests, with coverage
	$(BIN)/pytest --cov --cov-report=term:skip-covered

offline-kit: $(VENV)/runtime ## Collect wheels and bundle in dist/decipher-rt-offline-kit; installs without a network
	$(BIN)/python scripts/offline_kit.py dist/decipher-rt-offline-kit

clean: ## Remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
