"""
Compares models item by item: every row that both have, with a confidence interval and a p-value (evaluation/scores.py).

    python -m evaluation.compare --models=out/a,out/b,out/c          the first with each of the others

Reads MODEL/samples_TASK.jsonl, which eval.py writes.
"""
from dataclasses import dataclass

from configurator import Refused, run
from evaluation.results import folder_of
from evaluation.scores import bootstrap, by_pair, sign_test, wins
from files import read_lines, record, write_json


@dataclass(frozen=True)
class Config:
    models: str = '' # folders with eval.json, separated by commas; the first is compared with each of the others
    out: str | None = None # a JSON file for the comparison; None: the terminal alone

def won_units(folder):
    """{row: {unit: won}} of all samples files of a model that hold pairs of scores."""
    found = {}
    for path in sorted(p for p in folder_of(folder).glob('samples_*.jsonl') if p.name.count('.') == 1):
        groups = {}
        for where, line in read_lines(path):
            if line.get('right_mean') is not None:
                try:
                    for part in line['rows']:
                        name = '/'.join(filter(None, (path.stem[8:], part, line['direction'])))
                        groups.setdefault(name, []).append(line)
                except (KeyError, TypeError):
                    raise Refused(f"{where}: no rows and direction; measured by an older eval.py, measure it again") from None
        for name, lines in groups.items():
            found[name] = by_pair(lines, wins([x['right_mean'] for x in lines], [x['wrong_mean'] for x in lines]))
    if not found:
        raise Refused(f"{folder}: no samples_TASK.jsonl with scores; eval.py writes them")
    return found

def compare(models):
    """[{row, models, values, difference, interval, p, n}]: the first model against each other one, on rows both have."""
    if len(models) < 2:
        raise Refused(f"models={','.join(models)!r}: expected at least two folders, separated by commas")
    all_units, out = [won_units(model) for model in models], []
    for model, units in zip(models[1:], all_units[1:]):
        for name in (name for name in all_units[0] if name in units):
            a, b = all_units[0][name], units[name]
            if a.keys() != b.keys():
                other = sorted(a.keys() ^ b.keys())
                raise Refused(f"{name}: {models[0]} and {model} were measured on different items, {len(other)} are in one "
                              f"alone, as {', '.join(map(str, other[:3]))}; measure both with the same settings")
            d = [b[unit] - a[unit] for unit in a]
            out.append({'row': name, 'models': [models[0], model], 'values': [sum(x.values()) / len(x) for x in (a, b)],
                        'difference': sum(d) / len(d), 'interval': bootstrap(d), 'p': sign_test(d), 'n': len(d)})
    if not out:
        raise Refused(f"{', '.join(models)}: no row that the first and another model both have")
    return out

def comparison_table(rows):
    """Lines of text; percent, and points for differences."""
    width = max(len(row['row']) for row in rows) + 2
    lines = [f"{'':{width}} {'n':>6} {'values, %':>15} {'difference, points':>26} {'p (sign)':>9}"]
    for pair in dict.fromkeys(tuple(row['models']) for row in rows):
        lines.append(f"{pair[1]} against {pair[0]}")
        for row in rows:
            if tuple(row['models']) == pair:
                a, b, d, low, high = (100 * x for x in (*row['values'], row['difference'], *row['interval']))
                lines.append(f"  {row['row']:{width - 2}} {row['n']:6d} {a:6.1f} ->{b:6.1f} {d:+7.1f} "
                             f"[{low:+6.1f}, {high:+6.1f}] {row['p']:12.2g}")
    return '\n'.join(lines)

def main(cfg):
    rows = compare([model.strip() for model in cfg.models.split(',')])
    if cfg.out:
        write_json(cfg.out, {'comparison': rows, **record(cfg)})
    print(comparison_table(rows))

if __name__ == '__main__':
    run(main, Config)
