"""
A whole step of training beside transformers, on a GPU: forward, backward, clip, fused AdamW, of random models of Qwen2.5's
shapes; the data is on the device already.

    python bench/training.py small [--dry]      0.5B and 1.5B, then where the time of a step goes
    python bench/training.py large [--dry]      3B and 7B         --dry: a tiny model, nothing written, also without a GPU

A step is 65,536 tokens in rows of 2,048, documents of 2,048 or of mean 290, in several micro-batches, under bf16 autocast;
7B, whose float32 moments would not fit beside its activations, in pure bf16. transformers runs eager with SDPA and its own
loss; it is given positions where documents are shorter than rows, and a vocabulary of 152,320, a multiple of 64. One model
is on the device at a time, so its ways are not interleaved; peak_mb is all it takes, and saved_mb what came on top of the
weights, gradients and moments.

mfu counts the pairs of tokens that see one another in a document, mfu_palm all T^2, both over the chip's peak (training/cost.py);
of_product is mfu's rate over what a bf16 product of 8,192^3 reached just before.

Writes bench/results/gpu-training-PART.json: rows, profile, and the goals that were met.
"""
import gc
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from transformers.models.qwen2 import modeling_qwen2

from bench.common import DEVICE, asked_dry, ceilings, measure, save, table
from bench.kernel_speed import OURS, packed
from hub.families import GPTConfig
from model import GPT
from train import make_optimizer
from training.cost import chip_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SHAPES = { # part: name: shape, rows a micro-batch, dtype of the weights
    'small': {'Qwen2.5-0.5B': (dict(n_layer=24, n_head=14, n_kv_head=2, n_embd=896, n_ffn=4864), 8, torch.float32),
              'Qwen2.5-1.5B': (dict(n_layer=28, n_head=12, n_kv_head=2, n_embd=1536, n_ffn=8960), 4, torch.float32)},
    'large': {'Qwen2.5-3B': (dict(n_layer=36, n_head=16, n_kv_head=2, n_embd=2048, n_ffn=11008), 4, torch.float32),
              'Qwen2.5-7B': (dict(n_layer=28, n_head=28, n_kv_head=4, n_embd=3584, n_ffn=18944, tied=False), 4, torch.bfloat16)}}
TINY = {'tiny': (dict(n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_ffn=64), 2, torch.float32)}
COLUMNS = ('model', 'documents', 'of', 'ms', 'least', 'most', 'tok_s', 'mfu', 'mfu_palm', 'of_product', 'peak_mb', 'saved_mb', 'loss')
GOALS = ( # on an H200, documents of 2,048: model, number, of whom, at least
    ('Qwen2.5-0.5B', 'tok_s', None, 140_000), ('Qwen2.5-1.5B', 'tok_s', None, 55_000), ('Qwen2.5-3B', 'tok_s', None, 29_000),
    ('Qwen2.5-7B', 'tok_s', None, 13_700), ('Qwen2.5-0.5B', 'mfu', None, 0.457), ('Qwen2.5-1.5B', 'mfu', None, 0.544),
    ('Qwen2.5-3B', 'mfu', None, 0.569), ('Qwen2.5-7B', 'mfu', None, 0.605), ('Qwen2.5-0.5B', 'ms', 'transformers', 1.8),
    ('Qwen2.5-7B', 'ms', 'transformers', 1.35), ('Qwen2.5-0.5B', 'saved_mb', 'transformers', 1 / 0.3)) # 16k tokens
KINDS = ( # of kernels, by their names, the first that fits
    ('attention', r'_forward\b|_backward_q|_backward_kv|flash|fmha|attention'), ('loss', r'_pass\b|softmax'),
    ('optimizer, clip', r'adam|multi_tensor|foreach|lpnorm'), ('products', r'gemm|nvjet|cutlass|sm\d+_xmma|::mm\b|addmm|\bmm\b|bmm'),
    ('copies', r'memcpy|memset|copy'), ('elementwise, norms', r''))

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

PLAIN = dict(vars(modeling_qwen2)) # Liger replaces some of it for good

def theirs(cfg):
    vars(modeling_qwen2).update(PLAIN)
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

def step_of(build, cfg, batch, seen, dtype=torch.bfloat16, weights=torch.float32):
    """A call that makes a step; the model is built in the first. seen: the loss of the last one, and the bytes of its states.
    dtype: of the products; weights: of parameters, gradients and moments."""
    made = []
    def step():
        if not made:
            torch.manual_seed(0)
            with torch.device(DEVICE):
                model, loss = build(cfg)
            made.extend((model.to(weights).train(), loss, make_optimizer(model, 1e-4)))
            seen['states'] = 4 * sum(p.nbytes for p in model.parameters()) # weights, gradients, two moments
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

def profile_of(step):
    """Where the device's time of a step goes: a row for each of KINDS, and its three longest kernels."""
    from torch.profiler import ProfilerActivity, profile
    step()
    with profile(activities=[ProfilerActivity.CUDA if DEVICE == 'cuda' else ProfilerActivity.CPU]) as found:
        step()
    spent = {event.key: event.self_device_time_total if DEVICE == 'cuda' else event.self_cpu_time_total
             for event in found.key_averages()}
    kinds, all_of_it = {kind: {} for kind, _ in KINDS}, sum(spent.values())
    for name, us in spent.items():
        kinds[next(kind for kind, pattern in KINDS if re.search(pattern, name, re.I))][name] = us
    for kind, each in kinds.items():
        longest = sorted(each, key=each.get, reverse=True)[:3]
        yield {'what': kind, 'ms': round(sum(each.values()) / 1e3, 3), 'share': round(sum(each.values()) / all_of_it, 4),
               'kernels': ', '.join(f'{name[:60]} {each[name] / 1e3:.1f}' for name in longest)}

def goals(rows):
    """A row a goal whose model was measured."""
    found = {(row['model'], row['of']): row for row in rows if row['documents'] == 2048}
    for model, number, other, wanted in GOALS:
        ours, theirs = found.get((model, OURS), {}).get(number), found.get((model, other), {}).get(number)
        if ours and (theirs or other is None):
            got = theirs / ours if other else ours
            yield {'model': model, 'goal': f'{number} of {other}' if other else number, 'wanted': round(wanted, 3),
                   'got': round(got, 3), 'met': got >= wanted}

def rows_of(name, shape, micro, weights, dry):
    cfg = GPTConfig(vocab_size=500 if dry else 152_167, **shape)
    chip = chip_of(torch.cuda.get_device_name()) if DEVICE == 'cuda' else None
    n_rows, T, means = (4, 32, (32, 8)) if dry else (32, 2048, (2048, 290))
    for mean in means:
        batch, keys = batch_of(cfg, n_rows, T, mean, micro)
        for way, build in WAYS.items():
            if build is ours_compiled and mean < T:
                continue # the same graph, and a minute to compile it
            best, seen = ceilings(dry)['tflops'], {}
            row = measure({way: step_of(build, cfg, batch, seen, weights=weights)}, 1 if dry else 8)[way]
            row = {'model': name, 'documents': mean, 'of': way, **row}
            if 'ms' in row:
                with torch.device('meta'):
                    model = GPT(cfg)
                row['tok_s'] = rate = round(n_rows * T / row['ms'] * 1e3)
                row['loss'] = round(seen['loss'].item(), 3)
                row |= {'saved_mb': round(row['peak_mb'] - seen['states'] / 2 ** 20)} if 'peak_mb' in row else {}
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
    part = sys.argv.pop(1) if sys.argv[1:2] in (['small'], ['large']) else None
    if part is None:
        raise SystemExit(__doc__)
    dry, found = asked_dry(__doc__), {}
    models = TINY if dry else SHAPES[part]
    keep = lambda rows: save(f'gpu-training-{part}', dry, **found | {'rows': rows, 'goals': list(goals(rows))})
    if part == 'small':
        shape, micro, _ = next(iter(models.values()))
        cfg = GPTConfig(vocab_size=500 if dry else 152_167, **shape)
        batch, _ = batch_of(cfg, 2 * micro, 32 if dry else 2048, 8 if dry else 290, micro)
        found['profile'] = table(profile_of(step_of(ours, cfg, batch, {})), 'what', 'ms', 'share', 'kernels')
    every = (row for name, (shape, *how) in models.items() for row in rows_of(name, shape, *how, dry))
    rows = table(every, *COLUMNS, keep=keep)
    table(list(goals(rows)), 'model', 'goal', 'wanted', 'got', 'met')
    return int(any('error' in row for row in rows if row['of'] == OURS))

if __name__ == '__main__':
    raise SystemExit(main())
