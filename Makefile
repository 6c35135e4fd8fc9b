# Everything a contributor or a continuous-integration machine runs. It needs GNU make and a
# Python from 3.11 on with pip and venv; the rest is installed into .venv. `make help` lists the
# targets.

# The interpreter that builds .venv. Only the command line overrides it, so that a PYTHON left in
# the environment does not. 3.11 comes first because the pinned versions were checked with it.
PYTHON := $(shell for python in python3.11 python3 python3.12 python3.13 python; do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo "$$python" && break; done)

# Torch goes in first and alone: resolved with the rest, pip would take the newest release and
# gigabytes of CUDA packages with it. Any requirement, wheel or address that pip takes will do.
TORCH ?= torch==2.13.0

WORKERS := 2
OUT := out
PYTEST_ARGS :=

VENV := .venv
PY := $(VENV)/bin/python

# What the shell was left with must not decide what is tested.
unexport PYTHONPATH PYTHONHOME PYTHONWARNINGS PYTHONOPTIMIZE VIRTUAL_ENV
unexport PIP_USER PIP_TARGET PIP_PREFIX MPLBACKEND JUPYTER_PATH MYPYPATH
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/matplotlib
export IPYTHONDIR := $(CURDIR)/$(VENV)/ipython
export JUPYTER_PREFER_ENV_PATH := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1

# A stamp says what was installed, and for which folder, interpreter and torch: an environment
# that was copied from elsewhere, was interrupted or was made by hand has no such stamp and is
# built anew.
KEY := $(shell printf '%s|%s|%s' '$(CURDIR)' '$(PYTHON)' '$(TORCH)' | cksum | cut -d ' ' -f 1)
VENV_STAMP := $(VENV)/stamp-venv-$(KEY)
DEMO_STAMP := $(VENV)/stamp-demo-$(KEY)
DEV_STAMP := $(VENV)/stamp-dev-$(KEY)
METADATA := pyproject.toml pyro_ibvi/_version.py

# A stamp beside an interpreter that no longer starts is worth nothing.
ifneq ($(wildcard $(VENV_STAMP)),)
ifneq ($(shell $(PY) -c 'import pip; print("ok")' 2>/dev/null),ok)
$(VENV_STAMP): FORCE
endif
endif

# The checks of `make test` run one after the other, in the order written, under -j too.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup test lint types unit docs docs-smoke docs-check demo format clean distclean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON (here: $(PYTHON)), TORCH ($(TORCH)), WORKERS ($(WORKERS)), PYTEST_ARGS, OUT ($(OUT))"

setup: $(DEV_STAMP) ## build .venv with everything that development needs

test: lint types unit docs-smoke ## set up, then run every check, stopping at the first failure
	@echo "make test: all checks passed"

lint: $(DEV_STAMP) ## formatting and lint
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

types: $(DEV_STAMP) ## static types
	$(PY) -m mypy

# One thread a worker: with more, the workers fight over the cores. ArviZ 0.23 leaves a file in the
# user's cache on its first import of a day, and two workers that do so at once collide: hence one
# import beforehand.
unit: $(DEV_STAMP) ## tests and docstring examples
	@$(PY) -W ignore -c 'import arviz'
	MPLBACKEND=Agg OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 \
	$(PY) -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

docs: $(DEV_STAMP) ## build the documentation, tutorials run in full, into docs/_build/html
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 \
	$(PY) -m sphinx -W --keep-going -E -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

docs-smoke: $(DEV_STAMP) ## the same with shortened tutorials, as a check
	PYRO_IBVI_SMOKE=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 \
	$(PY) -m sphinx -W --keep-going -E -q -b html docs docs/_build/smoke

docs-check: ## look at the built pages in Chromium: links, formulas, search, no request elsewhere
	$(PY) docs/check.py docs/_build/html

demo: $(DEMO_STAMP) ## train on real data; report, pictures and posterior in out/
	MPLBACKEND=Agg OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m benchmarks.demo.run --out $(OUT)
	@echo "see $(OUT)/report.md"

format: $(DEV_STAMP) ## format the code and apply the safe fixes of the linter
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

clean: ## remove what the targets made, but for .venv
	rm -rf docs/_build docs/api docs/mathjax docs/tutorials docs/all-messages.md out build dist
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf $(VENV)

$(VENV_STAMP):
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 with venv found: install one," \
		"or name it, as in 'make PYTHON=/path/to/python3.11 test'" >&2; exit 1; }
	rm -rf $(VENV)
	"$(PYTHON)" -m venv $(VENV)
	$(PY) -m pip install -q '$(TORCH)'
	touch $@

$(DEMO_STAMP): $(METADATA) $(VENV_STAMP)
	rm -f $@
	$(PY) -m pip install -q -e '.[demo]'
	touch $@

# The full installation contains the demo's, so it leaves both stamps. Matplotlib builds its font
# cache here rather than in the middle of a test.
$(DEV_STAMP): $(METADATA) $(VENV_STAMP)
	rm -f $@ $(DEMO_STAMP)
	$(PY) -m pip install -q -e '.[dev,docs]'
	$(PY) -c 'import matplotlib.font_manager'
	touch $(DEMO_STAMP) $@
