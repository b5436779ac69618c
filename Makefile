# Two commands for a newcomer: `make demo` and `make test`. Both do all set-up in .venv.
# Packages come from the pip configuration of this machine, pinned by hash in constraints-dev.txt.

BIN := .venv/bin
READY := .venv/ready
BENCH ?= all
PORT ?= 9092
KILLS ?= 500

.PHONY: demo test check torture fuzz kafka bench audit constraints clean setup

demo: setup
	$(BIN)/forebay demo

test: setup
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Crash stories with ever new seeds, until so many kills (about half an hour on two cores).
torture: setup
	$(BIN)/forebay verify --long --kills $(KILLS)

# Fuzz, crashes, power losses, disk and broker faults with new seeds and a hundred times the cases.
fuzz: setup
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest tests/test_fuzz.py tests/test_power_loss.py \
	  tests/test_disk_faults.py tests/test_blocks.py tests/test_replay.py tests/test_handoff.py \
	  tests/test_crash_sweep.py tests/test_broker_trouble.py tests/test_keys.py

# Runs until Ctrl-C; the one line it prints is the address.
kafka: $(READY)
	$(BIN)/python -m tests.broker --port $(PORT)

# BENCH=NAME EVENTS=N runs one of them, at that size.
bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation \
	  -e '.[bench]'
	$(BIN)/python -m benchmarks $(BENCH) $(if $(EVENTS),--events $(EVENTS))

# Compiled here, for some environments forbid it to the processes that import: each would do it anew.
setup: $(READY)
	@$(BIN)/python -m compileall -q cli flows operators query storage verify benchmarks tests

# A Python 3.10 to 3.12, for the engine has no wheels for others; else uv fetches one, if uv is here.
$(READY): constraints-dev.txt pyproject.toml
	@set -e; found=; \
	for python in python3.12 python3.11 python3.10 python3 python; do \
	  if $$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	     >/dev/null 2>&1; then found=$$python; break; fi; \
	done; \
	if [ -x $(BIN)/python ]; then :; \
	elif [ -n "$$found" ]; then $$found -m venv .venv; \
	elif command -v uv >/dev/null; then uv venv --seed --python 3.12 .venv; \
	else echo "expected Python 3.10, 3.11 or 3.12 on PATH, or uv to fetch one; found neither" >&2; \
	  exit 1; fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  -r constraints-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --no-build-isolation -e .
	@touch $@

# Known vulnerabilities of what is pinned (asks advisory services on the network).
audit: $(READY)
	python3 -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --require-hashes --disable-pip -r constraints.txt

# Pins anew what pyproject.toml allows (needs uv).
constraints:
	uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate -o constraints.txt pyproject.toml
	uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --extra dev -c constraints.txt -o constraints-dev.txt pyproject.toml

clean:
	rm -rf .venv build data dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache \
	  .hypothesis
