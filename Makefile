# Everything a fresh machine needs is done by `make demo` and `make test` themselves.
# Needs: make, python3.11 with venv, and a package index that pip can reach. No system compiler.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Real models and labelled data for the wider tests; without them those tests skip and say so.
ifneq ($(wildcard ../shared/data),)
export SPARSEC_DATA ?= $(abspath ../shared/data)
endif

.DEFAULT_GOAL := help
.PHONY: help venv qemu demo test lint typecheck clean

help:
	@echo "make demo   compress, compile, verify and time a real model (all-MiniLM-L6-v2)"
	@echo "make test   run the tests that take seconds (CI runs all: .ci/run)"
	@echo "make lint   ruff, mypy --strict, C warnings"
	@echo "make venv   only create the environment in $(VENV)"
	@echo "make clean  remove build output (keeps $(VENV))"

venv: $(STAMP)

# torch comes first and alone: left to the resolver, a later call may pick a newer one with gigabytes of extras.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or pass PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt setuptools
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[cuda,torch,plot,dask,demo,dev]'
	@touch $@

# ARM programs run under qemu-user; where it cannot be had, the tests that need it skip with a message.
qemu:
	@command -v qemu-aarch64 >/dev/null 2>&1 && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 \
	   && apt-get update -qq >/dev/null 2>&1 && apt-get install -y -qq qemu-user >/dev/null 2>&1; \
	then echo "installed qemu-user"; \
	else echo "qemu-aarch64 not found and not installable: ARM tests will be skipped"; fi

demo: venv
	$(BIN)/python examples/minilm.py

test: venv qemu
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup -m "not slow"

# mypy cannot see the editable install's folder mapping (passes/ -> sparsec.passes): check an installed copy.
typecheck: venv
	@rm -rf build/lib build/typecheck
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation --target build/typecheck .
	MYPYPATH=build/typecheck $(BIN)/python -m mypy -p sparsec

lint: venv
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	@$(MAKE) --no-print-directory typecheck
	@mkdir -p build
	set -e; for target in x86_64-linux-gnu aarch64-linux-gnu; do for source in $(wildcard runtime/src/*.c); do \
	  $(BIN)/python -m ziglang cc -target $$target -std=c11 -Wall -Wextra -Werror -c $$source -o build/lint.o; \
	done; done

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
