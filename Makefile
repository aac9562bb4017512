# Every target builds .venv when it is missing or older than what it is made of; nothing is installed twice.
PYTHON ?= python3
PYTEST_ARGS ?= -n 0
INSTALLED := .venv/.installed
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help study test docs prior world photos lint clean

help:
	@echo "make study   train and compare the guidance types on the tiny prior; results in runs/study"
	@echo "make test    run the tests"
	@echo "make docs    build the documentation in site/; every link and name in it must exist"
	@echo "make prior   make the tiny prior, extractors and adapter anew, from nothing, in runs/tiny; hours on two cores; goes on where it stopped"
	@echo "make world   the same for the prior of 256 px, in runs/world; a day"
	@echo "make photos  fetch its photographs from Debian packages, with attribution, to runs/world/photographs"
	@echo "make lint    check style and types"
	@echo "make clean   remove .venv and caches (runs/ is kept)"

study: $(INSTALLED)
	$(BIN)/megasr study run prior_selection_quick --config experiments/tiny/prior_selection_quick.yaml --output runs/study

test: $(INSTALLED)
	$(BIN)/python -m pytest -q --dist loadfile $(PYTEST_ARGS)

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

prior: $(INSTALLED)
	$(BIN)/python -m experiments.make_prior tiny

world: $(INSTALLED)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e .[world]
	$(BIN)/python -m experiments.make_prior world

photos: $(INSTALLED)
	$(BIN)/python -m experiments.world.photographs --output runs/world/photographs

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy megasr data_pipelines ablations

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "megasr needs Python 3.11 or newer; $(PYTHON) was not found (set PYTHON=...)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "megasr needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1) (set PYTHON=...)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode -c constraints.txt -e .[dev]
	@touch $@
