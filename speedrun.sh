#!/usr/bin/env bash
# The main job on the embedded corpus, from audio to a talking model: 13 to 17 minutes on 2 CPU cores with set-up.
# A GPU is used where there is one. What is done is not done again: remove out/ to start over.
#   ./speedrun.sh --compare   then also trains three models of equal budgets, and compares them: 10 minutes more
#   ./speedrun.sh --seed=1    another order of the data, and other random weights
seed=0 compare=
for arg; do
  case $arg in
    --compare) compare=yes ;;
    --seed=*) seed=${arg#--seed=} ;;
    *) echo "speedrun.sh: $arg: expected --compare or --seed=NUMBER"; exit 1 ;;
  esac
done
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
out=out/speedrun
source tiny/jobs.sh

# bf16 on a GPU, and on a CPU where it multiplies faster than float32 (on most it is slower). Measured once for all.
[ -s $out/dtype ] || python - >$out/dtype <<'PYTHON'
import time, torch
def seconds(dtype):
    a = torch.randn(2048, 512, dtype=dtype)
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        a @ a.T
        times.append(time.perf_counter() - begin)
    return min(times)
print('bfloat16' if torch.cuda.is_available() or seconds(torch.bfloat16) < seconds(torch.float32) else 'float32')
PYTHON
train() { # a finished run says so and ends
  step "train: $1" "$1" python train.py "config/$1.py" --dtype="$(cat $out/dtype)" --seed="$seed"
}

once $out/units/info.json step "audio -> units" units \
  python tokenize_speech.py --audio=tiny/audio --out=$out/units
once $out/units/words/info.json step "words of the audio" words python align.py --units=$out/units
corpus
train tiny_text
train tiny
once $out/speech/samples.html step "sample: speech -> speech" sample-speech \
  python sample.py --model=out/tiny --prompts=tiny/audio --out=$out/speech
once $out/text/samples.html step "sample: speech -> text" sample-text \
  python sample.py --model=out/tiny --prompt="tiny/audio/m00000.context.flac" --seconds=0 --output=text --out=$out/text
once $out/spoken/samples.html step "sample: text -> speech" sample-spoken \
  python sample.py --model=out/tiny --prompt="Tom had a kite, and Anna had a drum." --out=$out/spoken
once $out/eval.json step "evaluate" eval \
  python eval.py --model=out/tiny "--directions=S,S->T" --max_documents=500 --out=$out/eval.json
grep -E "^ +n |tiny/" $out/logs/eval.log
if [ "$compare" ]; then
  train tiny_adamw
  train tiny_speech
  train tiny_scratch
  models=out/tiny-adamw,out/tiny-speech,out/tiny-scratch,out/tiny-text
  once $out/compare.json step "evaluate the compared" compare python eval.py --model=$models --out=$out/compare.json
  once $out/figure.png step "figure" figure \
    python -m scaling.compare --runs=out/tiny-adamw,out/tiny-speech,out/tiny-scratch --out=$out/figure.png
  grep -E "^ +n |tiny/" $out/logs/compare.log
  echo "compared: $out/compare.json, $out/figure.png"
fi
echo "done in $((SECONDS / 60)) min $((SECONDS % 60)) s: $out/eval.json; listen with $out/speech/samples.html"
