"""
From which compute on do interleaved models beat textless ones? The papers' first claims, asked on the wide corpus.

    papers/turn.sh                  data, runs and report; the same command goes on where it was stopped
    python -m papers.turn           the runs alone -> OUT/turn.csv; start it once for each core or GPU
    python -m papers.turn_report    what a turn.csv says: OUT/turn.json, turn.md, turn.png

In the wide corpus of tiny/ the text knows more than the speech (tiny/world.py) and several voices tell
stories. The arms, at equal compute C = 6 N D:

    interleaved    text, speech and interleaved documents, from a TextLM that knows the world
    textless       units alone, from random weights
    speech         units alone, from the TextLM (TWIST)
    scratch        as interleaved, from random weights
    chunks, utterances    as interleaved, with other spans (interleave.py --spans)

C is that of the run alone: the TextLM of interleaved and speech has cost 2e14 FLOPs more at 2.8M parameters.

The rules, written before the runs:

    - At each budget an arm is taken at its best size: the one with the lowest held-out loss for the first
      seed, which runs at all sizes; the others run at the best. The arms of other spans take the size of
      interleaved. Where the best size is an outermost one, verdicts hold for these sizes only.
    - An arm may read its speech as often as it likes; turn.csv says how often. What is asked is what to
      do with this much speech and compute.
    - A gain is the difference of two arms for each of three seeds, above 0 where the first is better. It is
      decided if its 95 % interval (Student's t) does not contain 0 and, of a loss, if it is above LEAST. Of an
      accuracy at which both arms are within 2 standard errors of 50 %, nothing is said.
    - The sign of a gain turns between the largest budget at which it is decided and negative and the
      smallest one from which on it is decided and positive at every budget. The crossing of the means
      between the two, linear in ln C, is stated beside.
    - At equal speech, an interleaved model stands beside textless ones at the compute with which a textless
      model of its size reads as many units, interpolated in ln C between budgets. (SIMS's Figure 3 compares
      at equal steps: then the interleaved model has read less speech.)
    - Loss is in nats a unit on at most 64 rows of held-out speech of the wide corpus, the last of log.jsonl.
      Accuracies are of speech alone, in the voice of the stories unless it says unseen.

What an interval does not cover: all seeds start from the same TextLM, and all models answer the same
items. Some fifty intervals are looked at, so two or three will be wrong. Textless documents begin with a
token, so their first unit counts in the loss, and they are packed into other rows.
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
LEAST = 0.005 # nats; a smaller difference in loss may come from what the loss of an arm is taken over
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
    'speech': Arm(True, TEXTLESS, BUDGETS[:3], own_size=True),
    'scratch': Arm(False, '', BUDGETS[:3], own_size=True),
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
    out: str = 'out/turn' # folder for turn.csv and a folder of each run; the TextLMs text-SIZE are there
    known: str = '' # a turn.csv: what it has, with the same settings and data, is not trained again
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
    epochs: float # how often each unit was read
    commit: str # of the code that trained it
    settings: str # hash of the settings, the data and the settings of the TextLM
    scores: dict # {metric: value}
    errors: dict # {metric: standard error}

METRICS = (LOSS, *SCORES, *ACROSS)
COLUMNS = (*Result._fields[:-2], *METRICS, *(f'{name}, stderr' for name in METRICS[1:]))

def _settings_of(settings):
    """The settings of a run on which its result depends, but for the place of its TextLM."""
    return {key: value for key, value in settings.items() if key not in {*plan.MAY_DIFFER, 'init'}}

def infos_of(settings):
    """The info.json of each data folder of a Config of train.py."""
    return [read_json(folder, 'info.json', 'interleave.py') for folder in settings.data.split(',')]

def settings_hash(row):
    """A short hash of what determines a Result: settings, data, evaluation, and the TextLM's settings and data."""
    settings = plan.parse_settings(row['train'])
    evaluation = [flag for flag in row['eval'] if not flag.startswith('--model=')]
    parts = [_settings_of(plan.as_json(settings)), [info['inputs'] for info in infos_of(settings)], evaluation]
    if settings.init != 'scratch':
        trained = read_json(settings.init, 'settings.json', 'train.py')
        parts += [_settings_of(trained['settings']), trained['inputs']]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

def units_of(settings):
    """(share of units among the tokens that a Config of train.py reads, units of the speech that its folders hold)."""
    infos = infos_of(settings)
    shares = []
    for source in settings.sources:
        units = 0
        tokens = 0
        for info in infos:
            n_tokens = {name: counted['tokens'] for name, counted in info['written'].items() if name.endswith(source)}
            share = 0.0 if source == 'text' else 1.0
            if source == 'interleaved' and n_tokens:
                share = info['interleaved']['unit_tokens'] / sum(n_tokens.values())
            tokens += n_tokens.get(f'train/{source}', 0)
            units += n_tokens.get(f'train/{source}', 0) * share
        shares.append(units / tokens)
    speech = 'textless' if settings.vocab == 'speech' else 'speech'
    available = sum(info['written'][f'train/{speech}']['tokens'] for info in infos)
    return float(np.average(shares, weights=settings.weights)), available

def result_of(row):
    """The Result of a row of the plan, None while it is unfinished. Refused if it was made with other settings."""
    folder = Path(row['out_dir'])
    if not is_trained(row) or not is_evaluated(row):
        return None
    trained = read_json(folder, 'settings.json', 'train.py')
    cells = read_json(folder, 'eval.json', 'eval.py')['results']
    settings = plan.parse_settings(row['train'])
    curve = loss_curve(folder, Path(settings.data.partition(',')[0]).name) # of the stories, not of the talk
    scores = {LOSS: curve[-1][1]} | {name: cells[name]['value'] for name in METRICS if name in cells}
    errors = {name: cells[name]['stderr'] for name in METRICS if name in cells}
    share, available = units_of(settings)
    units = share * trained['tokens']
    return Result(row['arm'], row['flops'], row['size'], row['seed'], trained['parameters'], trained['tokens'], units,
                  units / available, trained['commit'], settings_hash(row), scores, errors)

def read_csv(path):
    """The Results in a turn.csv. Refused where it is none."""
    try:
        with open(path, newline='', encoding='utf-8') as f:
            table = csv.DictReader(f)
            lines = list(table)
    except OSError:
        raise Refused(f"{path}: no such file; expected a turn.csv, which papers.turn writes") from None
    if tuple(table.fieldnames or ()) != COLUMNS:
        raise Refused(f"{path}: not a turn.csv of this version; papers.turn writes one")
    kinds = Result.__annotations__
    results = []
    for line in lines:
        fields = {name: kinds[name](line[name]) for name in Result._fields[:-2]}
        scores = {name: float(line[name]) for name in METRICS if line[name]}
        errors = {name: float(line[f'{name}, stderr']) for name in METRICS[1:] if line[f'{name}, stderr']}
        results.append(Result(**fields, scores=scores, errors=errors))
    return results

def write_csv(path, results):
    with atomically(path, wait=10) as tmp, open(tmp, 'w', newline='', encoding='utf-8') as f:
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
    """The Results of the study: what an arm has reached at a budget."""

    def __init__(self, results=()):
        self.results = {} # {(arm, C, seed): {size: Result}}
        for result in results:
            self.add(result)

    def add(self, result):
        self.results.setdefault((result.arm, result.flops, result.seed), {})[result.size] = result

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

def look_up(cfg):
    """(the Study of what is finished, the rows of the first budget at which some are not, as far as they are known)."""
    known = {result[:4] + (result.settings,): result for result in (read_csv(cfg.known) if cfg.known else ())}
    study = Study()
    todo = []
    def look(rows):
        missing = []
        for row in rows:
            key = (row['arm'], row['flops'], row['size'], row['seed'], settings_hash(row))
            result = known.get(key) or result_of(row)
            if result:
                study.add(result)
            else:
                missing.append(row)
        return missing
    for C in BUDGETS:
        missing = []
        for name, arm in ARMS.items():
            if C not in arm.budgets:
                continue
            if arm.own_size: # the first seed at all sizes
                missing += look(row for row in arm_rows(cfg, name, C, SIZES[C]) if row['seed'] == 0)
            best = study.best_size(name if arm.own_size else 'interleaved', C)
            if best:
                missing += look(row for row in arm_rows(cfg, name, C, [best]) if row['seed'] or not arm.own_size)
        todo = todo or missing
    return study, todo

# --------------------------------------------------------------------------------------------------
# what they say

def scores_of(results, metric):
    return [result.scores[metric] for result in results]

def gain_of(values, baselines, metric):
    """Numbers (seeds,) of two arms -> {'mean', 'low', 'high', 'sign'}; sign is that of a decided gain, else 0."""
    sign = -1 if metric == LOSS else 1
    mean, low, high = student_interval(sign * (np.asarray(values) - np.asarray(baselines)))
    is_decided = low * high > 0 and (metric != LOSS or abs(mean) >= LEAST)
    return {'mean': mean, 'low': low, 'high': high, 'sign': int(np.sign(mean)) if is_decided else 0}

def compare(results, values, baseline_results, baselines, metric):
    """gain_of, or {'sign': 0, 'why'} where both arms are at chance; of accuracies the Results have the errors."""
    if metric != LOSS:
        try:
            check_chance([np.mean(values), np.mean(baselines)],
                         max(result.errors[metric] for result in (*results, *baseline_results)))
        except Refused as e:
            return {'sign': 0, 'why': str(e)}
    return gain_of(values, baselines, metric)

def gains(study, arm, baseline, metric):
    """[{'C', and what compare gives}] at the budgets that both arms have finished."""
    rows = []
    for C in BUDGETS:
        ours, theirs = study.at(arm, C), study.at(baseline, C)
        if ours and theirs:
            rows.append({'C': C} | compare(ours, scores_of(ours, metric), theirs, scores_of(theirs, metric), metric))
    return rows

def turn_of(rows):
    """Rows of gains -> {'kind', 'from', 'to', 'crossing'}, the last three in FLOPs or None.

    kind: 'turn', 'ahead' or 'behind' (wherever it is decided), 'no single turn', 'not decided'.
    from: the largest budget at which the gain is negative; to: the smallest from which on it is positive.
    """
    negative = [row['C'] for row in rows if row['sign'] < 0]
    positive = [row['C'] for row in rows if row['sign'] > 0]
    begin = max(negative, default=None)
    end = None
    for row in reversed(rows):
        if row['sign'] <= 0:
            break
        end = row['C']
    crossing = None
    if not negative and not positive:
        kind = 'not decided'
    elif not negative:
        kind = 'ahead'
    elif not positive:
        kind = 'behind'
    elif min(positive) < begin or not end:
        kind = 'no single turn'
    else:
        kind = 'turn'
        for a, b in zip(rows, rows[1:]):
            if begin <= a['C'] and 'mean' in a and 'mean' in b and a['mean'] < 0 < b['mean']:
                weight = -a['mean'] / (b['mean'] - a['mean'])
                crossing = math.exp((1 - weight) * math.log(a['C']) + weight * math.log(b['C']))
    return {'kind': kind, 'from': begin, 'to': end, 'crossing': crossing}

def gains_at_equal_units(study, metric):
    """As gains of interleaved over textless, but at equal units, where its budgets reach; with the key 'units'."""
    budgets = [C for C in BUDGETS if study.at('textless', C)]
    rows = []
    for C in BUDGETS:
        ours = study.at('interleaved', C)
        size = ours and study.results.get(('textless', C, 0), {}).get(ours[0].size)
        same_units = size and 6 * size.N * ours[0].units # FLOPs of a textless model of this size
        if not budgets or not size or not budgets[0] <= same_units <= budgets[-1]:
            continue
        theirs = [study.at('textless', B) for B in budgets]
        table = np.array([scores_of(results, metric) for results in theirs]) # (budgets, seeds)
        baselines = [np.interp(math.log(same_units), np.log(budgets), column) for column in table.T]
        rows.append({'C': C, 'units': ours[0].units, 'C of textless': same_units}
                    | compare(ours, scores_of(ours, metric), sum(theirs, []), baselines, metric))
    return rows

def optima(study):
    """{arm: {C: (best size, its loss, whether it lies inside the sizes)}} of the first seed."""
    chosen = {}
    for name in (name for name, arm in ARMS.items() if arm.own_size):
        for C in BUDGETS:
            size = study.best_size(name, C)
            if size:
                loss = study.results[name, C, 0][size].scores[LOSS]
                chosen.setdefault(name, {})[C] = (size, loss, size not in (SIZES[C][0], SIZES[C][-1]))
    return chosen

def main(cfg):
    path = Path(cfg.out) / 'turn.csv'
    if cfg.known and Path(cfg.known).resolve() == path.resolve():
        raise Refused(f"known={cfg.known}: is written here; expected another file, such as a copy of it")
    suite = plan.Config(family='tiny', gpu=cfg.gpu, gpus=1, out=cfg.out)
    while True:
        study, todo = look_up(cfg)
        write_csv(path, study.all_results())
        if not todo:
            break
        execute(suite, todo)
    print(f"{path}: all runs are finished; next: python -m papers.turn_report --runs={path}")

if __name__ == '__main__':
    run(main, Config)
