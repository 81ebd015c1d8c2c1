"""
Text tokenizers of Hugging Face folders, and their export with the units added.

    TextTokenizer      the tokenizer of a folder or hub id: tiktoken where that gives the same ids, several times as
                       fast, else transformers' fast tokenizers
    export_tokenizer   the tokenizer files of a model folder, so that transformers reads ids as vocab.py lays them out
    check_ids          refuses a folder whose tokenizer.json gives other ids, as after another tool has saved it
    vocabulary_of      the opposite of export: the Vocab of a folder whose tokenizer.json holds units
"""
import json
import unicodedata
from functools import cached_property
from operator import itemgetter
from pathlib import Path

import tiktoken
from tokenizers import Tokenizer

from configurator import Refused, refuse_library
from files import atomically, check_readable, read_json, write_json
from hub.families import FAMILIES
from vocab import Vocab, short_hash


def _read_tokenizer(source):
    """(tokenizer.json as a dict, tokenizer_config.json as a dict) of a local folder or a hub id."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download  # not at the top: only hub ids need it
        from huggingface_hub.errors import HfHubHTTPError
        patterns = ['*token*', 'vocab*', 'merges*', 'config.json']
        try:
            folder = Path(snapshot_download(str(source), allow_patterns=patterns))
        except (OSError, ValueError, HfHubHTTPError):
            raise Refused(f"{source}: no such tokenizer folder, nor a hub id that can be reached") from None
    check_readable(folder)
    if not (folder / 'tokenizer.json').is_file():
        return _convert_tokenizer(folder)
    spec = read_json(folder, 'tokenizer.json', 'transformers')
    config = {}
    for name in ('special_tokens_map.json', 'tokenizer_config.json'):
        if (folder / name).is_file():
            config |= read_json(folder, name, 'transformers')
    return spec, config

def _convert_tokenizer(folder):
    """What _read_tokenizer returns, of an older format (OPT's vocab.json + merges.txt), by transformers."""
    from transformers import AutoTokenizer  # not at the top: it takes seconds
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
    except (ImportError, OSError, ValueError, AttributeError) as e:
        refuse_library(e)
        reason = ' '.join(str(e).split())[:200]
        raise Refused(f"{folder}: no tokenizer.json, nor other tokenizer files that transformers reads without code of "
                      f"the folder ({reason})") from None
    return spec, {'eos_token': tokenizer.eos_token, 'bos_token': tokenizer.bos_token}

# --------------------------------------------------------------------------------------------------
# tiktoken

def bytes_of_characters():
    """GPT-2's table: each byte is written in tokenizer.json as one printable character."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    table = {chr(b): b for b in printable}
    table |= {chr(256 + i): b for i, b in enumerate(others)}
    return table

def merges_of(model):
    """The pairs of tokens that are merged, in order; tokenizer.json has them as 'a b' or as ['a', 'b']."""
    return [tuple(merge.split(' ')) if isinstance(merge, str) else tuple(merge) for merge in model.get('merges', [])]

def _split_regex(spec):
    """The regular expression that splits text, or None if tokenizer.json has steps that tiktoken has not."""
    model = spec['model']
    steps = (spec['pre_tokenizer'] or {}).get('pretokenizers', [])
    if model['type'] != 'BPE' or model.get('dropout') or spec['normalizer'] not in (None, {'type': 'NFC'}):
        return None
    if not all(token['special'] for token in spec['added_tokens']):
        return None
    if [step['type'] for step in steps] != ['Split', 'ByteLevel']:
        return None
    split, byte_level = steps
    if split['behavior'] != 'Isolated' or split['invert']:
        return None
    if byte_level['add_prefix_space'] or byte_level['use_regex']:
        return None
    return split['pattern'].get('Regex')

def _as_tiktoken(spec):
    """tiktoken (four to ten times as fast) for a tokenizer.json laid out as Qwen2.5's, Llama-3's, tiny's; else None.

    tiktoken joins the pair whose result has the lowest id; tokenizers the pair that stands first in
    its list of merges. These are the same when the list's results come in order of id and its
    merges lead to each (Qwen2.5: all do).
    """
    regex = _split_regex(spec)
    if regex is None:
        return None
    ids = spec['model']['vocab']
    byte_of = bytes_of_characters()
    results = [''.join(merge) for merge in merges_of(spec['model'])]
    result_ids = [ids[token] for token in results]
    if result_ids != sorted(result_ids) or not byte_of.keys() <= ids.keys():
        return None
    ranks = {bytes(byte_of[c] for c in token): ids[token] for token in [*byte_of, *results]}
    return tiktoken.Encoding('text', pat_str=regex, mergeable_ranks=ranks, special_tokens={})

# --------------------------------------------------------------------------------------------------

class TextTokenizer:
    """The text tokenizer of a local folder or a hub id, with no special token ever parsed from text.

    .size    number of ids (n_text of a Vocab)      .first   ids put before a document (a BOS or none)
    .hash    names ids and splitting                .eot     the id that ends a document, or None
    .with_markup   the tokenizers library's Tokenizer, which parses special tokens and units

    The folder of a joint model will do as well: its units are left out, so size and hash are those
    of the text tokenizer below.
    """

    def __init__(self, folder):
        self.name = str(folder)
        spec, config = _read_tokenizer(folder)
        try:
            self.with_markup = Tokenizer.from_str(json.dumps(spec))
        except Exception as e: # the library raises nothing narrower
            raise Refused(f"{folder}: tokenizer.json is not what the tokenizers library reads: {e}") from None
        first_unit = [token['id'] for token in spec['added_tokens'] if token['content'] == '<Un0>']
        self.size = first_unit[0] if first_unit else self.with_markup.get_vocab_size()
        eot = config.get('eos_token')
        if isinstance(eot, dict):
            eot = eot['content']
        self.eot = self.with_markup.token_to_id(eot) if eot else None
        sample = self.with_markup.encode('a')
        self.first = sample.ids[:sample.special_tokens_mask.index(0)]
        added = sorted((token for token in spec['added_tokens'] if token['id'] < self.size), key=itemgetter('id'))
        markup = [(token['content'], token['id']) for token in added]
        self.hash = short_hash([spec['model']['vocab'], merges_of(spec['model']), spec['normalizer'],
                                spec['pre_tokenizer'], markup, self.first, self.eot])
        # Text must not turn into added tokens. The runs of blanks among those of GPT-NeoX and Gemma may.
        for token in added:
            token['special'] = token['special'] or not token['content'].isspace()
        spec |= {'added_tokens': added, 'post_processor': None, 'truncation': None, 'padding': None}
        self._plain = Tokenizer.from_str(json.dumps(spec))
        self._plain.encode_special_tokens = True # the library's name for: special tokens in text are text
        self._tiktoken = _as_tiktoken(spec)
        self._nfc = spec['normalizer'] == {'type': 'NFC'}

    def encode(self, text):
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        """Ids of each text, without .first and .eot."""
        if self._tiktoken is None:
            # As tiktoken does: a lone surrogate becomes the replacement character.
            texts = [text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') for text in texts]
            return [encoding.ids for encoding in self._plain.encode_batch(texts, add_special_tokens=False)]
        if self._nfc:
            texts = [unicodedata.normalize('NFC', text) for text in texts]
        return [self._tiktoken.encode_ordinary(text) for text in texts]

    def decode(self, ids):
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.size:
            raise Refused(f"{self.name}: ids {min(ids)}..{max(ids)} to decode, expected 0..{self.size - 1}")
        return self.with_markup.decode(ids, skip_special_tokens=False)

    @cached_property
    def vocab(self):
        return Vocab('text', n_text=self.size, tokenizer=self.hash)

# --------------------------------------------------------------------------------------------------
# tokenizer files with units

# What AutoTokenizer of transformers 5 makes of any tokenizer.json in a folder whose config.json says qwen2 or qwen3
# ('tokenizer' in their tables): vocabulary, merges, added tokens and post-processor are the file's, the rest is this.
QWEN2_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2_STEPS = [{'type': 'Split', 'pattern': {'Regex': QWEN2_SPLIT}, 'behavior': 'Isolated', 'invert': False},
               {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}]
QWEN2 = {'normalizer': {'type': 'NFC'},
         'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': QWEN2_STEPS},
         'decoder': {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True, 'use_regex': True}}
# The class of these files, for AutoTokenizer to take in place of Qwen2Tokenizer. With trust_remote_code=True it looks
# for a file of that name in the folder, and fails.
AUTO_MAP = {'AutoTokenizer': [None, 'transformers.PreTrainedTokenizerFast']}
FLAGS = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized', 'special'), False) # of an added token
NAMED = ('bos_token', 'eos_token', 'unk_token', 'pad_token') # in tokenizer_config.json
# Texts whose ids are kept in vocab.json: should another tool change tokenizer.json, they tell.
PROBES = ("She'll count 1234 sheep before 5:30!", " It was  two\n\nold BARNS.", "<|endoftext|> isn't <Un5>",
          'caf\u00e9 e\u0301 \u65e5\u672c \U0001f600')

def export_tokenizer(folder, vocab, out_dir, family='qwen2'):
    """Writes tokenizer.json and tokenizer_config.json, with which transformers' AutoTokenizer gives exactly our ids.

    joint    the text tokenizer of `folder` with <Un0>..<Un{K-1}>, <speech>, <text> added
    text     the text tokenizer of `folder`
    speech   <PAD> <S> <Un0>.. as added tokens, with <S> put before and after, anything else is dropped; `folder` is
             not used

    family: of the model beside it, which is where AutoTokenizer takes the class from
    Returns {text: ids} of the PROBES for vocab.json, None for speech.
    Refused: a folder whose tokenizer is not that of the vocabulary, or whose ids have gaps.
    """
    probes = None
    if vocab.kind == 'speech':
        spec = _speech_tokenizer(vocab)
        config = {'pad_token': '<PAD>', 'bos_token': '<S>', 'eos_token': '<S>', 'unk_token': '<PAD>'}
    else:
        spec, config = _read_tokenizer(folder)
        text = TextTokenizer(folder)
        why = why_not(text, vocab)
        if why:
            raise Refused(f"{folder}: {why}")
        probes = {probe: [*text.first, *text.encode(probe)] for probe in PROBES}
        names = [f'<Un{u}>' for u in range(vocab.n_units)]
        if vocab.kind == 'joint':
            names += ['<speech>', '<text>']
        added = [token for token in spec['added_tokens'] if token['id'] < text.size]
        added += [{'id': text.size + i, 'content': name, **FLAGS} for i, name in enumerate(names)]
        spec |= {'added_tokens': added, 'truncation': None, 'padding': None}
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    n_ids = tokenizer.get_vocab_size()
    if n_ids != vocab.size or (vocab.kind != 'text' and tokenizer.token_to_id('<Un0>') != vocab.unit_offset):
        raise Refused(f"{folder}: {n_ids} ids with the units added, expected {vocab.size}: "
                      "the tokenizer's own ids have gaps")
    with atomically(Path(out_dir) / 'tokenizer.json') as tmp:
        tmp.write_text(json.dumps(spec, ensure_ascii=False), encoding='utf-8')
    config = _tokenizer_config(tokenizer, config)
    if FAMILIES[family].get('tokenizer') == 'Qwen2Tokenizer' and not _reads_as_qwen2(spec):
        config['auto_map'] = AUTO_MAP
    write_json(Path(out_dir) / 'tokenizer_config.json', config)
    return probes

def _tokenizer_config(tokenizer, config):
    """The tokenizer_config.json of a tokenizer, given that of the text tokenizer.

    All NAMED are in it, or transformers would add its own as new ids; other keys have other meanings from version to
    version, and what they say is in tokenizer.json.
    """
    new = {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False}
    for key in NAMED:
        token = config.get(key)
        token = token['content'] if isinstance(token, dict) else token
        new[key] = None if token is None or tokenizer.token_to_id(token) is None else token
    return new | {key: config[key] for key in ('model_max_length', 'chat_template') if key in config}

def _reads_as_qwen2(spec):
    """Does a tokenizer.json give the same ids and text where QWEN2 stands in place of its own steps?"""
    steps = [{**step, 'trim_offsets': True} if step['type'] == 'ByteLevel' else step
             for step in (spec['pre_tokenizer'] or {}).get('pretokenizers', [])]
    model = spec['model']
    flags = ('dropout', 'unk_token', 'continuing_subword_prefix', 'end_of_word_suffix', 'byte_fallback',
             'ignore_merges')
    return (steps == QWEN2_STEPS and spec['normalizer'] == QWEN2['normalizer'] and model['type'] == 'BPE'
            and not any(model.get(flag) for flag in flags) and (spec['decoder'] or {}).get('type') == 'ByteLevel')

def _speech_tokenizer(vocab):
    """The tokenizer.json of a speech vocabulary: added tokens alone, so that QWEN2's steps never see text."""
    ids = {'<PAD>': vocab.pad, '<S>': vocab.bos}
    ids |= {f'<Un{u}>': vocab.unit_offset + u for u in range(vocab.n_units)}
    bos = {'SpecialToken': {'id': '<S>', 'type_id': 0}}
    first = {'Sequence': {'id': 'A', 'type_id': 0}}
    second = {'Sequence': {'id': 'B', 'type_id': 1}}
    return {
        'version': '1.0', 'truncation': None, 'padding': None, **QWEN2,
        'added_tokens': [{'id': i, 'content': name, **FLAGS, 'special': i < 2} for name, i in ids.items()],
        'post_processor': {'type': 'TemplateProcessing', 'single': [bos, first, bos], 'pair': [first, second],
                           'special_tokens': {'<S>': {'id': '<S>', 'ids': [vocab.bos], 'tokens': ['<S>']}}},
        'model': {'type': 'BPE', 'vocab': ids, 'merges': []}}

REMEDY = ("another tool has changed the tokenizer's files: put back tokenizer.json and tokenizer_config.json as "
          "training wrote them")

def _difference(ids, expected, written):
    return f"its tokenizer gives {ids[:12]} for {written!r}, the model was trained on {expected[:12]}"

def why_not(text, vocab):
    """Why a TextTokenizer is not the one of a vocabulary; None if it is.

    It is if its hash is, or else, as after a tool that writes the same in other words, if it gives the ids of the
    probes in its folder's vocab.json. Folders of earlier versions have none.
    """
    if (text.hash, text.size) == (vocab.tokenizer, vocab.n_text):
        return None
    path = Path(text.name) / 'vocab.json'
    content = read_json(text.name, path.name, 'train.py') if path.is_file() else {}
    # The tokenizers of Qwen2.5 and others have a file of that name too: token -> id.
    if content.get('tokenizer') != vocab.tokenizer or not content.get('probes') or text.size != vocab.n_text:
        return (f"tokenizer {text.hash} of {text.size} ids, the vocabulary was made with "
                f"{vocab.tokenizer or 'none'} of {vocab.n_text}")
    for written, expected in content['probes'].items():
        ids = [*text.first, *text.encode(written)]
        if ids != expected:
            return _difference(ids, expected, written)
    return None

def check_ids(folder, vocab, text):
    """Refuses a model's folder whose tokenizer.json does not give the ids of its vocabulary.

    text: the folder's TextTokenizer; None for speech, which may have no tokenizer.json
    """
    if text:
        why = why_not(text, vocab)
        if why:
            raise Refused(f"{folder}: {why}; {REMEDY}")
        tokenizer = text.with_markup
    elif (Path(folder) / 'tokenizer.json').is_file():
        tokenizer = Tokenizer.from_str(json.dumps(_read_tokenizer(folder)[0]))
    else:
        return
    if vocab.kind != 'text':
        units = [3 % vocab.n_units, vocab.n_units - 1, 0]
        written = ''.join(f'<Un{unit}>' for unit in units)
        expected = vocab.unit_to_token(units).tolist()
        if vocab.kind == 'joint':
            written = f'<speech>{written}<text>'
            expected = [vocab.speech, *expected, vocab.text]
        ids = tokenizer.encode(written, add_special_tokens=False).ids
        if ids != expected:
            raise Refused(f"{folder}: {_difference(ids, expected, written)}; {REMEDY}")
    n_ids = tokenizer.get_vocab_size()
    if n_ids != vocab.size:
        raise Refused(f"{folder}: its tokenizer has {n_ids} ids, the model was trained on {vocab.size}; {REMEDY}")

def vocabulary_of(folder):
    """The Vocab of a tokenizer.json that holds units as export_tokenizer writes them; it does not say whose units."""
    spec, _ = _read_tokenizer(folder)
    ids = dict(spec['model']['vocab'])
    ids |= {token['content']: token['id'] for token in spec['added_tokens']}
    K = 0
    while f'<Un{K}>' in ids:
        K += 1
    first = ids.get('<Un0>')
    if K and all(ids[f'<Un{k}>'] == first + k for k in range(K)):
        if (ids.get('<PAD>'), ids.get('<S>'), first) == (0, 1, 2):
            return Vocab('speech', n_units=K)
        if (ids.get('<speech>'), ids.get('<text>')) == (first + K, first + K + 1):
            return Vocab('joint', first, K, TextTokenizer(folder).hash)
    markup = ', '.join(f'{name} {ids.get(name)}' for name in ('<speech>', '<text>', '<PAD>', '<S>'))
    raise Refused(f"{folder}: tokenizer.json has {K} units from id {first} on, {markup}; expected text, units, "
                  "<speech>, <text>, or <PAD>, <S>, units, one after the other")
