# logd: what a developer types. `make` alone lists it; the lists come from the comments behind `##`.
#
# Everything is installed into .venv and nowhere else; `make clean` removes what was made.

VENV := .venv
BIN := $(VENV)/bin
PYTHON_IN_VENV := $(BIN)/python
INSTALLED := $(VENV)/.installed
SOURCES := wire logd tests bench docs
# Of some 700 boundaries; each takes a second.
EVERY := 4
# Of `make sim`.
SECONDS := 600
# Of `make seeds`: about six minutes of two cores.
SEEDS := 200
JOBS := 2
LEDGER := .sim/ledger.jsonl

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# One after the other, whatever MAKEFLAGS say: two cores, and output that can be read.
.NOTPARALLEL:

##@ Use it

.PHONY: demo
demo: $(INSTALLED) ## start a node, produce, kill it, consume, compare byte for byte
	@$(PYTHON_IN_VENV) docs/demo.py

.PHONY: run
run: $(INSTALLED) ## a node in the foreground (data in ./.logd, Ctrl-C stops it)
	@exec $(BIN)/logd --dev

##@ Work on it

.PHONY: venv
venv: $(INSTALLED) ## .venv with everything installed; PYTHON=… chooses the interpreter

# Installed again only when what is to be installed changed.
$(INSTALLED): setup.cfg pyproject.toml .ci/venv
	@PYTHON=$(PYTHON) .ci/venv $(VENV)

.PHONY: test
test: check ## install what is needed and run everything that must hold

.PHONY: check
check: format-check lint types imports docs coverage tests ## what a change must pass, the quickest first

.PHONY: format
format: $(INSTALLED) ## rewrite the sources in the one format
	@$(BIN)/ruff check --quiet --select I --fix $(SOURCES)
	@$(BIN)/ruff format --quiet $(SOURCES)

.PHONY: docs
docs: $(INSTALLED) ## the documentation, in docs/_build/html (a warning is an error)
	@echo "docs: sphinx"
	@$(PYTHON_IN_VENV) -m sphinx -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html

.PHONY: clean
clean: ## remove what was made, .venv included; the data in .logd stays
	@rm -rf $(VENV) $(VENV).log build dist ./*.egg-info docs/_build htmlcov .coverage* .bench .cache .sim
	@rm -rf .mypy_cache .ruff_cache .import_linter_cache .hypothesis .pytest_cache
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

##@ The parts of `make check`

.PHONY: format-check
format-check: $(INSTALLED) ## is everything in the one format?
	@echo "format: ruff"
	@$(BIN)/ruff format --quiet --check $(SOURCES)

.PHONY: lint
lint: $(INSTALLED) ## ruff's rules, those for async code among them
	@echo "lint: ruff"
	@$(BIN)/ruff check --quiet $(SOURCES)

.PHONY: types
types: $(INSTALLED) ## mypy, strict
	@echo "types: mypy"
	@$(BIN)/mypy --no-error-summary

.PHONY: imports
imports: $(INSTALLED) ## may the rooms import what they import?
	@echo "imports: import-linter"
	@output=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$output"; exit 1; }

.PHONY: tests
tests: $(INSTALLED) ## the test suite; ARGS="-k name -x" goes to pytest
	@echo "tests: pytest"
	@$(BIN)/pytest -q $(ARGS)

.PHONY: coverage
coverage: $(INSTALLED) ## do the consensus core's own tests reach 95 % of its branches?
	@echo "coverage: logd/raft"
	@$(PYTHON_IN_VENV) -m coverage run --branch --data-file=.coverage.raft --source=logd/raft -m pytest -q tests/raft \
		>.coverage.log 2>&1 || { cat .coverage.log; exit 1; }
	@$(PYTHON_IN_VENV) -m coverage report --data-file=.coverage.raft --fail-under=95 --format=total >.coverage.log \
		|| { $(PYTHON_IN_VENV) -m coverage report --data-file=.coverage.raft -m; exit 1; }
	@rm -f .coverage.raft .coverage.log

.PHONY: check-long
check-long: $(INSTALLED) ## what `make check` leaves out because it takes minutes (CI runs both)
	@echo "long tests: pytest"
	@$(BIN)/pytest -q -m long --timeout 1200 $(ARGS)
	@echo "kill -9 before a system call that changes the disk, one of every $(EVERY)"
	@if command -v strace >/dev/null; then $(PYTHON_IN_VENV) -m tests.e2e.boundaries --all --every $(EVERY); \
		else echo "skipped: strace is not installed"; fi

.PHONY: seeds
seeds: $(INSTALLED) ## simulated clusters from SEEDS=200 new seeds, and which marks no run reached (CI runs it)
	@$(PYTHON_IN_VENV) -m tests.sim --count $(SEEDS) --jobs $(JOBS) --marks $(ARGS)
	@$(PYTHON_IN_VENV) -m tests.sim.marks --count 16

.PHONY: sim
sim: $(INSTALLED) ## simulated clusters under faults, new seeds, for SECONDS=600 on JOBS=2; docs/simulation.md tells more
	@$(PYTHON_IN_VENV) -m tests.sim --for $(SECONDS) --jobs $(JOBS) --marks --ledger $(LEDGER) $(ARGS)

##@ Measure it

.PHONY: bench
bench: $(INSTALLED) ## all questions at length, beside NATS JetStream in the same run
	@$(PYTHON_IN_VENV) -m bench.full $(if $(JSON),--json $(JSON))

.PHONY: bench-quick
bench-quick: $(INSTALLED) ## all questions in under three minutes; JSON=FILE keeps the answers
	@$(PYTHON_IN_VENV) -m bench.quick $(if $(JSON),--json $(JSON))

##@ Find your way

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z][a-z-]*:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
