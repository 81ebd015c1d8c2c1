"""
Measure models: likelihood tasks and held-out loss. The numbers go to MODEL/eval.json and, as a table, to the terminal.

    python eval.py --model=out/tiny                                          tiny's items, and held-out loss
    python eval.py --model=out/tiny,out/tiny-speech --out=out/eval.json      side by side, all of them in one file too
    python eval.py --model=out/x --tasks=all --root=bench --data=            each task whose data is at bench/TASK
    python eval.py --model=out/x --tasks=sblimp,swuggy --where=sblimp=/d/sLM21,swuggy=/d/sLM21 --data=

Tasks (tasks/*.py) give pairs of a right and a wrong candidate, of which each is measured in every direction that it has
the parts for and that the model's vocabulary can read, as documents of ids:
    S      units of the whole wave                           (joint: no separator, as in the speech-only training source;
    S->T   <speech> units of the context <text> ending        speech: bos units bos, whose end counts, as in slamkit)
    T->S   <text> context <speech> units of the ending
    T      text                                               (as in the text-only training source)
--lead=separator puts <speech> or <text> before S and T of a joint model, as slamkit's cross-modal S->S and T->T do (which
also join texts without the blank that is between words here and in training); --lead=bos puts the model's bos before documents whose tokenizer puts nothing.

An item counts 1 when the right document's log-likelihood is above the wrong one's, 1/2 when equal, else 0. `value` uses
the mean over the document's predicted tokens (SIMS, Slam); `sum` and `ending` (mean over the ending's tokens, where the
task says where it begins) stand beside it. How items are averaged, and stderr: evaluation/scores.py. An item with an empty document
(audio shorter than one unit) is `invalid`: counted and listed, never scored. Items longer than the model's positions
are refused, not cut.

Loss: nats a token on CORPUS/val/SOURCE, for all tokens and per modality, documents whole; stderr over documents.
bits_per_second = loss of units / ln 2 * units a second of the corpus' speech: comparable between encoders.
"""
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import tasks.blimp
import tasks.multispeaker
import tasks.salmon
import tasks.storycloze
import tasks.tiny
import tasks.zerospeech
from configurator import Refused, pick_device, run
from data import Shards, check_names
from evaluation.likelihood import document_losses, load
from evaluation.results import folder_of, store, table
from evaluation.scores import accuracy, wins
from files import atomically, record, write_json
from speech.audio import RATE
from speech.unit_cache import UnitCache
from speech.units import Units
from vocab import DIRECTIONS, MODALITIES, directions_of, document


@dataclass(frozen=True)
class Config:
    model: str = 'out/tiny' # folders that train.py wrote, or TextLMs of the hub, separated by commas
    tasks: str = 'tiny' # names of TASKS, separated by commas; all: each whose data is there
    root: str = 'out/bench' # ROOT/TASK is where a task's data lies, as unpacked
    where: str = '' # TASK=PATH, separated by commas: for data that lies elsewhere
    data: str = 'out/tokens/stories,out/tokens/talk' # corpora whose val/ shards the loss is taken on; '' for none
    items: str = 'out/data/items' # units folder of the task tiny; '' for none
    out: str | None = None # one more file with the results of all models; None: only MODEL/eval.json of each
    lead: str = 'none' # none, separator, bos: what stands before a document, see above
    directions: tuple = () # of those above; (): all that the model reads and the items have parts for
    max_items: int | None = None # the first so many of each voice, part or type; None: all
    max_documents: int = 2000 # of each val source
    row_tokens: int = 2048 # ids in a forward pass; on a CPU more is slower
    encoder: str = 'tiny/hubert' # of the model's units, for tasks whose audio is not in the cache
    layer: int = 4
    kmeans: str | None = None # None: kmeans.safetensors in the encoder's folder
    cache: str = 'out/cache' # units of audio that was encoded once
    device: str = 'auto' # cpu, cuda; auto: cuda where there is one

    def __post_init__(self):
        if not (self.data or self.wanted):
            raise Refused("data and items are both empty: nothing to measure")
        if self.lead not in LEADS:
            raise Refused(f"lead is {self.lead!r}, expected {', '.join(LEADS)}")
        if not set(self.directions) <= set(DIRECTIONS['joint']):
            raise Refused(f"directions={self.directions}: expected some of {','.join(DIRECTIONS['joint'])}")
        if name := next((name for name in [*self.wanted, *self.places] if name not in TASKS), None):
            raise Refused(f"no task '{name}'; there are {', '.join(TASKS)}, all")

    @property
    def wanted(self):
        names = list(TASKS) if self.tasks == 'all' else [name.strip() for name in self.tasks.split(',') if name.strip()]
        return [name for name in names if name != 'tiny' or self.items]

    @property
    def places(self):
        return dict(part.strip().partition('=')[::2] for part in self.where.split(',') if part.strip())

TASKS = {'tiny': tasks.tiny.pairs, 'sblimp': tasks.zerospeech.sblimp, 'swuggy': tasks.zerospeech.swuggy,
         'ssc': tasks.storycloze.spoken, 'tsc': tasks.storycloze.spoken, 'ms_ssc': tasks.multispeaker.ms_ssc,
         'ms_tsc': tasks.multispeaker.ms_tsc, 'cross_modal': tasks.multispeaker.cross_modal, 'salmon': tasks.salmon.items,
         'blimp': tasks.blimp.items, 'storycloze': tasks.storycloze.text} # each: items of a folder; tiny's: of Units
SUBMISSIONS = {'sblimp': 'syntactic', 'swuggy': 'lexical'} # whose scores ZeroSpeech takes as files
SCORE = 'mean log-likelihood a token; ties count half' # of the value column
LEADS = ('none', 'separator', 'bos')
SIDES = ('right', 'wrong')
KEPT = ('id', 'rows', 'pair', 'type', 'split', 'files') # of an item in samples_TASK.jsonl

def is_empty(direction, candidate):
    """Does a part that the direction needs have not one unit or letter?"""
    needed = {'S': [candidate['joined'] and candidate['joined'][0]], 'T': [candidate['ending'][0]],
              'S->T': [candidate['prompt'][1], candidate['ending'][0]], 'T->S': [candidate['ending'][1]]}[direction]
    return any(len(part) == 0 for part in needed)

def score_pairs(model, vocab, tokenizer, items, direction, row_tokens, lead=(), separate=False):
    """({row name: row of eval.json} over items in one direction, a dict an item for the samples file)."""
    limit, samples, valid, documents = model.cfg.n_positions, [], [], []
    for item in items:
        pair = [document(vocab, tokenizer, direction, item[side], lead, separate) for side in SIDES]
        longest = max(len(ids) for ids, _ in pair)
        if longest > limit:
            raise Refused(f"{item['id']}, {direction}: {longest} tokens, the model has {limit} positions; nothing is cut "
                          "here, leave such items out")
        samples.append({**{key: item[key] for key in KEPT if key in item}, 'direction': direction})
        if any(is_empty(direction, item[side]) for side in SIDES) or min(len(ids) for ids, _ in pair) < 2:
            samples[-1]['invalid'] = True
        else:
            valid.append(samples[-1])
            documents += pair
    losses = document_losses(model, [ids for ids, _ in documents], row_tokens)
    for i, (x, (_, begin)) in enumerate(zip(losses, documents)):
        line, side = valid[i // 2], SIDES[i % 2]
        if not np.isfinite(x).all():
            raise Refused(f"{line['id']}, {direction}: the model gives no finite likelihood; has its training diverged?")
        ending = x[:0] if begin is None else x[max(begin - 1, 0):]
        line |= {f'{side}_mean': float(-x.mean()), f'{side}_sum': float(-x.sum(dtype=np.float64)),
                 f'{side}_ending': float(-ending.mean()) if len(ending) else None}
    return {name: summarize([x for x in samples if name in x['rows']], f"{name or 'all items'}, {direction}")
            for name in sorted({name for item in items for name in item['rows']})}, samples

def summarize(samples, name):
    """A row of eval.json over items that score_pairs scored."""
    valid, row = [x for x in samples if 'invalid' not in x], {}
    if not valid:
        raise Refused(f"{name}: all {len(samples)} items have an empty document; is the audio right?")
    for score in ('mean', 'sum', 'ending'):
        has = [x for x in valid if None not in (x[f'right_{score}'], x[f'wrong_{score}'])]
        if not has:
            continue
        found = accuracy(has, wins([x[f'right_{score}'] for x in has], [x[f'wrong_{score}'] for x in has]))
        row |= found if score == 'mean' else {score: found['value']}
        if len(has) < len(valid): # an ending that shares its last unit with the context
            row[f'without_{score}'] = len(valid) - len(has)
    return row | ({'invalid': len(samples) - len(valid)} if len(valid) < len(samples) else {})

def held_out_loss(model, vocab, corpus, row_tokens, max_documents):
    """{modality or 'all': row} of the mean loss a token over the documents of a Shards.

    A document longer than the model's positions is taken in pieces, as training takes it, and counted in `cut`.
    """
    documents, limit = [corpus.read(i) for i in range(min(corpus.documents, max_documents))], model.cfg.n_positions
    cut = sum(len(d) > limit for d in documents)
    documents = [piece for d in documents for at in range(0, len(d), limit) if len(piece := d[at:at + limit]) > 1]
    losses = document_losses(model, documents, row_tokens)
    kinds = [vocab.modality(d[1:]) for d in documents]
    rows = {}
    for kind, name in ((None, 'all'), *enumerate(MODALITIES)):
        of = [x[k == kind] if kind is not None else x for x, k in zip(losses, kinds)]
        counts, sums = np.array([len(x) for x in of]), np.array([x.sum() for x in of], dtype=np.float64)
        if not counts.sum():
            continue
        value = sums.sum() / counts.sum()
        n = int((counts > 0).sum()) # ratio of sums: its error by the spread of the documents' residuals
        stderr = float(math.sqrt(((sums - value * counts) ** 2).sum() * n / max(n - 1, 1)) / counts.sum())
        rows[name] = {'value': float(value), 'stderr': stderr, 'n': n, 'tokens': int(counts.sum())}
        if cut:
            rows[name]['cut'] = cut
    return rows

def units_per_second(corpus, source):
    """Of the speech of a token folder (all its documents, train and val); None where its info.json does not say."""
    try:
        hours = json.loads((Path(corpus) / 'info.json').read_text())['hours']
        units = [json.loads(p.read_text())['units'] for p in Path(corpus).glob(f'*/{source}/index.json')]
        return sum(units) / (3600 * hours) if hours else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

def read_items(cfg, name, vocab):
    """The items of a task, at most max_items of each row and type; None and why where its data is not there."""
    if name == 'tiny':
        if cfg.tasks == 'all' and not Path(cfg.items).is_dir():
            return None, f"no {cfg.items}"
        corpus = Units(cfg.items)
        if vocab.kind != 'text' and not vocab.speaks(corpus.info['units_hash'], corpus.info.get('encoder')):
            raise Refused(f"{cfg.items}: units {corpus.info['units_hash']}, the model was trained on "
                          f"{vocab.units or 'others'}: encode the items with the model's encoder, or give --items= for none")
        source = corpus
    else:
        source = Path(cfg.places.get(name, Path(cfg.root) / name))
        if not source.exists():
            if cfg.tasks == 'all' and name not in cfg.places:
                return None, f"no {source}"
            raise Refused(f"{source}: no such folder; {name}'s data as unpacked is expected there, or at --where={name}=PATH")
    items, counts = [], {}
    for item in TASKS[name](source):
        key = item['rows'], item.get('type')
        counts[key] = counts.get(key, 0) + 1
        if cfg.max_items is None or counts[key] <= cfg.max_items:
            items.append(item)
    return items, None

def measure_task(cfg, name, model, vocab, tokenizer, cache):
    """(rows, samples, what to say) of one task; rows is empty where the model cannot be measured, and 'not measured' why."""
    items, why_not = read_items(cfg, name, vocab)
    if why_not:
        return {}, [], {'not measured': why_not}
    if not items:
        raise Refused(f"{name}: no items; max_items is {cfg.max_items}")
    said = {}
    if name != 'tiny':
        items, said = (without_audio(items), {}) if vocab.kind == 'text' else encoded(items, cache)
    there = directions_of(vocab, items[0]['right'])
    directions = [direction for direction in there if direction in (cfg.directions or there)]
    if not directions:
        return {}, [], {'not measured': f"nothing that a {vocab.kind} model reads"}
    for item in items:
        if any(directions_of(vocab, item[side]) != there for side in SIDES):
            raise Refused(f"{name}: item {item['id']} lacks a text or an audio that other items have")
    lead = [model.cfg.bos_token_id] if cfg.lead == 'bos' else []
    if lead == [None] and not (tokenizer is None or tokenizer.first):
        raise Refused("lead is 'bos', and the model's config.json names no bos_token_id")
    results, samples = {}, []
    for direction in directions:
        rows, lines = score_pairs(model, vocab, tokenizer, items, direction, cfg.row_tokens, lead, cfg.lead == 'separator')
        results |= {'/'.join(filter(None, (name, row, direction))): value for row, value in rows.items()}
        samples += lines
    return results, samples, {'score': SCORE, 'lead': 'bos' if vocab.kind == 'speech' else cfg.lead, **said}

def measure_losses(cfg, model, vocab):
    """Rows of held-out loss, for every corpus and source that the model reads."""
    results = {}
    check_names(cfg.data)
    for corpus in filter(None, cfg.data.split(',')):
        for source in sorted(p.parent.name for p in Path(corpus).glob('val/*/index.json')):
            shards = Shards(Path(corpus) / 'val' / source)
            if not vocab.accepts(shards.vocab):
                continue
            rows = held_out_loss(model, vocab, shards, cfg.row_tokens, cfg.max_documents)
            rate = units_per_second(corpus, source) if source in ('speech', 'textless') else None
            if rate and 'units' in rows:
                rows['units'] |= {'units_per_second': rate, 'bits_per_second': rows['units']['value'] / math.log(2) * rate}
            results |= {f'loss/{Path(corpus).name}/{source}/{name}': row for name, row in rows.items()}
    if cfg.data and not results:
        raise Refused(f"{cfg.data}: no val/SOURCE shards that a {vocab.kind} model reads; interleave.py writes them")
    return results

def measure(cfg, folder, device):
    """(rows, {task: samples}, {task: what to say}, {file: sha256}) of one model."""
    model, vocab, tokenizer, weights = load(folder, device)
    results, samples, said, caches = measure_losses(cfg, model, vocab), {}, {}, []
    said |= {'loss': {}} if cfg.data else {}
    def cache(): # of this model's units, opened when a task has audio
        if not caches:
            caches.append(UnitCache(cfg.cache, cfg.encoder, cfg.layer, cfg.kmeans, vocab, device))
        return caches[0]
    for name in cfg.wanted:
        rows, lines, said[name] = measure_task(cfg, name, model, vocab, tokenizer, cache)
        results |= rows
        samples |= {name: lines} if rows else {}
        if why_not := said[name].get('not measured'):
            print(f"{folder}: {name} was not measured: {why_not}")
        if n := said[name].get('resampled'):
            print(f"{folder}: {name}: {n} of {said[name]['audio']} files were not at 16 kHz and were resampled")
        if n := sum('invalid' in line for line in lines):
            print(f"{folder}: {name}: {n} items have an empty document and were not scored; see samples_{name}.jsonl")
        if name in SUBMISSIONS and lines:
            write_submission(folder, SUBMISSIONS[name], lines)
    return results, samples, said, weights

def write_submission(folder, part, lines):
    """MODEL/zerospeech/PART/{dev,test}.txt with 'filename score' a line, as ZeroSpeech 2021 takes it."""
    files = {}
    for line in lines:
        for side in SIDES: # an empty document is the least likely
            files.setdefault(line['split'], {})[line['files'][side]] = line.get(f'{side}_mean', -math.inf)
    for split, scores in files.items():
        with atomically(folder_of(folder) / 'zerospeech' / part / f'{split}.txt') as tmp:
            tmp.write_text(''.join(f'{file} {score!r}\n' for file, score in sorted(scores.items())), encoding='ascii')

def main(cfg):
    device = pick_device(cfg.device)
    made, measured = record(cfg), {folder: measure(cfg, folder, device) for folder in cfg.model.split(',')}
    for folder, (results, samples, said, weights) in measured.items():
        store(folder, weights, results, samples, said, {'score': SCORE, **made})
    results = {folder: rows for folder, (rows, *_) in measured.items()}
    if cfg.out:
        write_json(cfg.out, {'results': results, 'score': SCORE, **made})
    print(table(results))
    print('; '.join(f"{folder_of(folder)}/eval.json" for folder in results) + (f"; {cfg.out}" if cfg.out else ''))

NOTHING = None, None # the text and the audio of a part that a candidate does not have

def _audio_parts(candidate):
    """The audio of a candidate's prompt, of its ending, and of both joined; None if it has none."""
    prompt = candidate.get('prompt', NOTHING)
    ending = candidate.get('ending', NOTHING)
    return prompt[1], ending[1], candidate.get('joined')

def _with_units(candidate, entries):
    """A candidate with units for audio. entries: {audio: (units, runs, rate)}."""
    prompt, ending, joined = (entries.get(part) for part in _audio_parts(candidate))
    begin = None
    if joined and prompt: # the run that holds the first frame after the context
        _, prompt_runs, _ = prompt
        begin = int((joined[1].cumsum() <= prompt_runs.sum()).sum())
    return {'prompt': (candidate.get('prompt', NOTHING)[0], prompt and prompt[0]),
            'ending': (candidate.get('ending', NOTHING)[0], ending and ending[0]),
            'joined': joined and (joined[0], begin)}

def _all_with_units(items, entries):
    return [{**item, 'right': _with_units(item['right'], entries),
             'wrong': _with_units(item['wrong'], entries)} for item in items]

def encoded(items, cache):
    """Items with units in place of audio, and {'audio': n files, 'resampled': n not at 16 kHz}.

    cache() gives the UnitCache. An item has the candidates 'right' and 'wrong'. A candidate has
    'prompt' and 'ending', each (text, audio), and 'joined', the audio of both; what it does not have
    is None or absent. Audio becomes units, joined becomes (units, index of the ending's first unit or
    None).
    """
    audio = {} # its keys, in order
    for item in items:
        for side in ('right', 'wrong'):
            audio.update((part, None) for part in _audio_parts(item[side]) if part is not None)
    if not audio:
        return without_audio(items), {}
    entries = cache().encode(list(audio))
    rates = [rate for part, (_, _, rate) in entries.items() if not isinstance(part, tuple)]
    counts = {'audio': len(rates), 'resampled': sum(rate != RATE for rate in rates)}
    return _all_with_units(items, entries), counts

def without_audio(items):
    """The same items for a model that reads text alone: nothing is encoded."""
    return _all_with_units(items, {})

if __name__ == '__main__':
    run(main, Config)
