# Two commands for a newcomer: `make run`, `make test`. Everything else is a variation.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
THEIRS := $(if $(AGENTICQWEN),--agenticqwen="$(AGENTICQWEN)")
# Tests run in random order, of which the first lines tell the seed: `pytest --randomly-seed=N` repeats it. The fast suite
# is shared out by files; JOBS=0 runs it in one process.
JOBS   ?= 2

.PHONY: run run-sglang test coverage test-slow sglang lint bench pages clean

run: $(STAMP)            ## the main job on the embedded CPU default
	$(BIN)/synth-engine run --config tiny

run-sglang: $(STAMP) sglang ## the same against the real SGLang without a GPU; installs that in an environment of its own
	$(BIN)/synth-engine run --config tiny --name tiny-sglang --set policy.launch=sglang --set policy.device=cpu

test: $(STAMP) lint      ## linters, types, import contracts, fast suite; AGENTICQWEN=FILE imports and plays its tasks too
	$(BIN)/pytest -n $(JOBS) --dist loadfile $(THEIRS) $(MEASURED)

coverage: MEASURED := --cov --cov-report=
coverage: test           ## `make test`, and how much of the branches it ran: in all, and the ten modules with the least
	$(BIN)/coverage report --sort=cover | sed -n '1,12p;/^TOTAL/p'

test-slow: $(STAMP)      ## kills, load, real servers; without SGLang its tests are skipped, and say so; takes AGENTICQWEN=FILE too
	-$(MAKE) sglang
	$(BIN)/pytest -m slow --timeout 300 --durations 20 $(THEIRS)

sglang: $(STAMP)         ## SGLang without a GPU, 3 GB under ~/.local/share; nothing to do if it is there
	$(BIN)/synth-engine install-sglang --cpu

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)          ## every bench, one table each; results in bench/results; fails after the last if any failed
	failed=""; for name in stream embedded core endpoints swap sglang learner_kills learner_gpu tiny simulators tui; do \
	  $(BIN)/python -m bench $$name || failed="$$failed $$name"; done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

pages: $(STAMP)          ## writes docs/structure.md and the generated parts of docs/metrics.md and docs/packs.md anew
	sed '/^<!-- synth-engine metrics names -->$$/q' docs/metrics.md > docs/metrics.md.new
	$(BIN)/synth-engine metrics names >> docs/metrics.md.new
	mv docs/metrics.md.new docs/metrics.md
	$(BIN)/python -m tests.bar.packs_page --write
	$(BIN)/python -m tests.bar.house --write

# pip prefers a wheel that it already has; torch is pinned so that the CPU build is taken where one is offered.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
