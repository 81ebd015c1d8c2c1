"""
From which compute on do interleaved models beat textless ones? The papers' first claims, asked on the wide corpus.

    papers/turn.sh                  data, runs and report; the same command goes on where it was stopped
    python -m papers.turn           the runs alone; start it once for each core or GPU
    python -m papers.turn_report    what the finished runs say: OUT/turn.json, turn.md, turn.png, turn.csv

In the wide corpus of tiny/ the text knows more than the speech (tiny/world.py) and several voices tell
stories. The arms, at equal compute C = 6 N D:

    interleaved    text, speech and interleaved documents, from a TextLM that knows the world
    textless       units alone, from random weights
    speech         units alone, from the TextLM (TWIST)
    scratch        as interleaved, from random weights
    chunks, utterances    as interleaved, with other spans (interleave.py --spans)

The rules, written before the runs:

    - At each budget, interleaved and textless are taken at their best size: the one with the lowest
      held-out loss for the first seed. The other arms take the size of interleaved. The first seed runs
      at all sizes, the others at the best.
    - An arm may read its speech as often as it likes; turn.csv says how often. What is asked is what to
      do with this much speech and compute.
    - A gain is the difference of two arms for each of three seeds, above 0 where the first is better. It is
      decided if its 95 % interval (Student's t) does not contain 0. Of an accuracy at which both arms are
      within 2 standard errors of 50 %, nothing is said.
    - The sign of a gain turns between the largest budget at which it is decided and negative and the
      smallest one from which on it is decided and positive at every budget. Where one of them is missing,
      the turn has a bound on one side or none. The crossing of the means, linear in ln C, is stated beside.
    - At equal speech, an interleaved model of which the share s of the tokens are units stands beside a
      textless one at the compute s C: of the same size, that has read as many units. Its values are
      interpolated in ln C. (SIMS's Figure 3 compares at equal steps: then the interleaved model has read
      less speech.)
    - Loss is in nats a unit on 64 rows of held-out speech of the wide corpus, the last of log.jsonl.
      Accuracies are of speech alone, in the voice of the stories unless it says unseen.
"""
import csv
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configurator import Refused, run
from evaluation.scores import student_interval
from files import atomically, read_json
from papers.claims import TEXTLESS, check_chance
from scaling import plan
from scaling.plan import execute, is_evaluated, is_trained
from scaling.runs import loss_curve

BASE = 'config/papers/wide.py'
SIZES = { # {budget in FLOPs: sizes around the best}
    1e13: ('0.5M', '1M'),
    3e13: ('0.5M', '1M', '2.8M'),
    8e13: ('0.5M', '1M', '2.8M'),
    2e14: ('1M', '2.8M'),
}
BUDGETS = tuple(SIZES)
SEEDS = 3
LOSS = 'loss'
SCORES = {'tiny/main/tsc/S': 'tSC', 'tiny/unseen/tsc/S': 'tSC, unseen voice', 'tiny/main/ssc/S': 'sSC',
          'knowledge/main/S': 'knowledge'}
ACROSS = {'tiny/main/tsc/S->T': 'tSC S->T', 'tiny/main/ssc/S->T': 'sSC S->T'} # of the arms that differ by their spans

class Arm(NamedTuple):
    """Runs of a kind."""
    text: bool # whether they start from OUT/text-SIZE; else from random weights
    flags: str = '' # arguments of train.py beside BASE
    budgets: tuple = BUDGETS
    own_size: bool = False # whether the size is chosen for this arm; else it is that of interleaved

def _spans(name):
    return Arm(True, f'--data=out/tokens/wide-{name},out/tokens/wide-talk-{name}', (3e13,))

ARMS = {
    'interleaved': Arm(True, own_size=True),
    'textless': Arm(False, TEXTLESS, own_size=True),
    'speech': Arm(True, TEXTLESS, BUDGETS[:3]),
    'scratch': Arm(False, '', BUDGETS[:3]),
    'chunks': _spans('chunks'),
    'utterances': _spans('utterances'),
}
SPANS = ('interleaved', 'chunks', 'utterances')
PAIRS = ( # (arm, baseline, the papers' words)
    ('interleaved', 'textless', '"under this setup SLMs scale more efficiently with compute" (SIMS, abstract)'),
    ('interleaved', 'scratch', '"TWIST initialisation is clearly beneficial" (SIMS 4.3)'),
    ('interleaved', 'speech', '"for semantic abilities the interleaved model outperformed the speech only model" '
                              '(SIMS 4.3)'),
)

@dataclass(frozen=True)
class Config:
    out: str = 'out/turn' # folder for a folder of each run, the TextLMs text-SIZE and the report
    known: str = '' # a turn.csv: what it has is not trained again
    gpu: str = 'cpu' # what each process trains on: cpu, or a GPU of the kind A100, H100 or H200

# --------------------------------------------------------------------------------------------------
# runs and their results

class Result(NamedTuple):
    """A finished run: a line of turn.csv."""
    arm: str
    flops: float # the budget
    size: str
    seed: int
    N: int # parameters
    tokens: int
    units: float # units read, with every repetition
    epochs: float # how often the scarcest source was read
    commit: str # of the code that trained it
    settings: str # hash of the arguments, the base config and the TextLM
    scores: dict # {metric: value}
    errors: dict # {metric: standard error}

METRICS = (LOSS, *SCORES, *ACROSS)
COLUMNS = (*Result._fields[:-2], *METRICS, *(f'{name}, stderr' for name in METRICS[1:]))

def settings_hash(row):
    """A short hash of what determines a run."""
    settings = plan.parse_settings(row['train'])
    arguments = [argument for argument in row['train'] if not argument.startswith(('--out=', '--init='))]
    parts = [arguments, Path(row['train'][0]).read_text(encoding='utf-8'), plan.hash_of_init(settings.init)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

def share_of_units(cfg):
    """The share of units among the tokens that a Config of train.py reads, from the folders' info.json."""
    counts = {source: [0, 0] for source in cfg.sources} # units, tokens
    for folder in cfg.data.split(','):
        info = read_json(folder, 'info.json', 'interleave.py')
        for source in cfg.sources:
            tokens = info['written'].get(f'train/{source}', {}).get('tokens', 0)
            share = 1.0
            if source == 'text':
                share = 0.0
            elif source == 'interleaved':
                both = sum(counted['tokens'] for name, counted in info['written'].items() if name.endswith(source))
                share = info['interleaved']['unit_tokens'] / both if both else 0.0
            counts[source][0] += share * tokens
            counts[source][1] += tokens
    shares = [units / tokens for units, tokens in counts.values()]
    return float(np.average(shares, weights=cfg.weights))

def result_of(row):
    """The Result of a row of the plan, None while it is unfinished. Refused if it was made with other settings."""
    folder = Path(row['out_dir'])
    if not is_trained(row) or not is_evaluated(row):
        return None
    trained = read_json(folder, 'settings.json', 'train.py')
    cells = read_json(folder, 'eval.json', 'eval.py')['results']
    curve = loss_curve(folder, 'wide')
    scores = {LOSS: curve[-1][1]} | {name: cells[name]['value'] for name in METRICS if name in cells}
    errors = {name: cells[name]['stderr'] for name in METRICS if name in cells}
    units = trained['tokens'] * share_of_units(plan.parse_settings(row['train']))
    return Result(row['arm'], row['flops'], row['size'], row['seed'], trained['parameters'], trained['tokens'], units,
                  row['epochs'], trained['commit'], settings_hash(row), scores, errors)

def read_known(path):
    """The Results in a turn.csv. Refused where it is none."""
    try:
        with open(path, newline='', encoding='utf-8') as f:
            table = csv.DictReader(f)
            lines = list(table)
    except OSError:
        raise Refused(f"known={path}: no such file; expected a turn.csv, which papers.turn_report writes") from None
    if tuple(table.fieldnames or ()) != COLUMNS:
        raise Refused(f"known={path}: not a turn.csv of this version; papers.turn_report writes one")
    kinds = Result.__annotations__
    results = []
    for line in lines:
        fields = {name: kinds[name](line[name]) for name in Result._fields[:-2]}
        scores = {name: float(line[name]) for name in METRICS if line[name]}
        errors = {name: float(line[f'{name}, stderr']) for name in METRICS[1:] if line[f'{name}, stderr']}
        results.append(Result(**fields, scores=scores, errors=errors))
    return results

def write_csv(path, results):
    with atomically(path) as tmp, open(tmp, 'w', newline='', encoding='utf-8') as f:
        table = csv.writer(f)
        table.writerow(COLUMNS)
        for result in sorted(results, key=lambda result: result[:4]):
            cells = [*(result.scores.get(name, '') for name in METRICS),
                     *(result.errors.get(name, '') for name in METRICS[1:])]
            table.writerow([*result[:-2], *cells])

# --------------------------------------------------------------------------------------------------
# which runs there are

def arm_rows(cfg, name, C, sizes):
    """The rows of scaling.plan of an arm at a budget: every size and seed."""
    arm = ARMS[name]
    directions = 'S,S->T' if name in SPANS and C in ARMS['chunks'].budgets else 'S'
    settings = plan.Config(family='tiny',
                           sizes=','.join(sizes),
                           budgets=f'{C:g}',
                           seeds=SEEDS,
                           base=BASE,
                           init=f'{cfg.out}/text-{{size}}' if arm.text else None,
                           flags=arm.flags,
                           out=f'{cfg.out}/{name}',
                           gpu=cfg.gpu,
                           gpus=1,
                           epochs=math.inf,
                           eval_flags=f'--data= --tasks=tiny,knowledge --directions={directions}')
    return [row | {'arm': name} for row in plan.plan_of(settings)]

class Study:
    """The runs of the study: which are finished, and which come next."""

    def __init__(self, cfg):
        self.cfg = cfg
        known = read_known(cfg.known) if cfg.known else ()
        self.known = {result[:4] + (result.settings,): result for result in known}
        self.results = {} # {(arm, C, seed): {size: Result}}
        self.todo = [] # rows of the smallest budget that is not finished
        for C in BUDGETS:
            for name, arm in ARMS.items():
                if C in arm.budgets:
                    self._add(name, C, SIZES[C] if arm.own_size else ())
            if self.todo:
                break

    def _add(self, name, C, sizes):
        """Looks up the runs of an arm at a budget: the first seed at all sizes, then all seeds at the best."""
        for row in arm_rows(self.cfg, name, C, sizes) if sizes else ():
            if row['seed'] == 0:
                self._look_up(row)
        best = self.best_size(name if sizes else 'interleaved', C)
        for row in arm_rows(self.cfg, name, C, [best]) if best else ():
            if row['seed'] or not sizes:
                self._look_up(row)

    def _look_up(self, row):
        key = (row['arm'], row['flops'], row['size'], row['seed'], settings_hash(row))
        result = self.known.get(key) or result_of(row)
        if result:
            self.results.setdefault((row['arm'], row['flops'], row['seed']), {})[row['size']] = result
        else:
            self.todo.append(row)

    def best_size(self, name, C):
        """The size with the lowest loss for the first seed; None while one of them is not finished."""
        results = self.results.get((name, C, 0), {})
        if len(results) < len(SIZES[C]):
            return None
        return min(results, key=lambda size: results[size].scores[LOSS])

    def at(self, name, C):
        """The Results of an arm at a budget, one for each seed, at its size; () while one is missing."""
        size = self.best_size(name if ARMS[name].own_size else 'interleaved', C)
        results = [self.results.get((name, C, seed), {}).get(size) for seed in range(SEEDS)]
        return results if all(results) else ()

    def all_results(self):
        return [result for sizes in self.results.values() for result in sizes.values()]

# --------------------------------------------------------------------------------------------------
# what they say

def scores_of(results, metric):
    return [result.scores[metric] for result in results]

def gain_of(values, baselines, metric):
    """Numbers (seeds,) of two arms -> {'mean', 'low', 'high', 'sign'}; sign is that of a decided gain, else 0."""
    sign = -1 if metric == LOSS else 1
    mean, low, high = student_interval(sign * (np.asarray(values) - np.asarray(baselines)))
    return {'mean': mean, 'low': low, 'high': high, 'sign': int(low > 0) - int(high < 0)}

def check_above_chance(metric, *arms):
    """Refuses an accuracy at which all arms, each a list of Results, are at chance."""
    if metric != LOSS:
        means = [np.mean(scores_of(results, metric)) for results in arms]
        check_chance(means, max(result.errors[metric] for results in arms for result in results))

def gains(study, arm, baseline, metric):
    """[{'C', and the keys of gain_of or 'why' it is not decidable}] at the budgets that both arms have finished."""
    rows = []
    for C in BUDGETS:
        pair = [study.at(name, C) if C in ARMS[name].budgets else () for name in (arm, baseline)]
        if all(pair):
            try:
                check_above_chance(metric, *pair)
                values = [scores_of(results, metric) for results in pair]
                rows.append({'C': C} | gain_of(*values, metric))
            except Refused as e:
                rows.append({'C': C, 'sign': 0, 'why': str(e)})
    return rows

def turn_of(rows):
    """Rows of gains -> {'from', 'to', 'crossing'} in FLOPs: where the sign turns; None for a side without a bound."""
    negative = [row['C'] for row in rows if row['sign'] < 0]
    begin = max(negative, default=None)
    end = None
    for row in reversed(rows):
        if row['sign'] <= 0:
            break
        end = row['C']
    crossing = None
    decidable = [row for row in rows if 'mean' in row]
    for a, b in zip(decidable, decidable[1:]):
        if a['mean'] < 0 < b['mean']:
            weight = -a['mean'] / (b['mean'] - a['mean'])
            crossing = math.exp((1 - weight) * math.log(a['C']) + weight * math.log(b['C']))
    return {'from': begin, 'to': end, 'crossing': crossing}

def gains_at_equal_units(study, arm, baseline, metric):
    """As gains, but against a baseline that has read as many units, where its budgets reach; with the key 'units'."""
    curve = [(C, study.at(baseline, C)) for C in ARMS[baseline].budgets if study.at(baseline, C)]
    budgets = [C for C, _ in curve]
    rows = []
    for C in ARMS[arm].budgets:
        results = study.at(arm, C)
        share = results and results[0].units / results[0].tokens
        if not budgets or not results or not budgets[0] <= share * C <= budgets[-1]:
            continue
        row = {'C': C, 'units': results[0].units, 'sign': 0}
        nearest = [others for B, others in curve if B <= C]
        try:
            check_above_chance(metric, results, nearest[-1])
            table = np.array([scores_of(others, metric) for _, others in curve]) # (budgets, seeds)
            baselines = [np.interp(math.log(share * C), np.log(budgets), column) for column in table.T]
            row |= gain_of(scores_of(results, metric), baselines, metric)
        except Refused as e:
            row['why'] = str(e)
        rows.append(row)
    return rows

def optima(study):
    """{arm: {C: (best size, its loss, whether it lies inside the sizes)}} of the first seed."""
    chosen = {}
    for name in ('interleaved', 'textless'):
        for C in BUDGETS:
            size = study.best_size(name, C)
            if size:
                loss = study.results[name, C, 0][size].scores[LOSS]
                chosen.setdefault(name, {})[C] = (size, loss, size not in (SIZES[C][0], SIZES[C][-1]))
    return chosen

def main(cfg):
    suite = plan.Config(family='tiny', gpu=cfg.gpu, gpus=1, out=cfg.out)
    while todo := Study(cfg).todo:
        execute(suite, todo)
    print(f"{cfg.out}: all runs are finished; next: python -m papers.turn_report --out={cfg.out}")

if __name__ == '__main__':
    run(main, Config)
