"""
Causal attention over rows of packed documents. Token t of a row sees the tokens j of its own document up to itself:

    s[t, j] = q[t].k[j] scale       for doc_start[t] <= j <= t, else -inf         scale = 1 / sqrt(D), or as given
    p       = softmax(s)                            o[t] = sum_j p[t, j] v[j]
    dp[t,j] = do[t].v[j]                            dv[j] = sum_t p[t, j] do[t]
    ds      = p * (dp - sum_j p * dp)               dq[t] = sum_j ds[t, j] k[j] scale,  dk[j] alike

What some families want besides, all off by default:

    softcap c    s -> c tanh(s / c), so ds gains a factor 1 - tanh(s / c)^2       Gemma2
    window w     only the keys j > t - w, the token itself included               Gemma2, every second layer
    slopes (H,)  s[t, j] - slope (t - j), ALiBi (2108.12409)                       Bloom

q is (B, T, H, D); k and v are (B, T, HK, D), and query head h reads key head h // (H / HK) (GQA). doc_start (B, T)
holds the index in its row where token t's document begins. What a backend needs of it is made once a batch, by
`documents`, and serves every layer.

On the CPU a row is walked document by document, QUERIES queries at a time, so no score outside a document or window and
few above the diagonal are computed: for documents of 100-200 tokens in rows of 512 that is about 3 x faster, in bf16
and fp32, than SDPA with a mask, forward and backward. The softmax is float32 whatever q is; only p (and the softcap's
slope) is kept for the backward. Elsewhere it is SDPA with a boolean mask (B, 1, T, T), or with a softcap the definition.

    python kernels/attention.py       checks attention against attention_ref, then times both beside SDPA
"""
import time

import torch
import torch.nn.functional as F

QUERIES = 256 # a block of queries on the CPU: longer wastes work above the diagonal, shorter starves the GEMMs


def attention_ref(q, k, v, doc_start=None, scale=None, softcap=0.0, window=0, slopes=None):
    """The definition, in torch, any dtype: q (B, T, H, D), k and v (B, T, HK, D), doc_start (B, T) -> (B, T, H, D)."""
    B, T, H, D = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    k, v = (x.repeat_interleave(H // k.size(2), dim=2) for x in (k, v)) # (B, T, H, D)
    t = torch.arange(T, device=q.device)
    back = t[:, None] - t # (T, T)
    seen = (back >= 0) & (back < (window or T)) # (T, T)
    if doc_start is not None:
        seen = seen & (t >= doc_start[:, None, :, None]) # (B, 1, T, T)
    s = torch.einsum('bthd,bjhd->bhtj', q, k).to(wide) * (scale or D ** -0.5)
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    if slopes is not None:
        s = s - slopes[:, None, None] * back
    p = s.masked_fill(~seen, -torch.inf).softmax(-1).to(q.dtype)
    return torch.einsum('bhtj,bjhd->bthd', p, v)

def documents(doc_start):
    """What `attention` wants to know of doc_start (B, T), made once a batch: blocks of queries on the CPU or a mask."""
    T = doc_start.size(1)
    t = torch.arange(T, device=doc_start.device)
    if doc_start.device.type != 'cpu':
        return ((t <= t[:, None]) & (t >= doc_start[:, :, None]))[:, None] # (B, 1, T, T)
    first = (doc_start == t).nonzero().tolist() # (row, begin) of each document, in order
    ends = [begin if row == previous else T for (previous, _), (row, begin) in zip(first, first[1:])] + [T]
    return _blocks([(row, begin, end) for (row, begin), end in zip(first, ends)])

def _blocks(spans):
    """(row, begin, end) of documents -> (row, begin, i, j): queries i..j-1 see keys begin..j-1, causally."""
    return [(row, begin, i, min(i + QUERIES, end)) for row, begin, end in spans for i in range(begin, end, QUERIES)]

def _group(x, HK):
    """(n, H, D) -> (HK, G*n, D): the G query heads of a key head one below the other, so K and V are never expanded."""
    n, H, D = x.shape
    return x.view(n, HK, H // HK, D).permute(1, 2, 0, 3).reshape(HK, H // HK * n, D)

def _ungroup(x, H):
    """The inverse of _group: (HK, G*n, D) -> (n, HK, G, D), which views as (n, H, D)."""
    HK, rows, D = x.shape
    return x.view(HK, H // HK, rows * HK // H, D).permute(2, 0, 1, 3)

def _sum_group(p, x, n):
    """p (HK, G*n, m)' x (HK, G*n, D) -> (m, HK, D)"""
    HK, _, D = x.shape
    if p.dtype.itemsize < 4: # summed in float32 inside the product
        return torch.bmm(p.transpose(1, 2), x).transpose(0, 1)
    # head by head: in float32 one sum over G*n rows would round more than attention_ref does
    heads = torch.bmm(p.view(-1, n, p.size(-1)).transpose(1, 2), x.view(-1, n, D)) # (HK*G, m, D)
    return heads.view(HK, -1, p.size(-1), D).sum(1).transpose(0, 1)

class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, blocks, scale, softcap, window, slopes):
        B, T, H, D = q.shape
        HK, wide = k.size(2), torch.promote_types(q.dtype, torch.float32)
        if window: # the keys before the first query's window are left out
            blocks = [(row, max(begin, i - window + 1), i, j) for row, begin, i, j in blocks]
        q, o, kept = q * scale, q.new_empty(q.shape), []
        longest = max((j - begin for _, begin, _, j in blocks), default=0)
        hidden = torch.full((longest, longest), -torch.inf).triu_(1) # the future
        if window:
            hidden += torch.full((longest, longest), -torch.inf).tril_(-window)
        for row, begin, i, j in blocks:
            n, m = j - i, j - begin # queries, keys
            s = torch.bmm(_group(q[row, i:j], HK), k[row, begin:j].permute(1, 2, 0)) # (HK, G*n, m)
            s, slope = s.view(HK, H // HK, n, m), None
            if softcap:
                tanh = s.to(wide).div(softcap).tanh_()
                s, slope = tanh * softcap, tanh.square_().neg_().add_(1).to(q.dtype).view(HK, -1, m)
            if slopes is not None:
                back = torch.arange(i - begin, m)[:, None] - torch.arange(m) # (n, m)
                s = s - slopes.view(HK, -1, 1, 1) * back
            p = (s + hidden[i - begin:m, :m]).softmax(-1).to(q.dtype).view(HK, -1, m) # float32 at least until here
            o[row, i:j].view(n, HK, -1, D).copy_(_ungroup(torch.bmm(p, v[row, begin:j].transpose(0, 1)), H))
            if any(ctx.needs_input_grad):
                kept += [p, slope] if softcap else [p]
        ctx.save_for_backward(q, k, v, *kept)
        ctx.blocks, ctx.scale, ctx.each = blocks, scale, 2 if softcap else 1
        return o

    @staticmethod
    def backward(ctx, do):
        q, k, v, *kept = ctx.saved_tensors # q is already scaled
        H, D = q.shape[2:]
        HK = k.size(2)
        dq, dk, dv = q.new_empty(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
        do = do.contiguous()
        for n, (row, begin, i, j) in enumerate(ctx.blocks):
            p, *slope = kept[n * ctx.each:(n + 1) * ctx.each]
            dog, keys = _group(do[row, i:j], HK), slice(begin, j)
            dp = torch.bmm(dog, v[row, keys].permute(1, 2, 0)) # (HK, G*n, m)
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype) # p * (dp - sum p * dp) in one pass
            if slope:
                ds *= slope[0]
            dv[row, keys] += _sum_group(p, dog, j - i)
            dk[row, keys] += _sum_group(ds, _group(q[row, i:j], HK), j - i)
            dq[row, i:j].view(j - i, HK, -1, D).copy_(_ungroup(torch.bmm(ds, k[row, keys].transpose(0, 1)), H))
        return dq.mul_(ctx.scale), dk, dv, None, None, None, None, None

def attention(q, k, v, docs=None, scale=None, softcap=0.0, window=0, slopes=None):
    """attention_ref by the fastest way of the device. docs: documents(doc_start); None where a row is one document."""
    B, T, H, D = q.shape
    if q.device.type == 'cpu':
        docs = docs or _blocks([(row, 0, T) for row in range(B)])
        return _Blocks.apply(q, k, v, docs, scale or D ** -0.5, softcap, window, slopes)
    if docs is None and not (softcap or window or slopes is not None):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v)) # (B, H, T, D)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True).transpose(1, 2)
    return _masked(q, k, v, docs, scale, softcap, window, slopes)

def _masked(q, k, v, mask, scale, softcap, window, slopes):
    """With a mask (B, 1, T, T), True where a key is seen."""
    back = torch.arange(q.size(1), device=q.device)
    back = back[:, None] - back # (T, T)
    mask = back >= 0 if mask is None else mask
    if window:
        mask = mask & (back < window)
    if slopes is not None:
        mask = (-slopes[:, None, None] * back).masked_fill(~mask, -torch.inf).to(q.dtype) # (B or 1, H, T, T)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v)) # (B, H, T, D)
    return _dense(q, k, v, mask, scale, softcap, enable_gqa=True).transpose(1, 2)

def _dense(q, k, v, mask, scale, softcap, enable_gqa=False):
    """SDPA, also with a softcap. mask: True where a key is seen, or what is added to the scores."""
    if not softcap:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa:
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
    s = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * (scale or q.size(-1) ** -0.5)
    s = softcap * torch.tanh(s / softcap)
    if mask is not None:
        s = s.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else s + mask
    return s.softmax(-1).to(q.dtype) @ v

def attention_decode(q, k, v, begin=None, scale=None, softcap=0.0, window=0, slopes=None):
    """One token more: q (B, 1, H, D) over the keys and values so far, its own last: k, v (B, N, HK, D) -> (B, 1, H, D).
    begin (B, 1): where each row's document begins among the N; None: at 0."""
    B, _, H, D = q.shape
    N, HK = k.shape[1:3]
    first, mask = max(0, N - window) if window else 0, None
    if first:
        k, v = k[:, first:], v[:, first:]
    if begin is not None:
        mask = (torch.arange(first, N, device=q.device) >= begin)[:, None, None] # (B, 1, 1, keys)
    if slopes is not None:
        bias = slopes.view(HK, -1, 1) * torch.arange(first - N + 1, 1, device=q.device) # (HK, G, keys)
        mask = bias.to(q.dtype) if mask is None else bias.to(q.dtype).masked_fill(~mask, -torch.inf)
    # (B, HK, G, D): the heads of a group as if they were times
    y = _dense(q.view(B, HK, H // HK, D), k.transpose(1, 2), v.transpose(1, 2), mask, scale, softcap)
    return y.reshape(B, 1, H, D)


def _main():
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    B, T, H, HK, D = 8, 512, 4, 2, 64
    generator = torch.Generator().manual_seed(0)
    begins = torch.rand(B, T, generator=generator) < 1 / 150 # documents of 150 tokens on average
    doc_start = torch.where(begins, torch.arange(T), 0).cummax(1).values.to(device)
    docs = documents(doc_start)
    t = torch.arange(T, device=device)
    mask = ((t <= t[:, None]) & (t >= doc_start[:, :, None]))[:, None]
    ways = {'attention_ref': lambda *x: attention_ref(*x, doc_start), 'SDPA, mask': lambda *x: _masked(*x, mask, None, 0.0, 0, None),
            'attention': lambda *x: attention(*x, docs)}
    print(f"{device}, B {B}, T {T}, H {H}/{HK}, D {D}, documents of 150 tokens, {torch.get_num_threads()} threads\n")
    print("| implementation | dtype | forward + backward, ms |\n|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [torch.randn(B, T, h, D, generator=generator).to(device, dtype).requires_grad_() for h in (H, HK, HK)]
        exact = attention_ref(*(x.double() for x in inputs), doc_start)
        torchs, off = ((ways[name](*inputs) - exact).abs().max().item() for name in ('attention_ref', 'attention'))
        assert off <= 2 * torchs + torch.finfo(dtype).eps, f"attention is off by {off:.2e}, torch by {torchs:.2e}"
        for name, way in ways.items():
            times = []
            for _ in range(6):
                begin = time.perf_counter()
                way(*inputs).sum().backward()
                if device == 'cuda':
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - begin)
            print(f"| {name} | {str(dtype)[6:]} | {min(times) * 1e3:.1f} |")

if __name__ == '__main__':
    _main()
