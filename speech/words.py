"""
The words folder: which word is said when, as align.py writes and interleave.py reads it; repair of word times.
"""
import json
import unicodedata
from pathlib import Path

import numpy as np

from configurator import Refused
from files import atomically, read_info, shard_folders
from speech.audio import RATE

LIMIT = RATE // 20 # 50 ms: a repair moves an edge no further

REASONS = ('', 'MISSING_TIME', 'PAST_END', 'BEFORE_START', 'REVERSED', 'OVERLAP') # what repair answers, by index

def repair(starts, ends, offsets, n_samples):
    """Word times of many documents, put in order: 0 <= start <= end <= next start <= length.

    starts, ends: (W,) samples, NaN where missing; offsets: (n+1,); n_samples: (n,) length of each document's audio.
    Returns starts, ends (W,) int32 and (n,) indices into REASONS, 0 where all repairs stayed within LIMIT.
    - outside the audio: clipped; earlier than an edge before it: moved up to that edge;
    - missing: the gap its neighbors leave, when that gap fixes it to within LIMIT.
    """
    edges = np.rint(np.stack([starts, ends], 1).astype(np.float64)).ravel() # (2W,) start, end, start, end, ...
    offsets, n_samples = np.asarray(offsets, np.int64), np.asarray(n_samples, np.float64)
    doc = np.repeat(np.arange(len(n_samples)), 2 * np.diff(offsets))
    last = n_samples[doc]
    missing, late, early = np.isnan(edges), edges - last > LIMIT, edges < -LIMIT
    edges = np.clip(edges, 0, last)
    back = np.zeros(len(edges), bool)
    back[1::2] = edges[0::2] - edges[1::2] > LIMIT
    base = doc * (n_samples.max(initial=0) + 1) # one running maximum for all documents: each has its own range
    edges += base
    low = np.maximum.accumulate(np.where(missing, base, edges)) # the last known edge before, or the beginning
    high = np.minimum.accumulate(np.where(missing, base + last, edges)[::-1])[::-1] # the next known one, or the end
    lost = missing & (high - low > LIMIT)
    is_end = np.arange(len(edges)) % 2 == 1
    filled = np.where(missing, np.where(is_end, high, low), edges)
    ordered = np.maximum.accumulate(filled)
    overlap = ordered - filled > LIMIT
    reason = np.full(len(n_samples), len(REASONS))
    for code, bad in enumerate((lost, late, early, back, overlap), start=1):
        np.minimum.at(reason, doc[bad], code)
    edges = (ordered - base).astype(np.int32)
    return edges[0::2], edges[1::2], reason % len(REASONS)

def with_spaces(words, text=None):
    """Words with the leading spaces they have in the text; words that bring their own spaces stay as they are."""
    if any(w[:1].isspace() for w in words[1:]):
        return list(words)
    out, at = [], 0 # at: how much of the text has been spelled
    for i, word in enumerate(w.strip() for w in words):
        begin = at
        while text is not None and begin < len(text) and text[begin].isspace():
            begin += 1
        known = text is not None and text.startswith(word, begin)
        out.append(' ' + word if i > 0 and not (known and begin == at) else word)
        at = begin + len(word) if known else at
    if words[0][:1].isspace():
        out[0] = ' ' + out[0] # as given
    return out

def letters_of(text):
    """The letters and digits of a text without case and accents, and where in the text each stands."""
    return [(f, i) for i, c in enumerate(text) for f in unicodedata.normalize('NFKD', c).casefold() if f.isalnum()]

def _respelled(words, text):
    """Words as the text spells them (None for a word without letters), if the letters of both are the same; else None."""
    text = ' '.join(text.split())
    counts, have = [len(letters_of(word)) for word in words], letters_of(text)
    if [c for c, _ in have] != [c for word in words for c, _ in letters_of(word)]:
        return None
    out, at, done = [], 0, 0 # at: where in text, done: how many letters
    for n in counts:
        done, end = done + n, len(text) if done + n == len(have) else have[done + n - 1][1] + 1
        while n and end < len(text) and not (text[end].isalnum() or text[end].isspace()):
            end += 1 # signs belong to the word before them, up to a space
        out.append(text[at:end] if n else None)
        at = end if n else at
    return out if all(word is None or word.strip() for word in out) else None

def word_error(words, text):
    """Words left out, added or of other letters, as a share of the text's words."""
    a, b = ([letters for w in side if (letters := ''.join(c for c, _ in letters_of(w)))] for side in (words, text.split()))
    return edit_distance(a, b) / max(len(b), 1)

def spelled(words, text):
    """-> words with the spaces, and where the letters are the same the spelling, of the text; which were kept; their error.

    A word <unk> (MFA's for what is in no dictionary) is the text's word in its place when both have as many.
    """
    kept = np.ones(len(words), bool)
    if text is None:
        return with_spaces(words), kept, 0.0
    if '<unk>' in words and len(words) == len(text.split()):
        words = [theirs if word == '<unk>' else word for word, theirs in zip(words, text.split())]
    spaced = with_spaces(words, text)
    if ''.join(spaced).split() == text.split():
        return spaced, kept, 0.0
    if new := _respelled(words, text):
        kept = np.array([word is not None for word in new])
        return [word for word in new if word is not None], kept, 0.0
    return spaced, kept, word_error(words, text)

def write_words_shard(folder, index, docs, info=None):
    """Shard `index` of a words folder. docs: a list of (id, words, starts, ends), times in samples at 16 kHz."""
    table, words, starts, ends, offsets = {}, [], [], [], [0]
    for name, doc_words, doc_starts, doc_ends in docs:
        if not len(doc_words) == len(doc_starts) == len(doc_ends):
            raise Refused(f"{name}: {len(doc_words)} words but {len(doc_starts)} starts, {len(doc_ends)} ends")
        words.extend(table.setdefault(word, len(table)) for word in doc_words)
        starts.extend(doc_starts)
        ends.extend(doc_ends)
        offsets.append(len(words))
    with atomically(Path(folder) / f'{index:05d}') as tmp:
        tmp.mkdir()
        for name, values, dtype in (('word', words, np.int32), ('start', starts, np.int32), ('end', ends, np.int32),
                                    ('offsets', offsets, np.int64)):
            np.save(tmp / f'{name}.npy', np.asarray(values, dtype=dtype))
        for name, value in (('words', list(table)), ('ids', [doc[0] for doc in docs]), ('info', info or {})):
            (tmp / f'{name}.json').write_text(json.dumps(value, ensure_ascii=False) + '\n', encoding='utf-8')

class WordsShard:
    """One shard: .table (list of str), .word .start .end (W,), .offsets (n+1,), .ids; shard[i]: words, starts, ends"""

    def __init__(self, folder):
        try:
            text = lambda name: (folder / name).read_text(encoding='utf-8')
            array = lambda name: np.load(folder / name, mmap_mode='r').view(np.ndarray)
            self.table, self.ids = json.loads(text('words.json')), json.loads(text('ids.json'))
            self.word, self.start, self.end = array('word.npy'), array('start.npy'), array('end.npy')
            self.offsets = np.array(array('offsets.npy'))
        except (OSError, ValueError) as e:
            raise Refused(f"{folder}: not a whole shard of words ({e}); remove it and run align.py again") from None
        n = len(self.word)
        if not (len(self.start) == len(self.end) == n == self.offsets[-1] and len(self.ids) == len(self.offsets) - 1
                and self.offsets[0] == 0 and (np.diff(self.offsets) >= 0).all()
                and (n == 0 or 0 <= self.word.min() <= self.word.max() < len(self.table))):
            raise Refused(f"{folder}: its files do not fit together; remove it and run align.py again")

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        part = slice(self.offsets[i], self.offsets[i + 1])
        return [self.table[w] for w in self.word[part]], self.start[part], self.end[part]

class Words:
    """A words folder: .info, .shards (shard s begins with document first[s]), .ids; words[i] -> words, starts, ends."""

    def __init__(self, folder):
        self.folder, self.info = Path(folder), read_info(folder, 'align.py')
        self.shards = [WordsShard(path) for path in shard_folders(folder)]
        self.ids = [name for shard in self.shards for name in shard.ids]
        self.first = np.cumsum([0] + [len(shard) for shard in self.shards])

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        shard = np.searchsorted(self.first, i, side='right') - 1
        return self.shards[shard][i - self.first[shard]]

    def find(self, name):
        if name not in self.ids:
            raise Refused(f"{self.folder}: no document '{name}'")
        return self.ids.index(name)

def edit_distance(a, b):
    """The least number of items of sequence a to replace, leave out and add for it to become b (Levenshtein)."""
    ids = {}
    a, b = (np.array([ids.setdefault(item, len(ids)) for item in side], np.int64) for side in (a, b))
    steps = np.arange(len(b) + 1)
    row = steps # of a[:i] against every beginning of b
    for item in a: # what a row takes from its left is a running minimum
        new = np.minimum(row + 1, np.concatenate([row[:1] + 1, row[:-1] + (b != item)])) - steps
        row = np.minimum.accumulate(new) + steps
    return int(row[-1])
