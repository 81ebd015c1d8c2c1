"""Verdicts follow from the runs by the rules of papers/claims.py: known differences are found, known noise is not, gaps are named."""
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from configurator import Refused
from eval import Config as EvalConfig
from files import write_json
from papers import claims
from papers.claims import ARMS, SSC, TEXTS, TSC, TSC_UNSEEN, Config, judge
from papers.report import main as report
from scaling import plan
from scaling.models import SHAPES, models_of

ROOT = Path(__file__).parents[1]

BEST = {'textless': 2.5e5} # N_opt without the table; of other arms 8e5

def loss_of(arm, size, C, rng):
    """What a made run ends with: the papers' ways, but that scratch overtakes TWIST, and that synthetic speech alone does as
    well as the mixture, give or take."""
    start = {'textless': 0.5, 'scratch': 0.4, 'speech': -0.05, 'weak': 0.1, 'weak-speech': 0.1, 'long': -0.1}.get(arm, 0)
    slope = {'textless': 0.10, 'scratch': 0.30}.get(arm, 0.15)
    *_, width, _, rows, _, N, _ = SHAPES[f'tiny/{size}']
    N, best = N - rows * width, BEST.get(arm, 8e5)
    return 3 + start * (1e12 / C) ** 0.05 - slope * np.log(C / 1e12) + 0.05 * np.log(N / best) ** 2 + 1e-3 * rng.standard_normal()

def write_runs(out, skip=lambda row: False):
    rng = np.random.default_rng(0)
    for name, (size, _) in TEXTS.items():
        folder = out / f'text-{name}'
        folder.mkdir(parents=True)
        _, shape, _ = models_of('tiny', size, vocab='text')[size]
        write_json(folder / 'config.json', shape.to_hf('float32'))
        loss = {'weak': 4.0, 'talk': 6.0, 'long': 0.8}.get(name, 1.2)
        write_json(folder / 'eval.json', {'results': {'loss/stories/text/text': {'value': loss}}})
    for row in claims.slm_rows(Config(out=str(out))):
        if row['why_not'] or skip(row):
            continue
        folder = Path(row['out_dir'])
        folder.mkdir(parents=True)
        loss = loss_of(row['arm'], row['size'], row['flops'], rng)
        settings = plan.as_saved(plan.settings_of(row['train']))
        write_json(folder / 'settings.json', {'settings': settings, 'parameters': row['N'], 'steps': row['steps'], 'commit': 'abc',
                                              'inputs': {'weights of init': plan.hash_of_init(settings['init'])}})
        corpus = 'talk' if row['arm'] == 'diverse' else 'stories'
        (folder / 'log.jsonl').write_text(json.dumps({'step': row['steps'], 'val': {f'{corpus}/speech': {'speech': loss}}}) + '\n')
        unseen = {'mixed': -1.0, 'diverse': -2.0, 'synthetic': -1.0}.get(row['arm'], -1.5) + 0.01 * (-1) ** (row['seed'] + (row['arm'] == 'mixed'))
        (folder / 'samples_tiny.jsonl').write_text('\n'.join(json.dumps(
            {'rows': [rows], 'direction': 'S', 'right_mean': mean}) for rows, mean in (('unseen/ssc', unseen), ('main/ssc', 0))))
        scores = {TSC: 0.5 + (3 - loss) / 4, TSC_UNSEEN: 0.5 + 0.01 * rng.standard_normal(), SSC: 0.5}
        write_json(folder / 'eval.json', {'results': {name: {'value': value, 'stderr': 0.02} for name, value in scores.items()},
                                          'tasks': {'tiny': {'settings': plan.as_saved(plan.settings_of(row['eval'], EvalConfig))}}})

def examined(out, capsys):
    report(Config(out=str(out), start=str(out / 'start')))
    found = json.loads((out / 'claims.json').read_text())['findings']
    return {(i, part['part']): part for i, finding in enumerate(found, 1) for part in finding['parts']}, capsys.readouterr().out

@pytest.fixture
def out(tmp_path, monkeypatch):
    (tmp_path / 'config').symlink_to(ROOT / 'config')
    monkeypatch.chdir(tmp_path) # where there are no shards: all runs are feasible
    plan.hash_of_init.cache_clear()
    (tmp_path / 'start').mkdir()
    write_json(tmp_path / 'start' / 'eval.json', {'results': {SSC: {'value': 0.55, 'stderr': 0.02}, TSC: {'value': 0.8, 'stderr': 0.02}}})
    return tmp_path

def test_known_differences_are_found_and_noise_is_not(out, capsys):
    write_runs(out)
    for seed, after in enumerate((0.51, 0.52, 0.515)): # preferences made it worse
        (out / f'dpo-{seed}').mkdir()
        write_json(out / f'dpo-{seed}' / 'eval.json', {'results': {SSC: {'value': after, 'stderr': 0.02},
                                                                   TSC: {'value': 1.36 - after, 'stderr': 0.02}}})
    parts, said = examined(out, capsys)
    verdicts = {name: part['verdict'] for name, part in parts.items()}
    late = 12 ** -0.05 # of what an arm starts with, at 1.2e13 FLOPs
    for name, mean, off, verdict in (
            ((1, 'loss, at the most compute'), 0.5 * late + 0.05 * np.log(12), 0.02, 'reproduced'),
            ((1, 'ln N_opt at equal compute'), np.log(8e5 / 2.5e5), 0.2, 'reproduced'),
            ((2, 'loss, at the most compute'), 0.4 * late - 0.15 * np.log(12), 0.005, 'contradicted'),
            ((3, 'loss: speech only is no worse, at the most compute'), 0.05 * late, 0.005, 'reproduced'),
            ((3, 'tSC, at the most compute'), -100 * 0.05 * late / 4, 0.2, 'contradicted'),
            ((5, 'loss, from the good TextLM over the weak one'), 0.1 * late, 0.005, 'reproduced'),
            ((5, 'loss, from one trained twice as long over the good one'), 0.1 * 4 ** -0.05, 0.005, 'reproduced'),
            ((6, 'sSC, after DPO over before'), -3.5, 0.01, 'contradicted'),
            ((6, 'tSC, after DPO over before'), 4.5, 0.01, 'reproduced')):
        assert (parts[name]['mean'], verdicts[name]) == (pytest.approx(mean, abs=off), verdict), name
    assert verdicts[1, 'loss, exponent over compute'] == 'reproduced' # slopes of 0.15 against 0.10
    assert verdicts[2, 'the gap in loss shrinks, per ln C'] == 'reproduced'
    assert verdicts[3, 'tSC: gain from the good TextLM over that from the weak one'] == 'contradicted'
    assert verdicts[4, 'loss in the unseen voice, over diverse alone'] == 'reproduced'
    assert verdicts[4, 'loss in the unseen voice, over synthetic alone'] == 'not decidable'
    assert verdicts[5, 'loss, from one of other text over the weak one, which models the stories better'] == 'reproduced'
    assert parts[4, 'tSC in the unseen voice, over diverse alone']['why'].startswith('at chance, ')
    assert '### 6. Preferences raise sSC' in said and '**contradicted**' in said
    assert (out / 'claims.png').stat().st_size > 10_000
    with open(out / 'runs.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert {row['arm'] for row in rows} == set(ARMS) and {row['seed'] for row in rows} == {'0', '1', '2'}

def test_missing_runs_leave_a_part_open_or_lower_its_budget(out, capsys):
    write_runs(out, lambda row: row['arm'] == 'speech' or row['flops'] > 4e12 or (row['arm'], row['seed']) == ('diverse', 1))
    parts, said = examined(out, capsys)
    assert parts[3, 'tSC, at the most compute']['verdict'] == 'not decidable'
    assert parts[3, 'tSC, at the most compute']['why'] == 'no budget is finished for interleaved, speech'
    assert parts[4, 'loss in the unseen voice, over diverse alone']['why'] == 'no budget is finished for mixed, diverse'
    assert parts[4, 'loss in the unseen voice, over synthetic alone']['verdict'] == 'not decidable'
    assert 'mean' in parts[2, 'the gap in loss shrinks, per ln C'] # three budgets are left for a slope
    assert parts[6, 'sSC, after DPO over before']['why'] == '0 of 3 runs of dpo.py are finished'
    assert ' runs are finished' in said

def test_a_budget_whose_best_size_lacks_data_does_not_count(out, capsys, monkeypatch):
    monkeypatch.setattr(plan, 'tokens_there', lambda cfg, base: 2e6 if base.vocab == 'speech' else 1e9)
    write_runs(out) # textless: 0.25M reads 16M tokens at 1.2e13 FLOPs, 0.5M 5.8M
    runs = claims.Runs(claims.slm_rows(Config(out=str(out))), {})
    assert [C for C, _ in runs.grid('interleaved', 'textless')] == [1e12, 2e12, 4e12]
    assert runs.grid('interleaved', 'textless')[-1][1] == {'interleaved': ['0.25M', '0.5M', '1M', '2.8M'],
                                                           'textless': ['0.25M', '0.5M', '1M', '2.8M']}
    monkeypatch.setitem(BEST, 'textless', 9e5) # the best is not the smallest that is left
    shutil.rmtree(out / 'textless')
    for text in out.glob('text-*'):
        shutil.rmtree(text)
    write_runs(out, lambda row: row['arm'] != 'textless')
    runs = claims.Runs(claims.slm_rows(Config(out=str(out))), {})
    C, sizes = runs.grid('interleaved', 'textless')[-1]
    assert C == 1.2e13 and sizes['textless'][0] == '0.5M' and sizes['interleaved'][0] == '0.25M'

def test_runs_of_other_settings_are_not_reported(out):
    write_runs(out, lambda row: row['arm'] != 'scratch')
    path = next((out / 'scratch').glob('*-1e12-s0/settings.json'))
    path.write_text(path.read_text().replace('"lr": 0.002', '"lr": 0.001'))
    with pytest.raises(Refused, match='trained with lr=0.001, not 0.002'):
        report(Config(out=str(out), start=str(out / 'start')))

def test_the_verdict_is_student_s_interval():
    found = judge(np.array([1.0, 2.0, 3.0])) # 2 +- 4.303 / sqrt(3)
    assert (found['mean'], found['low'], found['high']) == pytest.approx((2.0, -0.4843, 4.4843), abs=1e-3)
    assert found['verdict'] == 'not decidable'
    assert judge(np.array([1.0, 1.1, 1.2]))['verdict'] == 'reproduced'
    assert judge(-np.array([1.0, 1.1, 1.2]))['verdict'] == 'contradicted'

def test_every_arm_is_a_plan_that_train_py_takes(out):
    write_runs(out, lambda row: True)
    rows = claims.slm_rows(Config(out=str(out)))
    assert {row['arm'] for row in rows} == set(ARMS)
    assert [row['flops'] for row in rows] == sorted(row['flops'] for row in rows)
    few = plan.settings_of(next(row['train'] for row in rows if row['arm'] == 'mixed'))
    assert few.sources == ('speech', 'interleaved') and few.data.count(',') == 1 and few.init.endswith('text-1M')
    alone = plan.settings_of(next(row['train'] for row in rows if row['arm'] == 'speech'))
    assert alone.sources == ('textless',) and alone.vocab == 'speech' and alone.init.endswith('text-1M')
