"""
Every benchmark in its official layout, made here, read by its task and scored: against transformers one item at a time.
"""
import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from small import K, make_model, make_tokenizer, make_units
from transformers import AutoModelForCausalLM

import tasks.blimp
import tasks.multispeaker
import tasks.salmon
import tasks.storycloze
import tasks.zerospeech
from configurator import Refused
from eval import Config, main
from speech import unit_cache
from speech.audio import load_audio
from speech.units import deduplicate

HOP = 640

class Ear:
    """An encoder: a frame's unit is its loudness. As of encoders: hash, hop, rate, n_units, encode."""
    hash, hop, rate, n_units = 'abc', HOP, 16000, K
    encoded = 0 # waves

    def encode(self, waves):
        Ear.encoded += len(waves)
        return [units_of(wave) for wave in waves]

def units_of(wave):
    n = len(wave) // HOP
    return (np.abs(wave[:n * HOP].reshape(n, HOP)).mean(1) * 100).astype(np.int64) % K

@pytest.fixture(autouse=True)
def ear(monkeypatch):
    monkeypatch.setattr(unit_cache, 'Encoder', lambda *settings: Ear())
    monkeypatch.setattr(unit_cache, 'centroids_path', lambda *settings: None)
    Ear.encoded = 0

def write_wav(path, seed, seconds=0.4, rate=16000):
    """A wave whose loudness steps every 40 ms."""
    rng = np.random.default_rng(seed)
    steps = np.repeat(rng.uniform(0, .4, math.ceil(seconds * 25)), rate // 25)[:round(seconds * rate)]
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, steps.astype(np.float32), rate, subtype='PCM_16')
    return path

def write_csv(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w', newline='') as f:
        csv.writer(f).writerows([columns, *rows])

SYNTACTIC = 'filename,id,voice,type,subtype,transcription,correct'.split(',')
LEXICAL = 'filename,id,voice,frequency,word,phones,length,correct'.split(',')

def make_sblimp(root, split='dev', voices=('v1', 'v2')):
    rows, seed = [], 0
    for kind, subtype, ids in (('agreement', 'a', (0, 1)), ('agreement', 'b', (0,)), ('island', 'c', (0, 5))):
        for i in ids:
            for voice in voices:
                for correct in (1, 0):
                    name, seed = f'f{len(rows):03d}', seed + 1
                    rows.append((name, i, voice, kind, subtype, 'the cat', correct))
                    write_wav(root / 'syntactic' / split / f'{name}.wav', seed, 0.3 + 0.04 * (seed % 5))
    np.random.default_rng(0).shuffle(rows) # order says nothing
    write_csv(root / 'syntactic' / split / 'gold.csv', SYNTACTIC, rows)
    return root

def make_swuggy(root, split='dev', voices=('v1', 'v2')):
    rows = []
    for i, frequency in enumerate((0, 3, 20, 100)): # the last two begin their bands
        for voice in voices:
            for correct in (0, 1):
                rows.append((f'w{len(rows):03d}', i, voice, frequency, 'brick', 'B R IH K', 4, correct))
                write_wav(root / 'lexical' / split / f'{rows[-1][0]}.wav', len(rows), 0.3)
    write_csv(root / 'lexical' / split / 'gold.csv', LEXICAL, rows)
    return root

def make_numbered(folder, n=3, rate=16000, seed=0):
    for i in range(2 * n):
        write_wav(folder / f'{i}_{i // 2:04d}_{"incorrect" if i % 2 else "correct"}.wav', seed + i, 0.3 + 0.1 * (i % 3), rate)
    return folder

def make_cross_modal(root):
    for s, folder in enumerate(('sSC/af_bella', 'sSC/am_puck', 'tSC/am_puck')):
        for i in range(2):
            for j, part in enumerate(('mutual', 'correct', 'incorrect')):
                stem = root / folder / f's{i}_{part}'
                write_wav(stem.with_suffix('.wav'), 100 * s + 10 * i + j, 0.5, 24000)
                stem.with_suffix('.txt').write_text(f'{part} {i}.\n')
    return root

def make_salmon(root):
    for p, part in enumerate(tasks.salmon.PARTS):
        for n in (0, 7) if p == 0 else (3,):
            for i in (0, 1):
                write_wav(root / part / f'sample_{n}_{i}.wav', 10 * p + 2 * n + i)
    return root

def make_blimp(root, n=3):
    (root / 'data').mkdir(parents=True)
    for name, field in (('adjunct_island', 'syntax'), ('wh_questions', 'syntax'), ('plurals', 'morphology')):
        lines = [{'sentence_good': f'Good {name} {i}.', 'sentence_bad': f'Worse {i} {name}.', 'UID': name, 'field': field,
                  'pairID': str(i)} for i in range(n)]
        (root / 'data' / f'{name}.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in lines))
    return root

def make_storycloze(root):
    write_csv(root / 'val.csv', ['InputStoryid', *tasks.storycloze.COLUMNS],
              [(f'id{i}', 'A b.', 'C d.', 'E f.', f'G {i}.', f'One {i}.', f'Two {i}.', 1 + i % 2) for i in range(3)])
    return root

def make_parquet(root):
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet
    for v, voice in enumerate(('sSC_af_bella', 'sSC_am_puck', 'tSC_af_bella')):
        sound = lambda seed: {'bytes': write_wav(root / 'x.wav', seed, 0.4, 24000).read_bytes(), 'path': 'x.wav'}
        rows = [{'id': i, 'correct_text': f'Right {i}.', 'correct_audio': sound(10 * v + 2 * i), 'negative_text': f'Not {i}.',
                 'negative_audio': sound(10 * v + 2 * i + 1)} for i in range(2)]
        (root / voice).mkdir(parents=True)
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), root / voice / 'test-00000-of-00001.parquet')
    (root / 'x.wav').unlink()
    return root

@pytest.fixture(scope='module')
def house(tmp_path_factory):
    """A joint, a speech-only and a text model, and every benchmark below bench/."""
    root = tmp_path_factory.mktemp('house')
    tokenizer = make_tokenizer(root / 'tokenizer')
    for kind in ('joint', 'speech', 'text'):
        make_model(root / kind, root / 'tokenizer', kind)
    bench = root / 'bench'
    make_sblimp(bench / 'sblimp'), make_swuggy(bench / 'swuggy'), make_numbered(bench / 'ssc'), make_numbered(bench / 'tsc', seed=50)
    make_cross_modal(bench / 'cross_modal'), make_salmon(bench / 'salmon'), make_blimp(bench / 'blimp')
    make_storycloze(bench / 'storycloze')
    for voice in ('af_bella', 'am_puck'):
        make_numbered(bench / 'ms_tsc' / voice, rate=24000, seed=len(voice))
    return root, tokenizer

# ----------------------------------------------------------------------------------------------------------------
# scores against the slow reference

def reference(root, kind, ids, begin):
    """mean, sum, ending of log p by transformers' model, one document alone, float32."""
    model = reference.models.setdefault((root, kind), AutoModelForCausalLM.from_pretrained(root / kind, dtype=torch.float32).eval())
    with torch.inference_mode():
        logp = model(torch.tensor(ids)[None]).logits[0].log_softmax(-1)
    each = logp[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0].double()
    out = {'mean': each.mean().item(), 'sum': each.sum().item()}
    return out if begin is None else {**out, 'ending': each[max(begin - 1, 0):].mean().item()}
reference.models = {}

def ids_of(kind, tokenizer, direction, c, separator):
    """The document of a raw candidate, written down a second time from the format's description."""
    T = tokenizer.size
    at = 2 if kind == 'speech' else T
    wave = lambda a: np.concatenate([load_audio(x) for x in a]) if isinstance(a, tuple) else load_audio(a)
    frames = lambda a: units_of(wave(a))
    unit_ids = lambda a: (deduplicate(frames(a))[0] + at).tolist()
    text = lambda s: list(s.encode()) and tokenizer.encode(s)
    (prompt, prompt_audio), (ending, ending_audio) = c.get('prompt', (None, None)), c.get('ending', (None, None))
    speech, written = [T + K], [T + K + 1]
    head = [1] if kind == 'speech' else {'S': speech, 'T': written}.get(direction, []) if separator and kind == 'joint' else []
    if direction == 'S':
        ids, begin = head + unit_ids(c['joined']) + ([1] if kind == 'speech' else []), None
        if isinstance(c['joined'], tuple): # the first unit whose run ends after the context's frames
            runs = deduplicate(frames(c['joined']))[1]
            begin = len(head) + next(i for i, end in enumerate(np.cumsum(runs)) if end > len(frames(prompt_audio)))
        return ids, begin
    if direction == 'T':
        return (head + text(prompt) + text(' ' + ending), len(head) + len(text(prompt))) if prompt else (head + text(ending), None)
    if direction == 'S->T':
        first = speech + unit_ids(prompt_audio)
        return first + written + text(' ' + ending), len(first)
    first = written + text(prompt)
    return first + speech + unit_ids(ending_audio), len(first)

RAW = {'sblimp': tasks.zerospeech.sblimp, 'swuggy': tasks.zerospeech.swuggy, 'ssc': tasks.storycloze.spoken,
       'ms_tsc': tasks.multispeaker.ms_tsc, 'cross_modal': tasks.multispeaker.cross_modal, 'salmon': tasks.salmon.items,
       'blimp': tasks.blimp.items, 'storycloze': tasks.storycloze.text}
DIRECTIONS = {'blimp': ['T'], 'storycloze': ['T'], 'cross_modal': ['S', 'S->T', 'T->S', 'T']}

READS = {'joint': ['S', 'S->T', 'T->S', 'T'], 'speech': ['S'], 'text': ['T']}

@pytest.mark.parametrize('name, kind, lead', [
    (name, kind, lead) for name in RAW for kind, lead in (('joint', 'none'), ('joint', 'separator'), ('speech', 'none'), ('text', 'none'))
    if set(DIRECTIONS.get(name, ['S'])) & set(READS[kind])])
def test_scores_equal_transformers_one_item_at_a_time(house, name, kind, lead):
    root, tokenizer = house
    readable = [d for d in DIRECTIONS.get(name, ['S']) if d in READS[kind]]
    main(Config(model=str(root / kind), tasks=name, root=str(root / 'bench'), data='', lead=lead, cache=str(root / 'cache'),
                row_tokens=200, device='cpu'))
    samples = {(x['id'], x['direction']): x for x in map(json.loads, open(root / kind / f'samples_{name}.jsonl'))}
    raw = list(RAW[name](root / 'bench' / name))
    assert len(samples) == len(raw) * len(readable) and {d for _, d in samples} == set(readable)
    results = json.loads((root / kind / 'eval.json').read_text())['results']
    for direction in readable:
        won = []
        for item in raw:
            line, pair = samples[item['id'], direction], []
            for side in ('right', 'wrong'):
                pair.append(reference(root, kind, *ids_of(kind, tokenizer, direction, item[side], lead == 'separator')))
                ours = {k[len(side) + 1:]: v for k, v in line.items() if k.startswith(side + '_') and v is not None}
                assert ours.keys() == pair[-1].keys()
                for key in ours:
                    assert ours[key] == pytest.approx(pair[-1][key], abs=1e-5, rel=1e-6), (item['id'], direction, key)
            won.append((item, (pair[0]['mean'] > pair[1]['mean']) + 0.5 * (pair[0]['mean'] == pair[1]['mean'])))
        for part in {part for item in raw for part in item['rows']}:
            row = results['/'.join(filter(None, (name, part, direction)))]
            of = [w for item, w in won if part in item['rows']]
            assert row['n'] == len(of) and row.get('plain', row['value']) == pytest.approx(np.mean(of))

# ----------------------------------------------------------------------------------------------------------------
# layouts

def test_zerospeech_files_are_paired_by_gold_and_the_submission_has_every_file_once(house):
    root, _ = house
    main(Config(model=str(root / 'speech'), tasks='sblimp,swuggy', root=str(root / 'bench'), data='', cache=str(root / 'cache')))
    for part, name in (('syntactic', 'sblimp'), ('lexical', 'swuggy')):
        lines = [line.split(' ') for line in (root / 'speech' / 'zerospeech' / part / 'dev.txt').read_text().splitlines()]
        assert [f for f, _ in lines] == sorted(p.stem for p in (root / 'bench' / name / part / 'dev').glob('*.wav'))
        scores = {f: float(s) for f, s in lines}
        for sample in map(json.loads, open(root / 'speech' / f'samples_{name}.jsonl')):
            assert scores[sample['files']['right']] == sample['right_mean']
    rows = json.loads((root / 'speech' / 'eval.json').read_text())['results']
    assert rows['swuggy/dev/inter/S']['n'] == 6 and rows['swuggy/dev/oov/S']['n'] == 2
    assert rows['swuggy/dev/S']['types'].keys() == {'oov', '1-5', '21-100', '>100'}
    assert (rows['sblimp/dev/S']['n'], rows['sblimp/dev/S']['pairs']) == (10, 5)

def test_a_split_without_gold_is_named(tmp_path, capsys):
    root = make_sblimp(tmp_path / 'x')
    (root / 'syntactic' / 'test').mkdir()
    assert {item['split'] for item in tasks.zerospeech.sblimp(root)} == {'dev'}
    assert f"{root}/syntactic/test: no gold.csv in it, so this split is not measured" in capsys.readouterr().out

@pytest.mark.parametrize('task, make, lost', [
    (tasks.zerospeech.sblimp, make_sblimp, 'syntactic/dev/f003.wav'), (tasks.zerospeech.swuggy, make_swuggy, 'lexical/dev/w001.wav'),
    (tasks.storycloze.spoken, make_numbered, '3_0001_incorrect.wav'), (tasks.salmon.items, make_salmon, 'bg_alignment/sample_7_1.wav'),
    (tasks.multispeaker.cross_modal, make_cross_modal, 'tSC/am_puck/s1_mutual.txt')])
def test_a_missing_file_is_an_error_that_names_it(tmp_path, task, make, lost):
    root = make(tmp_path / 'x')
    list(task(root))
    (root / lost).unlink()
    name = Path(lost).name
    with pytest.raises(Refused, match='3_\\*.wav' if name.startswith('3_') else name):
        list(task(root))

@pytest.mark.parametrize('task, make, extra', [
    (tasks.zerospeech.sblimp, make_sblimp, 'syntactic/dev/zz.wav'), (tasks.zerospeech.swuggy, make_swuggy, 'lexical/dev/zz.wav'),
    (tasks.storycloze.spoken, make_numbered, 'zz.wav'), (tasks.salmon.items, make_salmon, 'bg_alignment/zz.wav'),
    (tasks.multispeaker.cross_modal, make_cross_modal, 'tSC/am_puck/zz.wav')])
def test_an_extra_file_is_an_error_that_names_it(tmp_path, task, make, extra):
    root = make(tmp_path / 'x')
    write_wav(root / extra, 0)
    with pytest.raises(Refused, match='zz.wav'):
        list(task(root))

def test_pairs_do_not_depend_on_the_order_of_the_gold_file(tmp_path):
    one = [(i['id'], i['files']) for i in tasks.zerospeech.sblimp(make_sblimp(tmp_path / 'a'))]
    gold = tmp_path / 'a' / 'syntactic' / 'dev' / 'gold.csv'
    head, *lines = gold.read_text().splitlines()
    gold.write_text('\n'.join([head, *reversed(lines)]) + '\n')
    assert [(i['id'], i['files']) for i in tasks.zerospeech.sblimp(tmp_path / 'a')] == one

@pytest.mark.parametrize('change, message', [
    (lambda lines: lines[:-1], 'without their other half'),
    (lambda lines: [*lines, lines[-1]], 'is there twice'),
    (lambda lines: [lines[0].replace('voice', 'who'), *lines[1:]], 'no column voice'),
    (lambda lines: [*lines[:-1], lines[-1][:-1] + '7'], "correct is '7'")])
def test_a_gold_file_that_is_not_whole_is_refused(tmp_path, change, message):
    gold = make_sblimp(tmp_path) / 'syntactic' / 'dev' / 'gold.csv'
    gold.write_text('\n'.join(change(gold.read_text().splitlines())) + '\n')
    with pytest.raises(Refused, match=message):
        list(tasks.zerospeech.sblimp(tmp_path))

def test_both_splits_are_rows_of_their_own(tmp_path):
    make_sblimp(make_sblimp(tmp_path), 'test', ('v9',))
    assert {item['rows'] for item in tasks.zerospeech.sblimp(tmp_path)} == {('dev',), ('test',)}

def test_numbered_stories_of_equal_numbers_or_swapped_names_are_refused(tmp_path):
    write_wav(make_numbered(tmp_path / 'a') / '2_again.wav', 0)
    with pytest.raises(Refused, match='number 2 is there twice'):
        list(tasks.storycloze.spoken(tmp_path / 'a'))
    make_numbered(tmp_path / 'b')
    (tmp_path / 'b' / '0_0000_correct.wav').rename(tmp_path / 'b' / '0_0000_incorrect.wav')
    with pytest.raises(Refused, match='an even number is a right story'):
        list(tasks.storycloze.spoken(tmp_path / 'b'))

def test_stories_are_in_order_of_number_not_of_name(tmp_path):
    make_numbered(tmp_path, n=6)
    pairs = [(item['right']['joined'].name, item['wrong']['joined'].name) for item in tasks.storycloze.spoken(tmp_path)]
    assert pairs[1] == ('2_0001_correct.wav', '3_0001_incorrect.wav') and pairs[5][0] == '10_0005_correct.wav'

def test_parquet_of_the_hub_gives_its_own_task_with_text_and_audio(tmp_path, house):
    root, _ = house
    items = list(tasks.multispeaker.ms_ssc(make_parquet(tmp_path / 'ms')))
    assert [i['rows'] for i in items] == 2 * [('all', 'sSC_af_bella')] + 2 * [('all', 'sSC_am_puck')]
    assert len(list(tasks.multispeaker.ms_tsc(tmp_path / 'ms'))) == 2
    main(Config(model=str(root / 'joint'), tasks='ms_ssc', where=f'ms_ssc={tmp_path}/ms', data='', cache=str(tmp_path / 'cache')))
    found = json.loads((root / 'joint' / 'eval.json').read_text())
    assert {'ms_ssc/all/S', 'ms_ssc/sSC_am_puck/S', 'ms_ssc/all/T'} <= found['results'].keys()
    assert found['tasks']['ms_ssc']['audio'] == found['tasks']['ms_ssc']['resampled'] == 8 # 24 kHz

def test_a_story_of_the_hub_without_audio_is_refused_by_name(tmp_path):
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet
    row = {'id': 'x7', 'correct_text': 'a', 'correct_audio': {'bytes': b'', 'path': 'gone.wav'}, 'negative_text': 'b',
           'negative_audio': {'bytes': b'1', 'path': ''}}
    pyarrow.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / 'a.parquet')
    with pytest.raises(Refused, match='story x7 has no text or no audio'):
        list(tasks.multispeaker.ms_ssc(tmp_path))

def test_a_voice_that_lacks_a_story_is_refused(tmp_path):
    make_numbered(tmp_path / 'a', 3), make_numbered(tmp_path / 'b', 2)
    with pytest.raises(Refused, match='b lacks 1 stories that others have: 2'):
        list(tasks.multispeaker.ms_ssc(tmp_path))

def test_salmon_has_all_eight_parts_or_says_which_are_missing(tmp_path):
    make_salmon(tmp_path)
    assert {item['rows'][0] for item in tasks.salmon.items(tmp_path)} == set(tasks.salmon.PARTS) and len(tasks.salmon.PARTS) == 8
    for p in (tmp_path / 'rir_consistency').glob('*'):
        p.unlink()
    (tmp_path / 'rir_consistency').rmdir()
    with pytest.raises(Refused, match='lacks rir_consistency'):
        list(tasks.salmon.items(tmp_path))

def test_the_right_ending_is_the_one_that_the_csv_names(tmp_path):
    items = list(tasks.storycloze.text(make_storycloze(tmp_path)))
    assert [i['right']['ending'][0] for i in items] == ['One 0.', 'Two 1.', 'One 2.']
    assert items[1]['right']['prompt'][0] == 'A b. C d. E f. G 1.' and items[1]['id'] == 'id1'
    rows = list(csv.reader(open(tmp_path / 'val.csv')))
    write_csv(tmp_path / 'copy' / 'val.csv', rows[0][1:], [row[1:] for row in rows[1:]])
    assert [i['id'] for i in tasks.storycloze.text(tmp_path / 'copy')] == ['val:2', 'val:3', 'val:4']
    write_csv(tmp_path / 'test' / 'test.csv', rows[0][1:-1], [row[1:-1] for row in rows[1:]]) # without answers
    with pytest.raises(Refused, match='test.csv: no column AnswerRightEnding'):
        list(tasks.storycloze.text(tmp_path / 'test'))

def test_right_is_what_the_benchmark_says_is_right(tmp_path):
    for task, make, part in ((tasks.zerospeech.sblimp, make_sblimp, 'syntactic'), (tasks.zerospeech.swuggy, make_swuggy, 'lexical')):
        root = make(tmp_path / part)
        gold = {row['filename']: row for row in csv.DictReader(open(root / part / 'dev' / 'gold.csv'))}
        for item in task(root):
            right, wrong = (gold[item[side]['joined'].stem] for side in ('right', 'wrong'))
            assert (right['correct'], wrong['correct']) == ('1', '0') and right['voice'] == wrong['voice'] and right['id'] == wrong['id']
            assert item['files'] == {'right': right['filename'], 'wrong': wrong['filename']}
    for item in tasks.salmon.items(make_salmon(tmp_path / 'salmon')):
        assert [item[side]['joined'].stem[-2:] for side in ('right', 'wrong')] == ['_0', '_1']
    for item in tasks.blimp.items(make_blimp(tmp_path / 'blimp')):
        assert [item[side]['ending'][0].split()[0] for side in ('right', 'wrong')] == ['Good', 'Worse']
    first = next(iter(tasks.multispeaker.ms_ssc(make_parquet(tmp_path / 'ms'))))
    assert [first[side]['ending'][0] for side in ('right', 'wrong')] == ['Right 0.', 'Not 0.']

def test_across_modalities_the_context_is_mutual_and_comes_first(tmp_path):
    root = make_cross_modal(tmp_path)
    for item in tasks.multispeaker.cross_modal(root):
        folder, name = root / Path(item['id']).parent, Path(item['id']).name
        for side, part in (('right', 'correct'), ('wrong', 'incorrect')):
            context, ending = (folder / f'{name}_{p}.wav' for p in ('mutual', part))
            assert item[side] == {'prompt': (f'mutual {name[1]}.', context), 'ending': (f'{part} {name[1]}.', ending), 'joined': (context, ending)}
        assert item['rows'] == (item['id'].split('/')[0], '/'.join(item['id'].split('/')[:2]))

# ----------------------------------------------------------------------------------------------------------------
# eval.py over tasks

def test_all_measures_what_is_there_and_names_what_is_not(house, tmp_path, capsys):
    root, _ = house
    folder = str(root / 'text')
    main(Config(model=folder, tasks='all', root=str(root / 'bench'), data='', items='', cache=str(root / 'cache')))
    out = capsys.readouterr().out
    assert 'ms_ssc was not measured: no' in out and 'sblimp was not measured: nothing that a text model reads' in out
    found = json.loads((root / 'text' / 'eval.json').read_text())
    assert {'blimp/all/T', 'blimp/syntax/T', 'storycloze/T', 'cross_modal/sSC/T'} <= found['results'].keys()
    assert 'no ' in found['tasks']['ms_ssc']['not measured']
    assert found['results']['blimp/all/T']['types'].keys() == {'adjunct_island', 'wh_questions', 'plurals'}
    how = found['tasks']['blimp']
    assert how['settings']['tasks'] == 'all' and how['lead'] == 'none' and 'commit' in how and found['model'].keys() == {'model.safetensors'}

def test_audio_is_encoded_once_whatever_its_name_and_anew_when_damaged(house, tmp_path, capsys):
    root, _ = house
    make_numbered(tmp_path / 'ssc')
    cfg = Config(model=str(root / 'speech'), tasks='ssc', root=str(tmp_path), data='', cache=str(tmp_path / 'cache'))
    main(cfg)
    first = json.loads((root / 'speech' / 'eval.json').read_text())['results']
    assert Ear.encoded == 6
    (tmp_path / 'ssc' / '0_0000_correct.wav').rename(tmp_path / 'ssc' / '0_renamed.wav')
    main(cfg)
    assert Ear.encoded == 6 and json.loads((root / 'speech' / 'eval.json').read_text())['results'] == first
    write_wav(tmp_path / 'ssc' / '1_0000_incorrect.wav', 99) # other content
    main(cfg)
    assert Ear.encoded == 7
    kept = sorted((tmp_path / 'cache').rglob('*.safetensors'))
    for path in kept:
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
    capsys.readouterr()
    main(cfg)
    assert Ear.encoded == 13 and capsys.readouterr().out.count('damaged, removed') == len(kept)

def test_units_of_another_encoder_are_refused_before_any_is_used(house, tmp_path, monkeypatch):
    root, _ = house
    monkeypatch.setattr(Ear, 'hash', 'other')
    make_numbered(tmp_path / 'ssc')
    with pytest.raises(Refused, match='its units are other, the model was trained on abc'):
        main(Config(model=str(root / 'speech'), tasks='ssc', root=str(tmp_path), data='', cache=str(tmp_path / 'cache')))

@pytest.mark.parametrize('kind', ['joint', 'speech'])
def test_audio_without_a_unit_makes_an_item_invalid_not_wrong(house, tmp_path, kind, capsys):
    root, _ = house
    make_numbered(tmp_path / 'ssc')
    write_wav(tmp_path / 'ssc' / '2_0001_correct.wav', 0, seconds=0.01)
    main(Config(model=str(root / kind), tasks='ssc', root=str(tmp_path), data='', cache=str(tmp_path / 'cache')))
    row = json.loads((root / kind / 'eval.json').read_text())['results']['ssc/S']
    assert (row['n'], row['invalid']) == (2, 1)
    assert '1 items have an empty document' in capsys.readouterr().out
    lines = [json.loads(x) for x in open(root / kind / 'samples_ssc.jsonl')]
    assert [x['id'] for x in lines if x.get('invalid')] == ['1']

def test_an_item_longer_than_the_models_positions_is_refused_by_name(house, tmp_path):
    root, _ = house
    make_model(tmp_path / 'model', root / 'tokenizer', 'text')
    config = json.loads((tmp_path / 'model' / 'config.json').read_text())
    (tmp_path / 'model' / 'config.json').write_text(json.dumps({**config, 'max_position_embeddings': 10}))
    with pytest.raises(Refused, match=r'T: \d+ tokens, the model has 10 positions'):
        main(Config(model=str(tmp_path / 'model'), tasks='blimp', root=str(root / 'bench'), data=''))

def test_results_are_never_lost(house, tmp_path, capsys):
    root, _ = house
    make_model(tmp_path / 'model', root / 'tokenizer', 'text')
    cfg = {'model': str(tmp_path / 'model'), 'root': str(root / 'bench'), 'data': ''}
    read = lambda name='eval.json': json.loads((tmp_path / 'model' / name).read_text())
    main(Config(**cfg, tasks='blimp'))
    one = read()
    main(Config(**cfg, tasks='storycloze')) # another task: added
    assert read()['results'].items() >= one['results'].items() and not (tmp_path / 'model' / 'eval.1.json').exists()
    main(Config(**cfg, tasks='blimp', max_items=1)) # the same task measured otherwise: the old file stays
    assert read('eval.1.json')['results'].items() >= one['results'].items()
    assert read()['results']['blimp/all/T']['n'] == 3 and 'storycloze/T' in read()['results']
    assert len(open(tmp_path / 'model' / 'samples_blimp.1.jsonl').readlines()) == 9
    make_model(tmp_path / 'model', root / 'tokenizer', 'text', seed=1) # other weights: nothing of the old is carried on
    main(Config(**cfg, tasks='storycloze'))
    assert read()['results'].keys() == {'storycloze/T'} and 'blimp/all/T' in read('eval.2.json')['results']

@pytest.mark.parametrize('settings, message', [
    ({'tasks': 'sblimb'}, "no task 'sblimb'; there are tiny, sblimp"), ({'where': 'x=y', 'tasks': 'blimp'}, "no task 'x'"),
    ({'tasks': 'blimp', 'lead': 'eos'}, "lead is 'eos', expected none, separator, bos"),
    ({'tasks': 'blimp', 'root': '/nowhere'}, "/nowhere/blimp: no such folder; blimp's data as unpacked is expected there"),
    ({'tasks': 'blimp', 'lead': 'bos'}, "names no bos_token_id")])
def test_bad_settings_are_one_line(house, settings, message):
    root, _ = house
    with pytest.raises(Refused, match=message):
        main(Config(**{'model': str(root / 'text'), 'root': str(root / 'bench'), 'data': '', **settings}))

def test_tiny_stays_beside_other_tasks(house, tmp_path):
    root, _ = house
    units = {f'm00000/{name}': ('x y', [1, 2, 3 + i]) for i, name in enumerate(
        ('context', 'right', 'wrong', 'topic', 'context+right', 'context+wrong', 'context+topic'))}
    make_units(tmp_path / 'items', units)
    main(Config(model=str(root / 'joint'), tasks='tiny,storycloze', root=str(root / 'bench'), data='', items=str(tmp_path / 'items')))
    rows = json.loads((root / 'joint' / 'eval.json').read_text())['results']
    assert {'tiny/main/ssc/S->T', 'tiny/main/tsc/S', 'storycloze/T'} <= rows.keys()

def test_a_text_lm_of_hugging_face_is_measured_whatever_its_vocab_json(house, tmp_path):
    root, _ = house
    make_model(tmp_path / 'model', root / 'tokenizer', 'text')
    cfg = Config(model=str(tmp_path / 'model'), tasks='blimp', root=str(root / 'bench'), data='')
    main(cfg)
    one = json.loads((tmp_path / 'model' / 'eval.json').read_text())['results']
    for vocab in (None, json.dumps({'kind': 7, 'a': 0})): # none, or the tokenizer's own
        (tmp_path / 'model' / 'vocab.json').unlink()
        if vocab:
            (tmp_path / 'model' / 'vocab.json').write_text(vocab)
        (tmp_path / 'model' / 'eval.json').unlink()
        main(cfg)
        assert json.loads((tmp_path / 'model' / 'eval.json').read_text())['results'] == one
        (tmp_path / 'model' / 'vocab.json').write_text('{')
    with pytest.raises(Refused, match='vocab.json: not JSON'):
        main(cfg)
    make_model(tmp_path / 'joint', root / 'tokenizer', 'joint')
    (tmp_path / 'joint' / 'vocab.json').unlink() # its tokenizer says which ids are units, and nothing whose
    main(Config(**{**cfg.__dict__, 'model': str(tmp_path / 'joint')}))
    with pytest.raises(Refused, match='an encoder that its folder does not name'):
        main(Config(**{**cfg.__dict__, 'model': str(tmp_path / 'joint'), 'tasks': 'ssc'}))
