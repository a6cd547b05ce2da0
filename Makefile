# Each target is one line of real work; CI calls the same.
.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench soak reproduce docs images

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##/make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup:  ## install everything into .venv, system packages by apt
	@scripts/setup

demo: setup  ## five agents on this machine train a model, in under two minutes
	@.venv/bin/fedfleet demo

test: setup  ## all tests but those that need a cluster
	@scripts/test

check: setup  ## lint, format, types, imports
	@.venv/bin/ruff check && .venv/bin/ruff format --check && .venv/bin/mypy && .venv/bin/lint-imports

bench: setup  ## the numbers of the README, measured here
	@.venv/bin/python -m benchmarks

soak: setup  ## a hundred thousand schedules of faults, and the slow tests; hours
	@FEDFLEET_SCHEDULES=100000 .venv/bin/python -m pytest -q --timeout 0 -m "simulation or slow"
	@FEDFLEET_KILLS=10 .venv/bin/python -m pytest -q --timeout 0 tests/e2e/test_faults.py

reproduce: setup  ## published numbers beside ours; exit code 1 outside the tolerance
	@.venv/bin/python -m benchmarks.reproduce

docs: setup  ## renew the parts of docs/ that are made from the code
	@.venv/bin/python scripts/generate-docs

images: setup  ## container images of coordinator, agent and trainer; scripts/images says what can be set
	@scripts/images
