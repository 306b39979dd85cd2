#!/usr/bin/env bash
# Serve, without Docker, what train_here.sh or train_local.sh trained: local_test/serve_here.sh [FOLDER [PORT]]
# Ctrl-C ends it. predict.sh asks it.
set -euo pipefail
folder=$(realpath "${1:-$(dirname "$0")/test_dir}")
export SAGEMAKER_BASE_DIR=$folder SAGEMAKER_BIND_TO_PORT=${2:-8080} IPINSIGHTS_BIND_ADDRESS=127.0.0.1
exec "${PYTHON:-python3}" -m ipinsights.sagemaker serve
