#!/usr/bin/env bash
# Serve in a container what train_local.sh trained: local_test/serve_local.sh [IMAGE [FOLDER [PORT]]]; Ctrl-C ends it.
set -euo pipefail
image=${1:-ipinsights:cpu}
folder=$(realpath "${2:-$(dirname "$0")/test_dir}")
exec docker run --rm -p "127.0.0.1:${3:-8080}:8080" -v "$folder/model:/opt/ml/model:ro" "$image" serve
