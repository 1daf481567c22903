# make install       install into .venv
# make train         install into .venv, render the built-in data set, train RDE on it, print its table, write a report
# make test          install into .venv, run the tests
# make test-fast     only tests without training, index, subprocess or browser
# make test-numeric  only tests that compare floating-point numbers, computed as on a CPU without AVX-512
# make lint          check style, formatting and types

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Quiet, although PyTorch's download takes minutes.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q

# Tests of a file share its runs in one process (loadfile); more threads would compete with the other process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 10
# Read by PyTorch, oneDNN and MKL.
NO_AVX512 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

.PHONY: install train test test-fast test-numeric lint
install: $(VENV)/.installed

train: $(VENV)/.installed
	PYTHON=$(BIN)/python sh run_rde.sh $(ARGS)

test: $(VENV)/.installed-dev
	$(PYTEST) $(ARGS)

test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow" $(ARGS)

test-numeric: $(VENV)/.installed-dev
	$(NO_AVX512) $(PYTEST) -m numeric $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/.installed: requirements.txt
	@echo "Installing requirements.txt into $(VENV); PyTorch alone is some gigabytes ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-demo.txt requirements-milvus.txt requirements-onnx.txt requirements-siglip.txt requirements-tables.txt $(VENV)/.installed
	$(PIP) -r requirements-dev.txt
	@touch $@
