"""
The log of train.py and dpo.py: log.jsonl with a line a step and an evaluation, and the terminal's lines.

    {"step", "loss", "text", "units", "separators" (nats a target), "lr", "grad_norm", "targets", "ms", "tok_s",
     "data" (share of the time in which the host made batches), and on a GPU "mfu_palm", "mfu_doc", "peak_gb"}
    {"step", "val": {"corpus/source": {"loss", ..., "targets"}}}

A number that is not finite is null. A skipped step also has "skipped": true and "rows": [first,
last + 1], the numbers of its rows. An mfu is the FLOPs of GPT.flops_per_token over the peak of the
chips (training/cost.py): mfu_palm takes every token to attend to block_size keys, as the PaLM paper
does, and mfu_doc counts the keys within its document.
"""
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path

import torch

from configurator import disk_refusal
from files import atomically, strict_json
from training.cost import chip_of
from vocab import MODALITIES

# What a terminal line shows behind the loss: the keys of train.py, then those of dpo.py.
TERMINAL = (*MODALITIES, 'margin', 'accuracy', 'kl')

def modality_means(sums, counts):
    """{'loss', 'text', 'units', 'separators'} from sums and numbers of targets, where there are any."""
    means = {'loss': sum(sums) / max(sum(counts), 1)}
    for name, loss_sum, n_targets in zip(MODALITIES, sums, counts):
        if n_targets:
            means[name] = loss_sum / n_targets
    return means

class Log:
    """Writes log.jsonl and the terminal's lines. All ranks post and read every step; rank 0 writes.

    A step's numbers are posted when the step has been launched, and read when the next one has
    been: reading waits for the device, which by then has the next step to work on.

    summary     turns the sums of a step into {'loss', ..., 'targets'}
    streak      number of skipped steps in a row, up to the last step that was read
    skipped     number of all skipped steps
    no_targets  number of all steps without a target
    written     number of ranks that had written their part of a checkpoint at the last step that was read
    """

    def __init__(self, cfg, state, model, rank, world, device, summary):
        self.cfg = cfg
        self.summary = summary
        self.device = device
        self.streak = state['streak']
        self.skipped = state['skipped']
        self.no_targets = state.get('no_targets', 0)
        self.flops_per_token = model.flops_per_token
        self.written = 0
        self.posted = None
        self.step_begin = self._now()
        self.peak_flops = None
        if device.type == 'cuda' and (chip := chip_of(torch.cuda.get_device_name(device))):
            self.peak_flops = world * chip.flops
        self.wandb = _wandb(cfg, state['step']) if rank == 0 and cfg.wandb else None
        self.file = _open(Path(cfg.out, 'log.jsonl'), state['step']) if rank == 0 else None
        self.unwritten = b'' # what the disk has not taken yet
        self.failed = False

    def sync(self):
        """Makes sure that the lines are on the disk."""
        if self.file:
            self._try(os.fsync, self.file)

    def _append(self):
        while self.unwritten: # a disk that becomes full takes a part of a line
            n = self.file.write(self.unwritten)
            self.unwritten = self.unwritten[n:]

    def _try(self, change, *args):
        """Changes the file. Where the disk does not take it, says so once: a lost log never ends a training."""
        try:
            change(*args)
        except OSError as e:
            if not self.failed:
                fault = disk_refusal(e, self.file.name) or f"{self.file.name}: {e.strerror}"
                print(f"{fault}; training goes on, and writes these lines once the disk takes them")
            self.failed = True

    def write(self, row):
        if self.file:
            self.unwritten += json.dumps(row).encode() + b'\n'
            self._try(self._append)
            self.failed &= bool(self.unwritten)
        if self.wandb:
            self.wandb.log(row, step=row['step'])

    def _now(self):
        """The moment when the device has done all that was launched, as an event; on a CPU, the time."""
        if self.device.type != 'cuda':
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def post(self, step, n_steps, step_stats, grad_norm, skip_step, lr, data_seconds):
        """Takes the numbers of a step that was launched, without waiting for them.

        step_stats      tensor of the objective's sums, then the number of stop signals, rank 0's clock
                        in seconds, and the numbers of ranks with a written part, of attended keys, of tokens
        data_seconds    how long the host took to make a batch
        """
        numbers = torch.cat((step_stats, torch.stack((grad_norm, skip_step)).double()))
        numbers = numbers.to('cpu', non_blocking=True)
        self.posted = step, n_steps, numbers, lr, data_seconds, self._now()

    def skip_time(self):
        """Leaves the time since the last step out of the next one: an evaluation, a checkpoint."""
        self.step_begin = self._now()

    def read(self):
        """Logs the posted step -> (whether any rank got a stop signal, rank 0's seconds).

        None if no step is posted.
        """
        self.written = 0
        if self.posted is None:
            return None
        step, n_steps, numbers, lr, data_seconds, end = self.posted
        self.posted = None
        if self.device.type == 'cuda':
            end.synchronize()
            ms = self.step_begin.elapsed_time(end)
        else:
            ms = (end - self.step_begin) * 1e3
        self.step_begin = end
        *sums, n_signals, seconds, self.written, attended_keys, n_tokens, grad_norm, skip_step = numbers.tolist()
        means = self.summary(sums)
        targets = means.pop('targets')
        row = {'step': step, **means, 'lr': lr, 'grad_norm': grad_norm, 'targets': targets,
               'ms': round(ms, 2), 'tok_s': round(n_tokens / ms * 1e3),
               'data': round(data_seconds * 1e3 / ms, 4)}
        if self.device.type == 'cuda':
            row['peak_gb'] = round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2)
        if self.peak_flops:
            row['mfu_palm'] = self._mfu(row['tok_s'], self.cfg.block_size)
            row['mfu_doc'] = self._mfu(row['tok_s'], attended_keys / n_tokens)
        if not targets:
            self.no_targets += 1
        if skip_step:
            self.streak += 1
            self.skipped += 1
            row['skipped'] = True
            row['rows'] = [(step - 1) * self.cfg.rows, step * self.cfg.rows]
        else:
            self.streak = 0
        self.write({key: _or_null(value) for key, value in row.items()})
        if self.file and (skip_step or not targets or step == 1 or step % self.cfg.log_every == 0):
            print(terminal_line(row, n_steps), flush=True)
        return n_signals > 0, seconds

    def _mfu(self, tokens_per_second, n_keys):
        return round(tokens_per_second * self.flops_per_token(n_keys) / self.peak_flops, 4)

def _or_null(value):
    """None, JSON's null, for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

def _open(path, last_step):
    """Opens log.jsonl for appending, without the lines after last_step, whose steps are done again.

    Lines that are none of a log are named, and moved to log.jsonl.damaged.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    kept = []
    damaged = {} # {number: line}
    for number, line in enumerate(lines, start=1):
        try:
            step = strict_json(line)['step']
            if step <= last_step:
                kept.append(line if line.endswith(b'\n') else line + b'\n')
        except (ValueError, KeyError, TypeError, IndexError):
            if line.endswith(b'\n'): # else a kill cut the last line short
                damaged[number] = line
    if damaged:
        print(f"{path}: line {', '.join(map(str, damaged))} is damaged: moved to {path}.damaged")
        with open(f'{path}.damaged', 'ab') as f:
            f.writelines(damaged.values())
    with atomically(path) as tmp:
        tmp.write_bytes(b''.join(kept))
    return open(path, 'ab', buffering=0)

def _wandb(cfg, step):
    """The run at Weights & Biases. A resumed run keeps its id there, which is stored in wandb.txt."""
    import wandb
    path = Path(cfg.out, 'wandb.txt')
    run_id = path.read_text() if step and path.is_file() else None
    wandb_run = wandb.init(project=cfg.wandb, name=Path(cfg.out).name, id=run_id, resume='allow',
                           config=asdict(cfg), dir=cfg.out)
    path.write_text(wandb_run.id)
    return wandb_run

def terminal_line(row, n_steps):
    """The terminal's line of a step; n_steps is None where the budget is time."""
    of_steps = f'/{n_steps}' if n_steps else ''
    details = ' '.join(f"{name} {row[name]:.3f}" for name in TERMINAL if name in row)
    loss = f"loss {row['loss']:.3f}" if row['targets'] else "no targets"
    line = (f"step {row['step']}{of_steps} | {loss} ({details}) | lr {row['lr']:.1e} | "
            f"norm {row['grad_norm']:.2f} | {row['ms']:.0f} ms | {row['tok_s'] / 1e3:.1f}k tok/s")
    if 'mfu_palm' in row:
        line += f" | mfu {row['mfu_palm']:.1%}"
    if 'skipped' in row:
        line += f" | SKIPPED: not finite, rows {row['rows'][0]}..{row['rows'][1] - 1}"
    return line
