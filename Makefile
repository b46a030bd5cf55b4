# make demo | make test | make lint: each first makes a virtual environment, .venv, with what it needs.
# PYTHON=python3.12 chooses its Python, VENV=path its place. Which build of PyTorch it gets is up to pip's settings.
PYTHON ?= python3
VENV ?= .venv

.PHONY: demo test lint

demo: $(VENV)/.demo
	$(VENV)/bin/python -m examples.digits.demo

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest

# mlinter compares files of one model with each other, so they must lie in one folder, as in a model repository.
lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	rm -rf build/mlinter && mkdir -p build/mlinter
	cp configuration/*_jvlm.py modeling/*_jvlm.py processing/*_jvlm.py build/mlinter
	$(VENV)/bin/mlinter --no-cache --no-progress build/mlinter

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo $(VENV)/.test $(VENV)/.lint: $(VENV)/.%: constraints.txt pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -c constraints.txt -e '.[$*]'
	touch $@
