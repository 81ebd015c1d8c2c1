"""bench/speedrun.py: a run in a clone is recorded by seed and tabled; the points of the curve are those of its runs."""
import json
import subprocess
from pathlib import Path

import pytest

from bench import speedrun
from configurator import Refused
from files import write_json, write_lines

ROWS = {'loss/stories/speech/units': {'value': 1.5, 'stderr': 0.01},
        'tiny/main/tsc/S': {'value': 0.66, 'stderr': 0.015},
        'tiny/main/tsc/S->T': {'value': 0.91, 'stderr': 0.009},
        'tiny/unseen/tsc/S->T': {'value': 0.7, 'stderr': 0.02}}
SCRIPT = f"""#!/bin/sh
[ "$1" = --seed=3 ] && [ -z "$PYTHONPATH" ] || exit 9
echo '   70 s  set-up: .venv with requirements.txt'
echo '  400 s  train: tiny                                    done: out/tiny, 1,000 steps'
mkdir -p out/speedrun
echo '{json.dumps({'results': {'out/tiny': ROWS}})}' >out/speedrun/eval.json
"""

@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A repository whose speedrun.sh takes no time."""
    root = tmp_path / 'tree'
    (root / 'bench' / 'results').mkdir(parents=True)
    (root / 'speedrun.sh').write_text(SCRIPT)
    (root / 'speedrun.sh').chmod(0o755)
    identity = ['-c', 'user.name=x', '-c', 'user.email=x@x']
    for command in (['init', '-q'], ['add', '.'], [*identity, 'commit', '-q', '-m', 'x']):
        subprocess.run(['git', *command], cwd=root, check=True)
    monkeypatch.setattr(speedrun, 'ROOT', root)
    monkeypatch.setattr(speedrun, 'RESULTS', root / 'bench' / 'results')
    def save(name, dry, **results):
        write_json(root / 'bench' / 'results' / f'{name}.json', results)
    monkeypatch.setattr(speedrun, 'save', save)
    return root

def test_a_run_of_a_clone_is_recorded_beside_those_of_other_seeds(tree, tmp_path):
    path = tree / 'bench' / 'results' / 'speedrun.json'
    other = {'seconds': 780.0, 'stages': {'train: tiny': 410}, 'cores': 2, 'machine': 'M', 'commit': 'abc',
             'scores': speedrun.scores_of(ROWS)}
    write_json(path, {'runs': {'10': other}, 'curve': []})
    speedrun.main(speedrun.Config(seed=3, out=str(tmp_path / 'out')))
    runs = json.loads(path.read_text())['runs']
    assert runs['10'] == other and set(runs) == {'3', '10'}
    assert runs['3']['stages'] == {'set-up: .venv with requirements.txt': 70, 'train: tiny': 400}
    assert runs['3']['scores']['tSC S->T'] == pytest.approx([91, 0.9])
    assert 'eval' not in runs['3'] and not (tree / 'out').exists()
    table = path.with_suffix('.md').read_text().splitlines()
    assert [line.split(' | ')[0] for line in table[-2:]] == ['| 3', '| 10']
    assert table[-1] == ('| 10 | 13.0 min | 0 s | 410 s | 1.500 ± 0.010 | 66.0 ± 1.5 | 91.0 ± 0.9 | 70.0 ± 2.0 '
                         '| 2 cores, M, abc |')

def test_the_scores_of_a_clone_that_was_run_by_hand_are_recorded_without_times(tree):
    (tree / 'out/speedrun').mkdir(parents=True)
    (tree / 'out/tiny').mkdir()
    write_json(tree / 'out/speedrun/eval.json', {'results': {'out/tiny': ROWS}})
    write_json(tree / 'out/tiny/settings.json', {'settings': {'seed': 2}})
    speedrun.main(speedrun.Config(seed=2, clone=str(tree)))
    path = tree / 'bench' / 'results' / 'speedrun.json'
    run = json.loads(path.read_text())['runs']['2']
    assert run['scores']['tSC S'] == pytest.approx([66, 1.5]) and 'seconds' not in run
    table = path.with_suffix('.md').read_text().splitlines()
    assert table[-1].startswith('| 2 | not measured |  |  | 1.500 ± 0.010 | 66.0 ± 1.5 |')
    with pytest.raises(Refused, match='trained with seed 2, expected 1'):
        speedrun.main(speedrun.Config(seed=1, clone=str(tree)))

def test_a_run_that_fails_is_refused_with_its_last_lines(tree, tmp_path):
    with pytest.raises(Refused, match='speedrun.sh --seed=4: exit 9'):
        speedrun.main(speedrun.Config(seed=4, out=str(tmp_path / 'out')))
    assert not (tree / 'bench' / 'results' / 'speedrun.json').exists()

def test_a_point_has_the_steps_of_its_budget_and_the_seconds_of_a_median_step(tree, tmp_path, monkeypatch):
    def execute(suite, rows):
        for row in rows:
            folder = Path(row['out_dir'])
            folder.mkdir(parents=True)
            write_json(folder / 'eval.json', {'results': ROWS})
            write_lines(folder / 'log.jsonl', [{'step': i, 'ms': ms} for i, ms in enumerate((9000, 500, 500))]
                        + [{'step': 2, 'val': {}}])
    monkeypatch.setattr(speedrun.plan, 'execute', execute)
    speedrun.main(speedrun.Config(curve=True, out=str(tmp_path / 'out')))
    points = json.loads((tree / 'bench/results/speedrun.json').read_text())['curve']
    assert [(point['recipe'], point['steps']) for point in points] == [
        (recipe, steps) for recipe in ('tiny', 'tiny_adamw') for steps in (110, 220, 440, 1000)]
    assert points[0]['seconds'] == 55 and points[3]['seconds'] == 500
    numbers = (tree / 'bench/results/speedrun.csv').read_text().splitlines()
    assert numbers[0] == 'recipe,score,seconds,value' and 'tiny,tSC S->T,500.0,91.0' in numbers
    assert (tree / 'bench/results/speedrun.png').stat().st_size > 1000

def test_the_runs_of_the_curve_have_settings_that_train_and_eval_know():
    from eval import Config as EvalConfig
    for (recipe, steps), row in speedrun.curve_rows(speedrun.Config()).items():
        settings = speedrun.plan.parse_settings(row['train'])
        assert (settings.max_steps, settings.optimizer) == (steps, 'adamw' if recipe == 'tiny_adamw' else 'muon')
        assert speedrun.plan.parse_settings(row['eval'], EvalConfig).directions == ('S', 'S->T')
