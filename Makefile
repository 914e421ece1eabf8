# Everything a newcomer needs: `make demo` and `make test`. To work on it: `make fast` and `make lint`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test fast lint check clean
.DEFAULT_GOAL := demo

# Find the flood level of Two Gaussians on SQLite.
demo: $(VENV)/.installed
	$(BIN)/floodsearch launch studies/two_gaussians_10.toml

# All tests; those that need PostgreSQL are skipped, and counted, where there is none.
test: $(VENV)/.installed-test
	$(BIN)/pytest --numprocesses auto --dist worksteal

# The tests that start no process and open no storage: tests/fast.py finds out which they are. They take 70 s of
# CPU, half of it to import what they test: about 40 s on 2 cores.
fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -p tests.fast --numprocesses auto --quiet

# Mends what can be mended, then checks.
lint: $(VENV)/.installed-test
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .
	$(MAKE) check

# Changes nothing, and fails where `make lint` would mend.
check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "floodsearch needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lint]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
