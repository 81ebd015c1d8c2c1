"""
What the papers' own code (slp-rl/slamkit) has prepared -> folders of this project.

    python slamkit.py --features=features.jsonl --out=out/units/theirs      units; then align.py and interleave.py as ever
    python slamkit.py --tokens=tokens.jsonl --out=out/tokens/theirs         units alone: textless documents
    python slamkit.py --tokens=tokens.jsonl --out=... --tokenizer=Qwen/Qwen2.5-0.5B        interleaved, speech and text ones

    features.jsonl   {"file_name", "units": [3, 49, ...], "duration": [1, 2, ...], "aligned_text"?, "text"?} a line
    tokens.jsonl     {"file_name", "audio_repr": "<Un3><Un49>..." or "<text> once upon<speech><Un12><text> a"} a line

A document's id is its file_name without extension, below the folder that all have in common; documents are sorted by it.
Words: aligned_text, where a line has it (python align.py --units=...), else the .json files beside the audio, by
`align.py --words=FOLDER`. Token ids are slamkit's own: vocab.py's layouts, text encoded between the markup, what the text
tokenizer puts first, no end token. Here alone strings like <Un5> are units, for in those files they are.
"""
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audio import RATE
from configurator import Refused, atomically, record, run, write_json
from folders import read_lines
from interleave import SplitWriter, hash_ids, is_val
from tokenize_speech import write_units_shard
from vocab import TextTokenizer, Vocab
from word_files import words_of

MARKUP = re.compile(r'<Un(\d+)>|<(speech|text)>')

@dataclass(frozen=True)
class Config:
    features: str = '' # features.jsonl -> units folder
    tokens: str = '' # tokens.jsonl -> token shards
    out: str = '' # folder to make
    tokenizer: str = '' # text tokenizer of the tokens, a folder or hub id; '': they are units alone
    n_units: int = 500 # K
    hop: int = 640 # samples at 16 kHz in a frame: 25 Hz
    units_hash: str = 'slprl/mhubert-base-25hz' # of the encoder: take that of a units folder made by it here, if there is one
    shard_docs: int = 2000 # documents in a units shard
    val_frac: float = 0.01 # token documents whose id hashes under this go to val/

    def __post_init__(self):
        if bool(self.features) == bool(self.tokens) or not self.out:
            raise Refused("expected --features=FILE or --tokens=FILE, and --out=DIR")
        if not (0 < self.n_units <= 65535 and self.hop > 0 and self.shard_docs > 0 and 0 <= self.val_frac < 1):
            raise Refused(f"n_units = {self.n_units}, hop = {self.hop}, shard_docs = {self.shard_docs}, val_frac = {self.val_frac}: "
                          "expected 1 to 65,535, above 0, above 0, and 0 to below 1")

def read_documents(path):
    """[(id, where, line)] of a .jsonl file, sorted by id."""
    lines = list(read_lines(path))
    for where, line in lines:
        if not isinstance(line.get('file_name'), str) or not line['file_name']:
            raise Refused(f"{where}: expected a 'file_name', got {line.get('file_name')!r}")
    if not lines:
        raise Refused(f"{path}: no document in it")
    stems = [os.path.splitext(os.path.normpath(line['file_name']))[0] for _, line in lines]
    try:
        common = os.path.commonpath([os.path.dirname(stem) for stem in stems])
    except ValueError:
        raise Refused(f"{path}: absolute and relative file_names, expected one kind") from None
    docs = sorted((os.path.relpath(stem, common or '.'), where, line) for stem, (where, line) in zip(stems, lines))
    for (one, _, _), (two, where, _) in zip(docs, docs[1:]):
        if one == two:
            raise Refused(f"{where}: document '{two}' comes twice")
    return docs

def features_document(id, where, line, cfg):
    """A line of features.jsonl -> ((meta, units, runs), {"id", "words"} with times in samples)."""
    units, runs = (line.get(key) for key in ('units', 'duration'))
    whole = lambda a, low, high: isinstance(a, list) and all(type(x) is int and low <= x <= high for x in a)
    if not (whole(units, 0, cfg.n_units - 1) and whole(runs, 1, 65535) and len(units) == len(runs) > 0):
        raise Refused(f"{where}: expected as many units (0 to {cfg.n_units - 1}) as durations (1 and more), and at least one")
    units, runs = np.array(units), np.array(runs)
    first = np.flatnonzero(np.diff(units, prepend=-1)) # slamkit's dedup: false leaves repeats, with a duration of 1 each
    units, runs = units[first], np.add.reduceat(runs, first)
    meta = {'id': id, 'path': line['file_name'], 'seconds': int(runs.sum()) * cfg.hop / RATE, 'speaker': None, 'text': line.get('text')}
    words = None
    if line.get('aligned_text') is not None:
        words = [[w, *(None if np.isnan(t) else round(t) for t in times)] for w, *times in zip(*words_of(where, id, line))]
    return (meta, units, runs), {'id': id, 'words': words}

def write_units(cfg):
    docs, words = zip(*(features_document(*doc, cfg) for doc in read_documents(cfg.features)))
    with atomically(cfg.out) as tmp:
        for s in range(-(-len(docs) // cfg.shard_docs)):
            part = slice(s * cfg.shard_docs, (s + 1) * cfg.shard_docs)
            lines = {'words': words[part]} if any(line['words'] is not None for line in words) else {}
            write_units_shard(tmp, s, docs[part], failures=[], **lines)
        seconds, runs = sum(meta['seconds'] for meta, _, _ in docs), sum(len(units) for _, units, _ in docs)
        write_json(tmp / 'info.json', {
            'encoder': 'slamkit', 'units_hash': cfg.units_hash, 'n_units': cfg.n_units, 'frame_hz': RATE / cfg.hop, 'hop': cfg.hop,
            'documents': len(docs), 'hours': round(seconds / 3600, 4), 'runs': runs, 'failures': {}, **record(cfg)})
    print(f"{cfg.out}: {len(docs)} documents, {seconds / 3600:.2f} h, {runs:,} units")

def string_ids(where, text, vocab, tokenizer=None):
    """slamkit's audio_repr -> its token ids. Raises Refused for a unit out of range, or text without a tokenizer."""
    ids, at = list(tokenizer.first) if tokenizer else [vocab.bos], 0
    for found in [*MARKUP.finditer(text), None]:
        between = text[at:found.start() if found else len(text)]
        if between and not tokenizer or found and found[2] and not tokenizer:
            raise Refused(f"{where}: text or separators in it ({(between or found[0])[:20]!r}); give --tokenizer=, the text tokenizer")
        ids += tokenizer.encode(between) if between else []
        if found is None:
            break
        if found[1] and int(found[1]) >= vocab.n_units:
            raise Refused(f"{where}: unit {found[1]}, expected 0 to {vocab.n_units - 1}; --n_units= is the number of centroids")
        ids.append(int(found[1]) + vocab.unit_offset if found[1] else getattr(vocab, found[2]))
        at = found.end()
    return ids if tokenizer else [*ids, vocab.bos]

def kind(text, tokenizer):
    """The source of interleave.py that a string belongs to."""
    if not tokenizer:
        return 'textless'
    marks = {found[0][1] for found in MARKUP.finditer(text)} # of <Un5>, <speech>, <text>
    return 'interleaved' if marks & {'s', 't'} else 'speech' if marks else 'text'

def write_tokens(cfg):
    tokenizer, docs = TextTokenizer(cfg.tokenizer) if cfg.tokenizer else None, read_documents(cfg.tokens)
    joint = Vocab('joint', tokenizer.size, cfg.n_units, tokenizer.hash, cfg.units_hash) if tokenizer else None
    vocabs = {'textless': Vocab('speech', n_units=cfg.n_units, units=cfg.units_hash), 'text': tokenizer and tokenizer.vocab,
              'speech': joint, 'interleaved': joint}
    by_source = {}
    for id, where, line in docs:
        text = line.get('audio_repr')
        if not isinstance(text, str) or not text:
            raise Refused(f"{where}: expected a string 'audio_repr' with something in it, got {text!r}")
        source = kind(text, tokenizer)
        by_source.setdefault(source, []).append((id, string_ids(where, text, joint or vocabs['textless'], tokenizer)))
    with atomically(cfg.out) as tmp:
        tmp.mkdir()
        with SplitWriter(tmp, vocabs, record(cfg)) as out:
            for source, rows in by_source.items():
                ids, tokens = zip(*rows)
                out.add(source, np.concatenate(tokens), np.array([len(row) for row in tokens]), is_val(hash_ids(ids), cfg.val_frac))
        write_json(tmp / 'info.json', {'documents': len(docs), 'written': dict(sorted(out.counts.items())), **record(cfg)})
    for name, n in sorted(out.counts.items()):
        print(f"{cfg.out}/{name}: {n['documents']:,} documents, {n['tokens']:,} tokens")

def main(cfg):
    if Path(cfg.out).exists():
        raise Refused(f"{cfg.out}: is there already; take another --out or delete it")
    write_units(cfg) if cfg.features else write_tokens(cfg)

if __name__ == '__main__':
    run(main, Config)
