"""
What training needs of its processes: ranks and devices, DDP or FSDP around a model, and signals.
"""
import os
import signal
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from configurator import Refused

REPEATED = 5.0 # seconds

class Place(NamedTuple):
    """This process among those of the run."""
    rank: int = 0
    world: int = 1 # how many processes there are
    device: torch.device = torch.device('cpu')
    checkpoint_group: object = None # a group that may wait an hour, while rank 0 writes or reads a checkpoint; None: one process

@contextmanager
def signals():
    """A list that a first SIGTERM, SIGINT or SIGHUP fills, for the loop to save and end. Another one ends the process, but not
    within REPEATED seconds: a scheduler and torchrun both pass on the same one."""
    asked, old, since = [], {}, []
    def note(number, frame):
        since.append(time.monotonic())
        asked.append(number)
        if since[-1] - since[0] > REPEATED:
            signal.signal(number, old[number])
            os.kill(os.getpid(), number)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN: # nohup's
            old[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

@contextmanager
def processes(cfg):
    """The Place of this process; it joins the others where torchrun started several."""
    env = [name for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT') if name in os.environ]
    rank, world, local = (int(os.environ.get(*pair)) for pair in (('RANK', 0), ('WORLD_SIZE', 1), ('LOCAL_RANK', 0)))
    if (rank or world > 1) and len(env) < 5:
        raise Refused(f"the environment has only {', '.join(env)}: expected torchrun to start several processes")
    if cfg.device == 'cuda' and not torch.cuda.is_available():
        raise Refused("device='cuda': torch sees no GPU here; expected 'cpu' or 'auto'")
    cuda = cfg.device != 'cpu' and torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise Refused(f"process {local} of this machine, which has {torch.cuda.device_count()} GPUs: start one process a GPU")
    device = torch.device('cuda', local) if cuda else torch.device('cpu')
    if cuda:
        torch.cuda.set_device(device)
    checkpoint_group = None
    if world > 1:
        dist.init_process_group('nccl' if cuda else 'gloo', timeout=timedelta(seconds=cfg.timeout))
        checkpoint_group = dist.new_group(backend='gloo', timeout=timedelta(seconds=max(cfg.timeout, 3600)))
    try:
        yield Place(rank, world, device, checkpoint_group)
    finally:
        if world > 1:
            dist.destroy_process_group()

def wrap_distributed(losses, cfg, world, device):
    """losses over the processes: gradients are averages over them once a backward has come after net.sync(True)."""
    if world == 1:
        return losses
    if cfg.parallel == 'ddp':
        net = DistributedDataParallel(losses, broadcast_buffers=False, gradient_as_bucket_view=True)
        net.sync = lambda on: setattr(net, 'require_backward_grad_sync', on)
        return net
    # a layer's weights are gathered when it is used, in the dtype of the compute; gradients are summed in float32
    policy = MixedPrecisionPolicy(torch.bfloat16 if cfg.dtype == 'bfloat16' else None, torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(device.type, (world,))
    for module in (*losses.model.layers, losses): # the last has what no layer has: embedding, head, last norm
        fully_shard(module, mesh=mesh, mp_policy=policy)
    losses.sync = lambda on: None # always: whole gradients, kept until the last micro-batch, would not fit
    return losses

def to_device(x, device):
    x = torch.as_tensor(x)
    return x.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else x
