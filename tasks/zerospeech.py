"""
ZeroSpeech 2021's sBLIMP and sWUGGY (Nguyen et al. 2020, arXiv 2011.11588), from its folder as unpacked.

    ROOT/syntactic/{dev,test}/*.wav + gold.csv    sBLIMP: filename, id, voice, type, subtype, transcription, correct
    ROOT/lexical/{dev,test}/*.wav + gold.csv      sWUGGY: filename, id, voice, frequency, word, phones, length, correct

gold.csv says by name which files make a pair: equal (type, subtype, id) or id, in one voice, one of them correct. Files
that it names and that are not there, and files that it does not name, are an error that lists them. The official score is
that of evaluation/scores.py, the mean over a pair's voices and then over pairs; sWUGGY's `inter` is what the ZeroSpeech leaderboard
calls in-vocabulary: a word that LibriSpeech has at least once, `oov` the others.
"""
import csv
import math
from pathlib import Path

from configurator import Refused
from tasks.storycloze import check_files

# occurrences below the number; the official scorer's bounds and labels, which differ by one
BANDS = ((1, 'oov'), (5, '1-5'), (20, '6-20'), (100, '21-100'), (math.inf, '>100'))
COLUMNS = {'syntactic': ('filename', 'id', 'voice', 'type', 'subtype', 'correct'),
           'lexical': ('filename', 'id', 'voice', 'frequency', 'correct')}

def sblimp(root):
    """Items of sBLIMP; `type` is the phenomenon."""
    for split, pair, voice, rows in _pairs(root, 'syntactic', ('type', 'subtype', 'id')):
        yield _item(split, pair, voice, rows, (split,), rows['1']['type'])

def swuggy(root):
    """Items of sWUGGY; `type` is the band of frequency, which dev alone may lack."""
    for split, pair, voice, rows in _pairs(root, 'lexical', ('id',)):
        text = rows['1']['frequency']
        try:
            n = float(text) if text else None
        except ValueError:
            raise Refused(f"{root}: {split} {pair[0]}: frequency {text!r}, expected a number or nothing") from None
        known = () if n is None else (f'{split}/oov' if n < 1 else f'{split}/inter',)
        band = None if n is None else next(name for below, name in BANDS if n < below)
        yield _item(split, pair, voice, rows, (split, *known), band)

def _item(split, pair, voice, rows, names, kind):
    item = {'id': '/'.join((split, *pair, voice)), 'pair': '/'.join((split, *pair)), 'rows': names, 'split': split,
            'files': {'right': rows['1']['filename'], 'wrong': rows['0']['filename']}, # of a submission
            'right': {'joined': rows['1']['path']}, 'wrong': {'joined': rows['0']['path']}}
    return item if kind is None else {**item, 'type': kind}

def _pairs(root, part, key):
    """(split, pair, voice, {'1': correct row, '0': the other}) of every pair, in order of the gold file's ids."""
    root = Path(root)
    root = root / part if (root / part).is_dir() else root
    splits = [split for split in ('dev', 'test') if (root / split / 'gold.csv').is_file()]
    if not splits:
        raise Refused(f"{root}: neither dev/gold.csv nor test/gold.csv; expected ZeroSpeech 2021's {part} folder as unpacked")
    for split in ('dev', 'test'):
        if (root / split).is_dir() and split not in splits:
            print(f"{root / split}: no gold.csv in it, so this split is not measured")
    for split in splits:
        found, gold = {}, root / split / 'gold.csv'
        for where, row in _read_gold(gold, COLUMNS[part]):
            sides = found.setdefault((tuple(row[k] for k in key), row['voice']), {})
            if row['correct'] not in ('0', '1') or row['correct'] in sides:
                raise Refused(f"{where}: correct is {row['correct']!r}; expected one 0 and one 1 for each "
                              f"{', '.join(key)} and voice")
            sides[row['correct']] = {**row, 'path': root / split / f"{row['filename']}.wav"}
        if halves := ['/'.join((*pair, voice)) for (pair, voice), sides in found.items() if len(sides) < 2]:
            raise Refused(f"{gold}: {len(halves)} without their other half: {', '.join(sorted(halves)[:10])}")
        check_files(root / split, {side['path'].name for sides in found.values() for side in sides.values()}, gold.name)
        for (pair, voice), sides in sorted(found.items()):
            yield split, pair, voice, sides

def _read_gold(path, columns):
    with open(path, newline='', encoding='utf-8') as f:
        reader = csv.DictReader(f)
        if missing := sorted(set(columns) - set(reader.fieldnames or ())):
            raise Refused(f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}")
        seen = set()
        for row in reader:
            where = f'{path}:{reader.line_num}'
            name = row['filename']
            if any(row[c] is None for c in columns) or name in seen or Path(name).name != name:
                raise Refused(f"{where}: {row['filename']!r} is there twice, incomplete or not a plain name")
            seen.add(row['filename'])
            yield where, row
