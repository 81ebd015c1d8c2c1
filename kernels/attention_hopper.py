"""
The forward of causal attention over packed documents, for Hopper alone (sm_90), in Gluon.

It computes what the Triton forward of kernels/attention.py computes, o and lse, for heads of 128
channels without soft-cap and ALiBi. In Triton all warps of a program do the same thing, so its
tensor cores wait while the warps compute a softmax. In Gluon, the language below it, a program
gives its warps different work (FlashAttention-3, 2407.08608):

    one warp         fetches the tiles of k and v by TMA, up to STAGES ahead
    two consumers    of four warps, each with half of the BM queries. While one computes a softmax,
                     the products of the other run; they take turns

A consumer's turn starts two products, q.k of a block of keys and p.v of the block before it. The
softmax needs only the first of them, so it also runs beside the second.

Two kinds of mbarriers order this. A tile is `ready` when TMA has written all its bytes, and `free`
when both consumers have read it. `turns` holds one for each consumer, through which the other
passes the turn on. A barrier alternates between phase 0 and 1, so the n-th wait is for phase n % 2.

NOT YET RUN ON A GPU. It compiles for sm_90 with Triton 3.6 and 3.9, and tests/test_attention_hopper.py
executes this source with a model of the barriers and asynchronous copies, but nothing chooses it
unless it is asked for: --attention=hopper. docs/past_triton.md has the counts and what they predict.
"""
import torch

from configurator import Refused
from kernels.gpu import sm_of

try:
    import triton
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
except ImportError: # macOS, or a Triton without Gluon
    gluon = None

D = 128 # channels of a head
BM, BN, STAGES = 128, 128, 2 # queries and keys of a tile; tiles of k, and of v, in shared memory
# Registers of a thread: 168 at the start, as 65,536 / 384 threads allow. Then the warp that fetches
# gives up all but 24, so that the consumers get 240 each.
REGISTERS, REGISTERS_CONSUMER, REGISTERS_LOADER = 168, 240, 24

def check(device, channels, softcap=0.0, slopes=None):
    """Raises Refused where this kernel cannot compute what is asked for."""
    error = "attention backend 'hopper':"
    if gluon is None:
        raise Refused(f"{error} expected triton with triton.experimental.gluon; take 'triton'")
    if sm_of(device) != 90:
        raise Refused(f"{error} expected a GPU of compute capability 9.0, such as an H100; take 'triton'")
    if not 64 < channels <= D: # a softmax takes longer than the products of 64 channels, so they would wait for it
        raise Refused(f"{error} expected heads of 65 to 128 channels, got {channels}; take 'triton'")
    if softcap or slopes is not None:
        raise Refused(f"{error} it has no softcap and no ALiBi, which this model needs; take 'triton'")

if gluon is not None:
    LOG2E = gl.constexpr(1.4426950408889634) # exp(x) = exp2(x LOG2E), and exp2 is what a GPU has
    # Triton 3.9 renamed it. Both versions document it.
    load_tile = getattr(tma, 'async_load', None) or tma.async_copy_global_to_shared

    @gluon.jit
    def _new_barriers(n: gl.constexpr, arrivals: gl.constexpr):
        """-> n mbarriers, each of which completes a phase by so many arrivals."""
        barriers = gl.allocate_shared_memory(gl.int64, [n, 1], mbarrier.MBarrierLayout())
        for i in gl.static_range(n):
            mbarrier.init(barriers.index(i), count=arrivals)
        return barriers

    @gluon.jit
    def _block_range(doc_start, row, begin, window, T, BM: gl.constexpr, BN: gl.constexpr):
        """-> the first key that any query from begin on sees, and the blocks of keys from there on
        that need a mask, those before the next that does, and all of them."""
        t = begin + gl.arange(0, BM, gl.BlockedLayout([1], [32], [4], [0]))
        first = gl.maximum(gl.load(doc_start + row + gl.minimum(t, T - 1)), t - window + 1)
        low = gl.min(first, 0)
        blocks = gl.cdiv(gl.minimum(begin + BM, T) - low, BN)
        left = gl.minimum(gl.cdiv(gl.max(first, 0) - low, BN), blocks)
        diagonal = gl.maximum((begin + 1 - low) // BN, left)
        return low, left, diagonal, blocks

    @gluon.jit
    def _load(q, k, v, tiles, ready, free, row, begin, low, blocks, h, hk):
        """The warp that fetches: both halves of q once, then the tiles of k and v in turn."""
        q_tiles, k_tiles, v_tiles = tiles
        q_ready, k_ready, v_ready = ready
        k_free, v_free = free
        stages: gl.constexpr = k_tiles.shape[0]
        ROWS: gl.constexpr = q_tiles.shape[1]
        BN: gl.constexpr = k_tiles.shape[1]
        D: gl.constexpr = k_tiles.shape[2]
        for half in gl.static_range(2):
            mbarrier.expect(q_ready.index(half), ROWS * D * 2) # bytes
            load_tile(q, [row + begin + half * ROWS, h * D], q_ready.index(half), q_tiles.index(half))
        for block in range(blocks):
            stage = block % stages
            phase = block // stages % 2
            start = row + low + block * BN
            # Nobody has to free a tile before its first use: the phase before the first counts as over.
            mbarrier.wait(k_free.index(stage), 1 - phase)
            mbarrier.expect(k_ready.index(stage), BN * D * 2)
            load_tile(k, [start, hk * D], k_ready.index(stage), k_tiles.index(stage))
            mbarrier.wait(v_free.index(stage), 1 - phase)
            mbarrier.expect(v_ready.index(stage), BN * D * 2)
            load_tile(v, [start, hk * D], v_ready.index(stage), v_tiles.index(stage))

    @gluon.jit
    def _softmax(qk, m, total, t, first, start, scale, QK: gl.constexpr, MASKED: gl.constexpr):
        """Takes up q.k of the keys from start on -> p, the new maximum m and total, and the factor by
        which all that was summed before shrinks."""
        if MASKED:
            j = start + gl.arange(0, qk.shape[1], gl.SliceLayout(0, QK))
            seen = (j[None, :] <= t[:, None]) & (j[None, :] >= first[:, None])
            qk = gl.where(seen, qk, -float('inf'))
        new_m = gl.maximum(m, gl.max(qk, 1) * scale)
        p = gl.exp2(qk * scale - new_m[:, None])
        shrink = gl.exp2(m - new_m)
        return p, new_m, total * shrink + gl.sum(p, 1), shrink

    @gluon.jit
    def _store(o, tile, row, begin, h, H, T, PV: gl.constexpr):
        """Writes a tile of one head into o (B, T, H, D), from the query begin of the row on."""
        D: gl.constexpr = tile.shape[1]
        t = begin + gl.arange(0, tile.shape[0], gl.SliceLayout(1, PV))
        d = gl.arange(0, D, gl.SliceLayout(0, PV))
        o += row.to(gl.int64) * (H * D) + h * D
        gl.store(o + t[:, None] * (H * D) + d[None, :], tile, mask=(t < T)[:, None])

    @gluon.jit
    def _consume(shared, edges, place, o, lse, doc_start, scale, window, HALF: gl.constexpr):
        """A consumer: o and lse of the first or second half of the queries."""
        tiles, ready, free, turns = shared
        row, begin, h, H, T = place
        q_tiles, k_tiles, v_tiles = tiles
        q_ready, k_ready, v_ready = ready
        k_free, v_free = free
        low, left, diagonal, blocks = edges
        stages: gl.constexpr = k_tiles.shape[0]
        ROWS: gl.constexpr = q_tiles.shape[1]
        BN: gl.constexpr = k_tiles.shape[1]
        D: gl.constexpr = k_tiles.shape[2]
        QK: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
        PV: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
        P: gl.constexpr = gl.DotOperandLayout(0, PV, 2) # p stays in the registers that q.k was in
        t = begin + HALF * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, QK))
        first = gl.maximum(gl.load(doc_start + row + gl.minimum(t, T - 1)), t - window + 1)
        # The maximum begins finite: where a query sees no key of a block, exp2(-inf - m) is 0.
        m = gl.full([ROWS], -1e30, gl.float32, gl.SliceLayout(1, QK))
        total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, QK))
        acc = gl.zeros([ROWS, D], gl.float32, PV)
        zero = gl.zeros([ROWS, BN], gl.float32, QK)
        q_tile = q_tiles.index(HALF)
        mbarrier.wait(q_ready.index(HALF), 0)
        mbarrier.wait(k_ready.index(0), 0)
        k_tile = k_tiles.index(0).permute((1, 0))
        qk = warpgroup_mma(q_tile, k_tile, zero, use_acc=False, is_async=True)
        qk = warpgroup_mma_wait(0, [qk])
        mbarrier.arrive(k_free.index(0), count=1)
        p, m, total, shrink = _softmax(qk, m, total, t, first, low, scale, QK, True)
        p = gl.convert_layout(p.to(v_tiles.dtype), P)
        mbarrier.wait(v_ready.index(0), 0)
        if HALF == 0:
            mbarrier.arrive(turns.index(0), count=1) # the first turn is its own
        for part in gl.static_range(3): # left edge, interior, diagonal
            for block in range(gl.maximum(edges[part] if part > 0 else 1, 1), edges[part + 1]):
                stage = block % stages
                phase = block // stages % 2
                before = (block - 1) % stages
                mbarrier.wait(k_ready.index(stage), phase)
                mbarrier.wait(turns.index(HALF), (block - 1) % 2)
                k_tile = k_tiles.index(stage).permute((1, 0))
                qk = warpgroup_mma(q_tile, k_tile, zero, use_acc=False, is_async=True)
                acc = warpgroup_mma(p, v_tiles.index(before), acc, is_async=True)
                mbarrier.arrive(turns.index(1 - HALF), count=1)
                qk = warpgroup_mma_wait(1, [qk])
                mbarrier.arrive(k_free.index(stage), count=1)
                start = low + block * BN
                p32, m, total, shrink = _softmax(qk, m, total, t, first, start, scale, QK, part != 1)
                # Waiting for v here, not where it is used, keeps the softmax above the wait for p.v.
                mbarrier.wait(v_ready.index(stage), phase)
                acc = warpgroup_mma_wait(0, [acc])
                mbarrier.arrive(v_free.index(before), count=1)
                p = gl.convert_layout(p32.to(v_tiles.dtype), P)
                acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, PV))[:, None]
        acc = warpgroup_mma(p, v_tiles.index((blocks - 1) % stages), acc, is_async=True)
        acc = warpgroup_mma_wait(0, [acc])
        gl.store(lse + gl.program_id(0) * T + t, m + gl.log2(total), mask=t < T)
        acc = acc / gl.convert_layout(total, gl.SliceLayout(1, PV))[:, None]
        _store(o, acc.to(v_tiles.dtype), row, begin + HALF * ROWS, h, H, T, PV)

    @gluon.jit(do_not_specialize=['window', 'T', 'H', 'HK']) # a 1 among them would become a constant
    def _forward(q, k, v, doc_start, o, lse, scale, window, T, H, HK, D: gl.constexpr, BM: gl.constexpr,
                 BN: gl.constexpr, STAGES: gl.constexpr, CONSUMER: gl.constexpr, LOADER: gl.constexpr):
        h = gl.program_id(0) % H
        row = gl.program_id(0) // H * T
        # The last queries of a row see most keys: they go first.
        begin = (gl.num_programs(1) - 1 - gl.program_id(1)) * BM
        edges = _block_range(doc_start, row, begin, window, T, BM, BN)
        q_tiles = gl.allocate_shared_memory(q.dtype, [2, BM // 2, D], q.layout)
        k_tiles = gl.allocate_shared_memory(k.dtype, [STAGES, BN, D], k.layout)
        v_tiles = gl.allocate_shared_memory(v.dtype, [STAGES, BN, D], v.layout)
        tiles = (q_tiles, k_tiles, v_tiles)
        ready = (_new_barriers(2, 1), _new_barriers(STAGES, 1), _new_barriers(STAGES, 1))
        free = (_new_barriers(STAGES, 2), _new_barriers(STAGES, 2))
        turns = _new_barriers(2, 1)
        shared = (tiles, ready, free, turns)
        place = (row, begin, h, H, T)
        scale *= LOG2E
        gl.warp_specialize([
            (_consume, (shared, edges, place, o, lse, doc_start, scale, window, gl.constexpr(0))),
            (_consume, (shared, edges, place, o, lse, doc_start, scale, window, gl.constexpr(1))),
            (_load, (q, k, v, tiles, ready, free, row, begin, edges[0], edges[3], h, h * HK // H))],
            [4, 1], [CONSUMER, LOADER])

def specialization():
    """What the kernel is compiled for: its constants, and Gluon's options."""
    constants = dict(D=D, BM=BM, BN=BN, STAGES=STAGES, CONSUMER=REGISTERS_CONSUMER, LOADER=REGISTERS_LOADER)
    return constants, {'num_warps': 4, 'maxnreg': REGISTERS, 'enable_fp_fusion': True}

def tile_rows():
    """The tokens that one copy by TMA fetches of each tensor."""
    return {'q': BM // 2, 'k': BN, 'v': BN}

def layout():
    """How a tile stands in shared memory: swizzled in rows of 128 bytes."""
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)

def launch(q, k, v, doc_start, o, lse, scale, window, HK):
    """q (B T, H D), k and v (B T, HK D), their last stride 1, doc_start (B, T) int32; writes o
    (B, T, H, D) and lse (B, H, T). D is 128, padded where the heads have fewer channels."""
    B, T, H, _ = o.shape
    constants, options = specialization()
    descriptors = []
    for x, rows in zip((q, k, v), tile_rows().values()):
        descriptors.append(TensorDescriptor(x, [*x.shape], [*x.stride()], [rows, D], layout()))
    with torch.cuda.device_of(q): # Triton launches on the current device
        _forward[B * H, triton.cdiv(T, BM)](
            *descriptors, doc_start, o, lse, scale, window or T, T, H, HK, **constants, **options)
