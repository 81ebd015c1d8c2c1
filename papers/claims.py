"""
The papers' findings, put to the test on tiny/: some 150 runs that share out over the processes which are started.

    papers/claims.sh                  data, runs, verdicts; again: goes on where it was cut
    python -m papers.claims           the runs alone; start it as often as there are cores or GPUs, each with its own
    python -m papers.report           what the finished runs say: OUT/claims.json, claims.md, claims.png, runs.csv

Each finding has parts; each part is a number for every seed, above 0 where the papers are right. Its interval is Student's,
95 %, over the seeds (they differ in the order of the data, the new rows or, from scratch, in all weights), and its verdict:

    reproduced      the interval lies above 0                contradicted      it lies below
    not decidable   it holds 0; fewer than three seeds have all the runs that the part needs; or a score is at chance

Arms are compared at equal C = 6 N D (SIMS 4.3 compares some at equal steps). Where arms have several sizes, each is taken at
its best one, by loss, of those for which the data are enough. A budget counts when all runs of a part's arms are finished,
and none of the arms is best at its smallest size while a smaller one would have read its data more than EPOCHS times: the
data would decide then. "At the most compute" is the largest such budget. Loss is in nats a unit on 32 rows of held-out
stories (log.jsonl's last; arms of other vocabularies pack them otherwise), tSC and sSC are those of the voice that was
trained on, in speech alone, unless a part says otherwise; a score at chance decides nothing. The papers' grammar scores
have no counterpart here. What an interval does not cover: there is one TextLM of a kind, which all seeds start from, and
all models answer the same items.

The claims and parts were written before the runs. Changed after a first look at the runs up to 4e12 FLOPs: what chance is, and
that loss chooses the best size; sizes, budgets and steps, to what two cores can pay; and, after a review, that each arm
has its own sizes, that N_opt is counted without the table of ids, that `mixed` holds as much speech as either part, and that
four times as many items are scored. Changed after all runs: N_opt counts where the best size is neither the smallest nor the
largest; where it was the smallest in both arms, parabolas alone gave the papers' answer.
"""
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configurator import Refused, run
from files import read_json
from scaling import plan
from scaling.models import SHAPES, models_of
from scaling.plan import evaluated, execute, finished
from scaling.runs import loss_curve

SIZES = ('0.25M', '0.5M', '1M', '2.8M', '6M')
ONE = '1M' # the size of the findings that vary something else
BUDGETS = (1e12, 2e12, 4e12, 1.2e13) # FLOPs; there is not the speech for more
MIDDLE, SMALL = 4e12, 1.4e12 # FLOPs: where TextLMs are compared; of ONE, nearly EPOCHS through half an hour of speech
SEEDS = 3
STEPS = 60 # at least; fewer are hardly more than the warm-up
EPOCHS = 4 # over any part of the data, at most
T95 = 4.303 # Student's t, 95 %, of SEEDS - 1 degrees of freedom
TEXTS = { # TextLMs: shape, more for train.py
    **{size: (size, ()) for size in SIZES}, 'weak': (ONE, ('--max_tokens=90_000',)),
    'long': (ONE, ('--max_tokens=1_800_000',)), 'talk': (ONE, ('--data=out/tokens/talk-text',))}
TEXTLESS = "--sources=('textless',) --vocab=speech --tokenizer=None"
FEW = "--sources=('speech','interleaved') --data="
ARMS = { # TextLM (None: random weights), sizes, FLOPs, more for train.py than config/papers/slm.py has
    'interleaved': ('{size}', SIZES, BUDGETS, ''),
    'textless': (None, SIZES, BUDGETS, TEXTLESS),
    'speech': ('{size}', (ONE,), BUDGETS, TEXTLESS),
    'scratch': (None, (ONE,), BUDGETS, ''),
    'weak': ('weak', (ONE,), BUDGETS, ''),
    'weak-speech': ('weak', (ONE,), BUDGETS, TEXTLESS),
    'long': ('long', (ONE,), (MIDDLE,), ''),
    'talk': ('talk', (ONE,), (MIDDLE,), ''),
    'synthetic': ('{size}', (ONE,), (SMALL,), FEW + 'out/tokens/stories-few'), # 0.6 h of one voice,
    'diverse': ('{size}', (ONE,), (SMALL,), FEW + 'out/tokens/talk'), # 0.6 h of eight,
    'mixed': ('{size}', (ONE,), (SMALL,), FEW + 'out/tokens/stories-half,out/tokens/talk-half')} # and half of each
LOSS, UNSEEN = 'loss', 'loss, unseen voice' # nats a unit: of held-out stories, log.jsonl's last; of eval.py's right stories
TSC, TSC_UNSEEN, SSC = 'tiny/main/tsc/S', 'tiny/unseen/tsc/S', 'tiny/main/ssc/S'

@dataclass(frozen=True)
class Config:
    out: str = 'out/papers' # a folder a run, claims.json, claims.md, claims.png, runs.csv
    gpu: str = 'cpu' # as in scaling.plan; or A100, H100, H200: one for each process
    start: str = 'tiny/slm' # what papers/claims.sh gave dpo.py, with its eval.json
    max_items: int = 400 # of each voice

# ----------------------------------------------------------------------------------------------------------------
# the runs

def text_rows(cfg):
    """The TextLMs as scaling.plan.execute takes them."""
    rows = []
    for name, (size, more) in TEXTS.items():
        _, shape, _ = models_of('tiny', size, vocab='text')[size]
        own = [f'--{key}={getattr(shape, key)}' for key in ('n_layer', 'n_head', 'n_kv_head', 'n_embd', 'head_dim', 'n_ffn')]
        out_dir = f'{cfg.out}/text-{name}'
        rows.append({'name': f'text-{name}', 'out_dir': out_dir, 'why_not': None,
                     'train': ['config/papers/text.py', *own, f'--out={out_dir}', *more],
                     'eval': [f'--model={out_dir}', '--data=out/tokens/stories', '--items=', '--max_documents=500']})
    return rows

def plan_of(cfg, arm):
    text, sizes, budgets, flags = ARMS[arm]
    return plan.Config(family='tiny', sizes=','.join(sizes), budgets=','.join(f'{C:g}' for C in budgets), seeds=SEEDS,
                      base='config/papers/slm.py', init=text and f'{cfg.out}/text-{text}', flags=flags,
                      out=f'{cfg.out}/{arm}', gpu=cfg.gpu, gpus=1, epochs=EPOCHS,
                      eval_flags=f'--data= --directions=S --max_items={cfg.max_items}')

def slm_rows(cfg):
    """The SLMs as scaling.plan.execute takes them, the least compute first; their TextLMs must be there."""
    rows = [row | {'arm': arm} for arm in ARMS for row in plan.plan_of(plan_of(cfg, arm))]
    return sorted((row for row in rows if row['steps'] >= STEPS), key=lambda row: (row['flops'], row['seed']))

def check_chance(means, error):
    """Refuses scores that all lie within 2 standard errors of their items from a half: what differs between seeds is noise
    there, which the items that all models share can make look alike."""
    if max(abs(mean - 0.5) for mean in means) < 2 * error:
        raise Refused(f"at chance, {' and '.join(f'{100 * mean:.1f}' for mean in means)} with a standard error of {100 * error:.1f}")

class Result(NamedTuple):
    N: int          # parameters
    steps: int
    commit: str     # that trained it
    scores: dict    # value of each row of eval.json; LOSS and UNSEEN, nats a unit
    errors: dict    # the standard error of each row

def result_of(row):
    """The Result of a finished run, None of another; Refused where it was made with other settings."""
    folder = Path(row['out_dir'])
    if row['why_not'] or not finished(row) or not evaluated(row):
        return None
    made, cells = read_json(folder, 'settings.json', 'train.py'), read_json(folder, 'eval.json', 'eval.py')['results']
    stories = [item['right_mean'] for item in read_json(folder, 'samples_tiny.jsonl', 'eval.py')
               if 'unseen/ssc' in item['rows'] and item['direction'] == 'S']
    scores = {name: cell['value'] for name, cell in cells.items()} | {UNSEEN: -float(np.mean(stories))}
    for _, loss in loss_curve(folder, 'stories')[-1:]: # runs on little data hold out their own
        scores[LOSS] = loss
    return Result(made['parameters'], made['steps'], made['commit'], scores, {name: cell['stderr'] for name, cell in cells.items()})

class Runs:
    """The finished runs, compared seed by seed. Refused where one that is needed is missing."""
    def __init__(self, rows, texts):
        """rows: of slm_rows; texts: {TextLM: its loss on the stories' text}."""
        self.feasible = {(row['arm'], row['size'], row['flops']): not row['why_not'] for row in rows}
        self.texts, self.seeds = texts, range(SEEDS)
        self.results = {(row['arm'], row['size'], row['flops'], row['seed']): found
                        for row in rows if (found := result_of(row))}

    def grid(self, *arms):
        """[(C, {arm: its sizes})]: the budgets that count, rising; of the sizes that all the arms are planned at, each arm
        has those for which the data are enough."""
        planned = [size for size in SIZES if all(size in ARMS[arm][1] for arm in arms)]
        found, starved = [], False
        for C in sorted({C for _, _, C in self.feasible}):
            sizes = {arm: [size for size in planned if self.feasible.get((arm, size, C))] for arm in arms}
            if not all(sizes.values()) or not all((arm, size, C, seed) in self.results for arm in arms
                                                  for size in sizes[arm] for seed in self.seeds):
                continue
            if any(self.starves(arm, C, sizes[arm], planned) for arm in arms):
                starved = True
            else:
                found.append((C, sizes))
        if not found:
            raise Refused("the smallest size for which the data are enough is the best, at every budget" if starved else
                          f"no budget is finished for {', '.join(arms)}")
        return found

    def starves(self, arm, C, sizes, planned):
        """Whether the smallest of the sizes is the best for some seed, and a smaller one lacks data."""
        lacks = any(self.feasible.get((arm, size, C)) is False for size in planned[:planned.index(sizes[0])])
        return lacks and any(self.best(arm, C, sizes, seed) is self.results[arm, sizes[0], C, seed] for seed in self.seeds)

    def best(self, arm, C, sizes, seed):
        """The Result with the lowest loss, so that no luck in a score chooses."""
        return min((self.results[arm, size, C, seed] for size in sizes), key=lambda result: result.scores.get(LOSS, 0))

    def curve(self, arm, grid, seed, metric):
        """What the best model has at each budget."""
        return np.array([self.best(arm, C, sizes[arm], seed).scores[metric] for C, sizes in grid])

    def curves(self, metric, *arms):
        """(budgets, for each arm (seeds, budgets)); Refused where all arms are at chance at the most compute."""
        grid = self.grid(*arms)
        found = np.array([[self.curve(arm, grid, seed, metric) for seed in self.seeds] for arm in arms])
        if metric not in (LOSS, UNSEEN):
            C, sizes = grid[-1]
            errors = [self.best(arm, C, sizes[arm], seed).errors[metric] for arm in arms for seed in self.seeds]
            check_chance(found[:, :, -1].mean(1), max(errors))
        return np.array([C for C, _ in grid]), found

    def gain(self, arm, other, metric):
        """(budgets, (seeds, budgets)): how much better arm is than other."""
        C, (a, b) = self.curves(metric, arm, other)
        return C, b - a if metric in (LOSS, UNSEEN) else a - b

# ----------------------------------------------------------------------------------------------------------------
# the findings: functions of Runs -> a number for each seed, above 0 where the papers are right

def better(arm, other, metric):
    return lambda runs: runs.gain(arm, other, metric)[1][:, -1]

def trend(x, Y):
    """Slope of each row of Y against ln x; Refused below three points."""
    if len(x) < 3:
        raise Refused(f"{len(x)} finished budgets, and a slope needs 3")
    return np.polyfit(np.log(x), np.asarray(Y).T, 1)[0]

def steeper(metric):
    """How much faster the best interleaved model gains from compute than the best textless one: exponents of power laws."""
    def values(runs):
        C, (a, b) = runs.curves(metric, 'interleaved', 'textless')
        return (-1 if metric == LOSS else 1) * (trend(C, np.log(a)) - trend(C, np.log(b)))
    return values

def larger(runs):
    """ln of N_opt, interleaved over textless: vertices of parabolas in ln N, mean over the budgets where for all seeds the best
    size has a worse one on both sides. N is without the table, in which only the interleaved have text."""
    def vertex(arm, C, sizes, seed):
        shapes = [SHAPES[f'tiny/{size}'] for size in sizes]
        x = np.log([N - rows * width for *_, width, _, rows, _, N, _ in shapes])
        y = [runs.results[arm, size, C, seed].scores[LOSS] for size in sizes]
        c2, c1, _ = np.polyfit(x, y, 2)
        return -c1 / 2 / c2 if c2 > 0 and 0 < np.argmin(y) < len(y) - 1 else math.nan
    grid = [(C, sizes) for C, sizes in runs.grid('interleaved', 'textless') if min(map(len, sizes.values())) >= 3]
    off = np.array([[vertex('interleaved', C, sizes['interleaved'], s) - vertex('textless', C, sizes['textless'], s)
                     for C, sizes in grid] for s in runs.seeds])
    off = off[:, ~np.isnan(off).any(0)] if len(grid) else off
    if not off.size:
        raise Refused("at no budget has every seed's loss a minimum among the sizes")
    return off.mean(1)

def change(arm, other, metric, sign):
    """Slope of the gain against ln C, times sign."""
    return lambda runs: sign * trend(*runs.gain(arm, other, metric))

def good_over_weak(runs):
    """Gain of interleaving from the good TextLM less that from the weak one, mean over the budgets."""
    _, (good, plain, weak, weak_plain) = runs.curves(TSC, 'interleaved', 'speech', 'weak', 'weak-speech')
    return (good - plain - weak + weak_plain).mean(1)

def against_its_loss(runs):
    """The SLM of the TextLM that knows other text alone against that of the weak one, which models the stories better."""
    if runs.texts['talk'] <= runs.texts['weak']:
        raise Refused("the TextLM of other text has the lower loss on the stories: nothing to be misled by")
    return better('talk', 'weak', LOSS)(runs)

def preferred(metric):
    """A score after preferences less that before."""
    def values(runs):
        if len(runs.preferred) < SEEDS:
            raise Refused(f"{len(runs.preferred)} of {SEEDS} runs of dpo.py are finished")
        before, after = runs.before[metric], [rows[metric]['value'] for rows in runs.preferred]
        check_chance([before['value'], np.mean(after)], before['stderr'])
        return np.array(after) - before['value']
    return values

class Finding(NamedTuple):
    title: str
    claim: str      # the papers' words, and where
    parts: tuple    # of (what is compared, unit, function)

FINDINGS = (
    Finding("Interleaved models scale more efficiently", "\"under this setup SLMs scale more efficiently with compute\" (SIMS, "
            "abstract); \"one should allocate notably more of the compute budget for increasing model size\" (the same)", (
        ("loss, at the most compute", "nats", better('interleaved', 'textless', LOSS)),
        ("loss, exponent over compute", "", steeper(LOSS)),
        ("tSC, at the most compute", "points", better('interleaved', 'textless', TSC)),
        ("tSC, exponent over compute", "", steeper(TSC)),
        ("ln N_opt at equal compute", "", larger))),
    Finding("TWIST beats random weights", "\"the gap in loss does seem to decrease with more training steps, [...] though TWIST "
            "initialisation is clearly beneficial\" (SIMS 4.3)", (
        ("loss, at the most compute", "nats", better('interleaved', 'scratch', LOSS)),
        ("tSC, at the most compute", "points", better('interleaved', 'scratch', TSC)),
        ("the gap in loss shrinks, per ln C", "nats", change('interleaved', 'scratch', LOSS, -1)))),
    Finding("Interleaving helps speech, from a good TextLM", "\"for semantic abilities the interleaved model outperformed the "
            "speech only model from as little as 5k training steps [...] This impact seems to increase with more compute. [...] "
            "this is not necessarily the case for weaker/smaller TextLMs\" (SIMS 4.3)", (
        ("tSC, at the most compute", "points", better('interleaved', 'speech', TSC)),
        ("the gain in tSC grows, per ln C", "points", change('interleaved', 'speech', TSC, 1)),
        ("tSC: gain from the good TextLM over that from the weak one", "points", good_over_weak),
        ("loss: speech only is no worse, at the most compute", "nats", better('speech', 'interleaved', LOSS)))),
    Finding("Synthetic and diverse speech together", "\"we see benefit across diverse speakers, by training on a mixture of "
            "synthetic and real data, compared to real data only or synthetic data only\" (SIMS 4.1)", (
        ("loss in the unseen voice, over synthetic alone", "nats", better('mixed', 'synthetic', UNSEEN)),
        ("loss in the unseen voice, over diverse alone", "nats", better('mixed', 'diverse', UNSEEN)),
        ("tSC in the unseen voice, over synthetic alone", "points", better('mixed', 'synthetic', TSC_UNSEEN)),
        ("tSC in the unseen voice, over diverse alone", "points", better('mixed', 'diverse', TSC_UNSEEN)))),
    Finding("Which TextLM matters, and its own loss does not say", "\"not all model families are born equal [...] these results "
            "do not always correlate with performance of the base TextLMs\" (SIMS 4.2)", (
        ("loss, from the good TextLM over the weak one", "nats", better('interleaved', 'weak', LOSS)),
        ("loss, from one trained twice as long over the good one", "nats", better('long', 'interleaved', LOSS)),
        ("loss, from one of other text over the weak one, which models the stories better", "nats", against_its_loss))),
    Finding("Preferences raise sSC and tSC", "Slam's sSC rises from 58.2 to 61.3, its tSC from 80.7 to 84.2 by preference "
            "optimisation (SIMS, Table 3)", (
        ("sSC, after DPO over before", "points", preferred(SSC)),
        ("tSC, after DPO over before", "points", preferred(TSC)))))

def judge(values):
    """(numbers for each seed) -> {'mean', 'low', 'high', 'verdict'}: Student's 95 % interval, and the rule of this file."""
    mean, half = values.mean(), T95 * values.std(ddof=1) / math.sqrt(SEEDS)
    verdict = 'reproduced' if mean - half > 0 else 'contradicted' if mean + half < 0 else 'not decidable'
    return {'mean': mean, 'low': mean - half, 'high': mean + half, 'seeds': values.tolist(), 'verdict': verdict}

def examine(part, runs):
    says, unit, values = part
    try:
        found = judge(values(runs) * (100 if unit == 'points' else 1))
    except Refused as e:
        found = {'verdict': 'not decidable', 'why': str(e)}
    return {'part': says, 'unit': unit, **found}

def main(cfg):
    suite = plan.Config(family='tiny', gpu=cfg.gpu, gpus=1, out=cfg.out)
    execute(suite, text_rows(cfg))
    execute(suite, slm_rows(cfg))

if __name__ == '__main__':
    run(main, Config)
