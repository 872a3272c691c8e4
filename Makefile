# `make demo` and `make test` set up what they need once, in .venv, and are quick the second time.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-all lint bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]" -e tests/plugins/stub_backend
	touch $(READY)

demo: setup
	$(BIN)/multibackend compare examples/digits.py

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"  # two workers on two cores: one thread each

test-all: setup
	OMP_NUM_THREADS=1 XLA_FLAGS= $(BIN)/python -m pytest -n 2  # XLA optimises in full, see tests/conftest.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist
