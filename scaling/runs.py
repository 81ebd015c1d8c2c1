"""
The finished runs of a scaling study, and the rows of published tables, read into one form.
"""
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configurator import Refused
from evaluation.results import in_percent
from files import read_json


class Run(NamedTuple):
    """A finished run, or a row of a published table."""
    name: str
    group: str      # what is fitted together: 'interleaved', 'speech only', 'scratch'; with the family where it is known
    init: str       # what it started from
    N: float        # parameters, all of them
    D: float        # tokens
    C: float        # FLOPs, 6 N D where a table does not print them
    steps: int
    loss: float | None # held-out nats a unit; None: not measured
    scores: dict    # {metric: (value, its standard error or None)}, accuracies between 0 and 1
    planned: float | None = None # FLOPs that were planned, of which whole steps are a little less

    @property
    def budget(self):
        return self.planned or self.C

def loss_curve(folder, corpus):
    """[(tokens, loss on held-out speech)] of a run; its speech source is 'speech' or, speech-only, 'textless'."""
    settings = read_json(folder, 'settings.json', 'train.py')['settings']
    points = []
    for row in read_json(folder, 'log.jsonl', 'train.py'):
        for source in ('speech', 'textless'):
            if mean := row.get('val', {}).get(f'{corpus}/{source}'):
                points.append((row['step'] * settings['batch_tokens'], mean.get('units', mean.get('speech')))) # 'speech' before the modalities had one name
    return points

def kind_of(settings):
    """'interleaved' or 'speech only' (SIMS Figure 3), of other runs their sources; from random weights with ', scratch'."""
    sources = settings['sources']
    kind = ('interleaved' if 'interleaved' in sources else 'speech only' if set(sources) <= {'speech', 'textless'}
            else ' + '.join(sources))
    return kind + (', scratch' if settings['init'] == 'scratch' else '')

def read_run(folder, corpus, family=''):
    """The Run in a folder of train.py and eval.py; its loss is that at the end of log.jsonl, on corpus."""
    made = read_json(folder, 'settings.json', 'train.py')
    curve = loss_curve(folder, corpus)
    rows = read_json(folder, 'eval.json', 'eval.py')['results']
    scores = {name: (row['value'], row['stderr']) for name, row in rows.items() if not name.startswith('loss/')}
    settings = made['settings']
    kind, init = kind_of(settings), settings.get('init_config') or settings['init']
    return Run(Path(folder).name, f'{family}, {kind}' if family else kind, init, made['parameters'], made['tokens'],
               made['flops'], made['steps'], curve[-1][1] if curve else None, scores, settings.get('max_flops'))

def published(path):
    """(Runs, note) of a file of published tables: rows that name their family. The others are systems of many makers, a
    model or two each and no suite: points to draw, not to fit."""
    runs, others = [], 0
    for row in read_json(Path(path).parent, Path(path).name, 'the repository')['rows']:
        N, D, C = row.get('params'), row.get('tokens'), row.get('flops')
        if not (N and (D or C) and 'family' in row):
            others += 1
            continue
        scores = {key: (value / 100, None) for key, value in row.items()
                  if key.split('/')[0].removeprefix('ms_') in ('sblimp', 'ssc', 'tsc') and not key.endswith('before')}
        runs.append(Run(f"{row['model']} {N:.2g}, {row['table']} row {row['row']}", f"{row['family']}, {row['kind']}",
                        row['family'], N, D or C / 6 / N, C or 6 * N * D, 0, None, scores))
    return runs, f"{path}: {others} rows left out, which are of no family of models at several sizes or lack N and C"

def read_runs(spec, corpus):
    """Runs of a comma-separated list of folders: of one run, of a suite (runs.jsonl of scaling.plan) or of several
    runs; or .json files of published tables. What was left out is said in the notes, the second result."""
    runs, notes = [], []
    for part in filter(None, spec.split(',')):
        path = Path(part)
        if path.suffix == '.json':
            more, note = published(path)
            runs, notes = runs + more, [*notes, note]
        elif (path / 'settings.json').is_file():
            runs.append(read_run(path, corpus))
        elif (path / 'runs.jsonl').is_file():
            rows = read_json(path, 'runs.jsonl', 'scaling.plan')
            done = [row for row in rows if (Path(row['out_dir']) / 'eval.json').is_file()]
            runs += [read_run(row['out_dir'], corpus, row['family']) for row in done]
            if left := [row['name'] for row in rows if row not in done]:
                notes.append(f"{part}: {len(left)} of {len(rows)} runs are not finished: {', '.join(left)}")
        elif found := sorted(p.parent for p in path.glob('*/settings.json')):
            runs += [read_run(folder, corpus) for folder in found]
        else:
            raise Refused(f"{part}: no runs; expected folders of train.py, a folder of such, or one that scaling.plan made")
    if not runs:
        raise Refused(f"{spec}: no finished run; expected settings.json and eval.json in each, as scaling.plan --run "
                      "makes them")
    return runs, notes

def metrics_of(runs, asked):
    """The scores that are asked for, as names separated by commas, or '': all of direction S that a run has."""
    found = dict.fromkeys(name for run in runs for name in run.scores)
    metrics = asked.split(',') if asked else [name for name in found if name.split('/')[-1] == 'S']
    if lacking := [name for name in metrics if name not in found]:
        raise Refused(f"metrics: no run has {', '.join(lacking)}; there are {', '.join(found) or 'none'}")
    if other := [name for name in metrics if not in_percent(name)]:
        raise Refused(f"metrics: {', '.join(other)}: expected shares, of which more is better")
    return metrics

def values_of(runs, metric):
    """(N, D, budget, y, its standard error or nan) as arrays of the runs that have the metric, 'loss' or a score's name."""
    runs = [r for r in runs if (r.loss is not None if metric == 'loss' else metric in r.scores)]
    if not runs:
        raise Refused(f"no run has {'a loss on the held-out speech of --corpus=' if metric == 'loss' else metric}")
    pairs = [(r.loss, None) if metric == 'loss' else r.scores[metric] for r in runs]
    y = np.array([math.nan if v is None else v for v, _ in pairs], dtype=float)
    bad = [r.name for r, v in zip(runs, y) if not math.isfinite(v)]
    if bad:
        raise Refused(f"{metric} is not finite in {', '.join(bad)}: leave out the runs or train them again")
    errors = np.array([math.nan if e is None else e for _, e in pairs], dtype=float)
    return (*(np.array([getattr(r, k) for r in runs], dtype=float) for k in ('N', 'D', 'budget')), y, errors)

def count(n, thing):
    return f"{n} {thing}{'' if n == 1 else 's'}"

def by_group(cfg):
    """({group: its runs}, metrics asked for or found, notes) of Fit or Predict."""
    runs, notes = read_runs(cfg.runs, cfg.corpus)
    metrics = metrics_of(runs, cfg.metrics)
    groups = {name: [run for run in runs if run.group == name] for name in dict.fromkeys(run.group for run in runs)}
    return groups, metrics, notes
