# make demo: the whole path on a small generated dataset; make test: the whole test suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JSON_DIR ?= bench-results

# A target's line ends in "## what it does" for `make help`.
.PHONY: help packages demo test fuzz mutants lint types docs links bench install install-bench clean

install: $(VENV)/.installed  ## .venv with everything the tests need

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

$(VENV)/.installed: pyproject.toml ci/constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, {sys.version} found: make PYTHON=python3.11"'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c ci/constraints.txt -e '.[all,test]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c ci/constraints.txt -e '.[all,test,bench]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c ci/constraints.txt -e '.[all,test,docs]'
	touch $@

demo: install  ## the whole path on a small generated climate
	$(BIN)/xdeepsd demo --out demo

test: install  ## all tests and doctests
	PYTHON=$(BIN)/python ci/test.sh

# Random cases for an hour, or so many SECONDS; each prints how to repeat it
SECONDS ?= 3600
fuzz: install  ## random cases: make fuzz SECONDS=60
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

# Changes of tolerances, mask checks and threads that the tests have to notice; some minutes
mutants: install  ## changes of the code that the tests have to notice
	$(BIN)/python -m tests.mutation

lint: install  ## ruff, codespell, and the workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/zizmor --offline --quiet --strict-collection .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml

types: install  ## mypy
	$(BIN)/mypy

# Runs the notebooks of examples/; a warning is an error. Then a browser looks at every page, if there is one
docs: $(VENV)/.installed-docs  ## the site, to build/docs/index.html
	$(BIN)/python -m sphinx -W --keep-going -q -c docs -d build/doctrees . build/docs
	$(BIN)/python -m pytest -q tests/test_site.py

links: $(VENV)/.installed-docs  ## the addresses on the pages; needs the network
	$(BIN)/python -m sphinx -b linkcheck -D nb_execution_mode=off -q -c docs -d build/doctrees-links . build/links

# Every file of figures: a table on the screen and JSON in $(JSON_DIR)
bench: $(VENV)/.installed-bench  ## the figures, to bench-results/
	mkdir -p $(JSON_DIR)
	for file in benchmarks/[!_]*.py; do \
	  name=$$(basename $$file .py); $(BIN)/python $$file --json $(JSON_DIR)/$$name.json || exit 1; \
	done

packages: install  ## build wheel and sdist, use them in clean environments
	ci/packages.sh

clean:  ## remove .venv and what demo and bench wrote
	rm -rf $(VENV) demo build bench-results docs/reference
