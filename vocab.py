"""
Which id is what, and how documents and prompts are written in ids.

    joint  (SIMS)   text 0..n_text-1 | unit u = n_text + u | <speech> = n_text + K | <text> = n_text + K + 1
    speech (Slam)   pad 0 | bos = eos 1 | unit u = 2 + u
    text            text 0..n_text-1

n_text is the number of ids of the text tokenizer (its len, not the padded rows of an embedding), K the number of units.
Units are integers end to end: ids here, never '<Un12>' strings. Text never becomes markup: '<speech>', '<Un5>' or
'<|endoftext|>' in a transcript is encoded letter by letter.

A flat vocabulary (codebooks = n above 0, of Mimi) has n units a frame, one of each codebook in turn, repeats and all:
entry e of codebook k is unit k * K / n + e, so each codebook has a range of its own.

A Vocab travels as vocab.json in a model's folder, and in the index.json of token shards. Its hash
names it; it accepts what is written in itself or in a text vocabulary of the same tokenizer.
papers_vocab is one to plan with.

A document begins with bos in a speech vocabulary, else with what the tokenizer puts first (a BOS or
nothing). Where it has both modalities, <speech> or <text> stands before each change. Text that is
not first has a space before it. `document` writes one of a benchmark in a direction (S speech, T
text, S->T, T->S; directions_of: those that are possible), in this style or in slamkit's; prompt_ids
one to be continued; allowed_ids says what may follow, spans_of what was generated.
"""
import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from os.path import commonprefix
from pathlib import Path

import numpy as np
import torch

from configurator import Refused
from files import read_json, write_json

KINDS = ('text', 'joint', 'speech')
MODALITIES = ('text', 'units', 'separators') # what Vocab.modality numbers; the last also has bos and pad
TEXT, UNITS, SEPARATORS = range(3)
DIRECTIONS = {'joint': ('S', 'S->T', 'T->S', 'T'), 'speech': ('S',), 'text': ('T',)} # that a kind can read
STYLES = ('slamkit', 'training') # of a benchmark's document

PUBLISHED = 'slprl/mhubert-base-25hz' # the units of the published models, by their cards
PUBLISHED_LAYER = 11
PAPERS_UNITS = 500 # K of both papers
LARGEST = 2 ** 24 # ids of a modality, at most; tables of some bytes an id are made before a model is read

def short_hash(value):
    """The first 16 hex digits of a JSON value's sha256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

def _int64(x):
    """A torch tensor as int64; anything else as a new int64 array."""
    return x.long() if hasattr(x, 'long') else np.array(x, dtype=np.int64)

@dataclass(frozen=True)
class Vocab:
    kind: str           # 'text', 'joint' or 'speech'
    n_text: int = 0     # text ids; 0 for speech
    n_units: int = 0    # K; 0 for text
    tokenizer: str = '' # TextTokenizer.hash; '' for speech
    units: str = ''     # hash of encoder and centroids, or the encoder's hub id; '' for text, and where it is unknown
    codebooks: int = 0  # units a frame of a flat vocabulary; 0: one a frame or more, repeats merged

    def __post_init__(self):
        if self.kind not in KINDS:
            raise Refused(f"vocabulary kind {self.kind!r}, expected one of {', '.join(KINDS)}")
        if not isinstance(self.tokenizer, str) or not isinstance(self.units, str):
            raise Refused(f"vocabulary with tokenizer = {self.tokenizer!r}, units = {self.units!r}, expected strings")
        for name, kind_without in (('n_text', 'speech'), ('n_units', 'text')):
            n = getattr(self, name)
            is_absent = self.kind == kind_without
            if type(n) is not int or (n != 0 if is_absent else n < 1):
                expected = "0" if is_absent else "a whole number of at least 1"
                raise Refused(f"{self.kind} vocabulary with {name} = {n!r}, expected {expected}")
            if n > LARGEST:
                raise Refused(f"{self.kind} vocabulary with {name} = {n:,}, expected {LARGEST:,} at most")
        n = self.codebooks
        if type(n) is not int or n < 0 or n and (self.kind == 'text' or self.n_units % n):
            raise Refused(f"{self.kind} vocabulary of {self.n_units} units with codebooks = {n!r}, "
                          "expected 0, or a divisor of the number of units")

    @property
    def size(self):
        return self.n_text + self.n_units + (0 if self.kind == 'text' else 2)

    @property
    def unit_offset(self):
        return 2 if self.kind == 'speech' else self.n_text

    def _only(self, kind, name, token):
        if self.kind != kind:
            raise Refused(f"a {self.kind} vocabulary has no {name}; only a {kind} one has")
        return token

    @property
    def speech(self):
        return self._only('joint', '<speech>', self.n_text + self.n_units)

    @property
    def text(self):
        return self._only('joint', '<text>', self.n_text + self.n_units + 1)

    @property
    def pad(self):
        return self._only('speech', 'pad', 0)

    @property
    def bos(self):
        """Also eos."""
        return self._only('speech', 'bos', 1)

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
        """TEXT, UNITS or SEPARATORS (which bos and pad are too) for each id, as uint8."""
        tokens = tokens if hasattr(tokens, 'dtype') else np.asarray(tokens)
        units_end = self.unit_offset + self.n_units
        is_unit = (tokens >= self.unit_offset) & (tokens < units_end)
        is_separator = tokens < self.unit_offset if self.kind == 'speech' else tokens >= units_end
        if isinstance(tokens, np.ndarray):
            return is_unit.astype(np.uint8) * UNITS + is_separator.astype(np.uint8) * SEPARATORS
        return is_unit.byte() * UNITS + is_separator.byte() * SEPARATORS

    def codebook(self, tokens):
        """The codebook of each id's unit, int64, -1 where the id is no unit."""
        return self.token_to_unit(tokens) // (self.n_units // max(self.codebooks, 1))

    def whole_frames(self, units):
        """The units without the frame at their end that lacks codebooks."""
        return units[:len(units) - len(units) % max(self.codebooks, 1)]

    def as_dict(self):
        """The fields; `codebooks` only where it is not 0, so that other vocabularies keep their hashes."""
        return {key: value for key, value in asdict(self).items() if key != 'codebooks' or value}

    def hash(self):
        return short_hash(self.as_dict())

    def accepts(self, source):
        """Can a model or data set of this vocabulary take tokens written in the Vocab `source`?"""
        same_tokenizer = (source.tokenizer, source.n_text) == (self.tokenizer, self.n_text)
        return self == source or (self.kind == 'joint' and source.kind == 'text' and same_tokenizer)

    def speaks(self, units_hash, encoder):
        """Are units of this hash, made by the encoder of this name, those of the vocabulary?"""
        names_encoder = '/' in self.units # published models name their encoder and have no hash
        return units_hash == self.units or (names_encoder and Path(encoder or '').name == Path(self.units).name)

    def save(self, folder, probes=None):
        """Writes vocab.json. probes: {text: its ids}, by which a tokenizer that was changed later is recognized."""
        write_json(Path(folder) / 'vocab.json', self.as_dict() | ({'probes': probes} if probes else {}))

    @staticmethod
    def load(folder):
        fields = read_json(folder, 'vocab.json', 'train.py')
        fields.pop('probes', None)
        try:
            return Vocab(**fields)
        except (ValueError, TypeError) as e: # values that Vocab refuses, or other fields
            raise Refused(f"{folder}/vocab.json: not a vocabulary of this project: {e}") from None

def papers_vocab(kind, n_text):
    """The Vocab of a kind with n_text text ids and the papers' number of units, to plan with before there is data."""
    return Vocab(kind, 0 if kind == 'speech' else n_text, 0 if kind == 'text' else PAPERS_UNITS)

def _document_start(vocab, tokenizer, lead=()):
    """The ids before all others: bos, what the tokenizer puts first, or else `lead`."""
    return [vocab.bos] if vocab.kind == 'speech' else list(tokenizer.first or lead)

def _separator(vocab, modality):
    return vocab.speech if modality == UNITS else vocab.text

def _part_ids(vocab, tokenizer, parts, separated, blank=' '):
    """The ids of each of a document's parts, given as [(UNITS, units) or (TEXT, text)].

    separated: <speech> or <text> stands before a part of another modality than the one before it.
    blank: stands before text that does not come first.
    """
    ids_of_parts = []
    last = None
    for modality, content in parts:
        ids = [_separator(vocab, modality)] if separated and modality != last else []
        if modality == UNITS:
            ids += vocab.unit_to_token(content).tolist()
        else:
            ids += tokenizer.encode(content if last is None else blank + content)
        ids_of_parts.append(ids)
        last = modality
    return ids_of_parts

def directions_of(vocab, candidate):
    """The directions that the vocabulary reads and the candidate (see document) has the parts for."""
    prompt, prompt_units = candidate['prompt']
    ending, ending_units = candidate['ending']
    has_parts = {'S': candidate['joined'] is not None,
                 'T': prompt is not None and ending is not None,
                 'S->T': prompt_units is not None and ending is not None,
                 'T->S': bool(prompt) and ending_units is not None}
    return [direction for direction in DIRECTIONS[vocab.kind] if has_parts[direction]]

def has_context(candidate):
    """Whether a candidate (see document) is a context and an ending; otherwise it is one wave or text."""
    prompt, prompt_units = candidate['prompt']
    return bool(prompt) or prompt_units is not None

def document(vocab, tokenizer, direction, candidate, style='training', lead=()):
    """A benchmark's document -> (int64 ids, where the ending begins, None if the task does not say).

    candidate   {'prompt': (text, units), 'ending': (text, units),
                 'joined': (units of both, where the ending begins)}
    style       'training': like the documents of training. 'slamkit': where there is a context, texts
                are stripped and joined without a blank, as one string, and a joint model's S and T
                begin with <speech> or <text>
    lead        ids put first where the tokenizer puts none

    In slamkit's T a token may hold the end of the prompt and the start of the ending. The ending
    begins with the first id that the prompt alone does not have.
    """
    prompt, prompt_units = candidate['prompt']
    ending, ending_units = candidate['ending']
    is_slamkit = style == 'slamkit' and has_context(candidate)
    if is_slamkit:
        prompt = prompt and prompt.strip()
        ending = ending and ending.strip()
    begin = None
    if direction == 'S':
        units, begin = candidate['joined']
        parts = [(UNITS, units)]
    elif direction == 'T':
        texts = [prompt, ending] if prompt else [ending]
        parts = [(TEXT, text) for text in ([''.join(texts)] if is_slamkit else texts)]
    elif direction == 'S->T':
        parts = [(UNITS, prompt_units), (TEXT, ending)]
    else:
        parts = [(TEXT, prompt), (UNITS, ending_units)]
    separated = '->' in direction or (is_slamkit and vocab.kind == 'joint')
    start = _document_start(vocab, tokenizer, lead)
    *before, last = _part_ids(vocab, tokenizer, parts, separated, '' if is_slamkit else ' ')
    ids = [*start, *sum(before, []), *last]
    if direction == 'S':
        if begin is not None:
            begin += len(ids) - len(units)
        if vocab.kind == 'speech' and len(units):
            ids.append(vocab.bos)
    elif direction == 'T' and is_slamkit:
        [prompt_alone] = _part_ids(vocab, tokenizer, [(TEXT, prompt)], separated)
        begin = len(commonprefix([ids, [*start, *prompt_alone]]))
    elif prompt or direction == 'S->T':
        begin = len(ids) - len(last)
    return np.array(ids, dtype=np.int64), begin

def prompt_ids(parts, output, vocab, tokenizer):
    """The ids that the continuation follows: the parts, and the separator before an output of another modality.

    parts: [{'kind': UNITS, 'units': ...} or {'kind': TEXT, 'text': ...}]; output: 'speech', 'text',
    or 'free' for both.
    """
    modalities = {part['kind'] for part in parts}
    outputs = {'speech': {UNITS}, 'text': {TEXT}, 'free': {UNITS, TEXT}}[output]
    for kind, modality in (('speech', UNITS), ('text', TEXT)):
        if vocab.kind == kind and modalities | outputs != {modality}:
            raise Refused(f"a {kind}-only model reads and writes {kind} alone: give such prompts, and --output={kind}")
    separated = len(modalities | outputs) > 1
    contents = [(UNITS, part['units']) if part['kind'] == UNITS else (TEXT, part['text'].strip()) for part in parts]
    ids = sum(_part_ids(vocab, tokenizer, contents, separated), _document_start(vocab, tokenizer))
    if separated and output != 'free' and parts[-1]['kind'] not in outputs:
        ids.append(_separator(vocab, *outputs))
    return ids

def allowed_ids(vocab, tokenizer, output):
    """(bool (V,): ids of the output's modality, all if 'free', and those that end a document; the last as a set)."""
    stop = {vocab.bos} if vocab.kind == 'speech' else {tokenizer.eot} - {None}
    allowed = torch.ones(vocab.size, dtype=torch.bool)
    if output != 'free':
        modality = vocab.modality(np.arange(vocab.size))
        allowed = torch.from_numpy(modality == (UNITS if output == 'speech' else TEXT))
    allowed[list(stop)] = True
    return allowed, stop

def codebook_order(vocab):
    """What GPT.stream needs to know of flat units: {'codebook': (V,) Vocab.codebook of all ids}; {} for others."""
    return {'codebook': vocab.codebook(torch.arange(vocab.size))} if vocab.codebooks > 1 else {}

def spans_of(tokens, vocab, tokenizer):
    """Generated ids -> [{'kind', 'units' or 'text'}], one for each stretch of a modality; separators only part them."""
    spans = []
    modalities = vocab.modality(np.array(tokens, dtype=np.int64)).tolist()
    for modality, group in groupby(zip(modalities, tokens), key=itemgetter(0)):
        ids = [token for _, token in group]
        if modality == UNITS:
            units = vocab.whole_frames(vocab.token_to_unit(ids).tolist())
            spans += [{'kind': UNITS, 'units': units}] if units else []
        elif modality == TEXT:
            spans.append({'kind': TEXT, 'text': tokenizer.decode(ids).strip()})
    return spans
