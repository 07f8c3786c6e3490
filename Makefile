# Every target does its own set-up; `make help` lists them.
# make PYTHON=/path/to/python3.11   choose the interpreter of .venv (3.10 for the Merlin container's)
# make bench RUN=runs/movielens-1m  choose a run folder

PYTHON ?=
RUN ?= runs/sim
BIN := .venv/bin
CONTAINER_TESTS := tests/contract tests/integration/test_parity.py \
    tests/integration/test_container.py tests/notebooks
# Other packages with our names, on a PYTHONPATH of the user's, must not win.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help install install-dev gpu demo test lint format pytest test-container-versions bench
.PHONY: lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-24s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## Make .venv with what Marquee needs (done by the other targets)
	@PYTHON="$(PYTHON)" sh requirements/install.sh

install-dev: ## Add what tests, linters and notebooks need
	@PYTHON="$(PYTHON)" sh requirements/install.sh --dev

gpu: ## Make .venv-gpu: the same for an NVIDIA GPU with CUDA 12
	@PYTHON="$(PYTHON)" MARQUEE_VENV=.venv-gpu MARQUEE_STACK=gpu sh requirements/install.sh
	@echo "Next: .venv-gpu/bin/marquee run --dataset sim --device gpu"

demo: install ## Simulated data to recommendations from Triton, in one run
	$(BIN)/marquee run --dataset sim
	@echo "To type marquee without its folder: . .venv/bin/activate"

test: lint pytest ## Linters and all tests

lint: install-dev ## ruff, mypy, import-linter
	@status=0; \
	for check in "ruff check ." "ruff format --check ." "python -m mypy" "lint-imports --no-logo"; do \
	    echo "$$check"; $(BIN)/$$check || status=1; \
	done; exit $$status

pytest: install-dev
	$(BIN)/python -m pytest

test-container-versions: ## Pipeline and notebooks on the Merlin container's versions (Python 3.10)
	@PYTHON="$(PYTHON)" PYTHON_VERSION=3.10 MARQUEE_VENV=.venv-py310 \
	    MARQUEE_STACK=container-py310 sh requirements/install.sh
	.venv-py310/bin/python -m pytest $(CONTAINER_TESTS)

format: install-dev ## Rewrite the code as the linters want it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## Latency, throughput and server CPU of RUN, by perf_analyzer
	$(BIN)/marquee bench --run $(RUN)

lock: ## Recompute the hashes in requirements/ (maintainers; needs uv)
	@sh requirements/lock.sh

clean: ## Remove .venv and caches; runs/ stays
	rm -rf .venv .venv-gpu .venv-py310 .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .cache
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
