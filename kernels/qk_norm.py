"""
RMSNorm of queries and keys and their rotation by position, in one call for both:

    n = w x r       r = 1 / sqrt(mean(x^2) + eps)      y = n cos + swap(n) sin       swap: the halves of a head
    dn = dy cos - swap(dy) sin      dx = r (w dn - x r mean(w dn x r))               dw = sum(dn x r)

The mean is over each head, with weights (D,) that the heads of q share and (D,) for those of k (Qwen3); or over all
heads of q, and over all of k, with weights for every channel (OLMo). sin is negated in the first half of a head, and
the first R <= D channels rotate. Everything is float32 inside, and rounded once. A CPU goes through the tokens in
pieces that fit its cache: without that, the passes over memory would cost as much again.
"""
import torch

PIECE = 2 ** 18 # elements

def norm_rotate_ref(qk, weight, eps, n_head, rope):
    """The definition, in torch: arguments and result as norm_rotate has them."""
    D = qk.size(-1)
    parts = qk.split([n_head, qk.size(2) - n_head], 2)
    if weight.numel() == 2 * D:
        normed = [torch.rms_norm(x, (D,), w, eps) for x, w in zip(parts, weight.split(D))]
    else:
        weights = weight.split([x.size(2) * D for x in parts])
        normed = [torch.rms_norm(x.flatten(2), w.shape, w, eps).view(x.shape) for x, w in zip(parts, weights)]
    n = torch.cat(normed, 2)
    if rope is None:
        return n
    cos, sin = rope
    turned = n[..., :cos.size(-1)]
    return torch.cat((turned * cos + turned.roll(cos.size(-1) // 2, -1) * sin, n[..., cos.size(-1):]), -1)

def _pieces(qk):
    """Indices of the pieces of (B, T, ...) that a device takes at once: several rows, or a part of one."""
    B, T, n_heads, D = qk.shape
    if not qk.is_cpu or torch.compiler.is_compiling():
        return [(slice(None), slice(None))]
    row = T * n_heads * D
    rows = max(1, PIECE // row)
    tokens = -(-T // -(-row // PIECE)) # T over the pieces of a row, both rounded up
    return [(slice(b, b + rows), slice(t, t + tokens)) for b in range(0, B, rows) for t in range(0, T, tokens)]

def _means(sums, n_head, D, by_head):
    """Sums over the D channels of each head (..., H + HK) -> the mean over what is normed together, for each head."""
    if not by_head:
        q = sums[..., :n_head]
        k = sums[..., n_head:]
        sums = torch.cat((q.mean(-1, keepdim=True).expand_as(q), k.mean(-1, keepdim=True).expand_as(k)), -1)
    return sums / D

def _turn(x, cos, sin, sign):
    """x cos + sign swap(x) sin, of the channels that cos and sin have."""
    R = cos.size(-1)
    y = torch.empty_like(x)
    torch.mul(x[..., :R], cos, out=y[..., :R])
    y[..., :R // 2].addcmul_(x[..., R // 2:R], sin[..., :R // 2], value=sign)
    y[..., R // 2:R].addcmul_(x[..., :R // 2], sin[..., R // 2:], value=sign)
    if R < x.size(-1):
        y[..., R:] = x[..., R:]
    return y

class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qk, w, eps, n_head, by_head, cos, sin):
        y = torch.empty(qk.shape, dtype=qk.dtype, device=qk.device)
        r = torch.empty(qk.shape[:3], dtype=w.dtype, device=qk.device)
        for piece in _pieces(qk):
            x = qk[piece].to(w.dtype) # arithmetic on mixed dtypes is slow on a CPU
            squares = torch.linalg.vector_norm(x, dim=-1).square_()
            r[piece] = (_means(squares, n_head, x.size(-1), by_head) + eps).rsqrt_()
            n = (x * r[piece].unsqueeze(-1)).mul_(w)
            y[piece] = n if cos is None else _turn(n, cos[piece], sin[piece], 1)
        ctx.save_for_backward(qk, w, r, cos, sin)
        ctx.span = n_head, qk.size(-1), by_head
        return y

    @staticmethod
    def backward(ctx, dy):
        qk, w, r, cos, sin = ctx.saved_tensors
        dx = torch.empty(qk.shape, dtype=qk.dtype, device=qk.device)
        dw = torch.zeros_like(w)
        # Sums over each head as one matrix product: the columns of by_heads hold the weights of a head.
        by_heads = (torch.eye(len(w), dtype=w.dtype, device=w.device)[:, None] * w[:, :, None]).flatten(0, 1)
        for piece in _pieces(qk):
            dn = dy[piece].to(w.dtype)
            if cos is not None:
                dn = _turn(dn, cos[piece], sin[piece], -1)
            scale = r[piece].unsqueeze(-1)
            unit = qk[piece].to(w.dtype) * scale
            dot = unit * dn
            dw += dot.flatten(0, -3).sum(0)
            mean = _means(dot.flatten(-2) @ by_heads, *ctx.span).unsqueeze(-1)
            dx[piece] = torch.mul(dn, w, out=dot).addcmul_(unit, mean, value=-1).mul_(scale)
        return dx, dw, *[None] * 5

def norm_rotate(qk, weight, eps, n_head, rope):
    """qk (B, T, H + HK, D), q before k -> the same shape and dtype.

    weight: (2 D,), of each head of q and of k; or ((H + HK) D,), where the mean is over all heads of q, and of k.
    rope: cos and sin, each (T, 1, R) or (B, T, 1, R) as GPT.rotary gives them, or None.
    """
    B, T, n_heads, D = qk.shape
    by_head = weight.numel() == 2 * D
    w = weight.view(-1, D)
    if by_head:
        w = torch.cat((w[:1].expand(n_head, D), w[1:].expand(n_heads - n_head, D)))
    cos, sin = [table.expand(B, T, 1, -1) for table in rope] if rope is not None else (None, None)
    w = w.to(torch.promote_types(qk.dtype, torch.float32))
    return _NormRotate.apply(qk, w, eps, n_head, by_head, cos, sin)
