#!/usr/bin/env bash
# Everything that needs a GPU, in the order of what the answers are worth, unattended.
#
#   bench/gpu.sh short              the first call: at most 8 minutes
#   bench/gpu.sh second             the second call: at most 4 minutes
#   bench/gpu.sh step 7B ...        parts by name
#   bench/gpu.sh --dry short ...    the same once on tiny shapes, nothing written, also without a GPU
#
# It needs a CUDA GPU, and no network if the python3 on the PATH has torch and triton; otherwise it takes the .venv of
# setup.sh. A part that fails or reaches its limit does not stop the next one, and makes the exit status 1. What a
# part lacks (ncu, compute-sanitizer, Liger, soundfile) is named where its numbers would be.
#
#   WHEELS=FOLDER          wheels to install for this run alone, such as liger_kernel, or soundfile and cffi; wheels/
#                          is taken without being asked for
#   RESULTS=FILE.tar.gz    after each part, this archive has what all parts have written into bench/results/
#   COMMIT=...             the commit of a tree that was copied without its .git
#
# The parts, the most seconds that each may take, and what it should take on an H200: starting Python with torch and
# transformers 8 s, a Triton kernel 2.4 s to compile, FLOPs at 60 % of 788 TFLOP/s (training: the goals of
# bench/training.py; transformers 1.8 x that), bytes at 4.3 TB/s.
#
#   part         limit  should  counted from
queue='
short  compile      40   18  6 jobs of at most 4 kernels, one after another in each of 12 processes
short  correctness  55   30  4 attention cases and 2 of the loss in float64 (7e12 FLOPs at 30 TFLOP/s), 3 x ours
short  kernels      65   35  (2 + 10) x 2 x 2 passes x 5 ways of 3 ms; the head 10 x 4 ways of 60 ms, 10 x 4 of 170 ms
short  step         80   40  (2 + 4) steps of 0.47, 0.85 and 0.7 s; 3 models made; a profile
short  compiled     85   60  (2 + 4) steps of 0.47 and 0.45 s; 24 layers traced and 2 graphs compiled: 40 s
short  7B           75   55  (2 + 3) steps of 32,768 tokens: 2.4 s and 3.3 s; 2 models of 7.6e9 numbers made
short  ncu          25   15  one forward, replayed 30 times
short  encode       25   20  two models made; the files of tiny/audio, (1 + 3) x 2 ways
short  decode       30   25  2 batches x (2 + 3) x 64 tokens of 7 and 25 ms
second tune         60   40  12 tiles compiled by 12 processes; (2 + 20) x 12 x 5 ms
second 1.5B         50   35  (2 + 4) steps of 1.2 and 1.9 s
second documents    40   25  (2 + 4) steps of 0.42 and 0.9 s
second prebuild     35   25  13 jobs of at most 6 kernels by 12 processes
second variants     35   25  9 attention cases and 7 of the loss in float64
second memcheck     20   15  2 attention cases on 144 tokens, compiled before; norm, rotation and SwiGLU anew
more   hopper       60   20  3 kernels compiled, 2 attention cases in float64, 2 x 300 ms
more   3B           99   60  (2 + 4) steps of 2.3 and 3.2 s
more   all         400  300  torch.compile, FlexAttention and documents of mean 512 beside `kernels`
'
declare -A scripts=(
  [compile]='prebuild.py plain' [correctness]='correctness.py plain' [kernels]='kernel_speed.py kernels'
  [step]='training.py step' [compiled]='training.py compiled' [7B]='training.py 7B' [ncu]='ncu.py'
  [encode]='encoders.py tiny/audio mhubert:11' [decode]='decoding.py' [tune]='candidates.py' [1.5B]='training.py 1.5B'
  [documents]='training.py documents' [prebuild]='prebuild.py variants' [variants]='correctness.py variants'
  [memcheck]='correctness.py memcheck' [hopper]=hopper.py [3B]='training.py 3B' [all]='kernel_speed.py all')
declare -A limits
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

parts_of() { # the parts of a call, or the part itself
  awk -v name="$1" '$1 == name || $2 == name { print $2 }' <<<"$queue"
}
while read -r _ part limit _; do
  [ -z "$part" ] || limits[$part]=$limit
done <<<"$queue"
parts=() dry=()
for arg; do
  if [ "$arg" = --dry ]; then
    dry=(--dry)
  elif [ -n "$(parts_of "$arg")" ]; then
    mapfile -t -O ${#parts[@]} parts < <(parts_of "$arg")
  else
    known=$(awk '$2 { printf " %s", $2 }' <<<"$queue")
    echo "bench/gpu.sh: $arg: expected --dry, short, second, or of these parts:$known"
    exit 1
  fi
done
[ ${#parts[@]} -gt 0 ] || { echo "bench/gpu.sh: expected short, second, or parts; its first lines say which"; exit 1; }

# setup.sh sets -e, with which a part that fails would stop the queue.
python3 -c 'import torch, triton' 2>/dev/null || { source ./setup.sh; set +e; }
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
WHEELS=${WHEELS:-wheels}
if [ -d "$WHEELS" ]; then
  python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$scratch/site" "$WHEELS"/*.whl &&
    export PYTHONPATH="$scratch/site:$PYTHONPATH"
fi
if [ ${#dry[@]} -gt 0 ] && ! nvidia-smi >/dev/null 2>&1; then
  export TRITON_INTERPRET=1
fi

touch -d '2 seconds ago' "$scratch/begin" # the clock of a file system may stand for some milliseconds
status=0
for part in "${parts[@]}"; do
  start=$SECONDS
  echo "==== $part (at most ${limits[$part]} s)"
  if [ "$part" = encode ] && ! python3 -c 'import soundfile' 2>/dev/null; then
    echo "SKIPPED $part: no module named soundfile; its wheel and that of cffi can be carried in WHEELS"
    continue
  fi
  limit=${limits[$part]}
  [ ${#dry[@]} -eq 0 ] || limit=0 # none: a dry run must not fail on a slow machine
  timeout --kill-after=5 "$limit" python3 bench/${scripts[$part]} "${dry[@]}"
  code=$?
  case $code in
    0) ;;
    124|137) echo "FAILED  $part (its $limit s were up)"; status=1 ;;
    *) echo "FAILED  $part (exit $code)"; status=1 ;;
  esac
  printf '%5d s  %s\n' $((SECONDS - start)) "$part"
  if [ -n "${RESULTS:-}" ]; then
    find bench/results -name '*.json' -newer "$scratch/begin" -print0 | tar czf "$RESULTS" --null -T -
  fi
done
exit $status
