"""
Direct preference optimisation (DPO; Rafailov et al. 2023), the second half of Slam: a speech-only
or joint model learns to prefer one spoken completion of a prompt to another, in train.py's loop.

    python dpo.py config/tiny_dpo.py [--key=value ...]
    torchrun --nproc_per_node=8 dpo.py config/slam_dpo.py

For a prompt x, its chosen completion c, its rejected one r, the model pi, and ref, where pi starts:

    log pi(y|x) = sum of log p over the tokens of y and its end token; the prompt is no target
    reward(y)   = beta (log pi(y|x) - log ref(y|x))
    loss        = -log sigmoid(reward(c) - reward(r)), averaged over the pairs

x c and x r are two documents of one row without padding, so one forward computes both. log ref of
each token is computed once, by the model at the start, for the pairs that the budget reaches, and
stored in OUT/reference.safetensors, in parts where a signal comes before it is whole. So only one
model is in memory, and a resumed run has the same reference. Pair g of a run is a pure function of
(seed, g), and a step is `batch` pairs at any world size and micro_batch.

Pairs are units folders (tokenize_speech.py) with documents ITEM/prompt, ITEM/chosen, ITEM/rejected,
or slamkit's .jsonl, whose encoder nobody can check, with lines

    {"prompt": {"units": [..]}, "chosen": .., "rejected": ..,
     "prompt_text": "..", "chosen_text": .., "rejected_text": ..}

Left out, counted and listed in OUT/dropped.jsonl are pairs that lack a part, have equal
completions, or repeat themselves: the auto-BLEU-2 of prompt and chosen completion is max_auto_bleu
or more.

log.jsonl has a line per step: "loss"; "margin", the chosen reward minus the rejected one;
"accuracy", the share of pairs with a margin above 0, ties count half; "chosen" and "rejected", the
rewards; "kl", nats per token, the mean of e^d - 1 - d with d = log pi - log ref, which estimates
KL(ref || pi) as far as completions resemble samples of ref (Schulman 2020); then train.py's keys.
"""
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from configurator import Refused, ranks, run
from data import IGNORE, permute
from evaluation.text_scores import auto_bleu2
from files import atomically, check_readable, progress, read_lines, write_lines
from hub import folders
from speech.units import Units
from train import (
    MAY_CHANGE_ON_RESUME,
    cast_weights,
    describe_odd,
    hash_of_init,
    load_model,
    model_to_fill,
    training_loop,
)
from training import checkpoint
from training.checks import check_attention, check_settings
from training.peers import together
from training.processes import processes, signals, to_device
from vocab import DIRECTIONS, document

PARTS = ('prompt', 'chosen', 'rejected')
BUDGETS = ('max_steps', 'max_epochs', 'max_seconds')

@dataclass(frozen=True)
class Config:
    # data
    data: str = 'out/pairs/train' # units folders and .jsonl files of pairs, separated by commas
    val_data: str = '' # held-out pairs, given in the same way; '': none
    directions: tuple = ('S',) # 'S' reads a pair as speech; joint models know 'S->T', 'T->S', 'T' too (eval.py)
    eot: bool = False # end completions with the end token, for a joint model trained with it
    max_auto_bleu: float | None = 0.3 # auto-BLEU-2 from which on a pair is left out; None: no pair is
    skip_long: bool = False # leave out pairs longer than block_size, which are refused otherwise
    # model
    init: str = 'out/slam' # folder of a model (train.py): the start, and the reference
    beta: float = 0.1 # factor of the rewards: the larger, the nearer the model stays to the reference
    # batch
    block_size: int = 1024 # maximum tokens of a prompt and its completion
    batch: int = 64 # pairs a step, over all ranks
    micro_batch: int = 8 # pairs in a forward pass of a rank; gradients are summed over a step
    # optimizer: AdamW with betas 0.9 and 0.999, eps 1e-8, no weight decay
    lr: float = 5e-5 # peak of the learning rate
    min_lr: float = 0.0 # where 'cosine' and 'wsd' end
    schedule: str = 'inverse_sqrt' # 'cosine', 'constant', 'inverse_sqrt', 'wsd', as in train.py
    warmup: float = 0.1 # share of the budget
    decay: float = 0.2 # share of the budget, for wsd
    clip: float = 0.5 # a gradient of a larger norm is scaled down to this norm
    # budget: exactly one of these; the schedule ends with it
    max_steps: int | None = None
    max_epochs: float | None = None # passes over the pairs
    max_seconds: float | None = None # of training, by rank 0's clock; does not resume to the bit
    # run: what train.py --help says of these
    out: str = 'out/model-dpo' # folder of the model, its checkpoints and its log
    seed: int = 0 # of the order of the pairs
    device: str = 'auto' # 'auto' (a GPU if there is one), 'cuda', 'cpu'
    attention: str | None = None # as in train.py; None: the fastest that repeats to the bit
    parallel: str = 'ddp' # 'ddp' or 'fsdp'
    recompute: str = 'none' # 'none', 'selective', 'full'
    dtype: str = 'bfloat16' # 'bfloat16', 'float32', 'pure_bfloat16'
    timeout: float = 600.0 # most seconds that ranks wait for each other; for a checkpoint, at least 3,600
    log_every: int = 10 # steps between lines on the terminal
    eval_every: int = 100 # steps between evaluations
    eval_rows: int = 512 # held-out pairs to evaluate, at most
    save_every: int = 100 # steps between checkpoints
    wandb: str = '' # project of Weights & Biases that gets the log too

    optimizer = 'adamw' # for the loop; no setting, as Muon was not tried on preferences

    def __post_init__(self):
        check_settings(self, BUDGETS)
        for name in ('beta', 'batch', 'max_epochs', 'max_auto_bleu'):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise Refused(f"{name}={value}: expected more than 0")
        if self.parallel == 'fsdp' and self.dtype == 'bfloat16':
            raise Refused("parallel='fsdp' with dtype='bfloat16' would round otherwise than the reference "
                          "does: expected parallel='ddp', or dtype='pure_bfloat16' or 'float32'")
        if not self.directions:
            raise Refused("directions=(): expected at least one, such as 'S'")
        world = ranks()[1]
        unit = world * self.micro_batch
        if self.batch % unit:
            near = max(self.batch // unit, 1) * unit
            raise Refused(f"batch={self.batch}: expected {near} or {near + unit}, a multiple of "
                          f"world {world} x micro_batch {self.micro_batch}")

    @property
    def rows(self):
        """Rows a step over all ranks, as train.py's loop counts them: a pair is a row."""
        return self.batch

# --------------------------------------------------------------------------------------------------
# reading pairs

def read_units(folder, vocab):
    """A units folder -> {item: {part: (text, units)}}; refuses units that vocab does not mean."""
    units = Units(folder)
    units_hash = units.info['units_hash']
    if vocab.units and not vocab.speaks(units_hash, units.info.get('encoder')):
        raise Refused(f"{folder}: units {units_hash}, the model was trained on {vocab.units}: "
                      "encode the pairs with the model's encoder")
    items = {}
    for i, meta in enumerate(units.meta):
        name, _, part = meta['id'].rpartition('/')
        if part in PARTS:
            items.setdefault(name, {})[part] = meta['text'], units[i][0].astype(np.int64)
    if not items:
        raise Refused(f"{folder}: no pairs; expected documents ITEM/prompt, ITEM/chosen, ITEM/rejected")
    return dict(sorted(items.items()))

def read_jsonl(path):
    """slamkit's .jsonl -> {item: {part: (text, units)}}; an item has its line's id or number."""
    items = {}
    for place, line in read_lines(path):
        name = f"{path}:{line['id']}" if 'id' in line else place
        if name in items:
            raise Refused(f"{place}: a second pair {name}; expected a different id for each pair")
        items[name] = {part: (line.get(f'{part}_text'), _units_of(line, part, place)) for part in PARTS}
    if not items:
        raise Refused(f"{path}: no pairs; expected one per line")
    return items

def _units_of(line, part, place):
    """The units of a part, which is {"units": [..], "duration": [..]} or the units alone."""
    value = line.get(part)
    units = value.get('units') if isinstance(value, dict) else value
    if not isinstance(units, list) or not all(type(u) is int for u in units):
        raise Refused(f"{place}: '{part}' is {str(value)[:40]}; expected {{\"units\": [whole numbers]}}")
    return np.array(units, dtype=np.int64)

def why_unusable(item, max_auto_bleu):
    """Why a pair is left out; None if it is not."""
    missing = [part for part in PARTS if part not in item or not len(item[part][1])]
    if missing:
        return f"no {' and '.join(missing)}"
    if np.array_equal(item['chosen'][1], item['rejected'][1]):
        return "equal completions"
    if max_auto_bleu is not None:
        bleu = auto_bleu2(f"{item['prompt'][0]} {item['chosen'][0]}")
        if bleu >= max_auto_bleu:
            return f"auto-BLEU: {bleu:.3f}"
    return None

def check_texts(cfg, name, item):
    """Refuses a pair without the texts that its directions or the auto-BLEU filter need."""
    parts = ()
    if cfg.directions != ('S',):
        parts = PARTS
        reason = "directions other than 'S' need"
    elif cfg.max_auto_bleu is not None:
        parts = PARTS[:2]
        reason = "the auto-BLEU filter needs; --max_auto_bleu=None turns it off"
    if not all(item[part][0] for part in parts if part in item):
        raise Refused(f"{name}: has no text, which {reason}")

# --------------------------------------------------------------------------------------------------
# documents and batches

def join_units(prompt, completion, merge=True):
    """-> (units of both, where the completion begins). Where both meet in one unit, it is one run, if `merge`.

    slamkit leaves two runs there. A completion of that unit alone stays as it is.
    """
    if merge and prompt[-1] == completion[0] and len(completion) > 1:
        completion = completion[1:]
    return np.concatenate([prompt, completion]), len(prompt)

def documents_of(cfg, name, item, vocab, tokenizer):
    """Yields (ids, where the completion begins) of the chosen and rejected document in each direction."""
    # Documents of a speech model have their eos already.
    end = [tokenizer.eot] if cfg.eot and vocab.kind != 'speech' else []
    for direction in cfg.directions:
        for part in PARTS[1:]:
            both = join_units(item['prompt'][1], item[part][1], merge=not vocab.codebooks)
            candidate = {'prompt': item['prompt'], 'ending': item[part], 'joined': both}
            try:
                ids, begin = document(vocab, tokenizer, direction, candidate)
            except Refused as e: # a unit that is not in the vocabulary
                raise Refused(f"{name}: {e}") from None
            yield np.append(ids, end).astype(np.int64), begin

class Pairs:
    """Documents of pairs: number 2i is the chosen one of pair i, number 2i + 1 the rejected one.

    documents   list of int64 ids
    begins      where the completion begins in each document
    offsets     the tokens of document k's completion have reference[offsets[k]:offsets[k + 1]]
    reference   (targets,) float32, log ref of every token of the completions
    hash        of documents and begins
    """

    def __init__(self, documents, begins):
        self.documents = documents
        self.begins = np.array(begins)
        lengths = np.array([len(d) for d in documents])
        self.offsets = np.concatenate([[0], np.cumsum(lengths - self.begins)])
        self.reference = np.zeros(self.offsets[-1], np.float32)
        content = hashlib.sha256(self.begins.tobytes())
        for d in documents:
            content.update(len(d).to_bytes(8, 'little') + d.tobytes())
        self.hash = content.hexdigest()[:16]

    def __len__(self):
        return len(self.documents) // 2

    def slots(self, numbers):
        """Where the tokens of these pairs' completions are in .reference, pair after pair."""
        starts = self.offsets[::2]
        return np.concatenate([np.arange(starts[i], starts[i + 1]) for i in numbers])

    def pack(self, numbers):
        """Pairs as one row: tokens, doc_start, targets, reference, document (1, N), weight (pairs,).

        reference: 0 where there is no target; document: the document's number in this row; weight: 1.
        """
        order = np.ravel([(2 * i, 2 * i + 1) for i in numbers])
        documents = [self.documents[k] for k in order]
        lengths = np.array([len(d) for d in documents])
        ends = np.cumsum(lengths)
        tokens = np.concatenate(documents)
        targets = np.full_like(tokens, IGNORE)
        for ids, begin, end in zip(documents, self.begins[order], ends):
            # A token of the completion is the target of the position before it.
            targets[end - len(ids) + begin - 1:end - 1] = ids[begin:]
        reference = np.zeros(len(tokens), self.reference.dtype)
        reference[targets != IGNORE] = self.reference[self.slots(numbers)]
        doc_start = np.repeat(ends - lengths, lengths).astype(np.int32)
        document = np.repeat(np.arange(len(documents), dtype=np.int32), lengths)
        row = (tokens, doc_start, targets, reference, document)
        return *(x[None] for x in row), np.ones(len(numbers), np.float32)

    def held_out(self, first, n):
        """Pairs first..first + n - 1 for train.evaluate; n < 1: a row without targets or weight."""
        if n > 0:
            return self.pack(range(first, first + n))
        tokens, doc_start, targets, reference, document, weight = self.pack([0])
        return tokens, doc_start, np.full_like(targets, IGNORE), 0 * reference, document, 0 * weight

def open_pairs(cfg, paths, vocab, tokenizer):
    """-> (Pairs of all paths, [{id, why}] of those left out); tokenizer: None for a speech model."""
    items = {}
    for path in paths.split(','):
        if path.endswith('.jsonl'):
            items |= read_jsonl(path)
        else:
            items |= {f'{path}:{name}': item for name, item in read_units(path, vocab).items()}
    documents = []
    dropped = []
    for name, item in items.items():
        check_texts(cfg, name, item)
        why = why_unusable(item, cfg.max_auto_bleu)
        new = [] if why else list(documents_of(cfg, name, item, vocab, tokenizer))
        longest = max((len(ids) for ids, _ in new), default=0)
        if longest > cfg.block_size:
            if not cfg.skip_long:
                raise Refused(f"{name}: a prompt of {new[0][1]} tokens, {longest} with a completion, block_size is "
                              f"{cfg.block_size}; expected a larger one, or --skip_long=True to leave such pairs out")
            why = f"too long: {longest} tokens"
        if any(len(ids) <= begin for ids, begin in new): # a text of blanks
            why = "a completion without a token"
        if why is None:
            documents += new
        else:
            dropped.append({'id': name, 'why': why})
    if not documents:
        raise Refused(f"{paths}: no pair of {len(items)} can be used, the first for: {dropped[0]['why']}")
    ids, begins = zip(*documents)
    return Pairs(ids, begins), dropped

def pairs_of_steps(cfg, n, first, count):
    """Which of n pairs are numbers first..first + count - 1 of a run; each epoch is shuffled anew."""
    epoch, i = np.divmod(np.arange(first, first + count), n)
    for e in np.unique(epoch).tolist():
        i[epoch == e] = permute(i[epoch == e], n, cfg.seed, e)
    return i

def fetch(pairs, cfg, step, rank, world, device):
    """This rank's micro-batches of a step on the device, the number of pairs in them, the keys they attend to."""
    micro_batches = []
    attended_keys = 0
    for first in range(step * cfg.batch, (step + 1) * cfg.batch, world * cfg.micro_batch):
        numbers = pairs_of_steps(cfg, len(pairs), first + rank * cfg.micro_batch, cfg.micro_batch)
        row = pairs.pack(numbers)
        tokens, doc_start = row[:2]
        attended_keys += int((np.arange(1, tokens.size + 1) - doc_start).sum())
        micro_batches.append(tuple(to_device(x, device) for x in row))
    n_pairs = torch.tensor(cfg.batch // world, dtype=torch.float64)
    return micro_batches, to_device(n_pairs, device), attended_keys

# --------------------------------------------------------------------------------------------------
# reference and loss

@torch.no_grad()
def log_probs(run, model, pairs, numbers):
    """float32, laid out as pairs.slots(numbers): the model's log p of these pairs' completions.

    Each rank computes a share of the pairs.
    """
    rank, world, device, _ = run.place
    n = run.cfg.micro_batch
    slots = pairs.slots(numbers)
    log_p = torch.zeros(len(slots), device=device)
    for first in range(rank * n, len(numbers), world * n):
        chunk = numbers[first:first + n]
        tokens, doc_start, targets = (to_device(x, device) for x in pairs.pack(chunk)[:3])
        with run.autocast():
            losses = model.losses(tokens, doc_start, targets)
        places = np.searchsorted(slots, pairs.slots(chunk)) # numbers rise
        log_p[torch.from_numpy(places)] = -losses[targets.flatten() >= 0]
    if world > 1:
        dist.all_reduce(log_p)
    return log_p.cpu().numpy()

def _hashes(arrays):
    return [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]

def _metadata(key, arrays):
    """The header of reference.safetensors: what it was computed for, and a hash of its content.

    One entry: safetensors writes several in an arbitrary order.
    """
    return {'key and sha256': f'{key} {checkpoint.digest(_hashes(arrays[name] for name in sorted(arrays)))}'}

def write_reference(run, path, key, sets):
    """Rank 0 writes .reference of the sets {name: Pairs}, NaN where it is not computed."""
    with together(run.place):
        if run.place.rank == 0:
            arrays = {name: pairs.reference for name, pairs in sets.items()}
            with atomically(path) as tmp:
                save_file(arrays, tmp, _metadata(key, arrays))

def complete_reference(run, model, path, key, sets, numbers):
    """Computes .reference of these pairs of the sets {name: Pairs} where it is NaN -> whether a signal came meanwhile.

    The file gets what there is after every save_every blocks of `batch` pairs, at a signal and at the end.
    """
    cfg = run.cfg
    blocks = [(pairs, numbers[name][first:first + cfg.batch])
              for name, pairs in sets.items() for first in range(0, len(numbers[name]), cfg.batch)]
    blocks = [(pairs, part) for pairs, part in blocks if np.isnan(pairs.reference[pairs.slots(part)]).any()]
    for i, (pairs, part) in enumerate(progress(blocks, desc='reference', unit='block', leave=False), start=1):
        pairs.reference[pairs.slots(part)] = log_probs(run, model, pairs, part)
        stop = torch.tensor(len(run.stop_signals), device=run.place.device) # of any rank
        if run.place.world > 1:
            dist.all_reduce(stop)
        if stop or i % cfg.save_every == 0 or i == len(blocks):
            write_reference(run, path, key, sets)
        if stop:
            run.say(f"stopped by a signal after {i} of {len(blocks)} parts of the reference, which are in {path}; "
                    "the same command goes on from there")
            return True
    return False

def read_reference(path, key, sets):
    """Fills .reference of the sets {name: Pairs} -> False if the file is absent, damaged or of another key."""
    check_readable(path)
    try:
        with safe_open(path, 'numpy') as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata()
    except (OSError, SafetensorError):
        return False
    if metadata != _metadata(key, arrays):
        return False
    for name, pairs in sets.items():
        pairs.reference = arrays[name]
    return True

class DPOObjective(torch.nn.Module):
    """Pairs.pack's row -> the sum of its losses, and the sums over it of what is logged."""

    def __init__(self, model, beta):
        super().__init__()
        self.model = model
        self.beta = beta

    def forward(self, tokens, doc_start, targets, reference, document, weight):
        log_p = -self.model.losses(tokens, doc_start, targets) # (N,), 0 where there is no target
        d = log_p - reference[0] # log pi - log ref of each token
        number = torch.arange(2 * len(weight), device=document.device)
        is_of = document == number[:, None] # (2 pairs, N)
        rewards = self.beta * (is_of * d).sum(1)
        chosen, rejected = rewards.view(-1, 2).unbind(1) # (pairs,) each
        margin = chosen - rejected
        loss = -(F.logsigmoid(margin) * weight).sum()
        correct = (margin > 0) + 0.5 * (margin == 0)
        d = d.detach().double()
        sums = [loss, (chosen * weight).sum(), (rejected * weight).sum(), (correct * weight).sum(),
                (torch.expm1(d) - d).sum(), weight.sum(), (targets >= 0).sum()]
        return loss, torch.stack([x.detach().double() for x in sums]) # (), (7,)

    @staticmethod
    def summary(parts):
        """What is logged of the sums of a step or an evaluation."""
        loss, chosen, rejected, correct, kl, n_pairs, n_targets = parts
        sums = {'loss': loss, 'margin': chosen - rejected, 'accuracy': correct,
                'chosen': chosen, 'rejected': rejected}
        means = {name: x / max(n_pairs, 1) for name, x in sums.items()}
        return means | {'kl': kl / max(n_targets, 1), 'targets': int(n_targets)}

# --------------------------------------------------------------------------------------------------

def total_steps(cfg, n):
    """The number of steps that the budget buys with n pairs; None if the budget is wall time."""
    if cfg.max_seconds is not None:
        return None
    steps = cfg.max_steps or int(cfg.max_epochs * n / cfg.batch)
    if steps < 1:
        raise Refused(f"max_epochs={cfg.max_epochs}: {n} pairs are not one step of {cfg.batch}")
    return steps

def check_init(cfg, folder, vocab, tokenizer, device):
    """Refuses directions, attention or end tokens that the model of init cannot have."""
    readable = DIRECTIONS[vocab.kind]
    unknown = [d for d in cfg.directions if d not in readable]
    if unknown:
        raise Refused(f"directions={cfg.directions}: a {vocab.kind} model reads "
                      f"{', '.join(readable)}, not {', '.join(map(str, unknown))}")
    if cfg.attention:
        check_attention(cfg, folders.read_config(folder), device)
    if cfg.eot and tokenizer and tokenizer.eot is None:
        raise Refused(f"{cfg.init}: its text tokenizer has no end token; leave out --eot")

def check_positions(cfg, shape, sets):
    """Refuses micro-batches whose rows may be longer than a model of learned positions (OPT)."""
    lengths = [len(ids) for pairs in sets for ids in pairs.documents]
    longest = max(map(sum, zip(lengths[::2], lengths[1::2])))
    if shape.position == 'learned' and cfg.micro_batch * longest > shape.n_positions:
        raise Refused(f"micro_batch={cfg.micro_batch}: pairs have up to {longest} tokens, a row of {cfg.init} "
                      f"{shape.n_positions}; expected at most {max(shape.n_positions // longest, 1)}")

def load_with_reference(run, init, inputs, sets, steps):
    """Gives the sets {name: Pairs} the reference that the run needs -> the model to train; None if a signal came."""
    cfg = run.cfg
    rank, world, device, _ = run.place
    path = Path(cfg.out, 'reference.safetensors')

    # The reference is determined by the pairs that the run reaches, the inputs and the precision.
    n = len(sets['train'])
    n_reached = n if steps is None else min(steps * cfg.batch, n)
    numbers = {name: np.arange(min(cfg.eval_rows, len(pairs))) for name, pairs in sets.items()}
    numbers['train'] = np.sort(pairs_of_steps(cfg, n, 0, n_reached))
    start = checkpoint.digest([*inputs.values(), cfg.dtype])
    key = checkpoint.digest([start, *_hashes(numbers.values())])

    # All ranks read it if rank 0 can. Otherwise each computes a share, and rank 0 stores it.
    is_stored = torch.tensor(float(rank == 0 and read_reference(path, key, sets)), device=device)
    if world > 1:
        dist.broadcast(is_stored, 0)
    with together(run.place):
        if is_stored and rank > 0 and not read_reference(path, key, sets):
            raise Refused(f"{path}: rank {rank} does not see what rank 0 sees; expected --out on a shared disk")
    if not is_stored:
        for pairs in sets.values():
            pairs.reference = np.full_like(pairs.reference, np.nan)
    model = None
    if any(np.isnan(pairs.reference[pairs.slots(numbers[name])]).any() for name, pairs in sets.items()):
        model = cast_weights(load_model(init, cfg, device), cfg)
        if complete_reference(run, model, path, key, sets, numbers):
            return None

    # A resumed run goes on with its checkpoint's model. The other is dropped first to save memory.
    if run.folder:
        model = None
        return cast_weights(model_to_fill(run.folder, cfg, device), cfg)
    return model or cast_weights(load_model(init, cfg, device), cfg)

def open_data(cfg, device):
    """What a run starts from -> (folder of the model, Vocab, tokenizer, {name: Pairs}, pairs left out, inputs)."""
    init = Path(folders.local_folder(cfg.init))
    vocab, tokenizer = folders.vocabulary(init)
    check_init(cfg, init, vocab, tokenizer, device)
    pairs, dropped = open_pairs(cfg, cfg.data, vocab, tokenizer)
    sets = {'train': pairs}
    if cfg.val_data:
        sets['held out'], _ = open_pairs(cfg, cfg.val_data, vocab, tokenizer)
    check_positions(cfg, folders.read_config(init), sets.values())
    inputs = {'weights of init': hash_of_init(init), 'vocabulary': vocab.hash()}
    inputs |= {f'{name} pairs': some.hash for name, some in sets.items()}
    return init, vocab, tokenizer, sets, dropped, inputs

def main(cfg):
    with processes(cfg) as place, signals() as stop_signals:
        rank, world, device, _ = place
        # ---- the model's vocabulary, the pairs, and what an earlier run of this command left
        with together(place):
            init, vocab, tokenizer, sets, dropped, inputs = open_data(cfg, device)
        pairs = sets['train']
        steps = total_steps(cfg, len(pairs)) # None: until max_seconds
        text = '' if tokenizer is None else tokenizer.name
        run = checkpoint.open_run(cfg, MAY_CHANGE_ON_RESUME, place, stop_signals, vocab, text, inputs)
        if run.finished:
            return run.state['val']
        with together(place):
            if rank == 0:
                with atomically(Path(cfg.out, 'dropped.jsonl')) as tmp:
                    write_lines(tmp, dropped)

        # ---- the reference, and the model
        model = load_with_reference(run, init, inputs, sets, steps)
        if model is None:
            return None
        counts = Counter(line['why'].split(':')[0] for line in dropped)
        left_out = ', '.join(f'{n} {why}' for why, n in counts.items()) or 'none'
        budget = f"{steps:,} steps" if steps else f"{cfg.max_seconds} s"
        run.say(f"{model.num_params():,} parameters on {world} x {device.type}, "
                f"{cfg.batch} pairs a step, {budget}; {len(pairs):,} pairs, "
                f"{pairs.offsets[-1]:,} targets; left out: {left_out}")

        # ---- train.py's loop, and the end
        def fetch_step(step):
            return fetch(pairs, cfg, step, rank, world, device)
        held_out = {name: (len(some), some.held_out) for name, some in sets.items()}
        del held_out['train']
        step, done, odd_steps = training_loop(run, DPOObjective(model, cfg.beta), steps, fetch_step, held_out)
        facts = {**odd_steps, 'pairs': step * cfg.batch, 'dropped': dict(counts)}
        checkpoint.export(run, done, step, facts)
        if done:
            run.say(f"done: {cfg.out}, {step:,} steps, {step * cfg.batch:,} pairs" + describe_odd(odd_steps))
        return run.state['val'] if done else None

if __name__ == '__main__':
    run(main, Config)
