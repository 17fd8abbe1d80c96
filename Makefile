# Two commands do everything on a fresh machine: `make reproduce` and `make test`. Each sets up .venv/ when needed.

PYTHON ?= python3
PARAMETERS ?= quick
# Where PyTorch comes from; empty: from pip's usual index, like everything else. On Linux without an NVIDIA GPU
# TORCH_INDEX=https://download.pytorch.org/whl/cpu saves several GB.
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UNFINISHED := $(VENV)/.unfinished
TORCH = $(shell sed -n 's/^ *"\(torch[a-z]*==.*\)",$$/\1/p' pyproject.toml)
# Progress shows at once also where the output is a file.
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test testbed check lab clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

reproduce: $(READY) ## execute the notebooks and write results/quick/report.html (PARAMETERS=paper for the whole grid)
	$(BIN)/hiertrain reproduce $(PARAMETERS)

test: $(READY) ## unit tests, and beside them the smoke notebooks: much of either is waiting
	@mkdir -p results
	@OMP_NUM_THREADS=1 $(BIN)/hiertrain reproduce smoke > results/smoke.log 2>&1 & smoke=$$!; trap "kill $$smoke 2> /dev/null" EXIT; \
		$(BIN)/python -m pytest -n 2 --dist worksteal; tests=$$?; \
		echo "make: the smoke notebooks:"; wait $$smoke; notebooks=$$?; cat results/smoke.log; \
		exit $$((tests || notebooks))

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

lab: $(READY) ## open JupyterLab on working copies of the notebooks, in results/interactive/notebooks
	$(BIN)/hiertrain lab

setup: $(READY) ## only set up .venv/ (TORCH_INDEX=https://download.pytorch.org/whl/cpu: PyTorch without CUDA)

# Done again when the dependencies change, and begun anew when it was interrupted.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || \
		{ echo "make: $(PYTHON) is not Python 3.11 or newer; set one with: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
		{ echo "make: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@if [ -e $(UNFINISHED) ]; then echo "make: the last set-up was interrupted; it begins anew"; rm -rf $(VENV); fi
	@echo "make: set-up, step 1 of 3: a virtual environment in $(VENV)/"
	$(PYTHON) -m venv $(VENV)
	@touch $(UNFINISHED)
	@echo "make: set-up, step 2 of 3: PyTorch from $(or $(TORCH_INDEX),pip's usual index), the largest part"
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX) --timeout 15 --retries 1) $(TORCH) || \
		{ echo "make: PyTorch cannot be had from $(or $(TORCH_INDEX),pip's usual index)" >&2; exit 1; }
	@echo "make: set-up, step 3 of 3: all other packages, about 150"
	$(PIP) --editable '.[notebooks,dev]'
	@rm $(UNFINISHED)
	@touch $@

clean: ## remove .venv/ and all results but the reference and what was done by hand (results/interactive)
	rm -rf $(VENV) *.egg-info
	find results -mindepth 1 -maxdepth 1 ! -name reference ! -name interactive -exec rm -rf {} +
