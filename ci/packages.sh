#!/usr/bin/env bash
# Build wheel and sdist, install each in an environment of its own, with no repository beside it, and use it there:
#     ci/packages.sh [--clean] [FOLDER]    # FOLDER: where to leave the wheel and the sdist
# The environments see the packages that .venv has, so nothing large is fetched; with --clean everything is installed anew,
# and the whole demo runs as well.
set -euo pipefail
cd "$(dirname "$0")/.."
clean=
if [ "${1:-}" = --clean ]; then clean=yes; shift; fi
keep=${1:-}
root=$PWD
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3
export PIP_CONSTRAINT=$root/ci/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# From a copy of what git knows: what lies about in the working tree must not get into the sdist.
mkdir "$work/source"
git ls-files -z | xargs -0 tar cf - | tar xf - -C "$work/source"
"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet build "setuptools-scm>=8.1"
# What git's tags say, for the copy, which has no history; and what the other ways to get at the code make of it.
version=$("$work/build/bin/python" -m setuptools_scm)
git clone --quiet --depth 1 "file://$root" "$work/shallow"
git -C "$work/shallow" tag v9.8.7
mkdir "$work/export"
git -C "$work/shallow" archive HEAD | tar xf - -C "$work/export"
for copy in "shallow 9.8.7" "export 9.8.7" "source 0.0"; do
  read -r kind wanted <<< "$copy"
  told=$(cd "$work/$kind" && "$work/build/bin/python" -m setuptools_scm)
  [ "$told" = "$wanted" ] || { echo "The version in a copy of kind $kind is $told, not $wanted"; exit 1; }
done
export SETUPTOOLS_SCM_PRETEND_VERSION_FOR_XDEEPSD=$version
"$work/build/bin/python" -m build --outdir "$work/dist" "$work/source" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
wheel=$(echo "$work"/dist/*.whl) sdist=$(echo "$work"/dist/*.tar.gz)

"$python" ci/packages.py "$work/source" "$wheel" "$sdist"

others=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for package in "$wheel" "$sdist"; do
  env=$work/env-${package##*.}
  "$python" -m venv "$env"
  if [ -n "$clean" ]; then
    "$env/bin/python" -m pip install --quiet "$package[all,test]"
  else
    echo "$others" > "$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/others.pth"
    "$env/bin/python" -m pip install --quiet --no-deps --ignore-installed "$package"
  fi
done

# The tests and pages of the sdist, with the package from the wheel.
mkdir "$work/empty"
tar xzf "$sdist" -C "$work"
unpacked=$(echo "$work"/xdeepsd-*)
rm -r "$unpacked/xdeepsd"
(cd "$unpacked" && "$work/env-whl/bin/python" -m pytest -q -p no:cacheprovider tests/models/test_demo_model.py \
  tests/test_docs.py -k 'demo_model or quickstart or readme')
cd "$work/empty"
for env in "$work/env-whl" "$work/env-gz"; do
  "$env/bin/python" -c "
import xdeepsd
assert xdeepsd.__file__.startswith('$env'), xdeepsd.__file__
assert xdeepsd.__version__ == '$version', xdeepsd.__version__
print(xdeepsd.load_model('demo'))"
  "$env/bin/xdeepsd" card demo > card.md
done
if [ -n "$clean" ]; then "$work/env-whl/bin/xdeepsd" demo; fi
if [ -n "$keep" ]; then cd "$root"; mkdir -p "$keep"; cp "$wheel" "$sdist" "$keep"; fi
echo "Wheel and sdist are fine: $(basename "$wheel"), $(basename "$sdist")"
