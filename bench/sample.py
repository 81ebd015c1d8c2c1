"""
Decoding as in sample.py, beside transformers' generate with the same weights, in tokens a second.

    python bench/sample.py            a Qwen-shaped joint model: batches of 1 and 32, prompts of 64
                                      tokens, 128 new tokens
    python bench/sample.py --one      with one thread, in CPU time: for a machine that is shared
    python bench/sample.py --graph    eager and as a graph, without transformers: for a GPU, where it
                                      is a CUDA graph
    python bench/sample.py --dry      once on tiny shapes, nothing written; also after --graph

The model has 6 layers of 256 channels, 4 query heads over 2 key heads, and the vocabulary of a
small joint model: 2,048 text ids, 500 units, 4 others; in float32. It decodes greedily among all
ids; and as sample.py does, with temperature 0.8 and top-k 25, among all ids (--output=free) or
units only (--output=speech).

nanoSLM decodes eagerly, as sample.py does, and with decode='compile', whose first call, timed as
`first call, s`, compiles or reads what an earlier process compiled from torch's cache.

Both sides have the same threads and weights, a cache, scaled_dot_product_attention, prompts of one
length, and no early stop. transformers is timed with its dynamic and its static cache, and excludes
other ids by one masked_fill. Times are medians of interleaved repeats. The row `floor` is a bound
that no implementation can beat: reading each weight once, or the products of a step at the speed of
one large product. Greedy tokens of both sides are compared first.

Writes bench/results/sample.json, or gpu-sample.json with --graph.
"""
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import DEVICE, measure, save, table
from configurator import Refused
from hub.families import GPTConfig
from model import GPT

V = 2552
UNITS = slice(2048, 2548)
GREEDY = 'all, greedy'
COMPILED = 'nanoSLM, compiled'
# {name of a mode: the ids that may be chosen}
MODES = {GREEDY: slice(V), 'all, top-k 25': slice(V), 'units, top-k 25': UNITS}

class OnlyAllowed(transformers.LogitsProcessor):
    """Gives no probability to ids that are not allowed; allowed (V,) bool."""
    def __init__(self, allowed):
        self.excluded = ~allowed

    def __call__(self, ids, scores):
        return scores.masked_fill(self.excluded, -torch.inf)

def decoders(model, hf_model, B, n_prompt, n_new, mode, ways):
    """{name: a function that generates n_new ids for each of B prompts and returns them as lists}"""
    allowed = torch.zeros(V, dtype=torch.bool)
    allowed[MODES[mode]] = True
    generator = torch.Generator().manual_seed(B)
    prompts = torch.randint(UNITS.start, UNITS.stop, (B, n_prompt), generator=generator)
    sampling = {'temperature': 0.8, 'top_k': 25}

    def generate(decode):
        settings = {'temperature': 0} if mode == GREEDY else sampling
        return model.generate(prompts.tolist(), n_new, allowed=allowed, decode=decode, **settings)

    def hf_generate(cache):
        processors = [] if allowed.all() else [OnlyAllowed(allowed)]
        settings = {'do_sample': False} if mode == GREEDY else {'do_sample': True, **sampling}
        ids = hf_model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=n_new,
            min_new_tokens=n_new,
            pad_token_id=0,
            logits_processor=transformers.LogitsProcessorList(processors),
            cache_implementation=cache,
            **settings)
        return ids[:, n_prompt:].tolist()

    calls = {name: partial(generate, decode) for name, decode in ways.items()}
    if hf_model is not None:
        calls |= {f'transformers, {cache} cache': partial(hf_generate, cache) for cache in ('dynamic', 'static')}
    return calls

def floors(model, B, ids):
    """{name: a function that does what no step of B tokens can avoid}"""
    weights = [p.detach() for name, p in model.named_parameters() if p.ndim == 2 and name != 'embed']
    weights.append(model.embed.detach()[ids]) # the head
    # A product of n x n matrices has n^3 multiplications, as many as a step has.
    n = round((B * sum(w.numel() for w in weights)) ** (1 / 3))
    a, b = torch.randn(2, n, n, device=model.embed.device)
    return {'weights read': lambda: [w.sum() for w in weights], 'products': lambda: a @ b}

def the_same(model):
    """The model of transformers with the weights of a GPT."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation='sdpa', trust_remote_code=False).eval()

def measured_rows(dry, clock, graph):
    """Yields a row for each batch size, mode and implementation, and one for each floor.

    Raises Refused if the greedy tokens differ, or an implementation raises.
    """
    torch.manual_seed(0)
    n_prompt, n_new, repeats = (4, 3, 1) if dry else (64, 128, 5)
    model = GPT(GPTConfig(vocab_size=V, n_layer=6, n_head=4, n_kv_head=2, n_embd=256, head_dim=64,
                          n_ffn=704)).eval()
    device = DEVICE if graph else 'cpu'
    model = model.to(device)
    ways = {'nanoSLM': 'eager'}
    if graph:
        ways['nanoSLM, graph'] = 'graph'
    elif not dry: # compiling takes a minute
        ways[COMPILED] = 'compile'
    hf_model = None if graph else the_same(model)
    for B in (1, 2 if dry else 32):
        for mode, ids in MODES.items():
            calls = decoders(model, hf_model, B, n_prompt, n_new, mode, ways)
            first = {}
            if mode == GREEDY:
                outputs = set()
                for name, call in calls.items():
                    begin = time.perf_counter()
                    outputs.add(str(call()))
                    first[name] = {'first call, s': round(time.perf_counter() - begin, 1)}
                n_outputs = len(outputs)
                if n_outputs > 1:
                    raise Refused(f"batch {B}: greedy decoding gives {n_outputs} different outputs, "
                                  "expected the same from all")
            with torch.inference_mode():
                times = measure(calls, repeats, device, clock)
                floor = measure(floors(model, B, ids), 2 if dry else 50, device, clock)
            for row in times.values():
                if 'error' in row:
                    raise Refused(row['error'])
            for name, row in times.items():
                yield {'batch': B,
                       'ids': mode,
                       'of': name,
                       'tokens/s': round(B * n_new / row['ms'] * 1e3, 1),
                       **row,
                       **first.get(name, {}),
                       'here, times as fast': round(row['ms'] / times['nanoSLM']['ms'], 2)}
            slowest = max(row['ms'] for row in floor.values()) # reading and computing overlap
            yield {'batch': B,
                   'ids': mode,
                   'of': 'floor',
                   'tokens/s': round(B / slowest * 1e3, 1),
                   **{f'{name}, ms a step': row['ms'] for name, row in floor.items()}}

def main(*arguments):
    if arguments not in ((), ('--one',), ('--graph',), ('--dry',), ('--graph', '--dry')):
        raise SystemExit(__doc__)
    dry = '--dry' in arguments
    graph = '--graph' in arguments
    clock = time.perf_counter
    if '--one' in arguments:
        torch.set_num_threads(1)
        clock = time.process_time
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = table(measured_rows(dry, clock, graph), 'batch', 'ids', 'of', 'tokens/s', 'here, times as fast')
    save('gpu-sample' if graph else 'sample', dry, rows=rows)

if __name__ == '__main__':
    try:
        main(*sys.argv[1:])
    except Refused as e:
        raise SystemExit(f"bench/sample.py: {e}") from None
