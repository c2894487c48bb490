# The two commands of the README: `make demo` shows the whole story, `make test` passes the tests. Both set up first.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: setup demo test check unit format schema browser bench-apply bench-overhead dist clean

setup: $(STAMP)

# A strict editable install links file by file: a new file means a new install, so the folders are prerequisites.
$(STAMP): pyproject.toml constraints.txt src/prefect_cd flows tasks deployments
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "needs Python 3.10 or newer; set PYTHON=…"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3 -m venv does not work; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' --config-settings editable_mode=strict
	@touch $@

# An installed Chrome or Chromium, else Playwright's own, else Debian's.
browser: $(STAMP)
	@$(BIN)/python -m prefect_cd.browser >/dev/null 2>&1 \
	  || $(BIN)/playwright install chromium >/dev/null 2>&1 \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	  || true
	@$(BIN)/python -m prefect_cd.browser

demo: $(STAMP) browser
	@$(BIN)/python examples/demo.py

test: check browser
	$(BIN)/pytest

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

bench-overhead: $(STAMP) browser
	$(BIN)/python benchmarks/overhead/run.py

dist: $(STAMP)
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
