# The commands of a checkout. Each sets up what it needs; a second time that takes a moment.

# The default stack takes Python 3.10 to 3.13 and no compiler. STACK=compiled is for mmcv's own
# operators (Python 3.11), STACK=onedl for the forks of OpenMMLab: docs/installation.md.
STACK ?= default
PYTHON ?= $(shell command -v python3.11 || command -v python3)
SETUP = $(PYTHON) tools/setup_env.py --stack $(STACK)
ENV = $(shell $(SETUP) --where)

.PHONY: help setup lock test test-quick demo demo-finetune docs lint clean

help:
	@echo 'make setup   make the environment; STACK=compiled and STACK=onedl make others'
	@echo 'make test    check the style, then run all tests'
	@echo 'make test-quick   check the style, then run the tests that need no training'
	@echo 'make demo    train, convert and compare a small model, on the CPU'
	@echo 'make demo-finetune   go on from the demo with a detector and a segmentor'
	@echo 'make docs    build the documentation into site/'
	@echo 'make lint    check the style'
	@echo 'make lock    look for new versions of what requirements/*.in ask for; wants uv'
	@echo 'make clean   remove what was made in this folder; compiled wheels stay in the cache'

setup:
	@$(SETUP)

# One thread a worker: two workers with a thread for each core fight over them. A file is one
# worker's, so that what its tests share is made once; tests/conftest.py has the longest come first.
test: lint
	OMP_NUM_THREADS=1 $(ENV)/bin/python -m pytest -n 2 --dist loadfile \
		--no-loadscope-reorder tests

# What a change most often breaks, in under three minutes.
test-quick: lint
	OMP_NUM_THREADS=1 $(ENV)/bin/python -m pytest -q -n 2 --dist loadfile \
		tests/convs tests/test_layers.py tests/test_imports.py tests/test_registry.py \
		tests/checkpoints/test_forms.py tests/checkpoints/test_conversion.py \
		tests/docs/test_links.py tests/docs/test_pages.py

demo: setup
	@$(ENV)/bin/python tools/demo.py

demo-finetune: setup
	@$(ENV)/bin/python tools/demo.py detect segment

# Its theme announces the next version of mkdocs in every build.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(ENV)/bin/python -m mkdocs build --strict

lint: setup
	$(ENV)/bin/python -m ruff check .

# Two stacks build their mmcv when the rest is there: it stays out of their locks.
LOCK = cd requirements && uv pip compile --quiet --upgrade --universal --no-annotate --no-header \
	--override overrides.in --build-constraint overrides.in
lock:
	$(LOCK) --python-version 3.10 default.in -o default.txt
	$(LOCK) --python-version 3.10 --no-emit-package onedl-mmcv onedl.in -o onedl.txt
	$(LOCK) --python-version 3.11 --no-emit-package mmcv compiled.in -o compiled.txt

clean:
	rm -rf .venv .venv-* build dist site *.egg-info .hypothesis .pytest_cache .ruff_cache
	find configs mmorepa tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
