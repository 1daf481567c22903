# make train   install into .venv, render the built-in data set, train RDE on it and print its retrieval table
# make test    install into .venv, run the tests
# make lint    check style and formatting

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Quiet, but for the minutes that PyTorch's download takes.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q

.PHONY: train test lint
train: $(VENV)/.installed
	PYTHON=$(BIN)/python sh run_rde.sh $(ARGS)

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/.installed: requirements.txt
	@echo "Installing requirements.txt into $(VENV); PyTorch alone is some gigabytes ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-demo.txt requirements-milvus.txt $(VENV)/.installed
	$(PIP) -r requirements-dev.txt
	@touch $@
