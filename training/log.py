"""
A run's log, for train.py and dpo.py: log.jsonl with a line a step (and one an evaluation), the terminal's lines, and when
to give up.

    {"step", "loss", "text", "units", "separators" (nats a target), "lr", "grad_norm", "targets", "ms", "tok_s",
     "data" (share of the time that the host made batches), and on a GPU "mfu_palm", "mfu_doc", "peak_gb"}

mfu: the FLOPs of GPT.flops_per_token over the peak of the chip (training/cost.py), with T keys a token (PaLM), or those that a token sees in its document.

A step's numbers are read when the next one has been launched, so the host never waits for the device.
"""
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path

import torch

from files import atomically
from training import checkpoint
from training.cost import chip_of
from vocab import MODALITIES

PATIENCE = 5 # steps in a row without a finite loss or gradient that end a run
TERMINAL = (*MODALITIES, 'margin', 'accuracy', 'kl') # what stands behind the loss there: train.py's, dpo.py's

def modality_means(sums, counts):
    """{'loss', 'text', 'units', 'separators'} from sums and numbers of targets; a modality without targets is left out."""
    each = {name: s / n for name, s, n in zip(MODALITIES, sums, counts) if n}
    return {'loss': sum(sums) / max(sum(counts), 1)} | each

class Log:
    """log.jsonl and the terminal. A step's numbers are posted when it is launched and read when the next one is, so the
    host never waits for the device. All ranks read; rank 0 writes."""

    def __init__(self, cfg, state, model, rank, world, device, summary):
        self.cfg, self.flops_per_token, self.file, self.waiting = cfg, model.flops_per_token, None, None
        self.summary = summary # parts of a step -> {'loss', ..., 'targets'}
        self.streak, self.skipped, self.device = state['streak'], state['skipped'], device
        self.before = self._now() # when the step began
        chip = chip_of(torch.cuda.get_device_name(device)) if device.type == 'cuda' else None
        self.peak = world * chip.flops if chip else math.nan
        self.wandb = _wandb(cfg, state['step']) if rank == 0 and cfg.wandb else None
        if rank == 0: # what a cut run did after its checkpoint will be done again
            path = Path(cfg.out, 'log.jsonl')
            lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
            kept = [line for line in lines if line.endswith('\n') and json.loads(line)['step'] <= state['step']]
            with atomically(path) as tmp:
                tmp.write_text(''.join(kept))
            self.file = open(path, 'a')

    def sync(self):
        if self.file:
            os.fsync(self.file.fileno())

    def write(self, row):
        if self.file:
            self.file.write(json.dumps(row) + '\n')
            self.file.flush()
        if self.wandb:
            self.wandb.log(row, step=row['step'])

    def _now(self):
        """The moment the device is through with all it was given: a recorded event, or on a CPU the time."""
        if self.device.type != 'cuda':
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def post(self, step, of, stats, lr, data):
        """stats: parts of the step, signals, clock, keys seen, tokens, norm, bad; data: seconds of making a batch."""
        stats = stats.to('cpu', non_blocking=True)
        self.waiting = step, of, stats, lr, data, self._now()

    def skip_time(self):
        """What came since the last step was no step: an evaluation, a checkpoint."""
        self.before = self._now()

    def read(self):
        """(stop asked for by any rank, rank 0's seconds) of the waiting step, which is logged; None if none waits."""
        if self.waiting is None:
            return None
        (step, of, stats, lr, data, end), self.waiting = self.waiting, None
        if self.device.type == 'cuda':
            end.synchronize()
        *parts, stop, seconds, keys, tokens, norm, bad = stats.tolist()
        ms = self.before.elapsed_time(end) if self.device.type == 'cuda' else (end - self.before) * 1e3
        self.before = end
        mean = self.summary(parts)
        targets = mean.pop('targets')
        row = {'step': step, **mean, 'lr': lr, 'grad_norm': norm, 'targets': targets,
               'ms': round(ms, 2), 'tok_s': round(tokens / ms * 1e3), 'data': round(data * 1e3 / ms, 4)}
        if self.device.type == 'cuda':
            row['peak_gb'] = round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2)
        for name, seen in (('mfu_palm', self.cfg.block_size), ('mfu_doc', keys / tokens)):
            mfu = row['tok_s'] * self.flops_per_token(seen) / self.peak
            row |= {} if math.isnan(mfu) else {name: round(mfu, 4)}
        self.streak = self.streak + 1 if bad else 0
        if bad:
            self.skipped += 1
            row |= {'skipped': True, 'rows': [(step - 1) * self.cfg.rows, step * self.cfg.rows]} # the samples' numbers
        self.write({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})
        if self.file and (bad or step == 1 or step % self.cfg.log_every == 0):
            print(terminal_line(row, of), flush=True)
        if self.streak >= PATIENCE:
            good = next(iter(checkpoint.folders(self.cfg.out)), 'none: it never saved')
            print(f"{PATIENCE} steps in a row without a finite loss or gradient; the last good checkpoint is {good}")
            raise SystemExit(17)
        return stop > 0, seconds

def _wandb(cfg, step):
    """The run at Weights & Biases; one that was cut goes on under its id, which lies in the folder of the run."""
    import wandb
    path, known = Path(cfg.out, 'wandb.txt'), None
    if step and path.is_file():
        known = path.read_text()
    its = wandb.init(project=cfg.wandb, name=Path(cfg.out).name, id=known, resume='allow', config=asdict(cfg), dir=cfg.out)
    path.write_text(its.id)
    return its

def terminal_line(row, of):
    """The terminal's line of a step."""
    each = ' '.join(f"{name} {row[name]:.3f}" for name in TERMINAL if name in row)
    text = (f"step {row['step']}{f'/{of}' if of else ''} | loss {row['loss']:.3f} ({each}) | lr {row['lr']:.1e} | "
            f"norm {row['grad_norm']:.2f} | {row['ms']:.0f} ms | {row['tok_s'] / 1e3:.1f}k tok/s")
    text += f" | mfu {row['mfu_palm']:.1%}" if 'mfu_palm' in row else ''
    return text + (f" | SKIPPED: not finite, rows {row['rows'][0]}..{row['rows'][1] - 1}" if 'skipped' in row else '')
