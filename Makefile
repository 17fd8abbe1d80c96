# Two commands do everything on a fresh machine: `make reproduce` and `make test`. Each sets up .venv/ when needed.

PYTHON ?= python3
PARAMETERS ?= quick
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Progress shows at once also where the output is a file.
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test testbed check lab clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

reproduce: $(READY) ## execute the notebooks and write results/quick/report.html (PARAMETERS=paper for the whole grid)
	$(BIN)/hiertrain reproduce $(PARAMETERS)

test: $(READY) ## unit tests, then the smoke notebooks
	$(BIN)/python -m pytest
	$(BIN)/hiertrain reproduce smoke

testbed: $(READY) ## the tests of network namespaces, which need root; `make test` skips them without
	@$(BIN)/python -c 'import sys; from hiertrain.testbeds.netns import missing; lacking = ", ".join(missing()); \
		sys.exit(f"make: network namespaces need {lacking}" if lacking else 0)'
	$(BIN)/python -m pytest -m netns

check: $(READY) ## lint, format, types, import contract, stripped notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb

lab: $(READY) ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=notebooks

setup: $(READY) ## only set up .venv/

# Done again when the dependencies change, and begun anew when it was interrupted.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || \
		{ echo "make: $(PYTHON) is not Python 3.11 or newer; set one with: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
		{ echo "make: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean: ## remove .venv/ and all results but the reference
	rm -rf $(VENV) *.egg-info
	find results -mindepth 1 -maxdepth 1 ! -name reference -exec rm -rf {} +
