# Two commands matter: `make run` (a fresh machine, the main job) and `make test` (all that the tests need, then all checks).
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: run test check test-slow bench docs train clean

# The light install: what `pip install keystep` brings, at the versions of constraints.txt.
.venv/light: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

# Everything the tests need. torch comes first and by its exact version: see README, "Install".
.venv/dev: .venv/light
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

run: .venv/light
	$(BIN)/keystep run hanoi --set disks=12 --compare

# Inspect AI has an environment of its own: it caps packages that constraints.txt holds newer.
.venv-inspect/made: pyproject.toml tests/measure/inspect.txt
	test -x .venv-inspect/bin/python || $(PYTHON) -m venv .venv-inspect
	.venv-inspect/bin/python -m pip install --quiet --constraint tests/measure/inspect.txt --editable '.[inspect]' openai pytest pytest-timeout hypothesis
	touch $@

test: check .venv-inspect/made
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile
	.venv-inspect/bin/python -m pytest tests/measure/test_inspect.py

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test-slow: .venv/dev
	$(BIN)/python -m pytest -m slow --timeout=3600

# The engines that benchmarks/engine.py is compared with.
.venv-bench/made: benchmarks/requirements.txt
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --requirement benchmarks/requirements.txt
	touch $@

# `make bench FLAGS=--quick` sees that they run, and writes nothing (but for zero_errors.py, which has one size).
# million.py, the run of a million steps, takes an hour and is started by itself.
bench: .venv/dev .venv-bench/made
	for file in $(filter-out benchmarks/million.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$file $(FLAGS) || exit 1; done

docs: .venv/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Trains the shipped models from scratch; docs/models/ tells how long each takes.
train: .venv/dev
	for name in hanoi ledger arithmetic pairs lists strings problems hanoi-large ledger-large; do \
	  $(BIN)/python training/train.py $$name && $(BIN)/python training/card.py $$name || exit 1; done

clean:
	rm -rf .venv .venv-bench .venv-inspect site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
