# The two commands of the README are `make run` and `make test`. Each target first installs the
# versions of constraints.txt into .venv.
VENV ?= .venv
PYTHON ?= python3
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export OMP_NUM_THREADS ?= 2

.PHONY: run test slow lowest lint docs release install

run: install ## prepare, train on Ray, evaluate and register; resumes when run again
	python -m pipelines.digests
	dvc repro

test: install ## the fast tests
	pytest

slow: install ## the tests with real Ray, MLflow, DVC and faults
	pytest -m slow

# .venv-lowest takes gigabytes: it has torch with CUDA
lowest: install ## the fast tests with the oldest versions that pyproject.toml admits
	uv venv --quiet --allow-existing --python $(PYTHON) .venv-lowest
	uv pip install --quiet --python .venv-lowest --resolution lowest-direct --editable '.[dev]'
	.venv-lowest/bin/pytest

lint: install ## style, types and import contracts
	ruff check
	ruff format --check
	mypy
	lint-imports --no-logo

docs: install ## build the pages of docs/ and the reference into site/
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

release: install ## all results with this code, hours: says what is stale, resumes when run again
	python -m pipelines.digests
	python -m pipelines.release

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@# on all cores; pip uses one. Templates that are not Python fail to compile
	$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib || true
	python -m infra.offline_plots
	touch $@
