# Each target does all its set-up: Python 3.11+ and make are enough. A second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
endif

.PHONY: demo test slow check wheel docs bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/python scripts/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist worksteal

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -n auto --dist worksteal

check: $(VENV)/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

wheel: $(VENV)/.dev
	$(BIN)/python scripts/check_wheel.py

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(VENV)/.dev
	$(BIN)/python scripts/benchmark.py scenes --quick

# The stamp is made again when pyproject.toml changes; the .dev set holds the .demo set.
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) build .cache .mypy_cache .ruff_cache .pytest_cache
