"""
The words folder: which word is said when, as align.py writes and interleave.py reads it; the repair
of word times; the spelling of words after a text.

    DIR/00000/words.json        the distinct words in the order of their first occurrence, each with the
                                leading space that it has in the text
    DIR/00000/word.npy          (W,) int32, indices into words.json
    DIR/00000/start.npy end.npy (W,) int32, samples at 16 kHz: units begin on whole samples, ties are exact
    DIR/00000/offsets.npy       (n+1,) int64, document i has the words offsets[i]:offsets[i+1]
    DIR/00000/ids.json          document ids
    DIR/00000/info.json         how its words were made (align.py)
    DIR/00000/sha256.json       of the files of the shard
    DIR/info.json               documents, words, refused documents by reason, settings, content (hash of the shards);
                                comes last
"""
import json
import re
import unicodedata
from bisect import bisect_right
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from configurator import Refused
from files import (
    Lazy,
    atomically,
    check_hash_of_shards,
    check_hashes,
    check_readable,
    map_npy,
    progress,
    read_info,
    read_value,
    shard_folders,
    write_hashes,
)
from speech.audio import RATE

LIMIT = RATE // 20 # 50 ms: a repair moves an edge no further

# Why a document cannot be repaired; `repair` returns indices into this tuple.
REASONS = ('', 'MISSING_TIME', 'PAST_END', 'BEFORE_START', 'REVERSED', 'OVERLAP')

# --------------------------------------------------------------------------------------------------
# times

def repair(starts, ends, offsets, n_samples):
    """Word times of many documents, put in order: 0 <= start <= end <= next start <= length.

    starts, ends: (W,) samples, NaN where missing; offsets: (n+1,); n_samples: (n,) length of each
    document's audio. Returns starts, ends (W,) int32 and (n,) indices into REASONS, 0 where all
    repairs stayed within LIMIT.
    - An edge outside the audio is clipped.
    - An edge that is earlier than an edge before it moves up to that edge.
    - A missing edge is filled from its neighbors if the gap between them is at most LIMIT.
    """
    edges = np.stack([starts, ends], 1).astype(np.float64)
    edges = np.rint(edges).ravel() # (2W,) start, end, start, end, ...
    offsets = np.asarray(offsets, np.int64)
    n_samples = np.asarray(n_samples, np.float64)
    doc = np.repeat(np.arange(len(n_samples)), 2 * np.diff(offsets)) # (2W,) the document of each edge
    length = n_samples[doc]
    missing = np.isnan(edges)
    past_end = edges - length > LIMIT
    before_start = edges < -LIMIT
    edges = np.clip(edges, 0, length)
    is_reversed = np.zeros(len(edges), bool)
    is_reversed[1::2] = edges[0::2] - edges[1::2] > LIMIT

    # Each document gets a range of numbers of its own, so that one running maximum serves them all.
    base = doc * (n_samples.max(initial=0) + 1)
    edges += base
    # The known edge before each edge (or the start of the audio), and the known edge after it.
    low = np.maximum.accumulate(np.where(missing, base, edges))
    high = np.minimum.accumulate(np.where(missing, base + length, edges)[::-1])[::-1]
    not_fixed = missing & (high - low > LIMIT)
    # A missing start takes the edge before it, a missing end the edge after it.
    is_end = np.arange(len(edges)) % 2 == 1
    filled = np.where(missing, np.where(is_end, high, low), edges)
    ordered = np.maximum.accumulate(filled)
    overlap = ordered - filled > LIMIT

    # The reason of a document is the first of REASONS that applies to one of its edges.
    reason = np.full(len(n_samples), len(REASONS))
    for code, flags in enumerate((not_fixed, past_end, before_start, is_reversed, overlap), start=1):
        np.minimum.at(reason, doc[flags], code)
    edges = (ordered - base).astype(np.int32)
    return edges[0::2], edges[1::2], reason % len(REASONS)

# --------------------------------------------------------------------------------------------------
# words of any script

# Scripts without blanks between words: Thai, Lao, Tibetan, Myanmar, Khmer, Tai, Han, kana, bopomofo, with their
# punctuation and full-width forms.
UNSPACED = re.compile('[\u0e00-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u2e80-\u312f\u3190-\u9fff'
                      '\ua9e0-\ua9ff\uaa60-\uaadf\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff9f\U00020000-\U0003ffff]')
INVISIBLE = re.compile('[\u00ad\u034f\u061c\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]') # joiners, soft hyphens

def split_words(text):
    """'the  dog ' -> ['the', '  dog']: words with the spaces before them.

    In scripts without spaces each letter is a word, with the marks and the punctuation behind it.
    """
    words = ['']
    letter = '' # the last letter of the word so far
    for before, character in zip(' ' + text, text.rstrip()):
        is_letter = character.isalnum()
        after_blank = character.isspace() and not before.isspace()
        if after_blank or is_letter and letter and UNSPACED.search(letter + character):
            words.append('')
            letter = ''
        words[-1] += character
        letter = character if is_letter else letter
    return [word for word in words if word.strip()]

def plain_words(text):
    """The words that are compared in a word error rate.

    Case and composition do not count (NFKC, case folding, NFKC). A word is letters, digits, their marks and
    apostrophes between them, as in Unicode's UAX 29, but periods, colons and commas always part words. A
    letter of a script without spaces is a word, so that the word error rate is a character error rate there.
    """
    text = unicodedata.normalize('NFKC', INVISIBLE.sub('', text)).casefold()
    text = unicodedata.normalize('NFKC', text).replace('i\u0307', 'i') # Turkish İ
    text = re.sub('[’\u02bc]', "'", text).replace("''", ' ')
    kept = (c if c == "'" or unicodedata.category(c)[0] in 'LMN' else ' ' for c in text)
    words = (word.strip(" '") for word in split_words(''.join(kept)))
    return [word for word in words if any(map(str.isalnum, word))]

def edit_distance(a, b):
    """Levenshtein: how many items must be replaced, left out and added to turn sequence a into b."""
    ids = {}
    a = np.array([ids.setdefault(item, len(ids)) for item in a], np.int64)
    b = np.array([ids.setdefault(item, len(ids)) for item in b], np.int64)
    steps = np.arange(len(b) + 1)
    row = steps # row[j]: the distance of the items of a so far to b[:j]
    for item in a:
        # Replacing or leaving out an item needs the row before; adding items is a running minimum.
        replaced = row[:-1] + (b != item)
        row = np.minimum(row + 1, np.concatenate([row[:1] + 1, replaced]))
        row = np.minimum.accumulate(row - steps) + steps
    return int(row[-1])

# --------------------------------------------------------------------------------------------------
# marks: what stands among the words and is none

BRACKETS = {'[': ']', '(': ')', '{': '}', '<': '>', '（': '）', '【': '】'} # the first four are those of MFA
SILENCES = {'sil', 'sp', 'eps', 's', '/s', 'p:', 'b', 'silence', 'blank_audio'}
UNKNOWN = {'unk', 'spn', 'oov', 'unknown', 'unintelligible', 'inaudible', 'foreign', 'usb', 'nib'}
MAX_MARK = 5 # words of the longest mark: (soft piano music in background)

def is_silence(word):
    """Whether a label of an aligner stands for silence: sil, SIL, sp, or a name of SILENCES in brackets."""
    word = word.strip()
    in_brackets = BRACKETS.get(word[:1]) == word[-1:] and word[1:-1].casefold() in SILENCES
    return in_brackets or word in ('sil', 'SIL', 'sp', '!SIL')

def marks(words):
    """For each word '' or what mark it is part of: 'unknown' (something was said) or 'noise' (all else in brackets)."""
    kinds = [''] * len(words)
    bare = [word.strip().rstrip('.,:;!?') for word in words]
    for i, word in enumerate(bare):
        closing = BRACKETS.get(word[:1])
        ends = [j for j in range(i, min(i + MAX_MARK, len(words))) if closing and bare[j].endswith(closing)]
        if ends and not kinds[i]:
            end = ends[0] + 1
            inside = ' '.join(bare[i:end])[1:-1].strip().casefold()
            kinds[i:end] = ['unknown' if inside in UNKNOWN else 'noise'] * (end - i)
        elif word.casefold() == 'spn' or re.search('⁇|<unk>', word, re.I): # the two may be parts of a word
            kinds[i] = 'unknown'
        elif word and not word.strip('♪♫🎵🎶'):
            kinds[i] = 'noise'
    return kinds

def _without_marks(words, text):
    """-> words, remains: marks become the text's words at their place, if it has as many there.

    Where it has none, they do not remain; where it has another number, or without a text, those of noise do not.
    """
    kinds = marks(words)
    words = list(words)
    remains = np.array([bool(text) or kind != 'noise' for kind in kinds], bool)
    if not (text and any(kinds)):
        return words, remains
    in_text = split_words(text)
    spoken = [None if kind else letters(word) for word, kind in zip(words, kinds)] # None is like no word
    matcher = SequenceMatcher(None, spoken, list(map(letters, in_text)), autojunk=False)
    for operation, i, end, j, end_in_text in matcher.get_opcodes():
        if operation == 'delete' and all(kinds[i:end]):
            remains[i:end] = False
        for k in range(i, end if operation == 'replace' else i):
            if kinds[k] and end - i == end_in_text - j:
                words[k] = in_text[j + k - i]
            elif kinds[k] == 'noise':
                remains[k] = False
    return words, remains

# --------------------------------------------------------------------------------------------------
# spelling

def with_spaces(words, text=None):
    """Words with the leading spaces that they have in the text.

    Words that bring their own spaces keep them. A word that is not in the text, or without a text, gets one
    unless it is the first, or its first letter and the last one before it are of scripts without spaces.
    """
    if any(word[:1].isspace() for word in words[1:]):
        return list(words)
    text = text or ''
    spaced = []
    position = 0 # the text up to here has been matched
    for i, word in enumerate(words):
        word = word.strip()
        begin = position
        while begin < len(text) and not text.startswith(word, begin) and not text[begin].isalnum():
            begin += 1 # past spaces, and punctuation that the words lack
        joins = i == 0 or joins_without_space(words[i - 1], word)
        if text.startswith(word, begin):
            joins = i == 0 or not any(map(str.isspace, text[position:begin]))
            position = begin + len(word)
        spaced.append(word if joins else ' ' + word)
    if words and words[0][:1].isspace():
        spaced[0] = ' ' + spaced[0]
    return spaced

def joins_without_space(before, word):
    """Whether no space stands between two words of which nothing else is known."""
    ends = before.strip()[-1:], word[:1]
    return all(map(UNSPACED.match, ends))

def letters_of(text):
    """[(letter, its position in the text)] of letters, digits and vowel signs, without case, accents and points."""
    letters = []
    for position, character in enumerate(text):
        plain = unicodedata.normalize('NFKD', character).casefold()
        letters += [(letter, position) for letter in plain if letter.isalnum() or _is_vowel_sign(letter)]
    return letters

def _is_vowel_sign(character):
    """Whether a mark is more than an accent (combining class 200 and above) or a Hebrew or Arabic point (10 to 35)."""
    combining = unicodedata.combining(character)
    is_mark = unicodedata.category(character) in ('Mn', 'Mc') and not INVISIBLE.match(character)
    return is_mark and (combining < 10 or 35 < combining < 200)

def letters(word):
    """The letters of a word as they are compared (`letters_of`)."""
    return ''.join(letter for letter, _ in letters_of(word))

def _respelled(words, text):
    """Words as the text spells them, None for a word without letters.

    Returns None if the letters of the words and of the text differ.
    """
    text = ' '.join(text.split())
    text_letters = letters_of(text)
    word_letters = [letters_of(word) for word in words]
    if [c for c, _ in text_letters] != [c for letters in word_letters for c, _ in letters]:
        return None
    respelled = []
    begin = 0
    n_letters = 0 # letters of the words so far
    for letters in word_letters:
        if not letters:
            respelled.append(None)
            continue
        n_letters += len(letters)
        is_last = n_letters == len(text_letters)
        end = len(text) if is_last else text_letters[n_letters - 1][1] + 1
        # Punctuation belongs to the word before it, up to the next space.
        while end < len(text) and not (text[end].isalnum() or text[end].isspace()):
            end += 1
        respelled.append(text[begin:end])
        begin = end
    blank = any(word is not None and not word.strip() for word in respelled)
    return None if blank else respelled

def word_error(words, text):
    """Words left out, added or of other letters, as a share of the text's words."""
    heard = list(map(letters, plain_words(''.join(with_spaces(words)))))
    expected = list(map(letters, plain_words(text)))
    return edit_distance(heard, expected) / max(len(expected), 1)

def spelled(words, text):
    """Words with the spaces of the text, and with its spelling if the letters of both are the same.

    -> words, remains (a bool for each input word), word_error. A text without letters is no text. Marks
    such as <unk> and [noise] become the text's words at their place, or are left out (`_without_marks`);
    a word without letters may be left out, too.
    """
    text = text if letters_of(text or '') else None
    if text and ''.join(words).split() == text.split():
        return list(words), np.ones(len(words), bool), 0.0
    marked, remains = _without_marks(words, text)
    begins_bare = words and not words[0][:1].isspace()
    words = [word for word, stays in zip(marked, remains) if stays]
    if words and begins_bare: # the mark before it may have gone
        words[0] = words[0].lstrip()
    if not (text and words):
        return words, remains, 0.0
    spaced = with_spaces([words[0], *map(str.strip, words[1:])], text)
    if ''.join(spaced).split() == text.split():
        return spaced, remains, 0.0
    respelled = _respelled(words, text)
    if respelled:
        remains[remains] = [word is not None for word in respelled]
        return [word for word in respelled if word is not None], remains, 0.0
    return with_spaces(words, text), remains, word_error(words, text)

# --------------------------------------------------------------------------------------------------
# the folder

def write_words_shard(folder, index, docs, info=None):
    """Writes shard `index` of a words folder.

    docs: a list of (id, words, starts, ends), times in samples at 16 kHz. info: a dict for the
    shard's info.json.
    """
    table = {} # {word: index}
    words = []
    starts = []
    ends = []
    offsets = [0]
    for name, doc_words, doc_starts, doc_ends in docs:
        if not len(doc_words) == len(doc_starts) == len(doc_ends):
            raise Refused(f"{name}: {len(doc_words)} words but {len(doc_starts)} starts, {len(doc_ends)} ends")
        words.extend(table.setdefault(word, len(table)) for word in doc_words)
        starts.extend(doc_starts)
        ends.extend(doc_ends)
        offsets.append(len(words))
    columns = {'word': words, 'start': starts, 'end': ends}
    texts = {'words': list(table), 'ids': [doc[0] for doc in docs], 'info': info or {}}
    with atomically(Path(folder) / f'{index:05d}') as tmp:
        tmp.mkdir()
        for name, numbers in columns.items():
            np.save(tmp / f'{name}.npy', np.asarray(numbers, dtype=np.int32))
        np.save(tmp / 'offsets.npy', np.asarray(offsets, dtype=np.int64))
        for name, value in texts.items():
            line = json.dumps(value, ensure_ascii=False) + '\n'
            (tmp / f'{name}.json').write_text(line, encoding='utf-8')
        write_hashes(tmp)

class WordsShard:
    """One shard: .table (list of str), .word .start .end (W,), .offsets (n+1,), .ids.

    shard[i] -> words, starts, ends of its document i.
    """
    def __init__(self, folder):
        check_readable(folder)
        try:
            self.table = read_value(folder / 'words.json')
            self.ids = read_value(folder / 'ids.json')
            self.word = map_npy(folder / 'word.npy')
            self.start = map_npy(folder / 'start.npy')
            self.end = map_npy(folder / 'end.npy')
            self.offsets = np.array(map_npy(folder / 'offsets.npy'))
        except (OSError, ValueError) as e:
            raise Refused(f"{folder}: not a whole shard of words ({e}); remove it and run align.py again") from None
        if not self._fits():
            raise Refused(f"{folder}: its files do not fit together; remove it and run align.py again")

    def _fits(self):
        """Whether the numbers of rows agree, offsets rise, and every word is in the table."""
        n = len(self.word)
        if not isinstance(self.table, list) or not isinstance(self.ids, list):
            return False
        if not set(map(type, self.table)) | set(map(type, self.ids)) <= {str}:
            return False
        if not len(self.start) == len(self.end) == n == self.offsets[-1]:
            return False
        if len(self.ids) != len(self.offsets) - 1 or self.offsets[0] != 0:
            return False
        if (np.diff(self.offsets) < 0).any():
            return False
        return n == 0 or 0 <= self.word.min() <= self.word.max() < len(self.table)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        part = slice(self.offsets[i], self.offsets[i + 1])
        return [self.table[index] for index in self.word[part]], self.start[part], self.end[part]

class Words:
    """A words folder, checked: every file is read once. .info, .ids, .shards (shard s begins with document .first[s],
    two at a time are in memory); words[i] -> words, starts, ends of document i.
    """
    def __init__(self, folder):
        self.folder = Path(folder)
        self.info = read_info(folder, 'align.py')
        folders = shard_folders(folder)
        self.first = [0]
        for path in progress(folders, desc=f'{folder}: check', unit='shard', leave=False):
            self.first.append(self.first[-1] + len(WordsShard(path)))
            check_hashes(path, 'align.py')
        check_hash_of_shards(folder, self.info, 'align.py')
        self.shards = Lazy(len(folders), lambda s: WordsShard(folders[s]))

    def __len__(self):
        return self.first[-1]

    @property
    def ids(self):
        """The ids of all documents, in order: a list that takes 100 bytes each."""
        return [name for shard in self.shards for name in shard.ids]

    def __getitem__(self, i):
        shard = bisect_right(self.first, i) - 1
        return self.shards[shard][i - self.first[shard]]

    def find(self, name):
        """The document's number; Refused where there is none."""
        ids = self.ids
        if name not in ids:
            raise Refused(f"{self.folder}: no document '{name}'")
        return ids.index(name)
