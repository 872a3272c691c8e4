#!/usr/bin/env bash
# The listings of docs/coming_from, theirs and ours, run with the real libraries: the same losses to 1e-5.
set -euo pipefail
cd "$(dirname "$0")/.."
place=build/coming_from
test -x "$place/bin/python" || "${PYTHON:-python3}" -m venv "$place"
quietly=(--quiet --disable-pip-version-check -c constraints.txt)
"$place/bin/python" -m pip install "${quietly[@]}" "torch==2.13.0"
"$place/bin/python" -m pip install "${quietly[@]}" -e ".[all]" "keras==3.15.1" "lightning==2.6.6" "accelerate==1.15.0"
"$place/bin/python" docs/building/coming_from.py
