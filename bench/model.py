"""
model.py beside transformers, in one run on this machine.

    python bench/model.py speed                  a Qwen-shaped model of 6 layers: forward + backward
    python bench/model.py real FOLDER            a real checkpoint: load time, peak memory, logits, greedy text, likelihood

speed: 256 wide, 4 heads over 2, V 2,552, rows of 512 tokens. nanoGPT's way of the same size (LayerNorm, learned positions,
gelu, a materialized head) stands beside it. Medians of interleaved repeats. Decoding: bench/sample.py.
real: each model is loaded in a process of its own, so that peak memory is its own. The 100 sentences are the first
stories of tiny/stories.py.

Writes bench/results/model-NAME.json.
"""
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import nn

from bench.common import ROOT, machine, measure
from configurator import Refused
from files import progress, write_json
from hub.families import GPTConfig
from model import GPT
from tiny.stories import stories

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# ----------------------------------------------------------------------------------------------------------------
# speed

class NanoBlock(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.H, self.ln1, self.ln2 = H, nn.LayerNorm(C, bias=False), nn.LayerNorm(C, bias=False)
        self.qkv, self.out = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
        self.up, self.down = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.H, -1)).transpose(1, 2) for t in self.qkv(self.ln1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.ln2(x))))

class NanoGPT(nn.Module):
    def __init__(self, V, L, H, C, T):
        super().__init__()
        self.embed, self.positions = nn.Embedding(V, C), nn.Embedding(T, C)
        self.layers, self.norm = nn.Sequential(*(NanoBlock(C, H) for _ in range(L))), nn.LayerNorm(C, bias=False)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
        x = self.layers(self.embed(tokens) + self.positions.weight[:tokens.size(1)])
        return F.cross_entropy((self.norm(x) @ self.embed.weight.T).flatten(0, 1), targets.flatten())

def speed(folder, repeats=9):
    torch.manual_seed(0)
    ours = GPT(GPTConfig(vocab_size=2552, n_layer=6, n_head=4, n_kv_head=2, n_embd=256, head_dim=64, n_ffn=704))
    ours.save_pretrained(folder)
    load = transformers.AutoModelForCausalLM.from_pretrained
    eager, sdpa = (load(folder, attn_implementation=how) for how in ('eager', 'sdpa'))
    nano = NanoGPT(2560, 6, 4, 256, 512)
    tokens, targets = torch.randint(2552, (2, 4, 512))
    rows = []
    for dtype in ('float32', 'bfloat16'):
        def train(loss, dtype=dtype):
            with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bfloat16'):
                value = loss()
            value.backward()
        theirs = lambda model: F.cross_entropy(model(input_ids=tokens).logits.flatten(0, 1).float(), targets.flatten())
        times = measure({'nanoSLM': lambda: train(lambda: ours.loss_sum(tokens, None, targets)[0] / targets.numel()),
                         'transformers, eager': lambda: train(lambda: theirs(eager)),
                         'transformers, sdpa': lambda: train(lambda: theirs(sdpa)),
                         "nanoGPT's way": lambda: train(lambda: nano(tokens, targets))}, repeats, 'cpu')
        rows += [{'what': f'forward + backward, 4 x 512 tokens, {dtype}', 'of': name, **row} for name, row in times.items()]
    return rows

# ----------------------------------------------------------------------------------------------------------------
# a real checkpoint

def load_one(folder, which, tokenizer):
    """In a process of its own: what loading takes, and what the model says."""
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    model = GPT.from_pretrained(folder) if which == 'nanoSLM' else \
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seconds, peak = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    texts = [' '.join(story.sentences) for story in stories('train', 100, 0)]
    ids = [tokenizer(text)['input_ids'] for text in texts]
    model.eval()
    likelihood, logits = [], None
    with torch.inference_mode():
        for row in progress(ids, desc=which):
            x = torch.tensor([row])
            z = model.logits(model(x))[0] if which == 'nanoSLM' else model(input_ids=x).logits[0]
            logits = z if logits is None else logits
            likelihood.append(-F.cross_entropy(z[:-1].float(), x[0, 1:]).item())
        prompt = ids[0][:8]
        greedy = model.generate([prompt], 30, temperature=0)[0] if which == 'nanoSLM' else \
            model.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=None)[0, 8:].tolist()
    return {'load_s': round(seconds, 2), 'load_peak_mb': round((peak - before) / 1024), 'logits': logits.flatten()[::97].tolist(),
            'log_likelihood': statistics.fmean(likelihood), 'greedy': tokenizer.decode(greedy)}

def real(folder):
    if not (Path(folder) / 'config.json').is_file():
        raise Refused(f"{folder}: no config.json; expected the folder of a checkpoint")
    found = {}
    for which in ('nanoSLM', 'transformers'):
        done = subprocess.run([sys.executable, __file__, 'one', str(folder), which], capture_output=True, text=True)
        if done.returncode:
            raise Refused(f"{which} on {folder}: {done.stderr.strip().splitlines()[-1]}")
        found[which] = json.loads(done.stdout.splitlines()[-1])
    ours, theirs = found.values()
    off = max(abs(a - b) for a, b in zip(ours.pop('logits'), theirs.pop('logits')))
    weights = sum(f.stat().st_size for f in Path(folder).glob('*.safetensors')) / 2 ** 20
    return [{'of': name, **row} for name, row in found.items()] + [
        {'largest difference of logits': off, 'same greedy text': ours['greedy'] == theirs['greedy'],
         'difference of log-likelihood': abs(ours['log_likelihood'] - theirs['log_likelihood']), 'files_mb': round(weights)}]

def main(what, *rest):
    if what == 'one':
        tokenizer = transformers.AutoTokenizer.from_pretrained(rest[0])
        return print(json.dumps(load_one(*rest, tokenizer)))
    import tempfile
    with tempfile.TemporaryDirectory() as tmp:
        rows = speed(tmp) if what == 'speed' else real(*rest)
    name = 'model-speed' if what == 'speed' else f'model-{Path(rest[0]).name}'
    for row in rows:
        print(json.dumps(row))
    command = f"python bench/model.py {' '.join([what, *(os.path.basename(r) for r in rest)])}"
    write_json(ROOT / 'bench' / 'results' / f'{name}.json', {**machine(), 'command': command, 'rows': rows})

if __name__ == '__main__':
    try:
        main(*sys.argv[1:] or ['--help'])
    except (Refused, TypeError) as e:
        raise SystemExit(f"bench/model.py: {e}" if isinstance(e, Refused) else __doc__) from None
