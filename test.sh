#!/usr/bin/env bash
# ./test.sh        sets up .venv, lints, runs the tests: at most 8 minutes on 2 cores
# ./test.sh --all  the slow suites too (kills, faults, every compiled kernel): at most 60 minutes
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
marks='not slow'
case ${1:-} in
  '') ;;
  --all) marks='slow or not slow' ;;
  *) echo "test.sh: $1: expected nothing or --all"; exit 1 ;;
esac
export OMP_NUM_THREADS=1 # two processes test, a file at a time
stage "lint: ruff" ruff check --quiet .
stage "kernels, by Triton's interpreter" \
  env TRITON_INTERPRET=1 python -m pytest -q -n 2 -m "$marks" tests/interpreted -p no:cacheprovider
stage "tests: pytest -m '$marks'" python -m pytest -q -n 2 --dist=loadfile -m "$marks" --durations=5 -p no:cacheprovider
echo "all passed; the tests are in tests/, one file a module"
