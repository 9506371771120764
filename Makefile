# Every target works from a fresh clone: it makes .venv with what it needs, pinned by constraints.txt.
PYTHON ?= python3
BIN    := .venv/bin
PIP    := $(BIN)/pip install --quiet --constraint constraints.txt
# One thread per process: several on small tensors are slower, ten times slower where the cores have other work to do.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test test-long test-slow check lint types docs studies bench peers browser clean
help:             ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.venv/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) torch
	$(PIP) --editable '.[examples]'
	@touch $@

.venv/.dev: .venv/.core
	$(PIP) --editable '.[dev,docs]'
	@touch $@

demo: .venv/.core  ## install, audit the built-in digits network, write audit.html
	$(BIN)/gaugefix audit digits-mlp

test: .venv/.dev   ## the fast test suite, about five minutes
	$(BIN)/pytest -n 2 -m "not slow and not long and not peer"

test-long: .venv/.dev   ## the fast suite and what takes longer; CI runs this
	$(BIN)/pytest -n 2 -m "not slow and not peer"

test-slow: .venv/.dev  ## everything, the long tests and peer comparisons too
	$(BIN)/pytest -n 2

lint: .venv/.dev   ## formatting and lint, docstrings included
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/.dev  ## static types, strict
	$(BIN)/mypy

check: lint types test-long  ## what CI runs

docs: .venv/.dev   ## build the documentation, gallery included, warnings are errors
	$(BIN)/sphinx-build --fail-on-warning --keep-going --builder html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

studies: .venv/.core  ## run every study; a second run goes on where the first stopped, and `make docs` takes the results
	$(BIN)/gaugefix reproduce --all --html --out docs/_build/studies

bench: .venv/.dev  ## run the benchmarks, results to benchmarks/results/*.json
	$(BIN)/python -m benchmarks

peers: .venv/.dev  ## install the libraries that results are compared with (tests marked peer, benchmarks)
	$(PIP) --editable '.[peers]'
	$(PIP) --no-deps backpack-for-pytorch curvlinops-for-pytorch pyhessian  # their dependencies ask for torchvision
	$(PIP) einops unfoldNd einconv linear_operator opt-einsum tqdm

clean:             ## remove what the targets made
	rm -rf .venv docs/_build docs/gallery docs/api docs/studies_scripts .pytest_cache .mypy_cache .ruff_cache
