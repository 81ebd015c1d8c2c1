"""
model.py beside transformers, in one run on this machine.

    python bench/model.py speed            forward and backward of a Qwen-shaped model of 6 layers
    python bench/model.py real FOLDER      a published checkpoint: load time, peak memory, logits,
                                           greedy text, likelihood

speed: 256 channels, 4 query heads over 2 key heads, 2,552 ids, rows of 512 tokens. A model of the
same size in nanoGPT's style (LayerNorm, learned positions, GELU, logits of all tokens in memory) is
timed too. Times are medians of interleaved repeats. bench/sample.py measures decoding.

real: each library loads the checkpoint in a process of its own, so that the peak memory is its own.
The likelihood is the mean over the first 100 stories of tiny/stories.py.

Writes bench/results/model-NAME.json.
"""
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import ROOT, machine, measure
from configurator import Refused
from files import progress, write_json
from hub.families import GPTConfig
from model import GPT
from tiny.stories import stories

# --------------------------------------------------------------------------------------------------
# speed

class NanoBlock(nn.Module):
    """A transformer block in nanoGPT's style: C channels, H heads."""
    def __init__(self, C, H):
        super().__init__()
        self.H = H
        self.ln1 = nn.LayerNorm(C, bias=False)
        self.ln2 = nn.LayerNorm(C, bias=False)
        self.qkv = nn.Linear(C, 3 * C, bias=False)
        self.out = nn.Linear(C, C, bias=False)
        self.up = nn.Linear(C, 4 * C, bias=False)
        self.down = nn.Linear(4 * C, C, bias=False)

    def forward(self, x):
        qkv = self.qkv(self.ln1(x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.H, -1)).transpose(1, 2) for t in qkv)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.ln2(x))))

class NanoGPT(nn.Module):
    """A language model in nanoGPT's style: V ids, L layers, H heads, C channels, T positions."""
    def __init__(self, V, L, H, C, T):
        super().__init__()
        self.embed = nn.Embedding(V, C)
        self.positions = nn.Embedding(T, C)
        self.layers = nn.Sequential(*(NanoBlock(C, H) for _ in range(L)))
        self.norm = nn.LayerNorm(C, bias=False)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
        """tokens, targets (B, T) -> the mean cross-entropy."""
        x = self.layers(self.embed(tokens) + self.positions.weight[:tokens.size(1)])
        logits = self.norm(x) @ self.embed.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

def speed(folder, repeats=9):
    """The rows of `speed`; folder: an empty one, in which the model is passed to transformers."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=2552, n_layer=6, n_head=4, n_kv_head=2, n_embd=256, head_dim=64,
                          n_ffn=704))
    model.save_pretrained(folder)
    eager, sdpa = (transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=attention, trust_remote_code=False) for attention in ('eager', 'sdpa'))
    nano = NanoGPT(2560, 6, 4, 256, 512)
    tokens, targets = torch.randint(2552, (2, 4, 512))

    def loss():
        return model.loss_sum(tokens, None, targets)[0] / targets.numel()

    def hf_loss(hf_model):
        logits = hf_model(input_ids=tokens).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    losses = {'nanoSLM': loss,
              'transformers, eager': lambda: hf_loss(eager),
              'transformers, sdpa': lambda: hf_loss(sdpa),
              "nanoGPT's way": lambda: nano(tokens, targets)}
    rows = []
    for dtype in ('float32', 'bfloat16'):
        def forward_backward(loss):
            with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bfloat16'):
                value = loss()
            value.backward()

        calls = {name: partial(forward_backward, losses[name]) for name in losses}
        case = f'forward + backward, 4 x 512 tokens, {dtype}'
        for name, row in measure(calls, repeats, 'cpu').items():
            rows.append({'what': case, 'of': name, **row})
    return rows

# --------------------------------------------------------------------------------------------------
# a published checkpoint

def peak_kib():
    """The peak memory of this process so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def load_one(folder, library, tokenizer):
    """Loads and runs a checkpoint with one library -> the row of that library, with its logits.

    Must run in a new process: the peak memory of a process never falls. The log-likelihood per
    token is the mean over the stories, the logits are every 97th of the first story's, and greedy
    is the text of 30 tokens.
    """
    nanoslm = library == 'nanoSLM'
    before = peak_kib()
    begin = time.perf_counter()
    if nanoslm:
        model = GPT.from_pretrained(folder)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False)
    seconds = time.perf_counter() - begin
    peak = peak_kib()
    texts = [' '.join(story.sentences) for story in stories('train', 100, 0)]
    ids = [tokenizer(text)['input_ids'] for text in texts]
    model.eval()
    likelihoods = []
    first_logits = None
    with torch.inference_mode():
        for row in progress(ids, desc=library):
            x = torch.tensor([row])
            logits = model.logits(model(x))[0] if nanoslm else model(input_ids=x).logits[0]
            if first_logits is None:
                first_logits = logits
            likelihoods.append(-F.cross_entropy(logits[:-1].float(), x[0, 1:]).item())
        prompt = ids[0][:8]
        if nanoslm:
            greedy = model.generate([prompt], 30, temperature=0)[0]
        else:
            generated = model.generate(
                torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=None)
            greedy = generated[0, 8:].tolist()
    return {'load_s': round(seconds, 2),
            'load_peak_mb': round((peak - before) / 1024),
            'logits': first_logits.flatten()[::97].tolist(),
            'log_likelihood': statistics.fmean(likelihoods),
            'greedy': tokenizer.decode(greedy)}

def real(folder):
    """The rows of `real`: one for each library, and one that compares them."""
    if not (Path(folder) / 'config.json').is_file():
        raise Refused(f"{folder}: no config.json; expected the folder of a checkpoint")
    results = {}
    for library in ('nanoSLM', 'transformers'):
        command = [sys.executable, __file__, 'one', str(folder), library]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Refused(f"{library} on {folder}: {done.stderr.strip().splitlines()[-1]}")
        results[library] = json.loads(done.stdout.splitlines()[-1])
    a, b = results.values()
    differences = [abs(x - y) for x, y in zip(a.pop('logits'), b.pop('logits'))]
    size = sum(path.stat().st_size for path in Path(folder).glob('*.safetensors'))
    comparison = {
        'largest difference of logits': max(differences),
        'same greedy text': a['greedy'] == b['greedy'],
        'difference of log-likelihood': abs(a['log_likelihood'] - b['log_likelihood']),
        'files_mb': round(size / 2 ** 20)}
    return [*({'of': name, **row} for name, row in results.items()), comparison]

def main(command, *arguments):
    if command == 'one': # the subprocess of `real`
        tokenizer = transformers.AutoTokenizer.from_pretrained(arguments[0], trust_remote_code=False)
        return print(json.dumps(load_one(*arguments, tokenizer)))
    if command == 'speed':
        name = 'model-speed'
        with tempfile.TemporaryDirectory() as tmp:
            rows = speed(tmp)
    else:
        rows = real(*arguments)
        name = f'model-{Path(arguments[0]).name}'
    for row in rows:
        print(json.dumps(row))
    command_line = ' '.join(['python bench/model.py', command, *map(os.path.basename, arguments)])
    write_json(ROOT / 'bench' / 'results' / f'{name}.json',
               {**machine(), 'command': command_line, 'rows': rows})

if __name__ == '__main__':
    try:
        main(*sys.argv[1:] or ['--help'])
    except Refused as e:
        raise SystemExit(f"bench/model.py: {e}") from None
    except TypeError: # the wrong number of arguments
        raise SystemExit(__doc__) from None
