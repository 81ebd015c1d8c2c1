"""
Linear cross-entropy: the head's matrix product and the loss in one, without the (n, V) logits. For a row x of C
channels, the head W (Vp, C) whose rows from V on are padding, and a target y:

    z    = W x   (-inf where padded)     p  = softmax(z)
    loss = log(sum(exp(z))) - z[y]       dz = p - onehot(y),  dx = g W' dz,  dW += dz (g x)'
    with a softcap c (Gemma2):           z  = c tanh(W x / c),  dz gains a factor 1 - tanh(W x / c)^2

with g the gradient of this row's loss. The rows are taken ROWS at a time: logits by a GEMM, then one pass over them that
leaves dz in their place (Triton; plain torch on a CPU), then two GEMMs. So one chunk of logits is alive, never (n, V).

    linear_cross_entropy_sum   the sum, for training: g is one number, so the slopes are made in the forward: 6 n V C
    linear_cross_entropy       a loss a row, for any later weights (DPO, scoring): the backward makes z again: 8 n V C

Statistics and dW are float32; the products run in the autocast dtype where autocast is on. A row whose target is -100
has loss 0 and no gradient. Padded columns have p = 0, hence no gradient.

    python kernels/cross_entropy.py       checks both against the definition, then times them
"""
import time

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError: # e.g. macOS
    triton = None

IGNORED = -100
ROWS = {'cpu': 512, 'cuda': 4096} # a chunk: 512 x 2,560 floats still fit a CPU's cache; a GPU wants large products
BLOCK, WARPS = 4096, 8 # columns at a time of the Triton kernel


def linear_cross_entropy_ref(x, weight, targets, vocab_size, softcap=0.0):
    """The definition, in torch: x (n, C), weight (Vp, C), targets (n,) -> losses (n,), float32 at least."""
    logits = x @ weight[:vocab_size].T # (n, V)
    logits = logits.to(torch.promote_types(x.dtype, torch.float32))
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction='none')

# ----------------------------------------------------------------------------------------------------------------
# a pass over a chunk of logits z (rows, Vp): losses, stats, and dz in the place of z. stats (rows, 2) are the largest z
# and log(sum(exp(z - largest))): apart, p = exp(z - largest - log) loses nothing where their sum would round

def _pass_torch(z, targets, stats, vocab_size, softcap, slopes):
    wide, tanh = z.to(torch.promote_types(z.dtype, torch.float32)), None
    if softcap:
        tanh = torch.tanh(wide / softcap)
        wide = tanh * softcap
    wide[:, vocab_size:] = -torch.inf # sliced off instead, the GEMM would lose its alignment
    ignored = targets == IGNORED
    y = targets.masked_fill(ignored, 0)[:, None] # (rows, 1)
    logp = wide.log_softmax(1) # one call in torch: stats would save nothing
    losses = -logp.gather(1, y)[:, 0].masked_fill(ignored, 0.0)
    if slopes:
        # the one is subtracted before p is rounded, as p[y] of a good model is near 1
        dz = logp.exp_().scatter_add_(1, y, torch.full_like(y, -1, dtype=logp.dtype))
        if softcap:
            dz *= tanh.square_().neg_().add_(1)
        z.copy_(dz.masked_fill_(ignored[:, None], 0.0))
    return losses, wide.new_zeros(len(z), 2) if stats is None else stats

if triton is not None:
    @triton.jit
    def _capped(z, softcap, CAP: tl.constexpr):
        """z or its softcap, and the softcap's tanh; there is no tanh of tl that the interpreter knows."""
        tanh = z
        if CAP:
            e = tl.exp(-2.0 * tl.abs(z) / softcap)
            tanh = 1.0 - 2.0 * e / (1.0 + e) # in this form the last rounding is the only large one
            tanh = tl.where(z < 0, -tanh, tanh)
            z = softcap * tanh
        return z, tanh

    @triton.jit
    def _pass(z_ptr, y_ptr, loss_ptr, stats_ptr, V, Vp, softcap, CAP: tl.constexpr, STATS: tl.constexpr,
              SLOPES: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64) # one program a row; int64, as row * Vp can pass 2**31
        y = tl.load(y_ptr + row)
        z_ptr += row * Vp
        columns = tl.arange(0, BLOCK)
        used = tl.where(y == -100, 0, V) # an ignored row is not read
        if STATS:
            top = tl.full((), -float('inf'), tl.float32)
            total = tl.zeros((), tl.float32)
            for start in range(0, used, BLOCK): # log(sum(exp(z))), online
                c = start + columns
                z, _ = _capped(tl.load(z_ptr + c, mask=c < V, other=0.0).to(tl.float32), softcap, CAP)
                z = tl.where(c < V, z, -float('inf'))
                higher = tl.maximum(top, tl.max(z, 0))
                total = total * tl.exp(top - higher) + tl.sum(tl.exp(z - higher), 0)
                top = higher
            rest = tl.log(tl.where(y == -100, 1.0, total))
            top = tl.where(y == -100, 0.0, top)
            tl.store(stats_ptr + 2 * row, top)
            tl.store(stats_ptr + 2 * row + 1, rest)
        else:
            top, rest = tl.load(stats_ptr + 2 * row), tl.load(stats_ptr + 2 * row + 1)
        zy, _ = _capped(tl.load(z_ptr + tl.maximum(y, 0)).to(tl.float32), softcap, CAP)
        tl.store(loss_ptr + row, tl.where(y == -100, 0.0, top - zy + rest))
        if SLOPES:
            tl.debug_barrier() # all threads have read z[y] before one writes its slope there
            for start in range(0, Vp, BLOCK):
                c = start + columns
                z, tanh = _capped(tl.load(z_ptr + c, mask=c < used, other=0.0).to(tl.float32), softcap, CAP)
                dz = tl.exp(z - top - rest) - tl.where(c == y, 1.0, 0.0)
                if CAP:
                    dz *= 1.0 - tanh * tanh
                tl.store(z_ptr + c, tl.where(c < used, dz, 0.0), mask=c < Vp)

def _pass_triton(z, targets, stats, vocab_size, softcap, slopes):
    losses, made = z.new_empty(len(z), dtype=torch.float32), z.new_empty(len(z), 2, dtype=torch.float32)
    _pass[(len(z),)](z, targets, losses, made if stats is None else stats, vocab_size, z.size(1), softcap,
                     CAP=softcap > 0, STATS=stats is None, SLOPES=slopes, BLOCK=BLOCK, num_warps=WARPS, num_stages=2)
    return losses, made if stats is None else stats

def _passes(device):
    """The pass of a device. Under Triton's interpreter the tests set it."""
    return _pass_triton if device.type == 'cuda' and triton is not None else _pass_torch

# ----------------------------------------------------------------------------------------------------------------
# operators: opaque to torch.compile, so that it sees the same path everywhere

def _accumulate(total, a, b):
    """total (float32 at least) += a' b, the product summed in float32 inside the GEMM where torch can."""
    if a.is_cuda and a.dtype != total.dtype:
        torch.addmm(total, a.T, b, out_dtype=total.dtype, out=total)
    else:
        total += a.T @ b

def _chunks(x, targets):
    """Indices of rows, a chunk at a time. On a CPU ignored rows are left out before they cost a product; on a GPU their
    number would be a host sync."""
    rows = ROWS.get(x.device.type, 4096)
    if x.device.type == 'cpu' and (targets == IGNORED).any():
        return (targets != IGNORED).nonzero()[:, 0].split(rows)
    return [slice(first, first + rows) for first in range(0, len(x), rows)]

def _losses(x, weight, targets, vocab_size, softcap):
    """losses (n,) and stats (n, 2) of x (n, C), weight (Vp, C), targets (n,); 0 where ignored."""
    wide = torch.promote_types(x.dtype, torch.float32)
    losses, stats = x.new_zeros(len(x), dtype=wide), x.new_zeros(len(x), 2, dtype=wide)
    for rows in _chunks(x, targets):
        z = x[rows] @ weight.T # (rows, Vp)
        losses[rows], stats[rows] = _passes(x.device)(z, targets[rows], None, vocab_size, softcap, False)
    return losses, stats

def _slopes(x, weight, targets, stats, g, vocab_size, softcap):
    """losses (n,), dx (n, C) and dW (Vp, C) for row gradients g (n,), None: all 1. stats: of _losses, None: made here."""
    wide = torch.promote_types(x.dtype, torch.float32)
    losses, dx = x.new_zeros(len(x), dtype=wide), torch.zeros_like(x)
    dw = torch.zeros_like(weight, dtype=wide)
    for rows in _chunks(x, targets):
        part = x[rows] # (rows, C)
        z = part @ weight.T # (rows, Vp)
        losses[rows], _ = _passes(x.device)(z, targets[rows], None if stats is None else stats[rows], vocab_size, softcap, True)
        if g is None:
            dx[rows] = z @ weight
        else: # g scales rows of C here, not rows of V
            dx[rows] = (z @ weight * g[rows, None]).to(x.dtype)
            part = (part * g[rows, None]).to(x.dtype)
        _accumulate(dw, z, part)
    return losses, dx, dw

def _fake_losses(x, weight, targets, vocab_size, softcap):
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(len(x), dtype=wide), x.new_empty(len(x), 2, dtype=wide)

def _fake_slopes(x, weight, targets, stats, g, vocab_size, softcap):
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(len(x), dtype=wide), torch.empty_like(x), torch.empty_like(weight, dtype=wide)

_library = torch.library.Library('nanoslm', 'FRAGMENT') # lives as long as the operators
for _name, _does, _fake, _schema in [
        ('cross_entropy', _losses, _fake_losses,
         '(Tensor x, Tensor weight, Tensor targets, int vocab_size, float softcap) -> (Tensor, Tensor)'),
        ('cross_entropy_slopes', _slopes, _fake_slopes,
         '(Tensor x, Tensor weight, Tensor targets, Tensor? stats, Tensor? g, int vocab_size, float softcap)'
         ' -> (Tensor, Tensor, Tensor)')]:
    _library.define(_name + _schema)
    _library.impl(_name, _does, 'CompositeExplicitAutograd')
    torch.library.register_fake(f'nanoslm::{_name}', _fake, lib=_library)
_ops = torch.ops.nanoslm

class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, vocab_size, softcap, dtype):
        ctx.dtypes, ctx.head = (x.dtype, weight.dtype), (vocab_size, softcap)
        x, weight = x.to(dtype), weight.to(dtype)
        losses, stats = _ops.cross_entropy(x, weight, targets, vocab_size, softcap)
        ctx.save_for_backward(x, weight, targets, stats)
        return losses

    @staticmethod
    def backward(ctx, g):
        _, dx, dw = _ops.cross_entropy_slopes(*ctx.saved_tensors, g, *ctx.head)
        return dx.to(ctx.dtypes[0]), dw.to(ctx.dtypes[1]), None, None, None, None

class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, vocab_size, softcap, dtype):
        ctx.dtypes = x.dtype, weight.dtype
        x, weight = x.to(dtype), weight.to(dtype)
        if any(ctx.needs_input_grad):
            losses, dx, dw = _ops.cross_entropy_slopes(x, weight, targets, None, None, vocab_size, softcap)
            ctx.save_for_backward(dx, dw)
        else:
            losses, _ = _ops.cross_entropy(x, weight, targets, vocab_size, softcap)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, g, _):
        dx, dw = (torch.mul(x, g, out=torch.empty_like(x, dtype=dtype)) for x, dtype in zip(ctx.saved_tensors, ctx.dtypes))
        return dx, dw, None, None, None, None # cast in the product: a float32 copy of dW is 2 GB at 7B

# ----------------------------------------------------------------------------------------------------------------

def linear_cross_entropy(x, weight, targets, vocab_size, softcap=0.0):
    """The definition in chunks: x (n, C), weight (Vp, C), targets (n,) -> losses (n,), float32, 0 where ignored."""
    return _apply(_Rows, x, weight, targets, vocab_size, softcap)

def linear_cross_entropy_sum(x, weight, targets, vocab_size, softcap=0.0):
    """Their sum (), and the losses (n,) without a gradient."""
    return _apply(_Sum, x, weight, targets, vocab_size, softcap)

def _apply(function, x, weight, targets, vocab_size, softcap):
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        return function.apply(x, weight, targets, vocab_size, softcap, dtype)


def aot(sm):
    """What can be launched, in bf16, for bench/aot.py: as aot of kernels/attention.py."""
    types = {'z_ptr': '*bf16', 'y_ptr': '*i64', 'loss_ptr': '*fp32', 'stats_ptr': '*fp32', 'V': 'i32', 'Vp': 'i32:16',
             'softcap': 'fp32'}
    for stats, slopes in ((True, False), (True, True), (False, True)): # a loss a row, the sum, and the rows' backward
        for cap in (False, True):
            name = f"cross-entropy{' statistics' * stats}{' slopes' * slopes}{' soft-cap' * cap}"
            yield name, _pass, types, dict(CAP=cap, STATS=stats, SLOPES=slopes, BLOCK=BLOCK), {'num_warps': WARPS, 'num_stages': 2}

def _main():
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    n, C, V = (8192, 896, 152167) if device == 'cuda' else (4096, 256, 2503)
    generator = torch.Generator().manual_seed(0)
    weight = (0.02 * torch.randn(-(-V // 256) * 256, C, generator=generator)).to(device)
    x = torch.randn(n, C, generator=generator).to(device)
    targets = torch.randint(V, (n,), generator=generator).to(device)
    ways = {'torch': linear_cross_entropy_ref, 'chunks, a loss a row': linear_cross_entropy,
            'chunks, the sum': lambda *problem: linear_cross_entropy_sum(*problem)[0]}
    print(f"{device}, n {n}, C {C}, V {V}, {torch.get_num_threads()} threads\n")
    print("| implementation | dtype | forward + backward, ms |\n|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [t.to(dtype).requires_grad_() for t in (x, weight)]
        ref, ours = (way(*inputs, targets, V) for way in (linear_cross_entropy_ref, linear_cross_entropy))
        exact = linear_cross_entropy_ref(x[:512].to(dtype).double(), weight.to(dtype).double(), targets[:512], V)
        torchs, off = ((way[:512] - exact).abs().max().item() for way in (ref, ours))
        assert off <= 2 * torchs + torch.finfo(dtype).eps, f"chunks are off by {off:.2e}, torch by {torchs:.2e}"
        for name, way in ways.items():
            times = []
            for _ in range(6):
                begin = time.perf_counter()
                way(*inputs, targets, V).sum().backward()
                if device == 'cuda':
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - begin)
            print(f"| {name} | {str(dtype)[6:]} | {min(times) * 1e3:.1f} |")

if __name__ == '__main__':
    _main()
