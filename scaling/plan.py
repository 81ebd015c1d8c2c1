"""
Plans the runs of a scaling study, sizes x compute budgets x seeds, and executes them.

    python -m scaling.plan --family=qwen2.5 --budgets=2.1e18,5e18,2e19,6e19,2e20
        prints the plan as a table and the torchrun command of each run, writes OUT/runs.jsonl
    python -m scaling.plan ... --run
        trains and evaluates the runs one after another; the same command goes on where it was
        stopped

    C = 6 N D      N parameters with the embedding and the rows of the units, D tokens of all
                   modalities (SIMS 5)

A run sees D = C / 6N tokens, in whole steps of the base config's batch_tokens; everything else is
as in that config. Memory and the time of a step come from training/cost.py. runs.jsonl has a line a
run:

    {"name", "family", "size", "N", "flops", "tokens", "steps", "lr", "seed",
     "micro_batch", "parallel", "recompute" (on GPUs), "gb" (on each GPU), "hours",
     "epochs" (of the scarcest source), "why_not" (null where the run is feasible),
     "out_dir", "train", "eval" (arguments of train.py and eval.py)}
"""
import contextlib
import io
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import train
from configurator import Refused, configure, run
from data import Shards
from eval import Config as EvalConfig
from files import atomically, read_json, record, write_json
from locks import Busy, Lock
from scaling.models import FAMILIES, SHAPES, models_of
from training.cost import CHIPS, ROOM, memory, step_time

BASES = {'tiny': 'config/tiny_scratch.py', 'qwen2.5': 'config/qwen0.5b.py'} # other families take qwen2.5's
CPU_FLOPS = 1.3e11 # 6ND a second of train.py on 2 cores: tiny/slm/log.jsonl, 7,565 tokens/s of 2.85M parameters
SHAPE_KEYS = train.SCRATCH # the settings that give a model's shape
# In these a finished run may differ from its plan. Its held-out loss depends on eval_rows.
MAY_DIFFER = set(train.MAY_CHANGE_ON_RESUME) - {'eval_rows'}

@dataclass(frozen=True)
class Config:
    family: str = 'qwen2.5' # qwen2.5, llama3.2, qwen3, olmo2, tiny, or folders and hub ids, separated by commas
    sizes: str = '' # of the family, as in '0.5B,7B'; '': all
    budgets: str = '2.1e18,5e18,2e19,6e19,2e20' # FLOPs, separated by commas: SIMS 5
    base: str | None = None # config of train.py for all runs; None: config/qwen0.5b.py, for tiny config/tiny_scratch.py
    init: str | None = None # 'scratch', or folders as 'out/text-{size}'; None: the family's TextLMs (tiny: scratch)
    lr: float | None = None # None: SIMS A.2, 5e-4, or 3e-4 from 2e20 FLOPs on and for 7B from 6e19 on; tiny: the base's
    seeds: int = 1 # runs of each size and budget
    flags: str = '' # further arguments of train.py for all runs, separated by blanks, as '--block_size=1024 --clip=1'
    out: str = 'out/suite' # folder for runs.jsonl, and for a folder of each run
    # hardware
    gpu: str = 'H200' # A100, H100 or H200 as in training/cost.py, or 'cpu'
    gpus: int = 8 # of each run: at most 8, or whole nodes of 8
    mfu: float | None = None # measured share of the peak; None: expected by training/cost.py, with products at 60 %
    cpu_flops: float = CPU_FLOPS # 6ND a second of train.py on this machine, for --gpu=cpu
    keys: int = 400 # keys that a token attends to on average, for training/cost.py
    price: float | None = None # price of a GPU for an hour, in any currency, for the column cost
    # data
    tokens: float | None = None # tokens that a run can see in an epoch; None: counted in the shards of the base's data
    epochs: float = 1.0 # how often a run may read any source; more is not feasible (SIMS 3: speech at most once)
    # execution
    run: bool = False # train and evaluate what is feasible, one run after another
    train: str = 'train.py' # script that trains a run
    eval: str = 'eval.py' # script that evaluates it
    eval_flags: str = '' # further arguments of eval.py, separated by blanks, as '--max_items=200'

    def __post_init__(self):
        if self.gpu not in (*CHIPS, 'cpu'):
            raise Refused(f"gpu={self.gpu!r}: expected one of {', '.join((*CHIPS, 'cpu'))}")
        for name in ('seeds', 'gpus', 'cpu_flops', 'keys', 'epochs', 'mfu', 'tokens', 'price'):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise Refused(f"{name}={value}: expected more than 0")
        if self.mfu and self.mfu > 1:
            raise Refused(f"mfu={self.mfu}: expected a share of the peak, as 0.4")
        if self.gpus > 8 and self.gpus % 8:
            raise Refused(f"gpus={self.gpus}: expected at most 8, or whole nodes of 8")
        if self.run and self.gpus > 8 and self.gpu != 'cpu':
            raise Refused("run: starts runs on one node; expected gpus=8 at most, or the torchrun lines started "
                          "on each node")

# --------------------------------------------------------------------------------------------------
# the plan

def positive_numbers(text, name):
    """'2e18,5e18' -> [2e18, 5e18]; Refused where one is not a number above 0."""
    try:
        values = [float(part) for part in text.split(',')]
    except ValueError:
        values = []
    if not values or not all(0 < value < float('inf') for value in values):
        raise Refused(f"{name}={text!r}: expected numbers above 0, separated by commas")
    return values

def parse_settings(flags, kind=train.Config):
    """The Config of config files and flags, without what the configurator prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return configure(kind, flags)

def peak_lr(cfg, N, C, base):
    """The peak learning rate: the plan's or, of tiny, the base's; otherwise that of SIMS A.2."""
    if cfg.lr is not None or cfg.family == 'tiny':
        return cfg.lr or base.lr
    is_large_run = C >= 2e20
    is_7b = N >= 6e9 # without its text rows Qwen2.5-7B has 6.5e9
    return 3e-4 if is_large_run or (C >= 6e19 and is_7b) else 5e-4

def train_flags(cfg, base, model, C, lr, seed, placement, out_dir):
    """The --key=value of train.py by which a run differs from the base config."""
    flags = {'max_flops': f'{C:.10g}'.replace('+', ''), 'lr': lr, 'out': out_dir, **placement}
    if base.min_lr > lr:
        flags['min_lr'] = lr
    for key in (*train.BUDGETS, *SHAPE_KEYS, 'init_config'):
        if key != 'max_flops' and getattr(base, key) is not None:
            flags[key] = None
    no_hub_has_it = model.name in SHAPES and model.name.startswith('tiny/')
    if no_hub_has_it:
        flags['init'] = 'scratch'
        flags |= {key: getattr(model.config, key) for key in SHAPE_KEYS}
    elif cfg.init == 'scratch':
        flags |= {'init': 'scratch', 'init_config': model.name}
    else:
        flags['init'] = model.name
    if seed != base.seed:
        flags['seed'] = seed
    return [f'--{key}={value}' for key, value in flags.items()]

class Placement(NamedTuple):
    """How a model is trained on the GPUs of a plan."""
    flags: dict = {} # micro_batch, parallel and recompute of train.py; on a CPU the base config's stay
    gb: float | None = None # on each GPU; None on a CPU
    step_seconds: float | None = None # None on a CPU
    why_not: str | None = None # why it cannot be trained there

def fastest_fit(cfg, base, model):
    """The fastest Placement that fits the memory, with as little recomputing as possible."""
    if cfg.gpu == 'cpu':
        return Placement()
    if base.rows % cfg.gpus:
        return Placement(why_not=f"{base.rows} rows a step do not divide by {cfg.gpus} GPUs")
    chip = CHIPS[cfg.gpu]
    capacity = ROOM * chip.memory
    rows_per_gpu = base.rows // cfg.gpus
    micro_batches = [n for n in range(min(rows_per_gpu, 32), 0, -1) if rows_per_gpu % n == 0]
    least_bytes = float('inf')
    for recompute in ('none', 'selective', 'full'):
        candidates = []
        for parallel in ('ddp', 'fsdp') if cfg.gpus > 1 else ('ddp',):
            for micro_batch in micro_batches:
                tokens = micro_batch * base.block_size
                parts = memory(model.config, tokens, cfg.gpus, parallel, base.dtype, recompute)
                n_bytes = sum(parts.values())
                least_bytes = min(least_bytes, n_bytes)
                if n_bytes <= capacity:
                    step = step_time(model.config, chip, cfg.gpus, base.batch_tokens, tokens, cfg.keys, parallel,
                                     base.dtype, recompute)
                    seconds = step['seconds'] * (step['mfu'] / cfg.mfu if cfg.mfu else 1)
                    flags = {'micro_batch': micro_batch, 'parallel': parallel, 'recompute': recompute}
                    candidates.append(Placement(flags, n_bytes / 1e9, seconds))
                    break # smaller micro-batches of the same kind are not faster
        if candidates:
            return min(candidates, key=lambda placement: placement.step_seconds)
    return Placement(why_not=f"needs {least_bytes / 1e9:.0f} GB of the {capacity / 1e9:.0f} on each {cfg.gpu}")

def available_tokens(cfg, base):
    """Tokens that a run sees until its scarcest source is read once; None without shards."""
    if cfg.tokens:
        return cfg.tokens
    weights = base.weights or (1,) * len(base.sources)
    scarcest = float('inf')
    for source, weight in zip(base.sources, weights):
        folders = [Path(folder) / 'train' / source for folder in base.data.split(',')]
        n_tokens = [Shards(folder).tokens for folder in folders if folder.is_dir()]
        if not n_tokens:
            return None
        scarcest = min(scarcest, sum(n_tokens) * sum(weights) / weight)
    return scarcest

def run_row(cfg, base_path, base, size, model, placement, n_available, C, seed):
    """A line of runs.jsonl; its why_not says why the run is not feasible."""
    family = cfg.family if cfg.family in FAMILIES else 'models'
    name = f'{family}-{size}-{C:g}'.replace('+', '')
    if cfg.seeds > 1:
        name += f'-s{seed}'
    out_dir = f'{cfg.out}/{name}'
    lr = peak_lr(cfg, model.n_params, C, base)
    step_flops = 6 * model.n_params * base.batch_tokens
    steps = int(C // step_flops)
    n_tokens = steps * base.batch_tokens
    epochs = n_tokens / n_available if n_available else None
    why_not = placement.why_not
    if not why_not and steps < 1:
        why_not = f"a step alone is {step_flops:.1e} FLOPs"
    elif not why_not and epochs and epochs > cfg.epochs:
        why_not = f"{epochs:.2f} epochs of the {n_available:.3g} tokens there are"
    hours = None
    if cfg.gpu == 'cpu':
        hours = steps * step_flops / cfg.cpu_flops / 3600
    elif placement.step_seconds:
        hours = steps * placement.step_seconds / 3600
    flags = train_flags(cfg, base, model, C, lr, seed, placement.flags, out_dir)
    return {'name': name, 'family': family, 'size': size, 'N': model.n_params,
            'flops': C, 'tokens': n_tokens, 'steps': steps, 'lr': lr, 'seed': seed,
            **placement.flags, 'gb': placement.gb, 'hours': hours, 'epochs': epochs,
            'why_not': why_not, 'out_dir': out_dir,
            'train': [base_path, *cfg.flags.split(), *flags],
            'eval': [f'--model={out_dir}', f'--data={base.data}', *cfg.eval_flags.split()]}

def plan_of(cfg):
    """The rows of runs.jsonl: a run for each budget, size and seed, the smallest first.

    The settings of feasible runs are checked as train.py will check them.
    """
    base_path = cfg.base or BASES.get(cfg.family, BASES['qwen2.5'])
    base = parse_settings([base_path, *cfg.flags.split()])
    n_available = available_tokens(cfg, base)
    models = models_of(cfg.family, cfg.sizes, cfg.init, base.vocab)
    placements = {size: fastest_fit(cfg, base, model) for size, model in models.items()}
    rows = []
    for C in sorted(positive_numbers(cfg.budgets, 'budgets')):
        for size, model in models.items():
            for seed in range(base.seed, base.seed + cfg.seeds):
                row = run_row(cfg, base_path, base, size, model, placements[size], n_available, C, seed)
                rows.append(row)
                if not row['why_not']:
                    parse_settings(row['train'])
    return rows

def launcher(cfg):
    """The command that starts train.py on the hardware of a plan."""
    if cfg.gpu == 'cpu' or cfg.gpus == 1:
        return 'python'
    command = f'torchrun --nproc_per_node={min(cfg.gpus, 8)}'
    nodes = cfg.gpus // 8
    if nodes > 1:
        command += f' --nnodes={nodes} --rdzv_backend=c10d --rdzv_endpoint=HOST:29400'
    return command

def cell(value, form):
    return '-' if value is None else format(value, form)

def table(cfg, rows):
    """The plan as lines of text."""
    yield (f"{'run':26} {'N':>13} {'tokens':>8} {'steps':>8} {'tok/N':>6} {'lr':>6} {'micro':>9} {'GB':>5} "
           f"{'hours':>7} {'GPU h':>8} {'cost':>8} {'epochs':>6}  feasible")
    n_gpus = 1 if cfg.gpu == 'cpu' else cfg.gpus
    for row in rows:
        micro = f"{row['micro_batch']} {row['parallel']}" if 'micro_batch' in row else '-'
        gpu_hours = row['hours'] and row['hours'] * n_gpus
        cost = gpu_hours and cfg.price and gpu_hours * cfg.price
        feasible = f"no: {row['why_not']}" if row['why_not'] else 'yes'
        yield (f"{row['name']:26} {row['N']:13,} {row['tokens']:8.2e} {row['steps']:8,} "
               f"{row['tokens'] / row['N']:6.2g} {row['lr']:6.0e} {micro:>9} {cell(row['gb'], '.0f'):>5} "
               f"{cell(row['hours'], '.3g'):>7} {cell(gpu_hours, '.3g'):>8} {cell(cost, ',.0f'):>8} "
               f"{cell(row['epochs'], '.2f'):>6}  {feasible}")
    feasible_rows = [row for row in rows if not row['why_not']]
    hours = sum(row['hours'] for row in feasible_rows)
    hardware = 'a CPU' if cfg.gpu == 'cpu' else f'{n_gpus} x {cfg.gpu}'
    total = f"{len(feasible_rows)} of {len(rows)} runs: {hours:,.2f} h on {hardware}, {hours * n_gpus:,.1f} GPU hours"
    if cfg.price:
        total += f", {hours * n_gpus * cfg.price:,.0f} in all"
    if not all(row['epochs'] for row in rows):
        total += "; the available tokens are unknown: there are no shards to count, give --tokens="
    yield total

# --------------------------------------------------------------------------------------------------
# execution

hash_of_init = cache(train.hash_of_init)

def as_json(settings):
    """A Config as a dict that JSON has been through: its tuples are lists."""
    return json.loads(json.dumps(asdict(settings)))

def is_trained(row):
    """Whether a run's folder holds its trained model.

    Refused where the model was trained with other settings, or from other weights.
    """
    path = Path(row['out_dir']) / 'settings.json'
    if not path.is_file():
        return False
    trained = read_json(path.parent, path.name, 'train.py')
    saved = trained['settings']
    planned = as_json(parse_settings(row['train']))
    differences = [f"{key}={saved.get(key)!r}, not {value!r}" for key, value in planned.items()
                   if key not in MAY_DIFFER and saved.get(key) != value]
    if trained['inputs']['weights of init'] != hash_of_init(planned['init']):
        differences.append(f"other weights than {planned['init']} has now")
    if differences:
        raise Refused(f"{row['out_dir']}: trained with {'; '.join(differences)}: expected the plan's settings; "
                      "remove the folder, or give the plan another --out")
    return True

def is_evaluated(row):
    """Whether a run's scores are newer than its model, and were made with the plan's settings.

    What else has been measured since does not matter.
    """
    scores = Path(row['out_dir']) / 'eval.json'
    trained = Path(row['out_dir']) / 'settings.json'
    if not scores.is_file() or scores.stat().st_mtime < trained.stat().st_mtime:
        return False
    cfg = parse_settings(row['eval'], EvalConfig)
    planned = as_json(cfg)
    keys = {flag[2:].split('=')[0] for flag in row['eval']} - {'model'}
    tasks = read_json(scores.parent, scores.name, 'eval.py')['tasks']
    names = [*cfg.wanted, *(['loss'] if cfg.data else [])]
    return all(name in tasks and all(tasks[name]['settings'].get(key) == planned[key] for key in keys)
               for name in names)

def run_child(command, lock):
    """Runs a command to its end -> (exit status, whether a signal came meanwhile).

    SIGTERM is handed on to the child; SIGINT reaches both from the terminal. The child holds the
    lock too (a file descriptor), so that it can go on undisturbed if its parent is killed.
    """
    signals = []
    child = subprocess.Popen(command, pass_fds=[lock])
    def on_signal(number, _):
        signals.append(number)
        if number == signal.SIGTERM:
            child.terminate()
    old_handlers = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return child.wait(), bool(signals)
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)

def execute(cfg, rows):
    """Trains and evaluates the feasible runs in order.

    A finished run is skipped, an interrupted one continues from its checkpoint, and an evaluation
    that is older than its model or has other settings is made again. Several processes that are
    given the same rows share them: each run has a lock. A process passes over runs that another one
    holds, and waits for them when nothing else is left.
    """
    launch = []
    if cfg.gpu != 'cpu' and cfg.gpus > 1:
        launch = ['-m', 'torch.distributed.run', f'--nproc_per_node={cfg.gpus}']
    feasible = [row for row in rows if not row['why_not']]
    pending = list(enumerate(feasible, 1))
    wait = False
    while pending:
        busy = []
        for number, row in pending:
            folder = Path(row['out_dir'])
            try: # beside the lock of train.py, which the child takes
                lock = Lock(folder / '.run.lock', folder, wait=math.inf if wait else 0.0)
            except Busy:
                busy.append((number, row))
                continue
            wait = False
            with lock:
                label = f'[{number}/{len(feasible)}] {row["name"]}'
                train_and_evaluate(cfg, row, label, launch, lock.fd)
        pending = busy
        wait = True # in the next round, for the first of the busy runs
    print(f"{cfg.out}: {len(feasible)} runs are trained and evaluated; next: python -m scaling.fit --runs={cfg.out}")

def train_and_evaluate(cfg, row, label, launch, lock):
    """Trains and evaluates one run, as far as that is not done; this process holds its lock."""
    started = time.monotonic()
    for script, arguments, launch_flags, is_done in (
            (cfg.train, row['train'], launch, is_trained),
            (cfg.eval, row['eval'], [], is_evaluated)):
        if is_done(row):
            continue
        print(f"{label}: {script}", flush=True)
        status, interrupted = run_child([sys.executable, *launch_flags, script, *arguments], lock)
        if interrupted:
            raise Refused(f"{row['name']}: a signal came; the same command goes on from there")
        if status or not is_done(row):
            unfinished = '' if status else ", unfinished"
            raise Refused(f"{row['name']}: {script} ended with status {status}{unfinished}; the same command goes "
                          "on from there")
    print(f"{label}: done ({time.monotonic() - started:.0f} s)", flush=True)

def write_rows(out, rows):
    with atomically(Path(out) / 'runs.jsonl', wait=10) as tmp:
        tmp.write_text(''.join(json.dumps(row) + '\n' for row in rows))

def main(cfg):
    rows = plan_of(cfg)
    print(*table(cfg, rows), sep='\n')
    write_rows(cfg.out, rows)
    write_json(Path(cfg.out) / 'plan.json', record(cfg))
    if cfg.run:
        return execute(cfg, rows)
    for row in rows:
        if not row['why_not']:
            print(' '.join([launcher(cfg), cfg.train, *row['train']]))
    print(f"{cfg.out}/runs.jsonl: {len(rows)} runs; --run trains and evaluates them")

if __name__ == '__main__':
    run(main, Config)
