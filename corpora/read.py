"""
Reads any corpus of this folder by its name: the utterances, sorted by id, each id once.
"""
import importlib
import math
from pathlib import Path

from configurator import Refused

NO_CORPUS = 'download', 'spokenswag', 'tree' # files of corpora/ that are none

def read_corpus(cfg):
    """The utterances, sorted by id, each id once."""
    names = sorted(path.stem for path in Path(__file__).parent.glob('*.py') if path.stem not in NO_CORPUS)
    if cfg.corpus not in names:
        raise Refused(f"corpus is {cfg.corpus!r}, expected one of corpora/*.py: {', '.join(names)}")
    docs = sorted(importlib.import_module('corpora.' + cfg.corpus).utterances(cfg.audio), key=lambda u: u['id'])
    for one, two in zip(docs, docs[1:]):
        if one['id'] == two['id']:
            raise Refused(f"{cfg.audio}: two utterances with the id '{one['id']}': {one['path']} and {two['path']}")
    for u in docs:
        if not all(t is None or math.isfinite(t) and t >= 0 for t in (u['start'], u['end'])) or None not in (u['start'], u['end']) \
                and u['end'] < u['start']: # as long as nothing: its reading fails, and is counted
            raise Refused(f"{cfg.audio}: '{u['id']}' is from {u['start']} to {u['end']} s of {u['path']}, expected rising seconds")
        try:
            f"{u['id']}{u['path']}".encode()
        except UnicodeEncodeError:
            raise Refused(f"{cfg.audio}: {u['path']!r} has a name that is not UTF-8; rename the file") from None
    if not docs:
        raise Refused(f"{cfg.audio}: no utterance in it that corpora/{cfg.corpus}.py finds")
    return docs
