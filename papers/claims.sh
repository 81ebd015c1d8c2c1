#!/usr/bin/env bash
# Reruns the papers' claims (papers/claims.py) on the embedded corpus: about 4 hours on 2 CPU cores.
#   papers/claims.sh [PROCESSES]
# The processes share the runs. By default there is one for each NVIDIA GPU or, without GPUs, for each core.
# Finished work is not repeated: the same command goes on where it was stopped.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
out=out/papers
source tiny/jobs.sh

corpus
once out/data/talk.txt step "corpus: more talk, as text" talk python -m tiny.talk --out=out/data/talk.txt
once out/tokens/talk-text/info.json step "text -> token shards: talk" tokens-talk-text \
  python interleave.py --units=out/data/talk --text=out/data/talk.txt --eot --sources=text --val_frac=0.1 \
  --out=out/tokens/talk-text
# Small parts of the data for the arms synthetic and mixed: what is not held out.
once out/tokens/stories-few/info.json step "units + words -> token shards: 0.6 h of stories" tokens-stories-few \
  python interleave.py --units=out/data/stories --eot --val_frac=0.972 --out=out/tokens/stories-few
once out/tokens/stories-half/info.json step "units + words -> token shards: half of these" tokens-stories-half \
  python interleave.py --units=out/data/stories --eot --val_frac=0.986 --out=out/tokens/stories-half
once out/tokens/talk-half/info.json step "units + words -> token shards: half of the talk" tokens-talk-half \
  python interleave.py --units=out/data/talk --eot --val_frac=0.55 --out=out/tokens/talk-half

share_runs "${1:-}" python -m papers.claims

once out/data/pairs/train/info.json step "preference pairs of the stories" pairs python -m tiny.preferences
for seed in 0 1 2; do
  step "preferences: seed $seed" dpo-$seed python dpo.py config/tiny_dpo.py --seed=$seed --out=$out/dpo-$seed
  once $out/dpo-$seed/eval.json step "evaluate: seed $seed" eval-dpo-$seed \
    python eval.py --model=$out/dpo-$seed --data= --directions=S
done
python -m papers.report | tee $out/logs/claims.log
