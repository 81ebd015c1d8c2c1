"""
ZeroSpeech 2021's sBLIMP and sWUGGY (Nguyen et al. 2020, arXiv 2011.11588), from its folder as unpacked.

    ROOT/syntactic/{dev,test}/*.wav + gold.csv    sBLIMP: filename, id, voice, type, subtype, transcription, correct
    ROOT/lexical/{dev,test}/*.wav + gold.csv      sWUGGY: filename, id, voice, frequency, word, phones, length, correct

The two files of a pair have the same voice and the same (type, subtype, id) in sBLIMP's gold.csv,
or the same id in sWUGGY's; one of them is correct. Files that gold.csv names and that are missing,
and files that it does not name, are an error that lists them. The official score is that of
evaluation/scores.py, the mean over a pair's voices and then over pairs. sWUGGY's `inter` is what
the ZeroSpeech leaderboard calls in-vocabulary: words that LibriSpeech has at least once. `oov` are
the others.
"""
import math
from pathlib import Path

from configurator import Refused
from files import read_table
from tasks.storycloze import check_files

# The official scorer's bands: (number of occurrences below which a word belongs to it, label).
BANDS = ((1, 'oov'), (5, '1-5'), (20, '6-20'), (100, '21-100'), (math.inf, '>100'))
COLUMNS = {'syntactic': ('filename', 'id', 'voice', 'type', 'subtype', 'correct'),
           'lexical': ('filename', 'id', 'voice', 'frequency', 'correct')}

def sblimp(root):
    """Items of sBLIMP; `type` is the phenomenon."""
    for split, pair, voice, rows in _pairs(root, 'syntactic', ('type', 'subtype', 'id')):
        yield _item(split, pair, voice, rows, (split,), rows['1']['type'])

def swuggy(root):
    """Items of sWUGGY; `type` is the band of frequency, if gold.csv has a frequency."""
    for split, pair, voice, rows in _pairs(root, 'lexical', ('id',)):
        frequency = rows['1']['frequency']
        if not frequency:
            yield _item(split, pair, voice, rows, (split,), None)
            continue
        try:
            n = float(frequency)
        except ValueError:
            raise Refused(f"{root}: {split} {pair[0]}: frequency {frequency!r}, expected a number or nothing") from None
        band = next(label for bound, label in BANDS if n < bound)
        known = f'{split}/oov' if n < 1 else f'{split}/inter'
        yield _item(split, pair, voice, rows, (split, known), band)

def _item(split, pair, voice, rows, names, kind):
    pair_id = '/'.join((split, *pair))
    item = {'id': f'{pair_id}/{voice}', 'pair': pair_id, 'rows': names, 'split': split,
            'files': {'right': rows['1']['filename'], 'wrong': rows['0']['filename']}, # for a submission
            'right': {'joined': rows['1']['path']}, 'wrong': {'joined': rows['0']['path']}}
    return item if kind is None else {**item, 'type': kind}

def _pairs(root, part, key):
    """Yields (split, pair, voice, {'1': the correct row, '0': the other}) of every pair, sorted by its ids."""
    root = Path(root)
    root = root / part if (root / part).is_dir() else root
    splits = [split for split in ('dev', 'test') if (root / split / 'gold.csv').is_file()]
    if not splits:
        raise Refused(f"{root}: neither dev/gold.csv nor test/gold.csv; "
                      f"expected ZeroSpeech 2021's {part} folder as unpacked")
    for split in ('dev', 'test'):
        if (root / split).is_dir() and split not in splits:
            print(f"{root / split}: no gold.csv in it, so this split is not measured")
    for split in splits:
        gold = root / split / 'gold.csv'
        pairs = {}
        for place, row in _read_gold(gold, COLUMNS[part]):
            pair = tuple(row[column] for column in key)
            sides = pairs.setdefault((pair, row['voice']), {})
            if row['correct'] not in ('0', '1') or row['correct'] in sides:
                raise Refused(f"{place}: correct is {row['correct']!r}; expected one 0 and one 1 for each "
                              f"{', '.join(key)} and voice")
            sides[row['correct']] = {**row, 'path': root / split / f"{row['filename']}.wav"}
        if halves := ['/'.join((*pair, voice)) for (pair, voice), sides in pairs.items() if len(sides) < 2]:
            raise Refused(f"{gold}: {len(halves)} without their other half: {', '.join(sorted(halves)[:10])}")
        names = {side['path'].name for sides in pairs.values() for side in sides.values()}
        check_files(root / split, names, gold.name)
        for (pair, voice), sides in sorted(pairs.items()):
            yield split, pair, voice, sides

def _read_gold(path, columns):
    """Yields (place, row as a dict) of each line."""
    names = set()
    for place, row in read_table(path, columns):
        name = row['filename']
        if name in names or Path(name).name != name:
            raise Refused(f"{place}: {name!r} comes twice or is not a plain name")
        names.add(name)
        yield place, row
