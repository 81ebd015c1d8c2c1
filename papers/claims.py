"""
Puts the papers' claims to the test on tiny/, by some 150 runs that several processes can share.

    papers/claims.sh            data, runs and verdicts; the same command goes on where it was stopped
    python -m papers.claims     the runs alone; start it once for each core or GPU
    python -m papers.report     what the finished runs say: OUT/claims.json, claims.md, claims.png, runs.csv

A finding has parts. A part is one number for each of three seeds, above 0 where the papers are
right. The seeds differ in the order of the data and in the new rows of the embedding or, from
scratch, in all weights. The 95 % interval over the seeds (Student's t) gives the verdict:

    reproduced       the interval lies above 0
    contradicted     the interval lies below 0
    not decidable    the interval contains 0, fewer than three seeds have all runs that the part needs,
                     or a score is at chance

The rules:

    - Arms are compared at equal compute C = 6 N D. (SIMS 4.3 compares some at equal steps.)
    - An arm with several sizes is taken at its best size: the one with the lowest loss, of those
      that have enough data. A size has enough data if it reads no source more than EPOCHS times.
    - A budget counts if all runs of the part's arms are finished. It does not count if an arm is
      best at its smallest size while a still smaller size lacks data: the data would decide then.
    - "At the most compute" is the largest budget that counts.
    - Loss is in nats a unit on 32 rows of held-out stories, the last of log.jsonl. Arms with
      another vocabulary pack the stories into other rows.
    - tSC and sSC are measured in the voice that was trained on and in speech alone, unless a part
      says otherwise.
    - A score at chance decides nothing. It is at chance if all the arms' means over the seeds are
      within 2 standard errors of 50 %.
    - N_opt is counted without the table of ids, and only at budgets where the best size is neither
      the smallest nor the largest.

What an interval does not cover: all seeds start from the same TextLM of a kind, and all models
answer the same items. The papers' grammar scores have no counterpart here.

The claims and parts were written before the runs. Changed after a first look at the runs up to 4e12
FLOPs:

    - what counts as chance, and that the loss chooses the best size
    - sizes, budgets and steps, to what two cores can pay for

Changed after a review:

    - each arm has its own sizes
    - N_opt is counted without the table of ids
    - `mixed` has as much speech as either of its parts
    - four times as many items are scored

Changed after all runs:

    - N_opt counts only where the best size is neither the smallest nor the largest. Where it was
      the smallest in both arms, the parabolas alone gave the papers' answer.
"""
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configurator import Refused, run
from evaluation.scores import student_interval
from files import read_json
from scaling import plan
from scaling.models import SHAPES, models_of
from scaling.plan import SHAPE_KEYS, execute, is_evaluated, is_trained
from scaling.runs import loss_curve

SIZES = ('0.25M', '0.5M', '1M', '2.8M', '6M')
ONE = '1M' # the size of the arms that have only one
BUDGETS = (1e12, 2e12, 4e12, 1.2e13) # FLOPs; there is not enough speech for more
MIDDLE = 4e12 # FLOPs, at which TextLMs are compared
SMALL = 1.4e12 # FLOPs; nearly EPOCHS times through half an hour of speech for the size ONE
SEEDS = 3
STEPS = 60 # the least that a run may have; fewer are hardly more than the warm-up
EPOCHS = 4 # how often a run may read any source
LOSS = 'loss' # nats a unit of held-out stories: the last of log.jsonl
UNSEEN = 'loss, unseen voice' # nats a unit, the mean over eval.py's right stories in the unseen voice
TSC = 'tiny/main/tsc/S'
TSC_UNSEEN = 'tiny/unseen/tsc/S'
SSC = 'tiny/main/ssc/S'

TEXTS = { # TextLM: (size, further arguments of train.py)
    **{size: (size, ()) for size in SIZES},
    'weak': (ONE, ('--max_tokens=90_000',)),
    'long': (ONE, ('--max_tokens=1_800_000',)),
    'talk': (ONE, ('--data=out/tokens/talk-text',)),
}

class Arm(NamedTuple):
    """Runs of the same kind, one for each size, budget and seed."""
    text: str | None # the TextLM they start from, a key of TEXTS; '{size}': that of their size; None: random weights
    sizes: tuple
    budgets: tuple # FLOPs
    flags: str # arguments of train.py beside config/papers/slm.py

TEXTLESS = '--sources=textless --vocab=speech --tokenizer=None'
FEW = '--sources=speech,interleaved --data='
ARMS = {
    'interleaved': Arm('{size}', SIZES, BUDGETS, ''),
    'textless': Arm(None, SIZES, BUDGETS, TEXTLESS),
    'speech': Arm('{size}', (ONE,), BUDGETS, TEXTLESS),
    'scratch': Arm(None, (ONE,), BUDGETS, ''),
    'weak': Arm('weak', (ONE,), BUDGETS, ''),
    'weak-speech': Arm('weak', (ONE,), BUDGETS, TEXTLESS),
    'long': Arm('long', (ONE,), (MIDDLE,), ''),
    'talk': Arm('talk', (ONE,), (MIDDLE,), ''),
    # 0.6 hours of one voice, 0.6 hours of eight voices, and half of each.
    'synthetic': Arm('{size}', (ONE,), (SMALL,), FEW + 'out/tokens/stories-few'),
    'diverse': Arm('{size}', (ONE,), (SMALL,), FEW + 'out/tokens/talk'),
    'mixed': Arm('{size}', (ONE,), (SMALL,), FEW + 'out/tokens/stories-half,out/tokens/talk-half'),
}

@dataclass(frozen=True)
class Config:
    out: str = 'out/papers' # folder for claims.json, claims.md, claims.png, runs.csv, and for a folder of each run
    gpu: str = 'cpu' # what each process trains on: cpu, or a GPU of the kind A100, H100 or H200
    start: str = 'tiny/slm' # the model that papers/claims.sh trains on preferences, with its eval.json
    max_items: int = 400 # StoryCloze items of each voice that the models are scored on

# --------------------------------------------------------------------------------------------------
# the runs

def text_rows(cfg):
    """The TextLMs as rows for scaling.plan.execute."""
    rows = []
    for name, (size, flags) in TEXTS.items():
        config = models_of('tiny', size, vocab='text')[size].config
        shape = [f'--{key}={getattr(config, key)}' for key in SHAPE_KEYS]
        out_dir = f'{cfg.out}/text-{name}'
        rows.append({'name': f'text-{name}',
                     'out_dir': out_dir,
                     'why_not': None,
                     'train': ['config/papers/text.py', *shape, f'--out={out_dir}', *flags],
                     'eval': [f'--model={out_dir}', '--data=out/tokens/stories', '--items=', '--max_documents=500']})
    return rows

def plan_config(cfg, name):
    """The Config of scaling.plan for an arm."""
    arm = ARMS[name]
    return plan.Config(family='tiny',
                       sizes=','.join(arm.sizes),
                       budgets=','.join(f'{C:g}' for C in arm.budgets),
                       seeds=SEEDS,
                       base='config/papers/slm.py',
                       init=arm.text and f'{cfg.out}/text-{arm.text}',
                       flags=arm.flags,
                       out=f'{cfg.out}/{name}',
                       gpu=cfg.gpu,
                       gpus=1,
                       epochs=EPOCHS,
                       eval_flags=f'--data= --directions=S --max_items={cfg.max_items}')

def slm_rows(cfg):
    """The SLMs as rows for scaling.plan.execute, least compute first; their TextLMs must exist."""
    rows = [row | {'arm': arm} for arm in ARMS for row in plan.plan_of(plan_config(cfg, arm))]
    rows = [row for row in rows if row['steps'] >= STEPS]
    return sorted(rows, key=lambda row: (row['flops'], row['seed']))

# --------------------------------------------------------------------------------------------------
# the results of runs

class Result(NamedTuple):
    """What a finished run has reached."""
    N: int # parameters
    steps: int
    commit: str # of the code that trained it
    scores: dict # the value of each row of eval.json, and LOSS and UNSEEN
    errors: dict # the standard error of each row of eval.json

def result_of(row):
    """The Result of a run, None if it is unfinished; Refused if it was made with other settings."""
    folder = Path(row['out_dir'])
    if row['why_not'] or not is_trained(row) or not is_evaluated(row):
        return None
    trained = read_json(folder, 'settings.json', 'train.py')
    cells = read_json(folder, 'eval.json', 'eval.py')['results']
    scores = {name: cell['value'] for name, cell in cells.items()}
    errors = {name: cell['stderr'] for name, cell in cells.items()}
    items = read_json(folder, 'samples_tiny.jsonl', 'eval.py')
    unseen = [item['right_mean'] for item in items if 'unseen/ssc' in item['rows'] and item['direction'] == 'S']
    scores[UNSEEN] = -float(np.mean(unseen))
    curve = loss_curve(folder, 'stories')
    if curve: # runs on little data hold out other speech
        scores[LOSS] = curve[-1][1]
    return Result(trained['parameters'], trained['steps'], trained['commit'], scores, errors)

def check_chance(means, error):
    """Refuses scores that are all within 2 standard errors of a half.

    There the differences between seeds are noise, which may look consistent because all models
    share the items.
    """
    if max(abs(mean - 0.5) for mean in means) < 2 * error:
        percents = ' and '.join(f'{100 * mean:.1f}' for mean in means)
        raise Refused(f"at chance, {percents} with a standard error of {100 * error:.1f}")

class Runs:
    """The finished runs, compared seed by seed. Refused where a run that is needed is missing."""

    def __init__(self, rows, text_losses, scores_before=None, scores_after=()):
        """
        rows: those of slm_rows
        text_losses: {TextLM: its loss on the stories' text}
        scores_before: the results in eval.json of the model before training on preferences
        scores_after: those of each finished seed after it
        """
        self.feasible = {(row['arm'], row['size'], row['flops']): not row['why_not'] for row in rows}
        self.text_losses = text_losses
        self.scores_before = scores_before
        self.scores_after = scores_after
        self.seeds = range(SEEDS)
        self.results = {}
        for row in rows:
            result = result_of(row)
            if result:
                self.results[row['arm'], row['size'], row['flops'], row['seed']] = result

    def grid(self, *arms):
        """[(C, {arm: its sizes})]: the budgets that count, rising.

        Of the sizes that all the arms are planned at, each arm has those with enough data.
        """
        planned = [size for size in SIZES if all(size in ARMS[arm].sizes for arm in arms)]
        grid = []
        data_decide = False
        for C in sorted({C for _, _, C in self.feasible}):
            sizes = {arm: [size for size in planned if self.feasible.get((arm, size, C))] for arm in arms}
            if not self.are_finished(C, sizes):
                continue
            if any(self.lacks_data_at_smallest_size(arm, C, sizes[arm], planned) for arm in arms):
                data_decide = True
            else:
                grid.append((C, sizes))
        if not grid and data_decide:
            raise Refused("the smallest size for which the data are enough is the best, at every budget")
        if not grid:
            raise Refused(f"no budget is finished for {', '.join(arms)}")
        return grid

    def are_finished(self, C, sizes):
        """Whether each arm has sizes, and all of its runs at C are finished."""
        keys = [(arm, size, C, seed) for arm in sizes for size in sizes[arm] for seed in self.seeds]
        return all(sizes.values()) and all(key in self.results for key in keys)

    def lacks_data_at_smallest_size(self, arm, C, sizes, planned):
        """Whether the smallest size is best for some seed, and a smaller planned one lacks data."""
        smaller = planned[:planned.index(sizes[0])]
        if not any(self.feasible.get((arm, size, C)) is False for size in smaller):
            return False
        return any(self.best(arm, C, sizes, seed) is self.results[arm, sizes[0], C, seed] for seed in self.seeds)

    def best(self, arm, C, sizes, seed):
        """The Result with the lowest loss. Chosen by a score, the best would be a lucky one."""
        results = [self.results[arm, size, C, seed] for size in sizes]
        return min(results, key=lambda result: result.scores.get(LOSS, 0))

    def curve(self, arm, grid, seed, metric):
        """The metric of the best model at each budget."""
        return np.array([self.best(arm, C, sizes[arm], seed).scores[metric] for C, sizes in grid])

    def curves(self, metric, *arms):
        """(budgets, for each arm (seeds, budgets)).

        Refused where all arms are at chance at the most compute.
        """
        grid = self.grid(*arms)
        values = np.array([[self.curve(arm, grid, seed, metric) for seed in self.seeds] for arm in arms])
        if metric not in (LOSS, UNSEEN):
            C, sizes = grid[-1]
            best = [self.best(arm, C, sizes[arm], seed) for arm in arms for seed in self.seeds]
            check_chance(values[:, :, -1].mean(1), max(result.errors[metric] for result in best))
        return np.array([C for C, _ in grid]), values

    def gain(self, arm, baseline, metric):
        """(budgets, (seeds, budgets)): how much better an arm is than a baseline."""
        C, (values, baseline_values) = self.curves(metric, arm, baseline)
        if metric in (LOSS, UNSEEN):
            return C, baseline_values - values
        return C, values - baseline_values

# --------------------------------------------------------------------------------------------------
# the findings: functions of Runs -> a number for each seed, above 0 where the papers are right

def gain_at_most_compute(arm, baseline, metric):
    def values(runs):
        _, gain = runs.gain(arm, baseline, metric)
        return gain[:, -1]
    return values

def slopes(C, Y):
    """The slope of each row of Y against ln C; Refused below three budgets."""
    if len(C) < 3:
        raise Refused(f"{len(C)} finished budgets, and a slope needs 3")
    return np.polyfit(np.log(C), np.asarray(Y).T, 1)[0]

def gain_trend(arm, baseline, metric, sign):
    """The slope of the gain against ln C, times sign."""
    def values(runs):
        return sign * slopes(*runs.gain(arm, baseline, metric))
    return values

def exponent_gain(metric):
    """How much faster the best interleaved model gains from compute than the best textless one.

    It is the difference of the exponents of two power laws.
    """
    def values(runs):
        C, (interleaved, textless) = runs.curves(metric, 'interleaved', 'textless')
        sign = -1 if metric == LOSS else 1
        return sign * (slopes(C, np.log(interleaved)) - slopes(C, np.log(textless)))
    return values

def log_n_opt(runs, arm, C, sizes, seed):
    """ln N_opt: the vertex of the parabola of the loss in ln N; nan if no size inside is the best.

    N is without the table of ids, in which only the interleaved models have text.
    """
    shapes = [SHAPES[f'tiny/{size}'] for size in sizes]
    log_N = np.log([shape.n_params - shape.embedding_rows * shape.n_embd for shape in shapes])
    losses = [runs.results[arm, size, C, seed].scores[LOSS] for size in sizes]
    c2, c1, _ = np.polyfit(log_N, losses, 2)
    best_is_inside = 0 < np.argmin(losses) < len(losses) - 1
    return -c1 / 2 / c2 if c2 > 0 and best_is_inside else math.nan

def log_n_opt_gain(runs):
    """ln of the N_opt of interleaved over that of textless, the mean over budgets.

    A budget counts if for all seeds the best size is neither the smallest nor the largest.
    """
    grid = runs.grid('interleaved', 'textless')
    grid = [(C, sizes) for C, sizes in grid if min(map(len, sizes.values())) >= 3]
    gains = []
    for C, sizes in grid:
        interleaved = [log_n_opt(runs, 'interleaved', C, sizes['interleaved'], seed) for seed in runs.seeds]
        textless = [log_n_opt(runs, 'textless', C, sizes['textless'], seed) for seed in runs.seeds]
        gain = np.subtract(interleaved, textless)
        if not np.isnan(gain).any():
            gains.append(gain)
    if not gains:
        raise Refused("at no budget has every seed's loss a minimum among the sizes")
    return np.array(gains).T.mean(1)

def strong_over_weak(runs):
    """Gain of interleaving with the good TextLM less that with the weak one, the mean over budgets."""
    arms = ('interleaved', 'speech', 'weak', 'weak-speech')
    _, (interleaved, speech, weak, weak_speech) = runs.curves(TSC, *arms)
    return (interleaved - speech - weak + weak_speech).mean(1)

def other_text_over_weak(runs):
    """Gain of the TextLM of other text over the weak one, which has the lower loss on the stories."""
    if runs.text_losses['talk'] <= runs.text_losses['weak']:
        raise Refused("the TextLM of other text has the lower loss on the stories: nothing to be misled by")
    return gain_at_most_compute('talk', 'weak', LOSS)(runs)

def dpo_gain(metric):
    """A score after training on preferences less that before."""
    def values(runs):
        if len(runs.scores_after) < SEEDS:
            raise Refused(f"{len(runs.scores_after)} of {SEEDS} runs of dpo.py are finished")
        before = runs.scores_before[metric]
        after = [rows[metric]['value'] for rows in runs.scores_after]
        check_chance([before['value'], np.mean(after)], before['stderr'])
        return np.array(after) - before['value']
    return values

class Finding(NamedTuple):
    title: str
    claim: str # the papers' words, and where they are
    parts: tuple # of (what is compared, unit, function of Runs)

FINDINGS = (
    Finding(
        "Interleaved models scale more efficiently",
        '"under this setup SLMs scale more efficiently with compute" (SIMS, abstract); "one should allocate '
        'notably more of the compute budget for increasing model size" (the same)', (
            ("loss, at the most compute", "nats", gain_at_most_compute('interleaved', 'textless', LOSS)),
            ("loss, exponent over compute", "", exponent_gain(LOSS)),
            ("tSC, at the most compute", "points", gain_at_most_compute('interleaved', 'textless', TSC)),
            ("tSC, exponent over compute", "", exponent_gain(TSC)),
            ("ln N_opt at equal compute", "", log_n_opt_gain))),
    Finding(
        "TWIST beats random weights",
        '"the gap in loss does seem to decrease with more training steps, [...] though TWIST initialisation '
        'is clearly beneficial" (SIMS 4.3)', (
            ("loss, at the most compute", "nats", gain_at_most_compute('interleaved', 'scratch', LOSS)),
            ("tSC, at the most compute", "points", gain_at_most_compute('interleaved', 'scratch', TSC)),
            ("the gap in loss shrinks, per ln C", "nats", gain_trend('interleaved', 'scratch', LOSS, -1)))),
    Finding(
        "Interleaving helps speech, from a good TextLM",
        '"for semantic abilities the interleaved model outperformed the speech only model from as little as '
        '5k training steps [...] This impact seems to increase with more compute. [...] this is not '
        'necessarily the case for weaker/smaller TextLMs" (SIMS 4.3)', (
            ("tSC, at the most compute", "points", gain_at_most_compute('interleaved', 'speech', TSC)),
            ("the gain in tSC grows, per ln C", "points", gain_trend('interleaved', 'speech', TSC, 1)),
            ("tSC: gain from the good TextLM over that from the weak one", "points", strong_over_weak),
            ("loss: speech only is no worse, at the most compute", "nats",
             gain_at_most_compute('speech', 'interleaved', LOSS)))),
    Finding(
        "Synthetic and diverse speech together",
        '"we see benefit across diverse speakers, by training on a mixture of synthetic and real data, '
        'compared to real data only or synthetic data only" (SIMS 4.1)', (
            ("loss in the unseen voice, over synthetic alone", "nats",
             gain_at_most_compute('mixed', 'synthetic', UNSEEN)),
            ("loss in the unseen voice, over diverse alone", "nats",
             gain_at_most_compute('mixed', 'diverse', UNSEEN)),
            ("tSC in the unseen voice, over synthetic alone", "points",
             gain_at_most_compute('mixed', 'synthetic', TSC_UNSEEN)),
            ("tSC in the unseen voice, over diverse alone", "points",
             gain_at_most_compute('mixed', 'diverse', TSC_UNSEEN)))),
    Finding(
        "Which TextLM matters, and its own loss does not say",
        '"not all model families are born equal [...] these results do not always correlate with performance '
        'of the base TextLMs" (SIMS 4.2)', (
            ("loss, from the good TextLM over the weak one", "nats",
             gain_at_most_compute('interleaved', 'weak', LOSS)),
            ("loss, from one trained twice as long over the good one", "nats",
             gain_at_most_compute('long', 'interleaved', LOSS)),
            ("loss, from one of other text over the weak one, which models the stories better", "nats",
             other_text_over_weak))),
    Finding(
        "Preferences raise sSC and tSC",
        "Slam's sSC rises from 58.2 to 61.3, its tSC from 80.7 to 84.2 by preference optimisation (SIMS, "
        "Table 3)", (
            ("sSC, after DPO over before", "points", dpo_gain(SSC)),
            ("tSC, after DPO over before", "points", dpo_gain(TSC)))))

def judge(values):
    """Numbers (seeds,) -> {'mean', 'low', 'high', 'seeds', 'verdict'} by the rules above."""
    mean, low, high = student_interval(values)
    verdict = 'not decidable'
    if low > 0:
        verdict = 'reproduced'
    elif high < 0:
        verdict = 'contradicted'
    return {'mean': mean, 'low': low, 'high': high, 'seeds': values.tolist(), 'verdict': verdict}

def examine(part, runs):
    """The verdict on a part, or why it is not decidable."""
    name, unit, values = part
    try:
        verdict = judge(values(runs) * (100 if unit == 'points' else 1))
    except Refused as e:
        verdict = {'verdict': 'not decidable', 'why': str(e)}
    return {'part': name, 'unit': unit, **verdict}

def main(cfg):
    suite = plan.Config(family='tiny', gpu=cfg.gpu, gpus=1, out=cfg.out)
    execute(suite, text_rows(cfg))
    execute(suite, slm_rows(cfg))

if __name__ == '__main__':
    run(main, Config)
