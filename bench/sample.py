"""
Decoding as sample.py does it, beside transformers' generate on the same weights: tokens a second, in one run.

    python bench/sample.py            a Qwen-shaped joint model: batches of 1 and 32, prompts of 64 tokens, 128 new ones
    python bench/sample.py --one      by one thread, in its CPU time: for a machine that others use meanwhile
    python bench/sample.py --dry      once on tiny shapes, nothing written

The model is 6 layers of 256 channels, 4 heads over 2, with the vocabulary of a small joint model: 2,048 text ids, 500 units,
4 others; float32. Ways to choose: greedily among all ids; and as sample.py does, temperature 0.8, top-k 25, among all ids
(--output=free) or units alone (speech). Both sides have the same threads and weights, a cache, scaled_dot_product_attention, prompts of one length and
no early end; transformers is timed with its dynamic and its static cache, and masks other ids by one masked_fill. Medians of
interleaved repeats; with them what nobody goes below: each weight read once, and the products of a step at the speed of
a large one. Greedy tokens of both sides are compared first.

Writes bench/results/sample.json.
"""
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

from bench.common import measure, save, table
from configurator import Refused
from hub.families import GPTConfig
from model import GPT

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

V, UNITS = 2552, slice(2048, 2548)
GREEDY = 'all, greedy'
HOW = {GREEDY: slice(V), 'all, top-k 25': slice(V), 'units, top-k 25': UNITS} # the ids that may be chosen

class Only(transformers.LogitsProcessor):
    """Ids that are not allowed, (V,) bool, get no probability."""
    def __init__(self, allowed):
        self.others = ~allowed

    def __call__(self, ids, scores):
        return scores.masked_fill(self.others, -torch.inf)

def ways(ours, theirs, B, prompt, new, how):
    """{name: a function that generates B x new ids, and gives them}"""
    allowed = torch.zeros(V, dtype=torch.bool)
    allowed[HOW[how]] = True
    sampled = how != GREEDY
    start = torch.randint(UNITS.start, UNITS.stop, (B, prompt), generator=torch.Generator().manual_seed(B))
    settings = {'temperature': 0.8, 'top_k': 25} if sampled else {'temperature': 0}
    def transformers_(cache):
        only = transformers.LogitsProcessorList([] if allowed.all() else [Only(allowed)])
        return theirs.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=new, min_new_tokens=new, pad_token_id=0,
                               logits_processor=only, cache_implementation=cache, do_sample=sampled,
                               **(settings if sampled else {}))[:, prompt:].tolist()
    return {'nanoSLM': lambda: ours.generate(start.tolist(), new, allowed=allowed, **settings),
            'transformers, dynamic cache': lambda: transformers_('dynamic'),
            'transformers, static cache': lambda: transformers_('static')}

def floors(ours, B, ids):
    """{name: what a step of B tokens cannot do without}: reading the weights, and their products"""
    weights = [p.detach() for name, p in ours.named_parameters() if p.ndim == 2 and name != 'embed']
    weights.append(ours.embed.detach()[ids]) # the head
    n = round((B * sum(w.numel() for w in weights)) ** (1 / 3)) # n^3 multiplications, as many as a step has
    a, b = torch.randn(2, n, n)
    return {'weights read': lambda: [w.sum() for w in weights], 'products': lambda: a @ b}

def rows(dry, clock):
    torch.manual_seed(0)
    prompt, new, repeats = (4, 3, 1) if dry else (64, 128, 5)
    ours = GPT(GPTConfig(vocab_size=V, n_layer=6, n_head=4, n_kv_head=2, n_embd=256, head_dim=64, n_ffn=704)).eval()
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation='sdpa').eval()
    for B in (1, 2 if dry else 32):
        for how, ids in HOW.items():
            of = ways(ours, theirs, B, prompt, new, how)
            if how == GREEDY and len(said := {str(way()) for way in of.values()}) > 1:
                raise Refused(f"batch {B}: greedy tokens are not the same, there are {len(said)} kinds")
            with torch.inference_mode():
                times = measure(of, repeats, 'cpu', clock)
                least = measure(floors(ours, B, ids), 2 if dry else 50, 'cpu', clock)
            if errors := [row['error'] for row in times.values() if 'error' in row]:
                raise Refused(errors[0])
            mine, *others = (row['ms'] for row in times.values())
            for name, row in times.items():
                yield {'batch': B, 'ids': how, 'of': name,
                       'tokens/s': round(B * new / row['ms'] * 1e3, 1), **row, 'here, times as fast': round(row['ms'] / mine, 2)}
            yield {'batch': B, 'ids': how, 'of': 'floor', # reading and computing overlap
                   'tokens/s': round(B / max(row['ms'] for row in least.values()) * 1e3, 1),
                   **{f'{name}, ms a step': row['ms'] for name, row in least.items()}}

def main(*args):
    if args not in ((), ('--one',), ('--dry',)):
        raise SystemExit(__doc__)
    dry, one = args == ('--dry',), args == ('--one',)
    torch.set_num_threads(1 if one else torch.get_num_threads())
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    save('sample', dry, rows=table(rows(dry, time.process_time if one else time.perf_counter),
                                   'batch', 'ids', 'of', 'tokens/s', 'here, times as fast'))

if __name__ == '__main__':
    try:
        main(*sys.argv[1:])
    except Refused as e:
        raise SystemExit(f"bench/sample.py: {e}") from None
