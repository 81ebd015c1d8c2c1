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
    {"chunks": [{"text", "timestamp": [start, end]}]}        transformers' pipeline
    {"segments": [{"text", "start", "end"}]}                 ctc-forced-aligner; a bare list of
                                                             segments or words will do as well
    {"transcription": [{"text", "offsets", "tokens"}]}       whisper.cpp, -oj or -ojf, in ms
    {"tiers": ...}                                           MFA, praatio
    {"result": [{"word", "start", "end"}]}                   Vosk; {"word_segments"} of WhisperX alone
    TextGrid, ELAN, CTM, SRT, WebVTT, labels, ...            speech/annotations.py

Words get the spaces that the text beside them has (`with_spaces`). A segment that has a text but no
words gives the words of its text: the first has its start, the last its end, the others no times.
Labels for silence are left out (`is_silence`). Of files of the same name in a folder, JSON, TextGrids,
ELAN and CTM are read; where there are none, one of its tables and subtitles, NAME.words.srt before
NAME.srt.

All times are in seconds. A line names its document by "id", or else by the stem of its "file_name",
"audio" or "audio_filepath"; a CTM or a collection by its recordings; any other file by its path in
FOLDER without the extension. A name that is no id of the units folder stands for the only id that
ends in /name, with or without an extension of audio. Words keep their spelling.
"""
import json
import math
import re
import tempfile
from array import array
from contextlib import contextmanager
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path

import numpy as np

from configurator import Refused
from files import outside_units, progress, read_lines, strict_json, walk
from speech import annotations
from speech.annotations import Segment, words_tier
from speech.audio import RATE
from speech.words import UNSPACED, is_silence, joins_without_space, letters, split_words, with_spaces

MAIN_EXTENSIONS = '.json', '.jsonl', '.jsonl.gz', '.textgrid', '.collection', '.eaf', '.ctm'
TABLES = '.tsv', '.vtt', '.srt', '.aud', '.txt'
AUDIO_NAME = re.compile(r'(\.(wav|flac|mp3|ogg|oga|opus|m4a|mp4|webm|aiff?|aac|wma|au|sph))?(\.words)?$', re.I)

# --------------------------------------------------------------------------------------------------
# JSON

def _samples(seconds, rate):
    if seconds is None:
        return np.nan
    if type(seconds) not in (int, float) or not math.isfinite(seconds):
        raise TypeError(seconds) # also for a NaN in JSON: what is missing is null
    return float(seconds * rate)

def _word(item):
    """[word, start, end] or {"word", "start", "end"} -> (word, start, end)."""
    if not isinstance(item, dict):
        word, start, end = item
        return word, start, end
    start = item.get('start', item.get('start_time'))
    end = item.get('end', item.get('end_time'))
    return item.get('word', item.get('text')), start, end

def _word_list(source, value, key):
    text = value.get('text', value.get('transcript'))
    return [Segment(None, None, text, list(map(_word, value[key])))]

def _segments(source, value, key):
    segments = []
    for item in value[key]:
        start, end = item.get('timestamp') or (item.get('start'), item.get('end'))
        words = list(map(_word, item.get('words') or ()))
        segments.append(Segment(start, end, item.get('text'), _with_all_words(words, item.get('text'))))
    return segments

def _with_all_words(rows, text):
    """Rows with those words of the segment's text that they lack, without times, if they differ in nothing else."""
    in_text = split_words(text) if isinstance(text, str) else []
    if not any(word[:1].isspace() for word, _, _ in rows):
        in_text = list(map(str.strip, in_text)) # `with_spaces` comes later
    heard = [letters(word) for word, _, _ in rows]
    matcher = SequenceMatcher(None, heard, list(map(letters, in_text)), autojunk=False)
    all_rows = []
    for operation, i, end, j, end_in_text in matcher.get_opcodes():
        if operation in ('replace', 'delete'):
            return rows
        missing = [(word, None, None) for word in in_text[j:end_in_text] if letters(word)]
        all_rows += missing if operation == 'insert' else rows[i:end]
    return all_rows if rows else []

def _tiers(source, value, key):
    """{name: tier} or [tier with its name]; entries of points have two fields."""
    tiers = value[key].items() if isinstance(value[key], dict) else [(tier['name'], tier) for tier in value[key]]
    rows = [(name, None if tier.get('type', tier.get('class')) in ('TextTier', 'point') else tier['entries'])
            for name, tier in tiers]
    return [words_tier(source, rows)]

def _whisper_cpp(source, value, key):
    """Entries with times in ms, with -ojf with tokens: parts of words, the bytes of a letter perhaps in several."""
    segments = []
    for item in value[key]:
        words = [] # [text, start, end]
        for token in item.get('tokens', ()):
            text = token['text']
            if re.fullmatch(r'\[_.*\]|<\|.*\|>', text): # [_BEG_], [_TT_50]
                continue
            start, end = map(token.get('offsets', {}).get, ('from', 'to'))
            # A space begins a word, and a letter of a script without spaces, or the first byte of one.
            begins = re.match('\\s|[\udce3-\udce9]', text) or UNSPACED.match(text) and text[0].isalnum()
            if not words or begins and not re.search('[\udc80-\udcff]$', words[-1][0]):
                words.append(['', start, end])
            # Bytes that were read with surrogateescape become the letter once all of them are there.
            text = (words[-1][0] + text).encode('utf-8', 'surrogateescape')
            words[-1] = text.decode('utf-8', 'surrogateescape'), words[-1][1], end
        words = [(word, *(ms if ms is None else ms / 1000 for ms in times)) for word, *times in words]
        offsets = item['offsets']
        segments.append(Segment(offsets['from'] / 1000, offsets['to'] / 1000, item['text'], words))
    return segments

# The key that a format is known by, the most exact first, and its reader.
JSON_FORMATS = {'words': _word_list, 'aligned_text': _word_list, 'segments': _segments, 'chunks': _segments,
                'transcription': _whisper_cpp, 'tiers': _tiers, 'word_segments': _word_list, 'result': _word_list}
EXPECTED = f"expected words with times: {', '.join(map(repr, JSON_FORMATS))}, or {', '.join(annotations.FORMATS)}"

@contextmanager
def _one_line(source, name):
    """Refuses what is not of a format's types."""
    try:
        yield
    except Refused:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        raise Refused(f"{source}: words of '{name}': "
                      'expected [word, start, end] or {"word", "start", "end"} each, '
                      'a string and two numbers (seconds) or null') from None

LONGEST_WORD = 1.5 # seconds: an entry without a blank that lasts no longer is a word, in any script

def _is_word(start, end, text):
    """Whether an entry of a text and times is a single word, also one of several letters of Chinese or Thai."""
    return None not in (start, end) and end - start <= LONGEST_WORD and len(text.split()) == 1

def _joined(segments, rate, whole_text=None):
    """Segments -> (words with their spaces, starts, ends), in samples at `rate`.

    whole_text: the text of the document, which decides on the spaces if it has the words' characters.
    """
    words = []
    times = []
    for start, end, text, rows in segments:
        text = text if isinstance(text, str) else ''
        if not rows and any(map(str.isalnum, text)):
            parts = [text] if _is_word(start, end, text) else split_words(text)
            missing = [None] * (len(parts) - 1)
            rows = zip(parts, [start, *missing], [*missing, end])
        rows = [row for row in rows or () if not is_silence(row[0])]
        spaced = with_spaces([row[0] for row in rows], text)
        if words and spaced and not spaced[0][:1].isspace():
            joins = not text[:1].isspace() and joins_without_space(words[-1], spaced[0])
            spaced[0] = spaced[0] if joins else ' ' + spaced[0]
        words += spaced
        times += [(_samples(start, rate), _samples(end, rate)) for _, start, end in rows]
    if isinstance(whole_text, str) and ''.join(words).split() != whole_text.split():
        bare = [*words[:1], *map(str.strip, words[1:])]
        if ''.join(bare).strip() == ''.join(whole_text.split()):
            words = with_spaces(bare, whole_text)
    return words, [start for start, _ in times], [end for _, end in times]

def words_of(source, name, value, rate=RATE):
    """JSON in one of the formats -> (words, starts, ends), in samples at `rate`.

    source (file and line) and name (document) are for the message of the Refused that it raises.
    """
    if isinstance(value, list) and all(isinstance(item, (list, dict)) for item in value):
        is_words = any(isinstance(item, list) or 'word' in item for item in value)
        value = {'words' if is_words else 'segments': value}
    if not isinstance(value, dict):
        raise Refused(f"{source}: {EXPECTED}; got {str(value)[:40]}")
    keys = [key for key in JSON_FORMATS if key in value and (key != 'result' or isinstance(value[key], list))]
    if not keys:
        raise Refused(f"{source}: {EXPECTED}; '{name}' has {', '.join(map(repr, value)) or 'nothing'}")
    key = next((key for key in keys if value[key]), None)
    with _one_line(source, name):
        return _joined(JSON_FORMATS[key](source, value, key) if key else [], rate, value.get('text'))

# --------------------------------------------------------------------------------------------------
# files and folders

def _text(path):
    try:
        data = path.read_bytes()
    except OSError as e:
        raise Refused(f"{path}: not readable ({e.strerror})") from None
    if data.startswith(b'ooBinaryFile'):
        raise Refused(f"{path}: a binary file of Praat; save it as a text file")
    # whisper.cpp may part the bytes of a letter; a document that stays so is refused as NOT_UNICODE.
    errors = 'surrogateescape' if data.lstrip().startswith((b'{', b'[')) else 'strict'
    try:
        if data[:2] in (b'\xff\xfe', b'\xfe\xff'):
            return data.decode('utf-16')
        return data.decode('utf-8-sig', errors)
    except UnicodeDecodeError as e:
        raise Refused(f"{path}: not text in UTF-8 or UTF-16 ({e})") from None

def _name(source, value):
    """The document that a line is about: its id, or else the stem of the file that it names."""
    file = value.get('file_name') or value.get('audio') or value.get('audio_filepath')
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
    text = _text(path).lstrip()
    for pattern, read in annotations.FORMATS.values():
        if re.match(pattern, text):
            for recording, segments in read(path, text):
                with _one_line(path, recording or name):
                    words = _joined(segments, RATE)
                yield path, recording or name, words
            return
    try:
        value = strict_json(text)
    except ValueError as e:
        raise Refused(f"{path}: neither JSON ({e}) nor {', '.join(annotations.FORMATS)}; "
                      f"it begins with {text[:40]!r}") from None
    yield path, name, words_of(path, name, value)

def _rank(file):
    """0 for a file to be read, above 0 for one that is passed over beside a lower one of its name, None for others."""
    name = file.name.casefold()
    if name.endswith(MAIN_EXTENSIONS):
        return 0
    if file.suffix.casefold() not in TABLES:
        return None
    if name.endswith(('.tsv', '.txt')): # which may hold anything
        try:
            start = file.read_bytes()[:1000].decode('utf-8-sig', 'replace')
        except OSError:
            return None
        if not re.match(annotations.FORMATS['labels'][0], start):
            return None
    return 1 + TABLES.index(file.suffix.casefold()) + len(TABLES) * ('.words.' not in name)

def word_files(path):
    """[(file, name of its document)] of a file or folder, in order. Raises Refused."""
    path = Path(path)
    if not path.is_dir():
        return [(path, path.stem)]
    ranks = {}
    for relative, file in outside_units(walk(path)).items():
        rank = _rank(Path(file))
        if rank is not None:
            name = Path(relative).with_suffix('').as_posix()
            ranks.setdefault(AUDIO_NAME.sub('', name), []).append((rank, Path(file), name))
    if not ranks:
        raise Refused(f"{path}: no .json, .jsonl or .TextGrid file in it, nor {' '.join(MAIN_EXTENSIONS[4:] + TABLES)}")
    return sorted((file, name) for same in ranks.values() for rank, file, name in same if rank == min(same)[0])

class _Numbers:
    """The numbers of strings by their 64-bit hashes, in 16 bytes each; two of 5 million share one in 1 of 10^6 runs."""
    def __init__(self, hashes):
        self.order = np.argsort(hashes, kind='stable')
        self.hashes = hashes[self.order]

    def __getitem__(self, string):
        """The numbers of a string, [] if it is none of them."""
        first, last = (int(np.searchsorted(self.hashes, hash(string), side)) for side in ('left', 'right'))
        return self.order[first:last].tolist()

def matched_words(path, ids):
    """Yields (number of a document, (words, starts, ends)) for those of ids that a file or folder has words of.

    ids: an iterable that can be gone through again, and is never held in memory. Names are matched
    with ids as the head of this file says. Raises Refused.
    """
    hashes = array('q', (hash(part) for id in ids for part in (id, id.rpartition('/')[2])))
    by_id, by_ending = map(_Numbers, np.array(hashes, np.int64).reshape(-1, 2).T)
    seen = np.zeros(len(hashes) // 2, bool)
    n_names = 0
    stranger = None # the first of those that are no document
    for file, file_name in word_files(path):
        for source, name, words in _documents(file, file_name):
            n_names += 1
            bare = AUDIO_NAME.sub('', name)
            matches = by_id[name] or by_id[bare] or by_ending[name] or by_ending[bare]
            if len(matches) > 1:
                names = sorted(id for i, id in enumerate(ids) if i in matches)
                raise Refused(f"{source}: '{name}' could be {' or '.join(names[:3])}; name it by its whole id")
            if matches and seen[matches[0]]:
                id = next(islice(ids, matches[0], None))
                raise Refused(f"{source}: document '{id}' comes twice")
            for number in matches:
                seen[number] = True
                yield number, words
            if not matches and stranger is None:
                stranger = name
    if not seen.any():
        raise Refused(f"{path}: none of its {n_names} ids is a document of the units folder")
    if stranger is not None:
        n_strangers = n_names - int(seen.sum())
        print(f"{path}: {n_strangers} of {n_names} documents are not in the units folder, first '{stranger}'")

def read_words(path, ids):
    """{document id: (words, starts, ends)} for those of a list of ids that a file or folder has words of."""
    return {ids[number]: words for number, words in matched_words(path, ids)}

class StoredWords:
    """matched_words in a temporary file in $TMPDIR or /tmp: stored[number] -> (words, starts, ends), or None."""
    def __init__(self, path, ids):
        self.file = tempfile.TemporaryFile()
        self.starts = array('q') # of each document's line in the file, -1 without
        for number, words in progress(matched_words(path, ids), desc='words', unit='doc', leave=False):
            self.starts.extend([-1] * (number + 1 - len(self.starts)))
            self.starts[number] = self.file.tell()
            self.file.write(json.dumps(words).encode() + b'\n')

    def __getitem__(self, number):
        if number >= len(self.starts) or self.starts[number] < 0:
            return None
        self.file.seek(self.starts[number])
        return json.loads(self.file.readline())
