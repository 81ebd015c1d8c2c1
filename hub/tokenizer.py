"""
Text tokenizers: tiktoken built from a model's own files, or transformers' fast tokenizer; their export with the units.
"""
import json
import unicodedata
from functools import cached_property
from pathlib import Path

import tiktoken
from tokenizers import Tokenizer

from configurator import Refused
from files import atomically, write_json
from vocab import Vocab, _digest


def _read_tokenizer(source):
    """(tokenizer.json as a dict, tokenizer_config.json as a dict) of a local folder or a hub id."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download  # lazily: only hub ids need it
        from huggingface_hub.errors import HfHubHTTPError
        try:
            folder = Path(snapshot_download(str(source), allow_patterns=['*token*', 'vocab*', 'merges*', 'config.json']))
        except (OSError, ValueError, HfHubHTTPError):
            raise Refused(f"{source}: no such tokenizer folder, nor a hub id that can be reached") from None
    if not (folder / 'tokenizer.json').is_file():
        return _convert_tokenizer(folder)
    spec, config = {}, {}
    for name in ('tokenizer.json', 'special_tokens_map.json', 'tokenizer_config.json'):
        path, into = folder / name, spec if name == 'tokenizer.json' else config
        if path.is_file():
            try:
                into.update(json.loads(path.read_text(encoding='utf-8')))
            except ValueError as e:
                raise Refused(f"{path}: not JSON: {e}") from None
    return spec, config

def _convert_tokenizer(folder):
    """The same of a folder in an older format (OPT's vocab.json + merges.txt), through transformers."""
    from transformers import AutoTokenizer  # lazily: it takes seconds
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
    except (OSError, ValueError, AttributeError):
        raise Refused(f"{folder}: no tokenizer.json, nor other tokenizer files that transformers reads") from None
    return spec, {'eos_token': tokenizer.eos_token, 'bos_token': tokenizer.bos_token}

def _bytes_of_characters():
    """GPT-2's table: each byte is written in tokenizer.json as one printable character."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {**{chr(b): b for b in printable}, **{chr(256 + i): b for i, b in enumerate(others)}}

def _as_tiktoken(spec):
    """tiktoken (four to ten times as fast) for a tokenizer.json laid out as Qwen2.5's, Llama-3's, tiny's; else None.

    tiktoken joins the pair whose result has the lowest id; tokenizers the pair that stands first in its list of merges.
    These are the same when the list's results come in order of id and its merges lead to each (Qwen2.5: all do).
    """
    model, steps = spec['model'], (spec['pre_tokenizer'] or {}).get('pretokenizers', [])
    if not (model['type'] == 'BPE' and not model.get('dropout') and spec['normalizer'] in (None, {'type': 'NFC'})
            and all(t['special'] for t in spec['added_tokens'])
            and [s['type'] for s in steps] == ['Split', 'ByteLevel']):
        return None
    split, byte_level = steps
    if ('Regex' not in split['pattern'] or split['behavior'] != 'Isolated' or split['invert']
            or byte_level['add_prefix_space'] or byte_level['use_regex']):
        return None
    ids, byte = model['vocab'], _bytes_of_characters()
    results = [''.join(merge) for merge in _merges(model)]
    order = [ids[token] for token in results]
    if any(a > b for a, b in zip(order, order[1:])) or not byte.keys() <= ids.keys():
        return None
    ranks = {bytes(byte[c] for c in token): ids[token] for token in [*byte, *results]}
    return tiktoken.Encoding('text', pat_str=split['pattern']['Regex'], mergeable_ranks=ranks, special_tokens={})

def _merges(model):
    return [tuple(m.split(' ')) if isinstance(m, str) else tuple(m) for m in model.get('merges', [])]

class TextTokenizer:
    """The text tokenizer of a local folder or a hub id, with no special token ever parsed from text.

    .size T   .hash names ids and splitting   .first ids put before a document (BOS or none)   .eot end token's id, None
    The folder of a joint model will do as well: its units are left out, so T and hash are those of the tokenizer below.
    """

    def __init__(self, folder):
        self.name = str(folder)
        spec, config = _read_tokenizer(folder)
        try:
            whole = Tokenizer.from_str(json.dumps(spec))
        except Exception as e: # the library raises nothing narrower
            raise Refused(f"{folder}: tokenizer.json is not what the tokenizers library reads: {e}") from None
        units = [t['id'] for t in spec['added_tokens'] if t['content'] == '<Un0>']
        self.size = units[0] if units else whole.get_vocab_size()
        added = sorted((t for t in spec['added_tokens'] if t['id'] < self.size), key=lambda t: t['id'])
        eot = config.get('eos_token')
        self.eot = whole.token_to_id(eot['content'] if isinstance(eot, dict) else eot) if eot else None
        sample = whole.encode('a')
        self.first = sample.ids[:sample.special_tokens_mask.index(0)]
        self.hash = _digest([spec['model']['vocab'], _merges(spec['model']), spec['normalizer'], spec['pre_tokenizer'],
                             [(t['content'], t['id']) for t in added], self.first, self.eot])
        # added tokens are markup, which text must not turn into; only the runs of blanks of GPT-NeoX and Gemma are text
        spec.update(added_tokens=[{**t, 'special': t['special'] or not t['content'].isspace()} for t in added],
                    post_processor=None, truncation=None, padding=None)
        self._plain, self._whole, self._tiktoken = Tokenizer.from_str(json.dumps(spec)), whole, _as_tiktoken(spec)
        self._plain.encode_special_tokens = True # the library's name for: special tokens in text are text
        self._nfc = spec['normalizer'] == {'type': 'NFC'}

    def encode(self, text):
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        """Ids of each text, without .first and .eot."""
        if self._tiktoken is None:
            texts = [t.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') for t in texts] # as tiktoken does
            return [e.ids for e in self._plain.encode_batch(texts, add_special_tokens=False)]
        return [self._tiktoken.encode_ordinary(unicodedata.normalize('NFC', t) if self._nfc else t) for t in texts]

    def decode(self, ids):
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.size:
            raise Refused(f"{self.name}: ids {min(ids)}..{max(ids)} to decode, expected 0..{self.size - 1}")
        return self._whole.decode(ids, skip_special_tokens=False)

    @cached_property
    def vocab(self):
        return Vocab('text', n_text=self.size, tokenizer=self.hash)

def export_tokenizer(folder, vocab, out_dir):
    """tokenizer.json and tokenizer_config.json in out_dir, so that transformers' AutoTokenizer gives exactly our ids.

    joint: the text tokenizer of `folder` with <Un0>..<Un{K-1}>, <speech>, <text> added; text: plain; speech (folder is
    not used): <PAD> <S> <Un0>.. as whole words, <S> put before and after.
    """
    if vocab.kind == 'speech':
        spec, config = _speech_tokenizer(vocab), {'pad_token': '<PAD>', 'bos_token': '<S>', 'eos_token': '<S>'}
    else:
        spec, config = _read_tokenizer(folder)
        text = TextTokenizer(folder)
        if (text.hash, text.size) != (vocab.tokenizer, vocab.n_text):
            raise Refused(f"{folder}: tokenizer {text.hash} of {text.size} ids, the vocabulary was made with "
                          f"{vocab.tokenizer or 'none'} of {vocab.n_text}")
        names = [*(f'<Un{u}>' for u in range(vocab.n_units)), '<speech>', '<text>'] if vocab.kind == 'joint' else []
        flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized', 'special'), False)
        spec['added_tokens'] = [t for t in spec['added_tokens'] if t['id'] < text.size] \
            + [{'id': text.size + i, 'content': name, **flags} for i, name in enumerate(names)]
        config = {k: v for k, v in config.items() if k not in ('added_tokens_decoder', 'auto_map')}
    whole = Tokenizer.from_str(json.dumps(spec))
    if whole.get_vocab_size() != vocab.size or vocab.kind != 'text' and whole.token_to_id('<Un0>') != vocab.unit_offset:
        raise Refused(f"{folder}: {whole.get_vocab_size()} ids with the units added, expected {vocab.size}: "
                      "the tokenizer's own ids have gaps")
    with atomically(Path(out_dir) / 'tokenizer.json') as tmp:
        tmp.write_text(json.dumps(spec, ensure_ascii=False), encoding='utf-8')
    write_json(Path(out_dir) / 'tokenizer_config.json', {**config, 'tokenizer_class': 'PreTrainedTokenizerFast'})

def _speech_tokenizer(vocab):
    ids = {'<PAD>': vocab.pad, '<S>': vocab.bos, **{f'<Un{u}>': vocab.unit_offset + u for u in range(vocab.n_units)}}
    mark = {'SpecialToken': {'id': '<S>', 'type_id': 0}}
    first, second = ({'Sequence': {'id': name, 'type_id': i}} for i, name in enumerate('AB'))
    flags = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False, 'special': True}
    return {'version': '1.0', 'truncation': None, 'padding': None, 'normalizer': None, 'decoder': {'type': 'Fuse'},
            'added_tokens': [{'id': ids[name], 'content': name, **flags} for name in ('<PAD>', '<S>')],
            'pre_tokenizer': {'type': 'Split', 'pattern': {'String': '>'}, 'behavior': 'MergedWithPrevious',
                              'invert': False},
            'post_processor': {'type': 'TemplateProcessing', 'single': [mark, first, mark], 'pair': [first, second],
                               'special_tokens': {'<S>': {'id': '<S>', 'ids': [vocab.bos], 'tokens': ['<S>']}}},
            'model': {'type': 'WordLevel', 'vocab': ids, 'unk_token': '<PAD>'}}

def vocabulary_of(folder):
    """The vocabulary whose units stand in a folder's tokenizer.json (as export_tokenizer writes it), of unknown units."""
    spec, _ = _read_tokenizer(folder)
    ids = {**dict(spec['model']['vocab']), **{t['content']: t['id'] for t in spec['added_tokens']}}
    K = next(k for k in range(len(ids) + 1) if f'<Un{k}>' not in ids)
    first = ids.get('<Un0>')
    if K and all(ids[f'<Un{k}>'] == first + k for k in range(K)):
        if (ids.get('<PAD>'), ids.get('<S>'), first) == (0, 1, 2):
            return Vocab('speech', n_units=K)
        if (ids.get('<speech>'), ids.get('<text>')) == (first + K, first + K + 1):
            return Vocab('joint', first, K, TextTokenizer(folder).hash)
    raise Refused(f"{folder}: tokenizer.json has {K} units from id {first} on, <speech> {ids.get('<speech>')}, <text> "
                  f"{ids.get('<text>')}, <PAD> {ids.get('<PAD>')}, <S> {ids.get('<S>')}; expected text, units, <speech>, "
                  "<text>, or <PAD>, <S>, units, one after the other")
