"""
Measures models: likelihood tasks and held-out loss. Writes MODEL/eval.json, and a table to the terminal.

    python eval.py --model=out/tiny                                        tiny's items, and held-out loss
    python eval.py --model=out/tiny,out/tiny-speech --out=out/eval.json    side by side, and in one file
    python eval.py --model=out/tiny --tasks=tiny,knowledge                 also items on facts that text alone states
    python eval.py --model=out/x --tasks=all --root=bench --data=          each task whose data is at bench/TASK
    python eval.py --model=out/x --tasks=sblimp,swuggy --where=sblimp=/d/sLM21,swuggy=/d/sLM21 --data=

Tasks (tasks/*.py) give items, pairs of a right and a wrong candidate. An item is measured in every
direction that it has the parts for and that the model's vocabulary can read. A candidate becomes a
document of ids:

    S      units of the whole wave             (speech: bos units bos, the last of which counts)
    S->T   <speech> units of the context <text> ending
    T->S   <text> context <speech> units of the ending
    T      text

--documents says in which style, for items that have a context and an ending:

    training   as training has them: a blank before text that does not come first, <text> or not; S and
               T without a separator, as in the speech-only and text-only sources
    slamkit    as the papers' code has them: texts stripped and joined without a blank; S and T of a
               joint model begin with <speech> or <text>

Whole waves and sentences (sSC, tSC, sBLIMP, BLiMP, ...), and all documents of a speech model, are the
same in both. By default cross_modal, whose published numbers are slamkit's, has its documents, and
other tasks have those of training; eval.json names the style of each task. --bos puts the model's bos
before documents whose tokenizer puts nothing there.

An item counts 1 when the right document's log-likelihood is above the wrong one's, 1/2 when they
are equal, else 0. `value` takes the mean over the document's predicted tokens (SIMS, Slam), `sum`
the sum, and `ending` the mean over the ending's tokens, if the task says where it begins.
evaluation/scores.py has the averages over items and stderr. An item with an empty document (audio
shorter than one unit) is `invalid`: counted and listed, never scored. Items longer than the model's
positions are refused, not cut.

Loss: nats per token on CORPUS/val/SOURCE, for all tokens and for each modality, with whole
documents; stderr over documents. bits_per_second = loss of units / ln 2 * units per second of the
corpus' speech, which can be compared between encoders.
"""
import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configurator import Refused, pick_device, run
from data import Shards, check_names
from evaluation.likelihood import document_losses, load
from evaluation.results import SAME, folder_of, refuse_unwritable_results, store, table
from evaluation.scores import accuracy, ratio_and_stderr, wins
from files import atomically, read_value, record, write_json
from speech.audio import RATE
from speech.unit_cache import UnitCache
from speech.units import Units
from tasks import acoustic, blimp, multispeaker, salmon, storycloze, tiny, zerospeech
from vocab import DIRECTIONS, MODALITIES, STYLES, directions_of, document, has_context


@dataclass(frozen=True)
class Config:
    model: str = 'out/tiny' # folders that train.py wrote, or text models of the hub, separated by commas
    tasks: str = 'tiny' # names of tasks, separated by commas; all: every task whose data is there
    root: str = 'out/bench' # folder of the tasks' data, as unpacked: each at ROOT/TASK
    where: str = '' # TASK=PATH, separated by commas: data that lies elsewhere
    data: str = 'out/tokens/stories,out/tokens/talk' # token folders of the held-out loss, separated by commas; '': none
    items: str = 'out/data/items' # units folder of the task tiny; '' leaves this task out
    out: str | None = None # JSON file for the results of all models; None: only each model's eval.json
    documents: str | None = None # how documents are written: slamkit or training; None: slamkit for cross_modal alone
    bos: bool = False # put the model's bos before documents whose tokenizer puts nothing there
    directions: tuple = () # which of S, S->T, T->S, T; (): all that the model reads and the items have parts for
    max_items: int | None = None # number of items of each voice, part or type; None: all
    max_documents: int = 2000 # number of documents of each source of the held-out data
    row_tokens: int = 2048 # tokens in a forward pass: the memory; on a CPU, more is slower
    encoder: str = 'tiny/hubert' # encoder of the model's units, for audio that is not in the cache
    layer: int = 4 # layer of the encoder that the units come from
    kmeans: str | None = None # file of the units' centroids; None: kmeans.safetensors in the encoder's folder
    normalize: bool | None = None # of the units' waves, as for tokenize_speech.py
    cache: str = 'out/cache' # folder that keeps the units of audio, so that it is encoded once
    device: str = 'auto' # cpu or cuda; auto: cuda where there is a GPU

    def __post_init__(self):
        if not (self.data or self.wanted):
            raise Refused("data and items are both empty: nothing to measure")
        if self.documents not in (None, *STYLES):
            raise Refused(f"documents is {self.documents!r}, expected {', '.join(STYLES)}")
        if not set(self.directions) <= set(DIRECTIONS['joint']):
            raise Refused(f"directions={self.directions}: expected some of {','.join(DIRECTIONS['joint'])}")
        for name in [*self.wanted, *self.places]:
            if name not in TASKS:
                raise Refused(f"no task '{name}'; there are {', '.join(TASKS)}, all")

    @property
    def wanted(self):
        """Names of the tasks to measure."""
        names = TASKS if self.tasks == 'all' else map(str.strip, self.tasks.split(','))
        return [name for name in names if name and (name != 'tiny' or self.items)]

    @property
    def places(self):
        """{task: path} of the setting `where`."""
        return dict(part.strip().partition('=')[::2] for part in self.where.split(',') if part.strip())

    def units_folder(self, name):
        """The units folder of an embedded task, of which no audio is needed; None for other tasks."""
        if name == 'tiny':
            return self.items
        return self.places.get(name, 'out/data/knowledge') if name == 'knowledge' else None

# Functions that read a task's items from its folder; those of tasks/tiny.py take a Units.
TASKS = {'tiny': tiny.pairs, 'knowledge': tiny.knowledge, 'sblimp': zerospeech.sblimp, 'swuggy': zerospeech.swuggy,
         'ssc': storycloze.spoken, 'tsc': storycloze.spoken, 'ms_ssc': multispeaker.ms_ssc,
         'ms_tsc': multispeaker.ms_tsc, 'cross_modal': multispeaker.cross_modal,
         'salmon': salmon.items, 'acoustic': acoustic.items, 'blimp': blimp.items, 'storycloze': storycloze.text}
SUBMISSIONS = {'sblimp': 'syntactic', 'swuggy': 'lexical'} # tasks whose scores ZeroSpeech takes as files
SCORE = 'mean log-likelihood a token; ties count half' # eval.json says this of its `value`
SIDES = ('right', 'wrong')
SAMPLE_KEYS = ('id', 'rows', 'pair', 'type', 'split', 'files') # of an item, copied to samples_TASK.jsonl

# --------------------------------------------------------------------------------------------------
# items

def read_items(cfg, name, vocab):
    """(items of a task, None), at most max_items of each row and type, or (None, why its data is not there).

    Raises Refused for units of another encoder, and for missing data unless --tasks=all.
    """
    folder = cfg.units_folder(name)
    if folder:
        if cfg.tasks == 'all' and not Path(folder).is_dir():
            return None, f"no {folder}"
        source = Units(folder)
        units_hash = source.info['units_hash']
        if vocab.kind != 'text' and not vocab.speaks(units_hash, source.info.get('encoder')):
            raise Refused(f"{folder}: units {units_hash}, the model was trained on {vocab.units or 'others'}: "
                          "encode the items with the model's encoder, or give --items= for none")
    else:
        source = Path(cfg.places.get(name, Path(cfg.root) / name))
        if not source.exists():
            if cfg.tasks == 'all' and name not in cfg.places:
                return None, f"no {source}"
            raise Refused(f"{source}: no such folder; {name}'s data as unpacked is expected there, "
                          f"or at --where={name}=PATH")
    items = []
    counts = {}
    for item in TASKS[name](source):
        key = item['rows'], item.get('type')
        counts[key] = counts.get(key, 0) + 1
        if cfg.max_items is None or counts[key] <= cfg.max_items:
            items.append(item)
    return items, None

def _parts(candidate):
    """A candidate's prompt and ending, each (text, audio), and the audio of both joined; None where absent."""
    return candidate.get('prompt', (None, None)), candidate.get('ending', (None, None)), candidate.get('joined')

def _with_units(candidate, entries):
    """A candidate with units for audio. entries: {audio: (units, runs, rate)}; other audio becomes None."""
    (prompt, prompt_audio), (ending, ending_audio), joined_audio = _parts(candidate)
    absent = None, None, None
    prompt_units, prompt_runs, _ = entries.get(prompt_audio, absent)
    ending_units, _, _ = entries.get(ending_audio, absent)
    joined_units, joined_runs, _ = entries.get(joined_audio, absent)
    begin = None
    if joined_runs is not None and prompt_runs is not None:
        # The ending begins in the run that holds the first frame after the context.
        begin = int((joined_runs.cumsum() <= prompt_runs.sum()).sum())
    joined = None if joined_units is None else (joined_units, begin)
    return {'prompt': (prompt, prompt_units), 'ending': (ending, ending_units), 'joined': joined}

def _all_with_units(items, entries):
    return [{**item, **{side: _with_units(item[side], entries) for side in SIDES}} for item in items]

def encoded(items, open_cache):
    """Items with units in place of audio, and {'audio': n files, 'resampled': n not at 16 kHz}.

    open_cache() gives the UnitCache. An item has the candidates 'right' and 'wrong'. A candidate
    has 'prompt' and 'ending', each (text, audio), and 'joined', the audio of both; what it does not
    have is None or absent. Audio becomes units, joined becomes (units, index of the ending's first
    unit or None).
    """
    audios = {} # used as a set that keeps the order
    for candidate in [item[side] for item in items for side in SIDES]:
        (_, prompt), (_, ending), joined = _parts(candidate)
        audios |= dict.fromkeys(audio for audio in (prompt, ending, joined) if audio is not None)
    if not audios:
        return without_audio(items), {}
    entries = open_cache().encode(list(audios))
    rates = [rate for audio, (_, _, rate) in entries.items() if not isinstance(audio, tuple)]
    counts = {'audio': len(rates), 'resampled': sum(rate != RATE for rate in rates)}
    return _all_with_units(items, entries), counts

def without_audio(items):
    """The same items for a model that reads text alone: nothing is encoded."""
    return _all_with_units(items, {})

# --------------------------------------------------------------------------------------------------
# likelihood tasks

def is_empty(direction, candidate):
    """Whether a part that the direction needs has no unit or no letter."""
    if direction == 'S':
        return len(candidate['joined'][0]) == 0
    _, prompt_units = candidate['prompt']
    ending, ending_units = candidate['ending']
    letters = (ending or '').strip()
    parts = {'T': [letters], 'S->T': [prompt_units, letters], 'T->S': [ending_units]}[direction]
    return any(len(part) == 0 for part in parts)

def score_pairs(model, vocab, tokenizer, items, direction, row_tokens, style='training', lead=()):
    """({row name: row of eval.json} of items in one direction, [line of the samples file of each item]).

    style, lead: of vocab.document. Raises Refused for an item longer than the model's positions.
    """
    limit = model.cfg.n_positions
    samples = []
    documents = []
    sides = [] # of each document: the item's line, 'right' or 'wrong', where the ending begins
    for item in items:
        sample = {key: item[key] for key in SAMPLE_KEYS if key in item} | {'direction': direction}
        samples.append(sample)
        pair = [document(vocab, tokenizer, direction, item[side], style, lead) for side in SIDES]
        lengths = [len(ids) for ids, _ in pair]
        if max(lengths) > limit:
            raise Refused(f"{item['id']}, {direction}: {max(lengths)} tokens, the model has {limit} positions; "
                          "nothing is cut here, leave such items out")
        if any(is_empty(direction, item[side]) for side in SIDES) or min(lengths) < 2:
            sample['invalid'] = True
            continue
        for side, (ids, begin) in zip(SIDES, pair):
            documents.append(ids)
            sides.append((sample, side, begin))
    for x, (sample, side, begin) in zip(document_losses(model, documents, row_tokens), sides):
        if not np.isfinite(x).all():
            raise Refused(f"{sample['id']}, {direction}: the model gives no finite likelihood; "
                          "has its training diverged?")
        ending = x[:0] if begin is None else x[max(begin - 1, 0):]
        sample[f'{side}_mean'] = float(-x.mean())
        sample[f'{side}_sum'] = float(-x.sum(dtype=np.float64))
        sample[f'{side}_ending'] = float(-ending.mean()) if len(ending) else None
    rows = {}
    for name in sorted({name for item in items for name in item['rows']}):
        samples_of_row = [sample for sample in samples if name in sample['rows']]
        rows[name] = summarize(samples_of_row, f"{name or 'all items'}, {direction}")
    return rows, samples

def summarize(samples, name):
    """The row of eval.json of items that score_pairs scored; `name` is for the error where none could be."""
    valid = [sample for sample in samples if 'invalid' not in sample]
    if not valid:
        raise Refused(f"{name}: all {len(samples)} items have an empty document; is the audio right?")
    row = {}
    for score in ('mean', 'sum', 'ending'):
        keys = [f'{side}_{score}' for side in SIDES]
        scored = [sample for sample in valid if all(sample[key] is not None for key in keys)]
        if not scored:
            continue
        right, wrong = ([sample[key] for sample in scored] for key in keys)
        result = accuracy(scored, wins(right, wrong))
        row |= result if score == 'mean' else {score: result['value']}
        # An ending that shares its last unit with the context has no score.
        if len(scored) < len(valid):
            row[f'without_{score}'] = len(valid) - len(scored)
    if len(valid) < len(samples):
        row['invalid'] = len(samples) - len(valid)
    return row

def measure_task(cfg, name, model, vocab, tokenizer, open_cache):
    """(rows, samples, notes for eval.json) of one task; without rows, the note 'not measured' says why."""
    items, why_not = read_items(cfg, name, vocab)
    if why_not:
        return {}, [], {'not measured': why_not}
    if not items:
        raise Refused(f"{name}: no items; max_items is {cfg.max_items}")
    notes = {}
    if not cfg.units_folder(name) and vocab.kind == 'text':
        items = without_audio(items)
    elif not cfg.units_folder(name):
        items, notes = encoded(items, open_cache)
    possible = directions_of(vocab, items[0]['right'])
    directions = [direction for direction in possible if direction in (cfg.directions or possible)]
    if not directions:
        return {}, [], {'not measured': f"nothing that a {vocab.kind} model reads"}
    for item in items:
        if any(directions_of(vocab, item[side]) != possible for side in SIDES):
            raise Refused(f"{name}: item {item['id']} lacks a text or an audio that other items have")
    lead = [model.cfg.bos_token_id] if cfg.bos else []
    if lead == [None] and not (tokenizer is None or tokenizer.first):
        raise Refused("--bos, and the model's config.json names no bos_token_id")
    style = cfg.documents or ('slamkit' if name == 'cross_modal' else 'training')
    matters = vocab.kind != 'speech' and has_context(items[0]['right'])
    results = {}
    samples = []
    for direction in directions:
        rows, lines = score_pairs(model, vocab, tokenizer, items, direction, cfg.row_tokens, style, lead)
        for row, value in rows.items():
            results['/'.join(filter(None, (name, row, direction)))] = value
        samples += lines
    return results, samples, {'score': SCORE, 'documents': style if matters else SAME, **notes}

# --------------------------------------------------------------------------------------------------
# held-out loss

def held_out_loss(model, vocab, corpus, row_tokens, max_documents):
    """{'all' or a modality: row} of the mean loss per token over the documents of a Shards.

    A document longer than the model's positions is taken in pieces, as training takes it, and counted in `cut`.
    """
    limit = model.cfg.n_positions
    documents = [corpus.read(i) for i in range(min(corpus.documents, max_documents))]
    cut = sum(len(ids) > limit for ids in documents)
    pieces = [ids[start:start + limit] for ids in documents for start in range(0, len(ids), limit)]
    pieces = [piece for piece in pieces if len(piece) > 1] # of a single id nothing is predicted
    losses = document_losses(model, pieces, row_tokens)
    modalities = [vocab.modality(piece[1:]) for piece in pieces]
    losses_of = {'all': losses}
    for number, name in enumerate(MODALITIES):
        losses_of[name] = [x[modality == number] for x, modality in zip(losses, modalities)]
    rows = {}
    for name, parts in losses_of.items():
        counts = np.array([len(x) for x in parts])
        if not counts.sum():
            continue
        sums = np.array([x.sum() for x in parts], dtype=np.float64)
        value, stderr = ratio_and_stderr(sums, counts)
        rows[name] = {'value': value, 'stderr': stderr, 'n': int((counts > 0).sum()), 'tokens': int(counts.sum())}
        if cut:
            rows[name]['cut'] = cut
    return rows

def units_per_second(corpus, source):
    """Units per second of a token folder's speech, in train and val; None where its files do not say."""
    corpus = Path(corpus)
    try:
        hours = read_value(corpus / 'info.json')['hours']
        n_units = sum(read_value(path)['units'] for path in corpus.glob(f'*/{source}/index.json'))
        return n_units / (3600 * hours) if hours else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

def measure_losses(cfg, model, vocab):
    """Rows of held-out loss, of every corpus and source that the model reads."""
    results = {}
    check_names(cfg.data)
    for corpus in filter(None, cfg.data.split(',')):
        for source in sorted(path.parent.name for path in Path(corpus).glob('val/*/index.json')):
            shards = Shards(Path(corpus) / 'val' / source)
            if not vocab.accepts(shards.vocab):
                continue
            rows = held_out_loss(model, vocab, shards, cfg.row_tokens, cfg.max_documents)
            if not rows:
                print(f"{shards.name}: not measured, each of its documents is a single token")
            rate = units_per_second(corpus, source) if source in ('speech', 'textless') else None
            if rate and 'units' in rows:
                bits_per_unit = rows['units']['value'] / math.log(2)
                rows['units'] |= {'units_per_second': rate, 'bits_per_second': bits_per_unit * rate}
            results |= {f'loss/{Path(corpus).name}/{source}/{name}': row for name, row in rows.items()}
    if cfg.data and not results:
        raise Refused(f"{cfg.data}: no val/SOURCE shards that a {vocab.kind} model reads; interleave.py writes them")
    return results

# --------------------------------------------------------------------------------------------------
# the run

def measure(cfg, folder, device):
    """(rows, {task: samples}, {task: notes}, {file: sha256}) of one model."""
    model, vocab, tokenizer, weights = load(folder, device)
    results = measure_losses(cfg, model, vocab)
    samples = {}
    notes = {'loss': {}} if cfg.data else {}
    @functools.cache
    def open_cache(): # called when a task has audio
        return UnitCache(cfg.cache, cfg.encoder, cfg.layer, cfg.kmeans, vocab, device, cfg.normalize)
    for name in cfg.wanted:
        rows, lines, notes[name] = measure_task(cfg, name, model, vocab, tokenizer, open_cache)
        results |= rows
        if rows:
            samples[name] = lines
        if why_not := notes[name].get('not measured'):
            print(f"{folder}: {name} was not measured: {why_not}")
        if n := notes[name].get('resampled'):
            print(f"{folder}: {name}: {n} of {notes[name]['audio']} files were not at 16 kHz and were resampled")
        if n := sum('invalid' in line for line in lines):
            print(f"{folder}: {name}: {n} items have an empty document and were not scored; see samples_{name}.jsonl")
        if name in SUBMISSIONS and lines:
            write_submission(folder, SUBMISSIONS[name], lines)
    return results, samples, notes, weights

def write_submission(folder, part, lines):
    """Writes MODEL/zerospeech/PART/{dev,test}.txt with 'filename score' a line, as ZeroSpeech 2021 takes it."""
    scores = {} # {split: {file: score}}
    for line in lines:
        for side in SIDES:
            # An empty document is the least likely.
            scores.setdefault(line['split'], {})[line['files'][side]] = line.get(f'{side}_mean', -math.inf)
    for split, score_of in scores.items():
        text = ''.join(f'{file} {score!r}\n' for file, score in sorted(score_of.items()))
        with atomically(folder_of(folder) / 'zerospeech' / part / f'{split}.txt', wait=10) as tmp:
            tmp.write_text(text, encoding='ascii')

def main(cfg):
    device = pick_device(cfg.device)
    provenance = {'score': SCORE, **record(cfg)}
    for folder in cfg.model.split(','):
        refuse_unwritable_results(folder)
    measured = {folder: measure(cfg, folder, device) for folder in cfg.model.split(',')}
    for folder, (rows, samples, notes, weights) in measured.items():
        store(folder, weights, rows, samples, notes, provenance)
    results = {folder: rows for folder, (rows, *_) in measured.items()}
    if cfg.out:
        styles = {folder: {name: note['documents'] for name, note in notes.items() if 'documents' in note}
                  for folder, (_, _, notes, _) in measured.items()}
        write_json(cfg.out, {'results': results, 'documents': styles, **provenance})
    print(table(results))
    paths = [f'{folder_of(folder)}/eval.json' for folder in results]
    print('; '.join([*paths, cfg.out] if cfg.out else paths))

if __name__ == '__main__':
    run(main, Config)
