# make demo | notebooks | test | test-quick | fuzz | lint | format | lock | image | image-gpu | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c container/constraints.txt
IMAGE ?= ipinsights:cpu
# What `docker build` needs here besides, such as --build-arg TORCH_INDEX=... (docs/image.md)
DOCKER_BUILD_ARGS ?=
# The image's build sees no repository, so it is told the version: the newest tag, and the commits since.
VERSION ?= $(shell git describe --tags --match 'v*' 2>/dev/null | sed -e 's/^v//' -e 's/-\(.*\)-g/.post\1+g/')
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
# SageMaker takes an image of one platform in Docker's own format: no index, and no attestations beside it. Without
# buildx, Docker makes nothing else.
PLATFORM ?= linux/amd64
BUILDER = $(if $(shell docker buildx version 2>/dev/null),docker buildx build --provenance=false --sbom=false \
  --output type=docker,docker build)
BUILD = $(BUILDER) --platform $(PLATFORM) --build-arg REVISION=$(REVISION) \
  $(if $(VERSION),--build-arg VERSION=$(VERSION)) $(DOCKER_BUILD_ARGS)
# How uv finds torch's CPU build, for `make lock`. Empty: where it finds all else.
TORCH_BACKEND ?= --torch-backend cpu
# The least per cent of lines and branches that the tests run; set where all of them can run, as in .ci/run.
COVERAGE_FLOOR ?=
# So many files of tests run at a time, in processes of their own: auto is one a core.
TEST_PROCESSES ?= auto
SIDE_BY_SIDE := -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
# How long `make fuzz` takes.
MINUTES ?= 60
NATIVE := container/ipinsights/native
PYTEST := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest

.NOTPARALLEL:
.PHONY: demo notebooks test test-quick fuzz lint format lock image image-gpu clean

demo: $(VENV)/.native $(VENV)/.demo  ## train, serve and score simulated log-ins, then real ones where IPINSIGHTS_DATA names them
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m local_test.demo

notebooks: $(VENV)/.native $(VENV)/.notebooks  ## open them in Jupyter Lab
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter lab notebooks

test: $(VENV)/.native $(VENV)/.test lint  ## every test that can run on this machine
	rm -f .coverage .coverage.*
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/coverage run -m pytest $(SIDE_BY_SIDE)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report $(if $(COVERAGE_FLOOR),--fail-under=$(COVERAGE_FLOOR))

test-quick: $(VENV)/.native $(VENV)/.test  ## those that take no two minutes together
	$(PYTEST) -q -m "not slow" --ignore tests/container $(SIDE_BY_SIDE)

fuzz: $(VENV)/.native $(VENV)/.test  ## every parser on changed inputs, for so many minutes in all
	PYTHONPATH=tests $(BIN)/python -m fuzzing.fuzz --minutes $(MINUTES)

lint: $(VENV)/.test  ## what a commit is held to
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)/*.h $(NATIVE)/*.cpp
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)/*.h $(NATIVE)/*.cpp

lock: $(BIN)/python  ## the images' packages with their hashes, of the versions in constraints.txt
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --generate-hashes --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --extra toolkit --constraints container/constraints.txt \
	  --excludes container/image/without.txt --no-emit-package torch $(TORCH_BACKEND) setup.py \
	  --output-file container/requirements.lock

image:  ## the CPU image
	$(BUILD) -f Dockerfile.cpu -t $(IMAGE) .

image-gpu:
	$(BUILD) -f Dockerfile.gpu -t ipinsights:gpu .

clean:
	rm -rf $(VENV) local_test/work build container/*.egg-info $(NATIVE)/*.so

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# Compile the native library again when its sources have changed, unless an installation below does so anyway.
$(VENV)/.native: $(wildcard $(NATIVE)/*.h $(NATIVE)/*.cpp) | $(BIN)/python
	if [ -e $(VENV)/.demo ] || [ -e $(VENV)/.notebooks ] || [ -e $(VENV)/.test ]; then $(PIP) --no-deps -e .; fi
	touch $@

$(VENV)/.demo: setup.py container/constraints.txt | $(BIN)/python
	@echo "Installing the package and its dependencies into $(VENV) (torch is large; some minutes the first time)"
	$(PIP) -e '.[demo]'
	touch $@

$(VENV)/.notebooks: setup.py container/constraints.txt | $(BIN)/python
	@echo "Installing the package, Jupyter Lab and what the notebooks need into $(VENV) (some minutes the first time)"
	$(PIP) -e '.[notebooks]'
	touch $@

$(VENV)/.test: setup.py container/constraints.txt | $(BIN)/python
	@echo "Installing the package and its test dependencies into $(VENV) (torch is large; some minutes the first time)"
	# The toolkit's tests run where it can be installed, which takes a C compiler. It goes first: it brings a `train` of
	# its own, which ours is to replace.
	if command -v cc >/dev/null; then $(PIP) sagemaker-training; fi
	# The test of the Spark example runs where there is a Java.
	if command -v java >/dev/null; then $(PIP) pyspark || echo "pyspark cannot be installed: its test is skipped"; fi
	# Those of the kernels for GPUs need Triton, which torch's builds for GPUs bring with them, and no GPU.
	$(PIP) 'triton==3.7.*' || echo "Triton cannot be installed: the tests of the kernels for GPUs are skipped"
	# Those of the SageMaker SDK, versions 2 and 3, run where there is a Docker. Each wants other releases than the image
	# has, and so a place of its own. uv resolves them in seconds. The date is that of the newest releases that it takes.
	if command -v docker >/dev/null; then $(PIP) uv; \
	  for sdk in 'sdk sagemaker[local]==2.257.7' 'sdk3 sagemaker-train==1.27.0'; do set -- $$sdk; \
	    { $(PYTHON) -m venv --without-pip $(VENV)/$$1 && $(BIN)/uv pip install --quiet --exclude-newer 2026-11-28 \
	    --python $(VENV)/$$1/bin/python "$$2"; } \
	    || { rm -rf $(VENV)/$$1; echo "The SageMaker SDK cannot be installed ($$2): its test is skipped"; }; done; fi
	$(PIP) -e '.[test]'
	touch $@
