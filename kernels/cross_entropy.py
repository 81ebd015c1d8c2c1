"""
Linear cross-entropy: the head's matrix product and the loss in one, without the (n, V) logits.

    python -m kernels.cross_entropy       checks the losses against the definition, then times both

For a row x of C channels, the head W (Vp, C), whose rows from V on are padding, and a target y:

    z    = W x   (-inf where padded)     p  = softmax(z)
    loss = log(sum(exp(z))) - z[y]       dz = p - onehot(y),  dx = g W' dz,  dW += dz (g x)'
    with a softcap c (Gemma2):           z  = c tanh(W x / c),  dz gains 1 - tanh(W x / c)^2

where g is the gradient of this row's loss. The rows are processed in chunks of ROWS: a GEMM makes
the logits, one pass over them writes dz in their place (Triton; plain torch on a CPU), and two more
GEMMs make dx and dW. So only one chunk of logits is alive at a time, never (n, V).

    linear_cross_entropy_sum   the sum, for training: g is one number, so the forward already
                               computes the gradients. 6 n V C operations
    linear_cross_entropy       a loss a row, for any later weights (DPO, scoring): the backward
                               computes z again. 8 n V C operations

Statistics and dW are float32; the products run in the autocast dtype where autocast is on. A row
whose target is -100 has loss 0 and no gradient. Padded columns have p = 0, hence no gradient.
"""
import torch
import torch.nn.functional as F

from kernels.gpu import runs_triton

try:
    import triton
    import triton.language as tl
except ImportError: # e.g. macOS
    triton = None

IGNORED = -100
# Rows of a chunk: 512 x 2,560 floats still fit a CPU's cache; a GPU needs large products.
ROWS = {'cpu': 512, 'cuda': 4096}
# The columns that the Triton kernel reads at a time, and its warps.
BLOCK, WARPS = 8192, 16


def linear_cross_entropy_ref(x, weight, targets, vocab_size, softcap=0.0):
    """The definition, in torch: x (n, C), weight (Vp, C), targets (n,) -> losses (n,), at least float32."""
    logits = x @ weight[:vocab_size].T # (n, V)
    logits = logits.to(torch.promote_types(x.dtype, torch.float32))
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction='none')

# --------------------------------------------------------------------------------------------------
# A chunk pass takes logits z (rows, Vp) and returns losses (rows,) and stats (rows, 2): the largest
# z of a row, and log(sum(exp(z - largest))). They are kept apart because p = exp(z - largest - log)
# loses nothing, while their sum would be rounded. With grad_logits, a pass also replaces z by dz.

def _pass_torch(z, targets, stats, vocab_size, softcap, grad_logits):
    """A chunk pass in torch. log_softmax needs no stats: those passed are returned, or zeros."""
    z_fp32 = z.to(torch.promote_types(z.dtype, torch.float32))
    if softcap:
        tanh = torch.tanh(z_fp32 / softcap)
        z_fp32 = tanh * softcap
    z_fp32[:, vocab_size:] = -torch.inf # slicing them off would cost the GEMM its alignment
    ignored = targets == IGNORED
    y = targets.masked_fill(ignored, 0)[:, None] # (rows, 1)
    logp = z_fp32.log_softmax(1)
    losses = -logp.gather(1, y)[:, 0].masked_fill(ignored, 0.0)
    if grad_logits:
        # The 1 is subtracted before p is rounded, because p[y] of a good model is near 1.
        dz = logp.exp_().scatter_add_(1, y, torch.full_like(y, -1, dtype=logp.dtype))
        if softcap:
            dz *= tanh.square_().neg_().add_(1)
        z.copy_(dz.masked_fill_(ignored[:, None], 0.0))
    if stats is None:
        stats = z_fp32.new_zeros(len(z), 2)
    return losses, stats

if triton is not None:
    LOG2E = tl.constexpr(1.4426950408889634) # exp(x) = exp2(x LOG2E), and exp2 is what a GPU has
    PER_THREAD = tl.constexpr(8) # neighbouring columns: 16 bytes, which a thread reads at once

    @triton.jit
    def _capped(z, softcap, CAP: tl.constexpr):
        """-> z, or with CAP its softcap, and the tanh in it, which Triton's interpreter lacks."""
        tanh = z
        if CAP:
            e = tl.exp2(tl.abs(z) * (-2.0 * LOG2E / softcap))
            tanh = 1.0 - 2.0 * e / (1.0 + e) # in this form only the last rounding is large
            tanh = tl.where(z < 0, -tanh, tanh)
            z = softcap * tanh
        return z, tanh

    @triton.jit
    def _pass(z_ptr, y_ptr, loss_ptr, stats_ptr, V, Vp, softcap, CAP: tl.constexpr, STATS: tl.constexpr,
              GRAD_LOGITS: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64) # one program a row; int64, as row * Vp can exceed 2**31
        z_ptr += row * Vp
        y = tl.load(y_ptr + row).to(tl.int32)
        used = y != -100 # an ignored row is not read
        inside = tl.minimum(tl.maximum(y, 0), V - 1) # a target outside the vocabulary gives an infinite loss
        # Each row of this array is a thread's, which keeps a largest z and a sum of its own.
        columns = tl.arange(0, BLOCK // PER_THREAD)[:, None] * PER_THREAD + tl.arange(0, PER_THREAD)[None, :]
        # Only the blocks from edges[1] on reach V. Memory is masked by Vp, which 16 divides: by V it
        # would be read 2 bytes at a time.
        edges = (0, V // BLOCK * BLOCK, Vp)
        if STATS:
            largest = tl.full((BLOCK // PER_THREAD,), -1e30, tl.float32) # finite: -inf - -inf is NaN
            total = tl.zeros((BLOCK // PER_THREAD,), tl.float32)
            for part in tl.static_range(2):
                for start in range(edges[part], tl.where(used, edges[part + 1], 0), BLOCK):
                    c = start + columns # log(sum(exp(z))), online
                    z, _ = _capped(tl.load(z_ptr + c, mask=c < Vp, other=0.0).to(tl.float32), softcap, CAP)
                    if part == 1:
                        z = tl.where(c < V, z, -float('inf'))
                    new_largest = tl.maximum(largest, tl.max(z, 1))
                    total = total * tl.exp2((largest - new_largest) * LOG2E)
                    total += tl.sum(tl.exp2((z - new_largest[:, None]) * LOG2E), 1)
                    largest = new_largest
            row_largest = tl.max(largest, 0)
            row_total = tl.sum(total * tl.exp2((largest - row_largest) * LOG2E), 0)
            log_total = tl.log(tl.where(used, row_total, 1.0))
            row_largest = tl.where(used, row_largest, 0.0)
            tl.store(stats_ptr + 2 * row, row_largest)
            tl.store(stats_ptr + 2 * row + 1, log_total)
        else:
            row_largest = tl.load(stats_ptr + 2 * row)
            log_total = tl.load(stats_ptr + 2 * row + 1)
        zy, tanh_y = _capped(tl.load(z_ptr + inside).to(tl.float32), softcap, CAP)
        loss = tl.where(y == inside, row_largest - zy + log_total, float('inf'))
        tl.store(loss_ptr + row, tl.where(used, loss, 0.0))
        if GRAD_LOGITS:
            tl.debug_barrier() # all threads must have read z[y] before one writes dz there
            read_end = tl.where(used, Vp, 0)
            log_norm = tl.where(used, log_total, float('inf')) # an ignored row has p = 0
            for part in tl.static_range(2):
                for start in range(edges[part], edges[part + 1], BLOCK):
                    c = start + columns
                    z, tanh = _capped(tl.load(z_ptr + c, mask=c < read_end, other=0.0).to(tl.float32), softcap, CAP)
                    if part == 1:
                        z = tl.where(c < V, z, -float('inf'))
                    dz = tl.exp2((z - row_largest - log_norm) * LOG2E)
                    if CAP:
                        dz *= 1.0 - tanh * tanh
                    tl.store(z_ptr + c, dz, mask=c < Vp)
            tl.debug_barrier() # the target's dz, less by 1, replaces what the loop wrote there
            dz = tl.exp2((zy - row_largest - log_total) * LOG2E) - 1.0
            if CAP:
                dz *= 1.0 - tanh_y * tanh_y
            tl.store(z_ptr + inside, dz, mask=used & (y == inside))

def _pass_triton(z, targets, stats, vocab_size, softcap, grad_logits):
    losses = z.new_empty(len(z), dtype=torch.float32)
    needs_stats = stats is None
    if needs_stats:
        stats = z.new_empty(len(z), 2, dtype=torch.float32)
    with torch.cuda.device_of(z): # Triton launches on the current device
        _pass[(len(z),)](z, targets, losses, stats, vocab_size, z.size(1), softcap,
                         CAP=softcap > 0, STATS=needs_stats, GRAD_LOGITS=grad_logits, BLOCK=BLOCK,
                         num_warps=WARPS, num_stages=2)
    return losses, stats

def _passes(device):
    """The chunk pass of a device. Tests replace it where they run Triton's interpreter."""
    return _pass_triton if runs_triton(device) else _pass_torch

# --------------------------------------------------------------------------------------------------
# Operators are opaque to torch.compile, so that it sees the same code path everywhere.

def _product(a, b, dtype, total=None):
    """a b in dtype (at least float32), added to total in place where there is one.

    On a GPU the GEMM itself returns dtype. In 16 bits cuBLAS may split a long sum and round its
    parts too, as torch allows by default. For out_dtype with float32 totals torch must be >= 2.10.
    """
    if a.is_cuda and a.dtype != dtype:
        if total is None:
            return torch.mm(a, b, out_dtype=dtype)
        return torch.addmm(total, a, b, out_dtype=dtype, out=total)
    product = (a @ b).to(dtype)
    return product if total is None else total.add_(product)

def _chunks(x, targets):
    """The row indices of each chunk. On a CPU ignored rows are left out before they cost a product;
    on a GPU counting them would need a host sync."""
    rows = ROWS.get(x.device.type, 4096)
    if x.device.type == 'cpu' and (targets == IGNORED).any():
        return (targets != IGNORED).nonzero()[:, 0].split(rows)
    return [slice(start, start + rows) for start in range(0, len(x), rows)]

def _losses(x, weight, targets, vocab_size, softcap):
    """losses (n,) and stats (n, 2) of x (n, C), weight (Vp, C), targets (n,); 0 where ignored."""
    fp32 = torch.promote_types(x.dtype, torch.float32)
    losses = x.new_zeros(len(x), dtype=fp32)
    stats = x.new_zeros(len(x), 2, dtype=fp32)
    for rows in _chunks(x, targets):
        z = x[rows] @ weight.T # (rows, Vp)
        losses[rows], stats[rows] = _passes(x.device)(z, targets[rows], None, vocab_size, softcap, False)
    return losses, stats

def _gradients(x, weight, targets, stats, g, vocab_size, softcap):
    """losses (n,), dx (n, C) and dW (Vp, C).

    g (n,): the gradients of the losses; None: all 1. stats: those of _losses; None: computed here.
    """
    fp32 = torch.promote_types(x.dtype, torch.float32)
    losses = x.new_zeros(len(x), dtype=fp32)
    dx = torch.zeros_like(x)
    dw = None
    for rows in _chunks(x, targets):
        x_chunk = x[rows] # (rows, C)
        z = x_chunk @ weight.T # (rows, Vp)
        chunk_stats = None if stats is None else stats[rows]
        losses[rows], _ = _passes(x.device)(z, targets[rows], chunk_stats, vocab_size, softcap, True)
        dx_chunk = _product(z, weight, fp32)
        if g is not None: # scaling rows of C channels is cheaper than scaling rows of V logits
            dx_chunk *= g[rows, None]
            x_chunk = (x_chunk * g[rows, None]).to(x.dtype)
        dx[rows] = dx_chunk.to(x.dtype)
        dw = _product(z.T, x_chunk, fp32, dw)
    if dw is None: # there are no rows
        dw = torch.zeros_like(weight, dtype=fp32)
    return losses, dx, dw

def _fake_losses(x, weight, targets, vocab_size, softcap):
    fp32 = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(len(x), dtype=fp32), x.new_empty(len(x), 2, dtype=fp32)

def _fake_gradients(x, weight, targets, stats, g, vocab_size, softcap):
    fp32 = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(len(x), dtype=fp32), torch.empty_like(x), torch.empty_like(weight, dtype=fp32)

_library = torch.library.Library('nanoslm', 'FRAGMENT') # lives as long as the operators

def _define_operator(name, schema, implementation, fake):
    _library.define(name + schema)
    _library.impl(name, implementation, 'CompositeExplicitAutograd')
    torch.library.register_fake(f'nanoslm::{name}', fake, lib=_library)

_define_operator(
    'cross_entropy',
    "(Tensor x, Tensor weight, Tensor targets, int vocab_size, float softcap) -> (Tensor, Tensor)",
    _losses, _fake_losses)
_define_operator(
    'cross_entropy_gradients',
    "(Tensor x, Tensor weight, Tensor targets, Tensor? stats, Tensor? g, int vocab_size, float softcap) "
    "-> (Tensor, Tensor, Tensor)",
    _gradients, _fake_gradients)
_ops = torch.ops.nanoslm

class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, vocab_size, softcap, dtype):
        ctx.dtypes = x.dtype, weight.dtype
        ctx.head = vocab_size, softcap
        x = x.to(dtype)
        weight = weight.to(dtype)
        losses, stats = _ops.cross_entropy(x, weight, targets, vocab_size, softcap)
        ctx.save_for_backward(x, weight, targets, stats)
        return losses

    @staticmethod
    def backward(ctx, g):
        _, dx, dw = _ops.cross_entropy_gradients(*ctx.saved_tensors, g, *ctx.head)
        return dx.to(ctx.dtypes[0]), dw.to(ctx.dtypes[1]), None, None, None, None

class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, vocab_size, softcap, dtype):
        ctx.dtypes = x.dtype, weight.dtype
        x = x.to(dtype)
        weight = weight.to(dtype)
        if any(ctx.needs_input_grad):
            losses, dx, dw = _ops.cross_entropy_gradients(x, weight, targets, None, None, vocab_size, softcap)
            ctx.save_for_backward(dx, dw)
        else:
            losses, _ = _ops.cross_entropy(x, weight, targets, vocab_size, softcap)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, g, _):
        # The product itself casts to the output's dtype: a float32 copy of dW is 2 GB at 7B. Not in
        # place even in float32, because a graph that is retained has another backward.
        dx, dw = (torch.mul(grad, g, out=torch.empty_like(grad, dtype=dtype))
                  for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes))
        return dx, dw, None, None, None, None

# --------------------------------------------------------------------------------------------------

def linear_cross_entropy(x, weight, targets, vocab_size, softcap=0.0):
    """The definition in chunks: x (n, C), weight (Vp, C), targets (n,) -> losses (n,), 0 where ignored."""
    return _apply(_Rows, x, weight, targets, vocab_size, softcap)

def linear_cross_entropy_sum(x, weight, targets, vocab_size, softcap=0.0):
    """-> the sum () of linear_cross_entropy's losses, and the losses (n,) without a gradient."""
    return _apply(_Sum, x, weight, targets, vocab_size, softcap)

def _apply(function, x, weight, targets, vocab_size, softcap):
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        return function.apply(x, weight, targets, vocab_size, softcap, dtype)

def aot(sm):
    """All that can be launched, in bf16, for bench/aot.py: as aot of kernels/attention.py."""
    types = {'z_ptr': '*bf16', 'y_ptr': '*i64', 'loss_ptr': '*fp32', 'stats_ptr': '*fp32', 'V': 'i32',
             'Vp': 'i32:16', 'softcap': 'fp32'}
    compile_options = {'num_warps': WARPS, 'num_stages': 2}
    # One loss per row, the sum, and the backward of one loss per row.
    for stats, grad_logits in ((True, False), (True, True), (False, True)):
        for cap in (False, True):
            name = f"cross-entropy{' statistics' * stats}{' slopes' * grad_logits}{' soft-cap' * cap}"
            constants = dict(CAP=cap, STATS=stats, GRAD_LOGITS=grad_logits, BLOCK=BLOCK)
            yield name, _pass, types, constants, compile_options

# --------------------------------------------------------------------------------------------------

def _sum_of_chunks(x, weight, targets, vocab_size):
    return linear_cross_entropy_sum(x, weight, targets, vocab_size)[0]

def _main():
    from torch.utils.benchmark import Timer
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    n, C, V = (8192, 896, 152167) if device == 'cuda' else (4096, 256, 2503)
    generator = torch.Generator().manual_seed(0)
    Vp = -(-V // 256) * 256
    weight = (0.02 * torch.randn(Vp, C, generator=generator)).to(device)
    x = torch.randn(n, C, generator=generator).to(device)
    targets = torch.randint(V, (n,), generator=generator).to(device)
    implementations = {'torch': linear_cross_entropy_ref, 'chunks, a loss a row': linear_cross_entropy,
                       'chunks, the sum': _sum_of_chunks}
    threads = torch.get_num_threads()
    print(f"{device}, n {n}, C {C}, V {V}, {threads} threads\n")
    print("| implementation | dtype | forward + backward, ms |\n|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (x, weight)]
        exact = linear_cross_entropy_ref(
            inputs[0][:512].double(), inputs[1].double(), targets[:512], V)
        ref_error, error = ((run(*inputs, targets, V)[:512] - exact).abs().max().item()
                            for run in (linear_cross_entropy_ref, linear_cross_entropy))
        allowed = 2 * ref_error + torch.finfo(dtype).eps
        assert error <= allowed, f"chunks: error {error:.2e}, expected at most {allowed:.2e}"
        for name, run in implementations.items():
            timer = Timer('run(*inputs).sum().backward()', num_threads=threads,
                          globals={'run': run, 'inputs': (*inputs, targets, V)})
            ms = min(timer.blocked_autorange(min_run_time=1).times) * 1e3
            print(f"| {name} | {str(dtype)[6:]} | {ms:.1f} |")

if __name__ == '__main__':
    _main()
