#!/usr/bin/env bash
# Train as train_local.sh does, without Docker: local_test/train_here.sh [FOLDER]
# FOLDER plays /opt/ml, as there. Needs this package installed: pip install .
set -euo pipefail
folder=$(realpath "${1:-$(dirname "$0")/test_dir}")
SAGEMAKER_BASE_DIR=$folder exec "${PYTHON:-python3}" -m ipinsights.sagemaker train
