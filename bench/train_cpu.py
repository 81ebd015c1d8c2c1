"""
A whole training step on a CPU, beside other implementations in one run; and the loader alone.

    python bench/train_cpu.py [--dry]              --dry: a tiny model, nothing written
    python bench/train_cpu.py --family=qwen3 [--dry]

A step is forward, backward, gradient clipping and fused AdamW on 4 rows of 512 tokens, of one
document each or of documents of mean length 128. The model is Qwen-shaped: 6 layers, 256 channels,
4 query heads over 2 key heads, 2,552 ids. transformers runs with SDPA and its own loss, and is
given positions where documents are shorter than rows. The model in nanoGPT's style (bench/model.py)
can only have rows of one document. Times are medians of interleaved repeats; with one thread
(OMP_NUM_THREADS=1) of the process's own time, which other processes do not add to.

With --family=qwen3 the model is Qwen3-shaped: heads of 128 channels, which together are twice as
wide as the model, and norms of q and k, without which it is measured too. There is no loader.

The loader (`read` of bench/prepare.py) runs in one thread of each process of train.py, and there is
a process for each GPU. `of a GPU` is the share of the host's time that it takes to load 140,000
tokens/s, which an H200 should reach at 0.5B; the GPU works meanwhile.

Writes bench/results/train-cpu.json or train-cpu-qwen3.json.
"""
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import measure, save, table
from bench.model import NanoGPT
from bench.prepare import measure_reading
from bench.training import batch_of, build_compiled, build_nanoslm, build_transformers, step_of
from hub.families import GPTConfig

SHAPE = dict(vocab_size=2552, n_layer=6, n_head=4, n_kv_head=2, n_embd=256, head_dim=64, n_ffn=704)
GPU = 140_000 # tokens/s

def build_nanogpt(cfg):
    """A model in nanoGPT's style and its loss, as the builders of bench/training.py."""
    model = NanoGPT(cfg.rows, cfg.n_layer, cfg.n_head, cfg.n_embd, 512)
    return model, lambda tokens, doc_start, targets, position: model(tokens, targets)

def build_without_norms(cfg):
    return build_nanoslm(replace(cfg, family='llama', qk_norm=None))

BUILDERS = {
    'qwen2': {
        'nanoSLM': build_nanoslm,
        'nanoSLM, --compile': build_compiled,
        'transformers': build_transformers,
        "nanoGPT's way": build_nanogpt},
    'qwen3': {
        'nanoSLM': build_nanoslm,
        'nanoSLM, no q/k norms': build_without_norms,
        'transformers': build_transformers}}

def steps(cfg, repeats, T=512):
    """Yields a row for each implementation, dtype and mean length of documents."""
    for dtype in (torch.float32, torch.bfloat16):
        for mean in (T, T // 4):
            batch, _ = batch_of(cfg, 4, T, mean, 4)
            states = {}
            calls = {}
            for name, build in BUILDERS[cfg.family].items():
                if build is build_nanogpt and mean < T:
                    continue # its rows are one document
                states[name] = {}
                calls[name] = step_of(build, cfg, batch, states[name], dtype)
            clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
            times = measure(calls, repeats, 'cpu', clock)
            for name, row in times.items():
                if 'ms' in row:
                    row |= {'tok_s': round(4 * T / row['ms'] * 1e3),
                            'loss': round(states[name]['loss'].item(), 3),
                            'of transformers': round(times['transformers']['ms'] / row['ms'], 3)}
                yield {'what': f'{str(dtype)[6:]}, documents of {mean}', 'of': name, **row}

def main():
    arguments = sys.argv[1:]
    dry = '--dry' in arguments
    qwen3 = '--family=qwen3' in arguments
    if set(arguments) - {'--dry', '--family=qwen3'}:
        raise SystemExit(__doc__)
    shape = SHAPE | ({'family': 'qwen3', 'head_dim': 128} if qwen3 else {})
    if dry:
        shape |= dict(n_layer=1, n_embd=64, head_dim=16, n_ffn=64)
    results = {}
    if not qwen3:
        with tempfile.TemporaryDirectory() as tmp:
            loader = measure_reading(Path(tmp), 100_000 if dry else 20_000_000)
        loader['of a GPU'] = round(GPU / loader['tok_s'], 4)
        print('loader:', ', '.join(f'{name} {value:,}' for name, value in loader.items()))
        results['loader'] = loader
    results['rows'] = table(steps(GPTConfig(**shape), 1 if dry else 9, 64 if dry else 512),
                            'what', 'of', 'ms', 'least', 'most', 'tok_s', 'of transformers', 'loss')
    save('train-cpu-qwen3' if qwen3 else 'train-cpu', dry, **results)

if __name__ == '__main__':
    main()
