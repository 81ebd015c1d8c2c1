"""papers/turn.py: a known turn is found by the rules, noise is not, and what is published is not run again."""
import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from configurator import Refused
from eval import Config as EvalConfig
from files import write_json
from papers import turn
from papers.turn import ARMS, BUDGETS, LOSS, METRICS, SIZES, Config, Result, Study
from papers.turn_report import main as report
from scaling import plan
from scaling.models import models_of

ROOT = Path(__file__).parents[1]

TURN = 5e13 # FLOPs, where the loss of interleaved falls below that of textless
BEST = {1e13: '1M', 3e13: '1M', 8e13: '2.8M', 2e14: '2.8M'}
TSC_AHEAD = {1e13: -0.05, 3e13: -0.03, 8e13: 0.0, 2e14: 0.04} # of interleaved

def scores_of(row, rng):
    """The scores of a synthetic run: interleaved overtakes at TURN, scratch is always worse, sSC is at chance."""
    C = row['flops']
    arm = row['arm']
    loss = 2 - 0.1 * math.log(C / 1e13) + 0.03 * (row['size'] != BEST[C]) + 0.002 * rng.standard_normal()
    if arm in ('textless', 'speech'):
        loss += 0.1 * math.log(C / TURN)
    if arm == 'scratch':
        loss += 0.5
    ahead = TSC_AHEAD[C] if arm == 'interleaved' else 0
    scores = {name: 0.5 + 0.002 * rng.standard_normal() for name in METRICS[1:]}
    scores['tiny/main/tsc/S'] = 0.8 + ahead + 0.004 * rng.standard_normal()
    return scores | {LOSS: loss}

def result_of(row, rng):
    scores = scores_of(row, rng)
    units = row['tokens'] * (1.0 if 'vocab=speech' in ' '.join(row['train']) else 0.5)
    return Result(row['arm'], row['flops'], row['size'], row['seed'], row['N'], row['tokens'], units, 1.0, 'abc',
                  turn.settings_hash(row), scores, {name: 0.015 for name in METRICS[1:]})

@pytest.fixture
def out(tmp_path, monkeypatch):
    (tmp_path / 'config').symlink_to(ROOT / 'config')
    monkeypatch.chdir(tmp_path) # where there are no shards
    plan.hash_of_init.cache_clear()
    for size in {size for sizes in SIZES.values() for size in sizes}:
        folder = tmp_path / f'text-{size}'
        folder.mkdir()
        write_json(folder / 'config.json', models_of('tiny', size, vocab='text')[size].config.to_hf('float32'))
    return tmp_path

def finish(out, steps=1000):
    """Finishes what comes next, so many times at most -> (the Config, how many runs)."""
    rng = np.random.default_rng(0)
    cfg = Config(out=str(out), known=str(out / 'known.csv'))
    results = []
    for _ in range(steps):
        turn.write_csv(cfg.known, results)
        todo = Study(cfg).todo
        if not todo:
            break
        results += [result_of(row, rng) for row in todo]
    turn.write_csv(cfg.known, results)
    return cfg, len(results)

def test_a_known_turn_is_found_and_chance_is_not_called_a_difference(out, capsys):
    cfg, n = finish(out)
    report(cfg)
    printed = capsys.readouterr().out
    result = json.loads((out / 'turn.json').read_text())
    # Two arms with a size of their own: the first seed at every size and two others; then 2 arms and 2 kinds of spans.
    assert n == 2 * (sum(map(len, SIZES.values())) + 2 * 4) + 2 * 3 * 3 + 2 * 3
    assert {arm: {C: size for C, (size, _, _) in sizes.items()} for arm, sizes in result['optima'].items()} == {
        arm: {str(C): BEST[C] for C in BUDGETS} for arm in ('interleaved', 'textless')}
    over_textless = result['interleaved over textless']
    loss = over_textless[LOSS]['turn']
    assert (loss['from'], loss['to']) == (3e13, 8e13)
    assert loss['crossing'] == pytest.approx(TURN, rel=0.1)
    tsc = over_textless['tiny/main/tsc/S']['turn']
    assert (tsc['from'], tsc['to']) == (3e13, 2e14) # at 8e13 nothing is decided
    assert [row['sign'] for row in over_textless['tiny/main/ssc/S']['gains']] == [0, 0, 0, 0]
    assert all(row['why'].startswith('at chance') for row in over_textless['tiny/main/ssc/S']['gains'])
    scratch = result['interleaved over scratch'][LOSS]
    assert scratch['turn'] == {'from': None, 'to': 1e13, 'crossing': None}
    assert scratch['gains'][0]['mean'] == pytest.approx(0.5, abs=0.01)
    assert '3e+13 to 8e+13; the means cross at' in printed
    assert (out / 'turn.png').stat().st_size > 10_000
    # Interleaved has read half as many units as textless, that is, as many as textless at half the compute.
    equal = result['interleaved over textless, equal units'][LOSS]
    assert [row['C'] for row in equal] == list(BUDGETS[1:])
    # That of textless does not depend on compute, as its law adds what the compute gives.
    assert equal[0]['mean'] == pytest.approx(-0.1 * math.log(TURN / 3e13), abs=0.01)
    assert equal[0]['units'] == pytest.approx(3e13 / 6 / 1.03e6 / 2, rel=0.1)
    assert all('why' in row for row in result['interleaved over textless, equal units']['tiny/main/ssc/S'])

def test_the_first_seed_chooses_the_size_and_budgets_come_in_order(out):
    todo = Study(Config(out=str(out))).todo
    assert {(row['arm'], row['flops'], row['size'], row['seed']) for row in todo} == {
        (arm, 1e13, size, 0) for arm in ('interleaved', 'textless') for size in SIZES[1e13]}
    cfg, _ = finish(out, steps=1)
    todo = Study(cfg).todo
    assert {row['size'] for row in todo} == {'1M'} and {row['flops'] for row in todo} == {1e13}
    assert {(row['arm'], row['seed']) for row in todo} == {
        *((arm, seed) for arm in ('interleaved', 'textless') for seed in (1, 2)),
        *((arm, seed) for arm in ('speech', 'scratch') for seed in (0, 1, 2))}

def test_a_published_run_of_other_settings_is_run_again(out):
    cfg, _ = finish(out)
    text = (out / 'known.csv').read_text()
    first = next(line for line in text.split('\n') if line.startswith('textless,10000000000000.0,1M,2'))
    settings = first.split(',')[9]
    (out / 'known.csv').write_text(text.replace(first, first.replace(settings, '0' * 12)))
    assert [row['name'] for row in Study(cfg).todo] == ['tiny-1M-1e13-s2']

def test_a_turn_csv_of_another_version_is_refused(out):
    (out / 'other.csv').write_text('arm,flops\n')
    with pytest.raises(Refused, match='not a turn.csv of this version'):
        Study(Config(out=str(out), known=str(out / 'other.csv')))
    with pytest.raises(Refused, match='no such file; expected a turn.csv'):
        Study(Config(out=str(out), known=str(out / 'none.csv')))

def test_no_finished_run_is_refused(out):
    with pytest.raises(Refused, match='no finished run; papers/turn.sh makes them'):
        report(Config(out=str(out)))

def test_a_finished_folder_is_a_result(out):
    """A run's folder, as train.py and eval.py leave it, gives a line of turn.csv with the units that it has read."""
    for folder, source in (('wide', 0.8), ('wide-talk', 0.8)):
        write_json(out / f'out/tokens/{folder}/info.json', {
            'written': {'train/text': {'tokens': 500}, 'train/speech': {'tokens': 300},
                        'train/interleaved': {'tokens': 90}, 'val/interleaved': {'tokens': 10}},
            'interleaved': {'unit_tokens': 100 * source}})
    row = next(row for row in Study(Config(out=str(out))).todo if row['arm'] == 'interleaved') | {'epochs': 0.5}
    folder = Path(row['out_dir'])
    folder.mkdir(parents=True)
    settings = plan.as_json(plan.parse_settings(row['train']))
    write_json(folder / 'settings.json', {
        'settings': settings, 'parameters': row['N'], 'steps': row['steps'], 'tokens': row['tokens'], 'commit': 'abc',
        'inputs': {'weights of init': plan.hash_of_init(settings['init'])}})
    line = {'step': row['steps'], 'val': {'wide/speech': {'units': 1.5}}}
    (folder / 'log.jsonl').write_text(json.dumps(line) + '\n')
    assert turn.result_of(row) is None # not evaluated yet
    cells = {name: {'value': 0.6, 'stderr': 0.01} for name in METRICS[1:5]}
    evaluation = plan.as_json(plan.parse_settings(row['eval'], EvalConfig))
    write_json(folder / 'eval.json', {'results': cells, 'tasks': {name: {'settings': evaluation}
                                                                 for name in ('tiny', 'knowledge')}})
    result = turn.result_of(row)
    assert result.scores == {LOSS: 1.5} | {name: 0.6 for name in METRICS[1:5]}
    assert result.units == pytest.approx(row['tokens'] * (0 + 1 + 0.8) / 3)
    turn.write_csv(out / 'turn.csv', [result])
    assert turn.read_known(out / 'turn.csv') == [result]
    with open(out / 'turn.csv', newline='') as f:
        assert next(csv.DictReader(f))['tiny/main/ssc/S'] == '0.6'

def test_every_arm_is_a_plan_that_train_py_takes(out):
    for name, arm in ARMS.items():
        row = turn.arm_rows(Config(out=str(out)), name, arm.budgets[0], ['1M'])[0]
        settings = plan.parse_settings(row['train'])
        assert (settings.init == 'scratch') == (not arm.text)
        assert settings.vocab == ('speech' if name in ('textless', 'speech') else 'joint')
    row = turn.arm_rows(Config(out=str(out)), 'chunks', 3e13, ['1M'])[0]
    assert 'out/tokens/wide-chunks' in plan.parse_settings(row['train']).data
