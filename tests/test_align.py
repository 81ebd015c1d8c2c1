"""Word times repaired, spelling against the text, the words folder and back, kills and ranks, models, refusals."""
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from small import killed, make_units, speech_like

import align
import interleave
from align import Config
from configurator import Refused
from data import Shards
from files import read_lines, write_json, write_lines
from hub.tokenizer import TextTokenizer
from speech.words import LIMIT, REASONS, Words, repair, spelled, with_spaces, word_error, write_words_shard

MINI = Path(__file__).parent.parent.parent / 'shared' / 'data' / 'librispeech_mini' / 'manifest.jsonl'
NAN = float('nan')

def write_jsonl(path, lines):
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))

def edges_of(starts, ends):
    """The times of words in the order in which they must rise."""
    return np.stack([starts, ends], 1).ravel()

# --------------------------------------------------------------------------------------------------
# repairs and spelling

def repair_alone(times, n_samples=16000):
    """repair of a single document: [(start, end), ...] -> the repaired list, or the reason"""
    starts = [start for start, _ in times]
    ends = [end for _, end in times]
    starts, ends, reasons = repair(starts, ends, [0, len(times)], [n_samples])
    return REASONS[reasons[0]] or list(zip(starts.tolist(), ends.tolist()))

@pytest.mark.parametrize('times, expected', [
    ([(0, 100), (100, 300)], [(0, 100), (100, 300)]),
    ([], []),
    ([(0, 500), (100, 900)], [(0, 500), (500, 900)]), # overlap by 400 samples, 25 ms
    ([(0, 2000), (100, 4000)], 'OVERLAP'), # by 119 ms
    ([(600, 300), (700, 900)], [(600, 600), (700, 900)]), # reversed by 19 ms
    ([(6000, 300)], 'REVERSED'),
    ([(300, 350), (100, 400)], [(300, 350), (350, 400)]), # out of order
    ([(15000, 16700)], [(15000, 16000)]), # 44 ms past the end
    ([(15000, 16801)], 'PAST_END'),
    ([(160000, 161000)], 'PAST_END'), # 10 s past it
    ([(-700, 200)], [(0, 200)]),
    ([(-900, 200)], 'BEFORE_START'),
    ([(0, 3000), (NAN, NAN), (3700, 5000)], [(0, 3000), (3000, 3700), (3700, 5000)]), # a gap of 44 ms holds the word
    ([(0, 3000), (NAN, NAN), (4000, 5000)], 'MISSING_TIME'), # 62 ms could be anywhere
    ([(NAN, 700), (800, NAN), (1500, NAN)], 'MISSING_TIME'),
    ([(NAN, 700), (800, NAN), (1500, 1600)], [(0, 700), (800, 1500), (1500, 1600)]),
    ([(15500, NAN)], [(15500, 16000)]),
    ([(float('inf'), float('inf'))], 'PAST_END'),
    ([(100.4, 200.6)], [(100, 201)]),
])
def test_repairs_stay_within_50_ms_or_name_the_reason(times, expected):
    assert repair_alone(times) == expected

def random_times(rng):
    """The times of up to 11 words, a fifth of them moved and some missing -> [(start, end)], samples of the audio."""
    n = int(rng.integers(0, 12))
    edges = np.sort(rng.integers(0, 16000, 2 * n)).astype(float)
    edges += rng.integers(-900, 900, 2 * n) * (rng.random(2 * n) < .2)
    edges[rng.random(2 * n) < .02] = NAN
    return list(zip(edges[0::2], edges[1::2])), int(rng.integers(15000, 17000))

def test_documents_are_repaired_together_as_alone():
    rng = np.random.default_rng(0)
    docs = [random_times(rng) for _ in range(500)]
    words = [word for times, _ in docs for word in times]
    offsets = np.cumsum([0] + [len(times) for times, _ in docs])
    lengths = [n for _, n in docs]
    starts, ends, reasons = repair([start for start, _ in words], [end for _, end in words], offsets, lengths)
    for i, (times, n) in enumerate(docs):
        part = slice(offsets[i], offsets[i + 1])
        together = REASONS[reasons[i]] or list(zip(starts[part].tolist(), ends[part].tolist()))
        assert together == repair_alone(times, n)
        if not reasons[i]:
            edges = edges_of(starts[part], ends[part])
            raw = np.array(times).reshape(-1)
            assert (np.diff(edges) >= 0).all() and (edges >= 0).all() and (edges <= n).all()
            assert (abs(edges - raw)[~np.isnan(raw)] <= LIMIT).all()
    assert 100 < (reasons == 0).sum() < 450 and len(set(reasons)) > 2, np.bincount(reasons)

@pytest.mark.parametrize('words, text, expected', [
    (['once', 'upon'], None, ['once', ' upon']),
    ([' once', ' upon'], None, [' once', ' upon']),
    ([' well', '-known', ' "fact"'], None, [' well', '-known', ' "fact"']), # whisper's own spaces
    (['well', '-known', 'fact'], 'well-known fact', ['well', '-known', ' fact']),
    (['well ', 'known '], None, ['well', ' known']),
    (['東京', 'は', '2014'], '東京は 2014', ['東京', 'は', ' 2014']),
    (['a', 'a', 'a'], '  a  aa', ['a', ' a', 'a']),
    (['a', 'c'], 'a b', ['a', ' c']), # the check that follows refuses it
    ([' a', 'b'], 'a b', [' a', ' b']),
])
def test_words_get_the_spaces_of_the_text(words, text, expected):
    assert with_spaces(words, text) == expected

@pytest.mark.parametrize('words, text, expected', [
    (['the', 'quick', "fox's", 'tail'], '"The quick -- Fox\'s tail!"  ',
     ['"The', ' quick', " -- Fox's", ' tail!"']), # as MFA has them
    (['well', 'known'], 'Well-known.', ['Well-', 'known.']),
    (['a', '--', 'b'], 'A, b', ['A,', ' b']), # a word without letters goes, and its time
    ([' cafe\u0301', ' naive'], 'café  Naïve', ['café', ' Naïve']), # NFD, and accents that were lost
    (['the', '<unk>', 'dog'], 'The Zyx dog', ['The', ' Zyx', ' dog']),
    (['2014', 'ok'], '2014 OK', ['2014', ' OK']),
    (['Straße'], 'STRASSE', ['STRASSE']),
])
def test_words_of_the_same_letters_are_spelled_as_the_text(words, text, expected):
    new, remains, error = spelled(words, text)
    assert (new, error) == (expected, 0)
    assert remains.sum() == len(new) and len(remains) == len(words)
    assert ''.join(new) == ' '.join(text.split())

def edit_distance(a, b):
    """By the recursion that defines it."""
    if not a or not b:
        return len(a) + len(b)
    deleted = edit_distance(a[1:], b) + 1
    inserted = edit_distance(a, b[1:]) + 1
    return min(deleted, inserted, edit_distance(a[1:], b[1:]) + (a[0] != b[0]))

def test_words_of_other_letters_stay_and_their_error_is_that_of_the_slow_recursion():
    rng = np.random.default_rng(0)
    for _ in range(60):
        a, b = (list(rng.choice(['x', 'y', 'z'], rng.integers(0, 6))) for _ in range(2))
        assert word_error(a, ' '.join(b)) == edit_distance(a, b) / max(len(b), 1)
    new, remains, error = spelled(['The', 'dog', 'sat'], 'the cat sat, too')
    assert (new, error) == (['The', ' dog', ' sat'], .5) and remains.all()
    assert spelled(['a', '<unk>'], 'a b c')[2] == 2 / 3 and word_error(['Mr.', '--'], 'mr') == 0

# --------------------------------------------------------------------------------------------------
# words that are given

def write_shard(folder, index, meta, words):
    """A shard of a units folder as far as align.py reads it."""
    shard = folder / f'{index:05d}'
    shard.mkdir(parents=True)
    write_jsonl(shard / 'meta.jsonl', meta)
    write_jsonl(shard / 'words.jsonl', words)

def units_folder(folder, shards):
    """What align.py reads of a units folder; shards: lists of (id, seconds, text, words)."""
    for index, docs in enumerate(shards):
        meta = [{'id': id, 'seconds': seconds, 'text': text} for id, seconds, text, _ in docs]
        words = [{'id': id, 'words': words} for id, _, _, words in docs]
        write_shard(folder, index, meta, words)
    write_json(folder / 'info.json', {'units_hash': 'h', 'documents': sum(map(len, shards))})
    return folder

SHARDS = [[('a', 1.0, 'the dog', [['the', 0, 100], ['dog', 90, 4000]]),
           ('b', 1.0, None, None)],
          [('c', 1.0, 'a cat', [['the', 0, 100], ['dog', 100, 4000]]),
           ('d', 2.0, None, [[' the', 0, 900], [' dog', 900, 40000]]),
           ('e', 1.0, 'dog dog', [['dog', 0, 50], ['dog', 60, 70]]),
           ('f', 1.0, None, [['', 0, 50]])]]

def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}

def test_words_of_a_units_folder(tmp_path, capsys):
    units = units_folder(tmp_path / 'units', SHARDS)
    align.main(Config(units=str(units), max_fail_frac=0.7))
    words = Words(units / 'words')
    assert words.ids == list('abcdef') and len(words) == 6 and words.find('c') == 2
    docs = [(w, starts.tolist(), ends.tolist()) for w, starts, ends in (words[i] for i in range(6))]
    none = [], [], []
    assert docs == [(['the', ' dog'], [0, 100], [100, 4000]), none, none, none,
                    (['dog', ' dog'], [0, 60], [50, 70]), none]
    assert words.info['refused'] == {'EMPTY_WORD': 1, 'PAST_END': 1, 'WORDS_TEXT_MISMATCH': 1}
    assert (words.info['with_words'], words.info['words'], words.info['repaired_words']) == (2, 4, 1)
    info = json.loads((units / 'words' / '00001' / 'info.json').read_text())
    assert info['refused'][0] == ['c', 'WORDS_TEXT_MISMATCH'] and info['unlike_text'] == []
    assert np.load(units / 'words' / '00000' / 'start.npy').dtype == np.int32

def test_words_of_a_file_in_seconds_are_matched_by_id(tmp_path):
    units = units_folder(tmp_path / 'units', SHARDS)
    lines = [{'id': 'e', 'words': [['dog', 0.5, 0.50004], ['dog', None, 1.03]]}, {'id': 'zz', 'words': []},
             {'id': 'a', 'words': [['the', 0, 0.2], ['dog', 0.2, 1]]}]
    (tmp_path / 'w.jsonl').write_text('\ufeff' + '\n\n'.join(map(json.dumps, lines)), encoding='utf-8')
    out = tmp_path / 'words'
    align.main(Config(units=str(units), words=str(tmp_path / 'w.jsonl'), out=str(out), max_fail_frac=0.5))
    words = Words(out)
    assert [len(words[i][0]) for i in range(6)] == [2, 0, 0, 0, 0, 0]
    assert words[0][2].tolist() == [3200, 16000]
    assert words.info['refused'] == {'MISSING_TIME': 1}

def test_what_was_said_is_what_is_trained_on_whatever_the_script(tmp_path):
    units = make_units(tmp_path / 'units', {'mix': (None, range(9)), 'zh': (None, range(9))})
    docs = {'zh': ('今天天气好', '今 天 天 气 好'), 'mix': ('今天OK好', '今 天 OK 好')}
    lines = []
    for id, (text, words) in docs.items():
        words = [[word, i / 9, i / 9] for i, word in enumerate(words.split())]
        lines.append({'id': id, 'text': text, 'words': words})
    write_jsonl(tmp_path / 'w.jsonl', lines)
    align.main(Config(units=str(units), words=str(tmp_path / 'w.jsonl')))
    tokenizer = str(Path(__file__).parent.parent / 'tiny' / 'tokenizer')
    interleave.main(interleave.Config(units=str(units), tokenizer=tokenizer, out=str(tmp_path / 'tokens'),
                                      sources=('text',), val_frac=0))
    shards = Shards(tmp_path / 'tokens' / 'train' / 'text')
    decode = TextTokenizer(tokenizer).decode
    assert [decode(shards.read(i)) for i in range(2)] == ['今天OK好', '今天天气好']

def test_a_killed_run_ends_with_the_bytes_of_a_whole_one(tmp_path, monkeypatch):
    units = units_folder(tmp_path / 'units', SHARDS)
    out = units / 'words'
    cfg = Config(units=str(units), max_fail_frac=1.0)
    align.main(cfg)
    uninterrupted = tree(out)
    shutil.rmtree(out)
    out.mkdir()

    def only_the_first(out, index, *arguments):
        if index > 0:
            raise ZeroDivisionError
        return write_words_shard(out, index, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(align, 'write_words_shard', only_the_first)
        with pytest.raises(ZeroDivisionError):
            align.main(cfg)
    with pytest.raises(Refused, match='not complete'):
        Words(out)
    align.main(cfg)
    assert tree(out) == uninterrupted

def test_bad_input_is_refused_in_one_line(tmp_path):
    units = units_folder(tmp_path / 'units', SHARDS)

    def refused(message, lines=None, **changes):
        if lines is not None:
            (tmp_path / 'w.jsonl').write_text(lines)
            changes['words'] = str(tmp_path / 'w.jsonl')
        with pytest.raises(Refused) as e:
            align.main(Config(**{'units': str(units), 'out': str(tmp_path / 'no'), **changes}))
        assert message in str(e.value) and '\n' not in str(e.value), e.value

    refused('no units folder', units='')
    refused('more than one of --words, --ctc and --whisper', words='w.jsonl', ctc='m')
    refused('no such folder; tokenize_speech.py makes it', units=str(tmp_path / 'nowhere'))
    refused('no such file', words=str(tmp_path / 'none.jsonl'))
    refused('w.jsonl:2: not a line of JSON', '{"id": "a", "words": []}\n{"id": "b", "wor')
    refused('w.jsonl:1: expected a JSON object', '[1, 2]\n')
    refused("w.jsonl:1: expected words with times", '{"id": "a"}\n')
    refused('w.jsonl:1: expected {"id"', '{"words": []}\n')
    refused("w.jsonl:2: document 'a' comes twice", '{"id": "a", "words": null}\n' * 2)
    refused("w.jsonl:1: words of 'a': expected [word, start, end] or", '{"id": "a", "words": [["the", 0]]}\n')
    refused("w.jsonl:1: words of 'a': expected [word, start, end] or", '{"id": "a", "words": [[3, 0, 1]]}\n')
    refused('none of its 1 ids is a document', '{"id": "zz", "words": []}\n')
    refused('none of its 0 ids is a document', '\n')
    assert not (tmp_path / 'no').exists()
    refused('3 of 5 documents with words refused (EMPTY_WORD 1, PAST_END 1, WORDS_TEXT_MISMATCH 1), more than '
            'max_fail_frac = 0.05')
    with pytest.raises(Refused, match='not complete'):
        Words(tmp_path / 'no')
    (units / '00001' / 'words.jsonl').write_text('{"id": "e", "words": null}\n')
    refused('made from other words or units', max_fail_frac=1.0)
    (units / '00001' / 'words.jsonl').unlink()
    refused('the corpus gave no words; give --words=FILE, --ctc=MODEL')

@pytest.mark.parametrize('name', ['word', 'start', 'offsets'])
def test_a_damaged_shard_is_refused(tmp_path, name):
    write_words_shard(tmp_path, 0, [('a', ['x', ' y'], [0, 5], [5, 9])])
    write_json(tmp_path / 'info.json', {})
    assert Words(tmp_path)[0][0] == ['x', ' y']
    path = tmp_path / '00000' / f'{name}.npy'
    np.save(path, np.load(path)[:-1])
    with pytest.raises(Refused, match='do not fit together'):
        Words(tmp_path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(Refused, match='not a whole shard'):
        Words(tmp_path)

# --------------------------------------------------------------------------------------------------
# the catalog of bad words, each case repaired or refused by its reason, none silently passed

CASES = { # name: (words, text, words in the folder, reason)
    'no words': ([], '', [], None),
    'no words for a text': (None, 'so it was', [], None),
    'only signs': ([['--', 0, .1], ['...', .1, .2]], '-- ...', ['--', ' ...'], None),
    'an empty word': ([['so', 0, .1], ['', .1, .2]], None, [], 'EMPTY_WORD'),
    'a blank word': ([['so', 0, .1], [' \t', .1, .2]], None, [], 'EMPTY_WORD'),
    'no times, no room': ([['in', .1, .2], ['2014.', None, None], ['so', .2, .4]], None, ['in', ' 2014.', ' so'], None),
    'no times, anywhere': ([['in', .1, .2], ['$43,000.', None, None], ['so', .6, .8]], None, [], 'MISSING_TIME'),
    'out of order': ([['b', .5, .6], ['a', .1, .2]], None, [], 'OVERLAP'),
    'overlapping a little': ([['a', .1, .24], ['b', .2, .4]], None, ['a', ' b'], None),
    'overlapping': ([['a', .1, .4], ['b', .2, .6]], None, [], 'OVERLAP'),
    'negative a little': ([['a', -.03, .2]], None, ['a'], None),
    'negative': ([['a', -.3, .2]], None, [], 'BEFORE_START'),
    'reversed a little': ([['a', .23, .2]], None, ['a'], None),
    'reversed': ([['a', .5, .2]], None, [], 'REVERSED'),
    'past the end a little': ([['a', .9, 1.04]], None, ['a'], None),
    'past the end by 10 s': ([['a', 10.5, 11]], None, [], 'PAST_END'),
    'as far as numbers go': ([['a', 0, 1e308]], None, [], 'PAST_END'),
    'of no length': ([['a', .5, .5]], None, ['a'], None), # interleave gives it the run that it lies in
    'of 1 ms': ([['a', .5, .501]], None, ['a'], None),
    'whisper spacing': ([[' well', 0, .1], ['-known', .1, .2], [' fact', .2, .3]], 'well-known fact',
                        ['well', '-known', ' fact'], None),
    'composed otherwise': ([['cafe\u0301', 0, .1]], 'caf\u00e9', ['caf\u00e9'], None),
    'emoji, right to left, zero width': ([['😀', 0, .1], ['שלום', .1, .2], ['a\u200db', .2, .3]], None,
                                         ['😀', ' שלום', ' a\u200db'], None),
    'a million characters': ([['x' * 1_000_000, 0, .1]], None, ['x' * 1_000_000], None),
    'half a surrogate pair': ([['a\ud83d', 0, .1]], None, [], 'NOT_UNICODE'),
    'markup in the transcript': ([['<Un5>', 0, .1], ['<speech>', .1, .2]], '<Un5> <speech>',
                                 ['<Un5>', ' <speech>'], None),
    "another document's words": ([['so', 0, .1], ['it', .1, .2], ['was', .2, .3]], 'once upon a time',
                                 [], 'WORDS_TEXT_MISMATCH'),
    'an empty text': ([['so', 0, .1], ['it', .1, .2]], '', ['so', ' it'], None),
    'a text without letters': ([['so', 0, .1], ['it', .1, .2]], ' ... ', ['so', ' it'], None),
    'noise': ([['so', 0, .1], ['[noise]', .1, .2], ['it', .2, .3]], None, ['so', ' it'], None),
    'noise first': ([['[Music]', 0, .1], ['so', .1, .2]], None, ['so'], None),
    'noise alone': ([['♪', 0, .1], ['{laugh}', .1, .2]], None, [], None),
    'noise of several words': ([[' so', 0, .1], [' (upbeat', .1, .2], [' music).', .2, .3], [' it', .3, .4]], None,
                               ['so', ' it'], None),
    'noise that overlaps': ([['so', 0, .1], ['<breath>', 0, .9], ['it', .2, .3]], None, ['so', ' it'], None),
    'noise that the text lacks': ([['so', 0, .1], ['[noise]', .1, .2], ['it', .2, .3]], 'So, it', ['So,', ' it'], None),
    'brackets in the text': ([['so', 0, .1], ['[bracketed]', .1, .2], ['it', .2, .3]], 'So [laughter] it',
                             ['So', ' [laughter]', ' it'], None),
    'the word silence': ([['in', 0, .1], ['silence', .1, .2], ['sil', .2, .3]], None, ['in', ' silence'], None),
    'something unknown': ([['so', 0, .1], ['<UNK>', .1, .2], ['it', .2, .3]], None, [], 'UNKNOWN_WORD'),
    'unknown, as Kaldi has it': ([['so', 0, .1], ['spn', .1, .2]], None, [], 'UNKNOWN_WORD'),
    'unknown, with a text': ([['so', 0, .1], ['spn', .1, .2], ['it', .2, .3]], 'So, Zyx: it', ['So,', ' Zyx:', ' it'],
                             None),
    'unknown for two words': ([['a', 0, .1], ['b', .1, .2], ['<unk>', .2, .3], ['e', .3, .4], ['f', .4, .5],
                               ['g', .5, .6], ['h', .6, .7]], 'a b c d e f g h', [], 'UNKNOWN_WORD'),
    'unknown beside another spelling': ([['a', 0, .1], ['b', .1, .2], ['<unk>', .2, .3], ['dd', .3, .4], ['e', .4, .5],
                                         ['f', .5, .6]], 'a b c d e f', ['a', ' b', ' c', ' dd', ' e', ' f'], 'unlike'),
    'noise beside another spelling': ([['a', 0, .1], ['b', .1, .2], ['[x]', .2, .3], ['cc', .3, .4], ['d', .4, .5]],
                                      'a b c d', ['a', ' b', ' cc', ' d'], 'unlike'),
    'a part unknown': ([['so', 0, .1], ['i⁇t', .1, .2]], None, [], 'UNKNOWN_WORD'),
    'Chinese music': ([['今', 0, .1], ['【', .1, .2], ['音', .2, .3], ['乐', .3, .4], ['】', .4, .5], ['天', .5, .6]],
                      None, ['今', '天'], None),
    'Chinese, another letter': ([['今', 0, .1], ['天天', .1, .2], ['气', .2, .3], ['坏', .3, .4]], '今天天气好',
                                ['今', '天天', '气', '坏'], 'unlike'),
    'Chinese, with punctuation': ([['今天', 0, .1], ['天气', .1, .2], ['ok', .2, .3]], '今天，天气 OK。',
                                  ['今天，', '天气', ' OK。'], None),
    'Hindi, other vowels': ([['हिन्दी', 0, .1]], 'हन्दा', [], 'WORDS_TEXT_MISMATCH'),
    'Hebrew, without points': ([['שלום', 0, .1]], 'שָׁלוֹם', ['שָׁלוֹם'], None),
    'words with one wrong': ([['so', 0, .1], ['it', .1, .2], ['was', .2, .3], ['once', .4, .5]], 'so it is once',
                             ['so', ' it', ' was', ' once'], 'unlike'),
}

def test_what_is_left_out_is_counted(tmp_path, capsys):
    units = units_folder(tmp_path / 'units', [[('a', 1.0, None, [['[noise]', 0, 9], ['so', 9, 99], ['(a', 99, 100],
                                                                 ['laugh)', 100, 110], ['sp', 110, 120]])]])
    align.main(Config(units=str(units)))
    words = Words(units / 'words')
    assert words[0][0] == ['so'] and words[0][1].tolist() == [9] and words.info['left_out_words'] == 3
    assert '3 marks left out' in capsys.readouterr().out
    no_times = {'id': 'a', 'segments': [{'start': 0, 'end': 1, 'text': ' you know', 'words': []}]}
    write_jsonl(tmp_path / 'w.jsonl', [no_times])
    with pytest.raises(Refused, match='MISSING_TIME 1.*--ctc=MODEL finds the times'):
        align.main(Config(units=str(units), words=str(tmp_path / 'w.jsonl'), out=str(tmp_path / 'out')))

@pytest.mark.parametrize('case', CASES)
def test_bad_words_are_repaired_or_refused_by_a_reason_that_is_counted(tmp_path, case):
    times, text, expected, reason = CASES[case]
    units = units_folder(tmp_path / 'units', [[('bad', 1.0, text, None), ('good', 1.0, None, None)]])
    lines = [{'id': 'good', 'words': [['fine', .1, .9]]}]
    if times is not None:
        lines.append({'id': 'bad', 'words': times})
    write_jsonl(tmp_path / 'w.jsonl', lines)
    align.main(Config(units=str(units), words=str(tmp_path / 'w.jsonl'), max_fail_frac=.5))
    words = Words(units / 'words')
    spellings, starts, ends = words[0]
    spellings = [word.strip() if i == 0 else word for i, word in enumerate(spellings)]
    assert spellings == expected and words[1][0] == ['fine']
    assert words.info['refused'] == ({reason: 1} if reason not in (None, 'unlike') else {})
    assert words.info['unlike_text'] == (reason == 'unlike')
    edges = edges_of(starts, ends)
    assert (np.diff(edges) >= 0).all() and not ((edges < 0) | (edges > 16000)).any()

# --------------------------------------------------------------------------------------------------
# kills and ranks

def speaking(tmp_path, n=9):
    """A units folder of n documents in shards of two, whose audio is there."""
    meta = []
    for i in range(n):
        path = tmp_path / f'{i}.wav'
        seconds = 1 + i / 10
        soundfile.write(path, speech_like(seconds, i), 16000, subtype='PCM_16')
        seconds = round(16000 * seconds) / 16000
        meta.append({'id': f'd{i}', 'seconds': seconds, 'text': 'so it was', 'path': str(path)})
    folder = tmp_path / 'units'
    for first in range(0, n, 2):
        docs = meta[first:first + 2]
        words = [{'id': doc['id'], 'words': [['so', 0, 400], ['it', 390, 900], ['was', 950, 9000]]} for doc in docs]
        write_shard(folder, first // 2, docs, words)
    write_json(folder / 'info.json', {'units_hash': 'h', 'documents': n})
    return folder

class Listener:
    """An aligner whose times depend on the sound."""
    needs_text = True
    hash = 'listener'
    device = torch.device('cpu')

    def align(self, waves, texts):
        """Three words whose six edges are the first six samples, sorted."""
        assert len(waves) == len(texts) <= 256
        results = []
        for x, text in zip(waves, texts):
            edges = np.sort(np.abs(x[:6] * 1e4)).astype(int)
            results.append((text.split(), edges[0::2].tolist(), edges[1::2].tolist(), ''))
        return results

@pytest.mark.slow
@pytest.mark.parametrize('source', ['corpus', 'ctc'])
def test_killed_at_ten_moments_it_ends_with_the_same_bytes(tmp_path, monkeypatch, source):
    monkeypatch.setattr(align, 'make_aligner', lambda cfg: Listener())
    units = speaking(tmp_path)
    out = tmp_path / 'made' / 'words'
    out.parent.mkdir()
    cfg = Config(units=str(units), out=str(out), ctc='listener' if source == 'ctc' else '')
    changes = killed(lambda: align.main(cfg), str(out))
    uninterrupted = tree(out)
    assert changes > 50 and len(uninterrupted) == 5 * 8 + 1
    for moment in np.random.default_rng(0).choice(changes, 10, replace=False).tolist():
        shutil.rmtree(out)
        killed(lambda: align.main(cfg), str(out), moment)
        align.main(cfg)
        assert tree(out) == uninterrupted, f"killed at change {moment} of {changes}"

@pytest.mark.parametrize('world', [2, 3, 9])
def test_ranks_share_the_shards_and_the_last_writes_the_same_info(tmp_path, monkeypatch, capsys, world):
    monkeypatch.setattr(align, 'make_aligner', lambda cfg: Listener())
    units = speaking(tmp_path)
    out = units / 'words'
    cfg = Config(units=str(units), ctc='listener')
    align.main(cfg)
    of_one_process = tree(out)
    shutil.rmtree(out)
    monkeypatch.setenv('WORLD_SIZE', str(world))
    for rank in reversed(range(world)):
        assert not (out / 'info.json').exists()
        monkeypatch.setenv('RANK', str(rank))
        align.main(cfg)
        assert {int(p.name) % world for p in out.glob('0*')} == set(range(rank, min(world, 5)))
    assert tree(out) == of_one_process and 'the rank that ends last' in capsys.readouterr().out

# --------------------------------------------------------------------------------------------------
# models

def test_documents_that_cannot_be_heard_are_refused_by_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(align, 'make_aligner', lambda cfg: Listener())
    units = speaking(tmp_path)
    paths = [units / f'{i:05d}' / 'meta.jsonl' for i in range(5)]
    metas = [line for path in paths for _, line in read_lines(path)]
    metas[0]['path'] = None
    Path(metas[1]['path']).unlink()
    Path(metas[2]['path']).write_text('oops')
    soundfile.write(metas[3]['path'], np.ones(999), 16000) # not what its units were made from
    metas[4]['text'] = None
    metas[5]['text'] = ' '
    metas[6] |= {'path': metas[8]['path'], 'start': .25, 'end': .75, 'seconds': .5} # a part of a file
    for i, path in enumerate(paths):
        write_jsonl(path, metas[2 * i:2 * i + 2])
    align.main(Config(units=str(units), ctc='listener', max_fail_frac=.6))
    words = Words(units / 'words')
    assert words.info['refused'] == {'NO_AUDIO': 1, 'AUDIO_MISSING': 1, 'AUDIO_NOT_AUDIO': 1, 'AUDIO_CHANGED': 1}
    assert [len(words[i][0]) for i in range(9)] == [0, 0, 0, 0, 0, 0, 3, 3, 3]
    part = soundfile.read(metas[8]['path'], dtype='float32')[0][4000:12000]
    assert words[6][1].tolist() == Listener().align([part], ['so it was'])[0][1]
    with pytest.raises(Refused, match='made from other words or units'):
        align.main(Config(units=str(units), max_fail_frac=.6))

def test_models_are_refused_before_they_are_read_where_there_is_nothing_to_hear(tmp_path, monkeypatch):
    monkeypatch.setattr(align, 'make_aligner', lambda cfg: 1 / 0)
    units = units_folder(tmp_path / 'units', SHARDS)
    with pytest.raises(Refused, match='its meta.jsonl names no audio'):
        align.main(Config(units=str(units), whisper='w'))
    (tmp_path / 'other').mkdir()
    units = speaking(tmp_path / 'other')
    for path in units.glob('*/meta.jsonl'):
        path.write_text(path.read_text().replace('so it was', ''))
    with pytest.raises(Refused, match='no document has a text'):
        align.main(Config(units=str(units), ctc='c'))
    with pytest.raises(ZeroDivisionError):
        align.main(Config(units=str(units), whisper='w'))

@pytest.mark.skipif(not MINI.exists(), reason="needs ../shared/data/librispeech_mini")
def test_real_speech_with_forced_alignments_passes(tmp_path):
    lines = [json.loads(line) for line in MINI.read_text().splitlines()]
    units = units_folder(tmp_path / 'units', [[(d['id'], d['duration'], d['text'], None) for d in lines]])
    align.main(Config(units=str(units), words=str(MINI)))
    words = Words(units / 'words')
    assert words.info['documents'] == words.info['with_words'] == 134 and words.info['refused'] == {}
    for i, line in enumerate(lines):
        spellings, starts, _ = words[i]
        assert ''.join(spellings) == line['text']
        expected = [word[1] for word in line['words']]
        assert abs(starts / 16000 - expected).max(initial=0) < 1e-4

def test_a_shard_whose_audio_is_away_is_not_written(tmp_path, monkeypatch):
    docs = {f'd{i:02d}': ('a b', [1, 2, 3]) for i in range(20)}
    units = make_units(tmp_path / 'units', docs)
    lines = [line for _, line in read_lines(units / '00000/meta.jsonl')]
    for meta in lines:
        meta['path'] = str(tmp_path / 'away' / meta['id'])
    write_lines(units / '00000/meta.jsonl', lines)
    aligner = SimpleNamespace(needs_text=False, hash='x', device=torch.device('cpu'), align=lambda waves: [])
    monkeypatch.setattr(align, 'make_aligner', lambda cfg: aligner)
    with pytest.raises(Refused, match="the audio of 20 of its 20 documents is not there; bring it back"):
        align.main(align.Config(units=str(units), whisper='any'))
    assert not (units / 'words' / '00000').exists()
