"""
eval.json of models: writing it without losing anything, showing it, comparing models item by item, the papers' tables.

    python results.py --models=out/a,out/b --orig=out/text --out=out/tables.md       SIMS Tables 1-3, published rows beside
    python eval.py --compare=out/a,out/b,out/c                                       every row, with paired significance

    MODEL/eval.json             results: {row: {value, stderr, n, ...}}; tasks: {task: how it was measured}; model: sha256
    MODEL/samples_TASK.jsonl    an item a line with its scores; what compare reads
    MODEL/eval.1.json, ...      what would have been overwritten

A row is TASK/PART/DIRECTION. Rows of tasks that a run did not measure stay, while the model's weights are the same.
"""
import json
from dataclasses import dataclass
from pathlib import Path

from configurator import Refused, atomically, record, run, write_json
from folders import read_lines
from scores import bootstrap, by_pair, sign_test, wins

PUBLISHED = Path(__file__).parent / 'bench' / 'published.json'

@dataclass(frozen=True)
class Config:
    models: str = 'out/tiny' # folders with eval.json, separated by commas
    orig: str = '' # the TextLM before training, for the column Orig. of Table 2; '' for none
    corpus: str = 'stories' # whose held-out speech is Val. CE
    out: str = 'out/tables.md'

# ----------------------------------------------------------------------------------------------------------------
# files

def folder_of(model):
    """Where a model's results lie: its own folder, or for a hub id one below out/eval."""
    return Path(model) if Path(model).is_dir() else Path('out/eval') / str(model).replace('/', '--')

def keep_old(path, differs):
    """Renames what differs(text) to NAME.1.SUFFIX or the next free number."""
    path = Path(path)
    if path.is_file() and differs(path.read_text(encoding='utf-8')):
        n = 1
        while (to := path.with_name(f'{path.stem}.{n}{path.suffix}')).exists():
            n += 1
        path.rename(to)
        print(f"{path} was there with other results: kept as {to.name}")

def read_eval(folder):
    """A model's eval.json; Refused where there is none."""
    path = folder_of(folder) / 'eval.json'
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        found['results'].items()
        return found
    except FileNotFoundError:
        raise Refused(f"{path}: no such file; eval.py writes it") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise Refused(f"{path}: not what eval.py writes ({type(e).__name__}: {e})") from None

def store(folder, weights, results, samples, tasks, made):
    """Adds rows to FOLDER/eval.json and writes samples_TASK.jsonl; what they replace is kept under another name.

    weights: {file: sha256} of the model; results: {row: dict}; samples: {task: [dict]}; tasks: {task: what only it says}
    """
    folder = folder_of(folder)
    path, old = folder / 'eval.json', {}
    if path.is_file():
        old = read_eval(folder)
    same = old.get('model') == weights
    had = old.get('tasks', {}) if same else {}
    tasks = {name: said for name, said in tasks.items() if 'not measured' not in said or name not in had}
    rows = {name: row for name, row in old.get('results', {}).items() if same and name.split('/')[0] not in tasks} | results
    how = {name: said for name, said in had.items() if name not in tasks} | {name: {**said, **made} for name, said in tasks.items()}
    for task, lines in samples.items():
        text = ''.join(json.dumps(line) + '\n' for line in lines)
        keep_old(folder / f'samples_{task}.jsonl', lambda was: was != text)
        with atomically(folder / f'samples_{task}.jsonl') as tmp:
            tmp.write_text(text, encoding='utf-8')
    keep_old(path, lambda _: any(rows.get(name) != row for name, row in old['results'].items()))
    write_json(path, {'results': rows, 'tasks': how, 'model': weights, **made}) # last: it says that all is there

# ----------------------------------------------------------------------------------------------------------------
# the terminal's table

def in_percent(name):
    """Rows that are shares; losses, perplexities and judges' marks are not."""
    return name.split('/')[0] not in ('loss', 'genppl', 'judge')

def table(results):
    """{model: {row: ...}} as lines of text: tasks in percent, losses in nats, +- standard error, a column a model."""
    def cell(name, row):
        if row is None:
            return f"{'':16}"
        scale, digits = (100, 1) if in_percent(name) else (1, 3)
        error = '' if row['stderr'] is None else f"+-{scale * row['stderr']:.{digits}f}"
        return f"{scale * row['value']:8.{digits}f} {error:7}"
    names = list(dict.fromkeys(name for rows in results.values() for name in rows))
    lines = [' '.join([f"{'':34} {'n':>5}", *(f"{Path(model).name:>16}" for model in results)])]
    for name in names:
        n = next(rows[name]['n'] for rows in results.values() if name in rows)
        lines.append(' '.join([f"{name:34} {n:5d}", *(cell(name, rows.get(name)) for rows in results.values())]))
    return '\n'.join(lines)

# ----------------------------------------------------------------------------------------------------------------
# two models on the same items

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
        raise Refused(f"compare is {','.join(models)!r}, expected at least two models separated by commas")
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

# ----------------------------------------------------------------------------------------------------------------
# the papers' tables

NOTE = ("An empty cell was not reported. Rows marked (here) come from eval.json, with the standard error over items: accuracies in "
        "percent; sBLIMP is ZeroSpeech's official average on test, or dev where test was not measured (the papers average "
        "plainly over file pairs and do not name the split: eval.json has that mean as `plain`); Val. CE is nats a unit on the "
        "corpus given, not on the papers' data; Self-BLEU is what the papers call auto-BLEU-2 of prompt and continuation, "
        "times 100; in SIMS 2 the papers put a separator before S and T too (here --lead=separator) and join texts without a blank; "
        "Orig. is the TextLM before training.")
TITLES = {'SIMS 1': 'training data, interleaved Qwen2.5-0.5B, 20k steps', 'SIMS 2': 'across modalities, multi-speaker StoryCloze',
          'SIMS 3': 'beside other speech language models'}
ABOUT = {'SIMS 1': ('real', 'synthetic'), 'SIMS 2': ('params', 'flops'), 'SIMS 3': ('params', 'tokens')}

def columns(corpus):
    """{table: {column: (its name in bench/published.json, the rows of eval.json that may fill it, the first that is there)}}."""
    across = {}
    for task in ('sSC', 'tSC'):
        name = f'ms_{task.lower()}'
        for way in ('S', 'S->T', 'T->S', 'T'):
            across[f'{task} {way}'] = f'{name}/{way}', (f'cross_modal/{task}/{way}', *((f'{name}/all/S',) if way == 'S' else ()))
        across[f'{task} Orig.'] = f'{name}/T before', ()
    common = {'sBLIMP': ('sblimp', ('sblimp/test/S', 'sblimp/dev/S')), 'sSC': ('ssc', ('ssc/S',)), 'tSC': ('tsc', ('tsc/S',))}
    ce = tuple(f'loss/{corpus}/{source}/units' for source in ('speech', 'textless'))
    return {'SIMS 1': {'sBLIMP': common['sBLIMP'], 'sSC': common['sSC'], 'MS-sSC': ('ms_ssc', ('ms_ssc/all/S',)), 'tSC': common['tSC'],
                       'MS-tSC': ('ms_tsc', ('ms_tsc/all/S',)), 'Val. CE': ('val_ce', ce)},
            'SIMS 2': across,
            'SIMS 3': {**common, 'GenPPL': ('genppl', ('genppl/whole',)), 'Self-BLEU': ('self_bleu', ('auto_bleu2/whole',))}}

def published_cell(table, name, value):
    """A number as its table prints it; sizes short, yes and no."""
    if value is None or isinstance(value, bool):
        return '' if value is None else 'yes' if value else 'no'
    if name in ('params', 'tokens'):
        return f'{value / 1e9:g}B' if value >= 1e9 else f'{value / 1e6:g}M'
    return f'{value:g}' if name == 'flops' else f'{value:.2f}' if table != 'SIMS 3' and value > 10 else str(value)

def measured_cells(rows, orig, wanted):
    """One model's cells of a table, as text."""
    cells = []
    for name, (_, candidates) in wanted.items():
        found, source = rows, candidates
        if name.endswith('Orig.'): # the TextLM's own text number
            found, source = orig, (f'cross_modal/{name[:3]}/T',)
        at = next((c for c in source if c in found), None)
        if at is None:
            cells.append('')
            continue
        scale, digits = (100, 2) if in_percent(at) else (1, 3)
        error = found[at]['stderr']
        cells.append(f"{scale * found[at]['value']:.{digits}f}" + ('' if error is None else f" ± {scale * error:.{digits}f}"))
    return cells

def tables(models, orig, corpus):
    """SIMS Tables 1-3 as Markdown: published rows as printed, then ours with standard errors."""
    published = json.loads(PUBLISHED.read_text(encoding='utf-8'))
    found, text = {model: read_eval(model)['results'] for model in models}, read_eval(orig)['results'] if orig else {}
    row = lambda *cells: '| ' + ' | '.join(cells) + ' |'
    lines = ["# The papers' tables, and ours", '', NOTE, '']
    for table, wanted in columns(corpus).items():
        names = [*ABOUT[table], *(name for name, _ in wanted.values())]
        lines += [f"## {table.replace(' ', ' Table ')}: {TITLES[table]}", '', f"Source: {published['sources'][table[:4]]}.", '',
                  row('model', *ABOUT[table], *wanted), '|' + '---|' * (1 + len(names))]
        lines += [row(of.get('model', 'SIMS 0.5B'), *(published_cell(table, name, of.get(name)) for name in names))
                  for of in published['rows'] if of['table'] == table]
        for model, rows in found.items():
            lines.append(row(f'**{Path(model).name}** (here)', '', '', *measured_cells(rows, text, wanted)))
        lines.append('')
    return '\n'.join(lines)

def main(cfg):
    text = tables(cfg.models.split(','), cfg.orig, cfg.corpus)
    with atomically(cfg.out) as tmp:
        tmp.write_text(text + '\n' + f"`{record(cfg)['command']}`, commit {record(cfg)['commit']}.\n", encoding='utf-8')
    print(f"{cfg.out}: {len(cfg.models.split(','))} models")

if __name__ == '__main__':
    run(main, Config)
