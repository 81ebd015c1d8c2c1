#!/usr/bin/env bash
# Behaviour: Lhotse, installed with all that it declares to need, cannot be imported: it imports urllib3, which it does
#   not declare. Most environments have urllib3 by way of requests; one without requests does not.
# Version: lhotse 1.33.0.
# Who is bitten: whoever reads speech manifests in a small environment, as of a container or a continuous integration;
#   newer libraries of the field (datasets 5, huggingface-hub 1) no longer bring urllib3 along.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check lhotse==1.33.0
"$dir/venv/bin/pip" check
last_line=$("$dir/venv/bin/python" -c 'import lhotse' 2>&1 | tail -n 1) || true
echo "import lhotse: $last_line"
[ "$last_line" = "ModuleNotFoundError: No module named 'urllib3'" ] || { echo "the behaviour has changed"; exit 1; }
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check urllib3==2.6.3
"$dir/venv/bin/python" -c 'import lhotse; print("with urllib3: lhotse", lhotse.__version__)'
