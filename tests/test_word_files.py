"""One golden list of words from every format; names matched to ids; what is malformed, by file and line."""
import gzip
import json

import numpy as np
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

def chronological():
    lines = ['"Praat chronological TextGrid text file"', '0 2   ! Time domain.', '2   ! Number of tiers.',
             '"TextTier" "phones" 0 2', '"IntervalTier" "words" 0 2', '']
    for start, end, text in textgrid_rows():
        lines += ['! words:', f'2 {start} {end}', f'"{text}"', '', '! phones:', f'1 {end}', '"AH0"', '']
    return '\n'.join(lines)

def collection(*names):
    lines = ['File type = "ooTextFile"', 'Object class = "Collection"', '', f'size = {len(names)} ', 'item []: ']
    for i, name in enumerate(names, 1):
        lines += [f'    item [{i}]:', '        class = "TextGrid" ', f'        name = "{name}" ']
        lines += long_textgrid().splitlines()[3:]
    return '\n'.join(lines)

def elan(head=''):
    slots = [round(1000 * time) for _, *times in WORDS for time in times]
    lines = [f'<?xml version="1.0" encoding="UTF-8"?>{head}', '<ANNOTATION_DOCUMENT><TIME_ORDER>']
    lines += [f'<TIME_SLOT TIME_SLOT_ID="ts{i}" TIME_VALUE="{ms}"/>' for i, ms in enumerate(slots)]
    lines += ['</TIME_ORDER><TIER TIER_ID="notes"/><TIER TIER_ID="ORT-MAU">']
    for i, (word, _, _) in enumerate(WORDS):
        lines += [f'<ANNOTATION><ALIGNABLE_ANNOTATION TIME_SLOT_REF1="ts{2 * i}" TIME_SLOT_REF2="ts{2 * i + 1}">',
                  f'<ANNOTATION_VALUE>{word}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>']
    return '\n'.join([*lines, '</TIER></ANNOTATION_DOCUMENT>'])

def ctm(*names, more=''):
    lines = [';; made by hand']
    for name in names:
        lines += [f'{name} 1 {start} {end - start:.3f} {word}{more}' for word, start, end in WORDS]
        lines += [f'{name} 1 {WORDS[-1][2]} 0.1 <eps>{more}']
    return '\n'.join(lines)

def tsv(scale, quote=str, header='start\tend\ttext\n'):
    return header + ''.join(f'{scale(start)}\t{scale(end)}\t{quote(word)}\n' for word, start, end in WORDS)

def ms(seconds):
    return round(1000 * seconds)

def quoted(word):
    return '"' + word.replace('"', '""') + '"' if '"' in word else word

def cues(mark):
    blocks = [f'{i}\n00:00:0{start:.3f} --> 00:00:0{end:.3f}\n<i>{word}</i>\n'.replace('.', mark, 2)
              for i, (word, start, end) in enumerate(WORDS, 1)]
    return '\n'.join(blocks)

ROLLING = """WEBVTT
Kind: captions
Language: en

00:00:00.120 --> 00:00:00.710 align:start position:0%
\u0020
once<00:00:00.400><c> upon</c>

00:00:00.710 --> 00:00:00.720 align:start position:0%
once upon
\u0020

00:00:01.000 --> 00:00:01.600 align:start position:0%
once upon
a<00:00:01.050><c> &quot;time&quot;,</c>
"""
STABLE = """WEBVTT

00:00.120 --> 00:00.710
once<00:00:00.400> upon

00:01.000 --> 00:01.600
a<00:01.050> "time",
"""

def token(text, start, end):
    return {'text': text, 'offsets': {'from': ms(start), 'to': ms(end)}, 'p': .9, 't_dtw': -1}

WHISPER = {'text': ' once upon', 'language': 'en', 'segments': [
    {'id': 0, 'start': .12, 'end': .71, 'words': dicts(SPACED[:2])},
    {'id': 1, 'words': []},
    {'id': 2, 'words': dicts(SPACED[2:])}]}
WHISPERX = {'segments': [{'words': dicts(WORDS, score='score')}], 'word_segments': dicts(WORDS)}
SLAMKIT = {'file_name': 'audio/a.flac', 'text': 'once', 'aligned_text': SPACED}
STINYSTORIES = {'audio': {'path': 'x/a.wav'}, 'split_sentence': False, 'text': 'once upon a "time",',
                'aligned_text': dicts(SPACED, 'start_time', 'end_time')}
TEXTS = [{'text': word, 'start': s, 'end': e, 'confidence': .9} for word, s, e in WORDS]
TIMESTAMPED = {'text': ' once upon a "time",', 'segments': [
    {'text': ' once upon', 'words': TEXTS[:2]}, {'text': ' a "time",', 'words': TEXTS[2:]}]}
OPENAI = {'task': 'transcribe', 'text': 'once upon a "time",', 'words': dicts(WORDS), 'segments': None}
PIPELINE = {'text': ' once upon a "time",', 'chunks': [{'text': word, 'timestamp': [s, e]} for word, s, e in SPACED]}
FORCED = {'text': 'once upon a "time",', 'segments': TEXTS}
WHISPER_CPP = {'systeminfo': '', 'result': {'language': 'en'}, 'transcription': [
    {'offsets': {'from': 120, 'to': 710}, 'text': ' once upon', 'tokens': [
        token('[_BEG_]', 0, 0), token(' on', .12, .3), token('ce', .3, .4), token(' upon', .4, .71)]},
    {'offsets': {'from': 1000, 'to': 1600}, 'text': ' a "time",', 'tokens': [
        token(' a', 1.0, 1.05), token(' "', 1.05, 1.1), token('time', 1.1, 1.5), token('",', 1.5, 1.6),
        token('[_TT_80]', 1.6, 1.6)]}]}
WHISPER_CPP_WORDS = {'transcription': [token(*word) for word in SPACED]}
ENTRIES = [[start, end, text.replace('""', '"')] for start, end, text in textgrid_rows()]
MFA_JSON = {'start': 0, 'end': 2.0, 'tiers': {'words': {'type': 'interval', 'entries': ENTRIES},
                                              'phones': {'type': 'point', 'entries': [[.5, 'AH0']]}}}
PRAATIO = {'xmin': 0, 'xmax': 2.0, 'tiers': [{'class': 'IntervalTier', 'name': 'words', 'entries': ENTRIES},
                                             {'class': 'TextTier', 'name': 'phones', 'entries': [[.5, 'AH0']]}]}
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
    'textgrid, chronological': ('a.TextGrid', chronological()),
    'textgrids, a collection': ('many.Collection', collection('a', 'b')),
    'textgrid of WebMAUS': ('a.TextGrid', long_textgrid(tier='ORT-MAU').replace('phones', 'KAN-MAU')),
    'elan': ('a.eaf', elan()),
    'ctm of kaldi': ('all.ctm', ctm('a', 'b', more=' 0.98')),
    'ctm of nemo': ('a.ctm', ctm('a', more=' NA lex NA')),
    'audacity': ('a.txt', tsv(float, header='')),
    'audacity, with frequencies': ('a.txt', tsv(float, header='').replace('\n', '\n\\\t9\t99\n')),
    'tsv of whisper': ('a.tsv', tsv(ms)),
    'tsv of whisper-timestamped': ('a.flac.words.tsv', tsv(ms, quoted)),
    'srt': ('a.srt', cues(',')),
    'srt of CR LF': ('a.srt', cues(',').replace('\n', '\r\n')),
    'webvtt': ('a.vtt', 'WEBVTT - made by hand\n\nNOTE a note\n\n' + cues('.')),
    'webvtt of stable-ts': ('a.vtt', STABLE),
    'webvtt that rolls up': ('a.vtt', ROLLING),
    'whisper-timestamped': ('a.flac.words.json', json.dumps(TIMESTAMPED)),
    'openai': ('a.json', json.dumps(OPENAI)),
    'transformers': ('a.json', json.dumps(PIPELINE)),
    'a list of words': ('a.json', json.dumps(dicts(WORDS))),
    'a list of lists': ('a.json', json.dumps(WORDS)),
    'a list of segments': ('a.json', json.dumps(WHISPER['segments'])),
    'ctc-forced-aligner': ('a.json', json.dumps(FORCED)),
    'whisper.cpp, -ojf': ('a.json', json.dumps(WHISPER_CPP)),
    'whisper.cpp, -oj -ml 1': ('a.json', json.dumps(WHISPER_CPP_WORDS)),
    'mfa, json': ('a.json', json.dumps(MFA_JSON)),
    'praatio, json': ('a.json', json.dumps(PRAATIO)),
    'vosk': ('a.json', json.dumps({'result': dicts(WORDS), 'text': 'once upon a time'})),
    'whisperx, words alone': ('a.json', json.dumps({'word_segments': dicts(WORDS)})),
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
    assert words == ['in', ' 2014.', ' no']
    assert str([starts, ends]) == '[[1600.0, nan, nan], [3200.0, nan, 14400.0]]'

def spaces_of(value, tmp_path):
    (tmp_path / 'a.json').write_text(json.dumps(value, ensure_ascii=False), encoding='utf-8')
    return read_words(tmp_path / 'a.json', ['a'])['a'][0]

def segment(text, *words):
    return {'text': text, 'words': [{'word': word, 'start': i, 'end': i + 1} for i, word in enumerate(words)]}

@pytest.mark.parametrize('segments, expected', [
    ([segment('今天天气好', *'今天天气好')], '今天天气好'),
    ([segment('今天 OK好', '今', '天', ' OK', '好')], '今天 OK好'), # as whisper gives them
    ([segment('我爱NLP技术。', '我', '爱', 'NLP', '技', '术')], '我爱NLP技术'), # the text decides
    ([segment('', '我', '爱', 'NLP', '技', '术')], '我爱 NLP 技术'), # no text: by the rule
    ([segment('今天，好', '今', '天', '好'), segment('我们', '我', '们')], '今天好我们'),
    ([segment('สวัสดีครับ', 'สวัสดี', 'ครับ')], 'สวัสดีครับ'),
    ([segment('', 'สวัสดี', 'ครับ')], 'สวัสดีครับ'),
    ([segment('', '오늘', '날씨')], '오늘 날씨'), # Hangul has spaces
    ([segment('well-known fact', 'well', '-known', 'fact'), segment('so', 'so')], 'well-known fact so'),
    ([segment(' you know', ' you', ' know'), segment(' and', ' and')], ' you know and'),
    ([segment('you know.', 'you', 'know.'), segment('And', 'And')], 'you know. And'),
])
def test_words_have_the_spaces_of_what_was_said(tmp_path, segments, expected):
    assert ''.join(spaces_of({'segments': segments}, tmp_path)) == expected

def test_the_text_of_the_whole_decides_between_segments(tmp_path):
    segments = [segment('', '我爱', 'NLP'), segment('', '技术', 'ok')]
    assert ''.join(spaces_of({'text': '我爱NLP技术 ok', 'segments': segments}, tmp_path)) == '我爱NLP技术 ok'
    assert ''.join(spaces_of({'text': 'another', 'segments': segments}, tmp_path)) == '我爱 NLP 技术 ok'
    chunks = [{'text': text, 'timestamp': [i, i + 1]} for i, text in enumerate(('我爱', 'NLP', '技术'))]
    assert ''.join(spaces_of({'text': '我爱NLP技术', 'chunks': chunks}, tmp_path)) == '我爱NLP技术'

def test_segments_without_words_give_the_words_of_their_text_but_not_their_times(tmp_path):
    aligned = segment(' you know', 'you', 'know')
    not_aligned = {'start': 2.5, 'end': 6.0, 'text': ' 1984, 2014.', 'words': []} # as WhisperX leaves them
    silence = {'start': 6.0, 'end': 7.0, 'text': ' ...', 'words': []}
    (tmp_path / 'a.json').write_text(json.dumps({'segments': [aligned, not_aligned, silence]}))
    words, starts, ends = read_words(tmp_path / 'a.json', ['a'])['a']
    assert words == ['you', ' know', ' 1984,', ' 2014.']
    assert str([starts[2:], ends[2:]]) == '[[40000.0, nan], [nan, 96000.0]]'
    (tmp_path / 'a.srt').write_text('1\n00:00:02,500 --> 00:00:06,000\n1984,\n2014.\n')
    subtitle = read_words(tmp_path / 'a.srt', ['a'])['a']
    assert str(subtitle) == "(['1984,', ' 2014.'], [40000.0, nan], [nan, 96000.0])"
    chunk = {'text': ' Good day', 'timestamp': [0.5, None]} # a pipeline's last segment
    (tmp_path / 'a.json').write_text(json.dumps({'text': ' Good day', 'chunks': [chunk]}))
    assert str(read_words(tmp_path / 'a.json', ['a'])['a']) == "([' Good', ' day'], [8000.0, nan], [nan, nan])"

def test_words_that_a_segment_lacks_are_there_without_times(tmp_path):
    segments = [segment(' In 1984, -- we won.', 'in', 'we', 'won'), segment('so it was', 'so', 'is', 'was')]
    (tmp_path / 'a.json').write_text(json.dumps({'segments': segments}))
    words, starts, _ = read_words(tmp_path / 'a.json', ['a'])['a']
    assert words == ['in', ' 1984,', ' we', ' won', ' so', ' is', ' was']
    assert np.isnan(starts).tolist() == [False, True, False, False, False, False, False]

def test_whisper_cpp_that_heard_nothing_gives_no_words(tmp_path):
    (tmp_path / 'a.json').write_text('{"result": {"language": "en"}, "transcription": []}')
    (tmp_path / 'b.txt').symlink_to(tmp_path / 'nowhere')
    assert read_words(tmp_path, ['a'])['a'] == ([], [], [])

def test_letters_whose_bytes_whisper_cpp_parts_are_whole_again(tmp_path):
    tokens = [token('今', 0, .1), token('\udce5\udca4', .1, .2), token('\udca9', .2, .3), token('。', .3, .4),
              token(' caf', .4, .5), token('\udcc3', .5, .6), token('\udca9', .6, .7)]
    text = json.dumps({'transcription': [{'offsets': {'from': 0, 'to': 700}, 'text': '', 'tokens': tokens}]},
                      ensure_ascii=False)
    (tmp_path / 'a.json').write_bytes(text.encode('utf-8', 'surrogateescape'))
    words, starts, ends = read_words(tmp_path / 'a.json', ['a'])['a']
    assert words == ['今', '天。', ' café']
    assert [round(t) for t in starts] == [0, 1600, 6400] and [round(t) for t in ends] == [1600, 6400, 11200]

def test_subtitles_and_tables_are_read_where_there_is_nothing_better(tmp_path):
    words = json.dumps({'words': [['json', 0, 1]]})
    for name in ('a', 'b.flac', 'c.mp3'):
        (tmp_path / f'{name}.srt').write_text('1\n00:00,000 --> 00:01,000\nsrt\n')
        (tmp_path / f'{name}.tsv').write_text('start\tend\ttext\n0\t1000\ttsv\n')
        (tmp_path / f'{name}.txt').write_text('a transcript')
    (tmp_path / 'a.json').write_text(words)
    (tmp_path / 'b.flac.words.srt').write_text('1\n00:00,000 --> 00:01,000\nwords\n')
    (tmp_path / 'notes.tsv').write_text('speaker\tage\njoe\t30\n')
    words = {id: doc[0] for id, doc in read_words(tmp_path, ['a', 'b', 'c', 'notes']).items()}
    assert words == {'a': ['json'], 'b': ['words'], 'c': ['tsv']}

def test_what_tools_put_around_words_is_not_read_as_words(tmp_path):
    (tmp_path / 'a.srt').write_text('1\n00:00:00,000 --> 00:00:01,000\n{\\an8}<font color="red">so&amp;so</font>\n')
    (tmp_path / 'b.aud').write_text('0.0\t1.0\t[[SPEAKER_00]]so\n') # as WhisperX gives the speaker
    words = read_words(tmp_path, ['a', 'b'])
    assert words['a'][0] == ['so&so'] and words['b'][0] == ['so']

def test_words_of_elan_that_refer_to_others_have_no_times(tmp_path):
    text = elan().replace('ALIGNABLE_ANNOTATION', 'REF_ANNOTATION').replace('TIME_SLOT_REF', 'ANNOTATION_REF')
    (tmp_path / 'a.eaf').write_text(text)
    words, starts, ends = read_words(tmp_path, ['a'])['a']
    assert len(words) == 4 and np.isnan([starts, ends]).all()

def test_documents_that_are_not_in_the_units_folder_are_counted(tmp_path, capsys):
    (tmp_path / 'all.ctm').write_text(ctm('a', 'c', 'd'))
    assert list(read_words(tmp_path, ['a', 'b'])) == ['a']
    assert "2 of 3 documents are not in the units folder, first 'c'" in capsys.readouterr().out

def test_names_with_an_extension_of_audio_stand_for_the_id_without_it(tmp_path):
    for name in ('one.flac.words.json', 'two.WAV.json', 'three.words.json', 'four.mp3.json', 'five.part.json'):
        (tmp_path / name).write_text('{"words": []}')
    assert sorted(read_words(tmp_path, ['one', 'x/two', 'three', 'four.mp3', 'five'])) == [
        'four.mp3', 'one', 'three', 'x/two']

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
    'a segment that is a number': ('a.json', '{"segments": [3]}', "words of 'a': expected"),
    'segments whose words are a number': ('a.json', '{"segments": [{"words": 5}]}', "words of 'a': expected"),
    'a list': ('a.json', '[1]', 'expected words with times'),
    'of another kind': ('a.json', '{"results": {"channels": []}}', "'a' has 'results'"),
    'whisper.cpp without offsets': ('a.json', '{"transcription": [{"text": "once"}]}', "words of 'a': expected"),
    'text': ('a.srt', 'Once upon', "nor TextGrid, ELAN, SRT or WebVTT, labels, CTM; it begins with 'Once"),
    'ELAN with a DTD': ('a.eaf', elan('<!DOCTYPE x [<!ENTITY y "z">]>'), 'XML with a DTD'),
    'ELAN cut short': ('a.eaf', elan()[:400], 'not a whole file of ELAN'),
    'ELAN without words': ('a.eaf', elan().replace('ORT-MAU', 'gloss'), "its tiers are 'notes', 'gloss'"),
    'a binary TextGrid': ('a.TextGrid', b'ooBinaryFile\x08TextGrid\x00', 'a binary file of Praat'),
    'words at points': ('a.TextGrid', long_textgrid('x').replace('phones', 'words'), "its tiers are 'x', 'words'"),
    'a collection of sounds': ('a.Collection', collection('a').replace('class = "TextGrid"', 'class = "Sound"'),
                               'not a whole TextGrid, or a collection of anything else'),
    'a chronological TextGrid cut short': ('a.TextGrid', chronological()[:200], 'not a whole TextGrid'),
    'a short line of CTM': ('a.ctm', ctm('a') + '\na 1 2.0 0.1', 'a.ctm:7: expected RECORDING CHANNEL BEGIN'),
    'a label without an end': ('a.txt', tsv(float, header='') + '2.0\tonce', 'a.txt:5: expected START, END, TEXT'),
    'a time of many points': ('a.srt', '1\n0:1.2.3,4 --> 0:02,0\nonce\n', 'neither JSON'),
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
