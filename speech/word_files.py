"""
Word times that people already have -> {document id: (words, starts, ends)}, in samples at 16 kHz,
NaN where a time is missing.

    read_words('words.jsonl', ids)    a document a line
    read_words('FOLDER', ids)         a document a file

The content of a document decides its format, not its file name:

    {"words": [[word, start, end], ...]}                     this project's own; items may also be
                                                             {"word", "start", "end"}
    {"segments": [{"words": [{"word", "start", "end"}]}]}    whisper, faster-whisper, and WhisperX,
                                                             in which times may be absent
    {"aligned_text": [[word, start, end], ...]}              slamkit's file beside each audio file
    {"aligned_text": [{"word", "start_time", "end_time"}]}   the columns of sTinyStories
    File type = "ooTextFile" ...                             a TextGrid of MFA or Praat, long or
                                                             short, UTF-8 or UTF-16: its tier
                                                             "words" ("NAME - words"), without
                                                             silences

All times are in seconds. A line names its document by "id", or else by the stem of its "file_name"
or "audio"; a file by its path in FOLDER without the extension. A name that is no id of the units
folder stands for the only id that ends in /name. Words keep their spelling.
"""
import math
import re
from pathlib import Path

import numpy as np

from configurator import Refused
from files import read_lines, strict_json, walk
from speech.audio import RATE

# The marks of silence in a tier of words, those of old versions of MFA included.
SILENCES = {'', 'sil', 'sp', 'spn', 'silence', '<sil>', '<eps>', '<s>', '</s>'}
EXTENSIONS = '.json', '.jsonl', '.jsonl.gz', '.textgrid'
EXPECTED = 'expected words with times: "words", "segments", "aligned_text", or a TextGrid'

# --------------------------------------------------------------------------------------------------
# JSON

def _samples(seconds, rate):
    if seconds is None:
        return np.nan
    if type(seconds) not in (int, float) or not math.isfinite(seconds):
        raise TypeError(seconds) # also for a NaN in JSON: what is missing is null
    return float(seconds * rate)

def _word(item, rate):
    """[word, start, end] or {"word", "start", "end"} -> (word, start, end)."""
    if isinstance(item, dict):
        word = item.get('word', item.get('text'))
        start = item.get('start', item.get('start_time'))
        end = item.get('end', item.get('end_time'))
    else:
        word, start, end = item
    return word + '', _samples(start, rate), _samples(end, rate)

def words_of(source, name, value, rate=RATE):
    """JSON object in one of the formats -> (words, starts, ends), in samples at `rate`.

    source (file and line) and name (document) are for the message of the Refused that it raises.
    """
    lists = [value[key] for key in ('words', 'aligned_text') if key in value][:1]
    if not lists and isinstance(value.get('segments'), list):
        lists = [s.get('words') if isinstance(s, dict) else s for s in value['segments']] or [[]]
        if None in lists:
            raise Refused(f"{source}: '{name}' has segments without words; "
                          "transcribe it again with word timestamps")
    if not lists:
        raise Refused(f"{source}: {EXPECTED}; '{name}' has {', '.join(map(repr, value)) or 'nothing'}")
    try:
        if not all(isinstance(items, (list, type(None))) for items in lists):
            raise TypeError
        words = [_word(item, rate) for items in lists for item in items or ()]
    except (TypeError, ValueError, OverflowError):
        raise Refused(f"{source}: words of '{name}': "
                      'expected [word, start, end] or {"word", "start", "end"} each, '
                      'a string and two numbers (seconds) or null') from None
    return tuple(map(list, zip(*words))) or ([], [], [])

# --------------------------------------------------------------------------------------------------
# TextGrid

# The long and the short form of a TextGrid hold the same values in the same order. Praat reads the
# free-standing numbers, the strings and the <flags>, and takes all other text as comment.
TEXTGRID = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)([-+]?\d[^\s]*)(?!\S)|(?<!\S)(<\w+>)|!.*')
N_FIELDS = {'IntervalTier': 3, 'TextTier': 2} # of an item: its times, then its text

def _textgrid_tokens(text):
    """The values of a TextGrid in order: numbers as float, strings and flags as str."""
    tokens = []
    for match in TEXTGRID.finditer(text):
        if match.group().startswith('!'): # a comment
            continue
        string, number, flag = match.groups('')
        tokens.append(float(number) if number else flag or string)
    return tokens

def textgrid_words(source, text):
    """(words, starts, ends), times in seconds, of a TextGrid's tier of words. Raises Refused."""
    tiers = {}
    i = 6 # behind ooTextFile, TextGrid, xmin, xmax, <exists> and the number of tiers
    try:
        tokens = _textgrid_tokens(text)
        for _ in range(int(tokens[5])):
            kind, name, _, _, size = tokens[i:i + 5]
            n_fields = N_FIELDS[kind]
            end = i + 5 + int(size) * n_fields
            if end > len(tokens):
                raise ValueError
            rows = [tokens[row:row + n_fields] for row in range(i + 5, end, n_fields)]
            if any([type(x) for x in row] != [float] * (n_fields - 1) + [str] for row in rows):
                raise ValueError
            tiers[name] = rows
            i = end
    except (IndexError, ValueError, KeyError, TypeError, OverflowError):
        raise Refused(f"{source}: not a whole TextGrid, it ends or breaks in tier {len(tiers) + 1}") from None
    names = [name for name in tiers if re.fullmatch(r'(.* - )?words?', name.strip().casefold())]
    if len(names) != 1:
        all_names = ', '.join(map(repr, tiers)) or 'none'
        raise Refused(f"{source}: expected one tier 'words' (or 'NAME - words'), its tiers are {all_names}")
    rows = [row for row in tiers[names[0]] if row[-1].strip().casefold() not in SILENCES]
    words = [row[2].replace('""', '"').strip() for row in rows]
    return words, [row[0] for row in rows], [row[1] for row in rows]

# --------------------------------------------------------------------------------------------------
# files and folders

def _text(path):
    try:
        data = path.read_bytes()
        return data.decode('utf-16' if data[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig')
    except OSError as e:
        raise Refused(f"{path}: not readable ({e.strerror})") from None
    except UnicodeDecodeError as e:
        raise Refused(f"{path}: not text in UTF-8 or UTF-16 ({e})") from None

def _name(source, value):
    """The document that a line is about: its id, or else the stem of the file that it names."""
    file = value.get('file_name') or value.get('audio')
    if isinstance(file, dict):
        file = file.get('path')
    name = value.get('id') or (Path(file).stem if isinstance(file, str) else None)
    if not isinstance(name, str):
        raise Refused(f'{source}: expected '
                      '{"id": ..., "words": [[word, start, end], ...]}, '
                      'or a "file_name" instead of the id')
    return name

def _documents(path, name):
    """(file and line, name, (words, starts, ends)) of each document of a file.

    name: the name of the document of a file that holds only one.
    """
    if path.name.endswith(('.jsonl', '.jsonl.gz')):
        for source, line in read_lines(path):
            line_name = _name(source, line)
            yield source, line_name, words_of(source, line_name, line)
        return
    text = _text(path)
    if text.lstrip().startswith('File type'):
        words, starts, ends = textgrid_words(path, text)
        yield path, name, (words, [t * RATE for t in starts], [t * RATE for t in ends])
        return
    try:
        value = strict_json(text)
    except ValueError as e:
        raise Refused(f"{path}: neither JSON ({e}) nor a TextGrid") from None
    if not isinstance(value, dict):
        raise Refused(f"{path}: {EXPECTED}; got {text.strip()[:40]}")
    yield path, name, words_of(path, name, value)

def word_files(path):
    """[(file, name of its document)] of a file or folder, in order. Raises Refused."""
    path = Path(path)
    if not path.is_dir():
        return [(path, path.stem)]
    files = [Path(file) for name, file in walk(path).items() if name.casefold().endswith(EXTENSIONS)]
    if not files:
        raise Refused(f"{path}: no .json, .jsonl or .TextGrid file in it")
    return [(file, file.relative_to(path).with_suffix('').as_posix()) for file in sorted(files)]

def read_words(path, ids):
    """{document id: (words, starts, ends)} for those of ids that a file or folder has words of.

    Names are matched with ids as the head of this file says. Raises Refused.
    """
    known_ids = set(ids)
    ids_by_ending = {}
    for id in known_ids:
        ids_by_ending.setdefault(id.rpartition('/')[2], []).append(id)
    words_by_id = {}
    n_names = 0
    for file, file_name in word_files(path):
        for source, name, words in _documents(file, file_name):
            n_names += 1
            matches = [name] if name in known_ids else ids_by_ending.get(name, [])
            if len(matches) > 1:
                raise Refused(f"{source}: '{name}' could be {' or '.join(sorted(matches)[:3])}; "
                              "name it by its whole id")
            if matches and matches[0] in words_by_id:
                raise Refused(f"{source}: document '{matches[0]}' comes twice")
            words_by_id.update((id, words) for id in matches)
    if not words_by_id:
        raise Refused(f"{path}: none of its {n_names} ids is a document of the units folder")
    return words_by_id
