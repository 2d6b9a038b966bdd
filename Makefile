# make demo: the whole path on a small generated dataset; make test: the whole test suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JSON_DIR ?= bench-results

.PHONY: demo test fuzz mutants lint types bench install install-bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml ci/constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, {sys.version} found: make PYTHON=python3.11"'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c ci/constraints.txt -e '.[all,test]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c ci/constraints.txt -e '.[all,test,bench]'
	touch $@

demo: install
	$(BIN)/xdeepsd demo --out demo

test: install
	$(BIN)/python -m pytest

# Random cases for an hour, or so many SECONDS; each prints how to repeat it
SECONDS ?= 3600
fuzz: install
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

# Changes of tolerances, mask checks and threads that the tests have to notice; some minutes
mutants: install
	$(BIN)/python -m tests.mutation

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

# Every file of figures: a table on the screen and JSON in $(JSON_DIR)
bench: $(VENV)/.installed-bench
	mkdir -p $(JSON_DIR)
	for file in benchmarks/[!_]*.py; do \
	  name=$$(basename $$file .py); $(BIN)/python $$file --json $(JSON_DIR)/$$name.json || exit 1; \
	done

clean:
	rm -rf $(VENV) demo build bench-results
