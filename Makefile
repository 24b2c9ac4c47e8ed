# Two commands are enough: `make demo` and `make test`. Both install what they need into .venv first.
SHELL := /bin/sh
# many short processes: what they import is compiled once, also where the environment says not to
export PYTHONDONTWRITEBYTECODE :=
LOCK := $(shell cat pyproject.toml infra/constraints.txt 2>/dev/null | sha256sum | cut -d' ' -f1)
MTF := .venv/bin/mtf
ROUNDS ?= 3
DEV := dev,browser,spark
SERVERS := integration or reliability

.PHONY: help demo test test-fast lint data install install-dev up down status doctor clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

demo: install  ## the whole loop in real Airflow: ROUNDS=3, WORLD=folder of a world
	$(MTF) demo --rounds $(ROUNDS) $(if $(WORLD),--world $(WORLD))

test: lint  ## lint, types, import contracts, every test that this machine can run
	.venv/bin/pytest -n auto --dist loadfile -m "not ($(SERVERS) or browser)"
	.venv/bin/pytest -m "$(SERVERS)"
	.venv/bin/pytest -m browser  # apart: the browser's driver keeps an event loop running in its process

test-fast: install-dev  ## the tests that start no server
	.venv/bin/pytest -n auto --dist loadfile -m "not ($(SERVERS) or browser)"

lint: install-dev  ## ruff, mypy, import contracts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

data: install  ## the reference day-0 logs, from the copy inside the repository
	.venv/bin/dvc pull -r seed data.dvc

install:  ## what the demo needs, into .venv; only where the lock changed
	@grep -qs $(LOCK) .venv/.mtf-lock* || sh infra/setup.sh

install-dev:  ## and what the tests need
	@grep -qs $(LOCK) .venv/.mtf-lock-$(DEV) || sh infra/setup.sh $(DEV)

up: install  ## start the platform (WORLD=folder, or SPEC=file, the first time)
	$(MTF) up $(if $(WORLD),--world $(WORLD)) $(if $(SPEC),--spec $(SPEC))

down:  ## stop all of it
	$(MTF) down

status:  ## what runs
	$(MTF) status

doctor: install  ## what this machine lacks
	$(MTF) doctor

clean:  ## delete the state folder (FORCE=1: although something would be lost)
	$(MTF) clean $(if $(FORCE),--force)
