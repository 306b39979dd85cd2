# make demo | notebooks | test | test-quick | lint | format | image | image-gpu | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c container/constraints.txt
IMAGE ?= ipinsights:cpu
# What `docker build` needs here besides, such as --build-arg PIP_EXTRA_INDEX_URL=...
DOCKER_BUILD_ARGS ?=
# The image's build sees no repository, so it is told the version: the newest tag, and the commits since.
VERSION ?= $(shell git describe --tags --match 'v*' 2>/dev/null | sed -e 's/^v//' -e 's/-\(.*\)-g/.post\1+g/')
BUILD = docker build $(if $(VERSION),--build-arg VERSION=$(VERSION)) $(DOCKER_BUILD_ARGS)
# The least per cent of lines and branches that the tests run; set where all of them can run, as in .ci/run.
COVERAGE_FLOOR ?=
NATIVE := container/ipinsights/native
PYTEST := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest

.NOTPARALLEL:
.PHONY: demo notebooks test test-quick lint format image image-gpu clean

demo: $(VENV)/.native $(VENV)/.demo  ## train, serve and score simulated log-ins, then real ones where IPINSIGHTS_DATA names them
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m local_test.demo

notebooks: $(VENV)/.native $(VENV)/.notebooks  ## open them in Jupyter Lab
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter lab notebooks

test: $(VENV)/.native $(VENV)/.test lint  ## every test that can run on this machine
	rm -f .coverage .coverage.*
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report $(if $(COVERAGE_FLOOR),--fail-under=$(COVERAGE_FLOOR))

test-quick: $(VENV)/.native $(VENV)/.test  ## those that take no two minutes together
	$(PYTEST) -q -m "not slow" --ignore tests/container

lint: $(VENV)/.test  ## what a commit is held to
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)/*.h $(NATIVE)/*.cpp
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)/*.h $(NATIVE)/*.cpp

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
	# That of the SageMaker SDK runs where there is a Docker. The SDK wants other releases than the image has, and so a
	# place of its own.
	if command -v docker >/dev/null; then $(PYTHON) -m venv $(VENV)/sdk && \
	  $(VENV)/sdk/bin/pip install --quiet --disable-pip-version-check 'sagemaker[local]==2.257.7' \
	  || echo "The SageMaker SDK cannot be installed: its test is skipped"; fi
	$(PIP) -e '.[test]'
	# That of the tutorial in AWS needs version 3 of the SDK. Of the 1 GB that it would bring, it imports these.
	$(PIP) --no-deps sagemaker-core==2.27.0 sagemaker-train==1.27.0 && $(PIP) 'moto[s3]>=5.2' cloudpickle graphene \
	  importlib-metadata jsonschema omegaconf platformdirs pydantic pytz pyyaml rich \
	  || echo "The SageMaker SDK cannot be installed: the test of the tutorial in AWS is skipped"
	touch $@
