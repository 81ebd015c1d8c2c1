"""Verdicts follow from the runs by the rules of findings.py: known differences are found, known noise is not, gaps are named."""
import csv
import json
from pathlib import Path

import numpy as np
import pytest

import findings
import suite
from configurator import write_json
from findings import ARMS, SSC, TEXTS, TSC, TSC_UNSEEN, Config, judge

ROOT = Path(__file__).parents[1]

def loss_of(arm, N, C, rng):
    """What a made run ends with: the papers' ways, but that synthetic speech alone does as well as the mixture, give or take."""
    start = {'textless': 0.5, 'scratch': 0.4, 'weak': 0.1, 'weak-speech': 0.1, 'long': -0.1}.get(arm, 0)
    slope = {'textless': 0.10, 'scratch': 0.30}.get(arm, 0.15)
    best = 3e5 if arm == 'textless' else 1e6 # N_opt
    return 3 + start * (1e12 / C) ** 0.05 - slope * np.log(C / 1e12) + 0.05 * np.log(N / best) ** 2 + 1e-3 * rng.standard_normal()

def write_runs(out, skip=lambda row: False):
    rng = np.random.default_rng(0)
    for name, (size, _) in TEXTS.items():
        folder = out / f'text-{name}'
        folder.mkdir(parents=True)
        _, shape, _ = suite.models_of('tiny', size, vocab='text')[size]
        write_json(folder / 'config.json', shape.to_hf('float32'))
        loss = {'weak': 4.0, 'talk': 6.0, 'long': 0.8}.get(name, 1.2)
        write_json(folder / 'eval.json', {'results': {'loss/stories/text/text': {'value': loss}}})
    for row in findings.slm_rows(Config(out=str(out))):
        if row['why_not'] or skip(row):
            continue
        folder = Path(row['out_dir'])
        folder.mkdir(parents=True)
        loss = loss_of(row['arm'], row['N'], row['flops'], rng)
        write_json(folder / 'settings.json', {'settings': {'batch_tokens': 2048}, 'parameters': row['N'], 'steps': row['steps']})
        corpus = 'talk' if row['arm'] == 'diverse' else 'stories'
        (folder / 'log.jsonl').write_text(json.dumps({'step': row['steps'], 'val': {f'{corpus}/speech': {'speech': loss}}}) + '\n')
        unseen = {'mixed': -1.0, 'diverse': -2.0, 'synthetic': -1.0}.get(row['arm'], -1.5) + 0.01 * (-1) ** (row['seed'] + (row['arm'] == 'mixed'))
        (folder / 'samples_tiny.jsonl').write_text('\n'.join(json.dumps(
            {'rows': [rows], 'direction': 'S', 'right_mean': mean}) for rows, mean in (('unseen/ssc', unseen), ('main/ssc', 0))))
        scores = {TSC: 0.5 + (3 - loss) / 4, TSC_UNSEEN: 0.5 + 0.01 * rng.standard_normal(), SSC: 0.5}
        write_json(folder / 'eval.json', {'results': {name: {'value': value, 'stderr': 0.02} for name, value in scores.items()}})

def examined(out, capsys):
    findings.report(Config(out=str(out), start=str(out / 'start')))
    found = json.loads((out / 'findings.json').read_text())['findings']
    return {part['part']: part for finding in found for part in finding['parts']}, capsys.readouterr().out

@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / 'start').mkdir()
    write_json(tmp_path / 'start' / 'eval.json', {'results': {SSC: {'value': 0.55, 'stderr': 0.02}}})
    return tmp_path

def test_known_differences_are_found_and_noise_is_not(out, capsys):
    write_runs(out)
    for seed, after in enumerate((0.51, 0.52, 0.515)): # preferences made it worse
        (out / f'dpo-{seed}').mkdir()
        write_json(out / f'dpo-{seed}' / 'eval.json', {'results': {SSC: {'value': after, 'stderr': 0.02}}})
    parts, said = examined(out, capsys)
    verdicts = {name: part['verdict'] for name, part in parts.items()}
    assert verdicts['loss, exponent over compute'] == 'reproduced' # slopes of 0.15 against 0.10
    assert verdicts['ln N_opt at equal compute'] == 'reproduced'
    assert parts['ln N_opt at equal compute']['mean'] == pytest.approx(np.log(1e6 / 3e5), abs=0.3)
    assert verdicts['the gap in loss shrinks, per ln C'] == 'reproduced'
    assert verdicts['loss in the unseen voice, over diverse alone'] == 'reproduced'
    assert verdicts['loss in the unseen voice, over synthetic alone'] == 'not decidable'
    assert verdicts['loss, from one of other text over the weak one, which models the stories better'] == 'reproduced'
    assert parts['loss, from the good TextLM over the weak one']['mean'] == pytest.approx(0.1 * 40 ** -0.05, abs=0.01)
    assert parts['tSC in the unseen voice, over diverse alone']['why'].startswith('at chance, ')
    assert verdicts['sSC, after DPO over before'] == 'contradicted'
    assert parts['sSC, after DPO over before']['mean'] == pytest.approx(-3.5)
    assert '### 6. Preferences raise sSC' in said and '**contradicted**' in said
    assert (out / 'findings.png').stat().st_size > 10_000
    with open(out / 'runs.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert {row['arm'] for row in rows} == set(ARMS) and {row['seed'] for row in rows} == {'0', '1', '2'}

def test_missing_runs_leave_a_part_open_or_lower_its_budget(out, capsys):
    write_runs(out, lambda row: row['arm'] == 'speech' or row['flops'] > 4e12 or (row['arm'], row['seed']) == ('diverse', 1))
    parts, said = examined(out, capsys)
    assert parts['tSC, at the most compute']['verdict'] == 'not decidable' # finding 3's, the last of that name
    assert parts['tSC, at the most compute']['why'] == 'no budget is finished for interleaved, speech'
    assert parts['loss in the unseen voice, over diverse alone']['why'] == 'no budget is finished for mixed, diverse'
    assert parts['loss in the unseen voice, over synthetic alone']['verdict'] == 'not decidable'
    assert 'mean' in parts['the gap in loss shrinks, per ln C'] # three budgets are left for a slope
    assert parts['sSC, after DPO over before']['why'] == '0 of 3 runs of dpo.py are finished'
    assert ' runs are finished' in said

def test_the_verdict_is_student_s_interval():
    found = judge(np.array([1.0, 2.0, 3.0])) # 2 +- 4.303 / sqrt(3)
    assert (found['mean'], found['low'], found['high']) == pytest.approx((2.0, -0.4843, 4.4843), abs=1e-3)
    assert found['verdict'] == 'not decidable'
    assert judge(np.array([1.0, 1.1, 1.2]))['verdict'] == 'reproduced'
    assert judge(-np.array([1.0, 1.1, 1.2]))['verdict'] == 'contradicted'

def test_every_arm_is_a_plan_that_train_py_takes(out):
    write_runs(out, lambda row: True)
    rows = findings.slm_rows(Config(out=str(out)))
    assert {row['arm'] for row in rows} == set(ARMS)
    assert [row['flops'] for row in rows] == sorted(row['flops'] for row in rows)
    few = suite.settings_of(next(row['train'] for row in rows if row['arm'] == 'mixed'))
    assert few.sources == ('speech', 'interleaved') and few.data.count(',') == 1 and few.init.endswith('text-1M')
    alone = suite.settings_of(next(row['train'] for row in rows if row['arm'] == 'speech'))
    assert alone.sources == ('textless',) and alone.vocab == 'speech' and alone.init.endswith('text-1M')
