"""
StoryCloze across modalities on a CPU, sSC and tSC in all four directions (SIMS Table 2), beside the papers' scheme in one run.

    python bench/eval.py [--dry]      --dry: a few items, nothing written

The papers' scheme (slamkit's cross-modal metric) runs once for each set and direction: every wave is read and encoded
anew, alone, a context once for the right ending and once for the wrong one; units become strings and, with the text,
ids by the text tokenizer with the units added; 8 right sides are padded to the longest, then their wrong sides;
transformers' model gives all logits. Ours is eval.py: each wave encoded once (speech/unit_cache.py), each document scored once,
each beginning that documents share computed once, rows without padding. Rows, in items a second (an item is a pair of a
set in one direction):

    S, S->T, T->S, T    from units and texts to scores
    likelihood          all four
    first run           from files to scores, nothing in the cache
    second run          the same again

`tokens` are those that each computes, the papers' padding too; `floor`: seconds that the products of
ours would take at the rate of one large product here, over the seconds that all took.

The items are the embedded ones, spoken by the embedded vocoder from their units (its sound does not matter here);
the model has tiny's shape and vocabulary and random weights, in float32; the encoder is tiny/hubert. Scores are compared too.

Writes bench/results/eval.json.
"""
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch

from bench.common import ROOT, asked_dry, measure, save, table
from eval import SIDES, encoded, score_pairs
from evaluation.likelihood import pack_groups, shared_prefixes
from hub.families import GPTConfig
from hub.tokenizer import TextTokenizer
from model import GPT
from speech.unit_cache import UnitCache, load, load_encoder
from speech.units import deduplicate
from speech.vocoder import load_vocoder
from tasks.multispeaker import PARTS, cross_modal
from tiny.unpack import read_packed
from vocab import DIRECTIONS, Vocab, document

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SHAPE = dict(n_layer=6, n_head=6, n_kv_head=2, n_embd=192, head_dim=32, n_ffn=512) # config/tiny_text.py
BATCH, ROW = 8, 2048 # pairs of the papers' scheme; tokens of a row of ours
ENDINGS = {'sSC': 'wrong', 'tSC': 'topic'} # which of an item's is the wrong one

def write_items(folder, n):
    """SET/NAME_{mutual,correct,incorrect}.{wav,txt} of the first n embedded items."""
    docs = {doc['id']: doc for doc in read_packed(ROOT / 'tiny' / 'items.npz.xz')[0]}
    vocoder = load_vocoder(str(ROOT / 'tiny' / 'vocoder'))
    for task, wrong in ENDINGS.items():
        (folder / task).mkdir(parents=True)
        for i in range(n):
            for part, name in zip(PARTS, ('context', 'right', wrong)):
                doc, path = docs[f'm{i:05d}/{name}'], folder / task / f'{i}_{part}'
                path.with_suffix('.txt').write_text(''.join(doc['words']).strip())
                there = folder / 'sSC' / f'{i}_{part}.wav' # the other set has the same context and right ending
                wave = load(there)[0] if there.is_file() and name != wrong else vocoder.speak([doc['units']], [doc['runs']])[0]
                soundfile.write(path.with_suffix('.wav'), wave, 16000)

# ----------------------------------------------------------------------------------------------------------------
# the papers' scheme

def as_string(direction, candidate):
    """A candidate with units (unit_cache.encoded) in one direction, as slamkit writes it but with a blank between texts."""
    said = lambda units: ''.join(f'<Un{u}>' for u in units)
    (prompt, prompt_units), (ending, ending_units) = candidate['prompt'], candidate['ending']
    return {'S': lambda: '<speech>' + said(candidate['joined'][0]), 'T': lambda: f'<text>{prompt} {ending}',
            'S->T': lambda: f'<speech>{said(prompt_units)}<text> {ending}',
            'T->S': lambda: f'<text>{prompt}<speech>{said(ending_units)}'}[direction]()

@torch.inference_mode()
def padded_scores(model, tokenizer, strings):
    """The mean log p a token of each string, BATCH of them at a time, padded at the right."""
    scores = []
    for at in range(0, len(strings), BATCH):
        batch = tokenizer(strings[at:at + BATCH], return_tensors='pt', padding=True)
        ids, mask = batch['input_ids'], batch['attention_mask'][:, 1:]
        logits = model(ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction='none')
        scores += (-(losses.view(mask.shape) * mask).sum(1) / mask.sum(1)).tolist()
    return scores

def anew(encoder, direction, item, side):
    """What `encoded` gives of a side of an item, of the waves that the direction needs: read and encoded alone."""
    units = lambda audio: deduplicate(encoder.encode([load(audio)[0]])[0])[0]
    (prompt, prompt_wave), (ending, ending_wave) = item[side]['prompt'], item[side]['ending']
    return {'prompt': (prompt, units(prompt_wave) if direction == 'S->T' else None),
            'ending': (ending, units(ending_wave) if direction == 'T->S' else None),
            'joined': (units(item[side]['joined']),) if direction == 'S' else None}

# ----------------------------------------------------------------------------------------------------------------

def counts(pairs_of, items):
    """(tokens of the papers' scheme, of ours) of all directions; pairs_of(direction, items): each side's documents."""
    padded = ours = 0
    for direction in DIRECTIONS['joint']:
        for task in ENDINGS:
            for side in pairs_of(direction, [item for item in items if task in item['rows']]):
                padded += sum(len(side[at:at + BATCH]) * max(map(len, side[at:at + BATCH])) for at in range(0, len(side), BATCH))
        unique = [np.array(ids) for ids in sorted({tuple(ids) for side in pairs_of(direction, items) for ids in side})]
        ours += len(pack_groups(shared_prefixes(unique, ROW), unique)[0])
    return padded, ours

def main(dry):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    n, repeats = (2, 1) if dry else (12, 3)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        write_items(tmp / 'items', n)
        encoder = load_encoder(str(ROOT / 'tiny' / 'hubert'), 4, None, 'cpu')
        ours_tokenizer = TextTokenizer(ROOT / 'tiny' / 'tokenizer')
        vocab = Vocab('joint', ours_tokenizer.size, encoder.n_units, ours_tokenizer.hash, encoder.hash)
        torch.manual_seed(0)
        model = GPT(GPTConfig(vocab_size=vocab.size, **SHAPE)).eval()
        model.save_pretrained(tmp / 'model', vocab, ROOT / 'tiny' / 'tokenizer')
        theirs = AutoModelForCausalLM.from_pretrained(tmp / 'model', dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(tmp / 'model', pad_token='<|endoftext|>')
        items, caches = list(cross_modal(tmp / 'items')), iter(range(10 ** 6))
        def cache(name):
            return lambda: UnitCache(tmp / name, str(ROOT / 'tiny' / 'hubert'), 4, None, vocab)
        def ours(items, directions=DIRECTIONS['joint']):
            return [score_pairs(model, vocab, ours_tokenizer, items, direction, ROW, separate=True)[1] for direction in directions]
        def papers(units_of, directions=DIRECTIONS['joint']):
            return [[padded_scores(theirs, tokenizer, [as_string(direction, units_of(direction, item, side)) for item in of_task])
                     for side in SIDES] for direction in directions for task in ENDINGS
                    for of_task in [[item for item in items if task in item['rows']]]]
        files = lambda direction, item, side: anew(encoder, direction, item, side)
        known = encoded(items, cache('known'))[0]
        of = {item['id']: item for item in known}
        there = lambda direction, item, side: of[item['id']][side]
        pairs_of = lambda direction, items: [[document(vocab, ours_tokenizer, direction, of[item['id']][side], separate=True)[0]
                                              for item in items] for side in SIDES]
        a = [x[f'{side}_mean'] for lines in ours(known) for task in ENDINGS for side in SIDES
             for x in lines if task in x['rows']]
        worst = max(abs(x - y) for x, y in zip(a, (x for sides in papers(there) for side in sides for x in side), strict=True))
        padded, computed = counts(pairs_of, items)
        print(f"{n} items of 2 sets in 4 directions; {padded} and {computed} tokens; scores differ by {worst:.1e} at most")
        stages = {direction: (2 * n, lambda d=direction: papers(there, [d]), lambda d=direction: ours(known, [d]))
                  for direction in DIRECTIONS['joint']}
        stages |= {'likelihood': (8 * n, lambda: papers(there), lambda: ours(known)),
                   'first run': (8 * n, lambda: papers(files), lambda: ours(encoded(items, cache(f'new{next(caches)}'))[0])),
                   'second run': (8 * n, lambda: papers(files), lambda: ours(encoded(items, cache('known'))[0]))}
        def rows():
            for name, (number, a, b) in stages.items():
                times = measure({'papers': a, 'ours': b}, repeats, 'cpu')
                rate = {who: number / times[who]['ms'] * 1e3 for who in times}
                yield {'stage': name, 'papers, items/s': rate['papers'], 'ours, items/s': rate['ours'],
                       'times': rate['ours'] / rate['papers'], 'ms': times}
        found = table(rows(), 'stage', 'papers, items/s', 'ours, items/s', 'times')
        flops = computed * model.flops_per_token(0) / 3 # the forward's products, without attention
        x, w = torch.randn(ROW, 1024), torch.randn(1024, 1024)
        gflops = 2 * x.numel() * 1024 / measure({'product': lambda: x @ w}, 20, 'cpu')['product']['ms'] / 1e6
        floor = flops / gflops / 1e6 / next(row for row in found if row['stage'] == 'likelihood')['ms']['ours']['ms']
        print(f"a large product: {gflops:.0f} GFLOP/s; the products of ours at that rate: {floor:.2f} of its likelihood's time")
    save('eval', dry, items=n, worst_difference=worst, tokens={'papers': padded, 'ours': computed}, gflops=gflops, floor=floor,
         rows=found)

if __name__ == '__main__':
    main(asked_dry(__doc__) if sys.argv[1:] else False)
