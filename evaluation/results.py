"""
eval.json of models: writing it without losing anything, reading it, showing it as a table.

    MODEL/eval.json             results: {row: {value, stderr, n, ...}}; tasks: {task: how it was measured}; model: sha256
    MODEL/samples_TASK.jsonl    an item a line with its scores; what evaluation/compare.py reads
    MODEL/eval.1.json, ...      what would have been overwritten

A row is TASK/PART/DIRECTION. Rows of tasks that a run did not measure stay, while the model's weights are the same.
"""
import json
from pathlib import Path

from configurator import Refused
from files import atomically, write_json

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
