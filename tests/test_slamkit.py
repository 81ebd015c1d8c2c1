"""slamkit's features and tokens: golden lines by hand, ids against a Hugging Face tokenizer, bad lines by place."""
import json

import pytest
from small import make_tokenizer
from transformers import PreTrainedTokenizerFast

import align
import interleave
from configurator import Refused
from data import Shards
from papers import slamkit
from papers.slamkit import Config, string_ids
from speech.units import Units
from speech.words import Words
from vocab import Vocab

FEATURES = [
    {'units': [5, 9, 5, 7, 3, 8], 'duration': [2, 1, 3, 1, 2, 1], 'file_name': '../data/b/two.flac',
     'text': ' once upon', 'aligned_text': [[' once', 0.08, 0.28], [' upon', 0.281, 0.4]]},
    # Its units are not deduplicated.
    {'units': [3, 49, 49, 7, 499], 'duration': [1, 1, 1, 1, 1], 'file_name': '../data/a/one.x.wav'}]

def write(path, lines):
    """Lines of JSON at path -> the path as a setting."""
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return str(path)

def as_lists(document):
    """A document of a units folder: [units, runs] as lists."""
    return [column.tolist() for column in document]

def test_features_become_a_units_folder_with_words(tmp_path, capsys):
    out = tmp_path / 'units'
    features = write(tmp_path / 'features.jsonl', FEATURES)
    slamkit.main(Config(features=features, out=str(out)))
    u = Units(out)
    assert [m['id'] for m in u.meta] == ['a/one.x', 'b/two']
    assert [m['seconds'] for m in u.meta] == [.2, .4]
    assert as_lists(u[0]) == [[3, 49, 7, 499], [1, 2, 1, 1]]
    assert as_lists(u[1]) == [[5, 9, 5, 7, 3, 8], [2, 1, 3, 1, 2, 1]]
    assert (u.info['n_units'], u.info['frame_hz'], u.info['hop'], u.info['runs']) == (500, 25.0, 640, 10)
    align.main(align.Config(units=str(out)))
    words, starts, ends = Words(out / 'words')[1]
    assert words == [' once', ' upon']
    assert starts.tolist() == [1280, 4496]
    assert ends.tolist() == [4480, 6400]
    tokens = str(tmp_path / 'tokens')
    interleave.main(interleave.Config(units=str(out), sources=('textless',), out=tokens, val_frac=0.0))
    with pytest.raises(Refused, match='is there already'):
        slamkit.main(Config(features=features, out=str(out)))

def test_tokens_of_units_have_slamkits_ids(tmp_path):
    lines = [{'file_name': 'z.wav', 'audio_repr': '<Un3><Un49><Un7>'}, {'file_name': 'a.wav', 'audio_repr': '<Un499>'}]
    out = tmp_path / 'out'
    slamkit.main(Config(tokens=write(tmp_path / 't.jsonl', lines), out=str(out), val_frac=0.0))
    vocab = Vocab('speech', n_units=500, units='slprl/mhubert-base-25hz')
    shards = Shards(out / 'train/textless', vocab)
    assert shards.read(0).tolist() == [1, 501, 1]
    assert shards.read(1).tolist() == [1, 5, 51, 9, 1]

STRINGS = ['<text> once upon<speech><Un12><Un7><text> a time', '<speech><Un0><text> b', '<Un3><Un3>',
           ' plain <text, <Un> <unx>', '<speech><text> café 😀', '<text>  two  spaces <speech><Un499>', 'x']

def test_interleaved_tokens_have_the_ids_of_a_tokenizer_with_added_tokens(tmp_path):
    tokenizer = make_tokenizer(tmp_path / 'tokenizer')
    reference = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / 'tokenizer/tokenizer.json'))
    reference.add_tokens([f'<Un{i}>' for i in range(500)] + ['<speech>', '<text>']) # in slamkit's order
    vocab = Vocab('joint', tokenizer.size, 500, tokenizer.hash, 'h')
    for text in STRINGS:
        assert string_ids('x', text, vocab, tokenizer) == reference(text).input_ids, text
    lines = [{'file_name': f'{i}.wav', 'audio_repr': text} for i, text in enumerate(STRINGS)]
    tokens = write(tmp_path / 't.jsonl', lines)
    out = tmp_path / 'out'
    slamkit.main(Config(tokens=tokens, out=str(out), val_frac=0.0, units_hash='h',
                        tokenizer=str(tmp_path / 'tokenizer')))
    info = json.loads((out / 'info.json').read_text())
    documents = {name: counts['documents'] for name, counts in info['written'].items()}
    assert documents == {'train/interleaved': 4, 'train/speech': 1, 'train/text': 2}
    shards = Shards(out / 'train/interleaved', vocab)
    assert shards.read(0).tolist() == reference(STRINGS[0]).input_ids

CORRECT = {'units': [1], 'duration': [1], 'file_name': 'a', 'audio_repr': '<Un1>'}
BAD = { # case: (setting that names the file, what differs from CORRECT, message); None: the key is not there
    'a unit out of range': ('features', {'units': [500]}, 'expected as many units (0 to 499)'),
    'fewer durations': ('features', {'units': [1, 2]}, 'expected as many units'),
    'a duration of 0': ('features', {'duration': [0]}, 'expected as many units'),
    'a unit that is true': ('features', {'units': [True]}, 'expected as many units'),
    'no units': ('features', {'units': [], 'duration': []}, 'and at least one'),
    'no name': ('features', {'file_name': None}, "expected a 'file_name', got None"),
    'a word without times': ('features', {'aligned_text': [['x']]}, "words of 'a': expected"),
    'a token out of range': ('tokens', {'audio_repr': '<Un500>'}, 'unit 500, expected 0 to 499'),
    'text without a tokenizer': ('tokens', {'audio_repr': '<Un5> so'}, "text or separators in it (' so')"),
    'separators without one': ('tokens', {'audio_repr': '<speech><Un5>'}, "text or separators in it ('<speech>')"),
    'nothing': ('tokens', {'audio_repr': ''}, "a string 'audio_repr'"),
}

@pytest.mark.parametrize('case', BAD)
def test_a_bad_line_is_refused_by_its_place_and_nothing_is_left(tmp_path, case):
    setting, change, message = BAD[case]
    line = {key: value for key, value in (CORRECT | change).items() if value is not None}
    path = write(tmp_path / 'in.jsonl', [CORRECT | {'file_name': 'g'}, line])
    with pytest.raises(Refused) as e:
        slamkit.main(Config(**{setting: path}, out=str(tmp_path / 'out')))
    assert f'{path}:2: ' in str(e.value) and message in str(e.value), e.value
    assert '\n' not in str(e.value)
    assert not (tmp_path / 'out').exists()

def test_names_that_meet_and_empty_files_are_refused(tmp_path):
    absolute = FEATURES[0] | {'file_name': '/abs/x.wav'}
    for lines, message in (([FEATURES[0]] * 2, "document 'two' comes twice"),
                           ([], 'no document in it'),
                           ([FEATURES[0], absolute], 'absolute and relative')):
        with pytest.raises(Refused, match=message):
            slamkit.main(Config(features=write(tmp_path / 'f.jsonl', lines), out=str(tmp_path / 'out')))
    with pytest.raises(Refused, match='expected --features=FILE or --tokens=FILE'):
        Config(out='x')
