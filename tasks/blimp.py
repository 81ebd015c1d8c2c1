"""
BLiMP (Warstadt et al. 2020, arXiv 1912.00582), as text: 67 sets of 1,000 pairs, a grammatical
sentence and a wrong one.

    ROOT/*.jsonl or ROOT/data/*.jsonl    {"sentence_good", "sentence_bad", "UID", "field", "pairID"} per line

Rows of eval.json: all, and each field (morphology, semantics, syntax, syntax_semantics; one set
spells the last with a slash). `types` has each set. The paper compares the log-likelihoods of whole
sentences, not their means per token: that score is `sum`.
"""
from pathlib import Path

from configurator import Refused
from files import read_lines, visible

KEYS = ('sentence_good', 'sentence_bad', 'UID', 'field', 'pairID')

def items(root):
    """Items in the order of files and lines."""
    root = Path(root)
    paths = visible(root, '*.jsonl') or visible(root / 'data', '*.jsonl')
    if not paths:
        raise Refused(f"{root}: no .jsonl in it or in its data/; expected BLiMP's files, as adjunct_island.jsonl")
    names = set()
    for path in paths:
        for place, line in read_lines(path):
            if missing := [key for key in KEYS if not isinstance(line.get(key), str) or not line[key]]:
                raise Refused(f"{place}: no {', '.join(missing)}; expected {', '.join(KEYS)}")
            name = f"{line['UID']}/{line['pairID']}"
            if name in names:
                raise Refused(f"{place}: {name} comes twice")
            names.add(name)
            right = {'prompt': ('', None), 'ending': (line['sentence_good'], None)}
            wrong = {'prompt': ('', None), 'ending': (line['sentence_bad'], None)}
            field = line['field'].replace('/', '_')
            yield {'id': name, 'rows': ('all', field), 'type': line['UID'], 'right': right, 'wrong': wrong}
