# What one can do in a checkout; `make` alone lists it. All set-up is done in .venv, by setup.sh.

BIN := .venv/bin
BENCH ?= all
PORT ?= 9092
KILLS ?= 500
LONG := long or spark
# Tests of the tests; `fuzz` runs them.
MUTANT := mutant
PARALLEL := -n 3 --dist worksteal

# Where it is set, each process that runs tests would rewrite their assertions anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-long check torture fuzz kafka bench reference docs audit constraints clean

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' Makefile

demo: setup  ## run the real job over a million events, kill it half-way, count
	$(BIN)/forebay demo
	@echo "(after 'source .venv/bin/activate', which puts forebay on PATH in this terminal)"

# On two idle cores in five minutes. Whoever adds a test keeps the budget: the run says at its end
# what it took. What takes longer, or tries many cases, is of `test-long`.
test: setup  ## run the tests (those of Kafka need Java 17 and Maven)
	CPU_BUDGET_S=500 $(BIN)/python -m pytest $(PARALLEL) -m "not ($(LONG) or $(MUTANT))"

test-long: setup  ## run the tests that take long, or install packages, and more cases of others
	HYPOTHESIS_PROFILE=full $(BIN)/python -m pytest $(PARALLEL) --timeout 2700 \
	  -m "($(LONG) or cases) and not $(MUTANT)"

check: setup  ## lint, types, layer contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The one line that it prints is the address.
kafka: setup  ## run an Apache Kafka on localhost:9092 until Ctrl-C (PORT=N: on another port)
	$(BIN)/python -m tests.broker --port $(PORT)

bench: setup  ## measure what it costs (BENCH=NAME: one of them; EVENTS=N: at that size)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation \
	  -e '.[bench]'
	$(BIN)/python -m benchmarks $(BENCH) $(if $(EVENTS),--events $(EVENTS))

# About half an hour on two cores.
torture: setup  ## tell crash stories with ever new seeds, until KILLS=500 kills
	$(BIN)/forebay verify --long --kills $(KILLS)

# Fuzz, crashes, power losses, disk and broker faults.
fuzz: setup  ## search for faults with new seeds and a hundred times the cases
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest --timeout 0 tests/test_fuzz.py tests/test_power_loss.py \
	  tests/test_disk_faults.py tests/test_blocks.py tests/test_replay.py tests/test_handoff.py \
	  tests/test_crash_sweep.py tests/test_broker_trouble.py tests/test_keys.py \
	  tests/test_reject_log.py

# Compiled here, for some environments forbid it to the processes that import: each would do it anew.
setup:  ## make .venv; the other targets do it by themselves
	@./setup.sh
	@$(BIN)/python -m compileall -q forebay forebay/*/ benchmarks tests

reference: setup  ## write REFERENCE.md from the code
	$(BIN)/python -m tests.manual

docs: setup  ## build the documentation as a site, in build/site, and check its links
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation \
	  -e '.[docs]'
	$(BIN)/python -m tests.site

# Asks advisory services on the network.
audit: setup  ## look for known vulnerabilities of what is pinned
	$(BIN)/python -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --require-hashes --disable-pip -r constraints.txt

# The image has what constraints.txt and constraints-build.txt pin: the extras `batch`, `mcp` and `serve`,
# and what its wheel is built with, in the versions that the tests run with.
constraints:  ## pin anew what pyproject.toml allows; UPGRADE=--upgrade: everything
	uv=$$(./setup.sh uv) && compile() { "$$uv" pip compile -q --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --no-annotate $(UPGRADE) "$$@"; } && \
	compile --extra dev -o constraints-dev.txt pyproject.toml && \
	compile --extra batch --extra mcp --extra serve -c constraints-dev.txt -o constraints.txt pyproject.toml && \
	echo hatchling | compile -c constraints-dev.txt -o constraints-build.txt -

# Events are in no folder of these.
clean:  ## remove .venv, build/ and caches
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache \
	  .hypothesis .schemathesis
