"""
How long training stands still for a checkpoint, beside how long one takes to write: gloo ranks under FSDP on CPUs.

    torchrun --nproc_per_node=2 bench/checkpoint.py [--dry]          --dry: a tiny model, nothing written

The model has 88M float32 parameters with AdamW's moments, 1.06 GB; it is saved 5 times as train.py does it, and
twice more as a rehearsal. Seconds of rank 0's main thread, by the clock and of its CPU, for which training stands
still: `start` is Saver.start; `copy` is Saver.wait_for_copy after the forward and backward of a row of 512 tokens;
`commit` is Saver.commit. `whole`, of all threads, is from the start to the renamed folder, with nothing else to do: for
that long training would stand still if it waited. Writes bench/results/checkpoint.json.
"""
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import save, table
from hub.families import GPTConfig
from model import GPT
from train import LMObjective
from training.checkpoint import Run, Saver, folders, why_unusable
from training.optimizer import make_optimizer
from training.peers import Place, gather_texts
from training.processes import wrap_distributed
from vocab import Vocab

SHAPE = dict(vocab_size=514, n_layer=7, n_head=8, n_kv_head=8, n_embd=1024, head_dim=128, n_ffn=2816)
TINY = dict(vocab_size=514, n_layer=1, n_head=2, n_kv_head=2, n_embd=32, head_dim=16, n_ffn=64)

class Clock:
    """Adds up the time of the main thread, by the clock and of its CPU."""

    def __init__(self):
        self.seconds = 0.0
        self.cpu = 0.0

    def time(self, call, *args):
        begin = time.perf_counter()
        cpu = time.thread_time()
        call(*args)
        self.seconds += time.perf_counter() - begin
        self.cpu += time.thread_time() - cpu

def train_step(net):
    tokens = torch.arange(512)[None]
    net(tokens, torch.zeros_like(tokens, dtype=torch.int32), tokens)[0].backward()

def measure_save(saver, step, net):
    """Saves twice, beside a step and alone -> {part: Clock}."""
    clocks = {name: Clock() for name in ('start', 'copy', 'commit', 'whole')}
    clocks['start'].time(saver.start, step, 0.0, False)
    train_step(net)
    clocks['copy'].time(saver.wait_for_copy)
    while saver.thread.is_alive():
        time.sleep(0.001)
    dist.barrier()
    clocks['commit'].time(saver.commit)
    saver.wait()
    dist.barrier()
    def whole():
        saver.start(step + 1, 0.0, False)
        saver.thread.join()
        saver.wait()
    cpu = time.process_time()
    clocks['whole'].time(whole)
    clocks['whole'].cpu = time.process_time() - cpu
    return clocks

def main():
    dry = '--dry' in sys.argv
    dist.init_process_group('gloo')
    rank, world = dist.get_rank(), dist.get_world_size()
    place = Place(rank, world, torch.device('cpu'), dist.new_group(backend='gloo'))
    out = gather_texts(tempfile.mkdtemp() if rank == 0 else '', place)[0]
    cfg = SimpleNamespace(out=out, parallel='fsdp', dtype='float32')
    torch.manual_seed(0)
    vocab = Vocab('speech', 0, 512, '', 'units')
    objective = LMObjective(GPT(GPTConfig(**(TINY if dry else SHAPE))), vocab)
    wrap_distributed(objective, cfg, world, place.device)
    optimizer = make_optimizer(objective.model, 1e-3)
    for p in objective.model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    run = Run(cfg, place, [], vocab, '', {}, {}, None, {}, False)
    log = SimpleNamespace(skipped=0, streak=0, no_targets=0, sync=lambda: None)
    saver = Saver(run, objective.model, optimizer, log)
    saves = [measure_save(saver, step, objective) for step in range(1, 15, 2)][2:]
    if rank == 0:
        assert why_unusable(folders(cfg.out)[0]) is None
        rows = []
        for part in saves[0]:
            rows.append({'part': part, **{name: round(statistics.median(getattr(s[part], name) for s in saves), 5)
                                          for name in ('seconds', 'cpu')}})
        rows = table(rows, 'part', 'seconds', 'cpu')
        share = {name: round(sum(row[name] for row in rows[:3]) / rows[3][name], 4) for name in ('seconds', 'cpu')}
        print(f"training stands still for {share['seconds']:.2%} of a checkpoint by the clock, "
              f"{share['cpu']:.2%} of its CPU time")
        shutil.rmtree(out)
        save('checkpoint', dry, rows=rows, share=share, ranks=world, bytes_of_a_rank=len(saver.buffer))
    dist.destroy_process_group()

if __name__ == '__main__':
    main()
