"""Layouts against the published ids, tokenizers of the families' kinds (made here) against transformers'."""
import json

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from configurator import Refused
from hub.tokenizer import TextTokenizer, export_tokenizer
from vocab import PAPERS_UNITS, Vocab, papers_vocab

QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
CORPUS = ["The little dog ran home, and the dog's bone lay in the old barn.", "She'll count 1234 sheep before 5:30!",
          "Speech text text speech unit Un", "A cat sat by the well; it wasn't theirs."] * 3
MARKUP = ['<|endoftext|>', '<s>', '</s>', '<tool_call>', '<think>', '<speech>', '<text>', '<Un5>', '<Un0><Un1>']
ORDINARY = ["The dog ran.", " She'll sit  by the\n\nbarn", "1234 caf\u00e9 \u65e5\u672c \U0001f600 e\u0301"]

def untrained_tokenizer(kind):
    """The library's parts of a family's tokenizer, without tokens."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=kind == 'gemma', ignore_merges=kind == 'llama3',
                                     unk_token='<unk>' if kind == 'gemma' else None))
    if kind == 'gemma':
        tokenizer.normalizer = normalizers.Replace(' ', '\u2581')
        blanks = decoders.Replace('\u2581', ' ')
        tokenizer.decoder = decoders.Sequence([blanks, decoders.ByteFallback(), decoders.Fuse()])
        return tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if kind in ('qwen2', 'llama3'):
        split = pre_tokenizers.Split(Regex(QWEN if kind == 'qwen2' else LLAMA), 'isolated')
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == 'qwen2':
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer

def make_tokenizer(kind, folder):
    """A small tokenizer laid out as a family's tokenizer.json is; returns its folder."""
    tokenizer = untrained_tokenizer(kind)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = []
    if kind == 'gemma':
        alphabet = []
        specials = ['<unk>', *(f'<0x{b:02X}>' for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet,
                                  special_tokens=specials)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(['<|endoftext|>', '<s>', '</s>'])
    tokenizer.add_tokens([AddedToken('<tool_call>', normalized=False), AddedToken('<think>', normalized=True)])
    if kind == 'gpt_neox':
        tokenizer.add_tokens([AddedToken(' ' * n, normalized=True) for n in (4, 3, 2)])
    if kind in BOS:
        bos = BOS[kind]
        special_tokens = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f'{bos} $A', special_tokens=special_tokens)
    spec = json.loads(tokenizer.to_str())
    spec['added_tokens'] = [t for t in spec['added_tokens'] if not t['content'].startswith('<0x')] # bytes are no markup
    config = {'eos_token': '<|endoftext|>', 'tokenizer_class': 'PreTrainedTokenizerFast'}
    folder.mkdir()
    (folder / 'tokenizer.json').write_text(json.dumps(spec))
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    return folder

BOS = {'llama3': '<s>', 'gemma': '<s>', 'opt': '</s>'} # of the families that begin documents with one
FAMILIES = ('qwen2', 'llama3', 'opt', 'gpt_neox', 'gemma')

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('tokenizers')
    return {kind: make_tokenizer(kind, root / kind) for kind in FAMILIES}

# --------------------------------------------------------------------------------------------------

def test_layouts_are_the_published_ones():
    sims = Vocab('joint', n_text=151665, n_units=500, tokenizer='t', units='u')
    assert (sims.unit_offset, sims.speech, sims.text, sims.size) == (151665, 152165, 152166, 152167)
    slam = Vocab('speech', n_units=500, units='u')
    assert (slam.pad, slam.bos, slam.unit_offset, slam.size) == (0, 1, 2, 502)
    assert [slam.bos, *slam.unit_to_token([3, 49, 7]), slam.bos] == [1, 5, 51, 9, 1] # slamkit's for <Un3><Un49><Un7>
    assert Vocab('text', n_text=128256, tokenizer='t').size == 128256

def test_the_papers_vocabularies_have_their_published_sizes():
    assert PAPERS_UNITS == 500
    assert papers_vocab('joint', 151665) == Vocab('joint', n_text=151665, n_units=500)
    assert papers_vocab('joint', 151665).size == 152167 # SIMS: Qwen2.5's text ids, the units, <speech> and <text>
    assert papers_vocab('speech', 151665) == Vocab('speech', n_units=500)
    assert papers_vocab('speech', 151665).size == 502   # slamkit: pad, bos and the units, whatever the text model had
    assert papers_vocab('text', 151665) == Vocab('text', n_text=151665)

@pytest.mark.parametrize('vocab', [Vocab('joint', 70, 9), Vocab('speech', n_units=9), Vocab('text', 81)])
def test_every_id_is_text_a_unit_or_a_separator(vocab):
    ids = np.arange(vocab.size, dtype=np.uint16)
    units = list(range(vocab.unit_offset, vocab.unit_offset + vocab.n_units))
    markup = {'joint': (79, 80), 'speech': (0, 1), 'text': ()}[vocab.kind]
    slow = [0] * vocab.size
    for i in units:
        slow[i] = 1
    for i in markup:
        slow[i] = 2
    slow_units = [units.index(i) if i in units else -1 for i in range(vocab.size)]
    for x in (ids, torch.from_numpy(ids.astype(np.int64))):
        modality = vocab.modality(x)
        assert modality.tolist() == slow
        assert str(modality.dtype).endswith('uint8')
        of_ids = vocab.token_to_unit(x)
        assert of_ids.tolist() == slow_units
        assert type(of_ids) is type(x)
    assert ids.tolist() == list(range(vocab.size)) # not written into
    if vocab.n_units:
        for x in (np.arange(9, dtype=np.uint16), torch.arange(9)):
            tokens = vocab.unit_to_token(x)
            assert tokens.tolist() == units
            assert vocab.token_to_unit(tokens).tolist() == x.tolist()

def test_units_from_uint16_do_not_wrap_above_a_large_text_vocabulary():
    vocab = Vocab('joint', n_text=151665, n_units=500)
    assert vocab.unit_to_token(np.array([0, 499], dtype=np.uint16)).tolist() == [151665, 152164]

@pytest.mark.parametrize('units', [[0, 500], [-1, 3]])
def test_a_unit_out_of_range_is_refused_not_made_a_separator(units):
    with pytest.raises(Refused, match=f'units {min(units)}..{max(units)}, expected 0..499'):
        Vocab('joint', n_text=10, n_units=500).unit_to_token(units)

@pytest.mark.parametrize('fields, message', [
    (('words', 5), "vocabulary kind 'words', expected one of text, joint, speech"),
    (('joint', 0, 500), 'joint vocabulary with n_text = 0'), (('joint', 10, 0), 'joint vocabulary with n_units = 0'),
    (('speech', 10, 500), 'speech vocabulary with n_text = 10, expected 0'),
    (('text', 10, 5), 'text vocabulary with n_units = 5, expected 0'),
    (('text', 10.5), 'n_text = 10.5')])
def test_impossible_vocabularies_are_refused(fields, message):
    with pytest.raises(Refused, match=message):
        Vocab(*fields)

def test_separators_belong_to_joint_and_pad_to_speech():
    for name in ('pad', 'bos'):
        with pytest.raises(Refused, match='only a speech one has'):
            getattr(Vocab('joint', 10, 5), name)
    for name in ('speech', 'text'):
        with pytest.raises(Refused, match='only a joint one has'):
            getattr(Vocab('speech', n_units=5), name)

def test_a_model_takes_its_own_ids_and_text_of_its_tokenizer():
    joint = Vocab('joint', 10, 5, 'tok', 'km')
    text = Vocab('text', 10, tokenizer='tok')
    assert joint.accepts(joint)
    assert joint.accepts(text)
    assert text.accepts(text)
    assert not text.accepts(joint)
    for foreign in (Vocab('joint', 10, 5, 'tok', 'km2'), Vocab('joint', 10, 5, 'tok2', 'km'),
                    Vocab('joint', 10, 6, 'tok', 'km'), Vocab('text', 10, tokenizer='tok2'),
                    Vocab('speech', n_units=5, units='km')):
        assert not joint.accepts(foreign)
        assert joint.hash() != foreign.hash()

def test_a_vocabulary_speaks_its_units_by_hash_or_by_the_name_of_a_published_encoder():
    hashed = Vocab('speech', n_units=5, units='km')
    published = Vocab('speech', n_units=5, units='slprl/mhubert-base-25hz')
    assert hashed.speaks('km', None)
    assert not hashed.speaks('km2', 'km')
    assert published.speaks('any', '/models/mhubert-base-25hz')
    assert not published.speaks('any', None)

def test_a_vocabulary_survives_its_file_and_a_broken_file_is_named(tmp_path):
    vocab = Vocab('joint', 10, 5, 'tok', 'km')
    vocab.save(tmp_path)
    loaded = Vocab.load(tmp_path)
    assert loaded == vocab
    assert loaded.hash() == vocab.hash()
    with pytest.raises(Refused, match='nowhere/vocab.json: no such file; train.py writes it'):
        Vocab.load(tmp_path / 'nowhere')
    foreign = 'vocab.json: not a vocabulary of this project'
    for text, message in (
            ('{"kind": "joint", "n_txt": 3}', foreign),
            ('{"kind": "joint"}', foreign),
            ('{"hello": 5}', foreign), # as GPT-2's
            ('{', 'vocab.json: not JSON'),
            ('[1]', 'vocab.json: expected a JSON object')):
        (tmp_path / 'vocab.json').write_text(text)
        with pytest.raises(Refused, match=message):
            Vocab.load(tmp_path)

# --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', FAMILIES)
def test_markup_in_text_stays_text(folders, kind):
    tokenizer = TextTokenizer(folders[kind])
    spec = json.loads((folders[kind] / 'tokenizer.json').read_text())
    markup_ids = {token['id'] for token in spec['added_tokens'] if token['content'].startswith('<')}
    for text in [*MARKUP, 'the <speech>dog</s> <Un499>', ' '.join(MARKUP)]:
        ids = tokenizer.encode(text)
        assert max(ids) < tokenizer.size
        assert not markup_ids & set(ids), f"{text!r} -> {ids}"
        assert tokenizer.decode(ids) == text

@pytest.mark.parametrize('kind', FAMILIES)
def test_ids_of_ordinary_text_are_those_of_transformers(folders, kind):
    from transformers import PreTrainedTokenizerFast
    reference = PreTrainedTokenizerFast.from_pretrained(folders[kind])
    tokenizer = TextTokenizer(folders[kind])
    assert tokenizer.size == len(reference)
    assert reference.convert_ids_to_tokens(tokenizer.first) == ([BOS[kind]] if kind in BOS else [])
    assert tokenizer.eot == reference.eos_token_id
    for text in ORDINARY + CORPUS:
        ids = tokenizer.encode(text)
        expected = reference(text).input_ids
        assert tokenizer.first + ids == expected, text
        assert tokenizer.decode(ids) == reference.decode(expected, skip_special_tokens=True)
    assert tokenizer.encode_batch(ORDINARY) == [tokenizer.encode(text) for text in ORDINARY]

def test_runs_of_blanks_that_a_family_added_are_still_used(folders):
    tokenizer = TextTokenizer(folders['gpt_neox'])
    assert tokenizer.decode([tokenizer.encode('a    b')[1]]) == ' ' * 4

@pytest.mark.parametrize('kind', ('qwen2', 'llama3'))
def test_tiktoken_gives_the_ids_of_tokenizers(folders, kind):
    tokenizer = TextTokenizer(folders[kind])
    assert tokenizer._tiktoken is not None
    assert TextTokenizer(folders['opt'])._tiktoken is None
    rng = np.random.default_rng(0)
    pieces = [*MARKUP, *' '.join(CORPUS).split(' '), ' ', '  ', '\n', "'S", '12', 'e\u0301', '\u212b', '\u3000', '\x85']
    for _ in range(2000):
        words = ''.join(rng.choice(pieces, rng.integers(1, 8)))
        characters = ''.join(map(chr, rng.integers(1, 0xd7ff, 3)))
        text = words + characters
        assert tokenizer.encode(text) == tokenizer._plain.encode(text, add_special_tokens=False).ids, repr(text)

def test_merges_out_of_order_are_left_to_tokenizers(folders, tmp_path):
    spec = json.loads((folders['qwen2'] / 'tokenizer.json').read_text())
    spec['model']['merges'].reverse()
    (tmp_path / 'tokenizer.json').write_text(json.dumps(spec))
    assert TextTokenizer(tmp_path)._tiktoken is None

def test_the_hash_follows_ids_and_splitting_not_the_folder(folders, tmp_path):
    again = TextTokenizer(make_tokenizer('qwen2', tmp_path / 'again'))
    hashes = {kind: TextTokenizer(folder).hash for kind, folder in folders.items()}
    assert len(set(hashes.values())) == len(FAMILIES)
    assert again.hash == hashes['qwen2']

def test_older_file_formats_are_read_through_transformers(folders, tmp_path):
    model = json.loads((folders['opt'] / 'tokenizer.json').read_text())['model']
    n_tokens = len(model['vocab'])
    merges = [' '.join(merge) for merge in model['merges']]
    config = {'tokenizer_class': 'GPT2Tokenizer', 'eos_token': '</s>', 'bos_token': '</s>', 'unk_token': '</s>'}
    (tmp_path / 'vocab.json').write_text(json.dumps({**model['vocab'], '</s>': n_tokens}))
    (tmp_path / 'merges.txt').write_text('\n'.join(['#version: 0.2', *merges]) + '\n')
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
    tokenizer = TextTokenizer(tmp_path)
    reference = TextTokenizer(folders['opt'])
    assert tokenizer.eot == n_tokens == tokenizer.size - 1
    for text in [*ORDINARY, 'ab</s>']:
        assert tokenizer.encode(text) == reference.encode(text)

def test_tokenizer_faults_are_named(folders, tmp_path):
    with pytest.raises(Refused, match='no tokenizer.json'):
        TextTokenizer(tmp_path)
    for text, message in (('{', 'tokenizer.json: not JSON'), ('{"model": 3}', 'not what the tokenizers library reads')):
        (tmp_path / 'tokenizer.json').write_text(text)
        with pytest.raises(Refused, match=message):
            TextTokenizer(tmp_path)
    with pytest.raises(Refused, match='no such tokenizer folder'):
        TextTokenizer(tmp_path / 'no' / 'such' / 'folder')
    tokenizer = TextTokenizer(folders['qwen2'])
    with pytest.raises(Refused, match=f'expected 0..{tokenizer.size - 1}'):
        tokenizer.decode([1, tokenizer.size])

# --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', FAMILIES)
def test_the_exported_tokenizer_gives_our_ids_to_transformers(folders, tmp_path, kind):
    from transformers import AutoTokenizer
    text = TextTokenizer(folders[kind])
    vocab = Vocab('joint', text.size, 20, text.hash, 'km')
    export_tokenizer(folders[kind], vocab, tmp_path)
    vocab.save(tmp_path)
    model_type = {'llama3': 'llama', 'gemma': 'gemma2'}.get(kind, kind)
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': model_type})) # transformers picks a class by it
    reference = AutoTokenizer.from_pretrained(tmp_path)
    assert len(reference) == vocab.size
    assert reference.eos_token_id == text.eot
    units = vocab.unit_to_token([0, 19, 7, 7])
    for plain in CORPUS[:4]: # one word-initial piece each: markup and text meet without a blank between
        ids = [*text.first, vocab.speech, *units, vocab.text, *text.encode(plain)]
        assert reference('<speech><Un0><Un19><Un7><Un7><text>' + plain).input_ids == ids
    below = TextTokenizer(tmp_path) # of a joint model's folder: the text tokenizer under it
    assert (below.size, below.hash, below.first, below.eot) == (text.size, text.hash, text.first, text.eot)
    assert below.encode('<Un7> dog') == text.encode('<Un7> dog')

def test_text_and_speech_vocabularies_are_exported_too(folders, tmp_path):
    from transformers import AutoTokenizer
    text = TextTokenizer(folders['qwen2'])
    export_tokenizer(folders['qwen2'], text.vocab, tmp_path / 'text')
    reference = AutoTokenizer.from_pretrained(tmp_path / 'text')
    assert len(reference) == text.size
    assert reference(CORPUS[0]).input_ids == text.encode(CORPUS[0])
    export_tokenizer(None, Vocab('speech', n_units=500), tmp_path / 'speech')
    reference = AutoTokenizer.from_pretrained(tmp_path / 'speech')
    assert reference('<Un3><Un49><Un7>').input_ids == [1, 5, 51, 9, 1] # slamkit's own answer
    assert len(reference) == 502
    assert reference.pad_token_id == 0
    assert reference.decode([5, 51]) == '<Un3><Un49>'

def test_export_with_another_tokenizer_is_refused(folders, tmp_path):
    text = TextTokenizer(folders['qwen2'])
    with pytest.raises(Refused, match=f'the vocabulary was made with {text.hash} of {text.size}'):
        export_tokenizer(folders['opt'], Vocab('joint', text.size, 5, text.hash, 'km'), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()

# --------------------------------------------------------------------------------------------------
# tiny/tokenizer

def test_the_embedded_tokenizer_knows_the_stories_words_and_takes_the_papers_path(tmp_path):
    from transformers import AutoTokenizer

    from tiny.stories import stories
    text = TextTokenizer('tiny/tokenizer')
    assert text._tiktoken is not None
    assert text.first == []
    assert text.eot == text.size - 1
    assert text.size <= 2048
    vocab = Vocab('joint', text.size, 500, text.hash, 'km')
    export_tokenizer('tiny/tokenizer', vocab, tmp_path)
    (tmp_path / 'config.json').write_text('{"model_type": "qwen2"}')
    reference = AutoTokenizer.from_pretrained(tmp_path)
    n_words = n_tokens = 0
    for story in stories('eval', 300):
        ids = text.encode(story.text)
        assert ids == reference(story.text).input_ids
        assert text.decode(ids) == story.text
        n_words += len(story.text.split())
        n_tokens += len(ids)
    assert n_tokens / n_words < 1.4, "words should mostly be one token"

def test_training_the_tokenizer_again_gives_the_same_file():
    from tiny.build.train_tokenizer import train
    from tiny.stories import stories
    texts = [story.text for story in stories('train', 300)]
    assert train(texts, 600).to_str() == train(texts, 600).to_str()
    assert train(texts, 600).get_vocab_size() == 600
