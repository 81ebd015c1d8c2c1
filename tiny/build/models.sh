#!/usr/bin/env bash
# Trains the language models of the wide corpus: tiny/textlm again, and from it an interleaved model. By its parts, 1.3
# hours on 2 CPU cores; the same command goes on where it was stopped.
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
out=out/models
source tiny/jobs.sh

wide_text
step "the TextLM" textlm python train.py config/tiny_textlm.py
step "evaluate the TextLM" eval-textlm \
  python eval.py --model=out/tiny-textlm --tasks=tiny,knowledge --data= --directions=T
wide_corpus
step "the interleaved model" wide torchrun --nproc_per_node=2 train.py config/tiny_wide.py --micro_batch=4 \
  --init=out/tiny-textlm
step "evaluate the interleaved model" eval-wide \
  python eval.py --model=out/tiny-wide --tasks=tiny,knowledge --data=out/tokens/wide,out/tokens/wide-talk
