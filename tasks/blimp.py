"""
BLiMP (Warstadt et al. 2020, arXiv 1912.00582), as text: 67 sets of 1,000 pairs of a grammatical and an ungrammatical sentence.

    ROOT/*.jsonl or ROOT/data/*.jsonl    {"sentence_good", "sentence_bad", "UID", "field", "pairID"} a line

Rows: all, and each field (morphology, semantics, syntax, syntax_semantics, which one set spells with a slash); `types` has
each set. The paper sums over the sentence: see `sum`.
"""
from pathlib import Path

from configurator import Refused
from files import read_lines

KEYS = ('sentence_good', 'sentence_bad', 'UID', 'field', 'pairID')

def items(root):
    """Items in the order of files and lines."""
    root = Path(root)
    paths = sorted(root.glob('*.jsonl')) or sorted((root / 'data').glob('*.jsonl'))
    if not paths:
        raise Refused(f"{root}: no .jsonl in it or in its data/; expected BLiMP's files, as adjunct_island.jsonl")
    seen = set()
    for path in paths:
        for where, line in read_lines(path):
            if missing := [key for key in KEYS if not isinstance(line.get(key), str) or not line[key]]:
                raise Refused(f"{where}: no {', '.join(missing)}; expected {', '.join(KEYS)}")
            name = f"{line['UID']}/{line['pairID']}"
            if name in seen:
                raise Refused(f"{where}: {name} is there twice")
            seen.add(name)
            side = lambda which: {'prompt': ('', None), 'ending': (line[f'sentence_{which}'], None)}
            yield {'id': name, 'rows': ('all', line['field'].replace('/', '_')), 'type': line['UID'],
                   'right': side('good'), 'wrong': side('bad')}
