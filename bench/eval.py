"""
Scoring pairs of spoken stories on a CPU, beside the papers' scheme, in one run: items a second.

    python bench/eval.py [--dry]      --dry: a few items, nothing written

The papers' scheme (slamkit's SpokenStoryCloze) takes a batch of pairs: every wave is read and encoded anew, the units of
the right sides are padded to the longest, then those of the wrong sides; transformers' model gives all logits, of which a
softmax is taken. Ours reads through unit_cache.py and scores documents of like length in packed rows (eval.py). Three rows:

    likelihood    from units to scores
    first run     from files to scores, nothing in the cache
    second run    the same again

The model is of tiny's size with its joint vocabulary (6 layers, 256 wide, V 2,552), in float32; the encoder is tiny/hubert.
Stories last 4 to 10 s, of harmonics and noise: their times are what is measured. Scores of both are compared too.

Writes bench/results/eval.json.
"""
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import ROOT, asked_dry, measure, save, table
from eval import score_pairs
from families import GPTConfig
from model import GPT
from tasks.storycloze import spoken
from tokenize_speech import deduplicate
from unit_cache import UnitCache, encoded, load, load_encoder
from vocab import Vocab

SHAPE = dict(vocab_size=2552, n_layer=6, n_head=4, n_kv_head=2, n_embd=256, head_dim=64, n_ffn=704)
BATCH = 8 # pairs, of the papers' scheme

def write_stories(folder, pairs):
    """2 * pairs waves, numbered as spoken StoryCloze."""
    rng = np.random.default_rng(0)
    for i in range(2 * pairs):
        t = np.arange(int(16000 * rng.uniform(4, 10))) / 16000
        pitch = np.repeat(rng.uniform(80, 400, len(t) // 1600 + 1), 1600)[:len(t)]
        wave = sum(np.sin(2 * np.pi * k * pitch * t) / k for k in (1, 2, 3)) * 0.1 + 0.03 * rng.standard_normal(len(t))
        soundfile.write(folder / f'{i}_story.wav', wave.astype(np.float32), 16000)

@torch.inference_mode()
def padded_scores(model, documents):
    """The mean log p a token of each document, BATCH of them at a time, padded at the right."""
    scores = []
    for at in range(0, len(documents), BATCH):
        batch = documents[at:at + BATCH]
        ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, on, document in zip(ids, mask, batch):
            row[:len(document)], on[:len(document)] = torch.from_numpy(document), True
        logp = model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0] * mask[:, 1:]
        scores += (logp.sum(1) / mask[:, 1:].sum(1)).tolist()
    return scores

def main(dry):
    from transformers import AutoModelForCausalLM
    pairs, repeats = (4, 1) if dry else (16, 3)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        (tmp / 'ssc').mkdir()
        write_stories(tmp / 'ssc', pairs)
        encoder = load_encoder(str(ROOT / 'tiny' / 'hubert'), 4, None, 'cpu')
        vocab = Vocab('joint', SHAPE['vocab_size'] - encoder.n_units - 2, encoder.n_units, 'none', encoder.hash)
        torch.manual_seed(0)
        model = GPT(GPTConfig(**SHAPE)).eval()
        model.save_pretrained(tmp / 'model')
        theirs = AutoModelForCausalLM.from_pretrained(tmp / 'model', dtype=torch.float32).eval()
        items, tokenizer = list(spoken(tmp / 'ssc')), type('Tokenizer', (), {'first': []})
        caches = iter(range(10 ** 6))
        def cache(name):
            return UnitCache(tmp / name, str(ROOT / 'tiny' / 'hubert'), 4, None, encoder.hash)
        def ours(items):
            return score_pairs(model, vocab, tokenizer, items, 'S', 4096)[1]
        def papers(units):
            documents = [[vocab.unit_to_token(u) for u in side] for side in units]
            return [padded_scores(theirs, side) for side in documents]
        def anew(): # each wave by itself, in order of the batches
            waves = lambda side: (load(item[side]['joined'])[0] for item in items)
            return [[deduplicate(encoder.encode([wave])[0])[0] for wave in waves(side)] for side in ('right', 'wrong')]
        known = encoded(items, cache('known'))[0]
        units = [[item[side]['joined'][0] for item in known] for side in ('right', 'wrong')]
        one, other = ours(known), papers(units)
        worst = max(abs(x[f'{side}_mean'] - y) for side, theirs_ in zip(('right', 'wrong'), other)
                    for x, y in zip(one, theirs_))
        mean = np.mean([len(u) for side in units for u in side])
        print(f"{pairs} pairs, {mean:.0f} units a story; scores differ by {worst:.1e} at most")
        stages = {'likelihood': (lambda: papers(units), lambda: ours(known)),
                  'first run': (lambda: papers(anew()), lambda: ours(encoded(items, cache(f'new{next(caches)}'))[0])),
                  'second run': (lambda: papers(anew()), lambda: ours(encoded(items, cache('known'))[0]))}
        def rows():
            for name, (a, b) in stages.items():
                times = measure({'papers': a, 'ours': b}, repeats, 'cpu')
                rate = {who: 2 * pairs / times[who]['ms'] * 1e3 for who in times}
                yield {'stage': name, 'papers, items/s': rate['papers'], 'ours, items/s': rate['ours'],
                       'times': rate['ours'] / rate['papers'], 'ms': times}
        found = table(rows(), 'stage', 'papers, items/s', 'ours, items/s', 'times')
    save('eval', dry, pairs=pairs, worst_difference=worst, rows=found)

if __name__ == '__main__':
    main(asked_dry(__doc__) if sys.argv[1:] else False)
