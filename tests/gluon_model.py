"""
Executes the source of a Gluon kernel on a CPU, in torch. Gluon has no interpreter of its own.

The functions run as they are written, with `gl`, `mbarrier` and the rest replaced by the models
below. Each partition of warps is a thread. One thread runs at a time; at every barrier, copy and
product a seeded generator decides who goes on, so a run can be repeated, and other seeds try other
orders. What a GPU does asynchronously happens at the worst time that it may:

    a copy by TMA     destroys the tile at once, and delivers it later: at some time if the seed is odd,
                      else when nothing else can go on
    a product         reads its tiles when it starts and again when it is waited for; they must be
                      the same, and nothing can use its result before

It does not model layouts, registers, memory fences, nor how warps of one partition run apart.
"""
import inspect
import random
import textwrap
import threading
from types import SimpleNamespace

import torch


class Stopped(BaseException):
    """Ends the other partitions after one has failed."""

class Partition(threading.Thread):
    """Warps that run f. `ready` is a function: whether they can go on."""
    def __init__(self, f, arguments, scheduler):
        super().__init__(daemon=True)
        self.f = f
        self.arguments = arguments
        self.scheduler = scheduler
        self.may_run = threading.Semaphore(0)
        self.ready = lambda: True
        self.finished = False
        self.error = None
        self.products = [] # that run, in the order in which they began

    def run(self):
        self.may_run.acquire()
        try:
            if not self.scheduler.stopped:
                self.f(*self.arguments)
            assert not self.products, "a partition ends while its product runs"
        except Stopped:
            pass
        except BaseException as error:
            self.error = error
        self.finished = True
        self.scheduler.paused.release()

class Scheduler:
    """Lets one partition run at a time, chosen at random, or a copy by TMA arrive."""
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.copies_are_late = seed % 2 == 0
        self.copies = [] # functions, each of which delivers one
        self.paused = threading.Semaphore(0)
        self.running = None
        self.stopped = False

    def pause(self, ready=lambda: True):
        """Called by a partition: lets others run until it is chosen again and ready() holds."""
        partition = self.running
        partition.ready = ready
        self.paused.release()
        partition.may_run.acquire()
        if self.stopped:
            raise Stopped

    def run(self, functions_and_arguments):
        partitions = [Partition(f, arguments, self) for f, arguments in functions_and_arguments]
        for partition in partitions:
            partition.start()
        try:
            while not all(partition.finished for partition in partitions):
                choices = [p for p in partitions if not p.finished and p.ready()]
                if not (choices and self.copies_are_late):
                    choices += self.copies
                assert choices, "deadlock: every partition waits"
                chosen = self.random.choice(choices)
                if chosen in self.copies:
                    self.copies.remove(chosen)
                    chosen()
                else:
                    self.running = chosen
                    chosen.may_run.release()
                    self.paused.acquire()
                    if chosen.error:
                        raise chosen.error
            assert not self.copies, "the program ends while a copy runs"
        finally:
            self.stopped = True
            for partition in partitions:
                partition.may_run.release()
                partition.join()

# --------------------------------------------------------------------------------------------------

class Barrier:
    """An mbarrier: a phase ends when all arrivals and all bytes that it expects are there."""
    def init(self, count):
        self.count = count
        self.missing = count
        self.bytes = 0
        self.phase = 0

    def arrive(self, count=1, of_bytes=0):
        """So many arrivals; and so many bytes more, or less, that are still to come."""
        self.missing -= count
        self.bytes += of_bytes
        assert self.missing >= 0, "a barrier has more arrivals than it expects"
        if self.missing == 0 and self.bytes == 0:
            self.phase += 1
            self.missing = self.count

    def passed(self, parity):
        return self.phase % 2 != parity

class Shared:
    """Tiles in shared memory, or barriers. Products and copies see its tensor."""
    def __init__(self, data):
        self.data = data
        if isinstance(data, torch.Tensor):
            self.dtype = data.dtype
            self.shape = data.shape

    def index(self, i):
        part = self.data[i]
        return part if isinstance(part, Barrier) else Shared(part)

    def permute(self, order):
        return Shared(self.data.permute(order))

class Descriptor:
    """A TMA descriptor of a matrix x. What a tile has outside it is 0."""
    def __init__(self, x):
        self.x = x
        self.dtype = x.dtype
        self.layout = None

    def tile(self, row, column, shape):
        tile = torch.zeros(shape, dtype=self.dtype)
        part = self.x[row:row + shape[0], column:column + shape[1]]
        tile[:part.size(0), :part.size(1)] = part
        return tile

class Pointer:
    """Pointers into a tensor, as many as offset has."""
    def __init__(self, x, offset=0):
        self.x = x.view(-1)
        self.offset = offset

    def __add__(self, offset):
        return Pointer(self.x, self.offset + offset)

    def load(self):
        assert (self.offset >= 0).all()
        return self.x[self.offset]

    def store(self, value, mask):
        mask = mask.expand(value.shape)
        self.x[self.offset.expand(value.shape)[mask]] = value[mask]

class Product:
    """A warpgroup_mma that runs. It has no arithmetic: only the wait turns it into a tensor."""
    def __init__(self, compute):
        self.compute = compute
        self.at_start = compute()

    def end(self):
        assert torch.equal(self.compute(), self.at_start), "a tile has changed while a product read it"
        return self.at_start

# --------------------------------------------------------------------------------------------------

def _language(place, grid, scheduler):
    """`gl` for one program of the grid."""
    def binary(f):
        return lambda a, b: f(torch.as_tensor(a), torch.as_tensor(b))

    def allocate(dtype, shape, layout):
        if dtype == torch.int64:
            return Shared([Barrier() for _ in range(shape[0])])
        return Shared(torch.full(shape, torch.nan, dtype=dtype))

    def warp_specialize(functions_and_arguments, warps, registers):
        scheduler.run(functions_and_arguments)

    def layout(*_):
        return None

    return SimpleNamespace(
        float32=torch.float32, int64=torch.int64, constexpr=lambda value: value, static_range=range,
        BlockedLayout=layout, SliceLayout=layout, DotOperandLayout=layout, NVMMADistributedLayout=layout,
        program_id=lambda axis: torch.tensor(place[axis]), num_programs=lambda axis: grid[axis],
        arange=lambda begin, end, layout: torch.arange(begin, end),
        full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
        zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
        convert_layout=lambda x, layout: x, cdiv=lambda a, b: -(-a // b),
        minimum=binary(torch.minimum), maximum=binary(torch.maximum), where=torch.where,
        exp2=torch.exp2, log2=torch.log2, sum=torch.sum, max=torch.amax, min=torch.amin,
        load=Pointer.load, store=lambda pointer, value, mask: pointer.store(value, mask),
        allocate_shared_memory=allocate, warp_specialize=warp_specialize)

def _hopper(scheduler):
    """The other names that a kernel of Hopper uses."""
    def wait(barrier, parity):
        scheduler.pause(lambda: barrier.passed(parity))

    def arrive(barrier, count):
        barrier.arrive(count)
        scheduler.pause()

    def expect(barrier, of_bytes):
        barrier.arrive(1, of_bytes)

    def load_tile(descriptor, place, barrier, tile):
        tile.data.fill_(torch.nan)

        def deliver():
            tile.data.copy_(descriptor.tile(*(int(x) for x in place), tile.shape))
            barrier.arrive(0, -2 * tile.data.numel()) # as if of 16 bits, whatever it is tested with

        scheduler.copies.append(deliver)
        scheduler.pause()

    def warpgroup_mma(a, b, acc, use_acc=True, is_async=False):
        assert is_async

        def compute():
            x = a.data if isinstance(a, Shared) else a
            y = x.float() @ b.data.float()
            return acc + y if use_acc else y

        product = Product(compute)
        scheduler.running.products.append(product)
        scheduler.pause()
        return product

    def warpgroup_mma_wait(remaining, products):
        running = scheduler.running.products
        ended = running[:len(running) - remaining]
        assert all(product in ended for product in products), "a product is used that may still run"
        scheduler.pause()
        for product in ended:
            product.end()
        del running[:len(ended)]
        results = tuple(product.at_start for product in products)
        return results if len(results) > 1 else results[0]

    barriers = SimpleNamespace(init=Barrier.init, wait=wait, arrive=arrive, expect=expect, MBarrierLayout=lambda: None)
    return {'mbarrier': barriers, 'load_tile': load_tile, 'warpgroup_mma': warpgroup_mma,
            'warpgroup_mma_wait': warpgroup_mma_wait}

def _jit(f=None, **options):
    return f or _jit

def execute(functions, grid, arguments, constants, seed=0, edit=lambda source: source):
    """Runs every program of a grid, one after the other.

    functions: the kernel's jit functions, itself the last. arguments: in the kernel's order. edit
    changes the source first. Raises AssertionError for what would go wrong on a GPU.
    """
    source = '\n'.join(textwrap.dedent(inspect.getsource(f.fn)) for f in functions)
    code = compile(edit(source), 'kernel', 'exec')
    for x in range(grid[0]):
        for y in range(grid[1]):
            scheduler = Scheduler(seed)
            names = {'gluon': SimpleNamespace(jit=_jit), **constants, **_hopper(scheduler)}
            names['gl'] = _language((x, y), grid, scheduler)
            exec(code, names)
            names[functions[-1].fn.__name__](*arguments)
