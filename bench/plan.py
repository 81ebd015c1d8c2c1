"""
Writes bench/PLAN.md: the memory and time that SIMS 7B takes on 8, 64 and 512 GPUs, by the formulas
of training/cost.py, which train.py --memory uses too, and the time to make the units of its
corpora.

    python bench/plan.py
"""
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from files import atomically
from hub.families import GPTConfig
from model import GPT
from training.cost import CHIPS, ROOM, memory, step_time

T = 2048 # tokens in a row
# The mean number of keys that a token attends to. The rows hold documents of 290 units, stories,
# and some documents of 2,048 tokens.
KEYS = 400
QWEN = GPTConfig(vocab_size=152_167, n_layer=28, n_head=28, n_kv_head=4, n_embd=3584, n_ffn=18944,
                 tied=False)
# {GPUs: rows in a step}: 147k tokens, as in the papers, 262k and 1M.
RUNS = {8: 72, 64: 128, 512: 512}

def plan(chip_name, world, efficiency):
    """The run with the largest micro-batch that fits -> (its rows, memory, time of a step).

    memory and time are the dicts of training/cost.py, in bytes and seconds. efficiency: the share
    of the chip's peak at which matrix products run.
    """
    chip = CHIPS[chip_name]
    rows = RUNS[world]
    rows_per_gpu = rows // world
    for micro in range(rows_per_gpu, 0, -1):
        if rows_per_gpu % micro:
            continue
        parts = memory(QWEN, micro * T, world, 'fsdp')
        if sum(parts.values()) <= ROOM * chip.memory:
            return micro, parts, step_time(QWEN, chip, world, rows * T, micro * T, KEYS, 'fsdp',
                                           efficiency=efficiency)
    raise SystemExit(f"{chip_name}, {world} GPUs: not even one row fits")

def markdown():
    """Yields the paragraphs and table rows about training."""
    with torch.device('meta'):
        N = GPT(QWEN).num_params()

    def rates(times):
        hours = (flops / (6 * N) / times['tok_s'] / 3600 for flops in (6.86e20, 1e22))
        return f"{times['mfu']:.1%} | " + ' | '.join(f'{h:,.1f}' for h in hours)

    yield f"""# SIMS 7B on paper

`python bench/plan.py` writes this page from the formulas of `training/cost.py`, which `train.py --memory`
uses too; nothing here was measured on a GPU. The model is Qwen2.5-7B with 500 units and
2 separators, N = {N:,} parameters, sharded by FSDP over all GPUs (float32 shards, bf16
compute). Rows have {T:,} tokens, each of which attends to {KEYS} on average; the micro-batch is the
largest that leaves {1 - ROOM:.0%} of the memory free, and no activations are recomputed. By C = 6ND,
6.86e20 FLOPs are {6.86e20 / 6 / N / 1e9:.1f}B tokens and 1e22 FLOPs are {1e22 / 6 / N / 1e9:.0f}B.

The memory of one GPU in GB: `saved` is what the layers keep for the backward pass, `copies` the
weights that are gathered in bf16, `head` one chunk of logits and the gradient of the head.

| GPUs | rows a step | rows a micro-batch | weights | gradients | moments | copies | saved | head \
| all |
|---|---|---|---|---|---|---|---|---|---|"""
    runs = [(name, world) for name in ('A100', 'H100') for world in RUNS]
    for name, world in runs:
        micro, parts, _ = plan(name, world, 0.6)
        sizes = ' | '.join(f'{size / 1e9:.1f}' for size in (*parts.values(), sum(parts.values())))
        yield f"| {world} x {name} | {RUNS[world]} | {micro} | {sizes} |"
    yield """
The time of a step in milliseconds, with matrix products at 60 % of the chip's peak and links at
80 % of theirs; `exposed` is the communication that does not overlap with products. The last three
columns are for products at 45 % of the peak.

| GPUs | products | communication | exposed | optimizer | tokens/s | MFU | h for 6.86e20 \
| h for 1e22 | at 45 %: MFU | 6.86e20 | 1e22 |
|---|---|---|---|---|---|---|---|---|---|---|---|"""
    for name, world in runs:
        at60, at45 = (plan(name, world, efficiency)[2] for efficiency in (0.6, 0.45))
        parts = ('products', 'communication', 'exposed', 'optimizer')
        ms = ' | '.join(f'{at60[part] * 1e3:,.0f}' for part in parts)
        yield f"| {world} x {name} | {ms} | {at60['tok_s']:,.0f} | {rates(at60)} | {rates(at45)} |"
    yield """
What the numbers say:

- On one node, of A100 or of H100, gathering the weights is hidden behind the products, although it
  happens anew in each of the three micro-batches. The papers' run takes about two days on 8 H100,
  and five to seven on 8 A100.
- 72 rows do not divide by 64 GPUs, and with 64 rows each GPU has only one: there the batch has to
  grow, or the links set the pace. On 512 GPUs, one row each is 1M tokens a step, seven times the
  papers' batch. 15B tokens are then 14,300 steps, below the papers' rule of at least 25,000; the
  run of 1e22 FLOPs has 208,000. A mesh that shards within a node and replicates across nodes would
  hide the communication that is exposed there; train.py shards over all GPUs.
- Sources of the assumed efficiency: public FSDP runs of 7 to 8B models reach 57 to 68 % of the peak
  on A100 (llm-foundry, fms-fsdp) and 33 to 46 % on H100 (torchtitan, fms-fsdp).
  `bench/gpu.sh 7B` measures it."""

def encoding_flops():
    """FLOPs per second of audio of mHuBERT-25Hz up to layer 11 -> (convolutions, layers).

    There are eight convolutions of 512 channels, and 11 transformer layers of 768 channels at 25
    frames a second. Attention within windows of 30 s, which is left out, adds 1 %.
    """
    rate = 16000
    convolutions = 0
    channels = 1
    for kernel, stride in ((10, 5), *[(3, 2)] * 4, *[(2, 2)] * 3):
        rate //= stride
        convolutions += 2 * kernel * channels * 512 * rate
        channels = 512
    return convolutions, 11 * 25 * 2 * 12 * 768 ** 2

def units():
    """Yields the paragraph about encoding the corpora."""
    convolutions, layers = encoding_flops()
    seconds = 114_000 * 3600
    share = 0.2
    hours = (convolutions + layers) * seconds / (8 * CHIPS['H100'].flops * share) / 3600
    results = Path(__file__).parent / 'results' / 'prepare.json'
    decode = json.loads(results.read_text())['decode'] # x real time, measured on two cores
    slow = decode['44100 Hz, 4 threads']
    fast = decode['16000 Hz, 4 threads']
    slow_hours, fast_hours = (seconds / speed / 32 / 3600 for speed in (slow, fast))
    yield f"""
## The units of 84,000 h of real and 30,000 h of synthetic speech

For each second of audio, mHuBERT-25Hz up to layer 11 takes {convolutions / 1e9:.1f} GFLOP in its
convolutions and {layers / 1e9:.1f} in its transformer layers. On 8 H100 at {share:.0%} of the peak
(sequences are short and products small) all of it takes {hours:.1f} h. Reading the audio sets the
pace: in an hour, two server cores decode and resample {slow} h of 44.1 kHz FLAC or {fast:,} h
of 16 kHz FLAC, so 64 cores take {slow_hours:.0f} h or {fast_hours:.1f} h."""

if __name__ == '__main__':
    path = Path(__file__).resolve().parent / 'PLAN.md'
    with atomically(path) as tmp:
        tmp.write_text('\n'.join([*markdown(), *units()]) + '\n')
    print(f"{path}: written")
