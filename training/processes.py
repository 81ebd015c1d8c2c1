"""
What training needs of processes: ranks and their devices, DDP or FSDP around a model, stop signals.
"""
import os
import signal
import time
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from configurator import Refused, pick_device, ranks
from locks import writing_in

REPEATED = 5.0 # seconds during which further signals count as repetitions of the first
TORCHRUN = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT') # what torchrun sets in the environment

class Place(NamedTuple):
    """The place of this process among those of the run."""
    rank: int = 0
    world: int = 1 # number of processes
    device: torch.device = torch.device('cpu')
    # Where ranks wait, for an hour at most, while rank 0 writes or reads a checkpoint.
    checkpoint_group: object = None # a process group; None: one process

@contextmanager
def signals():
    """Yields a list to which every SIGTERM, SIGINT or SIGHUP is appended, so that the loop can save and end.

    A scheduler and torchrun may both pass on the same signal, so one that follows within REPEATED
    seconds has no further effect. A signal after that ends the process in the usual way.
    """
    stop_signals = []
    times = []
    old_handlers = {}
    def note(number, frame):
        times.append(time.monotonic())
        stop_signals.append(number)
        if times[-1] - times[0] > REPEATED:
            signal.signal(number, old_handlers[number])
            os.kill(os.getpid(), number)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN: # nohup has a command ignore SIGHUP
            old_handlers[number] = signal.signal(number, note)
    try:
        yield stop_signals
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)

@contextmanager
def processes(cfg):
    """Yields the Place of this process, which joins the others if torchrun started several.

    Refuses an incomplete environment of torchrun, a GPU that is not there, and a cfg.out that another
    run writes in.
    """
    rank, world = ranks()
    present = [name for name in TORCHRUN if name in os.environ]
    if (rank or world > 1) and len(present) < len(TORCHRUN):
        raise Refused(f"the environment has only {', '.join(present)}: "
                      "expected torchrun to start several processes")
    device = torch.device(pick_device(cfg.device))
    checkpoint_group = None
    if world > 1:
        dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', timeout=timedelta(seconds=cfg.timeout))
        patience = timedelta(seconds=max(cfg.timeout, 3600))
        checkpoint_group = dist.new_group(backend='gloo', timeout=patience)
    try:
        place = Place(rank, world, device, checkpoint_group)
        with only_writer(cfg.out, place):
            yield place
    finally:
        if world > 1:
            dist.destroy_process_group()

@contextmanager
def only_writer(out, place):
    """Rank 0 holds the lock of the folder out meanwhile; if another run has it, all ranks raise Refused."""
    lock = None
    error = None
    if place.rank == 0:
        try:
            lock = writing_in(out)
        except Refused as e:
            error = e
    if place.world > 1:
        refused = torch.tensor(error is not None)
        dist.broadcast(refused, 0, group=place.checkpoint_group)
        if refused and not error:
            error = Refused("refused by rank 0")
    if error:
        raise error
    with lock or nullcontext():
        yield

def wrap_distributed(objective, cfg, world, device):
    """The objective (a module around .model) as DDP or FSDP, which average gradients over the ranks."""
    if world == 1:
        return objective
    if cfg.parallel == 'ddp':
        return DistributedDataParallel(objective, broadcast_buffers=False,
                                       gradient_as_bucket_view=True)
    # The weights of a layer are gathered when it is used, in the dtype of the compute. Gradients
    # are summed in float32.
    compute_dtype = torch.bfloat16 if cfg.dtype == 'bfloat16' else None
    policy = MixedPrecisionPolicy(compute_dtype, torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(device.type, (world,))
    # The objective comes last and takes what is in no layer: embedding, head and last norm.
    for module in (*objective.model.layers, objective):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    return objective

def set_gradient_sync(net, on):
    """Sets whether the next backward exchanges gradients between the ranks; once a step is enough.

    Under FSDP every backward does: whole gradients, kept until the last micro-batch, would not fit.
    """
    if isinstance(net, DistributedDataParallel):
        net.require_backward_grad_sync = on

def to_device(x, device):
    """An array or tensor on the device; the host does not wait for the copy."""
    x = torch.as_tensor(x)
    if device.type != 'cuda':
        return x
    return x.pin_memory().to(device, non_blocking=True)
