"""
The finished runs of a scaling study, and the rows of published tables, read into one form: a list of Run.

A run is a folder with settings.json and log.jsonl (train.py) and eval.json (eval.py); a suite is a
folder with the runs.jsonl of scaling.plan. Published tables are .json files like
papers/published.json.
"""
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configurator import Refused
from evaluation.results import in_percent
from files import read_json

PUBLISHED = Path(__file__).parents[1] / 'papers' / 'published.json'

class Run(NamedTuple):
    """A finished run, or a row of a published table."""
    name: str
    group: str # runs of a group are fitted together: '[FAMILY, ]interleaved' or 'speech only', with ', scratch'
    init: str # what it started from
    N: float # parameters, all of them
    D: float # tokens
    C: float # FLOPs; 6 N D where a table does not print them
    steps: int
    loss: float | None # held-out, nats a unit; None where it was not measured
    scores: dict # {metric: (value, its standard error or None)}, accuracies between 0 and 1
    planned: float | None = None # planned FLOPs; a run of whole steps uses a little less

    @property
    def budget(self):
        return self.planned or self.C

# --------------------------------------------------------------------------------------------------
# reading

def loss_curve(folder, corpus):
    """[(tokens, loss on held-out speech)] of a run.

    Its speech source is 'speech' or, in a speech-only run, 'textless'.
    """
    settings = read_json(folder, 'settings.json', 'train.py')['settings']
    points = []
    for row in read_json(folder, 'log.jsonl', 'train.py'):
        for source in ('speech', 'textless'):
            means = row.get('val', {}).get(f'{corpus}/{source}')
            if means:
                loss = means.get('units', means.get('speech')) # older logs call the units 'speech'
                points.append((row['step'] * settings['batch_tokens'], loss))
    return points

def kind_of(settings):
    """'interleaved' or 'speech only' (SIMS Figure 3), else the run's sources.

    ', scratch' follows if it started from random weights.
    """
    sources = settings['sources']
    if 'interleaved' in sources:
        kind = 'interleaved'
    elif set(sources) <= {'speech', 'textless'}:
        kind = 'speech only'
    else:
        kind = ' + '.join(sources)
    return kind + (', scratch' if settings['init'] == 'scratch' else '')

def read_run(folder, corpus, family=''):
    """The Run in a folder of train.py and eval.py.

    Its loss is the last of log.jsonl on the corpus's held-out speech.
    """
    trained = read_json(folder, 'settings.json', 'train.py')
    curve = loss_curve(folder, corpus)
    rows = read_json(folder, 'eval.json', 'eval.py')['results']
    scores = {name: (row['value'], row['stderr']) for name, row in rows.items() if not name.startswith('loss/')}
    settings = trained['settings']
    kind = kind_of(settings)
    return Run(name=Path(folder).name,
               group=f'{family}, {kind}' if family else kind,
               init=settings.get('init_config') or settings['init'],
               N=trained['parameters'],
               D=trained['tokens'],
               C=trained['flops'],
               steps=trained['steps'],
               loss=curve[-1][1] if curve else None,
               scores=scores,
               planned=settings.get('max_flops'))

def allocations():
    """The published allocations of compute: a list of {source, exponent_N, exponent_D, runs, ...}."""
    return read_json(PUBLISHED.parent, PUBLISHED.name, 'the repository')['allocations']

def is_accuracy(key):
    """Whether a key of a published row is an accuracy of the model and not of its TextLM."""
    return key.split('/')[0].removeprefix('ms_') in ('sblimp', 'ssc', 'tsc') and not key.endswith('before')

def published(path):
    """(Runs, note) of a file of published tables.

    Only rows that name their family are Runs. The others are a model or two each of many groups,
    and no suite: they can be drawn but not fitted.
    """
    runs = []
    n_others = 0
    for row in read_json(Path(path).parent, Path(path).name, 'the repository')['rows']:
        N = row.get('params')
        D = row.get('tokens')
        C = row.get('flops')
        if not (N and (D or C) and 'family' in row):
            n_others += 1
            continue
        scores = {key: (value / 100, None) for key, value in row.items() if is_accuracy(key)}
        name = f"{row['model']} {N:.2g}, {row['table']} row {row['row']}"
        group = f"{row['family']}, {row['kind']}"
        runs.append(Run(name, group, row['family'], N, D or C / 6 / N, C or 6 * N * D, 0, None, scores))
    note = f"{path}: {n_others} rows left out, which belong to no family of several sizes or lack N and C"
    return runs, note

def read_runs(spec, corpus):
    """(Runs, notes) of a comma-separated list; the notes say what was left out.

    An entry is the folder of a run, of a suite (runs.jsonl of scaling.plan) or of several runs, or
    a .json file of published tables. Refused where an entry holds no runs, or no run is finished.
    """
    runs = []
    notes = []
    for entry in filter(None, spec.split(',')):
        path = Path(entry)
        subfolders = sorted(settings.parent for settings in path.glob('*/settings.json'))
        if path.suffix == '.json':
            published_runs, note = published(path)
            runs += published_runs
            notes.append(note)
        elif (path / 'settings.json').is_file():
            runs.append(read_run(path, corpus))
        elif (path / 'runs.jsonl').is_file():
            rows = read_json(path, 'runs.jsonl', 'scaling.plan')
            finished = [row for row in rows if (Path(row['out_dir']) / 'eval.json').is_file()]
            unfinished = [row['name'] for row in rows if row not in finished]
            runs += [read_run(row['out_dir'], corpus, row['family']) for row in finished]
            if unfinished:
                notes.append(f"{entry}: {len(unfinished)} of {len(rows)} runs are not finished: "
                             f"{', '.join(unfinished)}")
        elif subfolders:
            runs += [read_run(folder, corpus) for folder in subfolders]
        else:
            raise Refused(f"{entry}: no runs; expected a folder of train.py, a folder of such folders, or one of "
                          "scaling.plan")
    if not runs:
        raise Refused(f"{spec}: no finished run; expected settings.json and eval.json in each folder, as "
                      "scaling.plan --run leaves them")
    return runs, notes

# --------------------------------------------------------------------------------------------------
# metrics and groups

def metrics_of(runs, names):
    """The scores to look at: names separated by commas; '' for all of direction S that runs have."""
    available = list(dict.fromkeys(name for run in runs for name in run.scores))
    metrics = names.split(',') if names else [name for name in available if name.split('/')[-1] == 'S']
    missing = [name for name in metrics if name not in available]
    if missing:
        raise Refused(f"metrics: no run has {', '.join(missing)}; there are {', '.join(available) or 'none'}")
    unsuitable = [name for name in metrics if not in_percent(name)]
    if unsuitable:
        raise Refused(f"metrics: {', '.join(unsuitable)}: expected accuracies, of which more is better")
    return metrics

def values_of(runs, metric):
    """Arrays (N, D, budgets, y, errors) of the runs that have the metric: 'loss' or a score's name.

    y: the metric's values; errors: their standard errors, nan where unknown. Refused where no run has
    the metric, or a value is not finite.
    """
    if metric == 'loss':
        runs = [run for run in runs if run.loss is not None]
        pairs = [(run.loss, None) for run in runs]
    else:
        runs = [run for run in runs if metric in run.scores]
        pairs = [run.scores[metric] for run in runs]
    if not runs:
        raise Refused(f"no run has {'a loss on the held-out speech of --corpus=' if metric == 'loss' else metric}")
    y = np.array([math.nan if value is None else value for value, _ in pairs], dtype=float)
    not_finite = [run.name for run, value in zip(runs, y) if not math.isfinite(value)]
    if not_finite:
        raise Refused(f"{metric} is not finite in {', '.join(not_finite)}: leave these runs out or train them again")
    errors = np.array([math.nan if error is None else error for _, error in pairs], dtype=float)
    N = np.array([run.N for run in runs], dtype=float)
    D = np.array([run.D for run in runs], dtype=float)
    budgets = np.array([run.budget for run in runs], dtype=float)
    return N, D, budgets, y, errors

def count(n, noun):
    """'1 run', '2 runs'."""
    return f"{n} {noun}{'' if n == 1 else 's'}"

def by_group(cfg):
    """({group: its Runs}, metrics, notes) of the Config of scaling.fit or scaling.predict."""
    runs, notes = read_runs(cfg.runs, cfg.corpus)
    metrics = metrics_of(runs, cfg.metrics)
    groups = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return groups, metrics, notes
