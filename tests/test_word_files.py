"""One golden list of words from every format; names matched to ids; what is malformed, by file and line."""
import gzip
import json

import pytest

from configurator import Refused
from files import strict_json
from speech.word_files import read_words

WORDS = [('once', .12, .4), ('upon', .4, .71), ("a", 1.0, 1.05), ('"time",', 1.05, 1.6)]
GOLDEN = [('once', 1920, 6400), ('upon', 6400, 11360), ('a', 16000, 16800), ('"time",', 16800, 25600)]
SPACED = [(' ' * (i > 0) + word, start, end) for i, (word, start, end) in enumerate(WORDS)]

def dicts(words, start='start', end='end', score='probability'):
    """[(word, start, end)] as dicts with these keys, and a score that nobody reads."""
    return [{'word': word, start: s, end: e, score: .9} for word, s, e in words]

def textgrid_rows():
    """Intervals that cover 0 to 2 s, with kinds of silence between the words; quotes doubled as Praat does."""
    silences = iter(['', 'sil', 'sp', '<eps>', 'SIL', 'spn'])
    rows = []
    last_end = 0.0
    for word, start, end in WORDS:
        silence = next(silences)
        if start > last_end:
            rows.append((last_end, start, silence))
        rows.append((start, end, word.replace('"', '""')))
        last_end = end
    rows.append((last_end, 2.0, next(silences)))
    return rows

def long_textgrid(tier='words'):
    rows = textgrid_rows()
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', '',
             'xmin = 0 ', 'xmax = 2.0 ', 'tiers? <exists> ', 'size = 2 ', 'item []: ',
             '    item [1]:', '        class = "IntervalTier" ', f'        name = "{tier}" ',
             '        xmin = 0 ', '        xmax = 2.0 ', f'        intervals: size = {len(rows)} ']
    for i, (start, end, text) in enumerate(rows, 1):
        lines += [f'        intervals [{i}]:', f'            xmin = {start} ',
                  f'            xmax = {end} ', f'            text = "{text}" ']
    lines += ['    item [2]:', '        class = "TextTier" ', '        name = "phones" ',
              '        xmin = 0 ', '        xmax = 2.0 ', '        points: size = 1 ',
              '        points [1]:', '            number = 0.5 ', '            mark = "AH0" ']
    return '\n'.join(lines) + '\n'

def short_textgrid():
    rows = textgrid_rows()
    lines = ['File type = "ooTextFile short"', '"TextGrid"', '', 0, 2.0, '<exists>', 2,
             '"TextTier"', '"phones"', 0, 2.0, 1, 0.5, '"AH0"',
             '"IntervalTier"', '"words"', 0, 2.0, len(rows)]
    for start, end, text in rows:
        lines += [start, end, f'"{text}"']
    return '\n'.join(map(str, lines)) + '\n'

def two_speakers():
    text = long_textgrid(tier='anna - words').replace('TextTier', 'IntervalTier')
    return text.replace('"phones"', '"bob - words"').replace('number = 0.5', 'xmin = 0.5 \n xmax = 0.6')

WHISPER = {'text': ' once upon', 'language': 'en', 'segments': [
    {'id': 0, 'start': .12, 'end': .71, 'words': dicts(SPACED[:2])},
    {'id': 1, 'words': []},
    {'id': 2, 'words': dicts(SPACED[2:])}]}
WHISPERX = {'segments': [{'words': dicts(WORDS, score='score')}], 'word_segments': dicts(WORDS)}
SLAMKIT = {'file_name': 'audio/a.flac', 'text': 'once', 'aligned_text': SPACED}
STINYSTORIES = {'audio': {'path': 'x/a.wav'}, 'split_sentence': False, 'text': 'once upon a "time",',
                'aligned_text': dicts(SPACED, 'start_time', 'end_time')}
FORMATS = { # name: (file, text)
    'ours': ('a.jsonl', json.dumps({'id': 'a', 'words': WORDS})),
    'ours, dicts': ('a.jsonl', json.dumps({'id': 'a', 'words': dicts(WORDS)})),
    'whisper': ('a.json', json.dumps(WHISPER)),
    'whisperx': ('a.json', json.dumps(WHISPERX)),
    'slamkit': ('a.json', json.dumps(SLAMKIT)),
    'stinystories': ('s.jsonl', json.dumps(STINYSTORIES)),
    'textgrid, long': ('a.TextGrid', long_textgrid()),
    'textgrid, short': ('a.TextGrid', short_textgrid()),
    'textgrid of a speaker': ('a.TextGrid', long_textgrid(tier='anna - words')),
    'textgrid, utf-16': ('a.TextGrid', '\ufeff' + long_textgrid()),
    'textgrid named otherwise': ('a.json', short_textgrid()), # content decides
    'with a byte-order mark': ('a.jsonl', '\ufeff' + json.dumps({'id': 'a', 'words': WORDS})),
}

@pytest.mark.parametrize('as_folder', [False, True])
@pytest.mark.parametrize('form', FORMATS)
def test_the_same_golden_list_from_all(tmp_path, form, as_folder):
    name, text = FORMATS[form]
    path = tmp_path / name
    path.write_text(text, encoding='utf-16-le' if 'utf-16' in form else 'utf-8')
    words, starts, ends = read_words(tmp_path if as_folder else path, ['a', 'b'])['a']
    rounded = [(word.strip(), round(s, 6), round(e, 6)) for word, s, e in zip(words, starts, ends)]
    assert rounded == GOLDEN
    if form in ('whisper', 'slamkit', 'stinystories'): # spaces stay as they are in the file
        assert [word[:1] == ' ' for word in words] == [False, True, True, True]

def test_a_word_without_times_has_none_and_never_a_key_error(tmp_path):
    words = [{'word': 'in', 'start': .1, 'end': .2, 'score': .9},
             {'word': '2014.'}, # as WhisperX leaves '2014.' and '$43,000.'
             {'word': 'no', 'start': None, 'end': .9}]
    (tmp_path / 'a.json').write_text(json.dumps({'segments': [{'words': words}]}))
    words, starts, ends = read_words(tmp_path / 'a.json', ['a'])['a']
    assert words == ['in', '2014.', 'no']
    assert str([starts, ends]) == '[[1600.0, nan, nan], [3200.0, nan, 14400.0]]'

def test_names_are_whole_ids_or_the_only_end_of_one(tmp_path):
    ids = ['x/a', 'y/a', 'x/b', 'c', 'z/c']
    for name in ('x/a.json', 'b.TextGrid', 'c.json', 'other.json', 'notes.txt'):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(short_textgrid())
    assert sorted(read_words(tmp_path, ids)) == ['c', 'x/a', 'x/b']
    (tmp_path / 'a.json').write_text(short_textgrid())
    with pytest.raises(Refused, match=r"a.json: 'a' could be x/a or y/a; name it by its whole id"):
        read_words(tmp_path, ids)
    (tmp_path / 'a.json').unlink()
    (tmp_path / 'x/b.json').write_text(short_textgrid())
    with pytest.raises(Refused, match="document 'x/b' comes twice"):
        read_words(tmp_path, ids)

BAD = { # name: (file, text, message)
    'a line cut short': ('a.jsonl', '{"id": "a", "words": []}\n{"id": "b", "wo', 'a.jsonl:2: not a line of JSON'),
    'a key that comes twice': ('a.jsonl', '{"id": "a", "words": [], "id": "b"}',
                               'a.jsonl:1: not a line of JSON (a key comes twice'),
    'a NaN': ('a.jsonl', '{"id": "a", "words": [["x", NaN, 1]]}',
              "a.jsonl:1: words of 'a': expected [word, start, end]"),
    'an infinity': ('a.jsonl', '{"id": "a", "words": [["x", 0, Infinity]]}', "a.jsonl:1: words of 'a': expected"),
    'too large for a float': ('a.jsonl', '{"id": "a", "words": [["x", 0, 1' + '0' * 400 + ']]}',
                              "a.jsonl:1: words of 'a': expected"),
    'a time that is text': ('a.jsonl', '{"id": "a", "words": [["x", "0", 1]]}', "words of 'a': expected"),
    'a time that is true': ('a.jsonl', '{"id": "a", "words": [["x", true, 1]]}', "words of 'a': expected"),
    'a word that is none': ('a.jsonl', '{"id": "a", "words": [{"start": 0, "end": 1}]}', "words of 'a': expected"),
    'words that are text': ('a.jsonl', '{"id": "a", "words": "once upon"}', "words of 'a': expected"),
    'no name': ('a.jsonl', '{"words": []}', 'a.jsonl:1: expected {"id"'),
    'a name that is a number': ('a.jsonl', '{"id": 3, "words": []}', 'a.jsonl:1: expected {"id"'),
    'no words': ('a.json', '{"text": "once"}', 'expected words with times'),
    'segments without words': ('a.json', '{"segments": [{"text": "once", "start": 0}]}',
                               'transcribe it again with word timestamps'),
    'a segment that is a number': ('a.json', '{"segments": [3]}', "words of 'a': expected"),
    'segments whose words are a number': ('a.json', '{"segments": [{"words": 5}]}', "words of 'a': expected"),
    'a list': ('a.json', '[1]', 'expected words with times'),
    'gz cut short': ('a.jsonl', gzip.compress(b'{"id": "a"}')[:12], 'a.jsonl:1: not a line of JSON'),
    'nested too deeply': ('a.json', '[' * 200_000, 'a.json: neither JSON'),
    'neither': ('a.json', 'once upon', 'a.json: neither JSON'),
    'not text': ('a.TextGrid', b'\xff\x80\x81', 'not text in UTF-8 or UTF-16'),
    'a TextGrid cut short': ('a.TextGrid', long_textgrid()[:700], 'not a whole TextGrid'),
    'a TextGrid of a size it has not': (
        'a.TextGrid', long_textgrid().replace('intervals: size = ', 'intervals: size = 1000000000000'),
        'not a whole TextGrid'),
    'a TextGrid of endless tiers': (
        'a.TextGrid', long_textgrid().replace('size = 2 ', 'size = 9e999 '), 'not a whole TextGrid'),
    'a TextGrid whose number is none': (
        'a.TextGrid', long_textgrid().replace('xmax = 2.0', 'xmax = 1abc'), 'not a whole TextGrid'),
    'a TextGrid of phones': ('a.TextGrid', long_textgrid(tier='fon'),
                             "expected one tier 'words' (or 'NAME - words'), its tiers are 'fon', 'phones'"),
    'two speakers': ('a.TextGrid', two_speakers(), "expected one tier 'words'"),
    'other documents': ('b.json', '{"words": []}', 'none of its 1 ids is a document'),
    'nothing': ('a.txt', 'x', 'no .json, .jsonl or .TextGrid file in it'),
}

@pytest.mark.parametrize('case', BAD)
def test_what_is_malformed_is_refused_in_one_line_that_says_where(tmp_path, case):
    name, text, message = BAD[case]
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Refused) as e:
        read_words(tmp_path if case == 'nothing' else path, ['a', 'x/y'])
    assert message in str(e.value) and '\n' not in str(e.value), e.value

def test_json_keys_come_once():
    assert strict_json('{"a": {"b": 1}, "b": [2]}') == {'a': {'b': 1}, 'b': [2]}
    with pytest.raises(ValueError, match='comes twice'):
        strict_json(b'{"a": {"b": 1, "b": 2}}')
