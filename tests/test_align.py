"""Word times against a slow repair, spaces against the text, the words folder there and back, refusals."""
import json
from pathlib import Path

import numpy as np
import pytest

import align
from align import LIMIT, REASONS, Config, Words, repair, with_spaces, write_words_shard
from configurator import Refused, write_json

MINI = Path(__file__).parent.parent.parent / 'shared' / 'data' / 'librispeech_mini' / 'manifest.jsonl'
NAN = float('nan')

def one(times, n_samples=16000):
    """repair of a single document: [(start, end), ...] -> the repaired list, or the reason"""
    starts, ends = ([t[i] for t in times] for i in (0, 1))
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
    assert one(times) == expected

def test_documents_are_repaired_together_as_alone():
    rng, docs = np.random.default_rng(0), []
    for _ in range(500):
        n = int(rng.integers(0, 12))
        edges = np.sort(rng.integers(0, 16000, 2 * n)).astype(float)
        edges += rng.integers(-900, 900, 2 * n) * (rng.random(2 * n) < .2)
        edges[rng.random(2 * n) < .02] = NAN
        docs.append((list(zip(edges[0::2], edges[1::2])), int(rng.integers(15000, 17000))))
    flat = [t for times, _ in docs for t in times]
    offsets = np.cumsum([0] + [len(times) for times, _ in docs])
    starts, ends, reasons = repair([t[0] for t in flat], [t[1] for t in flat], offsets, [n for _, n in docs])
    for i, (times, n) in enumerate(docs):
        part = slice(offsets[i], offsets[i + 1])
        together = REASONS[reasons[i]] or list(zip(starts[part].tolist(), ends[part].tolist()))
        assert together == one(times, n)
        if not reasons[i]:
            edges = np.stack([starts[part], ends[part]], 1).ravel()
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

# ----------------------------------------------------------------------------------------------------------------

def units_folder(folder, shards):
    """What align.py reads of a units folder; shards: lists of (id, seconds, text, words)."""
    for index, docs in enumerate(shards):
        shard = folder / f'{index:05d}'
        shard.mkdir(parents=True)
        for name, dicts in (('meta', [{'id': i, 'seconds': s, 'text': t} for i, s, t, _ in docs]),
                            ('words', [{'id': i, 'words': w} for i, _, _, w in docs])):
            (shard / f'{name}.jsonl').write_text(''.join(json.dumps(d) + '\n' for d in dicts))
    write_json(folder / 'info.json', {'units_hash': 'h', 'documents': sum(map(len, shards))})
    return folder

SHARDS = [[('a', 1.0, 'the dog', [['the', 0, 100], ['dog', 90, 4000]]), ('b', 1.0, None, None)],
          [('c', 1.0, 'a cat', [['the', 0, 100], ['dog', 100, 4000]]),
           ('d', 2.0, None, [[' the', 0, 900], [' dog', 900, 40000]]),
           ('e', 1.0, 'dog dog', [['dog', 0, 50], ['dog', 60, 70]]), ('f', 1.0, None, [['', 0, 50]])]]

def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}

def test_words_of_a_units_folder(tmp_path, capsys):
    units = units_folder(tmp_path / 'units', SHARDS)
    align.main(Config(units=str(units), max_fail_frac=0.7))
    words = Words(units / 'words')
    assert words.ids == list('abcdef') and len(words) == 6 and words.find('c') == 2
    read = [(w, s.tolist(), e.tolist()) for w, s, e in (words[i] for i in range(6))]
    assert read == [(['the', ' dog'], [0, 100], [100, 4000]), ([], [], []), ([], [], []), ([], [], []),
                    (['dog', ' dog'], [0, 60], [50, 70]), ([], [], [])]
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
    assert [len(words[i][0]) for i in range(6)] == [2, 0, 0, 0, 0, 0] and words[0][2].tolist() == [3200, 16000]
    assert words.info['refused'] == {'MISSING_TIME': 1}

def test_a_killed_run_ends_with_the_bytes_of_a_whole_one(tmp_path, monkeypatch):
    units = units_folder(tmp_path / 'units', SHARDS)
    cfg = Config(units=str(units), max_fail_frac=1.0)
    align.main(cfg)
    whole = tree(units / 'words')
    for path in sorted((units / 'words').rglob('*'), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    real = align.write_words_shard
    monkeypatch.setattr(align, 'write_words_shard', lambda out, i, *a: real(out, i, *a) if i == 0 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        align.main(cfg)
    with pytest.raises(Refused, match='not complete'):
        Words(units / 'words')
    monkeypatch.setattr(align, 'write_words_shard', real)
    align.main(cfg)
    assert tree(units / 'words') == whole

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

@pytest.mark.skipif(not MINI.exists(), reason="needs ../shared/data/librispeech_mini")
def test_real_speech_with_forced_alignments_passes(tmp_path):
    lines = [json.loads(line) for line in MINI.read_text().splitlines()]
    units = units_folder(tmp_path / 'units', [[(d['id'], d['duration'], d['text'], None) for d in lines]])
    align.main(Config(units=str(units), words=str(MINI)))
    words = Words(units / 'words')
    assert words.info['documents'] == words.info['with_words'] == 134 and words.info['refused'] == {}
    for i, d in enumerate(lines):
        assert ''.join(words[i][0]) == d['text']
        assert abs(words[i][1] / 16000 - [w[1] for w in d['words']]).max(initial=0) < 1e-4
