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

TWO = {'units': [5, 9, 5, 7, 3, 8], 'duration': [2, 1, 3, 1, 2, 1], 'file_name': '../data/b/two.flac',
       'text': ' once upon', 'aligned_text': [[' once', 0.08, 0.28], [' upon', 0.281, 0.4]]}
ONE = {'units': [3, 49, 49, 7, 499], 'duration': [1, 1, 1, 1, 1], 'file_name': '../data/a/one.x.wav'} # repeats kept
FEATURES = [TWO, ONE]

def write(path, lines):
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return str(path)

def test_features_become_a_units_folder_with_words(tmp_path, capsys):
    out = tmp_path / 'units'
    slamkit.main(Config(features=write(tmp_path / 'features.jsonl', FEATURES), out=str(out)))
    u = Units(out)
    assert [meta['id'] for meta in u.meta] == ['a/one.x', 'b/two']
    assert [meta['seconds'] for meta in u.meta] == [.2, .4]
    assert [x.tolist() for x in u[0]] == [[3, 49, 7, 499], [1, 2, 1, 1]]
    assert [x.tolist() for x in u[1]] == [[5, 9, 5, 7, 3, 8], [2, 1, 3, 1, 2, 1]]
    assert (u.info['n_units'], u.info['frame_hz'], u.info['hop'], u.info['runs']) == (500, 25.0, 640, 10)
    align.main(align.Config(units=str(out)))
    words, starts, ends = Words(out / 'words')[1]
    assert words == [' once', ' upon']
    assert (starts.tolist(), ends.tolist()) == ([1280, 4496], [4480, 6400])
    tokens = str(tmp_path / 'tokens')
    interleave.main(interleave.Config(units=str(out), sources=('textless',), out=tokens, val_frac=0.0))
    with pytest.raises(Refused, match='is there already'):
        slamkit.main(Config(features=str(tmp_path / 'features.jsonl'), out=str(out)))

def test_tokens_of_units_have_slamkits_ids(tmp_path):
    lines = [{'file_name': 'z.wav', 'audio_repr': '<Un3><Un49><Un7>'}, {'file_name': 'a.wav', 'audio_repr': '<Un499>'}]
    slamkit.main(Config(tokens=write(tmp_path / 't.jsonl', lines), out=str(tmp_path / 'out'), val_frac=0.0))
    shards = Shards(tmp_path / 'out/train/textless', Vocab('speech', n_units=500, units='slprl/mhubert-base-25hz'))
    assert [shards.read(i).tolist() for i in range(2)] == [[1, 501, 1], [1, 5, 51, 9, 1]]

STRINGS = [
    '<text> once upon<speech><Un12><Un7><text> a time',
    '<speech><Un0><text> b',
    '<Un3><Un3>',
    ' plain <text, <Un> <unx>',
    '<speech><text> café 😀',
    '<text>  two  spaces <speech><Un499>',
    'x',
]

def test_interleaved_tokens_have_the_ids_of_a_tokenizer_with_added_tokens(tmp_path):
    folder = tmp_path / 'tokenizer'
    tokenizer = make_tokenizer(folder)
    reference = PreTrainedTokenizerFast(tokenizer_file=str(folder / 'tokenizer.json'))
    reference.add_tokens([f'<Un{i}>' for i in range(500)] + ['<speech>', '<text>']) # in slamkit's order
    vocab = Vocab('joint', tokenizer.size, 500, tokenizer.hash, 'h')
    for text in STRINGS:
        assert string_ids('x', text, vocab, tokenizer) == reference(text).input_ids, text
    path = write(tmp_path / 't.jsonl', [{'file_name': f'{i}.wav', 'audio_repr': s} for i, s in enumerate(STRINGS)])
    slamkit.main(Config(tokens=path, out=str(tmp_path / 'out'), val_frac=0.0, tokenizer=str(folder), units_hash='h'))
    info = json.loads((tmp_path / 'out/info.json').read_text())
    n_documents = {name: n['documents'] for name, n in info['written'].items()}
    assert n_documents == {'train/interleaved': 4, 'train/speech': 1, 'train/text': 2}
    shards = Shards(tmp_path / 'out/train/interleaved', vocab)
    assert shards.read(0).tolist() == reference(STRINGS[0]).input_ids

BAD_FEATURES = {
    'a unit out of range': ({'units': [500], 'duration': [1], 'file_name': 'a'}, 'expected as many units (0 to 499)'),
    'fewer durations': ({'units': [1, 2], 'duration': [1], 'file_name': 'a'}, 'expected as many units'),
    'a duration of 0': ({'units': [1], 'duration': [0], 'file_name': 'a'}, 'expected as many units'),
    'a unit that is true': ({'units': [True], 'duration': [1], 'file_name': 'a'}, 'expected as many units'),
    'no units': ({'units': [], 'duration': [], 'file_name': 'a'}, 'and at least one'),
    'no name': ({'units': [1], 'duration': [1]}, "expected a 'file_name', got None"),
    'a word without times': ({'units': [1], 'duration': [1], 'file_name': 'a', 'aligned_text': [['x']]},
                             "words of 'a': expected"),
}
BAD_TOKENS = {
    'a token out of range': ('<Un500>', 'unit 500, expected 0 to 499'),
    'text without a tokenizer': ('<Un5> so', "text or separators in it (' so')"),
    'separators without one': ('<speech><Un5>', "text or separators in it ('<speech>')"),
    'nothing': ('', "a string 'audio_repr'"),
}

def refuse_second_line(tmp_path, setting, lines, message):
    """The second line of the file is refused by its place in one line, and no output is left."""
    path = write(tmp_path / 'in.jsonl', lines)
    with pytest.raises(Refused) as e:
        slamkit.main(Config(**{setting: path}, out=str(tmp_path / 'out')))
    assert f'{path}:2: ' in str(e.value), e.value
    assert message in str(e.value), e.value
    assert '\n' not in str(e.value), e.value
    assert not (tmp_path / 'out').exists()

@pytest.mark.parametrize('case', BAD_FEATURES)
def test_a_bad_line_of_features_is_refused_by_its_place_and_nothing_is_left(tmp_path, case):
    line, message = BAD_FEATURES[case]
    valid = {'units': [1], 'duration': [1], 'file_name': 'g'}
    refuse_second_line(tmp_path, 'features', [valid, line], message)

@pytest.mark.parametrize('case', BAD_TOKENS)
def test_a_bad_line_of_tokens_is_refused_by_its_place_and_nothing_is_left(tmp_path, case):
    string, message = BAD_TOKENS[case]
    lines = [{'file_name': 'g', 'audio_repr': '<Un1>'}, {'file_name': 'a', 'audio_repr': string}]
    refuse_second_line(tmp_path, 'tokens', lines, message)

def test_names_that_meet_and_empty_files_are_refused(tmp_path):
    absolute = TWO | {'file_name': '/abs/x.wav'}
    cases = [([TWO, TWO], "document 'two' comes twice"), ([], 'no document in it'),
             ([TWO, absolute], 'absolute and relative')]
    for lines, message in cases:
        with pytest.raises(Refused, match=message):
            slamkit.main(Config(features=write(tmp_path / 'f.jsonl', lines), out=str(tmp_path / 'out')))
    with pytest.raises(Refused, match='expected --features=FILE or --tokens=FILE'):
        Config(out='x')
