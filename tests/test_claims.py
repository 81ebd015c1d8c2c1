"""Verdicts follow from the runs by the rules of papers/claims.py: known differences are found, known noise is not,
gaps are named."""
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

BEST = {'textless': 2.5e5} # N_opt without the table of ids; of other arms 8e5
TEXT_LOSS = {'weak': 4.0, 'talk': 6.0, 'long': 0.8} # of other TextLMs 1.2
HEAD_START = {'textless': 0.5, 'scratch': 0.4, 'speech': -0.05, 'weak': 0.1, 'weak-speech': 0.1, 'long': -0.1}
SLOPE = {'textless': 0.10, 'scratch': 0.30} # of other arms 0.15
UNSEEN = {'mixed': -1.0, 'diverse': -2.0, 'synthetic': -1.0} # of other arms -1.5

def loss_of(arm, size, C, rng):
    """The last loss of a synthetic run.

    The arms differ as the papers say, but scratch overtakes TWIST, and synthetic speech alone does as well as the
    mixture, up to noise.
    """
    shape = SHAPES[f'tiny/{size}']
    N = shape.n_params - shape.embedding_rows * shape.n_embd
    start = HEAD_START.get(arm, 0) * (1e12 / C) ** 0.05
    progress = SLOPE.get(arm, 0.15) * np.log(C / 1e12)
    off_optimum = 0.05 * np.log(N / BEST.get(arm, 8e5)) ** 2
    return 3 + start - progress + off_optimum + 1e-3 * rng.standard_normal()

def write_text_run(folder, name, size):
    """What a finished TextLM leaves."""
    folder.mkdir(parents=True)
    write_json(folder / 'config.json', models_of('tiny', size, vocab='text')[size].config.to_hf('float32'))
    loss = {'value': TEXT_LOSS.get(name, 1.2)}
    write_json(folder / 'eval.json', {'results': {'loss/stories/text/text': loss}})

def write_run(row, rng):
    """What the finished run of a row leaves."""
    folder = Path(row['out_dir'])
    folder.mkdir(parents=True)
    arm = row['arm']
    loss = loss_of(arm, row['size'], row['flops'], rng)
    settings = plan.as_json(plan.parse_settings(row['train']))
    write_json(folder / 'settings.json', {
        'settings': settings, 'parameters': row['N'], 'steps': row['steps'], 'commit': 'abc',
        'inputs': {'weights of init': plan.hash_of_init(settings['init'])}})
    corpus = 'talk' if arm == 'diverse' else 'stories'
    line = {'step': row['steps'], 'val': {f'{corpus}/speech': {'speech': loss}}}
    (folder / 'log.jsonl').write_text(json.dumps(line) + '\n')
    # The seeds of `mixed` deviate the other way round.
    deviation = 0.01 * (-1) ** (row['seed'] + (arm == 'mixed'))
    items = [{'rows': ['unseen/ssc'], 'direction': 'S', 'right_mean': UNSEEN.get(arm, -1.5) + deviation},
             {'rows': ['main/ssc'], 'direction': 'S', 'right_mean': 0}]
    (folder / 'samples_tiny.jsonl').write_text('\n'.join(map(json.dumps, items)))
    scores = {TSC: 0.5 + (3 - loss) / 4, TSC_UNSEEN: 0.5 + 0.01 * rng.standard_normal(), SSC: 0.5}
    eval_settings = plan.as_json(plan.parse_settings(row['eval'], EvalConfig))
    write_json(folder / 'eval.json', {
        'results': {name: {'value': value, 'stderr': 0.02} for name, value in scores.items()},
        'tasks': {'tiny': {'settings': eval_settings}}})

def write_runs(out, skip=lambda row: False):
    """All TextLMs, and the runs that are feasible and not skipped."""
    rng = np.random.default_rng(0)
    for name, (size, _) in TEXTS.items():
        write_text_run(out / f'text-{name}', name, size)
    for row in claims.slm_rows(Config(out=str(out))):
        if not row['why_not'] and not skip(row):
            write_run(row, rng)

def write_scores(folder, ssc, tsc):
    """The eval.json of a model before or after preferences."""
    folder.mkdir()
    scores = {SSC: {'value': ssc, 'stderr': 0.02}, TSC: {'value': tsc, 'stderr': 0.02}}
    write_json(folder / 'eval.json', {'results': scores})

def examined(out, capsys):
    """({(number of the finding, part): its verdict}, what the report prints)."""
    report(Config(out=str(out), start=str(out / 'start')))
    findings = json.loads((out / 'claims.json').read_text())['findings']
    parts = {(number, part['part']): part for number, finding in enumerate(findings, 1) for part in finding['parts']}
    return parts, capsys.readouterr().out

@pytest.fixture
def out(tmp_path, monkeypatch):
    (tmp_path / 'config').symlink_to(ROOT / 'config')
    monkeypatch.chdir(tmp_path) # where there are no shards: all runs are feasible
    plan.hash_of_init.cache_clear()
    write_scores(tmp_path / 'start', ssc=0.55, tsc=0.8)
    return tmp_path

def test_known_differences_are_found_and_noise_is_not(out, capsys):
    write_runs(out)
    for seed, after in enumerate((0.51, 0.52, 0.515)): # preferences made sSC worse
        write_scores(out / f'dpo-{seed}', ssc=after, tsc=1.36 - after)
    parts, printed = examined(out, capsys)
    verdicts = {name: part['verdict'] for name, part in parts.items()}
    late = 12 ** -0.05 # what remains of an arm's head start at 1.2e13 FLOPs
    expected = [
        ((1, 'loss, at the most compute'), 0.5 * late + 0.05 * np.log(12), 0.02, 'reproduced'),
        ((1, 'ln N_opt at equal compute'), np.log(8e5 / 2.5e5), 0.2, 'reproduced'),
        ((2, 'loss, at the most compute'), 0.4 * late - 0.15 * np.log(12), 0.005, 'contradicted'),
        ((3, 'loss: speech only is no worse, at the most compute'), 0.05 * late, 0.005, 'reproduced'),
        ((3, 'tSC, at the most compute'), -100 * 0.05 * late / 4, 0.2, 'contradicted'),
        ((5, 'loss, from the good TextLM over the weak one'), 0.1 * late, 0.005, 'reproduced'),
        ((5, 'loss, from one trained twice as long over the good one'), 0.1 * 4 ** -0.05, 0.005, 'reproduced'),
        ((6, 'sSC, after DPO over before'), -3.5, 0.01, 'contradicted'),
        ((6, 'tSC, after DPO over before'), 4.5, 0.01, 'reproduced')]
    for name, mean, tolerance, verdict in expected:
        assert parts[name]['mean'] == pytest.approx(mean, abs=tolerance), name
        assert verdicts[name] == verdict, name
    assert verdicts[1, 'loss, exponent over compute'] == 'reproduced' # slopes of 0.15 against 0.10
    assert verdicts[2, 'the gap in loss shrinks, per ln C'] == 'reproduced'
    assert verdicts[3, 'tSC: gain from the good TextLM over that from the weak one'] == 'contradicted'
    assert verdicts[4, 'loss in the unseen voice, over diverse alone'] == 'reproduced'
    assert verdicts[4, 'loss in the unseen voice, over synthetic alone'] == 'not decidable'
    other_text = 'loss, from one of other text over the weak one, which models the stories better'
    assert verdicts[5, other_text] == 'reproduced'
    assert parts[4, 'tSC in the unseen voice, over diverse alone']['why'].startswith('at chance, ')
    assert '### 6. Preferences raise sSC' in printed and '**contradicted**' in printed
    assert (out / 'claims.png').stat().st_size > 10_000
    with open(out / 'runs.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert {row['arm'] for row in rows} == set(ARMS)
    assert {row['seed'] for row in rows} == {'0', '1', '2'}

def test_missing_runs_leave_a_part_open_or_lower_its_budget(out, capsys):
    def skip(row):
        return row['arm'] == 'speech' or row['flops'] > 4e12 or (row['arm'], row['seed']) == ('diverse', 1)
    write_runs(out, skip)
    parts, printed = examined(out, capsys)
    assert parts[3, 'tSC, at the most compute']['verdict'] == 'not decidable'
    assert parts[3, 'tSC, at the most compute']['why'] == 'no budget is finished for interleaved, speech'
    diverse = parts[4, 'loss in the unseen voice, over diverse alone']
    assert diverse['why'] == 'no budget is finished for mixed, diverse'
    assert parts[4, 'loss in the unseen voice, over synthetic alone']['verdict'] == 'not decidable'
    assert 'mean' in parts[2, 'the gap in loss shrinks, per ln C'] # three budgets remain for a slope
    assert parts[6, 'sSC, after DPO over before']['why'] == '0 of 3 runs of dpo.py are finished'
    assert ' runs are finished' in printed

def grid_of(out):
    rows = claims.slm_rows(Config(out=str(out)))
    return claims.Runs(rows, text_losses={}).grid('interleaved', 'textless')

def test_a_budget_whose_best_size_lacks_data_does_not_count(out, monkeypatch):
    def available_tokens(cfg, base):
        return 2e6 if base.vocab == 'speech' else 1e9
    monkeypatch.setattr(plan, 'available_tokens', available_tokens)
    write_runs(out) # textless: 0.25M reads 16M tokens at 1.2e13 FLOPs, 0.5M 5.8M
    grid = grid_of(out)
    sizes = ['0.25M', '0.5M', '1M', '2.8M']
    assert [C for C, _ in grid] == [1e12, 2e12, 4e12]
    assert grid[-1][1] == {'interleaved': sizes, 'textless': sizes}
    monkeypatch.setitem(BEST, 'textless', 9e5) # now the best is not the smallest that has enough data
    shutil.rmtree(out / 'textless')
    for text in out.glob('text-*'):
        shutil.rmtree(text)
    write_runs(out, lambda row: row['arm'] != 'textless')
    C, sizes = grid_of(out)[-1]
    assert C == 1.2e13 and sizes['textless'][0] == '0.5M' and sizes['interleaved'][0] == '0.25M'

def test_a_start_scored_on_slamkits_documents_is_not_compared_with_what_follows_it(out):
    write_runs(out)
    evaluation = json.loads((out / 'start' / 'eval.json').read_text())
    write_json(out / 'start' / 'eval.json', {**evaluation, 'tasks': {'tiny': {'documents': 'slamkit'}}})
    with pytest.raises(Refused, match="start/eval.json: scored on slamkit's documents, those after preferences"):
        report(Config(out=str(out), start=str(out / 'start')))

def test_runs_of_other_settings_are_not_reported(out):
    write_runs(out, lambda row: row['arm'] != 'scratch')
    path = next((out / 'scratch').glob('*-1e12-s0/settings.json'))
    path.write_text(path.read_text().replace('"lr": 0.002', '"lr": 0.001'))
    with pytest.raises(Refused, match='trained with lr=0.001, not 0.002'):
        report(Config(out=str(out), start=str(out / 'start')))

def test_the_verdict_is_student_s_interval():
    verdict = judge(np.array([1.0, 2.0, 3.0])) # 2 +- 4.303 / sqrt(3)
    ends = (verdict['mean'], verdict['low'], verdict['high'])
    assert ends == pytest.approx((2.0, -0.4843, 4.4843), abs=1e-3)
    assert verdict['verdict'] == 'not decidable'
    assert judge(np.array([1.0, 1.1, 1.2]))['verdict'] == 'reproduced'
    assert judge(-np.array([1.0, 1.1, 1.2]))['verdict'] == 'contradicted'

def test_every_arm_is_a_plan_that_train_py_takes(out):
    write_runs(out, lambda row: True)
    rows = claims.slm_rows(Config(out=str(out)))
    assert {row['arm'] for row in rows} == set(ARMS)
    flops = [row['flops'] for row in rows]
    assert flops == sorted(flops)
    def settings_of(arm):
        return plan.parse_settings(next(row['train'] for row in rows if row['arm'] == arm))
    mixed = settings_of('mixed')
    assert mixed.sources == ('speech', 'interleaved') and mixed.data.count(',') == 1
    assert mixed.init.endswith('text-1M')
    speech = settings_of('speech')
    assert speech.sources == ('textless',) and speech.vocab == 'speech' and speech.init.endswith('text-1M')
