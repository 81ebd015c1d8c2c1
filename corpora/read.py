"""
Reads a corpus by its name: NAME is corpora/NAME.py, which defines a function utterances(root).

An utterance is a dict {id, path, start, end, text, speaker, words}: see corpora/folder.py. A reader of
many that must sort them for `utterances` may define in_any_order(root), which yields the same.
"""
import ast
import hashlib
import heapq
import importlib
import json
import math
import os
import tempfile
from array import array
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from operator import itemgetter
from pathlib import Path

from configurator import Refused
from files import progress, visible

FOLDER = Path(__file__).parent

def corpus_names():
    """The names of the files of corpora/ that define `utterances`, sorted. They are parsed, not run."""
    names = []
    for path in visible(FOLDER, '*.py'):
        try:
            tree = ast.parse(path.read_text(encoding='utf-8'))
        except SyntaxError as e:
            raise Refused(f"{path}:{e.lineno}: not Python: {e.msg}") from None
        if any(isinstance(node, ast.FunctionDef) and node.name == 'utterances' for node in tree.body):
            names.append(path.stem)
    return names

RUN = 20_000 # utterances that are sorted in memory

class Utterances(Sequence):
    """Utterances in order of their ids, which may come in any order: in memory is only where each stands in a file.

    The file is a temporary one in $TMPDIR or /tmp, of some 400 bytes an utterance. has_words: whether
    any has words; hash: of all. Raises Refused for an id that comes twice.
    """
    def __init__(self, utterances, source):
        self.source = source
        self.file = tempfile.TemporaryFile()
        self.has_words = False
        starts = array('q') # of the lines in the file
        runs = [] # [(first id, last id, where its lines begin, where they end)], each in order
        utterances = iter(utterances)
        while docs := sorted(islice(utterances, RUN), key=itemgetter('id')):
            begin = self.file.tell()
            for u in docs:
                starts.append(self.file.tell())
                self.file.write(json.dumps(u).encode() + b'\n')
                self.has_words |= bool(u['words'])
            self._check_order(zip(map(itemgetter('id'), docs), starts[-len(docs):]))
            runs.append((docs[0]['id'], docs[-1]['id'], begin, self.file.tell()))
            docs.clear() # before the next ones are read
        self.file.flush()
        if any(a[1] >= b[0] for a, b in zip(runs, runs[1:])): # else the runs follow each other
            merged = heapq.merge(*(self._lines(begin, end) for *_, begin, end in runs))
            starts = array('q', self._check_order(merged))
        self.starts = starts

    def _lines(self, begin, end):
        """Yields (id, where its line begins) of a part of the file."""
        line_begin = begin
        rest = b''
        while begin < end:
            block = os.pread(self.file.fileno(), min(1 << 16, end - begin), begin)
            begin += len(block)
            *lines, rest = (rest + block).split(b'\n')
            for line in lines:
                yield json.loads(line)['id'], line_begin
                line_begin += len(line) + 1

    def _check_order(self, lines):
        """The starts of sorted (id, start); Refused if an id comes twice."""
        starts = array('q')
        last_id = None
        for id, start in lines:
            if id == last_id:
                paths = [self._at(place)['path'] for place in (starts[-1], start)]
                raise Refused(f"{self.source}: two utterances with the id '{id}': {' and '.join(paths)}")
            starts.append(start)
            last_id = id
        return starts

    def _at(self, start):
        self.file.seek(start)
        return json.loads(self.file.readline())

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, i):
        return list(map(self._at, self.starts[i])) if isinstance(i, slice) else self._at(self.starts[i])

    def __iter__(self):
        return map(self._at, self.starts)

    @cached_property
    def hash(self):
        """Of json.dumps of the list of all."""
        digest = hashlib.sha256(b'[')
        for i, u in enumerate(self):
            digest.update(b', ' * (i > 0) + json.dumps(u).encode())
        digest.update(b']')
        return digest.hexdigest()[:16]

def _is_time(seconds):
    return seconds is None or math.isfinite(seconds) and seconds >= 0

def _check(cfg, u):
    """Refuses an utterance whose times or names cannot be."""
    start = u['start']
    end = u['end']
    # end == start is let through: reading such a file fails, and its failure is counted.
    falls = None not in (start, end) and end < start
    if falls or not _is_time(start) or not _is_time(end):
        raise Refused(f"{cfg.audio}: '{u['id']}' is from {start} to {end} s of {u['path']}, expected rising seconds")
    try:
        f"{u['id']}{u['path']}".encode()
    except UnicodeEncodeError:
        raise Refused(f"{cfg.audio}: {u['path']!r} has a name that is not UTF-8; rename the file") from None

def read_corpus(cfg):
    """What corpora/{cfg.corpus}.py finds in cfg.audio -> (Utterances, names of the files left out). Raises Refused."""
    names = corpus_names()
    if cfg.corpus not in names:
        raise Refused(f"corpus is {cfg.corpus!r}, expected one of corpora/*.py: {', '.join(names)}")
    corpus = importlib.import_module('corpora.' + cfg.corpus)
    left_out = None

    def read():
        nonlocal left_out
        left_out = yield from getattr(corpus, 'in_any_order', corpus.utterances)(cfg.audio) # what a reader returns

    def checked():
        for u in progress(read(), desc='corpus', unit='doc', leave=False):
            _check(cfg, u)
            yield u

    docs = Utterances(checked(), cfg.audio)
    if not docs:
        raise Refused(f"{cfg.audio}: no utterance in it that corpora/{cfg.corpus}.py finds")
    return docs, left_out or []
