# Everything that is done to ELMA by hand, one target each. The first call makes .venv (see .ci/setup).
#
#   make demo     three real processes on this machine answer questions (ARGS="--json" and the like)
#   make test     all tests (ARGS="-k lease" and the like go to pytest)
#   make test-device  installs the wheel without torch in a fresh environment and asks it (network)
#   make campaign     50 cuts in transfers of releases (minutes; .ci/run runs ten)
#   make deb          Debian packages of device, worker and tools (large; network)
#   make images       container images of all roles (large; network, docker or ENGINE=podman)
#   make check    format, lint, types and tests: what must pass before a commit

TORCH_VERSION ?= 2.13.0
PYTHON ?=
ARGS ?=
JOBS ?= 2

BIN := .venv/bin
READY := .venv/.ready
PACKAGES := reader protocol broker releases edge_agent cloud_worker publisher elma
SOURCES := $(PACKAGES) tests $(wildcard examples benchmarks deploy)

.PHONY: help environment demo test test-device campaign deb images check format format-check lint types clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 16

environment: $(READY)  ## make .venv with everything in it

demo: $(READY)  ## broker, worker and edge as real processes, questions asked
	@$(BIN)/elma demo $(ARGS)

test: $(READY)  ## all tests, files side by side (JOBS=2)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-device: $(READY)  ## the wheel in a fresh environment without torch; needs the package index
	$(BIN)/python -m pytest -m device $(ARGS)

CUTS ?= 50
ROLES ?= edge worker tools

deb: $(READY)  ## Debian packages of device, worker and tools in dist/; ROLES="edge"
	$(BIN)/python deploy/debian/build_packages.py $(ROLES) --out dist

ENGINE ?= docker
IMAGE_UID ?= 10001

images:  ## container images of all roles; ENGINE=podman; IMAGE_UID=10001
	@for role in broker edge monitor publisher worker; do \
	  $(ENGINE) build --build-arg UID=$(IMAGE_UID) -f deploy/docker/$$role.Dockerfile \
	    -t elma-$$role . || exit 1; done

campaign: $(READY)  ## transfers of a release, cut at random; CUTS=50
	$(BIN)/python -m benchmarks.release_cuts --cuts $(CUTS) --json

check: format-check lint types test  ## format, lint, types, tests

format: $(READY)  ## put all code into its form
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix-only --quiet $(SOURCES)

format-check: $(READY)  ## fail where "make format" would change something
	$(BIN)/ruff format --check $(SOURCES)

lint: $(READY)  ## ruff's rules
	$(BIN)/ruff check $(SOURCES)

types: $(READY)  ## mypy, strict
	$(BIN)/mypy

clean:  ## remove .venv and what tools left behind
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamp makes a second call start at once; a change of the dependencies makes it stale.
$(READY): pyproject.toml .ci/setup
	@TORCH_VERSION='$(TORCH_VERSION)' PYTHON='$(PYTHON)' .ci/setup
	@touch $@
