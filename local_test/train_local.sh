#!/usr/bin/env bash
# Train in a container: local_test/train_local.sh [IMAGE [FOLDER]]
# FOLDER plays /opt/ml; it must hold input/config and input/data as local_test/test_dir does. The model lands in FOLDER/model.
set -euo pipefail
image=${1:-ipinsights:cpu}
folder=$(realpath "${2:-$(dirname "$0")/test_dir}")
exec docker run --rm --network none -v "$folder:/opt/ml" "$image" train
