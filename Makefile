# The commands of a checkout. Each sets up what it needs; a second time that takes a moment.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
ENV = $(shell $(PYTHON) tools/setup_env.py --where)
NEWEST = $(shell $(PYTHON) tools/setup_env.py --stack newest --where)

.PHONY: help setup test test-newest demo demo-finetune docs lint clean

help:
	@echo 'make setup   make the environment with the pinned stack'
	@echo 'make test    check the style, then run all tests'
	@echo 'make test-newest   tests with the newest torch that was tried, see docs/second_stack.md'
	@echo 'make demo    train, convert and compare a small model, on the CPU'
	@echo 'make demo-finetune   go on from the demo with a detector and a segmentor'
	@echo 'make docs    build the documentation into site/'
	@echo 'make lint    check the style'
	@echo 'make clean   remove what was made in this folder; compiled wheels stay in the cache'

setup:
	@$(PYTHON) tools/setup_env.py

# One thread a worker: two workers with a thread for each core fight over them. A file is one
# worker's, so that what its tests share is made once; tests/conftest.py has the longest come first.
test: lint
	OMP_NUM_THREADS=1 $(ENV)/bin/python -m pytest -n 2 --dist loadfile \
		--no-loadscope-reorder tests

test-newest:
	@$(PYTHON) tools/setup_env.py --stack newest
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -n 2 --dist loadfile \
		--no-loadscope-reorder tests/convs tests/checkpoints tests/engine tests/backbones

demo: setup
	@$(ENV)/bin/python tools/demo.py

demo-finetune: setup
	@$(ENV)/bin/python tools/demo.py detect segment

# Its theme announces the next version of mkdocs in every build.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(ENV)/bin/python -m mkdocs build --strict

lint: setup
	$(ENV)/bin/python -m ruff check .

clean:
	rm -rf .venv .venv-newest build dist site *.egg-info .hypothesis .pytest_cache .ruff_cache
	find configs mmorepa tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
