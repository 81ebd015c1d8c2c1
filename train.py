"""
Trains a language model on token shards: a TextLM, or a speech or interleaved model that starts from one.

    python train.py config/tiny.py [--key=value ...]                     one process, CPU or GPU
    torchrun --nproc_per_node=8 train.py config/qwen7b.py                one node
    torchrun --nnodes=4 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29400 train.py ...   on each node

Step s trains on n = batch_tokens / block_size rows, numbers s n to (s + 1) n - 1. Row g is a pure
function of (seed, g): any number of ranks and any micro-batch see the same rows. Over all ranks and
micro-batches of a step

    loss = sum of the targets' losses / number of targets     C = 6 N D (FLOPs, parameters, tokens)

The same command resumes a run that was cut (to the bit, on the same number of ranks) and leaves a
finished one alone. SIGTERM, SIGINT or SIGHUP saves and exits with 0; torchrun gives its workers
30 s for that, or --shutdown-timeout=SECONDS. A terminal that goes away, or a disk that has no room for
log.jsonl, ends no run. A step whose loss or gradient is not finite on any
rank is skipped on all ranks; five in a row end the run with status 17. At the end --out is a
Hugging Face folder, with log.jsonl (training/log.py), settings.json and the last two step-N/
(training/checkpoint.py) in it, and hashes of the model in MANIFEST.json.
"""
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from configurator import Refused, ranks, run
from data import Loader, Shards, check_names, read_index
from files import sha256, visible
from hub.families import GPTConfig
from hub.folders import knows_units, read_config, vocabulary
from hub.shapes import planned_config
from hub.tokenizer import TextTokenizer, why_not
from model import GPT
from training import checkpoint, checks
from training.checks import check_attention, check_init, check_memory, check_settings, describe_memory
from training.cost import ROOM, memory
from training.log import Log, modality_means
from training.optimizer import make_optimizer
from training.peers import together
from training.processes import processes, set_gradient_sync, signals, to_device, wrap_distributed
from vocab import papers_vocab

PATIENCE = 5 # skipped steps in a row that end a run
SCRATCH = ('n_layer', 'n_head', 'n_kv_head', 'n_embd', 'head_dim', 'n_ffn') # only for init='scratch'
BUDGETS = ('max_steps', 'max_tokens', 'max_flops', 'max_seconds')
# A run may be resumed with other values of these: at most the rounding of its results changes.
MAY_CHANGE_ON_RESUME = ('out', 'micro_batch', 'device', 'attention', 'parallel', 'recompute', 'compile',
                        'memory', 'timeout', 'log_every', 'eval_every', 'eval_rows', 'save_every', 'wandb', 'verify')

@dataclass(frozen=True)
class Config:
    # data
    data: str = 'out/tokens/stories,out/tokens/talk' # folders of interleave.py, separated by commas
    sources: tuple = ('text', 'speech', 'interleaved') # folders of DATA/train to mix
    weights: tuple | None = None # share of the rows for each source; None: equal shares
    # read all shards and compare their sha256: before a 'resume', 'always', 'never'. 15B tokens take 40 s of a core,
    verify: str = 'resume' # which the ranks of a node share, or as long as the disk needs for 60 GB
    vocab: str = 'joint' # 'joint' (text and units), 'speech' (units; --sources=textless), 'text' (a TextLM)
    tokenizer: str | None = None # text tokenizer of the data, a folder or hub id; None: that of init
    # model
    init: str = 'scratch' # TextLM or SLM to start from, a folder or hub id; 'scratch': random weights
    init_config: str | None = None # with init='scratch': a folder or hub id whose shape to take
    n_layer: int | None = None # this and the next five: the shape for init='scratch' without init_config
    n_head: int | None = None
    n_kv_head: int | None = None # None: n_head
    n_embd: int | None = None
    head_dim: int | None = None # None: n_embd / n_head
    n_ffn: int | None = None
    rope_theta: float | None = None # base of the rotary positions; None: init's, or 1e6 from scratch
    new_rows: str = 'hf' # initial embeddings of new tokens: 'hf' (the papers' code), 'mean', 'normal'
    # batch
    block_size: int = 2048 # tokens in a row
    batch_tokens: int = 147456 # tokens in a step, over all ranks: 72 rows of 2,048
    micro_batch: int = 8 # rows in a forward pass of a rank; gradients are summed over a step
    # optimizer: AdamW with betas 0.9 and 0.999, eps 1e-8, no weight decay, as in the papers; or for the
    # matrices of the layers Muon, which learns more in a short run (training/optimizer.py)
    optimizer: str = 'adamw' # 'adamw', 'muon'
    lr: float = 5e-4 # peak of the learning rate
    min_lr: float = 5e-5 # where 'cosine' and 'wsd' end
    schedule: str = 'cosine' # 'cosine', 'constant', 'inverse_sqrt', 'wsd' (warm-up, stable, linear decay)
    warmup: float = 0.01 # share of the budget
    decay: float = 0.2 # share of the budget, for 'wsd'
    clip: float = 0.5 # a gradient of a larger norm is scaled down to this norm
    # budget: exactly one of these; the schedule ends with it
    max_steps: int | None = None
    max_tokens: int | None = None
    max_flops: float | None = None # C = 6ND
    max_seconds: float | None = None # of training, by rank 0's clock; does not resume to the bit
    # run
    out: str = 'out/model' # folder of the model, its checkpoints and its log
    seed: int = 0 # of random weights and of the order of the rows
    device: str = 'auto' # 'auto' (a GPU if there is one), 'cuda', 'cpu'
    # 'sdpa' is torch's attention, which has no soft-cap (Gemma2); 'hopper' is 'triton' with a forward for sm_90
    # that no GPU has run yet. None: the device's fastest
    attention: str | None = None # 'triton', 'hopper', 'sdpa' or None
    parallel: str = 'ddp' # ranks have copies ('ddp') or shards of weights, gradients, moments ('fsdp')
    # To save memory, the backward can compute norms and activations ('selective') or whole layers
    # ('full') again
    recompute: str = 'none' # 'none', 'selective', 'full'
    compile: bool = False # torch.compile each layer around our kernels: a slow start, then faster
    dtype: str = 'bfloat16' # of the compute, or 'float32'; 'pure_bfloat16': of weights and moments too
    memory: int = 0 # print what each of this many GPUs would hold, and end; no GPU, data or network is needed
    timeout: float = 600.0 # most seconds that ranks wait for each other; for a checkpoint, at least 3,600
    log_every: int = 10 # steps between lines on the terminal; log.jsonl has every step
    eval_every: int = 1000 # steps between evaluations
    eval_rows: int = 64 # held-out rows to evaluate for each corpus and source, at most
    save_every: int = 500 # steps between checkpoints
    wandb: str = '' # project of Weights & Biases that gets the log too, if its package is installed

    def __post_init__(self):
        check_settings(self, BUDGETS)
        if self.memory < 0:
            raise Refused(f"memory={self.memory}: expected a number of GPUs")
        check_init(self, SCRATCH)
        world = self.memory or ranks()[1]
        unit = world * self.micro_batch * self.block_size
        if self.batch_tokens % unit:
            near = max(self.batch_tokens // unit, 1) * unit
            raise Refused(f"batch_tokens={self.batch_tokens}: expected {near} or {near + unit}, "
                          f"a multiple of world {world} x micro_batch {self.micro_batch} "
                          f"x block_size {self.block_size}")

    @property
    def rows(self): # in a step, over all ranks
        return self.batch_tokens // self.block_size

# --------------------------------------------------------------------------------------------------
# schedule

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
    # 3) down to min_lr at t = 1: a half cosine after the warm-up, or a line over the last `decay`
    start = cfg.warmup if cfg.schedule == 'cosine' else 1 - cfg.decay
    x = min(max((t - start) / (1 - start), 0.0), 1.0)
    height = 0.5 * (1 + math.cos(math.pi * x)) if cfg.schedule == 'cosine' else 1 - x
    return cfg.min_lr + (cfg.lr - cfg.min_lr) * height

def total_steps(cfg, flops):
    """Steps the budget buys at `flops` FLOPs a step, rounded down; None if the budget is wall time."""
    if cfg.max_seconds is not None:
        return None
    steps = cfg.max_steps or int(cfg.max_tokens // cfg.batch_tokens if cfg.max_tokens else cfg.max_flops // flops)
    if steps < 1:
        raise Refused(f"the budget buys no step: one is {cfg.batch_tokens} tokens and {flops:.2e} FLOPs")
    return steps

# --------------------------------------------------------------------------------------------------
# data

def hash_of_init(init):
    """A hash of the weights in a local folder. A hub id is taken to name the same weights each time."""
    return checkpoint.digest(map(sha256, visible(init, '*.safetensors')))

def open_data(cfg):
    """The data of these settings -> (Vocab, tokenizer, Loader to train on, held-out data, inputs).

    The tokenizer is a folder or hub id, '' for speech alone. Held-out data is {corpus/source:
    Loader} where there is at least one row. Inputs are {name: hash}, which must not change on
    resume.
    """
    check_names(cfg.data)
    corpora = [Path(folder) for folder in cfg.data.split(',')]
    folders = {}
    for source in cfg.sources:
        candidates = [corpus / 'train' / source for corpus in corpora]
        folders[source] = [folder for folder in candidates if folder.is_dir()]
        if not folders[source]:
            raise Refused(f"{' and '.join(map(str, candidates))}: no such folder; "
                          "expected token shards as interleave.py writes them")
    # The vocabulary may be that of some sources only: shards of text can be read in a joint one.
    vocabs = (Shards(paths[0]).vocab for paths in folders.values())
    vocab = next((vocab for vocab in vocabs if vocab.kind == cfg.vocab), None)
    if vocab is None:
        raise Refused(f"vocab={cfg.vocab!r}: no shards of {cfg.data} ({', '.join(cfg.sources)}) have such a vocabulary")
    tokenizer = '' if vocab.kind == 'speech' else cfg.tokenizer or cfg.init_config or cfg.init
    why = tokenizer and why_not(TextTokenizer(tokenizer), vocab)
    if why:
        raise Refused(f"{tokenizer}: its text tokenizer did not make the shards: {why}")
    shards = {source: Shards(paths, vocab) for source, paths in folders.items()}
    for source, opened in shards.items():
        if opened.lengths.max() < 2:
            raise Refused(f"{opened.name}: each of its {opened.documents:,} documents is a single token, so there is "
                          f"nothing to predict; leave {source} out of --sources, or join lines to documents")
    loader = Loader(list(shards.values()), cfg.weights, cfg.block_size, cfg.seed)
    val = {}
    for source in cfg.sources:
        for corpus in corpora:
            folder = corpus / 'val' / source
            if (folder / 'index.json').is_file() and read_index(folder)['tokens'] >= cfg.block_size:
                held = Shards(folder, vocab)
                if held.lengths.max() > 1: # else nothing is predicted
                    val[f'{corpus.name}/{source}'] = Loader([held], None, cfg.block_size, 0)
    inputs = {'weights of init': hash_of_init(cfg.init), 'vocabulary': vocab.hash()}
    inputs |= {f'{source} shards': opened.hash[:16] for source, opened in shards.items()}
    inputs |= {f'{source} plan': plan[:16] for source, plan in zip(shards, loader.identity['plans'])}
    inputs |= {f'held-out {name}': val_loader.sources[0].hash[:16] for name, val_loader in val.items()}
    return vocab, tokenizer, loader, val, inputs

def fetch(loader, cfg, step, rank, world, device):
    """A rank's part of a step -> (micro-batches, number of targets, number of attended keys).

    A micro-batch is (tokens, doc_start, targets) of Loader.rows on the device, (micro_batch, block_size) each.
    """
    micro_batches, n_targets, attended_keys = [], 0, 0
    positions = np.arange(1, cfg.block_size + 1)
    for first in range(step * cfg.rows, (step + 1) * cfg.rows, world * cfg.micro_batch):
        tokens, doc_start, targets, _ = loader.rows(first + rank * cfg.micro_batch, cfg.micro_batch)
        n_targets += int((targets >= 0).sum())
        attended_keys += int((positions - doc_start).sum())
        micro_batches.append([to_device(x, device) for x in (tokens, doc_start, targets)])
    weight = to_device(torch.tensor(float(n_targets), dtype=torch.float64), device)
    return micro_batches, weight, attended_keys

def held_out(loader):
    """(number of rows, read) for `evaluate`: read(first, n) gives tokens, doc_start, targets of n rows."""
    def read(first, n):
        tokens, doc_start, targets, _ = loader.rows(first if n > 0 else 0, max(n, 1))
        # A rank without rows of its own evaluates one that has no targets.
        return tokens, doc_start, targets if n > 0 else np.full_like(targets, -100)
    return int(loader.n_rows[0]), read

# --------------------------------------------------------------------------------------------------
# model

def _rope(cfg, shape):
    """The change to a shape that --rope_theta asks for."""
    if cfg.rope_theta and shape.position != 'rope':
        raise Refused(f"rope_theta={cfg.rope_theta}: {shape.family} has no rotary positions; expected rope_theta=None")
    return {'rope_theta': cfg.rope_theta} if cfg.rope_theta else {}

def shape_of(cfg, read=read_config):
    """The GPTConfig that a new run starts from, before it gets the vocabulary of the data."""
    if cfg.init != 'scratch' or cfg.init_config:
        return read(cfg.init_config or cfg.init)
    return GPTConfig(**{name: getattr(cfg, name) for name in SCRATCH if getattr(cfg, name) is not None})

def memory_of(cfg, world, vocab_size=None):
    """{part: bytes} on each GPU, by training/cost.py. Without vocab_size: with 500 units."""
    shape = shape_of(cfg, planned_config)
    vocab_size = vocab_size or papers_vocab(cfg.vocab, shape.vocab_size).size
    shape = replace(shape, vocab_size=vocab_size)
    tokens = cfg.micro_batch * cfg.block_size
    return memory(shape, tokens, world, cfg.parallel, cfg.dtype, cfg.recompute, cfg.optimizer)

def cast_weights(model, cfg):
    """The model with weights in bfloat16 if dtype is 'pure_bfloat16', else as it is, in float32."""
    return model.bfloat16() if cfg.dtype == 'pure_bfloat16' else model

def load_model(folder, cfg, device):
    """The model of a folder, with the attention and recomputing of the settings."""
    return GPT.from_pretrained(folder, device=device, attention=cfg.attention, recompute=cfg.recompute)

def model_to_fill(folder, cfg, device):
    """A model for the weights of a checkpoint, which the loop loads."""
    return GPT.unfilled(read_config(folder), device=device, attention=cfg.attention, recompute=cfg.recompute)

def build_model(cfg, vocab, tokenizer, device):
    """The start of a new run: random weights, a TextLM with rows for the units (TWIST), or a model of vocab."""
    torch.manual_seed(cfg.seed)
    if cfg.init == 'scratch':
        shape = shape_of(cfg)
        bos = vocab.bos if vocab.kind == 'speech' else None
        eos = vocab.bos if vocab.kind == 'speech' else TextTokenizer(tokenizer).eot
        ids = dict(vocab_size=vocab.size, bos_token_id=bos, eos_token_id=eos)
        shape = replace(shape, **ids, **_rope(cfg, shape))
        return GPT(shape, cfg.attention, cfg.recompute).to(device)
    init_vocab = vocabulary(cfg.init)[0] if knows_units(cfg.init) else None # None: a TextLM
    # A published model names its encoder at most: its units are taken to be those of the shards.
    if init_vocab and (not init_vocab.units or '/' in init_vocab.units):
        init_vocab = replace(init_vocab, units=vocab.units)
    if init_vocab and init_vocab.kind != 'text' and init_vocab != vocab:
        raise Refused(f"{cfg.init}: its vocabulary ({init_vocab.kind}, {init_vocab.size} ids, {init_vocab.hash()}) "
                      f"is not that of the shards ({vocab.kind}, {vocab.size} ids, {vocab.hash()}); "
                      "expected that, or a TextLM")
    model = load_model(cfg.init, cfg, device)
    model.cfg = replace(model.cfg, **_rope(cfg, model.cfg))
    if init_vocab != vocab:
        model.extend_vocabulary(vocab, cfg.new_rows, torch.Generator().manual_seed(cfg.seed))
    return model

class LMObjective(torch.nn.Module):
    """A micro-batch -> the sum of its losses; sum and number of losses of each modality."""

    def __init__(self, model, vocab):
        super().__init__()
        self.model = model
        modality = torch.as_tensor(vocab.modality(torch.arange(vocab.size))) # (V,)
        self.register_buffer('modality', modality.to(next(model.parameters()).device), persistent=False)

    def forward(self, tokens, doc_start, targets): # (B, T) each
        loss, losses = self.model.loss_sum(tokens, doc_start, targets) # (), (B*T,) float32, 0 without a target
        targets = targets.flatten()
        modality = torch.where(targets >= 0, self.modality[targets.clamp(min=0)].long(), 3) # 3: no target
        is_modality = modality == torch.arange(3, device=modality.device)[:, None] # (3, B*T)
        loss_sums = (is_modality * losses).sum(1, dtype=torch.float64)
        return loss, torch.cat((loss_sums, is_modality.sum(1))) # (), (6,)

    @staticmethod
    def summary(sums):
        """What is logged of the sums over a step or an evaluation."""
        return modality_means(sums[:3], sums[3:]) | {'targets': int(sum(sums[3:]))}

# --------------------------------------------------------------------------------------------------
# the loop, also of dpo.py

@torch.no_grad()
def evaluate(run, objective, sets):
    """{name: summary} over the first eval_rows rows of each of sets {name: (number of rows, read)}.

    The ranks take micro-batches in turn. One that has none left calls forward too: FSDP needs all ranks.
    """
    cfg = run.cfg
    rank, world, device, _ = run.place
    results = {}
    for name, (n_rows, read) in sets.items():
        n_rows = min(cfg.eval_rows, n_rows)
        sums = 0
        for offset in range(0, n_rows, world * cfg.micro_batch):
            first = offset + rank * cfg.micro_batch
            batch = read(first, min(cfg.micro_batch, n_rows - first))
            with run.autocast():
                sums = sums + objective(*(to_device(x, device) for x in batch))[1]
        if world > 1:
            dist.all_reduce(sums)
        results[name] = objective.summary(sums.tolist())
    if isinstance(objective, FSDPModule):
        # Without a backward, its own weights stay gathered in bf16, which a checkpoint would save.
        objective.reshard()
    return results

def accumulate_gradients(run, net, micro_batches, weight):
    """The backward of a rank's micro-batches -> sums for the log; all-reduces weight in place."""
    world = run.place.world
    if world > 1:
        dist.all_reduce(weight)
    scale = (world / weight.clamp(min=1)).float() # DDP and FSDP average over the ranks, we want the sum
    sums = 0
    for i, micro_batch in enumerate(micro_batches):
        set_gradient_sync(net, i == len(micro_batches) - 1)
        with run.autocast():
            loss, micro_sums = net(*micro_batch)
        (loss * scale).backward()
        sums = sums + micro_sums
    return sums

def update_weights(optimizer, model, clip, step_stats, weight):
    """Steps the optimizer if everything is finite -> (gradient's norm, was the step skipped)."""
    grad_norm = checkpoint.full_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), clip))
    # Global sums are equal on every rank, so all ranks skip the same steps.
    skip_step = ~(grad_norm.isfinite() & step_stats.isfinite().all())
    optimizer.found_inf = (skip_step | (weight == 0)).float() # 1: weights and moments stay as they are
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return grad_norm, skip_step

def read_log(run, log, saver):
    """(whether to stop, rank 0's seconds) of the posted step, or None; completes the checkpoint that all have written.

    Ends the run with status 17 when PATIENCE steps in a row were skipped.
    """
    finished_step = log.read()
    if log.written == run.place.world:
        saver.commit()
    if log.streak >= PATIENCE:
        saver.wait()
        last = next(iter(checkpoint.folders(run.cfg.out)), 'none: it never saved')
        print(f"{PATIENCE} steps in a row without a finite loss or gradient; the last good checkpoint is {last}")
        raise SystemExit(17)
    return finished_step

def describe_odd(odd_steps):
    """What the last line says of steps that taught nothing."""
    names = {'skipped': 'skipped as not finite', 'no_targets': 'without a target'}
    return ''.join(f"; {n:,} steps {names[kind]}" for kind, n in odd_steps.items() if n)

def log_evaluation(run, log, step, val):
    run.state['val'] = val
    log.write({'step': step, 'val': val})
    for name, means in val.items():
        loss = f"{means['loss']:.3f}" if means['targets'] else 'no targets'
        run.say(f"step {step} | val {name} {loss}")

def set_rate(optimizer, lr):
    for group in optimizer.param_groups:
        group['lr'] = lr

def training_loop(run, objective, steps, fetch, sets):
    """Trains to the end of the budget or a stop signal -> (last step, is it done, {'skipped', 'no_targets': steps}).

    objective    a module around .model: micro-batch -> (sum of its losses, sums for the log), with .summary(sums)
    steps        of the whole run; None: until max_seconds
    fetch(step)  -> this rank's micro-batches, their weight (a step's loss: all losses / all weights), keys attended to
    sets         held-out data for `evaluate`
    """
    cfg, state, model = run.cfg, run.state, objective.model
    rank, world, device, _ = run.place
    net = wrap_distributed(objective, cfg, world, device)
    optimizer = make_optimizer(model, cfg.lr, cfg.optimizer)
    if run.folder:
        checkpoint.load(run.folder, model, optimizer, run.place)
    log = Log(cfg, state, model, rank, world, device, objective.summary)
    saver = checkpoint.Saver(run, model, optimizer, log)
    step, seconds, done = state['step'], state['seconds'], state['finished']
    started = time.monotonic() - seconds
    stop = False # whether a signal reached a rank
    micro_batches, weight, attended_keys = fetch(step)
    while not (done or stop):
        # ---- the step
        lr = learning_rate(cfg, (step + 1) / steps if steps else min(seconds / cfg.max_seconds, 1.0))
        set_rate(optimizer, lr)
        n_tokens = sum(tokens.numel() for tokens, *_ in micro_batches)
        loss_sums = accumulate_gradients(run, net, micro_batches, weight)
        # The next batch is fetched one step ahead, as the device is busy now and the host is not.
        fetch_begin = time.perf_counter()
        micro_batches, next_weight, next_attended_keys = fetch(step + 1)
        fetch_seconds = time.perf_counter() - fetch_begin
        # One all-reduce carries all that the ranks must agree on: the losses, whether a stop signal
        # reached any rank, rank 0's clock (the others add 0), how many have written their part of a
        # checkpoint, and the counts for tokens/s and MFU.
        elapsed = time.monotonic() - started if rank == 0 else 0.0
        counts = [len(run.stop_signals), elapsed, saver.written, attended_keys, n_tokens]
        step_stats = torch.cat((loss_sums, to_device(torch.tensor(counts, dtype=torch.float64), device)))
        if world > 1:
            dist.all_reduce(step_stats)
        saver.wait_for_copy()
        grad_norm, skip_step = update_weights(optimizer, model, cfg.clip, step_stats, weight)
        step, weight, attended_keys = step + 1, next_weight, next_attended_keys

        # ---- the log, read one step late: reading waits for the device, so the next step is launched first
        stop, seconds = read_log(run, log, saver) or (stop, seconds) # of the step before
        log.post(step, steps, step_stats, grad_norm, skip_step, lr, fetch_seconds)
        done = step == steps if steps else seconds >= cfg.max_seconds
        to_evaluate = done or step % cfg.eval_every == 0
        to_save = done or stop or step % cfg.save_every == 0
        if not to_evaluate and not to_save:
            continue

        # ---- where one is due, an evaluation or a checkpoint; this step is logged before it
        stop = read_log(run, log, saver)[0] or stop
        if to_evaluate:
            log_evaluation(run, log, step, evaluate(run, objective, sets))
        if to_save or stop:
            saver.start(step, time.monotonic() - started, done)
        log.skip_time()
    saver.wait()
    return step, done, {'skipped': log.skipped, 'no_targets': log.no_targets}

# --------------------------------------------------------------------------------------------------

def main(cfg):
    if cfg.memory:
        return print(describe_memory(memory_of(cfg, cfg.memory), cfg, cfg.memory))
    with processes(cfg) as place, signals() as stop_signals:
        rank, world, device, _ = place

        # ---- the data, and what an earlier start of this command left
        with together(place):
            if cfg.attention: # refused before any weights are read
                check_attention(cfg, shape_of(cfg), device)
            vocab, tokenizer, loader, val, inputs = open_data(cfg)
            if device.type == 'cuda':
                gpu_memory = torch.cuda.get_device_properties(device).total_memory
                check_memory(cfg, world, memory_of(cfg, world, vocab.size), ROOM * gpu_memory)
        run = checkpoint.open_run(cfg, MAY_CHANGE_ON_RESUME, place, stop_signals, vocab, tokenizer, inputs)
        if run.finished:
            return run.state['val']
        checks.verify_shards(cfg, run, [loader, *val.values()])

        # ---- the model
        with together(place):
            model = model_to_fill(run.folder, cfg, device) if run.folder else build_model(cfg, vocab, tokenizer, device)
            model = cast_weights(model, cfg)
        if cfg.compile:
            for block in model.layers: # the forward alone: FSDP gathers the weights in the call around it
                block.forward = torch.compile(block.forward, dynamic=False)
        flops = 6 * model.num_params() * cfg.batch_tokens # of a step
        steps = total_steps(cfg, flops) # None: until max_seconds
        budget = f"{steps:,} steps, {flops * steps:.2e} FLOPs" if steps else f"{cfg.max_seconds} s"
        run.say(f"{model.num_params():,} parameters on {world} x {device.type}, {cfg.batch_tokens:,} tokens a step, "
                f"{budget}; held out: {', '.join(val) or 'nothing'}")

        # ---- the loop, and the end
        def fetch_step(step):
            return fetch(loader, cfg, step, rank, world, device)
        sets = {name: held_out(val_loader) for name, val_loader in val.items()}
        step, done, odd_steps = training_loop(run, LMObjective(model, vocab), steps, fetch_step, sets)
        counts = {**odd_steps, 'tokens': step * cfg.batch_tokens, 'flops': flops * step}
        checkpoint.export(run, done, step, counts)
        if done:
            run.say(f"done: {cfg.out}, {step:,} steps, {counts['tokens']:,} tokens" + describe_odd(odd_steps))
        return run.state['val'] if done else None

if __name__ == '__main__':
    run(main, Config)
