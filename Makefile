# Two commands do everything on a fresh machine: `make train` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test fast lint notebook docs clean

train: .venv/installed            ## train the demo: 7 million parameters on the Python library's own source
	$(BIN)/yupana train 7m --run runs/demo

test: .venv/installed             ## everything CI runs: style, types, tests
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --durations 15

fast: .venv/installed             ## the tests without the slow ones
	$(BIN)/pytest -m "not slow"

lint: .venv/installed             ## style and types, with fixes where they are safe
	$(BIN)/ruff check --fix .
	$(BIN)/mypy

notebook: .venv/installed         ## make the notebooks from their scripts, with their outputs
	$(BIN)/python notebooks/execute.py

docs: .venv/docs                  ## the docs as a site, site/index.html
	$(BIN)/mkdocs build --strict

.venv/docs: .venv/installed
	$(BIN)/pip install -q -e '.[docs]' -c constraints.txt
	touch $@

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[all]' -c constraints.txt
	touch $@

clean:
	rm -rf .venv runs corpora site
