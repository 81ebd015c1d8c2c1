"""
Word times that people already have -> {document id: (words, starts, ends)}, in samples at 16 kHz, NaN where missing.

    read_words('words.jsonl', ids)     a line a document            read_words('FOLDER', ids)     a file a document

What a document holds decides its format, whatever it is called:

    {"words": [[word, start, end], ...]}                     ours; also {"words": [{"word", "start", "end"}, ...]}
    {"segments": [{"words": [{"word", "start", "end"}]}]}    whisper, faster-whisper, WhisperX (whose times may be absent)
    {"aligned_text": [[word, start, end], ...]}              slamkit's file beside each audio file
    {"aligned_text": [{"word", "start_time", "end_time"}]}   the columns of sTinyStories
    File type = "ooTextFile" ...                             a TextGrid of MFA or Praat, long or short, UTF-8 or UTF-16:
                                                             its tier "words" ("NAME - words"), silences left out

Seconds all of them. A line's document is its "id", else the stem of its "file_name" or "audio"; a file's is its path in
FOLDER without the extension. A name that is no id is that of the only id that ends in /name. Spelling is kept as given.
"""
import math
import os
import re
from pathlib import Path

import numpy as np

from configurator import Refused
from files import read_lines, strict_json, unlisted
from speech.audio import RATE

SILENCES = {'', 'sil', 'sp', 'spn', 'silence', '<sil>', '<eps>', '<s>', '</s>'} # in a tier of words; MFA's and older ones
EXPECTED = 'expected words with times: "words", "segments", "aligned_text", or a TextGrid'

def _samples(t, rate):
    if t is None:
        return np.nan
    if type(t) not in (int, float) or not math.isfinite(t):
        raise TypeError(t) # a NaN in JSON, too: what is missing is null
    return float(t * rate)

def _word(w, rate):
    """[word, start, end] or {"word", "start", "end"} -> (word, start, end)."""
    if isinstance(w, dict):
        text = w.get('word', w.get('text'))
        w = [text, w.get('start', w.get('start_time')), w.get('end', w.get('end_time'))]
    word, start, end = w
    return word + '', _samples(start, rate), _samples(end, rate)

def words_of(where, name, value, rate=RATE):
    """(words, starts, ends) of a JSON object in one of the formats; times times rate are samples. Raises Refused."""
    lists = [value[key] for key in ('words', 'aligned_text') if key in value]
    if not lists and isinstance(value.get('segments'), list):
        lists = [s.get('words') if isinstance(s, dict) else s for s in value['segments']]
        if any(words is None for words in lists):
            raise Refused(f"{where}: '{name}' has segments without words; transcribe it again with word timestamps")
        lists = [[word for words in lists for word in words]]
    if not lists:
        raise Refused(f'{where}: {EXPECTED}; \'{name}\' has {", ".join(map(repr, value)) or "nothing"}')
    try:
        if not isinstance(lists[0], (list, type(None))):
            raise TypeError
        return tuple(map(list, zip(*(_word(w, rate) for w in lists[0] or ())))) or ([], [], [])
    except (TypeError, ValueError, OverflowError):
        raise Refused(f"{where}: words of '{name}': expected [word, start, end] or {{\"word\", \"start\", \"end\"}} each, "
                      "a string and two numbers (seconds) or null") from None

# Praat reads the numbers, strings and flags that stand free in a TextGrid, and takes the rest as comment: so the long form
# and the short one are the same to it
TEXTGRID = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)([-+]?\d[^\s]*)(?!\S)|(?<!\S)(<\w+>)|!.*')

def textgrid_words(where, text):
    """(words, starts, ends in seconds) of the tier of words of a TextGrid. Raises Refused."""
    tiers, at = {}, 6 # ooTextFile TextGrid xmin xmax <exists> number of tiers
    try:
        tokens = [string if number == '' == flag else flag or float(number) for string, number, flag in
                  (m.groups('') for m in TEXTGRID.finditer(text) if not m.group().startswith('!'))]
        for _ in range(int(tokens[5])):
            kind, name, n = tokens[at], tokens[at + 1], int(tokens[at + 4])
            width = {'IntervalTier': 3, 'TextTier': 2}[kind]
            if at + 5 + n * width > len(tokens):
                raise ValueError
            rows = [tokens[at + 5 + i * width:at + 5 + (i + 1) * width] for i in range(n)]
            if any([type(x) for x in row] != [float] * (width - 1) + [str] for row in rows):
                raise ValueError
            tiers[name], at = rows, at + 5 + n * width
    except (IndexError, ValueError, KeyError, TypeError, OverflowError):
        raise Refused(f"{where}: not a whole TextGrid, it ends or breaks in tier {len(tiers) + 1}") from None
    found = [name for name in tiers if re.fullmatch(r'(.* - )?words?', name.strip().casefold())]
    if len(found) != 1:
        raise Refused(f"{where}: expected one tier 'words' (or 'NAME - words'), its tiers are {', '.join(map(repr, tiers)) or 'none'}")
    rows = [row for row in tiers[found[0]] if row[-1].strip().casefold() not in SILENCES]
    return [row[2].replace('""', '"').strip() for row in rows], [row[0] for row in rows], [row[1] for row in rows]

def _text(path):
    try:
        data = path.read_bytes()
        return data.decode('utf-16' if data[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig')
    except OSError as e:
        raise Refused(f"{path}: not readable ({e.strerror})") from None
    except UnicodeDecodeError as e:
        raise Refused(f"{path}: not text in UTF-8 or UTF-16 ({e})") from None

def _name(where, value):
    """The id of a line; else the stem of the file it names."""
    file = value.get('file_name') or value.get('audio')
    file = file.get('path') if isinstance(file, dict) else file
    name = value.get('id') or (Path(file).stem if isinstance(file, str) else None)
    if not isinstance(name, str):
        raise Refused(f'{where}: expected {{"id": ..., "words": [[word, start, end], ...]}}, or a "file_name" instead of the id')
    return name

def _documents(path, name):
    """(where, name, (words, starts, ends)) of each document of a file; name: None, or that of the file's only document."""
    if path.name.endswith(('.jsonl', '.jsonl.gz')):
        for where, line in read_lines(path):
            own = _name(where, line)
            yield where, own, words_of(where, own, line)
        return
    text = _text(path)
    if text.lstrip().startswith('File type'):
        words, *times = textgrid_words(path, text)
        yield path, name, (words, *([t * RATE for t in column] for column in times))
        return
    try:
        value = strict_json(text)
    except ValueError as e:
        raise Refused(f"{path}: neither JSON ({e}) nor a TextGrid") from None
    if not isinstance(value, dict):
        raise Refused(f"{path}: {EXPECTED}; got {text.strip()[:40]}")
    yield path, name, words_of(path, name, value)

def word_files(path):
    """[(file, name of its document)] of a file or folder, in order."""
    path = Path(path)
    if not path.is_dir():
        return [(path, path.stem)]
    found = sorted(Path(folder) / name for folder, _, names in os.walk(path, onerror=unlisted) for name in names
                   if name.casefold().endswith(('.json', '.jsonl', '.jsonl.gz', '.textgrid')))
    if not found:
        raise Refused(f"{path}: no .json, .jsonl or .TextGrid file in it")
    return [(file, file.relative_to(path).with_suffix('').as_posix()) for file in found]

def read_words(path, ids):
    """{document id: (words, starts, ends)} for those of ids that a file or folder has; see the file's head."""
    known, endings, found = set(ids), {}, {}
    for id in known:
        endings.setdefault(id.rpartition('/')[2], []).append(id)
    names = 0
    for file, own in word_files(path):
        for where, name, words in _documents(file, own):
            names += 1
            fits = [name] if name in known else endings.get(name, [])
            if len(fits) > 1:
                raise Refused(f"{where}: '{name}' could be {' or '.join(sorted(fits)[:3])}; name it by its whole id")
            if fits and fits[0] in found:
                raise Refused(f"{where}: document '{fits[0]}' comes twice")
            found.update((id, words) for id in fits)
    if not found:
        raise Refused(f"{path}: none of its {names} ids is a document of the units folder")
    return found
