"""
eval.json of models: writing it without losing anything, reading it, showing it as a table.

    MODEL/eval.json             results: {row: {value, stderr, n, ...}}; tasks: {task: how it was measured, with
                                the style of its documents}; model: {file: sha256}
    MODEL/samples_TASK.jsonl    an item a line with its scores; what evaluation/compare.py reads
    MODEL/eval.1.json, ...      what would have been overwritten

A row is TASK/PART/DIRECTION. A run leaves the rows of tasks that it does not measure, as long as
the model's weights are the same.
"""
import json
from pathlib import Path

from configurator import Refused
from files import atomically, read_json, write_json
from locks import Lock

SAME = 'the same in both styles' # said of documents that slamkit and training write alike

# --------------------------------------------------------------------------------------------------
# files

def folder_of(model):
    """The folder of a model's results: its own, or out/eval/OWNER--NAME for an id of the hub."""
    if Path(model).is_dir():
        return Path(model)
    return Path('out/eval') / str(model).replace('/', '--')

def keep_old(path):
    """Renames a file to NAME.1.SUFFIX, or to the next number that is free."""
    target = path
    n = 0
    while target.exists():
        n += 1
        target = path.with_name(f'{path.stem}.{n}{path.suffix}')
    path.rename(target)
    print(f"{path} was there with other results: kept as {target.name}")

def read_eval(folder):
    """A model's eval.json. Raises Refused where there is none, or where it is not what eval.py writes."""
    content = read_json(folder_of(folder), 'eval.json', 'eval.py')
    if not isinstance(content.get('results'), dict):
        raise Refused(f"{folder_of(folder)}/eval.json: not what eval.py writes, it has no results; measure it again")
    return content

def document_style(evaluation, name):
    """The style of the documents behind a row of eval.json: of vocab.STYLES, or SAME; None for losses and the like."""
    notes = evaluation.get('tasks', {}).get(name.split('/')[0], {})
    # eval.py said `lead` before it had styles; the documents were those of training.
    return notes.get('documents', 'training' if 'lead' in notes else None)

def store(folder, weights, results, samples, tasks, provenance):
    """Adds rows to FOLDER/eval.json and writes samples_TASK.jsonl; keeps what they replace (keep_old).

    weights: {file: sha256} of the model. results: {row: dict}. samples: {task: [dict]}.
    tasks: {task: notes}; one with the note 'not measured' does not replace an earlier measurement.
    provenance: files.record of the run.
    """
    folder = folder_of(folder)
    with Lock(folder / '.eval.lock', folder, wait=60): # another evaluation's rows are merged, not lost
        merge(folder, weights, results, samples, tasks, provenance)

def merge(folder, weights, results, samples, tasks, provenance):
    """store, for the process that has the lock of the folder."""
    path = folder / 'eval.json'
    old = read_eval(folder) if path.is_file() else {}
    old_rows = old.get('results', {})
    # Rows of other weights are not carried over.
    same_model = old.get('model') == weights
    old_tasks = old.get('tasks', {}) if same_model else {}
    tasks = {name: notes for name, notes in tasks.items()
             if 'not measured' not in notes or name not in old_tasks}
    rows = {name: row for name, row in old_rows.items()
            if same_model and name.split('/')[0] not in tasks}
    rows |= results
    all_tasks = {name: notes for name, notes in old_tasks.items() if name not in tasks}
    all_tasks |= {name: {**notes, **provenance} for name, notes in tasks.items()}
    for task, lines in samples.items():
        text = ''.join(json.dumps(line) + '\n' for line in lines)
        samples_path = folder / f'samples_{task}.jsonl'
        if samples_path.is_file() and samples_path.read_text(encoding='utf-8') != text:
            keep_old(samples_path)
        with atomically(samples_path) as tmp:
            tmp.write_text(text, encoding='utf-8')
    if any(rows.get(name) != row for name, row in old_rows.items()):
        keep_old(path)
    # eval.json comes last: where it is, the samples are complete.
    write_json(path, {'results': rows, 'tasks': all_tasks, 'model': weights, **provenance})

# --------------------------------------------------------------------------------------------------
# the terminal's table

def in_percent(name):
    """Whether a row is a share; losses, perplexities and judges' marks are not."""
    return name.split('/')[0] not in ('loss', 'genppl', 'judge')

def _cell(name, row):
    """The 16 columns of a model in a row of the table; None for a row that it does not have."""
    if row is None:
        return f"{'':16}"
    scale, digits = (100, 1) if in_percent(name) else (1, 3)
    error = '' if row['stderr'] is None else f"+-{scale * row['stderr']:.{digits}f}"
    return f"{scale * row['value']:8.{digits}f} {error:7}"

def table(results):
    """{model: {row: ...}} as lines of text, a column a model: tasks in percent, losses in nats, +- stderr."""
    heads = [f"{Path(model).name:>16}" for model in results]
    lines = [' '.join([f"{'':34} {'n':>5}", *heads])]
    names = dict.fromkeys(name for rows in results.values() for name in rows)
    for name in names:
        n = next(rows[name]['n'] for rows in results.values() if name in rows)
        cells = [_cell(name, rows.get(name)) for rows in results.values()]
        lines.append(' '.join([f"{name:34} {n:5d}", *cells]))
    return '\n'.join(lines)
