#!/usr/bin/env bash
# From which compute on interleaved models beat textless ones (papers/turn.py): by their FLOPs 9 hours on 2 CPU cores.
#   papers/turn.sh [PROCESSES] [--known=papers/results/turn.csv]
# The processes share the runs. By default there is one for each NVIDIA GPU or, without GPUs, for each core.
# Finished work is not repeated: the same command goes on where it was stopped, and with --known it takes runs of the
# same settings and data from another turn.csv.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
out=out/turn
source tiny/jobs.sh
processes= known=
for arg; do
  case $arg in
    --known=*) known=$arg ;;
    *) processes=$arg ;;
  esac
done

wide_text
wide_corpus
for spans in chunks utterances; do
  wide_shards -$spans --spans=$spans
done
# TextLMs that know the world: the shipped one, and one for each other size.
[ -e $out/text-2.8M ] || { rm -rf $out/text.tmp && cp -r tiny/textlm $out/text.tmp && mv $out/text.tmp $out/text-2.8M; }
text() { # text SIZE N_LAYER N_HEAD N_KV_HEAD N_EMBD N_FFN, as in scaling/models.py
  step "TextLM: $1" text-$1 python train.py config/tiny_textlm.py --n_layer=$2 --n_head=$3 --n_kv_head=$4 --n_embd=$5 \
    --n_ffn=$6 --out=$out/text-$1
}
text 0.5M 3 3 1 96 256
text 1M 4 4 2 128 336

share_runs "${processes:-}" python -m papers.turn $known
python -m papers.turn_report | tee $out/logs/turn.log
