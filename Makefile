# On a new machine with Python >= 3.11 and make, two commands are enough:
#   make demo    run the demo from start to end
#   make test    run all tests, lint and type checks, and write the API reference to build/api
# Both create the environment in .venv if it is missing, as `make setup` does.

PYTHON ?= python3
BIN := .venv/bin
CONSTRAINTS := constraints.txt constraints-dev.txt
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export MLFLOW_DISABLE_TELEMETRY ?= true
# Several files in parallel, in the order of tests/conftest.py. The default order, by number of tests, would start the few
# long files last.
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test test-all test-fast test-faults test-hosts lint docs clean

help:
	@sed -n 's/^#   //p' Makefile; echo "also: setup test-all test-fast test-faults test-hosts lint docs clean"

setup: .venv/.ready

.venv/.ready: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Sepscene needs Python 3.11 or newer; choose one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints-dev.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
	  $(CONSTRAINTS:%=--constraint %) --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/sepscene demo

test: setup
	@# In parallel, because the type check keeps one core busy for 40 s.
	$(MAKE) --jobs 2 lint test-all docs

test-all: setup
	RAY_worker_niceness=0 $(PYTEST) -n 2 --durations=40 -m "not hosts and not faults_long"

test-fast: setup
	$(PYTEST) -n 2 -m "not slow and not hosts and not faults_long"

test-hosts: setup
	$(BIN)/python -m pytest -m hosts

test-faults: setup
	RAY_worker_niceness=0 $(BIN)/python -m pytest \
	  tests/faults \
	  tests/orchestration/sweeps/test_whole_sweep.py tests/orchestration/sweeps/test_run_trials.py \
	  tests/orchestration/runtime/test_session.py
	$(BIN)/python -m tests.faults.faults

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy does not find the folders that sepscene/__init__.py adds, so it reads a tree of links to them.
	@mkdir -p build/typing/sepscene && for each in sepscene/*.py sepscene/py.typed models augment tasks orchestration clusters; do \
	  ln -sfn "$(CURDIR)/$$each" build/typing/sepscene/$$(basename $$each); done
	$(BIN)/mypy

docs: setup
	$(BIN)/python docs/make_api.py

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
