"""
The runs of a scaling study: a plan of sizes and compute budgets, and its execution.

    python -m scaling.plan --family=qwen2.5 --budgets=2.1e18,5e18,2e19,6e19,2e20      table, runs.jsonl, torchrun lines
    python -m scaling.plan ... --run         trains and evaluates them one after another; again: goes on where it was cut

    C = 6 N D      N parameters with the embedding and the rows of the units, D tokens of all modalities (SIMS 5)

A plan has a run for each size, budget and seed: D = C / 6N tokens in whole steps of the base config's batch_tokens,
everything else as that config has it. Memory and the time of a step are those of training/cost.py. runs.jsonl has a line a run:

    {"name", "family", "size", "N", "flops", "tokens", "steps", "lr", "seed", "micro_batch", "parallel", "recompute", "gb" (on
     a GPU), "hours", "epochs" (of the scarcest source), "why_not" (null: feasible), "out_dir", "train", "eval" (arguments)}
"""
import contextlib
import fcntl
import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import train
from configurator import Refused, configure, run
from data import Shards
from eval import Config as EvalConfig
from files import atomically, read_json, record, write_json
from scaling.models import FAMILIES, SHAPES, models_of
from training.cost import CHIPS, ROOM, memory, step_time

BASES = {'tiny': 'config/tiny_scratch.py', 'qwen2.5': 'config/qwen0.5b.py'} # of other families: qwen2.5's
CPU_FLOPS = 1.3e11 # 6ND a second of train.py on 2 cores: tiny/slm/log.jsonl, 7,565 tokens/s of 2.85M parameters

@dataclass(frozen=True)
class Config:
    family: str = 'qwen2.5' # 'qwen2.5', 'llama3.2', 'tiny', or folders and hub ids of models, separated by commas
    sizes: str = '' # of the family, as in '0.5B,7B'; '': all
    budgets: str = '2.1e18,5e18,2e19,6e19,2e20' # FLOPs, separated by commas: SIMS 5
    base: str | None = None # config of train.py that all runs share; None: config/qwen0.5b.py, for tiny config/tiny_scratch.py
    init: str | None = None # 'scratch', or a folder a size as 'out/text-{size}'; None: the family's own TextLMs (tiny: scratch)
    lr: float | None = None # None: SIMS A.2, 5e-4, or 3e-4 from 2e20 FLOPs on and for 7B from 6e19 on; tiny: the base's
    seeds: int = 1 # runs of each size and budget
    flags: str = '' # more for train.py, separated by blanks, as '--eot=True'
    out: str = 'out/suite' # runs.jsonl, and a folder a run
    # hardware: A100, H100 or H200 as in training/cost.py, or 'cpu'
    gpu: str = 'H200'
    gpus: int = 8
    mfu: float | None = None # measured; None: what training/cost.py expects of products at 60 % of the peak
    cpu_flops: float = CPU_FLOPS # for gpu='cpu': 6ND a second
    keys: int = 400 # that a token sees on average, for training/cost.py
    price: float | None = None # of a GPU for an hour, in any currency
    # data
    tokens: float | None = None # that there are; None: counted in the shards of the base's data, open where there are none
    epochs: float = 1.0 # over any source, at most (SIMS 3: speech at most once)
    # doing it
    run: bool = False # train and evaluate what is feasible, one after another
    train: str = 'train.py'
    eval: str = 'eval.py'
    eval_flags: str = '' # more for eval.py, separated by blanks, as '--max_items=200'

    def __post_init__(self):
        if self.gpu not in (*CHIPS, 'cpu'):
            raise Refused(f"gpu={self.gpu!r}: expected one of {', '.join((*CHIPS, 'cpu'))}")
        for name in ('seeds', 'gpus', 'cpu_flops', 'keys', 'epochs', 'mfu', 'tokens', 'price'):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise Refused(f"{name}={getattr(self, name)}: expected more than 0")
        if self.mfu and self.mfu > 1:
            raise Refused(f"mfu={self.mfu}: expected a share of the peak, as 0.4")
        if self.gpus > 8 and self.gpus % 8:
            raise Refused(f"gpus={self.gpus}: expected at most 8, or whole nodes of 8")
        if self.run and self.gpus > 8 and self.gpu != 'cpu':
            raise Refused("run: starts runs on one node; expected gpus=8 at most, or the torchrun lines started on each node")

# ----------------------------------------------------------------------------------------------------------------
# plan

def numbers(text, name):
    """'2e18,5e18' -> [2e18, 5e18], Refused where one is no number above 0."""
    try:
        found = [float(part) for part in text.split(',')]
    except ValueError:
        found = []
    if not found or not all(0 < x < float('inf') for x in found):
        raise Refused(f"{name}={text!r}: expected numbers above 0, separated by commas")
    return found

def settings_of(flags, kind=train.Config):
    """The Config of config files and flags, without what the configurator says."""
    with contextlib.redirect_stdout(io.StringIO()):
        return configure(kind, flags)

def lr_of(cfg, N, C, base):
    """The peak: SIMS A.2."""
    if cfg.lr is not None or cfg.family == 'tiny':
        return cfg.lr or base.lr
    return 3e-4 if C >= 2e20 or C >= 6e19 and N >= 6e9 else 5e-4 # without its text rows the 7B has 6.5e9

def flags_of(cfg, base, name, shape, C, lr, seed, how, out_dir):
    """The --key=value of train.py by which a run differs from the base config."""
    flags = {'max_flops': f'{C:.10g}'.replace('+', ''), 'lr': lr, 'out': out_dir, **how}
    if base.min_lr > lr:
        flags['min_lr'] = lr
    flags |= {key: None for key in train.BUDGETS if key != 'max_flops' and getattr(base, key) is not None}
    flags |= {key: None for key in (*train.SCRATCH, 'init_config') if getattr(base, key) is not None}
    shape_alone = name in SHAPES and name.startswith('tiny/') # no hub has them
    if cfg.init != 'scratch' and not shape_alone:
        flags['init'] = name
    elif shape_alone:
        own = ('n_layer', 'n_head', 'n_kv_head', 'n_embd', 'head_dim', 'n_ffn')
        flags |= {'init': 'scratch', **{key: getattr(shape, key) for key in own}}
    else:
        flags |= {'init': 'scratch', 'init_config': name}
    if seed != base.seed:
        flags['seed'] = seed
    return [f'--{key}={value}' for key, value in flags.items()]

def fastest_fit(cfg, base, shape):
    """How train.py would fit a model on the GPUs, the quickest way: ({micro_batch, parallel, recompute}, GB a GPU, seconds
    a step); Refused where no way fits. On a CPU as the base config has it, and no memory is counted."""
    if cfg.gpu == 'cpu':
        return {}, None, None
    chip = CHIPS[cfg.gpu]
    if base.rows % cfg.gpus:
        raise Refused(f"{base.rows} rows a step do not divide by {cfg.gpus} GPUs")
    each, best, least = base.rows // cfg.gpus, None, float('inf')
    for recompute in ('none', 'selective', 'full'):
        for parallel in ('ddp', 'fsdp')[:1 + (cfg.gpus > 1)]:
            for micro in (n for n in range(min(each, 32), 0, -1) if each % n == 0):
                held = sum(memory(shape, micro * base.block_size, cfg.gpus, parallel, base.dtype, recompute).values())
                least = min(least, held)
                if held <= ROOM * chip.memory: # smaller micro-batches of the same kind are no quicker
                    step = step_time(shape, chip, cfg.gpus, base.batch_tokens, micro * base.block_size, cfg.keys, parallel,
                                     base.dtype, recompute)
                    seconds = step['seconds'] * (step['mfu'] / cfg.mfu if cfg.mfu else 1)
                    how = {'micro_batch': micro, 'parallel': parallel, 'recompute': recompute}
                    best = min(best or (float('inf'),), (seconds, held / 1e9, how), key=lambda found: found[0])
                    break
        if best:
            return best[2], best[1], best[0]
    raise Refused(f"needs {least / 1e9:.0f} GB of the {ROOM * chip.memory / 1e9:.0f} on each {cfg.gpu}")

def tokens_there(cfg, base):
    """The tokens a run may see before its scarcest source has been read once; None where there are no shards to count."""
    if cfg.tokens:
        return cfg.tokens
    weights, least = base.weights or (1,) * len(base.sources), float('inf')
    for source, weight in zip(base.sources, weights):
        folders = [p for part in base.data.split(',') if (p := Path(part) / 'train' / source).is_dir()]
        if not folders:
            return None
        least = min(least, sum(Shards(p).tokens for p in folders) * sum(weights) / weight)
    return least

def run_of(cfg, base_path, base, model, way, there, C, seed):
    """A line of runs.jsonl; 'why_not' says what stands against the run."""
    (size, name, shape, N), (how, held, seconds, why_not) = model, way
    family, step = cfg.family if cfg.family in FAMILIES else 'models', 6 * N * base.batch_tokens # FLOPs
    run = f'{family}-{size}-{C:g}'.replace('+', '') + (f'-s{seed}' if cfg.seeds > 1 else '')
    out_dir, lr, steps = f'{cfg.out}/{run}', lr_of(cfg, N, C, base), int(C // step)
    D = steps * base.batch_tokens
    epochs = D / there if there else None
    if not why_not and steps < 1:
        why_not = f"a step alone is {step:.1e} FLOPs"
    elif not why_not and epochs and epochs > cfg.epochs:
        why_not = f"{epochs:.2f} epochs of the {there:.3g} tokens there are"
    hours = steps * step / cfg.cpu_flops / 3600 if cfg.gpu == 'cpu' else seconds and steps * seconds / 3600
    return {'name': run, 'family': family, 'size': size, 'N': N, 'flops': C, 'tokens': D, 'steps': steps, 'lr': lr,
            'seed': seed, **how, 'gb': held, 'hours': hours, 'epochs': epochs, 'why_not': why_not, 'out_dir': out_dir,
            'train': [base_path, *cfg.flags.split(), *flags_of(cfg, base, name, shape, C, lr, seed, how, out_dir)],
            'eval': [f'--model={out_dir}', f'--data={base.data}', *cfg.eval_flags.split()]}

def plan_of(cfg):
    """The rows of runs.jsonl: a run for each budget, size and seed, the smallest first. A feasible one's settings are checked
    as train.py will."""
    base_path = cfg.base or BASES.get(cfg.family, BASES['qwen2.5'])
    base = settings_of([base_path, *cfg.flags.split()])
    there, rows = tokens_there(cfg, base), []
    models = {size: (size, *model) for size, model in models_of(cfg.family, cfg.sizes, cfg.init, base.vocab).items()}
    ways = {}
    for size, (_, _, shape, _) in models.items():
        try:
            ways[size] = *fastest_fit(cfg, base, shape), None
        except Refused as e:
            ways[size] = {}, None, None, str(e)
    for C in sorted(numbers(cfg.budgets, 'budgets')):
        for size, model in models.items():
            for seed in range(base.seed, base.seed + cfg.seeds):
                rows.append(row := run_of(cfg, base_path, base, model, ways[size], there, C, seed))
                if not row['why_not']:
                    settings_of(row['train'])
    return rows

def launcher(cfg):
    """How a script is started on the hardware of a plan."""
    if cfg.gpu == 'cpu' or cfg.gpus == 1:
        return 'python'
    nodes = cfg.gpus // 8
    return f'torchrun --nproc_per_node={min(cfg.gpus, 8)}' + (
        f' --nnodes={nodes} --rdzv_backend=c10d --rdzv_endpoint=HOST:29400' if nodes > 1 else '')

def table(cfg, rows):
    """The plan as lines of text."""
    show = lambda value, form: '-' if value is None else format(value, form)
    number = 1 if cfg.gpu == 'cpu' else cfg.gpus
    yield (f"{'run':26} {'N':>13} {'tokens':>8} {'steps':>8} {'tok/N':>6} {'lr':>6} {'micro':>9} {'GB':>5} {'hours':>7} "
           f"{'GPU h':>8} {'cost':>8} {'epochs':>6}  feasible")
    for r in rows:
        how = f"{r['micro_batch']} {r['parallel']}" if 'micro_batch' in r else '-'
        gpu_h = r['hours'] and r['hours'] * number
        cost = gpu_h and cfg.price and gpu_h * cfg.price
        yield (f"{r['name']:26} {r['N']:13,} {r['tokens']:8.2e} {r['steps']:8,} {r['tokens'] / r['N']:6.2g} {r['lr']:6.0e} "
               f"{how:>9} {show(r['gb'], '.0f'):>5} {show(r['hours'], '.3g'):>7} {show(gpu_h, '.3g'):>8} "
               f"{show(cost, ',.0f'):>8} {show(r['epochs'], '.2f'):>6}  {'no: ' + r['why_not'] if r['why_not'] else 'yes'}")
    good = [r for r in rows if not r['why_not']]
    hours = sum(r['hours'] for r in good)
    yield (f"{len(good)} of {len(rows)} runs: {hours:,.2f} h on {'a CPU' if cfg.gpu == 'cpu' else f'{number} x {cfg.gpu}'}, "
           f"{hours * number:,.1f} GPU hours" + (f", {hours * number * cfg.price:,.0f} in all" if cfg.price else '')
           + ("" if all(r['epochs'] for r in rows) else "; the tokens there are open: no shards to count, give --tokens="))

# ----------------------------------------------------------------------------------------------------------------
# doing it

hash_of_init = cache(train.hash_of_init)

def finished(row):
    """Whether a run's folder holds its finished model; Refused where that was trained with other settings, or from other
    weights."""
    path = Path(row['out_dir']) / 'settings.json'
    if not path.is_file():
        return False
    made = read_json(path.parent, path.name, 'train.py')
    saved, now = made['settings'], as_saved(settings_of(row['train']))
    other = [f"{key}={saved.get(key)!r}, not {now[key]!r}" for key in now
             if (key not in train.MAY_CHANGE_ON_RESUME or key == 'eval_rows') and saved.get(key) != now[key]] # a loss is that of eval_rows
    if made['inputs']['weights of init'] != hash_of_init(now['init']):
        other.append(f"other weights than {now['init']} has now")
    if other:
        raise Refused(f"{row['out_dir']}: trained with {'; '.join(other)}: expected the plan's settings; remove the folder, "
                      "or give the plan another --out")
    return True

def evaluated(row):
    """Whether a run's scores are newer than its model, and made with the plan's settings."""
    scores, made = (Path(row['out_dir']) / name for name in ('eval.json', 'settings.json'))
    if not scores.is_file() or scores.stat().st_mtime < made.stat().st_mtime:
        return False
    cfg, tasks = settings_of(row['eval'], EvalConfig), read_json(scores.parent, scores.name, 'eval.py')['tasks']
    now, keys = as_saved(cfg), {flag[2:].split('=')[0] for flag in row['eval']} - {'model'}
    return all(name in tasks and all(tasks[name]['settings'].get(key) == now[key] for key in keys)
               for name in [*cfg.wanted, *(['loss'] if cfg.data else [])]) # what else was measured since is no matter

def as_saved(settings):
    """A Config as a file has it: tuples are lists there."""
    return json.loads(json.dumps(asdict(settings)))

def call(command, lock):
    """Runs a command to its end -> (exit status, whether a signal came meanwhile). SIGTERM is handed on to it; SIGINT a
    terminal gives to both. It holds the lock too, so that a run outlives its parent's death undisturbed."""
    came, child = [], subprocess.Popen(command, pass_fds=[lock])
    def note(number, _):
        came.append(number)
        if number == signal.SIGTERM:
            child.terminate()
    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return child.wait(), bool(came)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

def execute(cfg, rows):
    """Trains and evaluates the feasible runs in order. A finished one is skipped, a cut one goes on from its checkpoint, as
    train.py does for the same command; an evaluation older than its model, or with other settings, is made again. Processes given the same rows share
    them: what another holds is left to it, and waited for at the end."""
    many = [] if cfg.gpu == 'cpu' or cfg.gpus == 1 else ['-m', 'torch.distributed.run', f'--nproc_per_node={cfg.gpus}']
    good = [row for row in rows if not row['why_not']]
    left, wait = list(enumerate(good, 1)), False
    while left:
        busy = []
        for i, row in left:
            Path(row['out_dir']).mkdir(parents=True, exist_ok=True)
            with open(Path(row['out_dir']) / '.lock', 'w') as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError:
                    busy.append((i, row))
                    continue
                wait = False
                make(cfg, row, f'[{i}/{len(good)}] {row["name"]}', many, lock.fileno())
        left, wait = busy, True
    print(f"{cfg.out}: {len(good)} runs are trained and evaluated; next: python -m scaling.fit --runs={cfg.out}")

def make(cfg, row, name, many, lock):
    """One run of execute: what of it is not done."""
    begin = time.monotonic()
    for script, arguments, launch, done in (
            (cfg.train, row['train'], many, lambda: finished(row)),
            (cfg.eval, row['eval'], [], lambda: evaluated(row))):
        if done():
            continue
        print(f"{name}: {script}", flush=True)
        status, came = call([sys.executable, *launch, script, *arguments], lock)
        if came or status or not done():
            how = "a signal came" if came else f"{script} ended with status {status}" + ('' if status else ", unfinished")
            raise Refused(f"{row['name']}: {how}; the same command goes on from there")
    print(f"{name}: done ({time.monotonic() - begin:.0f} s)", flush=True)

def write_rows(out, rows):
    with atomically(Path(out) / 'runs.jsonl') as tmp:
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
