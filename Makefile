# `make quickstart` needs Python 3.11 to 3.13 and nothing else.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# constraints.txt holds the versions that passed on Python 3.11; newer Pythons take newer ones.
# Python compiles a module when it is first imported; pip would compile all of them, for half of its time.
unexport PYTHONDONTWRITEBYTECODE
PIP = $(RUN) -m pip install --no-compile --quiet --disable-pip-version-check \
	$(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" if sys.version_info[:2] == (3, 11) else "")')

.PHONY: quickstart test test-slow check test-weights test-faults test-scale lint docs wheel-smoke audit

$(VENV)/core: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "e5jax needs Python 3.11 to 3.13; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/test: $(VENV)/core
	$(PIP) -e '.[test]'
	touch $@

$(VENV)/docs: $(VENV)/core
	$(PIP) -e '.[docs]'
	touch $@

quickstart: $(VENV)/core  ## the built-in sample's answers -> a dataset -> a tiny embedder, on CPU
	$(RUN) -m e5jax.synthesize --config configs/synthesize_sample.py
	$(RUN) -m e5jax.package --config configs/package_sample.py
	$(RUN) -m e5jax.train --config configs/quickstart.py

# By file, since the tests of a module share its runs, and in the order that tests/conftest.py gives.
BY_FILE := -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/test  ## everything that is quick
	$(RUN) -m pytest $(BY_FILE) -m 'not slow and not weights and not faults and not scale'

test-slow: $(VENV)/test  ## the compile at 7B shapes and other minutes-long claims
	$(RUN) -m pytest -n 2 --dist worksteal -m slow

check: $(VENV)/test  ## the quick and the slow ones together, as the hosted CI runs them
	$(RUN) -m pytest $(BY_FILE) -m 'not weights and not faults and not scale'

test-weights: $(VENV)/test  ## real weights against what others published: minutes of arithmetic
	$(RUN) -m pytest -n 2 --dist worksteal -m weights

test-faults: $(VENV)/test  ## kills at random moments, dead and stuck processes, every fault of a server and a disk
	cache=$$(mktemp -d); trap 'rm -rf "$$cache"' EXIT; \
	  JAX_COMPILATION_CACHE_DIR=$$cache JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
	  $(RUN) -m pytest -n 2 --dist worksteal -m faults --durations 10

test-scale: $(VENV)/test  ## a million texts: memory, killed and resumed
	$(RUN) -m pytest -m scale -s

lint: $(VENV)/test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

docs: $(VENV)/docs  ## the pages of docs/ as a site, in build/site; a link that leads nowhere is an error
	$(RUN) -m mkdocs build --strict

wheel-smoke:  ## the wheel in an environment of its own, away from this checkout: the quickstart's three commands
	rm -rf build/smoke && mkdir -p build/smoke
	$(PYTHON) -m venv build/smoke/venv
	build/smoke/venv/bin/pip wheel --quiet --no-deps --wheel-dir build/smoke .
	build/smoke/venv/bin/pip install --quiet build/smoke/*.whl
	cp -r configs build/smoke/
	cd build/smoke && JAX_PLATFORMS=cpu && export JAX_PLATFORMS && \
	  venv/bin/python -m e5jax.synthesize --config configs/synthesize_sample.py && \
	  venv/bin/python -m e5jax.package --config configs/package_sample.py && \
	  venv/bin/python -m e5jax.train --config configs/quickstart.py --steps 5 && \
	  venv/bin/python -m e5jax.checkpoint verify runs/quickstart

audit:  ## known holes in what we depend on; asks the network
	$(PYTHON) -m pip install --quiet pip-audit
	$(PYTHON) -m pip_audit --requirement constraints.txt --no-deps --disable-pip
