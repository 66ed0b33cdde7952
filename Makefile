# Everything a newcomer needs: `make demo` and `make test`. Both set up their own environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Of each of the two fuzzers, one after the other.
FUZZ_SECONDS ?= 300

.PHONY: demo test check fuzz clean

demo: $(VENV)/ready
	$(BIN)/attachgate demo

test: $(VENV)/ready
	$(BIN)/pytest

check: $(VENV)/ready
	$(BIN)/ruff format --check gateway tests
	$(BIN)/ruff check gateway tests
	$(BIN)/mypy
	$(BIN)/lint-imports

# Without the coverage-guided fuzzer (there is no wheel for every platform), Hypothesis takes its place.
fuzz: $(VENV)/ready
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	$(BIN)/python tests/hostile/fuzz_readers.py --seconds $(FUZZ_SECONDS)
	ATTACHGATE_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest -s tests/hostile/test_fuzz.py

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
