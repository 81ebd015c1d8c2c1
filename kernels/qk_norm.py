"""
RMSNorm of queries and keys before they rotate, in one call for both:

    y = w x r      r = 1 / sqrt(mean(x^2) + eps)      dx = r (w dy - x r mean(w dy x r))      dw = sum(dy x r)

The mean is over each head, with weights (D,) that the heads of q share and (D,) for those of k (Qwen3); or over all
heads of q, and over all of k, with weights for every channel (OLMo).
"""
import torch


def qk_norm_ref(qk, weight, eps, n_head):
    """The definition, in torch: qk (B, T, H + HK, D), q before k, and weight as qk_norm has it -> the same shape."""
    D = qk.size(-1)
    parts = qk.split([n_head, qk.size(2) - n_head], 2)
    if weight.numel() == 2 * D:
        normed = [torch.rms_norm(x, (D,), w, eps) for x, w in zip(parts, weight.split(D))]
    else:
        weights = weight.split([x.size(2) * D for x in parts])
        normed = [torch.rms_norm(x.flatten(2), w.shape, w, eps).view(x.shape) for x, w in zip(parts, weights)]
    return torch.cat(normed, 2)

def _means(sums, n_head, D, by_head):
    """Sums over the D channels of each head (B, T, H + HK) -> the mean over what is normed together, for each head."""
    if not by_head:
        parts = sums.split([n_head, sums.size(-1) - n_head], -1)
        sums = torch.cat([part.mean(-1, keepdim=True).expand_as(part) for part in parts], -1)
    return sums / D

class _QKNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qk, w, eps, n_head, by_head):
        x = qk.to(torch.promote_types(qk.dtype, torch.float32)) # arithmetic on mixed dtypes is slow on a CPU
        squares = torch.linalg.vector_norm(x, dim=-1).square_()
        r = (_means(squares, n_head, x.size(-1), by_head) + eps).rsqrt_().unsqueeze(-1) # (B, T, H + HK, 1)
        ctx.save_for_backward(qk, w, r)
        ctx.span = n_head, x.size(-1), by_head
        return (x * r).mul_(w)

    @staticmethod
    def backward(ctx, dy):
        qk, w, r = ctx.saved_tensors
        unit = qk.to(dy.dtype) * r
        dot = unit * dy
        dw = dot.sum((0, 1))
        # Sums over each head as one matrix product: the columns of `by_heads` hold the weights of a head.
        by_heads = (torch.eye(len(w), dtype=dy.dtype, device=dy.device)[:, None] * w[:, :, None]).flatten(0, 1)
        mean = _means(dot.flatten(2) @ by_heads, *ctx.span).unsqueeze(-1)
        dx = torch.mul(dy, w, out=dot).addcmul_(unit, mean, value=-1).mul_(r)
        return dx.to(qk.dtype), dw, None, None, None

def qk_norm(qk, weight, eps, n_head):
    """qk (B, T, H + HK, D), q before k, in any dtype -> the same shape, at least float32.

    weight: (2 D,), of each head of q and of k; or ((H + HK) D,), where the mean is over all heads of q, and of k.
    """
    D = qk.size(-1)
    by_head = weight.numel() == 2 * D
    w = weight.view(-1, D)
    if by_head:
        w = torch.cat((w[:1].expand(n_head, D), w[1:].expand(qk.size(2) - n_head, D)))
    return _QKNorm.apply(qk, w.to(torch.promote_types(qk.dtype, torch.float32)), eps, n_head, by_head)
