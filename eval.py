"""
Measure models: likelihood tasks and held-out loss. The numbers go to MODEL/eval.json and, as a table, to the terminal.

    python eval.py --model=out/tiny
    python eval.py --model=out/tiny,out/tiny-speech --out=out/eval.json     side by side, all of them in one file too

Tasks (tasks/tiny.py), in every direction that the model's vocabulary can read, as documents of ids:
    S      units of the whole wave                           (joint: no separator, as in the speech-only training source;
    S->T   <speech> units of the context <text> ending        speech: bos units)
    T->S   <text> context <speech> units of the ending
    T      text                                               (as in the text-only training source)
An item counts 1 when the right document's log-likelihood is above the wrong one's, 1/2 when equal, else 0. `value` uses
the mean over the document's predicted tokens (SIMS, Slam); `sum` and `ending` (mean over the ending's tokens) stand
beside it. stderr is the standard error of the mean over items.

Loss: nats a token on CORPUS/val/SOURCE, for all tokens and per modality, each document whole; stderr over documents.
"""
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import tasks.tiny
from configurator import Refused, atomically, progress, record, run, sha256, write_json
from data import Shards
from model import GPT
from tokenize_speech import Units
from vocab import OTHER, TEXT, UNIT, TextTokenizer, Vocab


@dataclass(frozen=True)
class Config:
    model: str = 'out/tiny' # folders that train.py wrote, separated by commas
    data: str = 'out/tokens/stories,out/tokens/talk' # corpora whose val/ shards the loss is taken on; '' for none
    items: str = 'out/data/items' # units folder of the tasks' items; '' for none
    out: str | None = None # one more file with the results of all models; None: only MODEL/eval.json of each
    max_items: int | None = None # the first so many of each voice; None: all
    max_documents: int = 2000 # of each val source
    row_tokens: int = 4096 # ids in a forward pass
    device: str = 'auto' # cpu, cuda; auto: cuda where there is one

    def __post_init__(self):
        if not (self.data or self.items):
            raise Refused("data and items are both empty: nothing to measure")

SCORE = 'mean log-likelihood a token; ties count half' # of the value column
MODALITIES = {TEXT: 'text', UNIT: 'units', OTHER: 'separators'}
DIRECTIONS = {'joint': ('S', 'S->T', 'T->S', 'T'), 'speech': ('S',), 'text': ('T',)}

# ----------------------------------------------------------------------------------------------------------------
# likelihoods

@torch.inference_mode()
def document_losses(model, documents, row_tokens=4096):
    """For each array of n ids: float32 (n - 1,), -log p of ids 1..n-1.

    Documents of like length share a forward pass; equal ones (an item's right ending stands in two tasks) are scored once.
    """
    first = {}
    same_as = [first.setdefault(document.tobytes(), i) for i, document in enumerate(documents)]
    order = sorted(first.values(), key=lambda i: len(documents[i]))
    losses, row = {}, []
    device = model.embed.device

    def flush():
        lengths = np.array([len(documents[i]) for i in row])
        starts = np.cumsum(lengths) - lengths
        tokens = np.concatenate([documents[i] for i in row]).astype(np.int64)
        targets = np.append(tokens[1:], -100) # the loss where a document meets the next is not taken below
        as_row = lambda a: torch.from_numpy(a)[None].to(device)
        out = model.losses(as_row(tokens), as_row(np.repeat(starts, lengths)), as_row(targets)).cpu().numpy()
        for i, start, n in zip(row, starts, lengths):
            losses[i] = out[start:start + n - 1]
        row.clear()

    for i in progress(order, desc='score', leave=False):
        if row and sum(len(documents[j]) for j in row) + len(documents[i]) > row_tokens:
            flush()
        row.append(i)
    if row:
        flush()
    return [losses[i] for i in same_as]

def document(vocab, tokenizer, direction, candidate):
    """A candidate's ids in one direction, and where its ending begins among them."""
    (prompt, prompt_units), (ending, ending_units) = candidate['prompt'], candidate['ending']
    text = lambda s: tokenizer.encode(s)
    if direction == 'S':
        units, begin = candidate['joined']
        head = [vocab.bos] if vocab.kind == 'speech' else tokenizer.first
        return np.array([*head, *vocab.unit_to_token(units)]), len(head) + begin
    if direction == 'T':
        parts = text(prompt), text(' ' + ending)
    elif direction == 'S->T':
        parts = [vocab.speech, *vocab.unit_to_token(prompt_units)], [vocab.text, *text(' ' + ending)]
    else:
        parts = [vocab.text, *text(prompt)], [vocab.speech, *vocab.unit_to_token(ending_units)]
    head = [*tokenizer.first, *parts[0]]
    return np.array([*head, *parts[1]]), len(head)

def mean_and_stderr(values):
    """(mean, standard error of the mean) of a sequence; the error is None for fewer than two values."""
    values = np.asarray(values, dtype=np.float64)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None

def wins(right, wrong):
    """1 where right > wrong, 1/2 where equal, 0 elsewhere."""
    right, wrong = np.asarray(right), np.asarray(wrong)
    return (right > wrong) + 0.5 * (right == wrong)

def score_pairs(model, vocab, tokenizer, pairs, direction, row_tokens):
    """{(task, voice): row of eval.json} over pairs in one direction, and one line a pair for the samples file."""
    documents, begins = zip(*(document(vocab, tokenizer, direction, pair[side]) for pair in pairs for side in ('right', 'wrong')))
    losses = document_losses(model, documents, row_tokens)
    scores = {'mean': [-x.mean() for x in losses], 'sum': [-x.sum() for x in losses],
              'ending': [-x[max(begin - 1, 0):].mean() for x, begin in zip(losses, begins)]}
    won = {name: wins(s[::2], s[1::2]) for name, s in scores.items()}
    samples = [{'id': pair['id'], 'task': pair['task'], 'direction': direction,
                **{f'{side}_{name}': float(s[2 * i + k]) for name, s in scores.items() for k, side in enumerate(('right', 'wrong'))}}
               for i, pair in enumerate(pairs)]
    rows = {}
    for key in sorted({(pair['task'], pair['voice']) for pair in pairs}):
        of = np.array([(pair['task'], pair['voice']) == key for pair in pairs])
        value, stderr = mean_and_stderr(won['mean'][of])
        rows[key] = {'value': value, 'stderr': stderr, 'n': int(of.sum()),
                     **{name: mean_and_stderr(won[name][of])[0] for name in ('sum', 'ending')}}
    return rows, samples

def held_out_loss(model, vocab, corpus, row_tokens, max_documents):
    """{modality or 'all': row} of the mean loss a token over the documents of a Shards."""
    documents = [corpus.read(i) for i in range(min(corpus.documents, max_documents))]
    documents = [d for d in documents if len(d) > 1]
    losses = document_losses(model, documents, row_tokens)
    kinds = [vocab.modality(d[1:]) for d in documents]
    rows = {}
    for kind, name in {None: 'all', **MODALITIES}.items():
        of = [x[k == kind] if kind is not None else x for x, k in zip(losses, kinds)]
        counts, sums = np.array([len(x) for x in of]), np.array([x.sum() for x in of], dtype=np.float64)
        if not counts.sum():
            continue
        value = sums.sum() / counts.sum()
        n = int((counts > 0).sum()) # ratio of sums: its error by the spread of the documents' residuals
        stderr = float(math.sqrt(((sums - value * counts) ** 2).sum() * n / max(n - 1, 1)) / counts.sum())
        rows[name] = {'value': float(value), 'stderr': stderr, 'n': n, 'tokens': int(counts.sum())}
    return rows

# ----------------------------------------------------------------------------------------------------------------

def table(results):
    """{model: {row: ...}} as lines of text: tasks in percent, losses in nats, +- standard error, a column a model."""
    def cell(name, row):
        if row is None:
            return f"{'':16}"
        scale, digits = (100, 1) if name.startswith('tiny/') else (1, 3)
        error = '' if row['stderr'] is None else f"+-{scale * row['stderr']:.{digits}f}"
        return f"{scale * row['value']:8.{digits}f} {error:7}"
    names = list(dict.fromkeys(name for rows in results.values() for name in rows))
    lines = [' '.join([f"{'':34} {'n':>5}", *(f"{Path(model).name:>16}" for model in results)])]
    for name in names:
        n = next(rows[name]['n'] for rows in results.values() if name in rows)
        lines.append(' '.join([f"{name:34} {n:5d}", *(cell(name, rows.get(name)) for rows in results.values())]))
    return '\n'.join(lines)

def measure(cfg, folder, device):
    """All rows of one model, and the lines of its samples file."""
    vocab, model = Vocab.load(folder), GPT.from_pretrained(folder, device=device).eval()
    tokenizer = None if vocab.kind == 'speech' else TextTokenizer(folder)
    results, samples = {}, []
    for corpus in filter(None, cfg.data.split(',')):
        for source in sorted(p.parent.name for p in Path(corpus).glob('val/*/index.json')):
            shards = Shards(Path(corpus) / 'val' / source)
            if vocab.accepts(shards.vocab):
                rows = held_out_loss(model, vocab, shards, cfg.row_tokens, cfg.max_documents)
                results |= {f'loss/{Path(corpus).name}/{source}/{name}': row for name, row in rows.items()}
    if cfg.data and not results:
        raise Refused(f"{cfg.data}: no val/SOURCE shards that a {vocab.kind} model reads; interleave.py writes them")
    if cfg.items:
        corpus = Units(cfg.items)
        if vocab.units and corpus.info['units_hash'] != vocab.units:
            raise Refused(f"{cfg.items}: units {corpus.info['units_hash']}, the model was trained on {vocab.units}: encode "
                          "the items with the model's encoder")
        pairs = [p for p in tasks.tiny.pairs(corpus) if cfg.max_items is None or int(p['id'][1:]) < cfg.max_items]
        for direction in DIRECTIONS[vocab.kind]:
            rows, lines = score_pairs(model, vocab, tokenizer, pairs, direction, cfg.row_tokens)
            results |= {f'tiny/{voice}/{task}/{direction}': row for (task, voice), row in rows.items()}
            samples += lines
    return results, samples

def main(cfg):
    device = ('cuda' if torch.cuda.is_available() else 'cpu') if cfg.device == 'auto' else cfg.device
    made, measured = record(cfg), {folder: measure(cfg, folder, device) for folder in cfg.model.split(',')}
    for folder, (results, samples) in measured.items():
        with atomically(Path(folder) / 'samples_tiny.jsonl') as tmp:
            tmp.write_text(''.join(json.dumps(line) + '\n' for line in samples))
        weights = {p.name: sha256(p) for p in sorted(Path(folder).glob('*.safetensors'))}
        write_json(Path(folder) / 'eval.json', {'results': results, 'score': SCORE, 'model': weights, **made})
    results = {folder: rows for folder, (rows, _) in measured.items()}
    if cfg.out:
        write_json(cfg.out, {'results': results, 'score': SCORE, **made})
    print(table(results))
    print('; '.join(f"{folder}/eval.json" for folder in results) + (f"; {cfg.out}" if cfg.out else ''))

if __name__ == '__main__':
    run(main, Config)
