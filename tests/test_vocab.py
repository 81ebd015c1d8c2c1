"""Layouts against the published ids, tokenizers of the families' kinds (made here) against transformers'."""
import json

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from configurator import Refused
from hub.tokenizer import TextTokenizer, export_tokenizer
from vocab import Vocab

QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
CORPUS = ["The little dog ran home, and the dog's bone lay in the old barn.", "She'll count 1234 sheep before 5:30!",
          "Speech text text speech unit Un", "A cat sat by the well; it wasn't theirs."] * 3
MARKUP = ['<|endoftext|>', '<s>', '</s>', '<tool_call>', '<think>', '<speech>', '<text>', '<Un5>', '<Un0><Un1>']
ORDINARY = ["The dog ran.", " She'll sit  by the\n\nbarn", "1234 caf\u00e9 \u65e5\u672c \U0001f600 e\u0301"]

def make_tokenizer(kind, folder):
    """A small tokenizer laid out as a family's tokenizer.json is; returns its folder."""
    byte_level = kind != 'gemma'
    t = Tokenizer(models.BPE(byte_fallback=not byte_level, ignore_merges=kind == 'llama3',
                             unk_token=None if byte_level else '<unk>'))
    if kind in ('qwen2', 'llama3'):
        pattern = Regex(QWEN if kind == 'qwen2' else LLAMA)
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, 'isolated'),
                                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    elif byte_level:
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == 'qwen2':
        t.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    specials = [] if byte_level else ['<unk>', *(f'<0x{b:02X}>' for b in range(256))]
    if kind == 'gemma':
        t.normalizer, t.decoder = normalizers.Replace(' ', '\u2581'), decoders.Sequence(
            [decoders.Replace('\u2581', ' '), decoders.ByteFallback(), decoders.Fuse()])
    else:
        t.decoder = decoders.ByteLevel()
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False,
                                                      initial_alphabet=alphabet, special_tokens=specials))
    t.add_special_tokens(['<|endoftext|>', '<s>', '</s>'])
    t.add_tokens([AddedToken('<tool_call>', normalized=False), AddedToken('<think>', normalized=True)])
    if kind == 'gpt_neox':
        t.add_tokens([AddedToken(' ' * n, normalized=True) for n in (4, 3, 2)])
    if kind in ('llama3', 'gemma', 'opt'):
        bos = '</s>' if kind == 'opt' else '<s>'
        t.post_processor = processors.TemplateProcessing(single=f'{bos} $A', special_tokens=[(bos, t.token_to_id(bos))])
    folder.mkdir()
    spec = json.loads(t.to_str())
    spec['added_tokens'] = [a for a in spec['added_tokens'] if not a['content'].startswith('<0x')] # bytes are no markup
    (folder / 'tokenizer.json').write_text(json.dumps(spec))
    (folder / 'tokenizer_config.json').write_text(json.dumps(
        {'eos_token': '<|endoftext|>', 'tokenizer_class': 'PreTrainedTokenizerFast'}))
    return folder

FAMILIES = ('qwen2', 'llama3', 'opt', 'gpt_neox', 'gemma')

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('tokenizers')
    return {kind: make_tokenizer(kind, root / kind) for kind in FAMILIES}

# ----------------------------------------------------------------------------------------------------------------

def test_layouts_are_the_published_ones():
    sims = Vocab('joint', n_text=151665, n_units=500, tokenizer='t', units='u')
    assert (sims.unit_offset, sims.speech, sims.text, sims.size) == (151665, 152165, 152166, 152167)
    slam = Vocab('speech', n_units=500, units='u')
    assert (slam.pad, slam.bos, slam.unit_offset, slam.size) == (0, 1, 2, 502)
    assert [slam.bos, *slam.unit_to_token([3, 49, 7]), slam.bos] == [1, 5, 51, 9, 1] # slamkit's for <Un3><Un49><Un7>
    assert Vocab('text', n_text=128256, tokenizer='t').size == 128256

@pytest.mark.parametrize('vocab', [Vocab('joint', 70, 9), Vocab('speech', n_units=9), Vocab('text', 81)])
def test_every_id_is_text_a_unit_or_a_separator(vocab):
    ids = np.arange(vocab.size, dtype=np.uint16)
    units = list(range(vocab.unit_offset, vocab.unit_offset + vocab.n_units))
    markup = {'joint': (79, 80), 'speech': (0, 1), 'text': ()}[vocab.kind]
    slow = [1 if i in units else 2 if i in markup else 0 for i in range(vocab.size)]
    slow_units = [units.index(i) if i in units else -1 for i in range(vocab.size)]
    for x in (ids, torch.from_numpy(ids.astype(np.int64))):
        assert vocab.modality(x).tolist() == slow and str(vocab.modality(x).dtype).endswith('uint8')
        assert vocab.token_to_unit(x).tolist() == slow_units
        assert type(vocab.token_to_unit(x)) is type(x)
    assert ids.tolist() == list(range(vocab.size)) # not written into
    if vocab.n_units:
        for x in (np.arange(9, dtype=np.uint16), torch.arange(9)):
            assert vocab.unit_to_token(x).tolist() == units
            assert vocab.token_to_unit(vocab.unit_to_token(x)).tolist() == x.tolist()

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
    joint, text = Vocab('joint', 10, 5, 'tok', 'km'), Vocab('text', 10, tokenizer='tok')
    assert joint.accepts(joint) and joint.accepts(text) and text.accepts(text)
    assert not text.accepts(joint)
    for other in (Vocab('joint', 10, 5, 'tok', 'km2'), Vocab('joint', 10, 5, 'tok2', 'km'),
                  Vocab('joint', 10, 6, 'tok', 'km'), Vocab('text', 10, tokenizer='tok2'),
                  Vocab('speech', n_units=5, units='km')):
        assert not joint.accepts(other) and joint.hash() != other.hash()

def test_a_vocabulary_survives_its_file_and_a_broken_file_is_named(tmp_path):
    vocab = Vocab('joint', 10, 5, 'tok', 'km')
    vocab.save(tmp_path)
    assert Vocab.load(tmp_path) == vocab and Vocab.load(tmp_path).hash() == vocab.hash()
    with pytest.raises(Refused, match='nowhere/vocab.json: no such file'):
        Vocab.load(tmp_path / 'nowhere')
    for text in ('{"kind": "joint", "n_txt": 3}', '{', '[1]', '{"hello": 5}', '{"kind": "joint"}'): # 4th: GPT-2's
        (tmp_path / 'vocab.json').write_text(text)
        with pytest.raises(Refused, match='vocab.json: not a vocabulary of this project'):
            Vocab.load(tmp_path)

# ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', FAMILIES)
def test_markup_in_text_stays_text(folders, kind):
    tokenizer = TextTokenizer(folders[kind])
    markup_ids = {t['id'] for t in json.loads((folders[kind] / 'tokenizer.json').read_text())['added_tokens']
                  if t['content'].startswith('<')}
    for text in [*MARKUP, 'the <speech>dog</s> <Un499>', ' '.join(MARKUP)]:
        ids = tokenizer.encode(text)
        assert max(ids) < tokenizer.size and not markup_ids & set(ids), f"{text!r} -> {ids}"
        assert tokenizer.decode(ids) == text

@pytest.mark.parametrize('kind', FAMILIES)
def test_ids_of_ordinary_text_are_those_of_transformers(folders, kind):
    from transformers import PreTrainedTokenizerFast
    theirs, ours = PreTrainedTokenizerFast.from_pretrained(folders[kind]), TextTokenizer(folders[kind])
    assert ours.size == len(theirs)
    bos = {'llama3': ['<s>'], 'gemma': ['<s>'], 'opt': ['</s>']}
    assert theirs.convert_ids_to_tokens(ours.first) == bos.get(kind, [])
    assert ours.eot == theirs.eos_token_id
    for text in ORDINARY + CORPUS:
        assert ours.first + ours.encode(text) == theirs(text).input_ids, text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text).input_ids, skip_special_tokens=True)
    assert ours.encode_batch(ORDINARY) == [ours.encode(text) for text in ORDINARY]

def test_runs_of_blanks_that_a_family_added_are_still_used(folders):
    tokenizer = TextTokenizer(folders['gpt_neox'])
    assert tokenizer.decode([tokenizer.encode('a    b')[1]]) == ' ' * 4

@pytest.mark.parametrize('kind', ('qwen2', 'llama3'))
def test_tiktoken_gives_the_ids_of_tokenizers(folders, kind):
    tokenizer = TextTokenizer(folders[kind])
    assert tokenizer._tiktoken is not None and TextTokenizer(folders['opt'])._tiktoken is None
    rng = np.random.default_rng(0)
    pieces = [*MARKUP, *' '.join(CORPUS).split(' '), ' ', '  ', '\n', "'S", '12', 'e\u0301', '\u212b', '\u3000', '\x85']
    for _ in range(2000):
        text = ''.join(rng.choice(pieces, rng.integers(1, 8))) + ''.join(map(chr, rng.integers(1, 0xd7ff, 3)))
        assert tokenizer.encode(text) == tokenizer._plain.encode(text, add_special_tokens=False).ids, repr(text)

def test_merges_out_of_order_are_left_to_tokenizers(folders, tmp_path):
    spec = json.loads((folders['qwen2'] / 'tokenizer.json').read_text())
    spec['model']['merges'].reverse()
    (tmp_path / 'tokenizer.json').write_text(json.dumps(spec))
    assert TextTokenizer(tmp_path)._tiktoken is None

def test_the_hash_follows_ids_and_splitting_not_the_folder(folders, tmp_path):
    again = TextTokenizer(make_tokenizer('qwen2', tmp_path / 'again'))
    hashes = {TextTokenizer(folder).hash for folder in folders.values()}
    assert len(hashes) == len(FAMILIES) and again.hash == TextTokenizer(folders['qwen2']).hash

def test_older_file_formats_are_read_through_transformers(folders, tmp_path):
    model = json.loads((folders['opt'] / 'tokenizer.json').read_text())['model']
    (tmp_path / 'vocab.json').write_text(json.dumps({**model['vocab'], '</s>': len(model['vocab'])}))
    (tmp_path / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(' '.join(m) for m in model['merges']) + '\n')
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(
        {'tokenizer_class': 'GPT2Tokenizer', 'eos_token': '</s>', 'bos_token': '</s>', 'unk_token': '</s>'}))
    tokenizer, like = TextTokenizer(tmp_path), TextTokenizer(folders['opt'])
    assert tokenizer.eot == len(model['vocab']) == tokenizer.size - 1
    for text in [*ORDINARY, 'ab</s>']:
        assert tokenizer.encode(text) == like.encode(text)

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

# ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', FAMILIES)
def test_the_exported_tokenizer_gives_our_ids_to_transformers(folders, tmp_path, kind):
    from transformers import AutoTokenizer
    text = TextTokenizer(folders[kind])
    vocab = Vocab('joint', text.size, 20, text.hash, 'km')
    export_tokenizer(folders[kind], vocab, tmp_path)
    vocab.save(tmp_path)
    model_type = {'llama3': 'llama', 'gemma': 'gemma2'}.get(kind, kind)
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': model_type})) # transformers picks a class by it
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == vocab.size and theirs.eos_token_id == text.eot
    for plain in CORPUS[:4]: # one word-initial piece each: markup and text meet without a blank between
        ids = [*text.first, vocab.speech, *vocab.unit_to_token([0, 19, 7, 7]), vocab.text, *text.encode(plain)]
        assert theirs('<speech><Un0><Un19><Un7><Un7><text>' + plain).input_ids == ids
    below = TextTokenizer(tmp_path) # of a joint model's folder: the text tokenizer under it
    assert (below.size, below.hash, below.first, below.eot) == (text.size, text.hash, text.first, text.eot)
    assert below.encode('<Un7> dog') == text.encode('<Un7> dog')

def test_text_and_speech_vocabularies_are_exported_too(folders, tmp_path):
    from transformers import AutoTokenizer
    text, slam = TextTokenizer(folders['qwen2']), Vocab('speech', n_units=500)
    export_tokenizer(folders['qwen2'], Vocab('text', text.size, tokenizer=text.hash), tmp_path / 'text')
    theirs = AutoTokenizer.from_pretrained(tmp_path / 'text')
    assert len(theirs) == text.size and theirs(CORPUS[0]).input_ids == text.encode(CORPUS[0])
    export_tokenizer(None, slam, tmp_path / 'speech')
    theirs = AutoTokenizer.from_pretrained(tmp_path / 'speech')
    assert theirs('<Un3><Un49><Un7>').input_ids == [1, 5, 51, 9, 1] # slamkit's own answer
    assert len(theirs) == 502 and theirs.pad_token_id == 0 and theirs.decode([5, 51]) == '<Un3><Un49>'

def test_export_with_another_tokenizer_is_refused(folders, tmp_path):
    text = TextTokenizer(folders['qwen2'])
    with pytest.raises(Refused, match=f'the vocabulary was made with {text.hash} of {text.size}'):
        export_tokenizer(folders['opt'], Vocab('joint', text.size, 5, text.hash, 'km'), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()

# ----------------------------------------------------------------------------------------------------------------
# tiny/tokenizer

def test_the_embedded_tokenizer_knows_the_stories_words_and_takes_the_papers_path(tmp_path):
    from transformers import AutoTokenizer

    from tiny.stories import stories
    text = TextTokenizer('tiny/tokenizer')
    assert text._tiktoken is not None and text.first == [] and text.eot == text.size - 1 and text.size <= 2048
    vocab = Vocab('joint', text.size, 500, text.hash, 'km')
    export_tokenizer('tiny/tokenizer', vocab, tmp_path)
    (tmp_path / 'config.json').write_text('{"model_type": "qwen2"}')
    theirs, n_words, n_tokens = AutoTokenizer.from_pretrained(tmp_path), 0, 0
    for story in stories('eval', 300):
        ids = text.encode(story.text)
        assert ids == theirs(story.text).input_ids and text.decode(ids) == story.text
        n_words, n_tokens = n_words + len(story.text.split()), n_tokens + len(ids)
    assert n_tokens / n_words < 1.4, "words should mostly be one token"

def test_training_the_tokenizer_again_gives_the_same_file():
    from tiny.build.train_tokenizer import train
    from tiny.stories import stories
    texts = [story.text for story in stories('train', 300)]
    assert train(texts, 600).to_str() == train(texts, 600).to_str()
    assert train(texts, 600).get_vocab_size() == 600
