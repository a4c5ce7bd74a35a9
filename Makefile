# Every target makes what it needs: on a fresh machine `make demo` and `make test` are enough.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo test lint types bench reproduce docs clean
.DEFAULT_GOAL := help

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "osmose needs Python 3.11 or newer; $$($(PYTHON) --version) is $(PYTHON). Name another: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/.docs: pyproject.toml constraints.txt $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

demo: $(VENV)/.dev  ## train DIFFormer and honest baselines on real data, a minute or two
	$(BIN)/osmose compare digits

test: $(VENV)/.dev lint types  ## lint, types and the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

lint: $(VENV)/.dev  ## ruff
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

types: $(VENV)/.dev  ## mypy
	$(BIN)/mypy

bench: $(VENV)/.dev  ## speed and memory against published forms, one thread; writes docs/benchmarks.md
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.report

reproduce: $(VENV)/.dev  ## every table of docs/results.md and docs/particles.md from scratch (hours)
	$(BIN)/python -m benchmarks.reproduce
	$(BIN)/python -m benchmarks.attention_maps
	-OMP_NUM_THREADS=1 $(BIN)/osmose reproduce --all  # a missed target stands in the table
	$(BIN)/python -m benchmarks.particles

docs: $(VENV)/.docs  ## the documentation, in docs/_build/html
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html

clean:
	rm -rf $(VENV) docs/_build .pytest_cache .mypy_cache .ruff_cache
