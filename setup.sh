#!/usr/bin/env bash
# ./setup.sh, and sourced by the other scripts: a .venv beside this file with requirements.txt in it, made once.
# PYTHON=python3.12 ./test.sh picks the interpreter. Without an NVIDIA GPU torch is the CPU build, where there is one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage() { # stage NAME COMMAND...: runs it, then prints its name and seconds
  local name=$1 start=$SECONDS; shift
  "$@" || { local status=$?; echo "FAILED  $name (exit $status after $((SECONDS - start)) s)"; return $status; }
  printf '%5d s  %s\n' $((SECONDS - start)) "$name"
}

install() {
  local python=${PYTHON:-python3} pip=".venv/bin/python -m pip install --quiet --disable-pip-version-check"
  "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' ||
    { echo "setup: $("$python" --version 2>&1) found, Python 3.11 to 3.13 needed; name one with PYTHON=..."; return 1; }
  rm -rf .venv
  "$python" -m venv .venv || # within stage nothing ends the script by itself
    { echo "setup: $python -m venv failed; on Debian and Ubuntu it is a package, python3-venv"; return 1; }
  local torch; torch=$(grep '^torch==' requirements.txt)
  if ! nvidia-smi >/dev/null 2>&1; then # the CPU build saves several GB; the plain package below is the last resort
    $pip "$torch+cpu" 2>/dev/null || $pip --index-url https://download.pytorch.org/whl/cpu "$torch" 2>/dev/null ||
      echo "setup: no CPU build of $torch to be had, taking the CUDA build"
  fi
  $pip -r requirements.txt || return 1
  cp requirements.txt .venv/installed # last, so that an interrupted set-up starts again
}

if cmp -s requirements.txt .venv/installed; then
  echo "    set-up: .venv is up to date"
else
  stage "set-up: .venv with requirements.txt" install
fi
.venv/bin/python -c 'import sys; sys.exit(sys.version_info[2] < {11: 13, 12: 11, 13: 4}[sys.version_info[1]])' ||
  echo "    set-up: $(.venv/bin/python --version) is older than the corrections of tarfile in 3.11.13, 3.12.11, 3.13.4"
export PATH="$PWD/.venv/bin:$PATH" TOKENIZERS_PARALLELISM=false PYTHONPATH="$PWD"
