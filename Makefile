# What is typed most often. `make` or `make help` lists the targets; PYTHON chooses the interpreter of a new .venv.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help venv test fast notebooks lint types format cover fuzz kills colab mutants

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1|/' | awk -F'|' '{printf "make %-10s %s\n", $$1, $$2}'

venv: $(BIN)/ruff  ## .venv with everything that users and developers need

$(BIN)/ruff: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -r requirements.txt -r requirements-dev.txt
	touch $@

fast: venv  ## the quick tests, in two minutes: after every change
	$(BIN)/pytest -m "not slow"

test: venv  ## all tests but the notebooks
	$(BIN)/pytest

notebooks: venv  ## execute the notebooks and compare them with their stored outputs
	$(BIN)/pytest --nbval notebooks

lint: venv  ## style and likely mistakes; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: venv  ## the type annotations
	$(BIN)/mypy

format: venv  ## format the code, mend what can be mended automatically
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

cover: venv  ## which lines no test runs
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

fuzz: venv  ## thousands of mutated roots, weights and command lines; takes an hour
	MTL_FUZZ=2000 $(BIN)/pytest tests/test_fuzz.py

kills: venv  ## kill a hundred trainings at random moments and continue them; takes half an hour
	MTL_KILLS=100 $(BIN)/pytest -s tests/test_kills.py -k random

.venv-colab: .ci/colab.txt
	python3.13 -m venv .venv-colab
	.venv-colab/bin/pip install -r .ci/colab.txt
	touch $@

colab: .venv-colab  ## the notebooks with Google Colab's own versions, from empty folders; needs Python 3.13
	.venv-colab/bin/python -m mtl_utils data synthetic
	COLAB_RELEASE_TAG=make MTL_DATA_ROOT=data/synthetic MTL_PROFILE=smoke .venv-colab/bin/pytest --nbval notebooks
	.venv-colab/bin/pytest tests/prepare/test_colab.py -k from_an_empty_folder

mutants: venv  ## plant small faults and see whether the tests notice; takes hours
	$(BIN)/python tests/mutants.py
