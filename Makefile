# The two commands of the README: `make demo` shows releases and a rollback, `make test` runs all tests. Both set up first.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PREFECT_SERVER_ANALYTICS_ENABLED := false
# Each Prefect server and most runs are new processes that import for seconds, twice as long without compiled files.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-all test-rbac test-restarts test-embedded test-reference test-versions test-lowest test-newest wheels check typed coverage unit format docs graph schema browser bench-apply bench-crash bench-crash-mutants bench-embedded bench-fencing bench-overhead bench-verdict dist clean

setup: $(STAMP)

# The embedded cluster: a distribution of its own.
LOCAL := packages/prefect-cd-local

# A strict editable install links file by file: a new file means a new install, so the folders are prerequisites, and
# the links of the last install are removed first. One call of pip, so that the extra `local` is the one of this checkout.
$(STAMP): pyproject.toml constraints.txt src/prefect_cd $(wildcard src/prefect_cd/*/ src/prefect_cd/*/*/) flows tasks deployments \
  $(LOCAL)/pyproject.toml $(LOCAL)/src/prefect_cd_local $(wildcard $(LOCAL)/src/prefect_cd_local/*/)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "needs Python 3.10 or newer; set PYTHON=…"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3 -m venv does not work; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV), once"
	@rm -rf build $(LOCAL)/build
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev,local]' --editable $(LOCAL) --config-settings editable_mode=strict \
	  || { echo "pip could not install: the first time needs a package index, by network or PIP_INDEX_URL; after that, none"; exit 1; }
	@touch $@

# An installed Chrome or Chromium, else Playwright's own, else Debian's.
FIND_BROWSER = $(BIN)/python -m prefect_cd.gates.browser.executable >/dev/null 2>&1 \
  || timeout 180 $(BIN)/playwright install chromium >/dev/null 2>&1 \
  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && timeout 60 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 180 apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 \
  || true
browser: $(STAMP)
	@$(FIND_BROWSER)
	@$(BIN)/python -m prefect_cd.gates.browser.executable

# On the embedded cluster, or on that of `make demo KUBECONFIG=…`. An exported KUBECONFIG is ignored: it may be that of a
# production cluster. Without a browser, it prints which steps are left out.
ifeq ($(shell test -w . && echo yes),yes)
demo: $(STAMP)
	@$(FIND_BROWSER)
	@$(if $(findstring command,$(origin KUBECONFIG)),KUBECONFIG=$(KUBECONFIG),$(BIN)/python -m prefect_cd_local --) $(BIN)/python examples/demo.py
else
COPY := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/prefect-cd/checkout
demo:
	@echo "this checkout is read-only: working in $(COPY)" && mkdir -p $(COPY)
	@tar --exclude=./.venv --exclude=build --mode=u+w -cf - . | tar -C $(COPY) -xf -
	@$(MAKE) --no-print-directory -C $(COPY) demo
endif

# Tests wait most of the time, so more of them run side by side than there are cores; `alone` marks those that cannot,
# and `restarts` those that need the cluster for themselves, but not the machine.
WORKERS ?= 4
UNIT_WORKERS ?= 3
PYTEST := $(BIN)/pytest --durations=10
BESIDE := -m 'not alone and not restarts and not reference' --numprocesses=$(WORKERS) --dist=loadfile
ALONE := -m 'alone and not reference'
RESTARTS := -m restarts
EMBEDDED := $(BIN)/python -m prefect_cd_local --
VERSIONED := tests/unit tests/tasks tests/flows
NO_CLUSTER := $(VERSIONED) tests/effects tests/security tests/packaging
SCENARIOS := tests/cluster tests/crash
CONFORMANCE := $(LOCAL)/tests/conformance
AT_ONCE := $(MAKE) --no-print-directory --jobs=2 --output-sync=recurse

# Every scenario on one cluster: that of KUBECONFIG and REGISTRY, else the embedded one. Conformance ties both together.
test: check browser
ifneq ($(and $(KUBECONFIG),$(REGISTRY)),)
	$(AT_ONCE) coverage test-restarts
	$(PYTEST) $(BESIDE) tests/browser $(LOCAL)/tests/unit $(SCENARIOS) $(CONFORMANCE)
	$(PYTEST) $(ALONE) $(SCENARIOS) $(CONFORMANCE)
else
	@$(MAKE) --no-print-directory coverage
	$(PYTEST) $(BESIDE) tests/browser $(LOCAL)/tests/unit $(CONFORMANCE)
	$(PYTEST) $(ALONE) $(CONFORMANCE)
	@$(MAKE) --no-print-directory test-embedded
endif

# Where KUBE_CLUSTER names the program that starts and ends the parts of that cluster.
test-restarts: $(STAMP)
	@test -n "$(KUBE_CLUSTER)" || echo "restarts of the control plane left out: KUBE_CLUSTER is not set"
	test -z "$(KUBE_CLUSTER)" || $(PYTEST) $(RESTARTS) tests/cluster

# The scenarios on the embedded cluster.
test-embedded: $(STAMP) browser
	@command -v kubectl >/dev/null || echo "$(SCENARIOS) left out: kubectl is not installed"
	! command -v kubectl >/dev/null || $(EMBEDDED) $(PYTEST) $(BESIDE) $(SCENARIOS)
	! command -v kubectl >/dev/null || $(EMBEDDED) $(PYTEST) $(ALONE) $(SCENARIOS)

# The scenarios of flows, each pipeline served by a service account that has the Roles of `prefect-cd rbac` and no more.
# They need a cluster that enforces Roles: the embedded one does not.
test-rbac: $(STAMP) browser
	@test -n "$(KUBECONFIG)" -a -n "$(REGISTRY)" || { echo "set KUBECONFIG and REGISTRY: the embedded cluster has no Roles"; exit 1; }
	RBAC=1 $(PYTEST) $(BESIDE) --ignore=tests/cluster/core tests/cluster
	RBAC=1 $(PYTEST) $(ALONE) --ignore=tests/cluster/core tests/cluster
	$(PYTEST) tests/cluster/core/test_rbac.py

# Long tests of the conformance suite on the real cluster: whether Kubernetes still does what was recorded of it.
test-reference: $(STAMP)
	test -z "$(REAL)" || $(PYTEST) -m reference --numprocesses=$(WORKERS) $(CONFORMANCE)

# Every scenario on both clusters.
test-all: test test-embedded test-reference

# Tests of units, stages and flows with the lowest supported versions of the direct dependencies, and with the newest
# ones where those are not the pinned ones. Each has an environment of its own with the built wheels, so that no test
# reads the sources by accident. Property tests take a third of the time and run with the pinned versions only.
test-versions: $(STAMP)
	@set -o pipefail; newer=$$($(BIN)/python tests/versions.py newer | paste --serial --delimiters=" ") \
	  && if [ -n "$$newer" ]; then echo "newer than the pinned ones: $$newer" && $(AT_ONCE) test-lowest test-newest; \
	  else echo "the pinned versions of the direct dependencies are the newest: make test runs with them" && $(MAKE) --no-print-directory test-lowest; fi

test-lowest test-newest: test-%: wheels
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT \
	  && $(BIN)/python tests/versions.py $* >"$$folder/constraints.txt" \
	  && $(PYTHON) -m venv "$$folder/venv" \
	  && "$$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile --constraint "$$folder/constraints.txt" \
	    --find-links $(WHEELS) "$$(echo $(WHEELS)/prefect_cd-*.whl)[dev,local]" \
	  && "$$folder/venv/bin/python" tests/versions.py installed | paste --serial --delimiters=" " \
	  && "$$folder/venv/bin/pytest" --quiet -m 'not hypothesis' --numprocesses=$(UNIT_WORKERS) --dist=loadfile $(VERSIONED)

WHEELS := $(VENV)/wheels
wheels: $(STAMP)
	@rm -rf $(WHEELS)
	@$(BIN)/python -m build --no-isolation --wheel --outdir $(WHEELS) . >/dev/null
	@$(BIN)/python -m build --no-isolation --wheel --outdir $(WHEELS) $(LOCAL) >/dev/null

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory typed
	$(BIN)/lint-imports

# Branch coverage of core, tasks, flows and deployments by the tests without a cluster; its floor is in pyproject.toml.
coverage: $(STAMP)
	$(PYTEST) --numprocesses=$(UNIT_WORKERS) --dist=loadfile --cov --cov-report=term $(NO_CLUSTER)

# The library as a user's editor sees it: strictly, and from a folder outside of this checkout.
typed: $(STAMP)
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cp examples/own_flow.py tests/consumer/* "$$folder" \
	  && $(BIN)/pyright --project "$$folder" --pythonpath $(BIN)/python

unit: $(STAMP)
	$(PYTEST) --numprocesses=$(UNIT_WORKERS) --dist=worksteal tests/unit $(LOCAL)/tests/unit

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The pages of docs/ that are generated from the code, and the drawing of its imports.
docs graph: $(STAMP)
	$(BIN)/python docs/generator/generate_docs.py

schema: $(STAMP)
	$(BIN)/prefect-cd schema > deployments/pipeline.schema.json

bench-apply: $(STAMP)
	$(BIN)/python benchmarks/apply/run.py

# On the embedded cluster, and on that of KUBECONFIG and REGISTRY where both are set.
REAL := $(and $(KUBECONFIG),$(REGISTRY))
bench-crash: $(STAMP)
	$(EMBEDDED) $(BIN)/python benchmarks/crash/run.py --cluster embedded; embedded=$$?; \
	  { test -z "$(REAL)" || $(BIN)/python benchmarks/crash/run.py --cluster real; } && exit $$embedded

bench-crash-mutants: $(STAMP)
	$(EMBEDDED) $(BIN)/python benchmarks/crash/run.py --cluster embedded --mutants

bench-fencing: $(STAMP)
	$(EMBEDDED) $(BIN)/python benchmarks/fencing/run.py --cluster embedded; embedded=$$?; \
	  { test -z "$(REAL)" || $(BIN)/python benchmarks/fencing/run.py --cluster real; } && exit $$embedded
	$(EMBEDDED) $(BIN)/python benchmarks/fencing/run.py --cluster embedded --trials 50 --without-fencing

bench-embedded: $(STAMP)
	$(BIN)/python benchmarks/embedded/run.py

bench-overhead: $(STAMP) browser
	$(BIN)/python benchmarks/overhead/run.py

bench-verdict: $(STAMP)
	$(BIN)/python benchmarks/verdict/scale.py; scale=$$?; $(BIN)/python benchmarks/verdict/run.py && exit $$scale

dist: $(STAMP)
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --outdir dist $(LOCAL)

clean:
	rm -rf $(VENV) build $(LOCAL)/build dist *.egg-info $(LOCAL)/src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
