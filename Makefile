# Each target makes the virtual environment it needs, with the pinned versions of constraints.txt (CONSTRAINTS):
#   demo, speed        .venv with the package alone
#   test, test-all, lint, bench   the same .venv, with the tools for development and the references added
#   plans, planner      the same .venv, with the compiler for TPUs added (it needs no TPU)
#   notebooks, pairs    the same .venv, with what executes notebooks added
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/demo
CONSTRAINTS ?= constraints.txt
PIP = $(VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: help install demo floor plans planner notebooks pairs test test-all lint format bench speed pictures clean
.DELETE_ON_ERROR:

help:
	@echo "make demo      compare serialization strategies on synthetic speech: a report in ten minutes"
	@echo "make floor     train every strategy on sources of known entropy: two hours, a table"
	@echo "make plans     compile every size and strategy for TPU pods, without one: an hour of a core, docs/plans.md"
	@echo "make planner   add the compiler for TPUs, which audiolm plan needs, to $(VENV)"
	@echo "make notebooks execute the notebooks of experiments/colab, small (make pairs: write them from their scripts)"
	@echo "make test      the tests (make test-all: the slow ones too)"
	@echo "make install   the package alone, in $(VENV)"
	@echo "make lint      ruff check and ruff format --check (make format: apply them)"
	@echo "make bench     time MusicGen against transformers (torch) on this machine, which must be idle: 20 minutes"
	@echo "make speed     measure training and decoding speed of every strategy on this machine"
	@echo "make pictures  draw the pictures of the orders in the README"
	@echo "PYTHON=python3.12 chooses the interpreter, WORKDIR=... the folder of the demo"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name one: make PYTHON=python3.11 ...")'
	@echo "== making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.package: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "== installing the package into $(VENV) (about a minute)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	@echo "== installing the tools for development into $(VENV)"
	@$(PIP) --editable '.[dev,parity]'
	@touch $@

$(VENV)/.planner: $(VENV)/.package
	@echo "== installing the compiler for TPUs into $(VENV)"
	@$(PIP) --editable '.[tpu]'
	@touch $@

$(VENV)/.notebook: $(VENV)/.package
	@echo "== installing what executes notebooks into $(VENV)"
	@$(PIP) --editable '.[notebook]'
	@touch $@

install: $(VENV)/.package

planner: $(VENV)/.planner

demo: $(VENV)/.package
	@echo "== audiolm compare --config configs/demo.py --workdir $(WORKDIR)"
	@$(VENV)/bin/audiolm compare --config configs/demo.py --workdir $(WORKDIR)

floor: $(VENV)/.package
	$(VENV)/bin/python -m experiments.entropy_floor.run

plans: $(VENV)/.planner
	$(VENV)/bin/python -m experiments.plans.run

notebooks: $(VENV)/.notebook
	$(VENV)/bin/python -m experiments.colab.pair --check
	$(VENV)/bin/python -m experiments.colab.execute

pairs: $(VENV)/.notebook
	$(VENV)/bin/python -m experiments.colab.pair

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/.dev
	XLA_FLAGS= $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow or not slow"

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.dev
	$(VENV)/bin/python -m experiments.musicgen_speed.bench

speed: $(VENV)/.package
	$(VENV)/bin/python -m experiments.speed.bench

pictures: $(VENV)/.package
	$(VENV)/bin/python -m docs.draw

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
