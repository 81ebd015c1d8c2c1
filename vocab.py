"""
The vocabularies, and the text tokenizer under them. Units are integers end to end: ids here, never '<Un12>' strings.

    joint  (SIMS)   text 0..T-1 | unit u = T + u, u in 0..K-1 | <speech> = T + K | <text> = T + K + 1     size T + K + 2
    speech (Slam)   pad 0 | bos = eos 1 | unit u = 2 + u                                                  size K + 2
    text            text 0..T-1                                                                           size T

T is the number of ids of the text tokenizer (its len, not the padded rows of an embedding), K the number of units.
A vocabulary travels as `vocab.json` beside whatever is written in it; `hash` names it, `accepts` says what it may read:
itself, and a text-only set of the same tokenizer, whose ids are the same.

Text never becomes markup: '<speech>', '<Un5>' or '<|endoftext|>' in a transcript is encoded letter by letter.
"""
import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from configurator import Refused
from files import write_json

KINDS = ('text', 'joint', 'speech')
MODALITIES = ('text', 'units', 'separators') # what Vocab.modality numbers; the last also has bos and pad
TEXT, UNITS, SEPARATORS = range(3)

def _digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

@dataclass(frozen=True)
class Vocab:
    kind: str           # 'text', 'joint' or 'speech'
    n_text: int = 0     # T; 0 for speech
    n_units: int = 0    # K; 0 for text
    tokenizer: str = '' # TextTokenizer.hash; '' for speech
    units: str = ''     # hash of the encoder and its centroids, or its hub id; '' for text, and where nothing says it

    def __post_init__(self):
        if self.kind not in KINDS:
            raise Refused(f"vocabulary kind {self.kind!r}, expected one of {', '.join(KINDS)}")
        for name, absent in (('n_text', 'speech'), ('n_units', 'text')):
            n = getattr(self, name)
            if type(n) is not int or (n != 0 if self.kind == absent else n < 1):
                raise Refused(f"{self.kind} vocabulary with {name} = {n!r}, expected "
                              + ("0" if self.kind == absent else "a whole number of at least 1"))

    @property
    def size(self):
        return self.n_text + self.n_units + (0 if self.kind == 'text' else 2)

    @property
    def unit_offset(self):
        return 2 if self.kind == 'speech' else self.n_text

    def _only(self, kind, what, value):
        if self.kind != kind:
            raise Refused(f"a {self.kind} vocabulary has no {what}; only a {kind} one has")
        return value

    speech = property(lambda self: self._only('joint', '<speech>', self.n_text + self.n_units))
    text   = property(lambda self: self._only('joint', '<text>', self.n_text + self.n_units + 1))
    pad    = property(lambda self: self._only('speech', 'pad', 0))
    bos    = property(lambda self: self._only('speech', 'bos', 1)) # eos is the same id

    def unit_to_token(self, units):
        """Ids of units 0..K-1 as int64; numpy array, torch tensor or list."""
        units = _int64(units)
        if len(units.reshape(-1)) and not 0 <= int(units.min()) <= int(units.max()) < self.n_units:
            raise Refused(f"units {int(units.min())}..{int(units.max())}, expected 0..{self.n_units - 1}")
        return units + self.unit_offset

    def token_to_unit(self, tokens):
        """The unit of each id as int64, -1 where the id is no unit."""
        units = _int64(tokens) - self.unit_offset
        units[(units < 0) | (units >= self.n_units)] = -1
        return units

    def modality(self, tokens):
        """uint8 per id: 0 text, 1 unit, 2 separator, bos or pad."""
        tokens = tokens if hasattr(tokens, 'dtype') else np.asarray(tokens)
        first, last = self.unit_offset, self.unit_offset + self.n_units
        unit = (tokens >= first) & (tokens < last)
        other = tokens < first if self.kind == 'speech' else tokens >= last
        as_uint8 = (lambda x: x.astype(np.uint8)) if isinstance(tokens, np.ndarray) else (lambda x: x.byte())
        return as_uint8(unit) * UNITS + as_uint8(other) * SEPARATORS

    def hash(self):
        return _digest(asdict(self))

    def accepts(self, other):
        """May a model or set of this vocabulary take tokens written in `other`?"""
        text_of_mine = other.kind == 'text' and self.kind == 'joint' and \
            (other.tokenizer, other.n_text) == (self.tokenizer, self.n_text)
        return self == other or text_of_mine

    def speaks(self, units_hash, encoder):
        """Are units of this hash, made by the encoder of this name, those of the vocabulary? One that was published names its
        encoder, for want of a hash."""
        return units_hash == self.units or '/' in self.units and Path(encoder or '').name == Path(self.units).name

    def save(self, folder):
        write_json(Path(folder) / 'vocab.json', asdict(self))

    @staticmethod
    def load(folder):
        path = Path(folder) / 'vocab.json'
        try:
            return Vocab(**json.loads(path.read_text(encoding='utf-8')))
        except FileNotFoundError:
            raise Refused(f"{path}: no such file; a model or token folder of this project has one") from None
        except (ValueError, TypeError) as e: # not JSON, other fields, or values that Vocab refuses
            raise Refused(f"{path}: not a vocabulary of this project: {e}") from None

PAPERS_UNITS = 500 # K of both papers; a corpus says its own in the info.json of its units

def papers_vocab(kind, n_text):
    """The Vocab of a kind with n_text text ids and the papers' number of units: a size to plan with, before there is data."""
    return Vocab(kind, 0 if kind == 'speech' else n_text, 0 if kind == 'text' else PAPERS_UNITS)

def _int64(x):
    return x.long() if hasattr(x, 'long') else np.array(x, dtype=np.int64) # a copy: token_to_unit writes into it

DIRECTIONS = {'joint': ('S', 'S->T', 'T->S', 'T'), 'speech': ('S',), 'text': ('T',)}

def directions_of(vocab, candidate):
    """The directions that the vocabulary reads and the candidate has the parts for."""
    (prompt, prompt_units), (ending, ending_units) = candidate['prompt'], candidate['ending']
    there = {'S': candidate['joined'] is not None, 'T': prompt is not None and ending is not None,
             'S->T': prompt_units is not None and ending is not None, 'T->S': bool(prompt) and ending_units is not None}
    return [direction for direction in DIRECTIONS[vocab.kind] if there[direction]]

def document(vocab, tokenizer, direction, candidate, lead=(), separate=False):
    """A candidate's ids in one direction, and where its ending begins among them (None: the task does not say).

    lead: ids put first where the tokenizer puts none; separate: <speech> or <text> first in S and T of a joint vocabulary.
    """
    (prompt, prompt_units), (ending, ending_units) = candidate['prompt'], candidate['ending']
    text = lambda s: tokenizer.encode(s)
    head = [vocab.bos] if vocab.kind == 'speech' else list(tokenizer.first or lead)
    if direction in ('S', 'T') and separate and vocab.kind == 'joint':
        head.append(vocab.speech if direction == 'S' else vocab.text)
    if direction == 'S':
        units, begin = candidate['joined']
        end = [vocab.bos] if vocab.kind == 'speech' and len(units) else []
        return np.array([*head, *vocab.unit_to_token(units), *end], dtype=np.int64), None if begin is None else len(head) + begin
    if direction == 'T':
        parts = (text(prompt), text(' ' + ending)) if prompt else ([], text(ending))
    elif direction == 'S->T':
        parts = [vocab.speech, *vocab.unit_to_token(prompt_units)], [vocab.text, *text(' ' + ending)]
    else:
        parts = [vocab.text, *text(prompt)], [vocab.speech, *vocab.unit_to_token(ending_units)]
    head = [*head, *parts[0]]
    return np.array([*head, *parts[1]], dtype=np.int64), len(head) if prompt or direction == 'S->T' else None

PUBLISHED = 'slprl/mhubert-base-25hz' # whose units the published models have, by their cards

PUBLISHED_LAYER = 11

def prompt_ids(parts, output, vocab, tokenizer):
    """The ids that the continuation follows."""
    kinds, wanted = {part['kind'] for part in parts}, {'speech': {UNITS}, 'text': {TEXT}, 'free': {UNITS, TEXT}}[output]
    for kind, knows in (('speech', UNITS), ('text', TEXT)):
        if vocab.kind == kind and kinds | wanted != {knows}:
            raise Refused(f"a {kind}-only model reads and writes {kind} alone: give such prompts, and --output={kind}")
    ids, last = [] if vocab.kind == 'speech' else [*tokenizer.first], None
    ids += [vocab.bos] if vocab.kind == 'speech' else []
    mixed = len(kinds | wanted) > 1
    begin = lambda kind: [vocab.speech if kind == UNITS else vocab.text] if mixed and kind != last else []
    for part in parts:
        ids += begin(part['kind'])
        if part['kind'] == UNITS:
            ids += vocab.unit_to_token(part['units']).tolist()
        else: # words inside a document have their space
            ids += tokenizer.encode(part['text'].strip() if last is None else ' ' + part['text'].strip())
        last = part['kind']
    return ids + (begin(*wanted) if len(wanted) == 1 else [])

def allowed_ids(vocab, tokenizer, output):
    """(V,) bool: the ids of the wanted modality, of both with their separators, and what ends a document; the ids that end it."""
    kind, stop = vocab.modality(np.arange(vocab.size)), {vocab.bos} if vocab.kind == 'speech' else {tokenizer.eot} - {None}
    allowed = torch.from_numpy(np.ones_like(kind, bool) if output == 'free' else kind == (UNITS if output == 'speech' else TEXT))
    allowed[list(stop)] = True
    return allowed, stop

def spans_of(tokens, vocab, tokenizer):
    """Generated ids -> [{'kind', 'units' or 'text'}], one for each stretch of a modality; separators only part them."""
    spans = []
    for kind, part in groupby(tokens, key=lambda t: int(vocab.modality(np.array([t]))[0])):
        if kind == UNITS:
            spans.append({'kind': UNITS, 'units': vocab.token_to_unit(list(part)).tolist()})
        elif kind != SEPARATORS:
            spans.append({'kind': TEXT, 'text': tokenizer.decode(list(part)).strip()})
    return spans
