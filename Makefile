# HiNet on Spark. `make help` lists the targets; `make run` and `make test` set up what they need first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

SYSTEM_PYTHON ?= $(shell for p in python3.11 python3; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
CONFIG ?= conf/train/movielens.yml
CONTRACT ?= conf/contracts/movielens.yml
GPU ?=
# Where tables, checkpoints and artifacts of `make run` go: a path, or the URI of an object store (docs/object_stores.md).
STORE ?=
# An experiment keeps the place of its artifacts, so that each store has one of its own.
STORED := $(if $(STORE),--set data.warehouse=$(STORE)/warehouse --set checkpoint.folder=$(STORE)/checkpoints \
	--set mlflow.artifact_location=$(STORE)/artifacts \
	--set mlflow.experiment=$(notdir $(CONFIG:.yml=))-$(subst /,-,$(subst ://,-,$(STORE))))
# Each starts Spark, and Horovod workers in its turn, and wants up to 6 GiB: TEST_PROCESSES=2 fits into 16 GiB. Many
# tests wait, for workers that hang on purpose among others, so that two cores have work for three. A thread of torch each.
TEST_PROCESSES ?= 3

# Spark's driver and workers must run this environment's interpreter, wherever they are started from.
export PYSPARK_PYTHON := $(CURDIR)/$(BIN)/python
export PYSPARK_DRIVER_PYTHON := $(CURDIR)/$(BIN)/python

.PHONY: help setup run test quick check bench cluster chaos ui clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup:  ## virtual environment, Horovod wheel, jars of Delta and S3, compiled experts (skips what is there; GPU=1 builds Horovod with NCCL)
	@[ -n "$(SYSTEM_PYTHON)" ] || { echo "setup: Python 3.11 is missing:  apt-get install python3.11 python3.11-venv python3.11-dev" >&2; exit 2; }
	@$(SYSTEM_PYTHON) build_tools/setup_environment.py $(if $(GPU),--gpu)

run: setup  ## the whole flow on MovieLens-100K: raw ratings to scores by a promoted model (STORE=s3://... for another place)
	@$(BIN)/python jobs/build_features.py --contract $(CONTRACT) $(if $(STORE),--warehouse $(STORE)/warehouse)
	@$(BIN)/python jobs/train.py --config $(CONFIG) $(STORED)
	@$(BIN)/python jobs/evaluate.py --config $(CONFIG) $(STORED)
	@$(BIN)/python jobs/promote.py --config $(CONFIG) $(STORED)
	@$(BIN)/python jobs/score.py --config $(CONFIG) $(STORED)
	@echo "report    $(CURDIR)/$$(ls -t local/reports/*.html | head -n 1)"

test: setup  ## every test (HINET_ML1M=<folder> adds those on MovieLens-1M)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

quick: setup  ## the tests that take seconds: those of `make test` without whole flows and many processes
	@$(MAKE) --no-print-directory test PYTEST_ARGS="-m 'not slow' $(PYTEST_ARGS)"

check: setup  ## ruff (lint and format), mypy and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy foundation feature_eng hinet_model jobs benchmarks
	@$(BIN)/lint-imports --config setup.cfg

bench: setup  ## benchmarks: tables, and benchmarks/results.json
	@$(BIN)/python -m benchmarks

cluster: setup  ## all five jobs on Spark clusters of two workers, on this machine: standalone, local-cluster; losses equal to a local run
	@$(BIN)/python -m benchmarks.cluster

chaos: setup  ## faults planted into real runs of two workers, and a table of what came of each (SEEDS="1 2 3")
	@$(BIN)/python -m benchmarks.chaos --seeds $(or $(SEEDS),1)
	@$(BIN)/python -m benchmarks.chaos_jobs --seeds $(or $(SEEDS),1)

ui: setup  ## the MLflow UI on this project's runs
	@$(BIN)/mlflow ui --backend-store-uri sqlite:///local/mlflow/mlflow.db

clean:  ## remove the virtual environment and everything a run wrote under local/
	rm -rf .venv local
