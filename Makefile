# `make demo` and `make test` set up what they need once, in .venv, and are quick the second time.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# what is installed so far; a file for each, so that a demo waits for the frameworks alone
FRAMEWORKS := .venv/.frameworks
READY := .venv/.ready
DOCS := .venv/.docs

.PHONY: setup demo test test-all lint docs docs-serve notebooks pictures coming-from test-wheel test-newest bench clean

setup: $(READY)

$(FRAMEWORKS): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing torch, jax and what they need; a minute or two, once"
	$(PIP) "torch==2.13.0"
	$(PIP) -e ".[all,examples]"
	touch $(FRAMEWORKS)

$(READY): $(FRAMEWORKS)
	$(PIP) -e ".[test]" -e tests/plugins/stub_backend
	touch $(READY)

$(DOCS): $(FRAMEWORKS)
	$(PIP) -e ".[all,docs]"
	touch $(DOCS)

demo: $(FRAMEWORKS)
	$(BIN)/multibackend compare examples/digits.py

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"  # two workers on two cores: one thread each

test-all: setup
	OMP_NUM_THREADS=1 XLA_FLAGS= $(BIN)/python -m pytest -n 2 --dist worksteal  # XLA optimises in full, see tests/conftest.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet  # into site/; every warning is an error

docs-serve: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

notebooks: $(DOCS)
	$(BIN)/python docs/building/notebooks.py

pictures: $(DOCS)
	$(BIN)/python docs/building/pictures.py

# each in environments of its own, below build/
coming-from:
	PYTHON=$(PYTHON) packaging/coming_from.sh

test-wheel:
	PYTHON=$(PYTHON) packaging/wheel.sh

test-newest:
	packaging/newest.sh

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist site
