# `make demo` and `make test` are all that a fresh machine needs (python3 and make).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo study test test-slow lint format clean

# Installing takes a minute or two and about 6 GB; it is done again when pyproject.toml or the
# sources of the kernels change.
NATIVE := setup.py $(wildcard sparse_transfer/sparse/native/*)
.venv/installed: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,onnxruntime,openvino]'
	touch .venv/installed

demo: .venv/installed
	$(BIN)/sparse-transfer run quickstart

# The example in docs/study, from the raw results of the study: docs/study/README.md says which.
STUDY ?= raw_results
study: .venv/installed
	rm -rf build/study
	$(BIN)/sparse-transfer import-results $(STUDY)/linear_transfer_results.txt \
		$(STUDY)/full_transfer_results.txt --name paper --runs build/study
	$(BIN)/sparse-transfer report paper --runs build/study --out docs/study

# One thread per test process; two processes at once.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: .venv/installed
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info
