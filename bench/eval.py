"""
StoryCloze across modalities on a CPU, beside the papers' scheme in the same run: sSC and tSC in all
four directions (SIMS Table 2).

    python bench/eval.py [--dry]      --dry: a few items, nothing written

The papers' scheme (slamkit's cross-modal metric) runs once for each set and direction. It reads and
encodes every wave anew and alone, and a context twice: for the right and for the wrong ending.
Units become strings and, with the text, ids by a text tokenizer that has the units as added tokens.
8 right sides are padded to the longest, then their wrong sides; transformers' model gives all
logits. Ours is eval.py: each wave is encoded once (speech/unit_cache.py), each document is scored
once, each prefix that documents share is computed once, and rows are not padded. The rows, in items
a second (an item is a pair of a set in one direction):

    S, S->T, T->S, T    from units and texts to scores
    likelihood          all four
    first run           from files to scores, with an empty cache
    second run          the same again

`tokens` are those that each side computes, with the padding of the papers' scheme. `floor` is the
time that the matrix products of ours would take at the speed of one large product on this machine,
as a share of the time of `likelihood`.

The items are the embedded ones, spoken by the embedded vocoder from their units; the quality of the
sound does not matter here. The model has the shape and vocabulary of tiny and random weights, in
float32; the encoder is tiny/hubert. The scores of both sides are compared too.

Writes bench/results/eval.json.
"""
import sys
import tempfile
from functools import partial
from itertools import count, product, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import ROOT, measure, parse_dry, save, table
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

SHAPE = dict(n_layer=6, n_head=6, n_kv_head=2, n_embd=192, head_dim=32, n_ffn=512) # config/tiny_text.py
BATCH = 8 # pairs of the papers' scheme
ROW = 2048 # tokens of a row of ours
ENDINGS = {'sSC': 'wrong', 'tSC': 'topic'} # which ending of an item is the wrong one
HUBERT = str(ROOT / 'tiny' / 'hubert')
TOKENIZER = ROOT / 'tiny' / 'tokenizer'

def write_items(folder, n):
    """Writes SET/NAME_{mutual,correct,incorrect}.{wav,txt} of the first n embedded items."""
    docs = {doc['id']: doc for doc in read_packed(ROOT / 'tiny' / 'items.npz.xz')[0]}
    vocoder = load_vocoder(str(ROOT / 'tiny' / 'vocoder'))
    for task, wrong in ENDINGS.items():
        (folder / task).mkdir(parents=True)
        for i in range(n):
            for part, name in zip(PARTS, ('context', 'right', wrong)):
                doc = docs[f'm{i:05d}/{name}']
                path = folder / task / f'{i}_{part}.wav'
                path.with_suffix('.txt').write_text(''.join(doc['words']).strip())
                # Both sets have the same context and right ending, which are spoken only once.
                spoken = folder / 'sSC' / path.name
                if spoken.is_file() and name != wrong:
                    wave, _ = load(spoken)
                else:
                    wave = vocoder.speak([doc['units']], [doc['runs']])[0]
                soundfile.write(path, wave, 16000)

def items_of(items, task):
    """The items that belong to a set."""
    return [item for item in items if task in item['rows']]

# --------------------------------------------------------------------------------------------------
# the papers' scheme

def as_string(direction, candidate):
    """A candidate with units as slamkit writes it."""
    def string_of(units):
        return ''.join(f'<Un{u}>' for u in units)
    prompt, prompt_units = candidate['prompt']
    ending, ending_units = candidate['ending']
    if direction == 'S':
        return '<speech>' + string_of(candidate['joined'][0])
    if direction == 'T':
        return f'<text>{prompt}{ending}'
    if direction == 'S->T':
        return f'<speech>{string_of(prompt_units)}<text>{ending}'
    return f'<text>{prompt}<speech>{string_of(ending_units)}'

@torch.inference_mode()
def padded_scores(model, tokenizer, strings):
    """The mean log p per token of each string, for BATCH of them at a time, padded at the right."""
    scores = []
    for first in range(0, len(strings), BATCH):
        batch = tokenizer(strings[first:first + BATCH], return_tensors='pt', padding=True)
        ids = batch['input_ids']
        mask = batch['attention_mask'][:, 1:]
        logits = model(ids).logits[:, :-1].flatten(0, 1)
        losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction='none')
        means = -(losses.view(mask.shape) * mask).sum(1) / mask.sum(1)
        scores += means.tolist()
    return scores

def encode_alone(encoder, direction, candidate):
    """A candidate with audio -> with units, of the waves that the direction needs."""
    def units_of(audio, needed):
        if direction != needed:
            return None
        wave, _ = load(audio)
        return deduplicate(encoder.encode([wave])[0])[0]
    prompt, prompt_wave = candidate['prompt']
    ending, ending_wave = candidate['ending']
    return {'prompt': (prompt, units_of(prompt_wave, 'S->T')),
            'ending': (ending, units_of(ending_wave, 'T->S')),
            'joined': (units_of(candidate['joined'], 'S'),)}

class PapersScheme:
    """The papers' scheme, with an encoder and the transformers model and tokenizer of a folder."""
    def __init__(self, folder, encoder):
        from transformers import AutoModelForCausalLM, AutoTokenizer
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(
            folder, pad_token='<|endoftext|>', trust_remote_code=False)
        self.encoder = encoder

    def scores(self, items, directions=DIRECTIONS['joint'], from_audio=False):
        """Mean log p per token, by direction, set, side and item, in one list.

        items: with units, as `encoded` of eval.py gives them; or with audio, which is encoded here.
        """
        scores = []
        for direction, task, side in product(directions, ENDINGS, SIDES):
            strings = []
            for item in items_of(items, task):
                candidate = item[side]
                if from_audio:
                    candidate = encode_alone(self.encoder, direction, candidate)
                strings.append(as_string(direction, candidate))
            scores += padded_scores(self.model, self.tokenizer, strings)
        return scores

# --------------------------------------------------------------------------------------------------
# eval.py

class NanoSLMScheme(NamedTuple):
    """The scheme of eval.py, with our model."""
    model: GPT
    vocab: Vocab
    tokenizer: TextTokenizer

    def samples(self, items, directions=DIRECTIONS['joint']):
        """For each direction, the samples of score_pairs of items with units."""
        samples = []
        for direction in directions:
            samples.append(score_pairs(*self, items, direction, ROW, 'slamkit')[1])
        return samples

    def scores(self, items):
        """The scores in the order of PapersScheme.scores."""
        scores = []
        for samples in self.samples(items):
            for task, side in product(ENDINGS, SIDES):
                scores += [sample[f'{side}_mean'] for sample in items_of(samples, task)]
        return scores

    def ids_of(self, items, direction, side):
        """The ids of one side of each item, a list."""
        return [document(self.vocab, self.tokenizer, direction, item[side], 'slamkit')[0]
                for item in items]

    def token_counts(self, items):
        """How many tokens (the papers' scheme, eval.py) compute for all directions."""
        padded = packed = 0
        for direction in DIRECTIONS['joint']:
            unique = set()
            for task, side in product(ENDINGS, SIDES):
                ids = self.ids_of(items_of(items, task), direction, side)
                unique.update(map(tuple, ids))
                for first in range(0, len(ids), BATCH):
                    lengths = [len(row) for row in ids[first:first + BATCH]]
                    padded += len(lengths) * max(lengths)
            documents = [np.array(ids) for ids in sorted(unique)]
            packed += len(pack_groups(shared_prefixes(documents, ROW), documents)[0])
        return padded, packed

# --------------------------------------------------------------------------------------------------

def stage_rows(papers, nanoslm, items, known, cache, repeats):
    """Yields the row of each stage. items: with audio; known: with units; cache(name): a UnitCache."""
    def run_with_cache(names):
        nanoslm.samples(encoded(items, partial(cache, next(names)))[0])

    stages = {direction: (partial(papers.scores, known, [direction]),
                          partial(nanoslm.samples, known, [direction]))
              for direction in DIRECTIONS['joint']}
    from_audio = partial(papers.scores, items, from_audio=True)
    stages |= {'likelihood': (partial(papers.scores, known), partial(nanoslm.samples, known)),
               'first run': (from_audio, partial(run_with_cache, map(str, count()))),
               'second run': (from_audio, partial(run_with_cache, repeat('known')))}
    for name, (run_papers, run_nanoslm) in stages.items():
        n_directions = 1 if name in DIRECTIONS['joint'] else 4
        n_pairs = 2 * len(items) * n_directions
        times = measure({'papers': run_papers, 'ours': run_nanoslm}, repeats, 'cpu')
        papers_rate, our_rate = (n_pairs / row['ms'] * 1e3 for row in times.values())
        yield {'stage': name,
               'papers, items/s': papers_rate,
               'ours, items/s': our_rate,
               'times': our_rate / papers_rate,
               'ms': times}

def main(dry):
    n, repeats = (2, 1) if dry else (12, 3)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        write_items(tmp / 'items', n)
        encoder = load_encoder(HUBERT, 4, None, 'cpu')
        tokenizer = TextTokenizer(TOKENIZER)
        vocab = Vocab('joint', tokenizer.size, encoder.n_units, tokenizer.hash, encoder.hash)
        torch.manual_seed(0)
        model = GPT(GPTConfig(vocab_size=vocab.size, **SHAPE)).eval()
        model.save_pretrained(tmp / 'model', vocab, TOKENIZER)
        papers = PapersScheme(tmp / 'model', encoder)
        nanoslm = NanoSLMScheme(model, vocab, tokenizer)

        def cache(name):
            return UnitCache(tmp / name, HUBERT, 4, None, vocab)

        items = list(cross_modal(tmp / 'items'))
        known = encoded(items, partial(cache, 'known'))[0]
        pairs = zip(nanoslm.scores(known), papers.scores(known), strict=True)
        worst = max(abs(a - b) for a, b in pairs)
        padded, computed = nanoslm.token_counts(known)
        print(f"{n} items of 2 sets in 4 directions; {padded} and {computed} tokens; "
              f"scores differ by {worst:.1e} at most")
        rows = table(stage_rows(papers, nanoslm, items, known, cache, repeats),
                     'stage', 'papers, items/s', 'ours, items/s', 'times')
    x = torch.randn(ROW, 1024)
    w = torch.randn(1024, 1024)
    product_ms = measure({'product': lambda: x @ w}, 20, 'cpu')['product']['ms']
    gflops = 2 * x.numel() * 1024 / product_ms / 1e6
    flops = computed * model.flops_per_token(0) / 3 # of the forward's products, without attention
    likelihood = next(row for row in rows if row['stage'] == 'likelihood')
    floor = flops / gflops / 1e6 / likelihood['ms']['ours']['ms']
    print(f"a large product: {gflops:.0f} GFLOP/s; "
          f"the products of ours at that rate: {floor:.2f} of its likelihood's time")
    save('eval', dry, items=n, worst_difference=worst, tokens={'papers': padded, 'ours': computed},
         gflops=gflops, floor=floor, rows=rows)

if __name__ == '__main__':
    main(parse_dry(__doc__) if sys.argv[1:] else False)
