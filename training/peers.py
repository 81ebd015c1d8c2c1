"""
What the ranks of a run tell each other: texts, refusals, that they are started alike, and who is missing.

Nothing is pickled, as torch.distributed's exchange of objects would be.
"""
import json
import os
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from configurator import Refused
from locks import writing_in

SHARED_WITHIN = 60.0 # seconds until a file that one host has made is seen by all others (NFS keeps listings so long)
WRITER = 'writer of checkpoints' # name of the thread that writes them
ANSWER_WITHIN = 3.0 # seconds in which the kernel of a host takes a connection

class Place(NamedTuple):
    """The place of this process among those of the run."""
    rank: int = 0
    world: int = 1 # number of processes
    device: torch.device = torch.device('cpu')
    # Where ranks tell each other texts, and wait for each other's files, for an hour at most.
    text_group: object = None # a gloo process group; None: one process

def gather_texts(text, place):
    """The text that each rank gives, in the order of the ranks. All ranks call it."""
    if place.world == 1:
        return [text]
    data = torch.frombuffer(bytearray(text.encode() + b'\n'), dtype=torch.uint8) # never empty
    sizes = [torch.tensor(0) for _ in range(place.world)]
    dist.all_gather(sizes, torch.tensor(len(data)), group=place.text_group)
    longest = int(max(sizes))
    texts = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
    dist.all_gather(texts, torch.nn.functional.pad(data, (0, longest - len(data))), group=place.text_group)
    return [bytes(data[:size - 1].tolist()).decode() for data, size in zip(texts, sizes)]

@contextmanager
def together(place):
    """What one rank refuses in this block, all ranks refuse, by one line that names the rank and its host.

    All ranks enter the block, in which they exchange nothing.
    """
    error = None
    try:
        yield
    except (Refused, OSError) as e:
        error = e
    text = str(error) if error else ''
    answers = [json.loads(answer) for answer in gather_texts(json.dumps([socket.gethostname(), text]), place)]
    if error and all(answer_text == text for _, answer_text in answers):
        raise error
    for rank, (host, answer_text) in enumerate(answers):
        if answer_text:
            raise Refused(f"rank {rank} on {host}: {answer_text}") from None

def check_same(facts, place):
    """Refuses a run whose ranks have different facts, {name: value of JSON}, by one line on all ranks."""
    answers = gather_texts(json.dumps([socket.gethostname(), facts]), place)
    (first_host, first), *others = map(json.loads, answers)
    lines = []
    for rank, (host, other) in enumerate(others, start=1):
        different = [f"{name} is {other.get(name)!r}, not {first.get(name)!r}"
                     for name in {**first, **other} if other.get(name) != first.get(name)]
        if different:
            lines.append(f"rank {rank} on {host} differs from rank 0 on {first_host}: {'; '.join(different)}")
    if lines:
        more = f" (and {len(lines) - 1} more ranks differ)" if len(lines) > 1 else ''
        raise Refused(f"{lines[0]}{more}; expected the same command, code, data and packages on all hosts")

# --------------------------------------------------------------------------------------------------
# one folder for all

@contextmanager
def only_writer(out, place):
    """Rank 0 holds the lock of a folder meanwhile. Refuses one that another run has, or that not all ranks see."""
    lock = None
    with together(place):
        if place.rank == 0:
            lock = writing_in(out)
    with lock or nullcontext():
        if place.world > 1:
            _check_shared(out, place)
        try:
            yield
        finally:
            for thread in threading.enumerate():
                if thread.name == WRITER: # of a run that raises an error; it writes in the folder
                    thread.join()

def _check_shared(out, place):
    path = Path(out, '.lock')
    here = json.dumps([socket.gethostname(), path.read_text() if place.rank == 0 else ''])
    host, record = json.loads(gather_texts(here, place)[0])
    deadline = time.monotonic() + SHARED_WITHIN
    with together(place):
        while not (path.is_file() and path.read_text() == record):
            if time.monotonic() > deadline:
                raise Refused(f"{out}: does not hold what rank 0 on {host} writes there; "
                              "expected --out on a disk that all hosts share")
            time.sleep(0.2)

# --------------------------------------------------------------------------------------------------
# who is missing

def is_about_ranks(error):
    """Whether an error came up since ranks could not exchange something."""
    return isinstance(error, dist.DistError) or bool(
        re.search(r'gloo|NCCL|TCPStore|Connection (closed|reset)|[Tt]imed out', str(error)))

def _address(host, port):
    """(how other hosts reach this one, the family of such addresses), by the route to host:port; nothing is sent."""
    family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as s:
        s.connect(target)
        address = s.getsockname()[0]
    return host if address == target[0] else address, family # on that host itself the name that others resolve

class Peers:
    """Tells which ranks of a run are gone, by a port on which each of them listens and says nothing.

    The kernel takes the connections, also while a rank computes or hangs.
    """

    def __init__(self, place):
        self.place = place
        address, family = _address(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']))
        self.server = socket.create_server(('', 0), family=family, backlog=max(128, 2 * place.world))
        here = [socket.gethostname(), address, self.server.getsockname()[1]]
        self.ranks = [json.loads(text) for text in gather_texts(json.dumps(here), place)]

    def close(self):
        self.server.close()

    def missing(self):
        """'rank 1 on b (has ended)', ...: the ranks that do not take a connection, in words."""
        def ask(peer):
            _, address, port = peer
            try:
                socket.create_connection((address, port), timeout=ANSWER_WITHIN).close()
            except ConnectionRefusedError:
                return 'has ended'
            except OSError:
                return 'cannot be reached'
        with ThreadPoolExecutor(64) as pool:
            answers = list(pool.map(ask, self.ranks))
        lost = [f"rank {rank} on {self.ranks[rank][0]} ({why})" for rank, why in enumerate(answers) if why]
        more = f" and {len(lost) - 8} more" if len(lost) > 8 else ''
        return ', '.join(lost[:8]) + more
