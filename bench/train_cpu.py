"""
A whole step of training on a CPU, beside others in one run: forward, backward, clip, fused AdamW; and the loader alone.

    python bench/train_cpu.py [--dry]      --dry: a tiny model, nothing written

The model is Qwen-shaped: 6 layers, 256 wide, 4 heads over 2, V 2,552; a step is 4 rows of 512 tokens, of one document or
of documents of mean 128. transformers runs with SDPA and its own loss and is given positions where documents are shorter
than rows; nanoGPT's way of the same size (bench/model.py) knows rows of one document only. Medians of interleaved repeats.

The loader (bench/prepare.py's `read`) has one thread in each process of train.py, and there is one for each GPU: `of a GPU`
is the share of the host's time it takes beside 140,000 tokens/s, which an H200 should reach at 0.5B; the GPU works meanwhile.

Writes bench/results/train-cpu.json.
"""
import sys
import tempfile
from pathlib import Path

import torch

from bench.common import measure, save, table
from bench.model import NanoGPT
from bench.prepare import reading
from bench.training import batch_of, ours, ours_compiled, step_of, theirs
from hub.families import GPTConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SHAPE = dict(vocab_size=2552, n_layer=6, n_head=4, n_kv_head=2, n_embd=256, head_dim=64, n_ffn=704)
GPU = 140_000 # tokens/s

def nano(cfg):
    model = NanoGPT(cfg.rows, cfg.n_layer, cfg.n_head, cfg.n_embd, 512)
    return model, lambda tokens, doc_start, targets, _: model(tokens, targets)

WAYS = {'nanoSLM': ours, 'nanoSLM, --compile': ours_compiled, 'transformers': theirs, "nanoGPT's way": nano}

def steps(cfg, repeats, T=512):
    """A row for each way, dtype and length of documents."""
    for dtype in (torch.float32, torch.bfloat16):
        for mean in (T, T // 4):
            batch, _ = batch_of(cfg, 4, T, mean, 4)
            seen = {name: {} for name in WAYS if build_knows(name, mean, T)}
            ways = {name: step_of(WAYS[name], cfg, batch, seen[name], dtype) for name in seen}
            times = measure(ways, repeats, 'cpu')
            for name, row in times.items():
                if 'ms' in row:
                    row |= {'tok_s': round(4 * T / row['ms'] * 1e3), 'loss': round(seen[name]['loss'].item(), 3),
                            'of transformers': round(times['transformers']['ms'] / row['ms'], 3)}
                yield {'what': f'{str(dtype)[6:]}, documents of {mean}', 'of': name, **row}

def build_knows(name, mean, T):
    return mean == T or name != "nanoGPT's way"

def main():
    if sys.argv[1:] not in ([], ['--dry']):
        raise SystemExit(__doc__)
    dry = bool(sys.argv[1:])
    cfg = GPTConfig(**SHAPE | (dict(n_layer=1, n_embd=64, head_dim=16, n_ffn=64) if dry else {}))
    with tempfile.TemporaryDirectory() as tmp:
        loader = reading(Path(tmp), 100_000 if dry else 20_000_000)
    loader['of a GPU'] = round(GPU / loader['tok_s'], 4)
    print('loader:', ', '.join(f'{name} {value:,}' for name, value in loader.items()))
    rows = table(steps(cfg, 1 if dry else 9, 64 if dry else 512), 'what', 'of', 'ms', 'least', 'most', 'tok_s',
                 'of transformers', 'loss')
    save('train-cpu', dry, loader=loader, rows=rows)

if __name__ == '__main__':
    main()
