# make demo | test | image | image-gpu | lint | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c container/constraints.txt
IMAGE ?= ipinsights:cpu
# What `docker build` needs here besides, such as --build-arg PIP_EXTRA_INDEX_URL=...
DOCKER_BUILD_ARGS ?=

.PHONY: demo test image image-gpu lint clean

demo: $(VENV)/.demo  ## train, serve and score simulated log-ins, then real ones where IPINSIGHTS_DATA names them
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m local_test.demo

test: $(VENV)/.test lint  ## every test that can run on this machine
	rm -f .coverage .coverage.*
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

image:  ## the CPU image
	docker build $(DOCKER_BUILD_ARGS) -f Dockerfile.cpu -t $(IMAGE) .

image-gpu:
	docker build $(DOCKER_BUILD_ARGS) -f Dockerfile.gpu -t ipinsights:gpu .

clean:
	rm -rf $(VENV) local_test/work build container/*.egg-info

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: setup.py container/constraints.txt | $(BIN)/python
	@echo "Installing the package and its dependencies into $(VENV) (torch is large; some minutes the first time)"
	$(PIP) -e '.[demo]'
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
	touch $@
