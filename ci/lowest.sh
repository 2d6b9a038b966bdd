#!/usr/bin/env bash
# The lowest versions that pyproject.toml allows: the core with each extra alone, then all of them with the tests.
#     ci/lowest.sh [EXTRA ...]    # default: core, every extra of `all`, and all
# torch is the exception: it is the version of ci/constraints.txt, because the wheels of older ones are not at hand everywhere.
# Of what a package itself needs, the newest that fit are taken, as pip does.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/uv"
"$work/uv/bin/python" -m pip install --quiet --disable-pip-version-check uv setuptools-scm
export SETUPTOOLS_SCM_PRETEND_VERSION_FOR_XDEEPSD
SETUPTOOLS_SCM_PRETEND_VERSION_FOR_XDEEPSD=$("$work/uv/bin/python" -m setuptools_scm)
mkdir "$work/source"  # a copy, for building leaves files
git ls-files -z | xargs -0 tar cf - | tar xf - -C "$work/source"
cd "$work/source"
torch=$(sed -n 's/^torch==//p' ci/constraints.txt)
# Without CUDA, which is gigabytes: a wheel for CPUs if one is at hand, else from where torch publishes them.
if compgen -G "${PIP_FIND_LINKS:-/nowhere}/torch-$torch+cpu-*.whl" > /dev/null; then
  where=(--find-links "$PIP_FIND_LINKS"); torch=$torch+cpu
else
  where=(--torch-backend cpu)
fi
echo "torch==$torch" > "$work/torch"

install() {  # ENVIRONMENT, then arguments of uv pip install
  local env=$1
  shift
  VIRTUAL_ENV=$env "$work/uv/bin/uv" pip install --quiet --overrides "$work/torch" "${where[@]}" "$@"
}

if [ $# = 0 ]; then
  set -- core $(sed -n 's/^all = \["xdeepsd\[\(.*\)\]"\]/\1/p' pyproject.toml | tr , ' ') all
fi
for extra in "$@"; do
  env=$work/$extra
  "$work/uv/bin/uv" venv --quiet --python "$python" "$env"
  case $extra in
    core) install "$env" --resolution lowest-direct . ;;
    *) install "$env" --resolution lowest-direct ".[$extra]" ;;
  esac
  case $extra in  # what the tests need, without a change of what is there
    all) install "$env" ".[all,test]" ;;
    *) install "$env" pytest hypothesis psutil pyyaml ;;
  esac
  echo "== $extra: $("$work/uv/bin/uv" pip freeze --python "$env/bin/python" | grep -v '@' | tr '\n' ' ')"
  mkdir "$work/$extra-tests"
  cp -r tests pyproject.toml "$work/$extra-tests"  # the package is the installed one
  cd "$work/$extra-tests"
  case $extra in
    core) "$env/bin/python" -m pytest -q -p no:cacheprovider tests/test_parts.py -k the_core ;;
    all) "$env/bin/python" -m pytest -q -p no:cacheprovider -m "not slow" tests/{climate,evaluation,grids,inference,levels,losses,models,prism,stores,training} ;;
    *) "$env/bin/python" -m pytest -q -p no:cacheprovider tests/test_parts.py -k "each_extra and $extra" ;;
  esac
  cd "$work/source"
done
