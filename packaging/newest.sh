#!/usr/bin/env bash
# The newest jax, flax and optax that there are, on the newest Pythons that are installed, without torch: the core's
# tests, the conformance suite and the examples on JAX alone.  PYTHONS="python3.12 python3.13" packaging/newest.sh
set -euo pipefail
cd "$(dirname "$0")/.."
# but for what kills training runs, and one message about a builder for a framework that is there
tests=(
  tests/core tests/checkpoint tests/experiment tests/packaging tests/jax_alone.py
  --ignore tests/checkpoint/test_training_kills.py
  --deselect "tests/experiment/test_validation.py::test_wrong_value[builder missing]"
)
export PYTHONPATH=packaging
ran=0
for python in ${PYTHONS:-python3.12 python3.13}; do
  if ! command -v "$python" >/dev/null; then
    echo "$python is not installed" >&2
    continue
  fi
  place=build/newest-$("$python" -c 'import platform; print(platform.python_version())')
  test -x "$place/bin/python" || "$python" -m venv "$place"
  "$place/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade \
    -e ".[jax,examples]" -e tests/plugins/stub_backend pytest hypothesis
  "$place/bin/python" -m pip list 2>/dev/null | grep -E "^(jax|jaxlib|flax|optax|numpy) "
  "$place/bin/python" -m pytest -q -p no:cacheprovider -p skip_missing_frameworks -m "not slow" "${tests[@]}"
  ran=1
done
test "$ran" = 1  # else no Python of these is installed
