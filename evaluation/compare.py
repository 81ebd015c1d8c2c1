"""
Compares models item by item: every row that both have, with a confidence interval and a p-value.

    python -m evaluation.compare --models=out/a,out/b,out/c          the first with each of the others

Reads MODEL/samples_TASK.jsonl and eval.json, which eval.py writes. The formulas are in evaluation/scores.py.
"""
from dataclasses import dataclass

from configurator import Refused, run
from evaluation.results import document_style, folder_of, read_eval
from evaluation.scores import bootstrap, by_pair, sign_test, wins
from files import read_lines, record, write_json
from vocab import STYLES


@dataclass(frozen=True)
class Config:
    models: str = '' # folders with eval.json, separated by commas; the first is compared with each of the others
    out: str | None = None # JSON file to write the comparison to; None: only show it in the terminal

def _lines_of_rows(path):
    """{row: its lines} of a samples file, without the lines that have no scores."""
    task = path.stem.removeprefix('samples_')
    lines_of = {}
    for place, line in read_lines(path):
        if line.get('right_mean') is None:
            continue
        try:
            for part in line['rows']:
                name = '/'.join(filter(None, (task, part, line['direction'])))
                lines_of.setdefault(name, []).append(line)
        except (KeyError, TypeError):
            raise Refused(f"{place}: no rows and direction; measured by an older eval.py, measure it again") from None
    return lines_of

def won_units(folder):
    """{row: {unit: won}} of all samples files of a model that hold pairs of scores."""
    won_of = {}
    for path in sorted(folder_of(folder).glob('samples_*.jsonl')):
        if path.name.count('.') > 1: # samples_TASK.1.jsonl: earlier results
            continue
        for name, lines in _lines_of_rows(path).items():
            won = wins([line['right_mean'] for line in lines], [line['wrong_mean'] for line in lines])
            won_of[name] = by_pair(lines, won)
    if not won_of:
        raise Refused(f"{folder}: no samples_TASK.jsonl with scores; eval.py writes them")
    return won_of

def _check_styles(name, models, evaluations):
    """Refuses a row that one model was scored on slamkit's documents for, and the other on those of training."""
    styles = [document_style(evaluation, name) for evaluation in evaluations]
    if set(styles) == set(STYLES):
        raise Refused(f"{name}: {models[0]} was scored on documents of {styles[0]}, {models[1]} on those of "
                      f"{styles[1]}; measure both with the same --documents")

def _compare_row(name, models, first, second):
    """A row of two models as compare gives it; first, second: {unit: won}."""
    if first.keys() != second.keys():
        unshared = sorted(first.keys() ^ second.keys())
        examples = ', '.join(map(str, unshared[:3]))
        raise Refused(f"{name}: {models[0]} and {models[1]} were measured on different items, {len(unshared)} are in "
                      f"one alone, such as {examples}; measure both with the same settings")
    differences = [second[unit] - first[unit] for unit in first]
    return {'row': name,
            'models': models,
            'values': [sum(won.values()) / len(won) for won in (first, second)],
            'difference': sum(differences) / len(differences),
            'interval': bootstrap(differences),
            'p': sign_test(differences),
            'n': len(differences)}

def compare(models):
    """[{row, models, values, difference, interval, p, n}]: the first model against each other one.

    Raises Refused where a row's items or the style of its documents differ, or where the models have
    no row in common.
    """
    if len(models) < 2:
        raise Refused(f"models={','.join(models)!r}: expected at least two folders, separated by commas")
    baseline, *candidates = [won_units(model) for model in models]
    evaluations = [read_eval(model) for model in models]
    rows = []
    for model, won_of, evaluation in zip(models[1:], candidates, evaluations[1:]):
        for name in baseline:
            if name in won_of:
                _check_styles(name, [models[0], model], [evaluations[0], evaluation])
                rows.append(_compare_row(name, [models[0], model], baseline[name], won_of[name]))
    if not rows:
        raise Refused(f"{', '.join(models)}: no row that the first and another model both have")
    return rows

def comparison_table(rows):
    """Lines of text: values in percent, differences in percentage points."""
    width = max(len(row['row']) for row in rows) + 2
    lines = [f"{'':{width}} {'n':>6} {'values, %':>15} {'difference, points':>26} {'p (sign)':>9}"]
    for pair in dict.fromkeys(tuple(row['models']) for row in rows):
        lines.append(f"{pair[1]} against {pair[0]}")
        for row in rows:
            if tuple(row['models']) != pair:
                continue
            a, b = (100 * value for value in row['values'])
            low, high = (100 * bound for bound in row['interval'])
            difference = 100 * row['difference']
            lines.append(f"  {row['row']:{width - 2}} {row['n']:6d} {a:6.1f} ->{b:6.1f} {difference:+7.1f} "
                         f"[{low:+6.1f}, {high:+6.1f}] {row['p']:12.2g}")
    return '\n'.join(lines)

def main(cfg):
    rows = compare([model.strip() for model in cfg.models.split(',')])
    if cfg.out:
        write_json(cfg.out, {'comparison': rows, **record(cfg)})
    print(comparison_table(rows))

if __name__ == '__main__':
    run(main, Config)
