# `make demo` and `make test` each set everything up and do their whole job.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export HF_DATASETS_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo nano test lint format wheel docs types clean

# The stamp is remade when what to install changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(None if sys.version_info >= (3, 11) else 'vqrae needs Python 3.11 or newer: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,data,eval,lora,serve,web,docs,dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/vqrae demo --out runs/demo

# The model that ships, from scratch: hours. Interrupted, the same command goes on.
nano: $(VENV)/.installed
	$(BIN)/vqrae nano --out runs/nano --pack assets/nano

test: $(VENV)/.installed
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Built, then imported where the checkout cannot be seen.
wheel: $(VENV)/.installed
	rm -rf build dist  # build/ would bring files of an older tree into the wheel
	$(BIN)/python -m build --quiet --wheel
	$(BIN)/python scripts/_check_wheel.py dist/*.whl

# Into site/, whose pages open from disk; a broken link or anchor is an error.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.installed types
	$(BIN)/mkdocs build --strict --quiet

# Type checkers, and the site's API pages, look for a folder named vqrae; the packages are the top-level folders.
types:
	mkdir -p .types/vqrae
	for d in tokenizer mllm generation eval training data recipes assets scripts deepspeed_configs; do ln -sfn ../../$$d .types/vqrae/$$d; done

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .types
