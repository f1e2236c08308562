# `make demo` trains a small model on two ranks; `make test` lints and runs the tests, but for those
# of `make test-cluster`: whole runs under every engine, on two hosts, under SLURM, in the image. All
# set up .venv first, from the versions in constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-cluster lint setup clean

demo: setup
	$(BIN)/accelerate launch --config_file configs/accelerate/cpu_ddp.yaml \
		-m gradacc_dist.train --config configs/demo.yaml

test: lint
	$(BIN)/python -m pytest -m "not cluster"

test-cluster: setup
	$(BIN)/python -m pytest -m cluster

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is missing or older than 3.11; install Python 3.11+ or say make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { \
		echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv"; exit 1; }
	@command -v c++ >/dev/null || { \
		echo "no C++ compiler (c++), which DeepSpeed needs; on Debian: apt install g++"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[deepspeed,wandb,test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
