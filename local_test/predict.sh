#!/usr/bin/env bash
# Score a file at a server of this machine, in Docker or not: local_test/predict.sh [FILE [CONTENT_TYPE [PORT]]]
set -euo pipefail
exec curl --silent --show-error --fail-with-body \
  --data-binary "@${1:-$(dirname "$0")/payload.csv}" -H "Content-Type: ${2:-text/csv}" \
  "http://127.0.0.1:${3:-8080}/invocations"
