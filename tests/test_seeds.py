"""bench/seeds.py: known spreads and differences over seeds are found again; its edits are those of docs/an_hour.md."""
import re
import statistics
from pathlib import Path

import pytest

from bench import seeds
from bench.seeds import ARMS, Config, rows_of, scores_of
from configurator import Refused
from files import write_json, write_lines

ROOT = Path(__file__).parents[1]
LOSSES = { # (arm, dtype): the loss of units of each seed
    ('tiny_text', 'bfloat16'): None, # knows no units
    ('tiny_adamw', 'bfloat16'): [1.9, 2.0, 2.1, 1.8, 1.7],
    ('tiny_adamw', 'float32'): [1.9, 2.1, 2.0, 1.8, 1.75],
    ('tiny_speech', 'bfloat16'): [2.0, 2.11, 2.19, 1.9, 1.8],
    ('tiny_adamw-wsd', 'bfloat16'): [1.7, 1.81, 1.9, 1.6, 1.49]}

def write_eval(folder, arm, loss, step_loss):
    """What a finished run leaves of its scores."""
    source = 'textless' if arm == 'tiny_speech' else 'speech'
    results = {'loss/stories/text/text': {'value': 1.4, 'stderr': 0.01}}
    if loss:
        results = {f'loss/stories/{source}/units': {'value': loss, 'stderr': 0.02},
                   'tiny/main/tsc/S->T': {'value': loss / 4, 'stderr': 0.016}}
    folder.mkdir(parents=True)
    write_json(folder / 'eval.json', {'results': results})
    lines = [{'step': step, 'loss': step_loss * step} for step in seeds.STEPS]
    write_lines(folder / 'log.jsonl', [*lines, {'step': 220, 'val': {}}])

@pytest.fixture
def scores(tmp_path):
    """{(arm, dtype, seed): scores} of the runs of LOSSES."""
    rows = rows_of(Config(out=str(tmp_path)), ARMS)
    scores = {}
    for (arm, dtype, seed), row in rows.items():
        if (arm, dtype) in LOSSES:
            losses = LOSSES[arm, dtype]
            write_eval(Path(row['out_dir']), arm, losses and losses[seed - 1], step_loss=0)
            scores[arm, dtype, seed] = scores_of(row)
    return scores

def test_the_spread_over_seeds_stands_beside_the_error_over_items(scores):
    rows = {(row['arm'], row['dtype'], row['score']): row for row in seeds.spreads(scores)}
    losses = LOSSES['tiny_adamw', 'bfloat16']
    row = rows['tiny_adamw', 'bfloat16', seeds.UNITS]
    assert row['mean'] == pytest.approx(1.9)
    assert row['over seeds'] == pytest.approx(statistics.stdev(losses))
    assert row['over items'] == pytest.approx(0.02)
    assert row['seeds'] == 5
    percent = rows['tiny_adamw', 'bfloat16', 'tSC S->T']
    assert percent['mean'] == pytest.approx(100 * 1.9 / 4)
    assert percent['over items'] == pytest.approx(1.6)
    assert ('tiny_text', 'bfloat16', 'loss of text') in rows
    assert ('tiny_text', 'bfloat16', seeds.UNITS) not in rows

def test_a_difference_is_one_where_the_seeds_agree(scores):
    rows = {(row['of'], row['less'], row['score']): row for row in seeds.differences(scores)}
    speech = rows['tiny_adamw bfloat16', 'tiny_speech bfloat16', seeds.UNITS]
    # Seed by seed -0.1, -0.11, -0.09, -0.1, -0.1, although each arm spreads over 0.4.
    assert speech['mean'] == pytest.approx(-0.1)
    assert speech['high'] - speech['mean'] == pytest.approx(2.776 * 0.005 * 2 ** 0.5 / 5 ** 0.5)
    assert speech['differs'] == 'yes'
    dtype = rows['tiny_adamw float32', 'tiny_adamw bfloat16', seeds.UNITS]
    assert list(dtype['by seed'].values()) == pytest.approx([0, 0.1, -0.1, 0, 0.05])
    assert dtype['differs'] == 'no'
    # The TextLM has no loss of units, and runs of other arms are not there.
    assert not any('scratch' in of or 'text' in of for of, _, _ in rows)

def test_a_difference_is_over_the_seeds_of_both_sides(scores):
    del scores['tiny_adamw-wsd', 'bfloat16', 3]
    [row] = [row for row in seeds.differences(scores)
             if row['of'] == 'tiny_adamw-wsd bfloat16' and row['score'] == seeds.UNITS]
    assert row['seeds'] == 4
    assert row['by seed'] == pytest.approx({1: -0.2, 2: -0.19, 4: -0.2, 5: -0.21})
    for seed in (1, 2, 4):
        del scores['tiny_adamw-wsd', 'bfloat16', seed]
    assert all(row['of'] != 'tiny_adamw-wsd bfloat16' for row in seeds.differences(scores))
    assert all(row['arm'] != 'tiny_adamw-wsd' for row in seeds.spreads(scores))

def test_how_far_other_instructions_lead(tmp_path):
    cfg = Config(out=str(tmp_path))
    row = seeds.run_row(cfg, 'tiny_adamw', 'bfloat16', 1, '-avx512')
    reference = seeds.run_row(cfg, 'tiny_adamw', 'bfloat16', 1)
    write_eval(Path(row['out_dir']), 'tiny_adamw', 2.0, step_loss=0.03)
    write_eval(Path(reference['out_dir']), 'tiny_adamw', 1.9, step_loss=0.02)
    distance = seeds.divergence('avx512', row, reference)
    assert [distance[f'step {step}'] for step in (1, 10, 50, 220)] == pytest.approx([0.01, 0.1, 0.5, 2.2])
    assert distance['held out'] == pytest.approx(0.1)
    assert distance['instructions'] == 'oneDNN without AMX'

@pytest.mark.slow
def test_operations_on_the_same_inputs_with_the_same_instructions_are_equal(monkeypatch):
    monkeypatch.setattr(seeds, 'INSTRUCTIONS', {'own again': {}})
    rows = list(seeds.operation_rows())
    assert len(rows) == 8
    assert all(row['differ, %'] == 0 and row['most, of the largest'] == 0 for row in rows)

def test_a_run_starts_from_the_textlm_of_its_seed():
    rows = rows_of(Config(), ARMS)
    assert len({row['out_dir'] for row in rows.values()}) == len(rows)
    order = list(rows)
    for (arm, dtype, seed), row in rows.items():
        inits = [flag for flag in row['train'] if flag.startswith(('--init=', '--init_config='))]
        if arm == 'tiny_text':
            assert not inits
            continue
        text = ('tiny_text', 'float32' if dtype == 'float32' else 'bfloat16', seed)
        assert [flag.partition('=')[2] for flag in inits] == [rows[text]['out_dir']]
        assert order.index(text) < order.index((arm, dtype, seed))

def test_edits_are_those_of_the_page():
    """Each edit of the code is a diff of docs/an_hour.md, whose lines may end in ' ...'."""
    page = (ROOT / 'docs' / 'an_hour.md').read_text()
    diffs = re.findall(r'^```diff\n-(.*)\n\+(.*)\n```$', page, re.M)
    diffs = [tuple(line.removesuffix(' ...') for line in diff) for diff in diffs]
    edits = [arm.edit for arm in ARMS.values() if arm.edit]
    assert len(edits) == 2
    for file, old, new in edits:
        before = (ROOT / file).read_text()
        after = seeds.edited(before, (file, old, new))
        assert any(before.replace(*diff) == after and before.count(diff[0]) == 1 for diff in diffs), file

def test_an_edited_arm_runs_the_code_of_a_copy(tmp_path, monkeypatch):
    """Whatever is edited in the copy, this tree stays as it is, and other arms run its code."""
    file, old, new = ARMS['tiny_adamw-sqrt'].edit
    (tmp_path / file).write_text(f'height = ({old})\n')
    (tmp_path / 'requirements.txt').write_text('')
    monkeypatch.setattr(seeds, 'ROOT', tmp_path)
    monkeypatch.chdir(tmp_path)
    executed = []
    monkeypatch.setattr(seeds.plan, 'execute', lambda suite, rows: executed.append((suite, rows)))
    cfg = Config(seeds=2)
    for _ in range(2): # again: the copy is there
        executed.clear()
        seeds.run_all(cfg, rows_of(cfg, ['tiny_adamw-wsd', 'tiny_adamw-sqrt']), {})
    (plain, plain_rows), (suite, rows) = executed
    assert [row['name'] for row in plain_rows] == ['tiny_adamw-wsd-bfloat16-1', 'tiny_adamw-wsd-bfloat16-2']
    assert [row['name'] for row in rows] == ['tiny_adamw-sqrt-bfloat16-1', 'tiny_adamw-sqrt-bfloat16-2']
    assert Path(plain.train) == tmp_path / 'train.py'
    assert Path(plain.train).read_text() == f'height = ({old})\n'
    assert Path(suite.train).read_text() == f'height = ({new})\n'
    assert Path(suite.eval).parent == Path(suite.train).parent

def test_an_edit_of_what_is_not_there_once_is_refused():
    assert seeds.edited('a b', ('x.py', 'a', 'c')) == 'c b'
    for text in ('b', 'a a'):
        with pytest.raises(Refused, match=f"x.py: 'a' is there {text.count('a')} times"):
            seeds.edited(text, ('x.py', 'a', 'c'))

def test_a_dry_run_shows_every_run_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(seeds, 'save', None)
    monkeypatch.setattr(seeds, 'execute', None)
    monkeypatch.chdir(ROOT)
    seeds.main(Config(out=str(tmp_path / 'runs'), dry=True))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == sum(5 * len(arm.dtypes) for arm in ARMS.values()) + len(seeds.PROCESSORS)
    assert all(line.startswith('open ') for line in lines)
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('arguments, message', [
    ({'arms': 'tiny_adamw,tinny'}, 'arms: tinny: expected some of tiny_text, tiny_adamw'),
    ({'seeds': 1}, 'seeds=1: expected 2 to 10')])
def test_unknown_arms_and_single_seeds_are_refused(arguments, message):
    with pytest.raises(Refused, match=message):
        Config(**arguments)
