#!/usr/bin/env bash
# All tests; those of clusters, which mostly wait, beside the others. Their output comes at the end.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
log=$(mktemp)
ci/with_kubernetes.sh "$python" -m pytest tests/clusters > "$log" 2>&1 &
clusters=$!
failed=0
"$python" -m pytest --ignore=tests/clusters || failed=1
wait "$clusters" || failed=1
cat "$log"
rm -f "$log"
exit $failed
