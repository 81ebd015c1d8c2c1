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
from evaluation.results import SAME
from speech import unit_cache
from speech.audio import load_audio
from speech.units import deduplicate

HOP = 640

class Ear:
    """An encoder with the attributes of encoders.Encoder, whose unit of a frame is the frame's loudness."""
    hash = 'abc'
    hop = HOP
    rate = 16000
    n_units = K
    encoded = 0 # waves
    step = HOP
    runs = staticmethod(deduplicate)

    def encode(self, waves):
        Ear.encoded += len(waves)
        return [units_of(wave) for wave in waves]

def units_of(wave):
    n = len(wave) // HOP
    return (np.abs(wave[:n * HOP].reshape(n, HOP)).mean(1) * 100).astype(np.int64) % K

@pytest.fixture(autouse=True)
def ear(monkeypatch):
    monkeypatch.setattr(unit_cache, 'Encoder', lambda *_, **__: Ear())
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
    folder = root / 'syntactic' / split
    pairs = [('agreement', 'a', 0), ('agreement', 'a', 1), ('agreement', 'b', 0),
             ('island', 'c', 0), ('island', 'c', 5)]
    rows = []
    for kind, subtype, id in pairs:
        for voice in voices:
            for correct in (1, 0):
                name = f'f{len(rows):03d}'
                rows.append((name, id, voice, kind, subtype, 'the cat', correct))
                seed = len(rows)
                write_wav(folder / f'{name}.wav', seed, 0.3 + 0.04 * (seed % 5))
    np.random.default_rng(0).shuffle(rows) # their order means nothing
    write_csv(folder / 'gold.csv', SYNTACTIC, rows)
    return root

def make_swuggy(root, split='dev', voices=('v1', 'v2')):
    folder = root / 'lexical' / split
    rows = []
    for i, frequency in enumerate((0, 3, 20, 100)): # the last two begin their bands
        for voice in voices:
            for correct in (0, 1):
                name = f'w{len(rows):03d}'
                rows.append((name, i, voice, frequency, 'brick', 'B R IH K', 4, correct))
                write_wav(folder / f'{name}.wav', len(rows), 0.3)
    write_csv(folder / 'gold.csv', LEXICAL, rows)
    return root

def make_numbered(folder, n=3, rate=16000, seed=0):
    for i in range(2 * n):
        kind = 'incorrect' if i % 2 else 'correct'
        write_wav(folder / f'{i}_{i // 2:04d}_{kind}.wav', seed + i, 0.3 + 0.1 * (i % 3), rate)
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
        with open(root / 'data' / f'{name}.jsonl', 'w') as f:
            for i in range(n):
                line = {'sentence_good': f'Good {name} {i}.', 'sentence_bad': f'Worse {i} {name}.', 'UID': name,
                        'field': field, 'pairID': str(i)}
                f.write(json.dumps(line) + '\n')
    return root

def make_storycloze(root):
    rows = [(f'id{i}', 'A b.', 'C d.', 'E f.', f'G {i}.', f'One {i}.', f'Two {i}.', 1 + i % 2) for i in range(3)]
    write_csv(root / 'val.csv', ['InputStoryid', *tasks.storycloze.COLUMNS], rows)
    return root

def make_parquet(root):
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet
    def sound(seed):
        path = write_wav(root / 'x.wav', seed, 0.4, 24000)
        return {'bytes': path.read_bytes(), 'path': 'x.wav'}
    for v, voice in enumerate(('sSC_af_bella', 'sSC_am_puck', 'tSC_af_bella')):
        rows = []
        for i in range(2):
            seed = 10 * v + 2 * i
            rows.append({'id': i, 'correct_text': f'Right {i}.', 'correct_audio': sound(seed),
                         'negative_text': f'Not {i}.', 'negative_audio': sound(seed + 1)})
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
    make_sblimp(bench / 'sblimp')
    make_swuggy(bench / 'swuggy')
    make_numbered(bench / 'ssc')
    make_numbered(bench / 'tsc', seed=50)
    make_cross_modal(bench / 'cross_modal')
    make_salmon(bench / 'salmon')
    make_blimp(bench / 'blimp')
    make_storycloze(bench / 'storycloze')
    for voice in ('af_bella', 'am_puck'):
        make_numbered(bench / 'ms_tsc' / voice, rate=24000, seed=len(voice))
    return root, tokenizer

# --------------------------------------------------------------------------------------------------
# scores against the slow reference

MODELS = {} # what reference has loaded

def reference(root, kind, ids, begin):
    """mean, sum, ending of log p by transformers' model, one document alone, float32."""
    if (root, kind) not in MODELS:
        MODELS[root, kind] = AutoModelForCausalLM.from_pretrained(root / kind, dtype=torch.float32).eval()
    with torch.inference_mode():
        logp = MODELS[root, kind](torch.tensor(ids)[None]).logits[0].log_softmax(-1)
    token_logp = logp[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0].double()
    scores = {'mean': token_logp.mean().item(), 'sum': token_logp.sum().item()}
    if begin is not None:
        scores['ending'] = token_logp[max(begin - 1, 0):].mean().item()
    return scores

def frames_of(audio):
    """Units of a wave's frames; a tuple's waves are joined."""
    waves = [load_audio(path) for path in audio] if isinstance(audio, tuple) else [load_audio(audio)]
    return units_of(np.concatenate(waves))

def ids_of(kind, tokenizer, direction, candidate, style):
    """(ids, where the ending begins or None) of a raw candidate, by a second implementation of the format."""
    unit_offset = 2 if kind == 'speech' else tokenizer.size
    speech = [tokenizer.size + K]
    written = [tokenizer.size + K + 1]
    def unit_ids(audio):
        return (deduplicate(frames_of(audio))[0] + unit_offset).tolist()
    def text_ids(text):
        return tokenizer.encode(text) if text else []
    prompt, prompt_audio = candidate.get('prompt', (None, None))
    ending, ending_audio = candidate.get('ending', (None, None))
    is_slamkit = style == 'slamkit' and (prompt or prompt_audio)
    blank = '' if is_slamkit else ' '
    head = []
    if kind == 'joint' and is_slamkit:
        head = {'S': speech, 'T': written}.get(direction, [])
    if direction == 'S':
        joined = candidate['joined']
        if kind == 'speech':
            return [1] + unit_ids(joined) + [1], begin_in_units(joined, prompt_audio, 1)
        return head + unit_ids(joined), begin_in_units(joined, prompt_audio, len(head))
    if direction == 'T':
        if not prompt:
            return head + text_ids(ending), None
        first = head + text_ids(prompt)
        return first + text_ids(blank + ending), len(first)
    if direction == 'S->T':
        first = speech + unit_ids(prompt_audio)
        first += written
        return first + text_ids(blank + ending), len(first) - 1
    first = written + text_ids(prompt)
    return first + speech + unit_ids(ending_audio), len(first)

def begin_in_units(joined, prompt_audio, n_head):
    """The first unit whose run ends after the context's frames; None if the context is not known."""
    if not isinstance(joined, tuple):
        return None
    run_ends = np.cumsum(deduplicate(frames_of(joined))[1])
    n_context = len(frames_of(prompt_audio))
    return n_head + next(i for i, end in enumerate(run_ends) if end > n_context)

RAW = {'sblimp': tasks.zerospeech.sblimp, 'swuggy': tasks.zerospeech.swuggy, 'ssc': tasks.storycloze.spoken,
       'ms_tsc': tasks.multispeaker.ms_tsc, 'cross_modal': tasks.multispeaker.cross_modal, 'salmon': tasks.salmon.items,
       'blimp': tasks.blimp.items, 'storycloze': tasks.storycloze.text}
DIRECTIONS = {'blimp': ['T'], 'storycloze': ['T'], 'cross_modal': ['S', 'S->T', 'T->S', 'T']}
READS = {'joint': ['S', 'S->T', 'T->S', 'T'], 'speech': ['S'], 'text': ['T']}
STYLES = {'cross_modal': ['slamkit', 'training'], 'storycloze': ['slamkit', 'training'], 'ssc': ['slamkit', 'training']}

def readable(name, kind):
    return [direction for direction in DIRECTIONS.get(name, ['S']) if direction in READS[kind]]

@pytest.mark.parametrize('name, kind, style', [
    (name, kind, style) for name in RAW for kind in READS if readable(name, kind)
    for style in STYLES.get(name, ['training'])])
def test_scores_equal_transformers_one_item_at_a_time(house, name, kind, style):
    root, tokenizer = house
    directions = readable(name, kind)
    main(Config(model=str(root / kind), tasks=name, root=str(root / 'bench'), data='', documents=style,
                cache=str(root / 'cache'), row_tokens=200, device='cpu'))
    lines = [json.loads(line) for line in open(root / kind / f'samples_{name}.jsonl')]
    samples = {(line['id'], line['direction']): line for line in lines}
    items = list(RAW[name](root / 'bench' / name))
    assert len(samples) == len(items) * len(directions)
    assert {direction for _, direction in samples} == set(directions)
    results = json.loads((root / kind / 'eval.json').read_text())['results']
    for direction in directions:
        wins = [] # per item: 1, 0, or 0.5 for a tie
        for item in items:
            line = samples[item['id'], direction]
            means = []
            for side in ('right', 'wrong'):
                ids, begin = ids_of(kind, tokenizer, direction, item[side], style)
                expected = reference(root, kind, ids, begin)
                scores = {key.removeprefix(side + '_'): value for key, value in line.items()
                          if key.startswith(side + '_') and value is not None}
                assert scores.keys() == expected.keys()
                for key, value in scores.items():
                    assert value == pytest.approx(expected[key], abs=1e-5, rel=1e-6), (item['id'], direction, key)
                means.append(expected['mean'])
            wins.append((means[0] > means[1]) + 0.5 * (means[0] == means[1]))
        for part in {part for item in items for part in item['rows']}:
            row = results['/'.join(filter(None, (name, part, direction)))]
            part_wins = [win for item, win in zip(items, wins) if part in item['rows']]
            assert row['n'] == len(part_wins)
            assert row.get('plain', row['value']) == pytest.approx(np.mean(part_wins))

# --------------------------------------------------------------------------------------------------
# layouts

def test_zerospeech_files_are_paired_by_gold_and_the_submission_has_every_file_once(house):
    root, _ = house
    main(Config(model=str(root / 'speech'), tasks='sblimp,swuggy', root=str(root / 'bench'), data='',
                cache=str(root / 'cache')))
    for part, name in (('syntactic', 'sblimp'), ('lexical', 'swuggy')):
        submission = (root / 'speech' / 'zerospeech' / part / 'dev.txt').read_text().splitlines()
        lines = [line.split(' ') for line in submission]
        stems = [path.stem for path in (root / 'bench' / name / part / 'dev').glob('*.wav')]
        assert [stem for stem, _ in lines] == sorted(stems)
        scores = {stem: float(score) for stem, score in lines}
        for sample in map(json.loads, open(root / 'speech' / f'samples_{name}.jsonl')):
            assert scores[sample['files']['right']] == sample['right_mean']
    rows = json.loads((root / 'speech' / 'eval.json').read_text())['results']
    assert rows['swuggy/dev/inter/S']['n'] == 6
    assert rows['swuggy/dev/oov/S']['n'] == 2
    assert rows['swuggy/dev/S']['types'].keys() == {'oov', '1-5', '21-100', '>100'}
    assert (rows['sblimp/dev/S']['n'], rows['sblimp/dev/S']['pairs']) == (10, 5)

def test_a_split_without_gold_is_named(tmp_path, capsys):
    root = make_sblimp(tmp_path / 'x')
    (root / 'syntactic' / 'test').mkdir()
    assert {item['split'] for item in tasks.zerospeech.sblimp(root)} == {'dev'}
    assert f"{root}/syntactic/test: no gold.csv in it, so this split is not measured" in capsys.readouterr().out

@pytest.mark.parametrize('task, make, lost', [
    (tasks.zerospeech.sblimp, make_sblimp, 'syntactic/dev/f003.wav'),
    (tasks.zerospeech.swuggy, make_swuggy, 'lexical/dev/w001.wav'),
    (tasks.storycloze.spoken, make_numbered, '3_0001_incorrect.wav'),
    (tasks.salmon.items, make_salmon, 'bg_alignment/sample_7_1.wav'),
    (tasks.multispeaker.cross_modal, make_cross_modal, 'tSC/am_puck/s1_mutual.txt')])
def test_a_missing_file_is_an_error_that_names_it(tmp_path, task, make, lost):
    root = make(tmp_path / 'x')
    list(task(root))
    (root / lost).unlink()
    name = Path(lost).name
    with pytest.raises(Refused, match='3_\\*.wav' if name.startswith('3_') else name):
        list(task(root))

@pytest.mark.parametrize('task, make, extra', [
    (tasks.zerospeech.sblimp, make_sblimp, 'syntactic/dev/zz.wav'),
    (tasks.zerospeech.swuggy, make_swuggy, 'lexical/dev/zz.wav'),
    (tasks.storycloze.spoken, make_numbered, 'zz.wav'),
    (tasks.salmon.items, make_salmon, 'bg_alignment/zz.wav'),
    (tasks.multispeaker.cross_modal, make_cross_modal, 'tSC/am_puck/zz.wav')])
def test_an_extra_file_is_an_error_that_names_it(tmp_path, task, make, extra):
    root = make(tmp_path / 'x')
    write_wav(root / extra, 0)
    with pytest.raises(Refused, match='zz.wav'):
        list(task(root))

def test_pairs_do_not_depend_on_the_order_of_the_gold_file(tmp_path):
    make_sblimp(tmp_path)
    def pairs():
        return [(item['id'], item['files']) for item in tasks.zerospeech.sblimp(tmp_path)]
    expected = pairs()
    gold = tmp_path / 'syntactic' / 'dev' / 'gold.csv'
    head, *lines = gold.read_text().splitlines()
    gold.write_text('\n'.join([head, *reversed(lines)]) + '\n')
    assert pairs() == expected

@pytest.mark.parametrize('change, message', [
    (lambda lines: lines[:-1], 'without their other half'),
    (lambda lines: [*lines, lines[-1]], 'comes twice'),
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
    with pytest.raises(Refused, match='number 2 comes twice'):
        list(tasks.storycloze.spoken(tmp_path / 'a'))
    make_numbered(tmp_path / 'b')
    (tmp_path / 'b' / '0_0000_correct.wav').rename(tmp_path / 'b' / '0_0000_incorrect.wav')
    with pytest.raises(Refused, match='an even number is a right story'):
        list(tasks.storycloze.spoken(tmp_path / 'b'))

def test_stories_are_in_order_of_number_not_of_name(tmp_path):
    make_numbered(tmp_path, n=6)
    items = list(tasks.storycloze.spoken(tmp_path))
    assert items[1]['right']['joined'].name == '2_0001_correct.wav'
    assert items[1]['wrong']['joined'].name == '3_0001_incorrect.wav'
    assert items[5]['right']['joined'].name == '10_0005_correct.wav'

def test_parquet_of_the_hub_gives_its_own_task_with_text_and_audio(tmp_path, house):
    root, _ = house
    items = list(tasks.multispeaker.ms_ssc(make_parquet(tmp_path / 'ms')))
    assert [i['rows'] for i in items] == 2 * [('all', 'sSC_af_bella')] + 2 * [('all', 'sSC_am_puck')]
    assert len(list(tasks.multispeaker.ms_tsc(tmp_path / 'ms'))) == 2
    main(Config(model=str(root / 'joint'), tasks='ms_ssc', where=f'ms_ssc={tmp_path}/ms', data='',
                cache=str(tmp_path / 'cache')))
    evaluation = json.loads((root / 'joint' / 'eval.json').read_text())
    assert {'ms_ssc/all/S', 'ms_ssc/sSC_am_puck/S', 'ms_ssc/all/T'} <= evaluation['results'].keys()
    assert evaluation['tasks']['ms_ssc']['audio'] == 8
    assert evaluation['tasks']['ms_ssc']['resampled'] == 8 # 24 kHz

def test_a_story_of_the_hub_without_audio_is_refused_by_name(tmp_path):
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet
    row = {'id': 'x7', 'correct_text': 'a', 'correct_audio': {'bytes': b'', 'path': 'gone.wav'}, 'negative_text': 'b',
           'negative_audio': {'bytes': b'1', 'path': ''}}
    pyarrow.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / 'a.parquet')
    with pytest.raises(Refused, match='story x7 has no text or no audio'):
        list(tasks.multispeaker.ms_ssc(tmp_path))

def test_a_voice_that_lacks_a_story_is_refused(tmp_path):
    make_numbered(tmp_path / 'a', 3)
    make_numbered(tmp_path / 'b', 2)
    with pytest.raises(Refused, match='b lacks 1 stories that others have: 2'):
        list(tasks.multispeaker.ms_ssc(tmp_path))

def test_salmon_has_all_eight_parts_or_says_which_are_missing(tmp_path):
    make_salmon(tmp_path)
    assert len(tasks.salmon.PARTS) == 8
    assert {item['rows'][0] for item in tasks.salmon.items(tmp_path)} == set(tasks.salmon.PARTS)
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

@pytest.mark.parametrize('text, message', [
    ('1,A.,B.,C.,D.,It caf\xe9.,F.,1', 'val.csv:3: not UTF-8'),
    ('1,"A.,B.,C.,D.,E.,F.,1', 'val.csv:3: a quotation mark does not close'),
    ('1,A.,B.,C.,D.,E.,' + 'F' * 140_000 + ',1', 'val.csv:3: field larger than'),
    ('1,A., ,C.,D.,E.,F.,1', 'val.csv:3: expected every column filled'),
    ('1,A.,B.,C.,D.,E.,1', 'val.csv:3: 7 cells, the header has 8')])
def test_a_csv_that_is_not_whole_is_refused_by_its_line(tmp_path, text, message):
    header = ','.join(['InputStoryid', *tasks.storycloze.COLUMNS])
    rows = [header, '0,A.,B.,C.,D.,E.,F.,2', text, '2,A.,B.,"C.,D.,E.,F.,1']
    (tmp_path / 'val.csv').write_text('\r\n'.join(rows), encoding='cp1252', newline='')
    with pytest.raises(Refused, match=message):
        list(tasks.storycloze.text(tmp_path))

def test_hidden_files_are_no_items_and_linked_voices_are(tmp_path):
    """What macOS, Jupyter and git leave in folders; voices that lie elsewhere."""
    for voice, seed in (('a', 0), ('b', 9)):
        make_numbered(tmp_path / 'voices' / voice, seed=seed)
    (tmp_path / 'linked').mkdir()
    for voice in ('a', 'b'):
        (tmp_path / 'linked' / voice).symlink_to(tmp_path / 'voices' / voice)
    make_cross_modal(tmp_path / 'cm')
    (tmp_path / 'cm_linked').symlink_to(tmp_path / 'cm')
    benchmarks = [
        (tasks.storycloze.spoken, make_numbered(tmp_path / 'ssc')), (tasks.multispeaker.ms_ssc, tmp_path / 'linked'),
        (tasks.multispeaker.cross_modal, tmp_path / 'cm_linked'),
        (tasks.salmon.items, make_salmon(tmp_path / 'salmon')),
        (tasks.zerospeech.sblimp, make_sblimp(tmp_path / 'zs')), (tasks.blimp.items, make_blimp(tmp_path / 'blimp')),
        (tasks.storycloze.text, make_storycloze(tmp_path / 'text'))]
    before = [list(task(root)) for task, root in benchmarks]
    assert all(before)
    for path in sorted(tmp_path.rglob('*')):
        if path.is_file():
            path.with_name(f'._{path.name}').write_bytes(b'Mac OS X')
            (path.parent / '.ipynb_checkpoints').mkdir(exist_ok=True)
            (path.parent / '.ipynb_checkpoints' / path.name).write_bytes(path.read_bytes())
    assert [list(task(root)) for task, root in benchmarks] == before

def test_right_is_what_the_benchmark_says_is_right(tmp_path):
    cases = [(tasks.zerospeech.sblimp, make_sblimp, 'syntactic'), (tasks.zerospeech.swuggy, make_swuggy, 'lexical')]
    for task, make, part in cases:
        root = make(tmp_path / part)
        gold = {row['filename']: row for row in csv.DictReader(open(root / part / 'dev' / 'gold.csv'))}
        for item in task(root):
            right = gold[item['right']['joined'].stem]
            wrong = gold[item['wrong']['joined'].stem]
            assert (right['correct'], wrong['correct']) == ('1', '0')
            assert (right['voice'], right['id']) == (wrong['voice'], wrong['id'])
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
        collection, voice, name = item['id'].split('/')
        context = root / collection / voice / f'{name}_mutual.wav'
        for side, part in (('right', 'correct'), ('wrong', 'incorrect')):
            ending = context.with_name(f'{name}_{part}.wav')
            assert item[side] == {'prompt': (f'mutual {name[1]}.', context), 'ending': (f'{part} {name[1]}.', ending),
                                  'joined': (context, ending)}
        assert item['rows'] == (collection, f'{collection}/{voice}')

# --------------------------------------------------------------------------------------------------
# eval.py over tasks

def test_all_measures_what_is_there_and_names_what_is_not(house, tmp_path, capsys):
    root, _ = house
    folder = str(root / 'text')
    main(Config(model=folder, tasks='all', root=str(root / 'bench'), data='', items='', cache=str(root / 'cache')))
    out = capsys.readouterr().out
    assert 'ms_ssc was not measured: no' in out
    assert 'sblimp was not measured: nothing that a text model reads' in out
    evaluation = json.loads((root / 'text' / 'eval.json').read_text())
    assert {'blimp/all/T', 'blimp/syntax/T', 'storycloze/T', 'cross_modal/sSC/T'} <= evaluation['results'].keys()
    assert 'no ' in evaluation['tasks']['ms_ssc']['not measured']
    assert evaluation['results']['blimp/all/T']['types'].keys() == {'adjunct_island', 'wh_questions', 'plurals'}
    blimp = evaluation['tasks']['blimp']
    assert blimp['settings']['tasks'] == 'all'
    documents = {name: evaluation['tasks'][name]['documents'] for name in ('cross_modal', 'storycloze', 'blimp')}
    assert documents == {'cross_modal': 'slamkit', 'storycloze': 'training', 'blimp': SAME}
    assert 'commit' in blimp
    assert evaluation['model'].keys() == {'model.safetensors'}

def test_audio_is_encoded_once_whatever_its_name_and_anew_when_damaged(house, tmp_path, capsys):
    root, _ = house
    make_numbered(tmp_path / 'ssc')
    cfg = Config(model=str(root / 'speech'), tasks='ssc', root=str(tmp_path), data='', cache=str(tmp_path / 'cache'))
    main(cfg)
    first = json.loads((root / 'speech' / 'eval.json').read_text())['results']
    assert Ear.encoded == 6
    (tmp_path / 'ssc' / '0_0000_correct.wav').rename(tmp_path / 'ssc' / '0_renamed.wav')
    main(cfg)
    assert Ear.encoded == 6
    assert json.loads((root / 'speech' / 'eval.json').read_text())['results'] == first
    write_wav(tmp_path / 'ssc' / '1_0000_incorrect.wav', 99) # other content
    main(cfg)
    assert Ear.encoded == 7
    cached = sorted((tmp_path / 'cache').rglob('*.safetensors'))
    for path in cached:
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
    capsys.readouterr()
    main(cfg)
    assert Ear.encoded == 13
    assert capsys.readouterr().out.count('damaged, removed') == len(cached)

def test_units_of_another_encoder_are_refused_before_any_is_used(house, tmp_path, monkeypatch):
    root, _ = house
    monkeypatch.setattr(Ear, 'hash', 'other')
    make_numbered(tmp_path / 'ssc')
    with pytest.raises(Refused, match='its units are other, the model was trained on abc'):
        main(Config(model=str(root / 'speech'), tasks='ssc', root=str(tmp_path), data='',
                    cache=str(tmp_path / 'cache')))

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
    def read(name='eval.json'):
        return json.loads((tmp_path / 'model' / name).read_text())
    main(Config(**cfg, tasks='blimp'))
    first = read()['results']
    main(Config(**cfg, tasks='storycloze')) # another task: added
    assert read()['results'].items() >= first.items()
    assert not (tmp_path / 'model' / 'eval.1.json').exists()
    main(Config(**cfg, tasks='blimp', max_items=1)) # the same task measured otherwise: the old file stays
    assert read('eval.1.json')['results'].items() >= first.items()
    assert read()['results']['blimp/all/T']['n'] == 3
    assert 'storycloze/T' in read()['results']
    assert len(open(tmp_path / 'model' / 'samples_blimp.1.jsonl').readlines()) == 9
    make_model(tmp_path / 'model', root / 'tokenizer', 'text', seed=1) # new weights: nothing of the old is carried on
    main(Config(**cfg, tasks='storycloze'))
    assert read()['results'].keys() == {'storycloze/T'}
    assert 'blimp/all/T' in read('eval.2.json')['results']

def test_rows_of_both_styles_are_never_side_by_side(house, tmp_path):
    root, _ = house
    make_model(tmp_path / 'model', root / 'tokenizer', 'text')
    cfg = {'model': str(tmp_path / 'model'), 'root': str(root / 'bench'), 'data': '', 'tasks': 'storycloze,cross_modal'}
    main(Config(**cfg, documents='training'))
    main(Config(**{**cfg, 'tasks': 'storycloze'}, documents='slamkit', out=str(tmp_path / 'out.json')))
    evaluation = json.loads((tmp_path / 'model' / 'eval.json').read_text())
    assert evaluation['tasks']['cross_modal']['documents'] == 'training'
    assert evaluation['tasks']['storycloze']['documents'] == 'slamkit'
    old = json.loads((tmp_path / 'model' / 'eval.1.json').read_text())
    assert old['tasks']['storycloze']['documents'] == 'training'
    assert old['results']['storycloze/T'] != evaluation['results']['storycloze/T']
    styles = json.loads((tmp_path / 'out.json').read_text())['documents']
    assert styles == {cfg['model']: {'storycloze': 'slamkit'}}

@pytest.mark.parametrize('settings, message', [
    ({'tasks': 'sblimb'}, "no task 'sblimb'; there are tiny, knowledge, sblimp"),
    ({'where': 'x=y', 'tasks': 'blimp'}, "no task 'x'"),
    ({'tasks': 'blimp', 'documents': 'bos'}, "documents is 'bos', expected slamkit, training"),
    ({'tasks': 'blimp', 'root': '/nowhere'},
     "/nowhere/blimp: no such folder; blimp's data as unpacked is expected there"),
    ({'tasks': 'blimp', 'bos': True}, "names no bos_token_id")])
def test_bad_settings_are_one_line(house, settings, message):
    root, _ = house
    with pytest.raises(Refused, match=message):
        main(Config(**{'model': str(root / 'text'), 'root': str(root / 'bench'), 'data': '', **settings}))

def test_tiny_stays_beside_other_tasks(house, tmp_path):
    root, _ = house
    names = ('context', 'right', 'wrong', 'topic', 'context+right', 'context+wrong', 'context+topic')
    make_units(tmp_path / 'items', {f'm00000/{name}': ('x y', [1, 2, 3 + i]) for i, name in enumerate(names)})
    main(Config(model=str(root / 'joint'), tasks='tiny,storycloze', root=str(root / 'bench'), data='',
                items=str(tmp_path / 'items')))
    rows = json.loads((root / 'joint' / 'eval.json').read_text())['results']
    assert {'tiny/main/ssc/S->T', 'tiny/main/tsc/S', 'storycloze/T'} <= rows.keys()

def test_a_text_lm_of_hugging_face_is_measured_whatever_its_vocab_json(house, tmp_path):
    root, _ = house
    make_model(tmp_path / 'model', root / 'tokenizer', 'text')
    cfg = Config(model=str(tmp_path / 'model'), tasks='blimp', root=str(root / 'bench'), data='')
    main(cfg)
    expected = json.loads((tmp_path / 'model' / 'eval.json').read_text())['results']
    for vocab in (None, json.dumps({'kind': 7, 'a': 0})): # none, or the tokenizer's own
        (tmp_path / 'model' / 'vocab.json').unlink()
        if vocab:
            (tmp_path / 'model' / 'vocab.json').write_text(vocab)
        (tmp_path / 'model' / 'eval.json').unlink()
        main(cfg)
        assert json.loads((tmp_path / 'model' / 'eval.json').read_text())['results'] == expected
        (tmp_path / 'model' / 'vocab.json').write_text('{')
    with pytest.raises(Refused, match='vocab.json: not JSON'):
        main(cfg)
    make_model(tmp_path / 'joint', root / 'tokenizer', 'joint')
    (tmp_path / 'joint' / 'vocab.json').unlink() # its tokenizer says which ids are units, and nothing whose
    main(Config(**{**cfg.__dict__, 'model': str(tmp_path / 'joint')}))
    with pytest.raises(Refused, match='an encoder that its folder does not name'):
        main(Config(**{**cfg.__dict__, 'model': str(tmp_path / 'joint'), 'tasks': 'ssc'}))
