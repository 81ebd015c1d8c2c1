"""
A whole training step beside transformers, on a GPU, of random models in Qwen2.5's shapes.

    python bench/training.py small [--dry]      0.5B and 1.5B, then a profile of a step
    python bench/training.py large [--dry]      3B and 7B

--dry: a tiny model, nothing written, also without a GPU.

A step is forward, backward, gradient clipping and fused AdamW on 65,536 tokens in rows of 2,048, of
one document each or of documents of mean length 290, in several micro-batches under bf16 autocast;
the data is on the device already. 7B runs in pure bf16, because its float32 moments would not fit
beside its activations. transformers runs eagerly with SDPA and its own loss; it is given positions
where documents are shorter than rows, and a vocabulary of 152,320, which is a multiple of 64. Only
one model is on the device at a time, so the repeats are not interleaved.

peak_mb is the peak memory, saved_mb the part of it above weights, gradients and moments. mfu counts
the pairs of tokens in which one attends to the other, mfu_palm all T^2 pairs of a row; both are
shares of the chip's peak (training/cost.py). of_product is the share that mfu's FLOP/s have of what
a bf16 product of 8,192^3 reached just before.

Writes bench/results/gpu-training-PART.json: rows, profile, and which goals were met.
"""
import gc
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from transformers.models.qwen2 import modeling_qwen2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import DEVICE, ceilings, measure, parse_dry, save, table
from bench.kernel_speed import OURS, packed
from hub.families import GPTConfig
from model import GPT
from training.cost import chip_of
from training.optimizer import make_optimizer

SHAPES = { # {part: {model: (shape, rows of a micro-batch, dtype of the weights)}}
    'small': {
        'Qwen2.5-0.5B': (dict(n_layer=24, n_head=14, n_kv_head=2, n_embd=896, n_ffn=4864),
                         8, torch.float32),
        'Qwen2.5-1.5B': (dict(n_layer=28, n_head=12, n_kv_head=2, n_embd=1536, n_ffn=8960),
                         4, torch.float32)},
    'large': {
        'Qwen2.5-3B': (dict(n_layer=36, n_head=16, n_kv_head=2, n_embd=2048, n_ffn=11008),
                       4, torch.float32),
        'Qwen2.5-7B': (dict(n_layer=28, n_head=28, n_kv_head=4, n_embd=3584, n_ffn=18944,
                            tied=False),
                       4, torch.bfloat16)}}
TINY = {'tiny': (dict(n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_ffn=64), 2, torch.float32)}
COLUMNS = ('model', 'documents', 'of', 'ms', 'least', 'most', 'tok_s', 'mfu', 'mfu_palm',
           'of_product', 'peak_mb', 'saved_mb', 'loss')
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
    ('products', r'gemm|nvjet|cutlass|sm\d+_xmma|::mm\b|addmm|\bmm\b|bmm'),
    ('copies', r'memcpy|memset|copy'),
    ('elementwise, norms', r''))

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
        block.forward = torch.compile(block.forward, dynamic=False)
    return model, loss

# Liger replaces some of the module's attributes for good; these are restored.
ORIGINAL_QWEN2 = dict(vars(modeling_qwen2))

def build_transformers(cfg):
    vars(modeling_qwen2).update(ORIGINAL_QWEN2)
    cfg = replace(cfg, vocab_size=cfg.rows)
    # With use_cache, transformers would not keep the documents of a row apart.
    hf_config = transformers.Qwen2Config(**cfg.to_hf(), use_cache=False)
    model = transformers.AutoModelForCausalLM.from_config(hf_config, attn_implementation='sdpa')
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
            f'{OURS}, torch.compile': build_compiled,
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
    """Yields a row for each of KINDS: its share of a step's device time, its three longest kernels."""
    from torch.profiler import ProfilerActivity, profile
    step()
    cuda = DEVICE == 'cuda'
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        step()
    kernels = {kind: {} for kind, _ in KINDS} # {kind: {kernel: microseconds}}
    for event in profiler.key_averages():
        us = event.self_device_time_total if cuda else event.self_cpu_time_total
        kernels[kind_of(event.key)][event.key] = us
    total = sum(sum(times.values()) for times in kernels.values())
    for kind, times in kernels.items():
        longest = sorted(times, key=times.get, reverse=True)[:3]
        us = sum(times.values())
        yield {'what': kind,
               'ms': round(us / 1e3, 3),
               'share': round(us / total, 4),
               'kernels': ', '.join(f'{name[:60]} {times[name] / 1e3:.1f}' for name in longest)}

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

def rates_of(row, cfg, tokens, T, keys, state, tflops):
    """The numbers that follow from the time of a step: a dict of columns.

    tokens: of a step; keys: that a token attends to on average; state: as step_of leaves it;
    tflops: of a large product.
    """
    with torch.device('meta'):
        model = GPT(cfg)
    rate = round(tokens / row['ms'] * 1e3)
    columns = {'tok_s': rate, 'loss': round(state['loss'].item(), 3)}
    if 'peak_mb' in row:
        columns['saved_mb'] = round(row['peak_mb'] - state['states'] / 2 ** 20)
    columns['of_product'] = round(rate * model.flops_per_token(keys) / tflops / 1e12, 3)
    chip = chip_of(torch.cuda.get_device_name()) if DEVICE == 'cuda' else None
    if chip:
        for name, width in (('mfu', keys), ('mfu_palm', T)):
            columns[name] = round(rate * model.flops_per_token(width) / chip.flops, 4)
    return columns

def rows_of(name, shape, micro_rows, weights, dry):
    """Yields a row for each implementation of a model, and mean length of documents."""
    cfg = GPTConfig(vocab_size=500 if dry else 152_167, **shape)
    n_rows, T, means = (4, 32, (32, 8)) if dry else (32, 2048, (2048, 290))
    for mean in means:
        batch, keys = batch_of(cfg, n_rows, T, mean, micro_rows)
        for label, build in BUILDERS.items():
            if build is build_compiled and mean < T:
                continue # the graph is the same, and takes a minute to compile
            tflops = ceilings(dry)['tflops']
            state = {}
            times = measure({label: step_of(build, cfg, batch, state, weights=weights)},
                            1 if dry else 8)
            row = {'model': name, 'documents': mean, 'of': label, **times[label]}
            if 'ms' in row:
                row |= rates_of(row, cfg, n_rows * T, T, keys, state, tflops)
            state.clear()
            gc.collect()
            torch.compiler.reset()
            if DEVICE == 'cuda':
                torch.cuda.empty_cache()
            yield row

def main():
    if sys.argv[1:2] not in (['small'], ['large']):
        raise SystemExit(__doc__)
    part = sys.argv.pop(1)
    dry = parse_dry(__doc__)
    models = TINY if dry else SHAPES[part]
    results = {}
    if part == 'small':
        shape, micro_rows, _ = next(iter(models.values()))
        cfg = GPTConfig(vocab_size=500 if dry else 152_167, **shape)
        T, mean = (32, 8) if dry else (2048, 290)
        batch, _ = batch_of(cfg, 2 * micro_rows, T, mean, micro_rows)
        results['profile'] = table(profile_of(step_of(build_nanoslm, cfg, batch, {})),
                                   'what', 'ms', 'share', 'kernels')

    def all_rows():
        for name, (shape, micro_rows, weights) in models.items():
            yield from rows_of(name, shape, micro_rows, weights, dry)

    def save_rows(rows):
        save(f'gpu-training-{part}', dry, **results, rows=rows, goals=list(goals(rows)))

    rows = table(all_rows(), *COLUMNS, on_row=save_rows)
    table(goals(rows), 'model', 'goal', 'wanted', 'got', 'met')
    return int(any('error' in row for row in rows if row['of'] == OURS))

if __name__ == '__main__':
    raise SystemExit(main())
