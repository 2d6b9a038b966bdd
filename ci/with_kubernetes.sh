#!/usr/bin/env bash
# ci/with_kubernetes.sh COMMAND...: run a command with a Kubernetes to test on. That is what KUBECONFIG points to;
# else localk8s (LOCALK8S, default ../shared/localk8s) with images made of this environment, ended afterwards; else none,
# and the tests that need one say so.
set -euo pipefail
cd "$(dirname "$0")/.."
localk8s=${LOCALK8S:-../shared/localk8s}
bin=$PWD/.venv/bin
python=${PYTHON_OF_IMAGES:-$bin/python}
if [ -n "${KUBECONFIG:-}" ] || [ ! -x "$localk8s/up" ]; then exec "$@"; fi
# One at a time on a machine: the pods of all of them have the same addresses.
exec 9>"${TMPDIR:-/tmp}/localk8s.lock"
flock 9
dir=$(mktemp -d)
stop() { [ ! -f "$dir/k8s/pid" ] || kill "$(cat "$dir/k8s/pid")" 2>/dev/null || true; rm -rf "$dir"; }
trap stop EXIT
"$python" ci/images.py "$dir"
nodes='[{"name": "worker-1", "labels": {"k8s.dask.org/node-purpose": "worker"},
         "taints": [{"key": "k8s.dask.org/dedicated", "value": "worker", "effect": "NoSchedule"}]},
        {"name": "core-1"},
        {"name": "gpu-1", "labels": {"accelerator": "gpu"}, "allocatable": {"nvidia.com/gpu": "1"},
         "taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]}]'
if ! PYTHON=$python "$localk8s/up" "$dir/k8s" --nodes "$nodes" --user "least=$dir/least.yaml" \
  --user "viewer=$dir/viewer.yaml" --image "xdeepsd:test=$dir/test/bin" --image "xdeepsd:bare=$dir/bare/bin" \
  --image "xdeepsd:other=$dir/other/bin" --image "xdeepsd:broken=$dir/broken/bin" 9>&- >/dev/null; then
  echo "$localk8s does not start here: the tests that need a Kubernetes are skipped." >&2
  "$@" 9>&-
  exit
fi
export KUBECONFIG=$dir/k8s/kubeconfig XDEEPSD_TEST_IMAGES=xdeepsd
PATH=$(dirname "$python"):$PATH "$@" 9>&-
