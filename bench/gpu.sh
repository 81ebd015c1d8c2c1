#!/usr/bin/env bash
# Runs all checks and measurements that need a GPU, one after another and unattended.
#
#   bench/gpu.sh                    all parts on one CUDA GPU, each in less than 9 minutes
#   bench/gpu.sh kernels training   some of the parts: correctness, kernels, training, large, runs, encoders
#   bench/gpu.sh --dry [PART ...]   each part once on tiny shapes, nothing written, also without a GPU:
#                                   about a minute
#
# Tables are printed, and results written to bench/results/gpu-PART.json, as they are measured. A part
# that fails or runs out of time does not stop the next one, but makes the exit status 1. If the python3
# on the PATH has torch and triton, it is used (for a machine without a network); otherwise the .venv
# of setup.sh. COMMIT=... names the commit of a tree that was copied without its .git.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
declare -A scripts=([correctness]=correctness.py [kernels]=kernel_speed.py [training]='training.py small'
                    [large]='training.py large' [runs]=runs.py
                    [encoders]='encoders.py tiny/audio hubert-base:9')
parts=() dry=()
for arg; do
  case $arg in
    --dry) dry=(--dry) ;;
    correctness|kernels|training|large|runs|encoders) parts+=("$arg") ;;
    *) echo "bench/gpu.sh: $arg: expected --dry, correctness, kernels, training, large, runs or encoders"; exit 1 ;;
  esac
done
[ ${#parts[@]} -gt 0 ] || parts=(correctness kernels training large runs encoders)
# setup.sh sets -e, with which a part that fails would stop the queue.
python3 -c 'import torch, triton' 2>/dev/null || { source ./setup.sh; set +e; }
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [ ${#dry[@]} -gt 0 ] && ! nvidia-smi >/dev/null 2>&1; then
  export TRITON_INTERPRET=1
fi

status=0
for part in "${parts[@]}"; do
  start=$SECONDS
  echo "==== $part"
  timeout --kill-after=10 530 python3 bench/${scripts[$part]} "${dry[@]}" ||
    { echo "FAILED  $part (exit $?)"; status=1; }
  printf '%5d s  %s\n' $((SECONDS - start)) "$part"
done
exit $status
