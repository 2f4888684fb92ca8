# Every target runs scripts/setup, which is fast if nothing has to change.
MAKEFLAGS += --no-print-directory
RUN := scripts/with-env
export POLYDEV_IMAGES_DIR ?= /var/cache/polydev/golden-images

.PHONY: help setup setup-tests lock check settings format images test soak demo down bench clean

help:            ## Show this list
	@sed -n 's/^\([a-z]*\): .*##/  make \1\t/p' Makefile | expand -t 16

setup:           ## Install the requirements of Polydev on this machine
	@scripts/setup

setup-tests:
	@scripts/setup --tests

lock: setup      ## Update requirements.lock from pyproject.toml
	@$(RUN) uv pip compile --quiet $(if $(UPGRADE),--upgrade) --generate-hashes --no-emit-index-url --no-annotate \
		--python-version 3.11 --python-platform x86_64-unknown-linux-gnu --extra dev \
		--custom-compile-command "make lock" pyproject.toml -o requirements.lock
	@scripts/setup

check: setup-tests ## Run formatter, linter, type checker, import contracts, words and unit tests
	@scripts/check

settings: setup-tests ## Write docs/settings.md from the code
	@$(RUN) scripts/settings-reference >docs/settings.md.new
	@mv docs/settings.md.new docs/settings.md

format: setup    ## Format the code and apply automatic fixes
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

images: setup    ## Build missing golden images
	@bin/polydev image build

test: setup-tests  ## Run all checks and all tests, including those on real machines
	@scripts/check --static
	@bin/polydev image build
	@scripts/test

soak: setup-tests  ## Run the long versions of tests: more sessions, requests and kills
	@POLYDEV_SOAK_SESSIONS=300 POLYDEV_MATRIX=all POLYDEV_OPENAPI_EXAMPLES=25 \
		$(RUN) python -m pytest -q -s --timeout 3600 \
		tests/workflows/kills/test_soak.py tests/workflows/kills/test_matrix.py tests/contract/test_openapi.py

demo: setup      ## Run the demo: log in real CLIs offline, on real machines
	@bin/polydev demo

down: setup      ## Stop the demo and delete its data
	@bin/polydev down --demo

bench: setup-tests ## Run the benchmarks; results are ratios of alternating runs
	@bin/polydev image build
	@$(RUN) python -m bench

clean:           ## Remove caches of development tools
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
