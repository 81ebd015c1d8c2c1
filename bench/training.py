"""
A whole training step beside transformers, on a GPU, of random models in Qwen2.5's shapes.

    python bench/training.py PART [--dry]      --dry: a tiny model, nothing written, also without a GPU

    step         0.5B: ours with a profile, transformers with SDPA, and with Liger's kernels
    compiled     0.5B: ours, and ours with --compile, each with a profile
    7B           ours and transformers, all in bf16: float32 moments would not fit beside its activations
    1.5B, 3B     ours and transformers
    documents    0.5B with documents of mean length 290: ours and transformers

A step is forward, backward, gradient clipping and fused AdamW on 65,536 tokens (7B: 32,768) in rows of
2,048, of one document each unless the part says otherwise, in several micro-batches under bf16 autocast;
the data is on the device already. transformers runs eagerly with SDPA and its own loss; it is given
positions where documents are shorter than rows, and a vocabulary of 152,320, which is a multiple of 64.
Only one model is on the device at a time, so the repeats are not interleaved. ms is the median of the
repeats, least and most are their extremes, and `of ours` is an implementation's ms divided by ours.

peak_mb is the peak memory, saved_mb the part of it above weights, gradients and moments. mfu counts
the pairs of tokens in which one attends to the other, mfu_palm all T^2 pairs of a row; both are
shares of the chip's peak (training/cost.py). of_product is the share that mfu's FLOP/s have of what
a bf16 product of 8,192^3 reached just before (product_tflops; copy_gbs is what a copy reached).

Writes bench/results/gpu-PART.json: rows, profile, and which goals were met.
"""
import gc
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from transformers.models.qwen2 import modeling_qwen2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import DEVICE, ceilings, measure, parse_part, save, table
from bench.kernel_speed import OURS, compiled, packed
from hub.families import GPTConfig
from model import GPT
from training.cost import chip_of
from training.optimizer import make_optimizer

SHAPES = { # {model: (shape, rows of a micro-batch, dtype of the weights)}
    'Qwen2.5-0.5B': (dict(n_layer=24, n_head=14, n_kv_head=2, n_embd=896, n_ffn=4864), 8, torch.float32),
    'Qwen2.5-1.5B': (dict(n_layer=28, n_head=12, n_kv_head=2, n_embd=1536, n_ffn=8960), 4, torch.float32),
    'Qwen2.5-3B': (dict(n_layer=36, n_head=16, n_kv_head=2, n_embd=2048, n_ffn=11008), 4, torch.float32),
    'Qwen2.5-7B': (dict(n_layer=28, n_head=28, n_kv_head=4, n_embd=3584, n_ffn=18944, tied=False),
                   4, torch.bfloat16),
    'tiny': (dict(n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_ffn=64), 2, torch.float32)}
COMPILED = f'{OURS}, torch.compile'
T = 2048

class Part(NamedTuple):
    model: str
    implementations: tuple
    mean: int = T # length of the documents
    n_rows: int = 32 # of a step
    repeats: int = 4
    profiled: bool = False # whether ours have a profile by kernel

PARTS = {
    'step': Part('Qwen2.5-0.5B', (OURS, 'transformers', 'transformers, Liger'), profiled=True),
    'compiled': Part('Qwen2.5-0.5B', (OURS, COMPILED), profiled=True),
    '7B': Part('Qwen2.5-7B', (OURS, 'transformers'), n_rows=16, repeats=3),
    '1.5B': Part('Qwen2.5-1.5B', (OURS, 'transformers')),
    '3B': Part('Qwen2.5-3B', (OURS, 'transformers')),
    'documents': Part('Qwen2.5-0.5B', (OURS, 'transformers'), mean=290)}
COLUMNS = ('model', 'documents', 'of', 'ms', 'least', 'most', 'of ours', 'tok_s', 'mfu', 'mfu_palm',
           'of_product', 'product_tflops', 'copy_gbs', 'peak_mb', 'saved_mb', 'loss')
# What to reach on an H200 with documents of 2,048 tokens: (model, number, implementation, goal).
# The number is at least the goal; or that of the other implementation is, divided by ours.
GOALS = (
    ('Qwen2.5-0.5B', 'tok_s', None, 140_000),
    ('Qwen2.5-1.5B', 'tok_s', None, 55_000),
    ('Qwen2.5-3B', 'tok_s', None, 29_000),
    ('Qwen2.5-7B', 'tok_s', None, 13_700),
    ('Qwen2.5-0.5B', 'mfu', None, 0.457),
    ('Qwen2.5-1.5B', 'mfu', None, 0.544),
    ('Qwen2.5-3B', 'mfu', None, 0.569),
    ('Qwen2.5-7B', 'mfu', None, 0.605),
    ('Qwen2.5-0.5B', 'ms', 'transformers', 1.8),
    ('Qwen2.5-7B', 'ms', 'transformers', 1.35),
    ('Qwen2.5-0.5B', 'saved_mb', 'transformers', 1 / 0.3)) # 16k tokens
# The kinds of kernels and patterns of their names; a kernel is of the first kind that matches.
KINDS = (
    ('attention', r'_forward\b|_backward_q|_backward_kv|flash|fmha|attention'),
    ('loss', r'_pass\b|softmax'),
    ('optimizer, clip', r'adam|multi_tensor|foreach|lpnorm'),
    ('norm, rotation, SwiGLU', r'^_norm|^_rotate|^_swiglu'),
    ('products', r'gemm|nvjet|cutlass|sm\d+_xmma|::mm\b|addmm|\bmm\b|bmm'),
    ('copies', r'memcpy|memset|copy'),
    ('other elementwise', r''))

# --------------------------------------------------------------------------------------------------
# the implementations: cfg -> (model, loss); loss(tokens, doc_start, targets, position) is a mean

def build_nanoslm(cfg):
    model = GPT(cfg)
    def loss(tokens, doc_start, targets, position):
        return model.loss_sum(tokens, doc_start, targets)[0] / (targets >= 0).sum()
    return model, loss

def build_compiled(cfg):
    model, loss = build_nanoslm(cfg)
    for block in model.layers: # as train.py --compile does
        block.forward = compiled(block.forward)
    return model, loss

# Liger replaces some of the module's attributes for good; these are restored.
ORIGINAL_QWEN2 = dict(vars(modeling_qwen2))

def build_transformers(cfg):
    vars(modeling_qwen2).update(ORIGINAL_QWEN2)
    cfg = replace(cfg, vocab_size=cfg.rows)
    # With use_cache, transformers would not keep the documents of a row apart.
    hf_config = transformers.AutoConfig.for_model(**cfg.to_hf(), use_cache=False)
    model = transformers.AutoModelForCausalLM.from_config(
        hf_config, attn_implementation='sdpa', trust_remote_code=False)
    def loss(tokens, doc_start, targets, position):
        return model(input_ids=tokens, position_ids=position, shift_labels=targets,
                     labels=tokens).loss
    return model, loss

def build_liger(cfg):
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2
    model, loss = build_transformers(cfg)
    apply_liger_kernel_to_qwen2(model=model)
    return model, loss

BUILDERS = {OURS: build_nanoslm,
            COMPILED: build_compiled,
            'transformers': build_transformers,
            'transformers, Liger': build_liger}

# --------------------------------------------------------------------------------------------------

def step_of(build, cfg, batch, state, dtype=torch.bfloat16, weights=torch.float32):
    """A function that makes one training step; its first call builds the model.

    batch: as batch_of makes it. dtype: of the products; weights: of parameters, gradients and
    moments. The function writes into the dict state: 'loss' of its last step, and 'states', the
    bytes of weights, gradients and moments.
    """
    built = []
    def step():
        if not built:
            torch.manual_seed(0)
            with torch.device(DEVICE):
                model, loss = build(cfg)
            model.to(weights).train()
            built.extend((model, loss, make_optimizer(model, 1e-4)))
            state['states'] = 4 * sum(p.nbytes for p in model.parameters()) # with two moments
        model, loss, optimizer = built
        total = torch.zeros((), device=DEVICE)
        for micro_batch in batch:
            with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
                value = loss(*micro_batch) / len(batch)
            value.backward()
            total += value.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state['loss'] = total
    return step

def batch_of(cfg, n_rows, T, mean, micro_rows):
    """A batch of random tokens -> ([(tokens, doc_start, targets, position)], mean keys per token).

    Each tuple is a micro-batch of shape (micro_rows, T). mean: the mean length of the documents; if
    it is T, each row is one document and position is None.
    """
    doc_start = packed(n_rows, T, mean)
    t = torch.arange(T, device=DEVICE)
    tokens = torch.randint(cfg.vocab_size, (n_rows, T), device=DEVICE)
    last = (doc_start == t).roll(-1, 1) # of a document
    targets = tokens.roll(-1, 1).masked_fill(last, -100)
    parts = [x.split(micro_rows) for x in (tokens, doc_start, targets, t - doc_start)]
    if mean == T:
        parts[3] = [None] * len(parts[0])
    return list(zip(*parts)), (t + 1 - doc_start).float().mean().item()

def kind_of(kernel):
    """The first of KINDS whose pattern is in the name of a kernel."""
    return next(kind for kind, pattern in KINDS if re.search(pattern, kernel, re.I))

def profile_of(step):
    """Device time of a step -> (a row for each of KINDS, a row for each of the 30 longest kernels)."""
    from torch.profiler import ProfilerActivity, profile
    cuda = DEVICE == 'cuda'
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        step()
    kernels = {} # {kernel: (microseconds, calls)}
    for event in profiler.key_averages():
        us = event.self_device_time_total if cuda else event.self_cpu_time_total
        kernels[event.key] = us, event.count
    total = sum(us for us, _ in kernels.values())
    kinds = {kind: 0 for kind, _ in KINDS}
    for name, (us, _) in kernels.items():
        kinds[kind_of(name)] += us
    by_kind = [{'what': kind, 'ms': round(us / 1e3, 3), 'share': round(us / total, 4)} for kind, us in kinds.items()]
    longest = sorted(kernels, key=kernels.get, reverse=True)[:30]
    by_kernel = [{'what': kind_of(name), 'ms': round(kernels[name][0] / 1e3, 3), 'calls': kernels[name][1],
                  'kernel': name[:100]} for name in longest]
    return by_kind, by_kernel

def goals(rows):
    """Yields a row for each of GOALS whose model was measured."""
    measured = {(row['model'], row['of']): row for row in rows if row['documents'] == 2048}
    for model, number, implementation, goal in GOALS:
        value = measured.get((model, OURS), {}).get(number)
        baseline = measured.get((model, implementation), {}).get(number)
        if not value or (implementation and not baseline):
            continue
        result = baseline / value if implementation else value
        yield {'model': model,
               'goal': f'{number} of {implementation}' if implementation else number,
               'wanted': round(goal, 3),
               'got': round(result, 3),
               'met': result >= goal}

def rates_of(row, cfg, tokens, width, keys, state, limits):
    """The numbers that follow from the time of a step: a dict of columns.

    tokens: of a step; width: of a row; keys: that a token attends to on average; state: as step_of
    leaves it; limits: as `ceilings` measures them.
    """
    with torch.device('meta'):
        model = GPT(cfg)
    rate = round(tokens / row['ms'] * 1e3)
    columns = {'tok_s': rate, 'loss': round(state['loss'].item(), 3)}
    if 'peak_mb' in row:
        columns['saved_mb'] = round(row['peak_mb'] - state['states'] / 2 ** 20)
    columns |= {'of_product': round(rate * model.flops_per_token(keys) / limits['tflops'] / 1e12, 3),
                'product_tflops': round(limits['tflops']),
                'copy_gbs': round(limits['gbs'])}
    chip = chip_of(torch.cuda.get_device_name()) if DEVICE == 'cuda' else None
    if chip:
        for name, seen in (('mfu', keys), ('mfu_palm', width)):
            columns[name] = round(rate * model.flops_per_token(seen) / chip.flops, 4)
    return columns

def rows_of(part, dry, profiles):
    """Yields a row for each implementation of a part; puts the profiles of ours into a dict."""
    name = 'tiny' if dry else part.model
    shape, micro_rows, weights = SHAPES[name]
    cfg = GPTConfig(vocab_size=500 if dry else 152_167, **shape)
    n_rows, width, mean = part.n_rows, T, part.mean
    if dry:
        n_rows, width, mean = 4, 32, 32 if mean == T else 8
    batch, keys = batch_of(cfg, n_rows, width, mean, micro_rows)
    ours = None
    for label in part.implementations:
        limits = ceilings(dry)
        state = {}
        step = step_of(BUILDERS[label], cfg, batch, state, weights=weights)
        times = measure({label: step}, 1 if dry else part.repeats)
        row = {'model': name, 'documents': mean, 'of': label, **times[label]}
        if 'ms' in row:
            ours = ours or row['ms']
            row |= {'of ours': round(row['ms'] / ours, 3),
                    **rates_of(row, cfg, n_rows * width, width, keys, state, limits)}
            if part.profiled and label.startswith(OURS):
                profiles[label] = profile_of(step)
        del step
        state.clear()
        gc.collect()
        torch.compiler.reset()
        if DEVICE == 'cuda':
            torch.cuda.empty_cache()
        yield row

def main():
    name, dry = parse_part(__doc__, PARTS)
    profiles = {}

    def save_rows(rows):
        by_name = {label: {'by kind': kinds, 'by kernel': kernels} for label, (kinds, kernels) in profiles.items()}
        save(f'gpu-{name}', dry, rows=rows, profiles=by_name, goals=list(goals(rows)))

    rows = table(rows_of(PARTS[name], dry, profiles), *COLUMNS, on_row=save_rows)
    for label, (by_kind, by_kernel) in profiles.items():
        print(f"\nA step of {label}, by kernel:")
        table(by_kind, 'what', 'ms', 'share')
        table(by_kernel, 'what', 'ms', 'calls', 'kernel')
    table(goals(rows), 'model', 'goal', 'wanted', 'got', 'met')
    return int(any('error' in row for row in rows if row['of'].startswith(OURS)))

if __name__ == '__main__':
    raise SystemExit(main())
