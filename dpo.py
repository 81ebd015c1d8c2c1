"""
Direct preference optimisation (Rafailov et al. 2023; Slam's second half): a speech-only or joint model learns to prefer
one spoken completion of a prompt to another. With train.py's loop, log, checkpoints and processes:

    python dpo.py config/tiny_dpo.py [--key=value ...]        torchrun --nproc_per_node=8 dpo.py config/slam_dpo.py

For a prompt x, its chosen and rejected completions c and r, the model pi, and ref, the model it starts from:

    log pi(y|x) = sum of log p over the tokens of y, its end token included; the prompt is no target
    reward(y)   = beta (log pi(y|x) - log ref(y|x))        loss = -log sigmoid(reward(c) - reward(r)), a mean over pairs

x c and x r are documents of one row, without padding; one forward has them both. log ref of each token is computed once,
by the model at the start, for the pairs that the budget reaches, and lies in the folder of the run/reference.safetensors: one model is
in memory, and a resumed run has the same. Pair g of a run is a pure function of (seed, g), a step is `batch` pairs at any
world size and micro_batch.

Pairs are units folders (tokenize_speech.py) with documents ITEM/prompt, ITEM/chosen, ITEM/rejected; or slamkit's .jsonl,
lines {"prompt": {"units": [..]}, "chosen": .., "rejected": .., "prompt_text": "..", "chosen_text": .., "rejected_text": ..}
whose encoder nobody can check. Left out, counted and listed in OUT/dropped.jsonl: pairs that lack a part, whose
completions are equal, or whose prompt with the chosen completion repeats itself: auto-BLEU-2 of max_auto_bleu or more.

log.jsonl, a line a step: "loss", "margin" (reward of chosen - of rejected), "accuracy" (share of pairs with a margin
above 0, ties half), "chosen", "rejected" (rewards), "kl": nats a token, the mean of e^d - 1 - d with d = log pi - log ref,
which estimates KL(ref || pi) as far as the completions are like samples of ref (Schulman 2020); then as train.py's.
"""
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from configurator import Refused, run
from data import IGNORE, permute
from evaluation.text_scores import auto_bleu2
from files import atomically, read_lines, write_lines
from hub import folders
from model import GPT
from speech.units import Units
from train import MAY_CHANGE_ON_RESUME, check_attention, check_settings, hash_of_init, set_up, training_loop
from training import checkpoint
from training.processes import processes, signals, to_device
from vocab import DIRECTIONS, document

PARTS = ('prompt', 'chosen', 'rejected')
BUDGETS = ('max_steps', 'max_epochs', 'max_seconds')

@dataclass(frozen=True)
class Config:
    # data
    data: str = 'out/pairs/train' # units folders and .jsonl of pairs, separated by commas
    val_data: str = '' # the same, held out; '' is none
    directions: tuple = ('S',) # what a pair is read as: 'S' speech; for joint models 'S->T', 'T->S', 'T' too (eval.py)
    eot: bool = False # end token behind the completions of a joint model (where it was trained with one); a speech
    # model's have their eos, as in the papers' code
    max_auto_bleu: float | None = 0.3 # of prompt and chosen text, in which a pair must be below it; None: no such filter
    skip_long: bool = False # leave out pairs longer than block_size, which are refused otherwise
    # model
    init: str = 'out/slam' # folder of a model (train.py): the start, and the reference
    beta: float = 0.1
    # batch
    block_size: int = 1024 # tokens of a prompt and its completion, at most
    batch: int = 64 # pairs a step, over all ranks
    micro_batch: int = 8 # pairs a forward, on each rank; the accumulation follows
    # optimizer: AdamW 0.9, 0.999, 1e-8, no decay
    lr: float = 5e-5 # the peak
    min_lr: float = 0.0
    schedule: str = 'inverse_sqrt' # 'cosine', 'constant', 'inverse_sqrt', 'wsd', as train.py
    warmup: float = 0.1 # share of the budget
    decay: float = 0.2 # share of the budget, for wsd
    clip: float = 0.5 # norm of the gradient
    # budget, exactly one
    max_steps: int | None = None
    max_epochs: float | None = None # passes over the pairs
    max_seconds: float | None = None # of training, by rank 0's clock (not bit-equal on resume)
    # run, as train.py
    out: str = 'out/model-dpo'
    seed: int = 0
    device: str = 'auto' # 'auto' (a GPU if there is one), 'cuda', 'cpu'
    attention: str | None = None
    parallel: str = 'ddp' # 'ddp' or 'fsdp'
    recompute: str = 'none' # 'none', 'selective', 'full'
    dtype: str = 'bfloat16' # 'bfloat16', 'float32', 'pure_bfloat16'
    timeout: float = 600.0 # seconds
    log_every: int = 10 # steps
    eval_every: int = 100 # steps
    eval_rows: int = 512 # held-out pairs, at most
    save_every: int = 100 # steps
    wandb: str = ''

    def __post_init__(self):
        check_settings(self, BUDGETS)
        for name in ('beta', 'batch', 'max_epochs', 'max_auto_bleu'):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise Refused(f"{name}={getattr(self, name)}: expected more than 0")
        if self.parallel == 'fsdp' and self.dtype == 'bfloat16':
            raise Refused("parallel='fsdp' with dtype='bfloat16' rounds otherwise than the reference was made: expected 'ddp', or "
                          "dtype='pure_bfloat16' or 'float32'")
        if not self.directions:
            raise Refused("directions=(): expected at least one, as 'S'")
        unit = (world := int(os.environ.get('WORLD_SIZE', 1))) * self.micro_batch
        if self.batch % unit:
            near = max(self.batch // unit, 1) * unit
            raise Refused(f"batch={self.batch}: expected {near} or {near + unit}, a multiple of world {world} x "
                          f"micro_batch {self.micro_batch}")

    @property
    def rows(self): # a step, over all ranks; a row is a pair
        return self.batch

# ----------------------------------------------------------------------------------------------------------------
# pairs

def read_units(folder, vocab):
    """{item: {part: (text, units)}} of a units folder whose encoder has that hash ('': any)."""
    units, items = Units(folder), {}
    if vocab.units and not vocab.speaks(units.info['units_hash'], units.info.get('encoder')):
        raise Refused(f"{folder}: units {units.info['units_hash']}, the model was trained on {vocab.units}: encode the "
                      "pairs with the model's encoder")
    for i, meta in enumerate(units.meta):
        item, _, part = meta['id'].rpartition('/')
        if part in PARTS:
            items.setdefault(item, {})[part] = meta['text'], units[i][0].astype(np.int64)
    if not items:
        raise Refused(f"{folder}: no pairs; expected documents ITEM/prompt, ITEM/chosen and ITEM/rejected")
    return dict(sorted(items.items()))

def read_jsonl(path):
    """The same of slamkit's lines."""
    items = {}
    for where, line in read_lines(path):
        name = f"{path}:{line['id']}" if 'id' in line else where
        if name in items:
            raise Refused(f"{where}: the id {line['id']!r} comes twice; expected one a pair")
        parts = items[name] = {}
        for part in PARTS:
            found = line.get(part)
            units = found.get('units') if isinstance(found, dict) else found # {"units", "duration"}, or the units
            if not isinstance(units, list) or not all(type(u) is int for u in units):
                raise Refused(f"{where}: '{part}' is {str(found)[:40]}; expected {{\"units\": [whole numbers]}}")
            parts[part] = line.get(f'{part}_text'), np.array(units, dtype=np.int64)
    if not items:
        raise Refused(f"{path}: no pairs in it; expected a line a pair")
    return items

def fault(item, max_auto_bleu):
    """Why a pair is of no use; None if it is."""
    if lacking := [part for part in PARTS if part not in item or not len(item[part][1])]:
        return f"no {' and '.join(lacking)}"
    if np.array_equal(item['chosen'][1], item['rejected'][1]):
        return "equal completions"
    if max_auto_bleu is not None:
        if (bleu := auto_bleu2(f"{item['prompt'][0]} {item['chosen'][0]}")) >= max_auto_bleu:
            return f"auto-BLEU: {bleu:.3f}"
    return None

def joined(prompt, completion):
    """Units of both, one run where they meet in the same unit (slamkit leaves two), and where the completion begins."""
    return np.concatenate([prompt, completion[int(prompt[-1] == completion[0] and len(completion) > 1):]]), len(prompt)

class Pairs:
    """The documents that pairs become: number 2i is the chosen one of pair i, 2i + 1 the rejected one.

    documents: list of int64 ids; begins: where in each the completion does. count, first: tokens of each document's
    completion, and where they stand in .reference (targets,), float32: log ref of every completion's tokens, in order.
    """
    def __init__(self, documents, begins):
        self.documents, self.begins = documents, np.array(begins)
        self.count = np.array([len(d) for d in documents]) - self.begins
        self.first = np.concatenate([[0], np.cumsum(self.count)])
        self.reference = np.zeros(self.first[-1], np.float32)
        content = hashlib.sha256(self.begins.tobytes())
        for d in documents:
            content.update(len(d).to_bytes(8, 'little') + d.tobytes())
        self.hash = content.hexdigest()[:16]

    def __len__(self):
        return len(self.documents) // 2

    def pack(self, numbers):
        """Pairs as one row: tokens, doc_start, targets, reference, document (1, N) each, and weights of ones (pairs,)."""
        at = (2 * np.asarray(numbers)[:, None] + [0, 1]).ravel()
        documents, begins = [self.documents[i] for i in at], self.begins[at]
        lengths = np.array([len(d) for d in documents])
        starts = np.cumsum(lengths) - lengths
        tokens = np.concatenate(documents)
        of, place = np.repeat(np.arange(len(at)), lengths), np.arange(len(tokens)) - np.repeat(starts, lengths)
        is_target = (place >= begins[of] - 1) & (place < lengths[of] - 1) # where the next token is the completion's
        targets, reference = np.full_like(tokens, IGNORE), np.zeros(len(tokens), self.reference.dtype)
        targets[is_target] = np.append(tokens[1:], 0)[is_target]
        reference[is_target] = np.concatenate([self.reference[self.first[i]:self.first[i + 1]] for i in at])
        row = tokens, np.repeat(starts, lengths).astype(np.int32), targets, reference, of.astype(np.int32)
        return *(x[None] for x in row), np.ones(len(at) // 2, np.float32)

    def held_out(self, first, n):
        """Pairs first..first + n - 1 for train.evaluate; nothing to be measured for n < 1."""
        if n > 0:
            return self.pack(np.arange(first, first + n))
        tokens, doc_start, targets, reference, document, weight = self.pack([0])
        return tokens, doc_start, np.full_like(targets, IGNORE), 0 * reference, document, 0 * weight

def open_pairs(cfg, paths, vocab, tokenizer):
    """(Pairs of all paths, [{id, why}] of what was left out). tokenizer: a TextTokenizer, None for speech alone."""
    items = {}
    for path in paths.split(','):
        items |= read_jsonl(path) if path.endswith('.jsonl') else \
            {f'{path}:{name}': item for name, item in read_units(path, vocab).items()}
    documents, begins, dropped = [], [], []
    end = [tokenizer.eot] if cfg.eot and vocab.kind != 'speech' else [] # a speech document has its end already
    crossing = cfg.directions != ('S',)
    textual = () if cfg.max_auto_bleu is None and not crossing else PARTS if crossing else PARTS[:2]
    for name, item in items.items():
        if not all(item[part][0] for part in textual if part in item):
            raise Refused(f"{name}: has no text, which " + ("directions other than 'S' need" if crossing else
                          "the auto-BLEU filter needs; --max_auto_bleu=None leaves it out"))
        why = fault(item, cfg.max_auto_bleu)
        if why is None:
            new = list(_documents(cfg, name, item, vocab, tokenizer, end))
            longest = max(len(ids) for ids, _ in new)
            if longest > cfg.block_size and not cfg.skip_long:
                raise Refused(f"{name}: a prompt of {new[0][1]} tokens, {longest} with a completion, block_size is "
                              f"{cfg.block_size}; expected a larger one, or --skip_long=True to leave such pairs out")
            why = f"too long: {longest} tokens" if longest > cfg.block_size else None
        if why is not None:
            dropped.append({'id': name, 'why': why})
            continue
        documents += [ids for ids, _ in new]
        begins += [begin for _, begin in new]
    if not documents:
        raise Refused(f"{paths}: all of {len(items)} pairs were left out, the first: {dropped[0]['why']}")
    return Pairs(documents, begins), dropped

def _documents(cfg, name, item, vocab, tokenizer, end):
    """(ids, where the completion begins) of chosen, rejected in each direction."""
    try:
        for direction in cfg.directions:
            for part in PARTS[1:]:
                both = joined(item['prompt'][1], item[part][1])
                candidate = {'prompt': item['prompt'], 'ending': item[part], 'joined': both}
                ids, begin = document(vocab, tokenizer, direction, candidate)
                yield np.append(ids, end).astype(np.int64), begin
    except Refused as e: # a unit that the vocabulary has not
        raise Refused(f"{name}: {e}") from None

def pairs_of_steps(cfg, n, first, count):
    """Which of n pairs are numbers first..first + count - 1 of a run: anew permuted in each pass over them."""
    epoch, i = np.divmod(np.arange(first, first + count), n)
    for e in np.unique(epoch).tolist():
        i[epoch == e] = permute(i[epoch == e], n, cfg.seed, e)
    return i

def fetch(pairs, cfg, step, rank, world, device):
    """This rank's micro-batches of a step, on the device, the number of their pairs there, and the keys they see."""
    micro, keys = [], 0
    for first in range(step * cfg.batch, (step + 1) * cfg.batch, world * cfg.micro_batch):
        tokens, doc_start, *rest = pairs.pack(pairs_of_steps(cfg, len(pairs), first + rank * cfg.micro_batch, cfg.micro_batch))
        keys += int((np.arange(1, tokens.size + 1) - doc_start).sum())
        micro.append(tuple(to_device(x, device) for x in (tokens, doc_start, *rest)))
    return micro, to_device(torch.tensor(float(cfg.batch // world), dtype=torch.float64), device), keys

# ----------------------------------------------------------------------------------------------------------------
# reference and loss

@torch.no_grad()
def log_probs(run, model, pairs, numbers):
    """float32 (targets,): the model's log p of these pairs' completions, as in .reference, NaN for others; each rank makes
    a share."""
    rank, world, device, _ = run.place
    out, n = torch.zeros(len(pairs.reference), device=device), run.cfg.micro_batch
    place = lambda some: np.concatenate([np.arange(pairs.first[2 * i], pairs.first[2 * i + 2]) for i in some])
    for at in range(rank * n, len(numbers), world * n):
        tokens, doc_start, targets = (to_device(x, device) for x in pairs.pack(numbers[at:at + n])[:3])
        with run.autocast():
            losses = model.losses(tokens, doc_start, targets)
        out[torch.from_numpy(place(numbers[at:at + n]))] = -losses[targets.flatten() >= 0]
    if world > 1:
        dist.all_reduce(out)
    unseen = np.ones(len(out), dtype=bool)
    unseen[place(numbers)] = False
    return np.where(unseen, np.float32('nan'), out.cpu().numpy())

def read_reference(path, key, sets):
    """Puts the file's log-probabilities into the sets {name: Pairs}; is it there, whole, and of that key?"""
    try:
        with safe_open(path, 'numpy') as file:
            found = {name: file.get_tensor(name) for name in file.keys()}
            said = file.metadata()
    except (OSError, SafetensorError):
        return False
    if said != {'key': key, 'sha256': _content(found)}:
        return False
    for name, pairs in sets.items():
        pairs.reference = found[name]
    return True

def _content(arrays):
    return checkpoint.digest(hashlib.sha256(arrays[name].tobytes()).hexdigest() for name in sorted(arrays))

def set_reference(run, key, sets, wanted, start):
    """Gives the wanted pairs {name: numbers} of the sets {name: Pairs} their reference: that of the folder OUT, or that of the model
    start(), which is then stored. -> the model, if there was need of it."""
    key = checkpoint.digest([key, *(hashlib.sha256(numbers.tobytes()).hexdigest() for numbers in wanted.values())])
    path = Path(run.cfg.out, 'reference.safetensors')
    rank, world, device, _ = run.place
    there = torch.tensor(float(rank == 0 and read_reference(path, key, sets)), device=device)
    if world > 1:
        dist.broadcast(there, 0)
    if there:
        if rank and not read_reference(path, key, sets):
            raise Refused(f"{path}: rank {rank} does not see what rank 0 does; expected --out on a shared disk")
        return None
    model = start()
    for name, pairs in sets.items():
        pairs.reference = log_probs(run, model, pairs, wanted[name])
    if rank == 0:
        arrays = {name: pairs.reference for name, pairs in sets.items()}
        with atomically(path) as tmp:
            said = {'key': key, 'sha256': _content(arrays)}
            save_file({name: torch.from_numpy(a) for name, a in arrays.items()}, tmp, said)
    return model

class DPOObjective(torch.nn.Module):
    """The sum of a micro-batch's losses, and sums over it of what is logged."""

    def __init__(self, model, beta):
        super().__init__()
        self.model, self.beta = model, beta

    def forward(self, tokens, doc_start, targets, reference, document, weight): # (1, N) each, weight (pairs,)
        log_p = -self.model.losses(tokens, doc_start, targets) # (N,), 0 where there is no target
        d = log_p - reference[0] # log pi - log ref of each token
        is_of = document == torch.arange(2 * len(weight), device=document.device)[:, None] # (2 pairs, N)
        chosen, rejected = (self.beta * (is_of * d).sum(1)).view(-1, 2).unbind(1) # rewards, (pairs,) each
        margin = chosen - rejected
        loss = -(F.logsigmoid(margin) * weight).sum()
        right, wide = (margin > 0) + 0.5 * (margin == 0), d.detach().double()
        sums = [loss, *((x * weight).sum() for x in (chosen, rejected, right)), (torch.expm1(wide) - wide).sum(),
                weight.sum(), (targets >= 0).sum()]
        return loss, torch.stack([x.detach().double() for x in sums]) # (), (7,)

    @staticmethod
    def summary(parts):
        loss, chosen, rejected, right, kl, pairs, targets = parts
        mean = {'loss': loss, 'margin': chosen - rejected, 'accuracy': right, 'chosen': chosen, 'rejected': rejected}
        mean = {name: x / max(pairs, 1) for name, x in mean.items()}
        return mean | {'kl': kl / max(targets, 1), 'targets': int(targets)}

# ----------------------------------------------------------------------------------------------------------------

def total_steps(cfg, n):
    """Steps the budget buys with n pairs; None where it is wall time."""
    if cfg.max_seconds is not None:
        return None
    steps = cfg.max_steps or int(cfg.max_epochs * n / cfg.batch)
    if steps < 1:
        raise Refused(f"max_epochs={cfg.max_epochs}: {n} pairs are not one step of {cfg.batch}")
    return steps

def check_positions(cfg, shape, sets):
    """Refuses micro-batches that a model of learned positions (OPT) cannot have in one row."""
    longest = max(len(a) + len(b) for pairs in sets for a, b in zip(pairs.documents[::2], pairs.documents[1::2]))
    if shape.position == 'learned' and cfg.micro_batch * longest > shape.n_positions:
        raise Refused(f"micro_batch={cfg.micro_batch}: pairs have up to {longest} tokens, a row of {cfg.init} "
                      f"{shape.n_positions}; expected at most {max(shape.n_positions // longest, 1)}")

def main(cfg):
    with processes(cfg) as place, signals() as asked:
        rank, world, device, _ = place
        # ---- the model's vocabulary, the pairs, and what an earlier run of this command left
        folder = Path(folders.local_folder(cfg.init))
        vocab, tokenizer = folders.vocabulary(folder)
        if unknown := [d for d in cfg.directions if d not in DIRECTIONS[vocab.kind]]:
            raise Refused(f"directions={cfg.directions}: a {vocab.kind} model reads {', '.join(DIRECTIONS[vocab.kind])}, "
                          f"not {', '.join(map(str, unknown))}")
        if cfg.attention:
            check_attention(cfg, folders.read_config(folder), device)
        if cfg.eot and tokenizer and tokenizer.eot is None:
            raise Refused(f"{cfg.init}: its text tokenizer has no end token; leave out --eot")
        pairs, dropped = open_pairs(cfg, cfg.data, vocab, tokenizer)
        sets = {'train': pairs}
        if cfg.val_data:
            sets['held out'] = open_pairs(cfg, cfg.val_data, vocab, tokenizer)[0]
        check_positions(cfg, folders.read_config(folder), sets.values())
        inputs = {'weights of init': hash_of_init(folder),
                  'vocabulary': vocab.hash(), **{f'{name} pairs': of.hash for name, of in sets.items()}}
        steps = total_steps(cfg, len(pairs)) # None: until max_seconds
        run = checkpoint.open_run(cfg, MAY_CHANGE_ON_RESUME, place, asked, vocab, '' if tokenizer is None else tokenizer.name, inputs)
        if run.finished:
            return run.state['val']
        if rank == 0:
            with atomically(Path(cfg.out, 'dropped.jsonl')) as tmp:
                write_lines(tmp, dropped)

        # ---- the reference, and the model
        load = lambda where: set_up(GPT.from_pretrained(where, device=device), cfg)
        all_of = len(pairs) if steps is None else min(steps * cfg.batch, len(pairs))
        wanted = {'train': np.sort(pairs_of_steps(cfg, len(pairs), 0, all_of))} | \
            {name: np.arange(min(cfg.eval_rows, len(of))) for name, of in sets.items() if name != 'train'}
        start = set_reference(run, checkpoint.digest([*inputs.values(), cfg.dtype]), sets, wanted, lambda: load(folder))
        start = None if run.folder else start # one model is in memory
        model = load(run.folder) if run.folder else start or load(folder)
        counts = Counter(line['why'].split(':')[0] for line in dropped)
        run.say(f"{model.num_params():,} parameters on {world} x {device.type}, {cfg.batch} pairs a step, "
                + (f"{steps:,} steps" if steps else f"{cfg.max_seconds} s") + f"; {len(pairs):,} pairs, "
                f"{pairs.first[-1]:,} targets; left out: {', '.join(f'{n} {why}' for why, n in counts.items()) or 'none'}")

        # ---- train.py's loop, and the end
        batches = lambda step: fetch(pairs, cfg, step, rank, world, device)
        held_out = {name: (len(of), of.held_out) for name, of in sets.items() if name != 'train'}
        step, done, skipped = training_loop(run, DPOObjective(model, cfg.beta), steps, batches, held_out)
        made = {'skipped': skipped, 'pairs': step * cfg.batch, 'dropped': dict(counts)}
        checkpoint.export(run, model, done, step, made)
        if done:
            run.say(f"done: {cfg.out}, {step:,} steps, {step * cfg.batch:,} pairs")
        return run.state['val'] if done else None

if __name__ == '__main__':
    run(main, Config)
