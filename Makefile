# One virtual environment, made on first use; `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# of `make gpu`: folder of the results, device, minutes of one call, QUICK=1 for the smallest form, ONLY="tests verify"
OUT ?= gpu_results
DEVICE ?= cuda
MINUTES ?= 9

.DEFAULT_GOAL := help
.PHONY: help demo test test-all gpu lint types format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; set it with make PYTHON=python3.12" >&2; exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,log]'
	@touch $@

demo: $(STAMP) ## train the embedded digits, sample and score them: 2 to 5 minutes
	$(BIN)/python cli.py train --sde vp
	$(BIN)/python cli.py sample runs/digits_vp --solver ode --trajectory
	$(BIN)/python cli.py likelihood runs/digits_vp
	@echo
	@echo "Look at:"
	@echo "  runs/digits_vp/sample_ode_seed0/samples.png      64 new digits"
	@echo "  runs/digits_vp/sample_ode_seed0/trajectory.png   how eight of them form"
	@echo "  runs/digits_vp/likelihood_test_seed0/histogram.png, likelihood.json   bits/dim of the held-out digits"
	@echo "  runs/digits_vp/metrics.jsonl, samples/           the training"

test: $(STAMP) lint types ## lint, types and the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

test-all: $(STAMP) lint types ## the same with the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 -m "slow or not slow"

gpu: ## what wants a CUDA device, in pieces of 9 minutes into OUT=gpu_results; installs nothing, call again to go on
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py --out $(OUT) --device $(DEVICE) \
		--minutes $(MINUTES) $(if $(QUICK),--quick) $(foreach piece,$(ONLY),--only $(piece))

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy --strict on the package
	$(BIN)/mypy

format: $(STAMP) ## rewrite in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what tools left behind, but neither runs nor the environment
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
