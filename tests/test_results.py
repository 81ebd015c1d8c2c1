"""eval.json of several models side by side: comparing item by item, the papers' tables."""
import json
import re

import pytest

from configurator import Refused
from evaluation.compare import Config as CompareConfig
from evaluation.compare import compare
from evaluation.compare import main as run_compare
from evaluation.results import SAME, read_eval, store
from papers.tables import PUBLISHED, Config, columns, main


def make_results(folder, won, ids=None, **rows):
    """A model's folder as eval.py leaves it: items of ssc that it got right (1), wrong (0) or tied (1/2)."""
    folder.mkdir(exist_ok=True)
    names = range(len(won)) if ids is None else ids
    lines = [sample(str(name), w) for name, w in zip(names, won)]
    row = {'value': sum(won) / len(won), 'stderr': 0.1, 'n': len(won)}
    store(folder, {'m': 'hash'}, {'ssc/S': row, **rows}, {'ssc': lines}, {'ssc': {}}, {'settings': {}})
    return str(folder)

def sample(name, won, **fields):
    """A line of samples_ssc.jsonl; won: 1, 0 or, for a tie, 1/2."""
    return {'id': name, 'rows': [''], 'direction': 'S', 'right_mean': won, 'wrong_mean': 0.5, **fields}

def test_compare_takes_differences_item_by_item(tmp_path, capsys):
    a = make_results(tmp_path / 'a', [1, 1, 0, 0, 0, 0])
    b = make_results(tmp_path / 'b', [1, 1, 1, 1, 1, 1])
    [row] = compare([a, b])
    assert row['row'] == 'ssc/S'
    assert row['difference'] == pytest.approx(4 / 6) and row['values'] == [2 / 6, 1]
    assert row['p'] == pytest.approx(2 / 2 ** 4) and row['interval'][0] > 0
    out = tmp_path / 'c.json'
    run_compare(CompareConfig(models=f'{a},{b}', out=str(out)))
    assert re.search(r'ssc/S +6 +33\.3 -> 100\.0 +\+66\.7 ', capsys.readouterr().out)
    assert json.loads(out.read_text())['comparison'][0]['n'] == 6

def test_what_a_run_did_not_measure_stays(tmp_path):
    folder = make_results(tmp_path / 'a', [1, 0])
    tasks = {name: {'not measured': f'no out/bench/{name}'} for name in ('ssc', 'tsc')}
    store(folder, {'m': 'hash'}, {}, {}, tasks, {})
    content = json.loads((tmp_path / 'a' / 'eval.json').read_text())
    assert content['results']['ssc/S']['value'] == 0.5
    assert content['tasks'] == {'ssc': {'settings': {}}, 'tsc': {'not measured': 'no out/bench/tsc'}}

def test_voices_of_a_pair_are_one_unit(tmp_path):
    for name, won in (('a', [0, 0]), ('b', [1, 1])):
        (tmp_path / name).mkdir()
        lines = [sample(f'v{i}', w, pair='p') for i, w in enumerate(won)]
        rows = {'ssc/S': {'value': 0, 'stderr': None, 'n': 2}}
        store(tmp_path / name, {}, rows, {'ssc': lines}, {'ssc': {}}, {})
    [row] = compare([str(tmp_path / 'a'), str(tmp_path / 'b')])
    assert row['n'] == 1 and row['p'] == 1.0

def test_models_scored_on_documents_of_the_other_style_are_not_compared(tmp_path):
    folders = {}
    notes = {'slamkit': {'documents': 'slamkit'}, 'training': {'documents': 'training'}, 'same': {'documents': SAME},
             'old': {'lead': 'none'}} # eval.py before there were styles
    for name, note in notes.items():
        folders[name] = make_results(tmp_path / name, [1, 0])
        store(tmp_path / name, {'m': 'hash'}, {'ssc/S': {'value': 0.5, 'stderr': 0.1, 'n': 2}}, {}, {'ssc': note}, {})
    for other in ('training', 'old'):
        message = 'slamkit was scored on documents of slamkit, .* on those of training; measure both with the same'
        with pytest.raises(Refused, match='ssc/S: .*' + message):
            compare([folders['slamkit'], folders[other]])
    for pair in (('slamkit', 'slamkit'), ('slamkit', 'same'), ('training', 'old'), ('same', 'old')):
        assert compare([folders[name] for name in pair])[0]['n'] == 2

def test_models_measured_on_other_items_are_not_compared(tmp_path):
    a = make_results(tmp_path / 'a', [1, 0])
    b = make_results(tmp_path / 'b', [1, 0], ids=[0, 7])
    with pytest.raises(Refused, match='measured on different items, 2 are in one alone, such as 1, 7'):
        compare([a, b])
    with pytest.raises(Refused, match='expected at least two folders'):
        compare([a])
    with pytest.raises(Refused, match='nothing: no samples_TASK.jsonl'):
        compare([a, str(tmp_path / 'nothing')])

def test_tables_have_the_published_rows_and_ours_with_errors(tmp_path):
    def row(value):
        return {'value': value, 'stderr': 0.01, 'n': 10}
    rows = {'sblimp/test/S': row(0.5712), 'cross_modal/tSC/S->T': row(0.91), 'genppl/whole': row(88.3),
            'loss/stories/speech/units': row(1.8871)}
    a = make_results(tmp_path / 'a', [1, 0], **rows)
    text = make_results(tmp_path / 'text', [1, 0], **{'cross_modal/tSC/T': row(0.975)})
    across = {name: value for name, value in rows.items() if name.startswith('cross_modal')}
    store(a, {'m': 'hash'}, across, {}, {'cross_modal': {'documents': 'slamkit'}}, {})
    store(text, {'m': 'hash'}, {'cross_modal/tSC/T': row(0.975)}, {}, {'cross_modal': {'documents': 'training'}}, {})
    out = tmp_path / 'tables.md'
    main(Config(models=a, orig=text, out=str(out)))
    lines = out.read_text().splitlines()
    first, second, third = [line for line in lines if line.startswith('| **a** (here)')]
    assert first == '| **a** (here) |  |  | 57.12 ± 1.00 | 50.00 ± 10.00 |  |  |  | 1.887 ± 0.010 |'
    assert '| 91.00 ± 1.00 |' in second and second.endswith('| 97.50 ± 1.00 (documents: training) |')
    assert '| 88.300 ± 0.010 |' in third
    assert '| SIMS | 7B | 15B | 59.8 | 66.7 | 88.3 | 37.6 | 4.15 |' in lines
    assert '| SIMS 0.5B | no | yes | 52.98 | 61.30 | 54.84 | 81.24 | 72.35 | 3.44569 |' in lines
    assert ('| SIMS (Qwen2.5) | 7.6B | 2e+20 | 58.73 | 66.23 | 60.10 | 72.85 | 75.09 | 87.67 '
            '| 91.35 | 76.11 | 96.26 | 97.92 |') in lines
    assert 'SpiritLM is its official weights, trained for 75 % longer' in lines[2]
    models = [line for line in lines if line.startswith(('| **a**', '| SIMS'))]
    assert {line.count('|') for line in models} == {9, 10, 14}

def test_published_rows_fill_their_tables_columns():
    published = json.loads(PUBLISHED.read_text())
    for table, table_columns in columns('stories').items():
        rows = [row for row in published['rows'] if row['table'] == table]
        keys = set().union(*rows)
        assert {name for name, _ in table_columns.values()} <= keys

def test_a_model_that_was_not_measured_is_named(tmp_path):
    with pytest.raises(Refused, match='eval.json: no such file; eval.py writes it'):
        main(Config(models=str(tmp_path), out=str(tmp_path / 't.md')))

@pytest.mark.parametrize('content, message', [
    ('{"cut', 'eval.json: not JSON'), ('[]', 'expected a JSON object'), ('{"results": []}', 'it has no results'),
    (None, 'no such file; eval.py writes it')])
def test_what_is_no_eval_json_is_refused_in_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / 'eval.json').write_text(content)
    with pytest.raises(Refused, match=message) as e:
        read_eval(tmp_path)
    assert '\n' not in str(e.value)
