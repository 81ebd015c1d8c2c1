"""
Reads a corpus by its name: NAME is corpora/NAME.py, which defines a function utterances(root).

An utterance is a dict {id, path, start, end, text, speaker, words}: see corpora/folder.py.
"""
import ast
import importlib
import math
from pathlib import Path

from configurator import Refused
from files import visible

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

def _is_time(seconds):
    return seconds is None or math.isfinite(seconds) and seconds >= 0

def read_corpus(cfg):
    """What corpora/{cfg.corpus}.py finds in cfg.audio -> (utterances sorted by id, names of the files left out).

    Raises Refused.
    """
    names = corpus_names()
    if cfg.corpus not in names:
        raise Refused(f"corpus is {cfg.corpus!r}, expected one of corpora/*.py: {', '.join(names)}")
    corpus = importlib.import_module('corpora.' + cfg.corpus)
    left_out = None

    def read():
        nonlocal left_out
        left_out = yield from corpus.utterances(cfg.audio) # what a reader returns, if it does

    docs = sorted(read(), key=lambda u: u['id'])
    for u, following in zip(docs, docs[1:]):
        if u['id'] == following['id']:
            raise Refused(f"{cfg.audio}: two utterances with the id '{u['id']}': {u['path']} and {following['path']}")
    for u in docs:
        start = u['start']
        end = u['end']
        # end == start is let through: reading such a file fails, and its failure is counted.
        falls = None not in (start, end) and end < start
        if falls or not _is_time(start) or not _is_time(end):
            raise Refused(f"{cfg.audio}: '{u['id']}' is from {start} to {end} s of {u['path']}, "
                          "expected rising seconds")
        try:
            f"{u['id']}{u['path']}".encode()
        except UnicodeEncodeError:
            raise Refused(f"{cfg.audio}: {u['path']!r} has a name that is not UTF-8; rename the file") from None
    if not docs:
        raise Refused(f"{cfg.audio}: no utterance in it that corpora/{cfg.corpus}.py finds")
    return docs, left_out or []
