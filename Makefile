# The two commands of the README: `make demo` shows the whole story, `make test` passes the tests. Both set up first.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: setup demo test check unit format schema browser bench-apply bench-embedded bench-overhead bench-verdict dist clean

setup: $(STAMP)

# A strict editable install links file by file: a new file means a new install, so the folders are prerequisites.
$(STAMP): pyproject.toml constraints.txt src/prefect_cd $(wildcard src/prefect_cd/*/ src/prefect_cd/*/*/) flows tasks deployments
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "needs Python 3.10 or newer; set PYTHON=…"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3 -m venv does not work; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV), once"
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]' --config-settings editable_mode=strict \
	  || { echo "pip could not install: the first time needs a package index, by network or PIP_INDEX_URL; after that, none"; exit 1; }
	@touch $@

# An installed Chrome or Chromium, else Playwright's own, else Debian's.
FIND_BROWSER = $(BIN)/python -m prefect_cd.gates.browser.suite >/dev/null 2>&1 \
  || timeout 180 $(BIN)/playwright install chromium >/dev/null 2>&1 \
  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && timeout 60 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 180 apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 \
  || true
browser: $(STAMP)
	@$(FIND_BROWSER)
	@$(BIN)/python -m prefect_cd.gates.browser.suite

# On a cluster of its own, or on that of `make demo KUBECONFIG=…`; one that is only exported may be anybody's production.
# Without a browser it says what it leaves out.
ifeq ($(shell test -w . && echo yes),yes)
demo: $(STAMP)
	@$(FIND_BROWSER)
	@$(if $(findstring command,$(origin KUBECONFIG)),KUBECONFIG=$(KUBECONFIG),$(BIN)/python -m prefect_cd.local --) $(BIN)/python examples/demo.py
else
COPY := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/prefect-cd/checkout
demo:
	@echo "this checkout is read-only: working in $(COPY)" && mkdir -p $(COPY)
	@tar --exclude=./.venv --exclude=./build --mode=u+w -cf - . | tar -C $(COPY) -xf -
	@$(MAKE) --no-print-directory -C $(COPY) demo
endif

# Everything, with the cluster of KUBECONFIG where there is one; then the cluster tests once more, on the embedded one.
test: check browser
	$(BIN)/pytest
	@command -v kubectl >/dev/null || echo "tests/cluster on the embedded cluster left out: kubectl is not installed"
	! command -v kubectl >/dev/null || $(BIN)/python -m prefect_cd.local -- $(BIN)/pytest tests/cluster

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(STAMP)
	$(BIN)/pytest tests/unit

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schema: $(STAMP)
	$(BIN)/prefect-cd schema > deployments/pipeline.schema.json

bench-apply: $(STAMP)
	$(BIN)/python benchmarks/apply/run.py

bench-embedded: $(STAMP)
	$(BIN)/python benchmarks/embedded/run.py

bench-overhead: $(STAMP) browser
	$(BIN)/python benchmarks/overhead/run.py

bench-verdict: $(STAMP)
	$(BIN)/python benchmarks/verdict/scale.py; scale=$$?; $(BIN)/python benchmarks/verdict/run.py && exit $$scale

dist: $(STAMP)
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
