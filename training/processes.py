"""
What training needs of processes: ranks and their devices, DDP or FSDP around a model, stop signals.
"""
import os
import signal
import socket
import time
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from configurator import Refused, pick_device, ranks
from training import checkpoint
from training.peers import Peers, Place, is_about_ranks, only_writer

REPEATED = 5.0 # seconds during which further signals count as repetitions of the first
TORCHRUN = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT') # what torchrun sets in the environment

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

    Refuses an incomplete environment of torchrun, a GPU that is not there, a cfg.out that another
    run writes in or that not all ranks see; and, in one line, names ranks that are gone.
    """
    rank, world = ranks()
    present = [name for name in TORCHRUN if name in os.environ]
    if (rank or world > 1) and len(present) < len(TORCHRUN):
        raise Refused(f"the environment has only {', '.join(present)}: "
                      "expected torchrun to start several processes")
    device = torch.device(pick_device(cfg.device))
    if world == 1:
        place = Place(rank, world, device)
        with only_writer(cfg.out, place):
            yield place
        return
    dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', timeout=timedelta(seconds=cfg.timeout))
    patience = timedelta(seconds=max(cfg.timeout, 3600))
    place = Place(rank, world, device, dist.new_group(backend='gloo', timeout=patience))
    try:
        with naming_lost_ranks(cfg.out, place), only_writer(cfg.out, place):
            yield place
    finally:
        dist.destroy_process_group()

@contextmanager
def naming_lost_ranks(out, place):
    """Turns an error of an exchange between ranks into one line: who is missing, and where the run goes on from."""
    peers = Peers(place)
    try:
        yield
    except RuntimeError as e:
        if not is_about_ranks(e):
            raise
        missing = peers.missing() or 'none, so one hangs or a link was down'
        last = next(iter(checkpoint.folders(out)), None)
        remedy = f"the same command goes on from {last}" if last else "no checkpoint was saved"
        raise Refused(f"rank {place.rank} on {socket.gethostname()} lost others; missing: {missing}; {remedy} "
                      f"({str(e).splitlines()[0][:200]})") from None
    finally:
        peers.close()

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
