# The two commands of the README: `make run` and `make test`. Both install first, into .venv, with the versions of constraints.txt.
VENV ?= .venv
PYTHON ?= python3
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export OMP_NUM_THREADS ?= 2

.PHONY: run test slow lowest lint docs install

run: install ## prepare, train on Ray, evaluate, register; run again to resume
	python -m pipelines.digests
	dvc repro

test: install ## the fast tests
	pytest

slow: install ## real Ray, MLflow and DVC, and faults
	pytest -m slow

lowest: install ## the fast tests with the oldest versions that pyproject.toml admits, in .venv-lowest (gigabytes: torch with CUDA)
	uv venv --quiet --allow-existing --python $(PYTHON) .venv-lowest
	uv pip install --quiet --python .venv-lowest --resolution lowest-direct --editable '.[dev]'
	.venv-lowest/bin/pytest

lint: install ## style, types, import contracts
	ruff check
	ruff format --check
	mypy
	lint-imports --no-logo

docs: install ## the pages of docs/ and the reference, in site/
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	python -m infra.offline_plots
	touch $@
