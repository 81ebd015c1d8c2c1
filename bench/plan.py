"""
bench/PLAN.md: what SIMS 7B takes on 8, 64 and 512 GPUs, by the formulas of training/cost.py, which train.py --memory uses too; and
what the units of its corpora take.

    python bench/plan.py
"""
import json
import sys
from pathlib import Path

import torch

from files import atomically
from hub.families import GPTConfig
from model import GPT
from training.cost import CHIPS, ROOM, memory, step_time

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

T = 2048 # tokens a row
KEYS = 400 # a token sees on average: rows of documents of 290 units, stories and some of 2,048
QWEN = GPTConfig(vocab_size=152_167, n_layer=28, n_head=28, n_kv_head=4, n_embd=3584, n_ffn=18944, tied=False)
RUNS = ((8, 72), (64, 128), (512, 512)) # GPUs, rows a step: 147k tokens as the papers, 262k, 1M

def plan(name, world, rows, efficiency):
    """The run with the largest micro-batch that fits: (rows a micro-batch, memory, time of a step)."""
    chip, each = CHIPS[name], rows // world
    for micro in (n for n in range(each, 0, -1) if each % n == 0):
        held = memory(QWEN, micro * T, world, 'fsdp')
        if sum(held.values()) <= ROOM * chip.memory:
            return micro, held, step_time(QWEN, chip, world, rows * T, micro * T, KEYS, 'fsdp', efficiency=efficiency)
    raise SystemExit(f"{name}, {world} GPUs: not even one row fits")

def markdown():
    with torch.device('meta'):
        N = GPT(QWEN).num_params()
    hours = lambda flops, tok_s: f'{flops / (6 * N) / tok_s / 3600:,.1f}'
    yield f"""# SIMS 7B on paper

Made by `python bench/plan.py` from the formulas of `training/cost.py`, which `train.py --memory` uses too; nothing here was
measured on a GPU. Qwen2.5-7B with 500 units and 2 separators, N = {N:,}, FSDP over all GPUs (float32 shards, bf16
compute), rows of {T:,} tokens of which each sees {KEYS} on average, the largest micro-batch that leaves {1 - ROOM:.0%}
of the memory, nothing recomputed. 6.86e20 FLOPs are {6.86e20 / 6 / N / 1e9:.1f}B tokens, 1e22 are {1e22 / 6 / N / 1e9:.0f}B (C = 6ND).

A GPU's bytes in GB. `saved` is what the layers keep for the backward, `copies` the weights that are gathered in bf16,
`head` a chunk of logits and the head's gradient.

| GPUs | rows a step | rows a micro-batch | weights | gradients | moments | copies | saved | head | all |
|---|---|---|---|---|---|---|---|---|---|"""
    found = {(name, world): plan(name, world, rows, 0.6) for name in ('A100', 'H100') for world, rows in RUNS}
    for (name, world), (micro, held, _) in found.items():
        rows = dict(RUNS)[world]
        yield f"| {world} x {name} | {rows} | {micro} | " + ' | '.join(
            f'{size / 1e9:.1f}' for size in (*held.values(), sum(held.values()))) + ' |'
    yield """
A step in milliseconds, with products at 60 % of the peak and links at 80 % of theirs; `exposed` is the communication that
hides behind no product. Hours also for products at 45 %.

| GPUs | products | communication | exposed | optimizer | tokens/s | MFU | h for 6.86e20 | h for 1e22 | at 45 %: MFU | 6.86e20 | 1e22 |
|---|---|---|---|---|---|---|---|---|---|---|---|"""
    for (name, world), (_, _, at60) in found.items():
        at45 = plan(name, world, dict(RUNS)[world], 0.45)[2]
        ms = ' | '.join(f'{at60[part] * 1e3:,.0f}' for part in ('products', 'communication', 'exposed', 'optimizer'))
        ends = [f"{t['mfu']:.1%} | {hours(6.86e20, t['tok_s'])} | {hours(1e22, t['tok_s'])}" for t in (at60, at45)]
        yield f"| {world} x {name} | {ms} | {at60['tok_s']:,.0f} | {' | '.join(ends)} |"
    yield """
What the numbers say:

- On one node of either kind the weights' way to the GPUs hides behind the products, three micro-batches or not; the papers'
  run takes about two days on 8 H100, and five to seven on 8 A100.
- 72 rows do not divide by 64 GPUs, and 64 rows leave one row for each: there the batch has to grow, or the links set the
  pace. At 512 GPUs one row each is 1M tokens a step, seven times the papers' batch: 15B tokens are 14,300 steps then, below
  the papers' rule of at least 25,000 steps; the run for 1e22 FLOPs has 208,000. What is exposed there a mesh that shards
  within a node and copies between nodes would hide; train.py shards over all GPUs.
- Sources of the assumption: public FSDP runs of 7 to 8B models reach 57 to 68 % of the peak on A100 (llm-foundry, fms-fsdp)
  and 33 to 46 % on H100 (torchtitan, fms-fsdp). `bench/gpu.sh training` measures it."""

def encoding():
    """FLOPs a second of audio of mHuBERT-25Hz up to layer 11: eight convolutions, and 11 layers of 768 channels."""
    rate, convolutions, inside = 16000, 0, 1
    for kernel, stride in ((10, 5), *[(3, 2)] * 4, *[(2, 2)] * 3):
        rate //= stride
        convolutions, inside = convolutions + 2 * kernel * inside * 512 * rate, 512
    return convolutions, 11 * 25 * 2 * 12 * 768 ** 2 # attention inside windows of 30 s adds 1 %

def units():
    convolutions, layers = encoding()
    seconds, share = 114_000 * 3600, 0.2
    hours = (convolutions + layers) * seconds / (8 * CHIPS['H100'].flops * share) / 3600
    measured = json.loads((Path(__file__).parent / 'results' / 'prepare.json').read_text())['decode'] # on two cores
    slow, fast = (measured[f'{rate} Hz, 4 threads'] for rate in (44100, 16000))
    yield f"""
## The units of 84,000 h of real and 30,000 h of synthetic speech

mHuBERT-25Hz up to layer 11 is {convolutions / 1e9:.1f} GFLOP a second of audio in its convolutions and {layers / 1e9:.1f} in its layers. On 8 H100 at
{share:.0%} of the peak (short sequences, small products) all of it is {hours:.1f} h. Reading sets the pace: two server cores decode
and resample {slow} h an hour from 44.1 kHz FLAC and {fast:,} from 16 kHz, so 64 cores take {seconds / slow / 32 / 3600:.0f} h or {seconds / fast / 32 / 3600:.1f} h."""

if __name__ == '__main__':
    path = Path(__file__).resolve().parent / 'PLAN.md'
    with atomically(path) as tmp:
        tmp.write_text('\n'.join([*markdown(), *units()]) + '\n')
    print(f"{path}: written")
