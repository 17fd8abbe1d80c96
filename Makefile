# Two commands do everything on a fresh machine: `make reproduce` and `make test`. Each sets up .venv/ when needed.

PYTHON ?= python3
PARAMETERS ?= paper
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test check lab clean

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

reproduce: $(READY) ## execute the notebooks; figures, tables and records go to results/ (PARAMETERS=smoke for a small one)
	$(BIN)/hiertrain reproduce $(PARAMETERS)

test: $(READY) ## unit tests, then the smoke notebooks
	$(BIN)/python -m pytest
	$(BIN)/hiertrain reproduce smoke

check: $(READY) ## lint, format, types, import contract, stripped notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/nbstripout --verify notebooks/*.ipynb

lab: $(READY) ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=notebooks

setup: $(READY) ## only set up .venv/

# Done again when the dependencies change, and begun anew when it was interrupted.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is older than Python 3.11; set PYTHON to a newer one" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || \
		{ echo "make: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean: ## remove .venv/ and all results but the reference
	rm -rf $(VENV) *.egg-info
	find results -mindepth 1 -maxdepth 1 ! -name reference -exec rm -rf {} +
