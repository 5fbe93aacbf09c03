# `make up` installs into .venv (first time only) and serves; `make check` is what CI runs; `make help` lists all.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Two installs, each by hash: what serving needs, and on top of it what everything else here needs.
SERVING := $(VENV)/.serving
TESTING := $(VENV)/.testing
# Flags for `dspool up`: make up ARGS="--port 9000 --config pool.yaml"
ARGS ?=
# Each is a small program that prints JSON last; `--quick` shows that it still runs.
BENCHMARKS ?= targets throughput programs peers scaling http model_call recovery cluster start startup telemetry sizing dashboard abuse soak chaos structure
# Real services that tests and benchmarks use where they are installed; without one, its tests are skipped.
DEBIAN_PACKAGES ?= postgresql prometheus chromium chromium-driver redis-server

# With it set, every process would compile all its imports afresh: workers start three times slower.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help up serving install wheel test test-all test-unit test-cluster check lint format types imports bench bench-quick bench-smoke docs docs-check generated pictures debian lock clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1|\2/' | column -t -s '|'

up: $(SERVING) ## install what serving needs, if that is not there, then serve on http://127.0.0.1:8000 until Ctrl-C
	@$(BIN)/dspool up $(ARGS)

serving: $(SERVING) ## what serving needs, in .venv

# The two lists of packages share none: each is unpacked beside the other.
install: ## the project and all its tools in .venv, as requirements/ pins them
	@$(MAKE) --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,--jobs=2) $(TESTING)

# Nothing is built but the project itself, and nothing is taken that has another hash. Of all these files a run reads
# a few: each is compiled when it is first imported.
PIP_INSTALL := $(BIN)/python -m pip install --no-compile --no-deps
LOCKED := $(PIP_INSTALL) --require-hashes --only-binary :all:

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed (make PYTHON=/path/to/python)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V)"; exit 1; }
	@echo "[1/3] Python environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(SERVING): pyproject.toml requirements/serve.txt | $(BIN)/python
	@echo "[2/3] Packages (a few minutes the first time)"
	@$(LOCKED) -r requirements/serve.txt
	@$(PIP_INSTALL) --no-build-isolation -e .
	@echo "[3/3] Checking that they fit together"
	@$(BIN)/python -m pip check
	@touch $@

$(VENV)/.tools: requirements/test.txt | $(BIN)/python
	@echo "Packages for tests, documentation and benchmarks"
	@$(LOCKED) -r requirements/test.txt
	@touch $@

$(TESTING): $(SERVING) $(VENV)/.tools
	@$(BIN)/python -m pip check
	@touch $@

# Times in it are the commit's, or fixed where there is none: the same files give the same bytes.
wheel: install ## build/wheel/dspool-*.whl, the same bytes each time
	@rm -rf build/wheel
	@SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || echo 1600000000)} \
	  $(BIN)/python -m hatchling build --target wheel --directory build/wheel
	@cd build/wheel && sha256sum dspool-*.whl

# Whole files side by side, each process with a cluster of its own; a test that measures time runs alone.
PARALLEL := -n $(or $(PROCESSES),2) --dist loadfile --no-loadscope-reorder

CHOSEN := -m "not long"

test: install ## what CI runs: all tests but those marked long; PROCESSES=1 to run one after the other
	@$(BIN)/pytest $(PARALLEL) $(CHOSEN)

test-all: CHOSEN :=
test-all: test ## those marked long as well

test-unit: install ## the tests that need no Ray
	@$(BIN)/pytest $(PARALLEL) -m "not ray and not serve" tests/unit tests/property tests/security

# With every scenario on three machines; the few that `make test` runs are among them.
test-cluster: install ## tests on machines that are Linux namespaces, with all scenarios; needs root, takes many minutes
	@DSPOOL_TEST_CLUSTER=1 $(BIN)/pytest tests/cluster

check: install ## what CI runs: lint, format, types, import contracts, documentation, tests
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint types imports docs-check
	@$(MAKE) --no-print-directory test

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/deno fmt --check
	@$(BIN)/deno lint

format: install ## rewrite Python and JavaScript in the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/deno fmt --quiet

types: install
	@$(BIN)/mypy

imports: install
	@$(BIN)/lint-imports

bench: install ## every benchmark in full, more than an hour; writes benchmarks/report.html and report.json
	@$(BIN)/python -m benchmarks.report $(BENCHMARKS)

bench-smoke: install ## whether every benchmark starts, prints its keys and ends: the smallest part of each, two side by side
	@$(BIN)/python -m benchmarks.smoke

bench-quick: install ## every benchmark with all of its parts just long enough to see that it runs, two side by side
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target $(BENCHMARKS:%=quick-%)

quick-%:
	@echo "== benchmarks.$* --quick"; $(BIN)/python -m benchmarks.$* --json --quick

docs: generated docs-check ## the documentation as a site: build/docs/index.html
	@echo "open build/docs/index.html"

# Every link and every reference must lead somewhere, and nothing is fetched. -E: a warning of a page comes each time.
docs-check: install ## the site, from the pages as they are
	@$(BIN)/python -m sphinx -E -W -n --keep-going -q -d build/doctrees docs build/docs

generated: install ## what is written from the code: tables of the documentation, dashboards, alert rules
	@$(BIN)/python -m docs._generators
	@$(BIN)/python -m dspool_console.grafana
	@$(BIN)/python -m dspool_console.alerts

pictures: install ## the pictures of the dashboard in docs/images, of made-up data; needs chromium
	@$(BIN)/python -m tests.browser.pictures

debian: ## Debian packages that some tests use (needs root; nothing breaks without)
	apt-get update
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(DEBIAN_PACKAGES)

# The hashes are those of every platform and Python that a package supports, so that one file serves all. What a file
# pins already keeps its version and its hashes.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11.5 --generate-hashes --no-annotate \
  --custom-compile-command "make lock" $(LOCK_ARGS) pyproject.toml -

# A container has no litellm, which DSPy loads only for engine: litellm, nor what only that needs.
lock: install ## pin what pyproject.toml asks for; LOCK_ARGS=--upgrade takes newer versions
	@mkdir -p build
	@echo hatchling | $(LOCK) --extra postgres --extra otlp --output-file requirements/serve.txt
	@echo hatchling | $(LOCK) --all-extras --constraints requirements/serve.txt --output-file requirements/test.txt \
	  $$(sed -n 's/^\([^ =]*\)==.*/--no-emit-package \1/p' requirements/serve.txt)
	@echo 'litellm; python_version < "3"' > build/overrides.txt
	@echo hatchling | $(LOCK) --extra postgres --extra otlp --constraints requirements/serve.txt \
	  --overrides build/overrides.txt --output-file requirements/container.txt
	@touch $(SERVING) $(TESTING)

clean: ## remove caches, the built site and the environment
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
