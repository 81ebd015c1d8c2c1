"""
A whole step of training beside transformers, on a GPU: forward, backward, clip, fused AdamW, under bf16 autocast, of a
random model of Qwen2.5-0.5B's and 1.5B's shape; the data is on the device already.

    python bench/training.py [--dry]      --dry: a tiny model, nothing written, also without a GPU

A step is 65,536 tokens in rows of 2,048, documents of 2,048 or of mean 512, in several micro-batches. transformers runs
eager with SDPA and its own loss; it is given positions where documents are shorter than rows, and a vocabulary of 152,320,
a multiple of 64. One model is on the device at a time, so its ways are not interleaved; peak_mb is all it takes.

mfu counts the pairs of tokens that see one another in a document, mfu_palm all T^2, both over the chip's peak (cost.py);
of_product is mfu's rate over what a bf16 product of 8,192^3 reached just before.

Writes bench/results/gpu-training.json.
"""
import gc
import sys
from dataclasses import replace
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import DEVICE, asked_dry, ceilings, measure, save, table
from bench.kernel_speed import OURS, packed
from cost import chip_of
from families import GPTConfig
from model import GPT
from train import make_optimizer

SHAPES = { # and rows a micro-batch
    'Qwen2.5-0.5B': (GPTConfig(vocab_size=152_167, n_layer=24, n_head=14, n_kv_head=2, n_embd=896, n_ffn=4864), 8),
    'Qwen2.5-1.5B': (GPTConfig(vocab_size=152_167, n_layer=28, n_head=12, n_kv_head=2, n_embd=1536, n_ffn=8960), 4)}
TINY = {'tiny': (GPTConfig(vocab_size=500, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_ffn=64), 2)}
COLUMNS = ('model', 'documents', 'of', 'ms', 'least', 'most', 'tok_s', 'mfu', 'mfu_palm', 'of_product', 'peak_mb', 'loss')

def ours(cfg):
    model = GPT(cfg)
    def loss(tokens, doc_start, targets, _):
        return model.loss_sum(tokens, doc_start, targets)[0] / (targets >= 0).sum()
    return model, loss

def ours_compiled(cfg):
    model, loss = ours(cfg)
    for block in model.layers: # as train.py --compile
        block.forward = torch.compile(block.forward, dynamic=False)
    return model, loss

def theirs(cfg):
    cfg = replace(cfg, vocab_size=cfg.rows)
    hf = transformers.Qwen2Config(**cfg.to_hf(), use_cache=False) # with a cache it would not keep documents apart
    model = transformers.AutoModelForCausalLM.from_config(hf, attn_implementation='sdpa')
    def loss(tokens, doc_start, targets, position):
        return model(input_ids=tokens, position_ids=position, shift_labels=targets, labels=tokens).loss
    return model, loss

def theirs_with_liger(cfg):
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2
    model, loss = theirs(cfg)
    apply_liger_kernel_to_qwen2(model=model)
    return model, loss

WAYS = {OURS: ours, f'{OURS}, torch.compile': ours_compiled, 'transformers': theirs,
        'transformers, Liger': theirs_with_liger}

def step_of(build, cfg, batch, seen, dtype=torch.bfloat16):
    """A call that makes a step; the model is built in the first. seen: the loss of the last one."""
    made = []
    def step():
        if not made:
            torch.manual_seed(0)
            with torch.device(DEVICE):
                model, loss = build(cfg)
            made.extend((model.train(), loss, make_optimizer(model, 1e-4)))
        model, loss, optimizer = made
        total = torch.zeros((), device=DEVICE)
        for micro in batch:
            with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
                value = loss(*micro) / len(batch)
            value.backward()
            total += value.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen['loss'] = total
    return step

def batch_of(cfg, n_rows, T, mean, micro):
    """Micro-batches of tokens, doc_start, targets, positions (None where a row is a document); and the keys a token sees."""
    doc_start, t = packed(n_rows, T, mean), torch.arange(T, device=DEVICE)
    tokens = torch.randint(cfg.vocab_size, (n_rows, T), device=DEVICE)
    targets = tokens.roll(-1, 1).masked_fill((doc_start == t).roll(-1, 1), -100)
    parts = [x.split(micro) for x in (tokens, doc_start, targets, t - doc_start)]
    if mean == T:
        parts[3] = [None] * len(parts[0])
    return list(zip(*parts)), (t + 1 - doc_start).float().mean().item()

def rows_of(name, cfg, micro, dry):
    chip = chip_of(torch.cuda.get_device_name()) if DEVICE == 'cuda' else None
    n_rows, T, means = (4, 32, (32, 8)) if dry else (32, 2048, (2048, 512))
    for mean in means:
        batch, keys = batch_of(cfg, n_rows, T, mean, micro)
        for way, build in WAYS.items():
            if build is ours_compiled and mean < T:
                continue # the same graph, and a minute to compile it
            best, seen = ceilings(dry)['tflops'], {}
            row = measure({way: step_of(build, cfg, batch, seen)}, 1 if dry else 8)[way]
            row = {'model': name, 'documents': mean, 'of': way, **row}
            if 'ms' in row:
                with torch.device('meta'):
                    model = GPT(cfg)
                row['tok_s'] = rate = round(n_rows * T / row['ms'] * 1e3)
                row['loss'] = round(seen['loss'].item(), 3)
                row['of_product'] = round(rate * model.flops_per_token(keys) / best / 1e12, 3)
                for key, width in (('mfu', keys), ('mfu_palm', T)):
                    row |= {key: round(rate * model.flops_per_token(width) / chip.flops, 4)} if chip else {}
            seen.clear()
            gc.collect()
            torch.compiler.reset()
            if DEVICE == 'cuda':
                torch.cuda.empty_cache()
            yield row

def main():
    dry = asked_dry(__doc__)
    every = (row for name, (cfg, micro) in (TINY if dry else SHAPES).items() for row in rows_of(name, cfg, micro, dry))
    rows = table(every, *COLUMNS, keep=lambda rows: save('gpu-training', dry, rows=rows))
    return int(any('error' in row for row in rows if row['of'] == OURS))

if __name__ == '__main__':
    raise SystemExit(main())
