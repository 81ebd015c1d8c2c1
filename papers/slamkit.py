"""
Converts what the papers' own code (slp-rl/slamkit) has prepared into folders of this project.

    python -m papers.slamkit --features=features.jsonl --out=out/units/slam        units, for align.py and interleave.py
    python -m papers.slamkit --tokens=tokens.jsonl --out=out/tokens/slam           units alone: textless documents
    python -m papers.slamkit --tokens=tokens.jsonl --out=... --tokenizer=Qwen/Qwen2.5-0.5B     interleaved, speech, text

    features.jsonl   per line {"file_name", "units": [3, 49, ...], "duration": [1, 2, ...], "aligned_text"?, "text"?}
    tokens.jsonl     per line {"file_name", "audio_repr": "<Un3><Un49>..." or "<text> once upon<speech><Un12><text> a"}

A document's id is its file_name without extension, relative to the folder that all have in common;
documents are sorted by id. Words come from aligned_text if lines have it (align.py --units=...),
otherwise from the .json files beside the audio, by `align.py --words=FOLDER`. Token ids are
slamkit's own: vocab.py's layouts, the text between the markup encoded piece by piece, after what
the text tokenizer puts first, and no end token. Only in these files are strings like <Un5> units.
"""
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configurator import Refused, run
from files import atomically, hash_of_shards, read_lines, record, write_json
from hub.tokenizer import TextTokenizer
from interleave import SplitWriter, is_val
from speech.audio import RATE
from speech.corpus import hash_ids
from speech.units import write_units_shard
from speech.word_files import words_of
from vocab import Vocab

MARKUP = re.compile(r'<Un(\d+)>|<(speech|text)>')

@dataclass(frozen=True)
class Config:
    features: str = '' # features.jsonl -> units folder
    tokens: str = '' # tokens.jsonl -> token shards
    out: str = '' # folder to make
    tokenizer: str = '' # text tokenizer of the tokens, a folder or hub id; '': they are units alone
    n_units: int = 500 # K
    hop: int = 640 # samples at 16 kHz in a frame: 25 Hz
    units_hash: str = 'slprl/mhubert-base-25hz' # of the encoder; if a units folder was made with it here, use its hash
    shard_docs: int = 2000 # documents in a shard of the units folder
    val_frac: float = 0.01 # share of token documents, chosen by the hash of their id, that go to val/

    def __post_init__(self):
        if bool(self.features) == bool(self.tokens) or not self.out:
            raise Refused("expected --features=FILE or --tokens=FILE, and --out=DIR")
        if not (0 < self.n_units <= 65535 and self.hop > 0 and self.shard_docs > 0 and 0 <= self.val_frac < 1):
            raise Refused(f"n_units = {self.n_units}, hop = {self.hop}, shard_docs = {self.shard_docs}, "
                          f"val_frac = {self.val_frac}: expected 1 to 65,535, above 0, above 0, and 0 to below 1")

def read_documents(path):
    """[(id, place, line)] of a .jsonl file, sorted by id. place: 'PATH:LINE_NUMBER'; line: a dict."""
    lines = list(read_lines(path))
    stems = []
    for place, line in lines:
        name = line.get('file_name')
        if not isinstance(name, str) or not name:
            raise Refused(f"{place}: expected a 'file_name', got {name!r}")
        stems.append(os.path.splitext(os.path.normpath(name))[0])
    if not lines:
        raise Refused(f"{path}: no document in it")
    try:
        common = os.path.commonpath([os.path.dirname(stem) for stem in stems])
    except ValueError:
        raise Refused(f"{path}: absolute and relative file_names, expected one kind") from None
    docs = sorted((os.path.relpath(stem, common or '.'), place, line) for stem, (place, line) in zip(stems, lines))
    for (previous, _, _), (id, place, _) in zip(docs, docs[1:]):
        if id == previous:
            raise Refused(f"{place}: document '{id}' comes twice")
    return docs

def are_integers(values, low, high):
    return isinstance(values, list) and all(type(x) is int and low <= x <= high for x in values)

def features_document(id, place, line, cfg):
    """A line of features.jsonl -> ((meta, units, runs), {"id", "words"} with times in samples)."""
    units = line.get('units')
    runs = line.get('duration')
    if not (are_integers(units, 0, cfg.n_units - 1) and are_integers(runs, 1, 65535) and len(units) == len(runs) > 0):
        raise Refused(f"{place}: expected as many units (0 to {cfg.n_units - 1}) as durations (1 and more), "
                      "and at least one")
    # Repeated units become one run: slamkit leaves them, with a duration of 1 each, if its
    # deduplication is off.
    units = np.array(units)
    first = np.flatnonzero(np.diff(units, prepend=-1))
    units = units[first]
    runs = np.add.reduceat(np.array(runs), first)
    seconds = int(runs.sum()) * cfg.hop / RATE
    meta = {'id': id, 'path': line['file_name'], 'seconds': seconds, 'speaker': None, 'text': line.get('text')}
    words = None
    if line.get('aligned_text') is not None:
        words = []
        for word, *times in zip(*words_of(place, id, line)):
            words.append([word, *(None if np.isnan(t) else round(t) for t in times)])
    return (meta, units, runs), {'id': id, 'words': words}

def write_units(cfg):
    docs, words = zip(*(features_document(*doc, cfg) for doc in read_documents(cfg.features)))
    has_words = any(line['words'] is not None for line in words)
    with atomically(cfg.out) as tmp:
        for s, begin in enumerate(range(0, len(docs), cfg.shard_docs)):
            part = slice(begin, begin + cfg.shard_docs)
            lines = {'words': words[part]} if has_words else {}
            write_units_shard(tmp, s, docs[part], failures=[], **lines)
        hours = sum(meta['seconds'] for meta, _, _ in docs) / 3600
        n_runs = sum(len(units) for _, units, _ in docs)
        info = {'encoder': 'slamkit', 'units_hash': cfg.units_hash, 'n_units': cfg.n_units,
                'frame_hz': RATE / cfg.hop, 'hop': cfg.hop, 'documents': len(docs), 'hours': round(hours, 4),
                'runs': n_runs, 'failures': {}, 'content': hash_of_shards(tmp), **record(cfg)}
        write_json(tmp / 'info.json', info)
    print(f"{cfg.out}: {len(docs)} documents, {hours:.2f} h, {n_runs:,} units")

def string_ids(place, text, vocab, tokenizer=None):
    """slamkit's audio_repr -> its token ids. Raises Refused for a unit out of range, or text without a tokenizer."""
    ids = list(tokenizer.first) if tokenizer else [vocab.bos]
    end = 0 # of the previous markup
    for match in [*MARKUP.finditer(text), None]:
        between = text[end:match.start() if match else len(text)]
        unit, separator = match.groups() if match else (None, None)
        if not tokenizer and (between or separator):
            string = between or match[0]
            raise Refused(f"{place}: text or separators in it ({string[:20]!r}); give --tokenizer=, the text tokenizer")
        if between:
            ids += tokenizer.encode(between)
        if separator:
            ids.append(getattr(vocab, separator))
        if unit:
            if int(unit) >= vocab.n_units:
                raise Refused(f"{place}: unit {unit}, expected 0 to {vocab.n_units - 1}; "
                              "--n_units= is the number of centroids")
            ids.append(int(unit) + vocab.unit_offset)
        if match:
            end = match.end()
    return ids if tokenizer else [*ids, vocab.bos]

def source_of(text, tokenizer):
    """The source of interleave.py that a string belongs to."""
    if not tokenizer:
        return 'textless'
    matches = list(MARKUP.finditer(text))
    if any(match[2] for match in matches):
        return 'interleaved'
    return 'speech' if matches else 'text'

def write_tokens(cfg):
    docs = read_documents(cfg.tokens)
    tokenizer = None
    vocabs = {'textless': Vocab('speech', n_units=cfg.n_units, units=cfg.units_hash)}
    if cfg.tokenizer:
        tokenizer = TextTokenizer(cfg.tokenizer)
        joint = Vocab('joint', tokenizer.size, cfg.n_units, tokenizer.hash, cfg.units_hash)
        vocabs = {'text': tokenizer.vocab, 'speech': joint, 'interleaved': joint}
    by_source = {} # {source: [(id, token ids), ...]}
    for id, place, line in docs:
        text = line.get('audio_repr')
        if not isinstance(text, str) or not text:
            raise Refused(f"{place}: expected a string 'audio_repr' with something in it, got {text!r}")
        vocab = joint if tokenizer else vocabs['textless']
        tokens = string_ids(place, text, vocab, tokenizer)
        by_source.setdefault(source_of(text, tokenizer), []).append((id, tokens))
    with atomically(cfg.out) as tmp:
        tmp.mkdir()
        with SplitWriter(tmp, vocabs, record(cfg)) as out:
            for source, rows in by_source.items():
                ids, tokens = zip(*rows)
                lengths = np.array([len(row) for row in tokens])
                out.add(source, np.concatenate(tokens), lengths, is_val(hash_ids(ids), cfg.val_frac))
        written = dict(sorted(out.counts.items()))
        write_json(tmp / 'info.json', {'documents': len(docs), 'written': written, **record(cfg)})
    for name, n in written.items():
        print(f"{cfg.out}/{name}: {n['documents']:,} documents, {n['tokens']:,} tokens")

def main(cfg):
    if Path(cfg.out).exists():
        raise Refused(f"{cfg.out}: is there already; take another --out or delete it")
    if cfg.features:
        write_units(cfg)
    else:
        write_tokens(cfg)

if __name__ == '__main__':
    run(main, Config)
