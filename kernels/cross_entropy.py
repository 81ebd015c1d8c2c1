"""
Linear cross-entropy: the head's matrix product and the loss in one, without the (n, V) logits. For a row x of C
channels, the head W (Vp, C) whose rows from V on are padding, and a target y:

    z    = W x   (-inf where padded)     p  = softmax(z)
    loss = log(sum(exp(z))) - z[y]       dz = p - onehot(y),  dx = g W' dz,  dW += dz (g x)'
    with a softcap c (Gemma2):           z  = c tanh(W x / c),  dz gains a factor 1 - tanh(W x / c)^2

with g the gradient of this row's loss, so any later weighting of the rows is exact (a mean, DPO, scoring). The rows
are taken ROWS at a time. The backward makes the logits of a chunk again (8 n V C operations instead of 6), except when
all rows fit in one allowance of KEEP: then dz is kept. So at most KEEP rows of logits are alive, forward or backward.
Statistics and dW are float32; the products run in the autocast dtype where autocast is on.
A row whose target is -100 has loss 0 and no gradient. Padded columns have p = 0, hence no gradient.

    python kernels/cross_entropy.py       checks linear_cross_entropy against the definition, then times both
"""
import time

import torch
import torch.nn.functional as F

IGNORED = -100
KEEP = 4096 # rows of logits alive at most
ROWS = {'cpu': 512, 'cuda': 4096} # a chunk: 512 x 2,560 floats still fit a CPU's cache; a GPU wants large products


def linear_cross_entropy_ref(x, weight, targets, vocab_size, softcap=0.0):
    """The definition, in torch: x (n, C), weight (Vp, C), targets (n,) -> losses (n,), float32 at least."""
    logits = x @ weight[:vocab_size].T # (n, V)
    logits = logits.to(torch.promote_types(x.dtype, torch.float32))
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction='none')

def _log_softmax(x, weight, vocab_size, softcap):
    """log softmax of a chunk's logits (rows, Vp), float32 at least, and tanh(logits / softcap) or None."""
    logits, tanh = (x @ weight.T).to(torch.promote_types(x.dtype, torch.float32)), None
    if softcap:
        tanh = logits.div_(softcap).tanh_()
        logits = tanh * softcap
    logits[:, vocab_size:] = -torch.inf # sliced off instead, the GEMM would lose its alignment
    return logits.log_softmax(-1), tanh

def _dz(logp, tanh, y, dtype):
    """p - onehot(y), in dtype: subtracted before it is rounded, as p[y] of a good model is near 1. Uses up its inputs."""
    dz = logp.exp_().scatter_add_(1, y, torch.full_like(y, -1, dtype=logp.dtype))
    if tanh is not None:
        dz *= tanh.square_().neg_().add_(1)
    return dz.to(dtype)

class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, vocab_size, dtype, softcap):
        ctx.dtypes, ctx.rows, ctx.head = (x.dtype, weight.dtype), ROWS.get(x.device.type, KEEP), (vocab_size, softcap)
        x, weight, kept = x.to(dtype), weight.to(dtype), []
        ignored = targets == IGNORED
        y = targets.masked_fill(ignored, 0)[:, None] # (n, 1)
        losses = x.new_empty(len(x), dtype=torch.promote_types(dtype, torch.float32))
        for i in range(0, len(x), ctx.rows):
            chunk = slice(i, i + ctx.rows)
            logp, tanh = _log_softmax(x[chunk], weight, *ctx.head)
            losses[chunk] = -logp.gather(1, y[chunk])[:, 0]
            if len(x) <= KEEP and any(ctx.needs_input_grad):
                kept.append(_dz(logp, tanh, y[chunk], dtype))
        ctx.save_for_backward(x, weight, y, ignored, *kept)
        return losses.masked_fill_(ignored, 0.0)

    @staticmethod
    def backward(ctx, g):
        x, weight, y, ignored, *kept = ctx.saved_tensors
        g = g.masked_fill(ignored, 0.0)[:, None] # (n, 1)
        gx = (x * g).to(x.dtype) # g scales rows of C here and in dx, not rows of V
        dx, dw = torch.empty_like(x), torch.zeros_like(weight, dtype=g.dtype)
        for i in range(0, len(x), ctx.rows):
            chunk = slice(i, i + ctx.rows)
            dz = kept[i // ctx.rows] if kept else \
                _dz(*_log_softmax(x[chunk], weight, *ctx.head), y[chunk], x.dtype) # (rows, Vp)
            torch.mm(dz, weight, out=dx[chunk])
            dw += dz.T @ gx[chunk]
        dx = dx * g
        return dx.to(ctx.dtypes[0]), dw.to(ctx.dtypes[1]), None, None, None, None

def linear_cross_entropy(x, weight, targets, vocab_size, softcap=0.0):
    """The definition in chunks: x (n, C), weight (Vp, C), targets (n,) -> losses (n,), float32, 0 where ignored."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        if device == 'cpu':
            # ignored rows are left out before they cost a product; on a GPU their number would be a host sync
            row = (targets != IGNORED).nonzero()[:, 0]
            if len(row) < len(targets):
                losses = _LinearCrossEntropy.apply(x[row], weight, targets[row], vocab_size, dtype, softcap)
                return losses.new_zeros(len(targets)).index_put((row,), losses)
        return _LinearCrossEntropy.apply(x, weight, targets, vocab_size, dtype, softcap)


def _main():
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    n, C, V = (8192, 896, 152167) if device == 'cuda' else (4096, 256, 2503)
    generator = torch.Generator().manual_seed(0)
    weight = (0.02 * torch.randn(-(-V // 256) * 256, C, generator=generator)).to(device)
    x = torch.randn(n, C, generator=generator).to(device)
    targets = torch.randint(V, (n,), generator=generator).to(device)
    print(f"{device}, n {n}, C {C}, V {V}, {torch.get_num_threads()} threads\n")
    print("| implementation | dtype | forward + backward, ms |\n|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [t.to(dtype).requires_grad_() for t in (x, weight)]
        ref, ours = (way(*inputs, targets, V) for way in (linear_cross_entropy_ref, linear_cross_entropy))
        exact = linear_cross_entropy_ref(x[:512].to(dtype).double(), weight.to(dtype).double(), targets[:512], V)
        torchs, off = ((way[:512] - exact).abs().max().item() for way in (ref, ours))
        assert off <= 2 * torchs + torch.finfo(dtype).eps, f"chunks are off by {off:.2e}, torch by {torchs:.2e}"
        for name, way in {'torch': linear_cross_entropy_ref, 'chunks': linear_cross_entropy}.items():
            times = []
            for _ in range(6):
                begin = time.perf_counter()
                way(*inputs, targets, V).mean().backward()
                if device == 'cuda':
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - begin)
            print(f"| {name} | {str(dtype)[6:]} | {min(times) * 1e3:.1f} |")

if __name__ == '__main__':
    _main()
