PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
TEST_ARGS ?=

.PHONY: install demo test lint proto clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/swarm-node demo $(DEMO_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: lint
	$(BIN)/pytest $(TEST_ARGS)

# Regenerates swarm/wire/v1 from proto/; tests/test_proto.py fails when they differ.
proto: install
	$(BIN)/python -m swarm.wire.generate

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
