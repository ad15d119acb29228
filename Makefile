# Every target sets up what it needs in .venv first; nothing else on the machine is touched.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help venv demo test check docs bench clean

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CODE := scheduler api policies
TESTED := $(CODE) tests docs/guide
WORKERS ?= 2

# Recorded workloads and hosts lie beside the checkout; tests that need them skip loudly without.
ifneq ($(wildcard ../shared/traces),)
export HAVERSACK_TRACES ?= $(abspath ../shared/traces)
endif

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

venv: .venv/.ready ## build .venv with Haversack and the tools to develop it

demo: .venv/.torch ## start a daemon, run one torch.distributed job, show the decision
	$(BIN)/python docs/guide/demo.py

test: .venv/.ready .venv/.torch-at-hand ## everything: lint, types, layers, all tests
	$(BIN)/ruff check .
	$(BIN)/mypy $(TESTED)
	$(BIN)/lint-imports
	$(BIN)/pytest -q -rs -n $(WORKERS) --dist worksteal

check: .venv/.ready ## the quick half, for before a commit: lint, format, types, layers, unit tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(TESTED)
	$(BIN)/lint-imports
	$(BIN)/pytest -q -rs -n $(WORKERS) --dist worksteal tests/unit tests/architecture

docs: .venv/.ready ## rewrite the pages and tables in docs/ that the code determines
	$(BIN)/python docs/reference/generate.py
	HAVERSACK_WRITE_DOCS=1 $(BIN)/pytest -q tests/architecture/test_docs.py -k generated

bench: .venv/.ready ## the measurements; fails when one misses its threshold
	@failed=''; for script in tests/benchmarks/bench_*.py; do \
	  printf '\n== %s\n' "$$script"; $(BIN)/python "$$script" || failed="$$failed $$script"; \
	done; if [ -n "$$failed" ]; then echo "make: below its threshold or broken:$$failed" >&2; exit 1; fi

clean: ## remove .venv, caches and build products; data directories stay
	rm -rf .venv .cache build dist *.egg-info .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.ready: pyproject.toml
	@for candidate in "$${PYTHON:-python3}" python3.11 python3.12 python3.13 python3.14; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$${python:-}" ]; then echo 'make: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3.11' >&2; exit 1; fi; \
	echo "setting up .venv with $$("$$python" --version)"; \
	if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then "$$python" -m venv .venv; \
	elif "$$python" -m pip --version >/dev/null 2>&1; then "$$python" -m venv --without-pip .venv; "$$python" -m pip --python .venv/bin/python --quiet install pip; \
	else echo 'make: this Python cannot make virtual environments; on Debian: apt install python3-venv' >&2; exit 1; fi
	$(PIP) install --upgrade pip
	$(PIP) install --editable '.[dev]'
	@touch $@

# A torch wheel that pip's own find-links already offers is taken as it is (mostly a small CPU
# build); only without one is torch downloaded, and only for the demo: tests then skip what needs it.
FIND_TORCH = $(PIP) install --dry-run --ignore-installed --no-deps --no-index --report .cache/torch.json 'torch>=2.6,<3' >/dev/null 2>&1
INSTALL_TORCH = $(PIP) install --editable '.[dev,torch]' --constraint .cache/torch.txt && touch .venv/.torch

.venv/.torch-at-hand: .cache/torch.txt
	@if [ -s .cache/torch.txt ]; then echo "installing $$(cat .cache/torch.txt) (once)"; $(INSTALL_TORCH); fi
	@touch $@

.venv/.torch: .cache/torch.txt
	@echo "installing torch (once): $$(cat .cache/torch.txt)"
	$(INSTALL_TORCH)

.cache/torch.txt: .venv/.ready
	@mkdir -p .cache
	@if $(FIND_TORCH); then \
	  $(BIN)/python -c 'import json; found = json.load(open(".cache/torch.json")); print("torch==" + found["install"][0]["metadata"]["version"])' > $@; \
	else : > $@; fi
