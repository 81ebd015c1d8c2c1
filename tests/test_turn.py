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
from papers.turn import ARMS, BUDGETS, LOSS, METRICS, SIZES, Config, Result, look_up
from papers.turn_report import Config as ReportConfig
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

def write_info(folder):
    write_json(Path(folder) / 'info.json', {
        'inputs': {'units': 'abc'},
        'written': {'train/text': {'tokens': 500}, 'train/speech': {'tokens': 300}, 'train/textless': {'tokens': 310},
                    'train/interleaved': {'tokens': 90}, 'val/interleaved': {'tokens': 10}},
        'interleaved': {'unit_tokens': 80}})

@pytest.fixture
def out(tmp_path, monkeypatch):
    (tmp_path / 'config').symlink_to(ROOT / 'config')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, 'available_tokens', lambda cfg, base: None) # there are no shards
    for spans in ('', '-chunks', '-utterances'):
        for folder in ('wide', 'wide-talk'):
            write_info(tmp_path / f'out/tokens/{folder}{spans}')
    plan.hash_of_init.cache_clear()
    for size in {size for sizes in SIZES.values() for size in sizes}:
        folder = tmp_path / f'text-{size}'
        folder.mkdir()
        write_json(folder / 'config.json', models_of('tiny', size, vocab='text')[size].config.to_hf('float32'))
        write_json(folder / 'settings.json', {'settings': {'lr': 1e-3, 'out': 'somewhere'}, 'inputs': {}})
    return tmp_path

def finish(out, steps=1000):
    """Finishes what comes next, so many times at most -> (the Config, how many runs)."""
    rng = np.random.default_rng(0)
    cfg = Config(out=str(out), known=str(out / 'known.csv'))
    results = []
    turn.write_csv(cfg.known, results)
    for _ in range(steps):
        _, todo = look_up(cfg)
        if not todo:
            break
        results += [result_of(row, rng) for row in todo]
        turn.write_csv(cfg.known, results)
    return cfg, len(results)

def test_a_known_turn_is_found_and_chance_is_not_called_a_difference(out, capsys):
    cfg, n = finish(out)
    turn.main(cfg) # nothing is left to train
    report(ReportConfig(runs=str(out / 'turn.csv'), out=str(out)))
    printed = capsys.readouterr().out
    result = json.loads((out / 'turn.json').read_text())
    # Of each arm with a size of its own, the first seed at every size and two others at the best; two kinds of spans.
    assert n == sum(len(SIZES[C]) + 2 for arm in ARMS.values() if arm.own_size for C in arm.budgets) + 2 * 3
    assert {arm: {C: size for C, (size, _, _) in sizes.items()} for arm, sizes in result['optima'].items()} == {
        name: {str(C): BEST[C] for C in arm.budgets} for name, arm in ARMS.items() if arm.own_size}
    over_textless = result['interleaved over textless']
    loss = over_textless[LOSS]['turn']
    assert (loss['from'], loss['to']) == (3e13, 8e13)
    assert loss['crossing'] == pytest.approx(TURN, rel=0.1)
    tsc = over_textless['tiny/main/tsc/S']['turn']
    assert (tsc['from'], tsc['to']) == (3e13, 2e14) # at 8e13 nothing is decided
    assert [row['sign'] for row in over_textless['tiny/main/ssc/S']['gains']] == [0, 0, 0, 0]
    assert all(row['why'].startswith('at chance') for row in over_textless['tiny/main/ssc/S']['gains'])
    scratch = result['interleaved over scratch'][LOSS]
    assert scratch['turn'] == {'kind': 'ahead', 'from': None, 'to': 1e13, 'crossing': None}
    assert scratch['gains'][0]['mean'] == pytest.approx(0.5, abs=0.01)
    assert 'turns between 3e+13 and 8e+13; the means cross at' in printed
    assert 'ahead wherever it is decided' in printed and 'gain over words, 3e+13 FLOPs' in printed
    assert (out / 'turn.png').stat().st_size > 10_000
    equal = result['interleaved over textless, equal units'][LOSS]
    for row in equal: # interleaved has read half its tokens as units, and textless has no ids of text
        size = BEST[row['C']]
        N, N_textless = (models_of('tiny', size, vocab=vocab)[size].n_params for vocab in ('joint', 'speech'))
        assert row['C of textless'] == pytest.approx(row['C'] / 2 * N_textless / N, rel=0.03)
        # The loss of textless does not depend on compute, as its law adds what the compute gives.
        assert row['mean'] == pytest.approx(0.1 * math.log(row['C'] / TURN), abs=0.01)
    assert [row['C'] for row in equal] == list(BUDGETS[1:])
    assert all('why' in row for row in result['interleaved over textless, equal units']['tiny/main/ssc/S'])

@pytest.mark.parametrize('signs, kind, begin, end', [
    ((0, 0, 0, 0), 'not decided', None, None), ((1, 0, 1, 1), 'ahead', None, 4), ((-1, -1, 0, 0), 'behind', 2, None),
    ((-1, 0, 1, 1), 'turn', 1, 4), ((1, 1, -1, -1), 'no single turn', 8, None), ((1, -1, 1, 1), 'no single turn', 2, 4),
    ((-1, 1, 0, 0), 'no single turn', 1, None)])
def test_only_a_gain_that_stays_is_a_turn(signs, kind, begin, end):
    rows = [{'C': 2 ** i, 'sign': sign, 'mean': sign} for i, sign in enumerate(signs)]
    result = turn.turn_of(rows)
    assert (result['kind'], result['from'], result['to']) == (kind, begin, end)

def test_a_difference_in_loss_that_may_come_from_its_targets_is_not_decided():
    loss = np.array([1.0, 1.0001, 1.0002])
    assert turn.gain_of(loss, loss + 0.004, LOSS)['sign'] == 0
    assert turn.gain_of(loss, loss + 0.006, LOSS)['sign'] == 1

def test_the_first_seed_chooses_the_size_and_budgets_come_in_order(out):
    arms = ('interleaved', 'textless', 'speech', 'scratch')
    _, todo = look_up(Config(out=str(out)))
    assert {(row['arm'], row['flops'], row['size'], row['seed']) for row in todo} == {
        (arm, 1e13, size, 0) for arm in arms for size in SIZES[1e13]}
    cfg, _ = finish(out, steps=1)
    _, todo = look_up(cfg)
    assert {row['size'] for row in todo} == {'1M'} and {row['flops'] for row in todo} == {1e13}
    assert {(row['arm'], row['seed']) for row in todo} == {(arm, seed) for arm in arms for seed in (1, 2)}

def test_a_published_run_of_other_settings_is_run_again(out):
    cfg, _ = finish(out)
    text = (out / 'known.csv').read_text()
    first = next(line for line in text.split('\n') if line.startswith('textless,10000000000000.0,1M,2'))
    settings = first.split(',')[9]
    (out / 'known.csv').write_text(text.replace(first, first.replace(settings, '0' * 12)))
    study, todo = look_up(cfg)
    assert [row['name'] for row in todo] == ['tiny-1M-1e13-s2']
    assert study.at('textless', 2e14) and not study.at('textless', 1e13)
    write_json(out / 'out/tokens/wide-chunks/info.json', {'inputs': {'units': 'of another corpus'}})
    _, todo = look_up(cfg)
    assert {row['arm'] for row in todo} == {'textless'} # of the first budget that is not finished
    (out / 'known.csv').write_text(text)
    _, todo = look_up(cfg)
    assert {row['arm'] for row in todo} == {'chunks'}
    with pytest.raises(Refused, match='is written here; expected another file'):
        turn.main(Config(out=str(out), known=str(out / 'turn.csv')))

def test_a_turn_csv_of_another_version_is_refused(out):
    (out / 'other.csv').write_text('arm,flops\n')
    with pytest.raises(Refused, match='not a turn.csv of this version'):
        look_up(Config(out=str(out), known=str(out / 'other.csv')))
    with pytest.raises(Refused, match='no such file; expected a turn.csv'):
        look_up(Config(out=str(out), known=str(out / 'none.csv')))

def test_no_finished_run_is_refused(out):
    turn.write_csv(out / 'turn.csv', [])
    with pytest.raises(Refused, match='no finished run; papers/turn.sh makes them'):
        report(ReportConfig(runs=str(out / 'turn.csv'), out=str(out)))

def test_a_finished_folder_is_a_result(out):
    """A run's folder, as train.py and eval.py leave it, gives a line of turn.csv with the units that it has read."""
    _, todo = look_up(Config(out=str(out)))
    row = next(row for row in todo if row['arm'] == 'interleaved')
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
    assert result.epochs == pytest.approx(result.units / 600)
    turn.write_csv(out / 'turn.csv', [result])
    assert turn.read_csv(out / 'turn.csv') == [result]
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
