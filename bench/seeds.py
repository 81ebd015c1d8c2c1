"""
How far runs of minutes differ by their seed, dtype and processor, and which differences are beyond that.

    OMP_NUM_THREADS=1 python bench/seeds.py               after ./speedrun.sh, whose data it trains on
    OMP_NUM_THREADS=1 python bench/seeds.py --arms=tiny_text,tiny_adamw,tiny_adamw-wsd       some of the arms
    OMP_NUM_THREADS=1 python bench/seeds.py --arms=tiny_text,tiny_adamw,tiny_adamw-wsd50,tiny-220 \
        --dtypes=bfloat16 --processors=False --results=recipe        what config/tiny.py changed, change by change
    python bench/seeds.py --report                        what is done so far; the rest as in seeds.json, if it is there
    python bench/seeds.py --dry                           shows what is to be done; nothing is run or written

An arm is a config, perhaps with an edit of docs/an_hour.md. It is trained once for each dtype and
seed, at OUT/ARM-DTYPE-SEED. Arms start from the TextLM of the same seed. What is done is not done
again, and several processes share the runs. A run takes about 2 minutes on one core, its evaluation
half a minute; all of them, 4 hours.

Printed and written to bench/results/RESULTS.json are, for each arm, dtype and score,

    over seeds    the standard deviation over the seeds
    over items    the standard error over items or documents, the mean of the runs'

and the differences between two arms or dtypes seed by seed, with their 95 % interval and p-value
(Student's t). A difference is one if its interval leaves out 0. Losses are in nats a token, scores in percent.

Last come the instructions of other processors. On the same inputs, which operations give other bits
(INSTRUCTIONS)? And how far does the first seed of `tiny_adamw` go from the run with this processor's own,
step by step (PROCESSORS)?
"""
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import ROOT, save, table
from bench.runs import copy_tree
from configurator import Refused, run
from eval import Config as EvalConfig
from evaluation.scores import student_interval, student_p
from files import read_json
from scaling import plan

DTYPES = ('bfloat16', 'float32')
PURE = 'pure_bfloat16' # weights and moments too: the papers' way

@dataclass(frozen=True)
class Config:
    arms: str = '' # names of arms, separated by commas; '': all
    seeds: int = 5 # runs of each arm and dtype
    dtypes: tuple = (*DTYPES, PURE) # the dtypes of an arm that are run
    processors: bool = True # try the instructions of other processors
    out: str = 'out/seeds' # folder of the runs
    results: str = 'seeds' # name of the .json in bench/results
    report: bool = False # start nothing: report what is done
    dry: bool = False # only show the runs, and whether they are done

    def __post_init__(self):
        unknown = [name for name in self.names if name not in ARMS]
        if unknown:
            raise Refused(f"arms: {', '.join(unknown)}: expected some of {', '.join(ARMS)}")
        if not 2 <= self.seeds <= 10:
            raise Refused(f"seeds={self.seeds}: expected 2 to 10")

    @property
    def names(self):
        return [name for name in self.arms.split(',') if name] or list(ARMS)

class Arm(NamedTuple):
    """Runs that differ in seed and dtype alone."""
    config: str # config/NAME.py
    init: str | None # the setting that names the TextLM; None: the arm is that TextLM
    dtypes: tuple
    flags: str = '' # further arguments of train.py
    edit: tuple | None = None # (file, old text, new text): a change to the code, as in docs/an_hour.md
    items: bool = False # is StoryCloze measured too, from speech to text

ARMS = {
    'tiny_text': Arm('tiny_text', None, DTYPES),
    'tiny_adamw': Arm('tiny_adamw', 'init', (*DTYPES, PURE), items=True),
    'tiny_speech': Arm('tiny_speech', 'init', (*DTYPES, PURE)),
    'tiny_scratch': Arm('tiny_scratch', 'init_config', DTYPES, items=True),
    'tiny_adamw-wsd': Arm('tiny_adamw', 'init', DTYPES[:1], '--schedule=wsd'),
    'tiny_adamw-wsd50': Arm('tiny_adamw', 'init', DTYPES[:1], '--schedule=wsd --decay=0.5', items=True),
    'tiny-220': Arm('tiny', 'init', DTYPES[:1], '--max_steps=220', items=True),
    'tiny_scratch-relu2': Arm('tiny_scratch', 'init_config', DTYPES[:1], edit=(
        'model.py', "ACTIVATIONS = {'silu': F.silu,", "ACTIVATIONS = {'silu': lambda x: F.relu(x).square(),")),
    'tiny_adamw-eta': Arm('tiny_adamw', 'init', DTYPES[:1], '--data=out/tokens-eta/stories,out/tokens-eta/talk',
                          items=True),
    'tiny_adamw-sqrt': Arm('tiny_adamw', 'init', DTYPES[:1], '--schedule=wsd', edit=(
        'train.py', "if cfg.schedule == 'cosine' else 1 - x", "if cfg.schedule == 'cosine' else 1 - math.sqrt(x)")),
}
COMPARISONS = ( # (arm, dtype) of the baseline, and of what is compared with it
    *[(('tiny_speech', dtype), ('tiny_adamw', dtype)) for dtype in DTYPES],
    *[(('tiny_scratch', dtype), ('tiny_adamw', dtype)) for dtype in DTYPES],
    *[((arm, 'bfloat16'), (arm, 'float32')) for arm in ('tiny_text', 'tiny_adamw', 'tiny_speech', 'tiny_scratch')],
    *[((arm, 'bfloat16'), (arm, PURE)) for arm in ('tiny_adamw', 'tiny_speech')],
    (('tiny_adamw', 'bfloat16'), ('tiny_adamw-wsd', 'bfloat16')),
    (('tiny_adamw-wsd', 'bfloat16'), ('tiny_adamw-sqrt', 'bfloat16')),
    (('tiny_adamw', 'bfloat16'), ('tiny_adamw-wsd50', 'bfloat16')),
    (('tiny_adamw-wsd50', 'bfloat16'), ('tiny-220', 'bfloat16')), # with Muon
    (('tiny_adamw', 'bfloat16'), ('tiny-220', 'bfloat16')), # both changes
    (('tiny_scratch', 'bfloat16'), ('tiny_scratch-relu2', 'bfloat16')),
    (('tiny_adamw', 'bfloat16'), ('tiny_adamw-eta', 'bfloat16')),
)
UNITS = 'loss of units'
SCORES = { # name: rows of eval.json, of which a model has one
    UNITS: ('loss/stories/speech/units', 'loss/stories/textless/units'),
    'loss of text': ('loss/stories/text/text',),
    'tSC S': ('tiny/main/tsc/S',),
    'tSC S->T': ('tiny/main/tsc/S->T',),
    'tSC S->T, unseen voice': ('tiny/unseen/tsc/S->T',),
    'sSC S->T': ('tiny/main/ssc/S->T',)}
INSTRUCTIONS = { # what keeps a library from this processor's own instructions, or changes the order of its sums
    'oneDNN without AMX': {'ONEDNN_MAX_CPU_ISA': 'AVX512_CORE_BF16'},
    'MKL with AVX2': {'MKL_ENABLE_INSTRUCTIONS': 'AVX2'},
    'torch with AVX2': {'ATEN_CPU_CAPABILITY': 'avx2'},
    'two threads': {'OMP_NUM_THREADS': '2'},
}
PROCESSORS = {'avx512': ('bfloat16', 'oneDNN without AMX'), 'avx2': ('float32', 'MKL with AVX2')}
STEPS = (1, 10, 50, 220)

# --------------------------------------------------------------------------------------------------
# the runs

def run_row(cfg, name, dtype, seed, suffix=''):
    """A run as a row for scaling.plan.execute."""
    arm = ARMS[name]
    run_name = f'{name}{suffix}-{dtype}-{seed}'
    out_dir = f'{cfg.out}/{run_name}'
    flags = [f'--seed={seed}', f'--dtype={dtype}', '--eval_every=220', f'--out={out_dir}', *arm.flags.split()]
    if arm.init:
        text_dtype = 'bfloat16' if dtype == PURE else dtype
        flags.append(f'--{arm.init}={cfg.out}/tiny_text-{text_dtype}-{seed}')
    scored = ['--max_items=500', '--directions=S,S->T'] if arm.items else ['--items=']
    return {'name': run_name,
            'out_dir': out_dir,
            'why_not': None,
            'train': [f'config/{arm.config}.py', *flags],
            'eval': [f'--model={out_dir}', '--data=out/tokens/stories', '--max_documents=500', *scored]}

def rows_of(cfg, names):
    """{(arm, dtype, seed): row}; the arms in the order of ARMS, in which TextLMs come first."""
    rows = {}
    for name in sorted(names, key=list(ARMS).index):
        for dtype in [dtype for dtype in ARMS[name].dtypes if dtype in cfg.dtypes]:
            for seed in range(1, cfg.seeds + 1):
                rows[name, dtype, seed] = run_row(cfg, name, dtype, seed)
    return rows

def edited(text, edit):
    """The text of a file after an edit; Refused unless what it replaces is there once."""
    file, old, new = edit
    if text.count(old) != 1:
        raise Refused(f"{file}: {old!r} is there {text.count(old)} times; expected once, to be replaced")
    return text.replace(old, new)

def tree_of(cfg, name):
    """The folder of the code of an arm: this one, or a copy with its edit at OUT/trees/ARM."""
    edit = ARMS[name].edit
    if not edit:
        return ROOT
    tree = ROOT / cfg.out / 'trees' / name
    if not tree.is_dir():
        copy_tree(ROOT, tree)
    path = tree / edit[0]
    path.write_text(edited((ROOT / edit[0]).read_text(), edit))
    return tree

def make_tokens():
    """Token shards of which 60 % of the words are spoken, for tiny_adamw-eta."""
    flags_of = {'stories': ['--text=out/data/stories.txt', '--val_frac=0.03'], 'talk': ['--val_frac=0.1']}
    for corpus, flags in flags_of.items():
        out_dir = f'out/tokens-eta/{corpus}'
        if not Path(out_dir, 'info.json').is_file():
            subprocess.run([sys.executable, 'interleave.py', f'--units=out/data/{corpus}', '--eot', '--eta=0.6',
                            *flags, f'--out={out_dir}'], check=True)

@contextmanager
def environment(variables):
    """Sets environment variables for the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

def execute(cfg, rows, tree=ROOT):
    """Trains and evaluates runs with the code of a folder; what is done is left alone."""
    suite = plan.Config(family='tiny', gpu='cpu', gpus=1, out=cfg.out,
                        train=f'{tree}/train.py', eval=f'{tree}/eval.py')
    plan.execute(suite, rows)

def run_all(cfg, rows, others):
    """Trains and evaluates {(arm, dtype, seed): row} and {name of PROCESSORS: row}."""
    names = list(dict.fromkeys(name for name, _, _ in rows))
    if 'tiny_adamw-eta' in names:
        make_tokens()
    for name in names:
        execute(cfg, [row for key, row in rows.items() if key[0] == name], tree_of(cfg, name))
    for name, row in others.items():
        with environment(INSTRUCTIONS[PROCESSORS[name][1]]):
            execute(cfg, [row])

def is_done(row):
    return plan.is_trained(row) and plan.is_evaluated(row)

def show(rows):
    """Prints the state and the command of each run, after checking its settings."""
    for row in rows:
        plan.parse_settings(row['eval'], EvalConfig)
        plan.parse_settings(row['train'])
        state = 'done' if is_done(row) else 'open'
        print(f"{state:5} python train.py {' '.join(row['train'])}")

# --------------------------------------------------------------------------------------------------
# what they say

def scores_of(row):
    """{score: (value, standard error)} of a finished run, losses in nats and shares in percent."""
    results = read_json(row['out_dir'], 'eval.json', 'eval.py')['results']
    scores = {}
    for name, keys in SCORES.items():
        for key in keys:
            if key in results:
                scale = 1 if name.startswith('loss') else 100
                scores[name] = scale * results[key]['value'], scale * results[key]['stderr']
    return scores

def spreads(scores):
    """{(arm, dtype, seed): its scores} -> a row for each arm, dtype and score of two seeds or more."""
    values = defaultdict(list)
    for (arm, dtype, _), named in scores.items():
        for name, pair in named.items():
            values[arm, dtype, name].append(pair)
    for (arm, dtype, name), pairs in values.items():
        means = [value for value, _ in pairs]
        if len(means) < 2:
            continue
        yield {'arm': arm, 'dtype': dtype, 'score': name,
               'mean': statistics.mean(means),
               'over seeds': statistics.stdev(means),
               'over items': statistics.mean(error for _, error in pairs),
               'seeds': len(means)}

def differences(scores):
    """The same -> a row for each of COMPARISONS and score that both sides have for two seeds or more."""
    for baseline, other in COMPARISONS:
        for name in SCORES:
            by_seed = {}
            for seed in sorted({seed for *_, seed in scores}):
                values = [scores.get((*side, seed), {}).get(name) for side in (baseline, other)]
                if all(values):
                    by_seed[seed] = values[1][0] - values[0][0]
            if len(by_seed) < 2:
                continue
            mean, low, high = student_interval(list(by_seed.values()))
            yield {'of': ' '.join(other), 'less': ' '.join(baseline), 'score': name,
                   'mean': mean, 'low': low, 'high': high,
                   'p': student_p(list(by_seed.values())),
                   'differs': 'yes' if low > 0 or high < 0 else 'no',
                   'seeds': len(by_seed),
                   'by seed': by_seed}

def divergence(name, row, reference):
    """How far a run is from another in the loss of STEPS and in the held-out loss of units at the end."""
    losses = []
    for folder in (row['out_dir'], reference['out_dir']):
        lines = read_json(folder, 'log.jsonl', 'train.py')
        losses.append({line['step']: line['loss'] for line in lines if 'loss' in line})
    by_step = {f'step {step}': losses[0][step] - losses[1][step] for step in STEPS}
    dtype, instructions = PROCESSORS[name]
    return {'instructions': instructions,
            'dtype': dtype,
            **by_step,
            'held out': scores_of(row)[UNITS][0] - scores_of(reference)[UNITS][0]}

# --------------------------------------------------------------------------------------------------
# the operations of a step

def save_operations(path):
    """Saves {operation of a step: its result} of the shapes of tiny, on inputs that are always the same."""
    rng = np.random.default_rng(0) # torch's own depends on the instructions
    x, y, w = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((4096, 192), (4096, 512), (192, 512)))
    results = {}
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix('torch.')
        results[f'product, {name}'] = x.to(dtype) @ w.to(dtype)
        results[f"product for a weight's gradient, {name}"] = x.to(dtype).T @ y.to(dtype)
    x = x.float()
    q = x.view(8, 512, 6, 32).transpose(1, 2)
    results |= {'attention, float32': F.scaled_dot_product_attention(q, q, q, is_causal=True),
                'softmax, float32': x.softmax(-1),
                'SiLU, float32': F.silu(x),
                'mean of squares, float32': x.square().mean(-1)}
    save_file({operation: tensor.contiguous() for operation, tensor in results.items()}, path)

def operation_rows():
    """Yields for each of INSTRUCTIONS and operation the share of numbers that differ, and by how much at most."""
    results = {}
    with tempfile.TemporaryDirectory() as tmp:
        for name, variables in {'own': {}, **INSTRUCTIONS}.items():
            path = Path(tmp) / 'results.safetensors'
            code = f'import bench.seeds; bench.seeds.save_operations({str(path)!r})'
            subprocess.run([sys.executable, '-c', code], cwd=ROOT, env={**os.environ, **variables}, check=True)
            results[name] = load_file(path)
    for name in INSTRUCTIONS:
        for operation, own in results['own'].items():
            difference = (results[name][operation].double() - own.double()).abs()
            yield {'instructions': name,
                   'operation': operation,
                   'differ, %': 100 * (difference > 0).double().mean().item(),
                   'most, of the largest': (difference.max() / own.double().abs().max()).item()}

# --------------------------------------------------------------------------------------------------

def main(cfg):
    names = cfg.names
    rows = rows_of(cfg, names)
    others = {}
    if cfg.processors and 'tiny_adamw' in names:
        others = {name: run_row(cfg, 'tiny_adamw', dtype, 1, f'-{name}') for name, (dtype, _) in PROCESSORS.items()}
    for name in names:
        if ARMS[name].edit:
            edited((ROOT / ARMS[name].edit[0]).read_text(), ARMS[name].edit)
    if cfg.dry:
        return show([*rows.values(), *others.values()])
    recorded = {}
    if cfg.report:
        runs = read_json(ROOT / 'bench' / 'results', 'seeds.json', 'bench/seeds.py')['runs']
        recorded = {key: runs[row['name']] for key, row in rows.items() if not is_done(row) and row['name'] in runs}
        rows = {key: row for key, row in rows.items() if is_done(row)}
        others = {name: row for name, row in others.items()
                  if is_done(row) and ('tiny_adamw', PROCESSORS[name][0], 1) in rows}
    else:
        run_all(cfg, rows, others)
    scores = recorded | {key: scores_of(row) for key, row in rows.items()}
    spread_rows = table(spreads(scores), 'arm', 'dtype', 'score', 'mean', 'over seeds', 'over items', 'seeds')
    difference_rows = table(differences(scores), 'of', 'less', 'score', 'mean', 'low', 'high', 'p', 'differs', 'seeds')
    divergences = [divergence(name, row, rows['tiny_adamw', PROCESSORS[name][0], 1]) for name, row in others.items()]
    table(divergences, 'instructions', 'dtype', *[f'step {step}' for step in STEPS], 'held out')
    operations = operation_rows() if cfg.processors else ()
    operations = table(operations, 'instructions', 'operation', 'differ, %', 'most, of the largest')
    save(cfg.results, False, spreads=spread_rows, differences=difference_rows, divergences=divergences,
         operations=operations, runs={'-'.join(map(str, key)): named for key, named in scores.items()})

if __name__ == '__main__':
    run(main, Config)
