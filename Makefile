# Every target goes through scripts/setup, which is quick when nothing is to do.
MAKEFLAGS += --no-print-directory
RUN := scripts/with-env
export POLYDEV_IMAGES_DIR ?= /var/cache/polydev/golden-images

.PHONY: help setup setup-tests lock check settings format images test soak demo down bench clean

help:            ## What can be made
	@sed -n 's/^\([a-z]*\): .*##/  make \1\t/p' Makefile | expand -t 16

setup:           ## Install what Polydev needs on this machine
	@scripts/setup

setup-tests:
	@scripts/setup --tests

lock: setup      ## Write requirements.lock anew from pyproject.toml
	@$(RUN) uv pip compile --quiet $(if $(UPGRADE),--upgrade) --generate-hashes --no-emit-index-url --no-annotate \
		--python-version 3.11 --python-platform x86_64-unknown-linux-gnu --extra dev \
		--custom-compile-command "make lock" pyproject.toml -o requirements.lock
	@scripts/setup

check: setup-tests ## Format, lint, types, import contracts, unit tests
	@scripts/check

settings: setup-tests ## Write docs/settings.md from the code
	@$(RUN) scripts/settings-reference >docs/settings.md.new
	@mv docs/settings.md.new docs/settings.md

format: setup    ## Format and fix what can be fixed by itself
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

images: setup    ## Build the golden images that are not built yet
	@bin/polydev image build

test: setup-tests  ## Everything: check, images, and all tests on real machines
	@scripts/check --static
	@bin/polydev image build
	@scripts/test

soak: setup-tests  ## What `make test` does in short: many sessions, the whole kill matrix, more requests
	@POLYDEV_SOAK_SESSIONS=300 POLYDEV_MATRIX=all POLYDEV_OPENAPI_EXAMPLES=25 \
		$(RUN) python -m pytest -q -s --timeout 3600 \
		tests/workflows/test_soak.py tests/workflows/test_matrix.py tests/contract/test_openapi.py

demo: setup      ## Carry the main job through, offline, on real machines
	@bin/polydev demo

down: setup      ## End what `make demo` started, and leave nothing of it
	@bin/polydev down --demo

bench: setup-tests ## Measure; results are ratios of alternating runs
	@bin/polydev image build
	@$(RUN) python -m bench

clean:           ## Remove caches of the tools from this checkout
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
