# Two commands for a newcomer: `make run`, `make test`. Everything else is a variation.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: run test test-slow lint bench clean

run: $(STAMP)            ## the main job on the embedded CPU default
	$(BIN)/synth-engine run --config tiny

test: $(STAMP) lint      ## linters, types, import contracts, fast suite
	$(BIN)/pytest

test-slow: $(STAMP)      ## kills, load, real servers
	$(BIN)/pytest -m slow --timeout 300

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)          ## every bench, one table each; results in bench/results; fails after the last if any failed
	failed=""; for name in stream embedded core swap learner_kills tiny; do \
	  $(BIN)/python -m bench $$name || failed="$$failed $$name"; done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

# pip prefers a wheel that it already has; torch is pinned so that the CPU build is taken where one is offered.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
