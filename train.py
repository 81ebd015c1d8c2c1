"""
Trains a language model on token shards: a TextLM, or a speech or interleaved model that starts from one.

    python train.py config/tiny.py [--key=value ...]                     one process, CPU or GPU
    torchrun --nproc_per_node=8 train.py config/qwen7b.py                one node
    torchrun --nnodes=4 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29400 train.py ...   on each node

A step is batch_tokens / block_size rows, numbered step*rows ... on: row g is a pure function of (seed, g), so any world
size and any micro-batch sees the same samples. Over all ranks and micro-steps of a step

    loss = sum of the targets' losses / number of targets          C = 6 N D  (N parameters, D tokens)

The same command resumes a run that was cut (to the bit, at the same world size) and leaves a finished one alone.
SIGTERM, SIGINT or SIGHUP saves and exits 0 (torchrun gives its workers 30 s for it, or --shutdown-timeout=SECONDS). A step whose loss or gradient is not finite on any rank is skipped on all; five in
a row end the run with status 17. At the end the folder --out is a Hugging Face folder, with log.jsonl (one line a step, and one
an evaluation), settings.json and the last two step-N/ (training/checkpoint.py).
"""
import json
import math
import os
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from configurator import Refused, run
from data import Loader, Shards, check_names
from files import sha256
from hub.families import GPTConfig
from hub.folders import knows_units, read_config, vocabulary
from hub.tokenizer import TextTokenizer
from kernels.attention import choose_backend
from model import GPT
from training import checkpoint
from training.cost import ROOM, memory
from training.log import Log, modality_means
from training.processes import processes, signals, to_device, wrap_distributed
from vocab import papers_vocab

SCRATCH = ('n_layer', 'n_head', 'n_kv_head', 'n_embd', 'head_dim', 'n_ffn') # settings that only init='scratch' takes
BUDGETS = ('max_steps', 'max_tokens', 'max_flops', 'max_seconds')
# to change on resume: at most the rounding differs
MAY_CHANGE_ON_RESUME = ('out', 'micro_batch', 'device', 'attention', 'parallel', 'recompute', 'compile', 'memory', 'timeout',
        'log_every', 'eval_every', 'eval_rows', 'save_every', 'wandb')
CHOICES = {'vocab': ('joint', 'speech', 'text'), 'new_rows': ('hf', 'mean', 'normal'),
           'device': ('auto', 'cuda', 'cpu'), 'schedule': ('cosine', 'constant', 'inverse_sqrt', 'wsd'),
           'attention': (None, 'triton', 'one-pass', 'sdpa'), 'parallel': ('ddp', 'fsdp'), 'recompute': ('none', 'selective', 'full'),
           'dtype': ('bfloat16', 'float32', 'pure_bfloat16')}
POSITIVE = (*SCRATCH, *BUDGETS, 'rope_theta', 'block_size', 'batch_tokens', 'micro_batch', 'lr', 'decay', 'clip',
            'timeout', 'log_every', 'eval_every', 'eval_rows', 'save_every')

@dataclass(frozen=True)
class Config:
    # data
    data: str = 'out/tokens/stories,out/tokens/talk' # corpora as interleave.py writes them
    sources: tuple = ('text', 'speech', 'interleaved') # what is mixed: folders of data/train; or ('textless',)
    weights: tuple | None = None # share of each source's rows; None: equal
    vocab: str = 'joint' # 'joint' (text and units), 'speech' (units alone), 'text' (a TextLM)
    tokenizer: str | None = None # text tokenizer of the data, folder or hub id; None: the one of init
    # model
    init: str = 'scratch' # a folder or hub id (TextLM or SLM), or 'scratch': random weights of the shape below
    init_config: str | None = None # scratch in the shape of this folder's config.json or hub id (the papers' GSLM)
    n_layer: int | None = None
    n_head: int | None = None
    n_kv_head: int | None = None # None: n_head
    n_embd: int | None = None
    head_dim: int | None = None # None: n_embd / n_head
    n_ffn: int | None = None
    rope_theta: float | None = None # None: as init has it, 1e6 from scratch
    new_rows: str = 'hf' # how rows of new tokens start: 'hf' (the papers' code), 'mean', 'normal'
    # batch
    block_size: int = 2048 # tokens a row
    batch_tokens: int = 147456 # tokens a step, over all ranks: 72 rows of 2,048
    micro_batch: int = 8 # rows a forward, on each rank; the accumulation follows
    # optimizer: AdamW 0.9, 0.999, 1e-8, no decay
    lr: float = 5e-4 # the peak
    min_lr: float = 5e-5
    schedule: str = 'cosine' # 'cosine', 'constant', 'inverse_sqrt', 'wsd' (warm-up, stable, linear decay)
    warmup: float = 0.01 # share of the budget
    decay: float = 0.2 # share of the budget, for wsd
    clip: float = 0.5 # norm of the gradient
    # budget, exactly one; the schedule ends where it ends
    max_steps: int | None = None
    max_tokens: int | None = None
    max_flops: float | None = None # C = 6ND
    max_seconds: float | None = None # of training, by rank 0's clock (not bit-equal on resume)
    # run
    out: str = 'out/model'
    seed: int = 0
    device: str = 'auto' # 'auto' (a GPU if there is one), 'cuda', 'cpu'
    attention: str | None = None # 'triton', 'one-pass' (its faster backward, not the same to the bit every time), 'sdpa'
    # (torch's; no soft-cap, which Gemma2 needs); None: the device's fastest that repeats its bits
    parallel: str = 'ddp' # several processes: each a copy ('ddp'), or a shard of weights, gradients, moments ('fsdp')
    recompute: str = 'none' # in the backward, to save memory: 'selective' (norms and activations), 'full' (layers)
    compile: bool = False # torch.compile of each layer, around our kernels: seconds at the start, fewer passes after
    dtype: str = 'bfloat16' # of the compute; 'pure_bfloat16': of weights and moments too, as the papers' code
    memory: int = 0 # print what each of so many GPUs holds at most, and end: no GPU, weights or data are needed
    timeout: float = 600.0 # seconds without an answer from another rank end the run; an hour where a checkpoint is written
    log_every: int = 10 # steps a terminal line; log.jsonl has every step
    eval_every: int = 1000 # steps
    eval_rows: int = 64 # rows of each corpus and source, at most
    save_every: int = 500 # steps
    wandb: str = '' # a project of Weights & Biases that log.jsonl is sent to as well, by its own package; '' is none

    def __post_init__(self):
        check_settings(self, BUDGETS)
        if self.memory < 0:
            raise Refused(f"memory={self.memory}: expected a number of GPUs")
        self._check_init()
        world = self.memory or int(os.environ.get('WORLD_SIZE', 1))
        unit = world * self.micro_batch * self.block_size
        if self.batch_tokens % unit:
            near = max(self.batch_tokens // unit, 1) * unit
            raise Refused(f"batch_tokens={self.batch_tokens}: expected {near} or {near + unit}, a multiple of "
                          f"world {world} x micro_batch {self.micro_batch} x block_size {self.block_size}")

    def _check_init(self):
        shape = [name for name in SCRATCH if getattr(self, name) is not None]
        lacking = [name for name in ('n_layer', 'n_head', 'n_embd', 'n_ffn') if name not in shape]
        if self.init_config and self.init != 'scratch':
            raise Refused(f"init_config={self.init_config!r}: goes with init='scratch', not with init={self.init!r}")
        if (self.init_config or self.init != 'scratch') and shape:
            raise Refused(f"{shape[0]}: {self.init_config or self.init} has one; it goes with init='scratch' alone")
        if self.init == 'scratch' and not self.init_config and lacking:
            raise Refused(f"init='scratch': expected {', '.join(lacking)} too, or init_config=FOLDER to take its shape")
        if self.init == 'scratch' and not self.init_config and self.vocab != 'speech' and not self.tokenizer:
            raise Refused("init='scratch': expected tokenizer=FOLDER, the text tokenizer of the data")

    @property
    def rows(self): # a step, over all ranks
        return self.batch_tokens // self.block_size

# ----------------------------------------------------------------------------------------------------------------
# pure helpers, shared with dpo.py

def check_settings(cfg, budgets):
    """Refuses what no run can be: a choice that is none, a count of 0, no budget or two, an impossible schedule."""
    for name, allowed in CHOICES.items():
        if (value := getattr(cfg, name, allowed[0])) not in allowed:
            raise Refused(f"{name}={value!r}: expected one of {', '.join(map(str, allowed))}")
    for name in POSITIVE:
        if (value := getattr(cfg, name, None)) is not None and not value > 0:
            raise Refused(f"{name}={value}: expected more than 0")
    given = [name for name in budgets if getattr(cfg, name) is not None]
    if len(given) != 1:
        raise Refused(f"expected exactly one of {', '.join(budgets)}, got {' and '.join(given) or 'none'}")
    if cfg.wandb and not find_spec('wandb'):
        raise Refused(f"wandb={cfg.wandb!r}: expected its package; pip install wandb")
    if not 0 <= cfg.min_lr <= cfg.lr:
        raise Refused(f"min_lr={cfg.min_lr}: expected 0 to lr={cfg.lr}")
    if not 0 <= cfg.warmup < 1 or cfg.schedule == 'wsd' and cfg.warmup + cfg.decay > 1:
        raise Refused(f"warmup={cfg.warmup}, decay={cfg.decay}: expected shares of the budget, of sum 1 at most")
    if cfg.schedule == 'inverse_sqrt' and cfg.warmup == 0:
        raise Refused("schedule='inverse_sqrt' falls from the end of the warm-up: expected warmup above 0")

def learning_rate(cfg, t):
    """The rate at t, the share of the budget that is used when the step ends (0 to 1)."""
    # 1) linear warm-up
    if t < cfg.warmup:
        return cfg.lr * t / cfg.warmup
    # 2) constant, or down from the peak as 1 / sqrt(t)
    if cfg.schedule == 'constant':
        return cfg.lr
    if cfg.schedule == 'inverse_sqrt':
        return cfg.lr * math.sqrt(cfg.warmup / t)
    # 3) down to min_lr at t = 1: a half cosine from the warm-up on, or a line over the last `decay`
    start = cfg.warmup if cfg.schedule == 'cosine' else 1 - cfg.decay
    x = min(max((t - start) / (1 - start), 0.0), 1.0)
    fall = 0.5 * (1 + math.cos(math.pi * x)) if cfg.schedule == 'cosine' else 1 - x
    return cfg.min_lr + (cfg.lr - cfg.min_lr) * fall

def total_steps(cfg, flops):
    """Steps the budget buys, rounded down, at so many FLOPs a step; None where it is wall time."""
    if cfg.max_seconds is not None:
        return None
    steps = cfg.max_steps or int(cfg.max_tokens // cfg.batch_tokens if cfg.max_tokens else cfg.max_flops // flops)
    if steps < 1:
        raise Refused(f"the budget buys no step: one is {cfg.batch_tokens} tokens and {flops:.2e} FLOPs")
    return steps

def make_optimizer(model, lr):
    """AdamW, fused (on a CPU too: a third of the time of the unfused); its `found_inf` skips a step on the device."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)
    optimizer.grad_scale = None
    return optimizer

# ----------------------------------------------------------------------------------------------------------------
# data and model

def hash_of_init(init):
    """Of a local folder's weights; a hub id stands for itself."""
    return checkpoint.digest(map(sha256, sorted(Path(init).glob('*.safetensors'))))

def open_data(cfg):
    """Vocabulary, text tokenizer ('' for speech), Loader, {corpus/source: Loader} held out, {input: its hash}."""
    check_names(cfg.data)
    corpora = [Path(p) for p in cfg.data.split(',')]
    folders = {s: [c / 'train' / s for c in corpora if (c / 'train' / s).is_dir()] for s in cfg.sources}
    for source, found in folders.items():
        if not found:
            raise Refused(f"{' and '.join(str(c / 'train' / source) for c in corpora)}: no such folder; "
                          "expected token shards as interleave.py writes them")
    vocab = next((v for found in folders.values() if (v := Shards(found[0]).vocab).kind == cfg.vocab), None)
    if vocab is None:
        raise Refused(f"vocab={cfg.vocab!r}: no shards of {cfg.data} ({', '.join(cfg.sources)}) have such a vocabulary")
    tokenizer = '' if vocab.kind == 'speech' else cfg.tokenizer or cfg.init_config or cfg.init
    if tokenizer and (found := TextTokenizer(tokenizer).hash) != vocab.tokenizer:
        raise Refused(f"{tokenizer}: its text tokenizer ({found}) did not make the shards ({vocab.tokenizer} did)")
    sources = [Shards(found, vocab) for found in folders.values()]
    loader = Loader(sources, cfg.weights, cfg.block_size, cfg.seed)
    held_out = {f'{c.name}/{s}': c / 'val' / s for s in cfg.sources for c in corpora}
    val = {name: Loader([Shards(folder, vocab)], None, cfg.block_size, 0) for name, folder in held_out.items()
           if (folder / 'index.json').is_file() # and at least a row
           and json.loads((folder / 'index.json').read_text())['tokens'] >= cfg.block_size}
    inputs = {'weights of init': hash_of_init(cfg.init), 'vocabulary': vocab.hash(),
              **{f'{name} shards': source.hash[:16] for name, source in zip(folders, sources)}}
    return vocab, tokenizer, loader, val, inputs

def _rope(cfg, shape):
    if cfg.rope_theta and shape.position != 'rope':
        raise Refused(f"rope_theta={cfg.rope_theta}: {shape.family} has no rotary positions; expected rope_theta=None")
    return {'rope_theta': cfg.rope_theta} if cfg.rope_theta else {}

def shape_of(cfg):
    """The GPTConfig that a new run starts from, with the vocabulary it has there."""
    if cfg.init != 'scratch' or cfg.init_config:
        return read_config(cfg.init_config or cfg.init)
    return GPTConfig(**{name: getattr(cfg, name) for name in SCRATCH if getattr(cfg, name) is not None})

def memory_of(cfg, world, vocab_size=None):
    """Bytes on each of `world` GPUs, as cost.memory; without a vocab_size it is that of the papers' 500 units."""
    shape = shape_of(cfg)
    vocab_size = vocab_size or papers_vocab(cfg.vocab, shape.vocab_size).size
    return memory(replace(shape, vocab_size=vocab_size), cfg.micro_batch * cfg.block_size, world, cfg.parallel, cfg.dtype,
                  cfg.recompute)

def table_of(held, cfg, world):
    each = ', '.join(f'{name} {size / 1e9:.1f}' for name, size in held.items())
    return (f"{sum(held.values()) / 1e9:.1f} GB on each of {world} GPUs at most ({each}): {cfg.parallel}, {cfg.dtype}, "
            f"recompute={cfg.recompute}, {cfg.micro_batch} x {cfg.block_size} tokens")

def check_memory(cfg, world, vocab_size, room):
    """Refuses a run that cannot fit into so many bytes a GPU."""
    held = memory_of(cfg, world, vocab_size)
    need = sum(held.values()) - (held['gradients'] if cfg.rows == cfg.micro_batch else 0) # made as activations go, then
    if need > room:
        raise Refused(f"{table_of(held, cfg, world)}; a GPU has {room / 1e9:.1f} GB: expected a smaller micro_batch, "
                      "recompute='selective' or 'full', or parallel='fsdp'")

def check_attention(cfg, shape, device):
    """Refuses a backend that cfg asks for and that device or model cannot have."""
    dtype = torch.float32 if cfg.dtype == 'float32' else torch.bfloat16
    choose_backend(device, cfg.attention, dtype, shape.head_dim, shape.attn_softcap)

def set_up(model, cfg):
    """The model with the dtype, attention and recomputing of the settings."""
    model = model.bfloat16() if cfg.dtype == 'pure_bfloat16' else model
    model.attention = cfg.attention
    for block in model.layers:
        block.recompute = cfg.recompute
    return model

def build_model(cfg, vocab, tokenizer, device):
    """What a new run starts from: random, a TextLM with rows for the units (TWIST), or a model of this vocabulary."""
    torch.manual_seed(cfg.seed)
    if cfg.init == 'scratch':
        shape = shape_of(cfg)
        bos, eos = (vocab.bos, vocab.bos) if vocab.kind == 'speech' else (None, TextTokenizer(tokenizer).eot)
        return GPT(replace(shape, vocab_size=vocab.size, bos_token_id=bos, eos_token_id=eos, **_rope(cfg, shape))).to(device)
    theirs = vocabulary(cfg.init)[0] if knows_units(cfg.init) else None # none: a TextLM
    if theirs and (not theirs.units or '/' in theirs.units): # nothing to compare with the shards' hash
        theirs = replace(theirs, units=vocab.units)
    if theirs and theirs.kind != 'text' and theirs != vocab:
        raise Refused(f"{cfg.init}: its vocabulary ({theirs.kind}, {theirs.size} ids, {theirs.hash()}) is not that of "
                      f"the shards ({vocab.kind}, {vocab.size} ids, {vocab.hash()}); expected that, or a TextLM")
    model = GPT.from_pretrained(cfg.init, device=device)
    model.cfg = replace(model.cfg, **_rope(cfg, model.cfg))
    if theirs != vocab:
        model.extend_vocabulary(vocab, cfg.new_rows, torch.Generator().manual_seed(cfg.seed))
    return model

class LMObjective(torch.nn.Module):
    """The sum of a micro-batch's losses, and that sum and the number of targets of each modality: text, unit, other."""

    def __init__(self, model, vocab):
        super().__init__()
        self.model = model
        kinds = torch.as_tensor(vocab.modality(torch.arange(vocab.size)))
        self.register_buffer('kinds', kinds.to(next(model.parameters()).device), persistent=False) # (V,)

    def forward(self, tokens, doc_start, targets): # (B, T) each
        loss, losses = self.model.loss_sum(tokens, doc_start, targets) # (), (B*T,) float32, 0 where there is no target
        flat = targets.flatten()
        kind = torch.where(flat >= 0, self.kinds[flat.clamp(min=0)].long(), 3)
        is_kind = kind == torch.arange(3, device=kind.device)[:, None] # (3, B*T)
        sums = (is_kind * losses).sum(1, dtype=torch.float64)
        return loss, torch.cat((sums, is_kind.sum(1))) # (), (6,)

    @staticmethod
    def summary(parts):
        """What is logged of the parts of a step or an evaluation."""
        return modality_means(parts[:3], parts[3:]) | {'targets': int(sum(parts[3:]))}

def fetch(loader, cfg, step, rank, world, device):
    """This rank's micro-batches of a step, on the device, the number of their targets there, and the keys they see."""
    micro, n_targets, keys, place = [], 0, 0, np.arange(1, cfg.block_size + 1)
    for first in range(step * cfg.rows, (step + 1) * cfg.rows, world * cfg.micro_batch):
        tokens, doc_start, targets, _ = loader.rows(first + rank * cfg.micro_batch, cfg.micro_batch)
        n_targets += int((targets >= 0).sum())
        keys += int((place - doc_start).sum())
        micro.append(tuple(to_device(x, device) for x in (tokens, doc_start, targets)))
    return micro, to_device(torch.tensor(float(n_targets), dtype=torch.float64), device), keys

def held_out(loader):
    """(rows of a Loader, what evaluate reads of it: tokens, doc_start, targets of n rows, nothing to predict for n < 1)"""
    def read(first, n):
        *batch, targets, _ = loader.rows(first if n > 0 else 0, max(n, 1))
        return *batch, targets if n > 0 else np.full_like(targets, -100)
    return int(loader.n_rows[0]), read

# ----------------------------------------------------------------------------------------------------------------
# the loop, of train.py and of dpo.py

@torch.no_grad()
def evaluate(run, objective, sets):
    """{name: summary} over eval_rows rows of each of sets {name: (rows, read)}; every world-th micro-batch on a rank."""
    cfg, result = run.cfg, {}
    rank, world, device, _ = run.place
    for name, (rows, read) in sets.items():
        rows, parts = min(cfg.eval_rows, rows), 0
        for first in range(rank * cfg.micro_batch, rows + rank * cfg.micro_batch, world * cfg.micro_batch):
            batch = read(first, min(cfg.micro_batch, rows - first)) # shards: all ranks call forward equally often
            with run.autocast():
                parts = parts + objective(*(to_device(x, device) for x in batch))[1]
        if world > 1:
            dist.all_reduce(parts)
        result[name] = objective.summary(parts.tolist())
    if isinstance(objective, FSDPModule):
        objective.reshard() # without a backward its own weights stay gathered, and a checkpoint would save those, in bf16
    return result

def training_loop(run, objective, steps, fetch, sets):
    """Steps to the end of the budget, or to a signal -> (the last step, is it the end, how many were skipped).

    objective   a module around .model: a micro-batch -> (the sum of its losses, parts: sums over it to be logged),
                with .summary(parts) of a step; its loss is the sum of losses / the sum of weights, over all ranks
    fetch(step) -> this rank's micro-batches, their weight, the keys that their tokens see
    sets        what is held out, for evaluate
    """
    cfg, state, model = run.cfg, run.state, objective.model
    rank, world, device, checkpoint_group = run.place
    net = wrap_distributed(objective, cfg, world, device)
    optimizer = make_optimizer(model, cfg.lr)
    if run.folder:
        checkpoint.load_optimizer(run.folder, model, optimizer)
    log = Log(cfg, state, model, rank, world, device, objective.summary)
    step, seconds = state['step'], state['seconds']
    started, stop, done = time.monotonic() - seconds, False, state['finished']
    batch, weight, keys = fetch(step)
    while not (done or stop):
        # ---- the step
        lr = learning_rate(cfg, (step + 1) / steps if steps else min(seconds / cfg.max_seconds, 1.0))
        optimizer.param_groups[0]['lr'] = lr
        if world > 1:
            dist.all_reduce(weight) # of the whole global batch
        scale = (world / weight.clamp(min=1)).float() # DDP averages, we want the sum
        parts, tokens = 0, sum(micro[0].numel() for micro in batch)
        for i, micro in enumerate(batch):
            if world > 1:
                net.sync(i == len(batch) - 1)
            with run.autocast():
                loss, part = net(*micro)
            (loss * scale).backward()
            parts = parts + part
        begin = time.perf_counter()
        batch, next_weight, next_keys = fetch(step + 1) # while the device works
        data = time.perf_counter() - begin
        own = [len(run.asked), time.monotonic() - started if rank == 0 else 0.0, keys, tokens] # signals; rank 0's clock
        shared = torch.cat((parts, to_device(torch.tensor(own, dtype=torch.float64), device)))
        if world > 1:
            dist.all_reduce(shared)
        norm = checkpoint.full_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip))
        bad = ~(norm.isfinite() & shared.isfinite().all()) # the same on every rank: both are sums over all
        optimizer.found_inf = (bad | (weight == 0)).float() # 1: this step changes neither weights nor moments
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, weight, keys = step + 1, next_weight, next_keys

        # ---- the log, a step late; at times an evaluation, a checkpoint
        late = log.read() # the step before; every rank reads the same
        log.post(step, steps, torch.cat((shared, torch.stack((norm, bad)).double())), lr, data)
        stop, seconds = late or (stop, seconds)
        done = step == steps if steps else seconds >= cfg.max_seconds
        to_evaluate, to_save = done or step % cfg.eval_every == 0, done or stop or step % cfg.save_every == 0
        if not to_evaluate and not to_save:
            continue
        stop = log.read()[0] or stop # nothing waits while the log is evaluated on or saved with
        if to_evaluate:
            state['val'] = evaluate(run, objective, sets)
            log.write({'step': step, 'val': state['val']})
            run.say(*(f"step {step} | val {name} {mean['loss']:.3f}" for name, mean in state['val'].items()), sep='\n')
        if to_save or stop:
            state |= {'step': step, 'seconds': time.monotonic() - started, 'skipped': log.skipped,
                      'streak': log.streak, 'finished': done, 'run': run.identity}
            log.sync()
            checkpoint.save(Path(cfg.out), step, model, optimizer, state, run.vocab, run.tokenizer, rank)
        if world > 1:
            dist.barrier(group=checkpoint_group) # rank 0 may be writing
        log.skip_time()
    return step, done, log.skipped

# ----------------------------------------------------------------------------------------------------------------

def main(cfg):
    if cfg.memory:
        return print(table_of(memory_of(cfg, cfg.memory), cfg, cfg.memory))
    with processes(cfg) as place, signals() as asked:
        rank, world, device, _ = place
        if cfg.attention: # refused here where it cannot be had
            check_attention(cfg, shape_of(cfg), device)

        # ---- the data, and what an earlier run of this command left
        vocab, tokenizer, loader, val, inputs = open_data(cfg)
        if device.type == 'cuda':
            check_memory(cfg, world, vocab.size, ROOM * torch.cuda.get_device_properties(device).total_memory)
        run = checkpoint.open_run(cfg, MAY_CHANGE_ON_RESUME, place, asked, vocab, tokenizer, inputs)
        if run.finished:
            return run.state['val']

        # ---- the model
        model = GPT.from_pretrained(run.folder, device=device) if run.folder else build_model(cfg, vocab, tokenizer, device)
        model = set_up(model, cfg)
        for block in model.layers if cfg.compile else []: # forward alone: what gathers shards is called around it
            block.forward = torch.compile(block.forward, dynamic=False)
        flops = 6 * model.num_params() * cfg.batch_tokens # a step
        steps = total_steps(cfg, flops) # None: until max_seconds
        run.say(f"{model.num_params():,} parameters on {world} x {device.type}, {cfg.batch_tokens:,} tokens a step, "
                + (f"{steps:,} steps, {flops * steps:.2e} FLOPs" if steps else f"{cfg.max_seconds} s")
                + f"; held out: {', '.join(val) or 'nothing'}")

        # ---- the loop, and the end
        batches = lambda step: fetch(loader, cfg, step, rank, world, device)
        sets = {name: held_out(of) for name, of in val.items()}
        step, done, skipped = training_loop(run, LMObjective(model, vocab), steps, batches, sets)
        made = {'skipped': skipped, 'tokens': step * cfg.batch_tokens, 'flops': flops * step}
        checkpoint.export(run, model, done, step, made)
        if done:
            run.say(f"done: {cfg.out}, {step:,} steps, {step * cfg.batch_tokens:,} tokens")
        return run.state['val'] if done else None

if __name__ == '__main__':
    run(main, Config)
