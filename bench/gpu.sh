#!/usr/bin/env bash
# The standing GPU queue: what only a GPU can show, unattended.
#
#   bench/gpu.sh                    all parts on one CUDA GPU, each in less than 9 minutes
#   bench/gpu.sh kernels training   some of: correctness, kernels, training, large, runs
#   bench/gpu.sh --dry [PART ...]   every part once on tiny shapes, nothing written, also without a GPU: about a minute
#
# Results go to bench/results/gpu-PART.json as they are made, tables to the terminal. A part that fails or runs out of time
# does not stop the next; the exit status is 1 then. If the python3 of the PATH has torch and triton, that one is used (a
# machine without a network); else setup.sh's .venv. COMMIT=... names the commit where the tree came without its .git.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
declare -A scripts=([correctness]=correctness.py [kernels]=kernel_speed.py [training]='training.py small'
                    [large]='training.py large' [runs]=runs.py)
parts=() dry=()
for arg; do
  case $arg in
    --dry) dry=(--dry) ;;
    correctness|kernels|training|large|runs) parts+=("$arg") ;;
    *) echo "bench/gpu.sh: $arg: expected --dry, correctness, kernels, training, large or runs"; exit 1 ;;
  esac
done
[ ${#parts[@]} -gt 0 ] || parts=(correctness kernels training large runs)
python3 -c 'import torch, triton' 2>/dev/null || { source ./setup.sh; set +e; } # of which the -e would stop the queue
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
[ ${#dry[@]} -eq 0 ] || nvidia-smi >/dev/null 2>&1 || export TRITON_INTERPRET=1

status=0
for part in "${parts[@]}"; do
  start=$SECONDS
  echo "==== $part"
  timeout --kill-after=10 530 python3 bench/${scripts[$part]} "${dry[@]}" ||
    { echo "FAILED  $part (exit $?)"; status=1; }
  printf '%5d s  %s\n' $((SECONDS - start)) "$part"
done
exit $status
