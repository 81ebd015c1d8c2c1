"""
The decoder of the text model families whose tables are in hub/families.py. Its numbers equal those
of transformers. As in Llama and Qwen2.5, each layer updates a row x of C channels:

    x += O attention(rope(q), rope(k), v)    q | k | v = QKV norm(x) + b    norm(x) = w x / sqrt(mean(x^2) + eps)
    x += D (silu(g) * u)                     g | u = U norm(x)              logits = E norm(x)
    rope: (a, b) -> (a cos - b sin, b cos + a sin), the two halves of a head; angle = position * theta^(-2i/D)

The other families differ by flags of GPTConfig: LayerNorm, an MLP without a gate, learned positions
(OPT), a bias that grows with distance (Bloom's ALiBi), rotation of a part of each head and parallel
residuals (Pythia), soft-caps, sliding windows and norms on both sides (Gemma2), norms of q and k
(Qwen3), layers without positions (SmolLM3), norms behind each branch (OLMo).

A row may pack several documents: doc_start[t] is the index at which the document of token t begins.
Attention stays inside a document, and positions restart there. The table E has V rows, padded in
memory to a multiple of 256. Padding rows are zero, never targets, never sampled and never saved.

    model = GPT.from_pretrained('out/tiny', device='cuda')   Hugging Face folder or id (safetensors)
    model.extend_vocabulary(vocab)                           TWIST: from text to speech or joint
    losses = model.losses(tokens, doc_start, targets)        (B*T,), 0 where the target is -100
    model.save_pretrained('out/x', vocab=vocab, tokenizer='tiny/tokenizer')

Letters: B batch, T time in tokens, C channels, H query heads, HK key heads, D head size, V vocabulary
"""
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from configurator import Refused
from files import write_json
from hub import folders
from hub.families import FAMILIES, GPTConfig
from kernels import elementwise
from kernels.attention import attention, documents
from kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_sum
from kernels.decoding import Cache, Order, Steps, by_columns, choose, penalize
from kernels.positions import alibi_slopes, rotary_table
from kernels.qk_norm import norm_rotate

ACTIVATIONS = {'silu': F.silu, 'gelu': F.gelu, 'gelu_tanh': partial(F.gelu, approximate='tanh'), 'relu': F.relu}
OPT_OFFSET = 2 # OPT's table of positions has the token at position t in row t + 2

# --------------------------------------------------------------------------------------------------
# the decoder

class _RMSNorm(torch.autograd.Function):
    """w x r with r = 1 / sqrt(mean(x^2) + eps), in half the passes that autograd takes."""
    @staticmethod
    def forward(ctx, x, w, eps):
        x_fp32 = x.to(torch.promote_types(x.dtype, torch.float32))
        length = torch.linalg.vector_norm(x_fp32, dim=-1, keepdim=True) # (..., 1)
        r = length.square_().div_(x.size(-1)).add_(eps).rsqrt_()
        ctx.save_for_backward(x, w, r)
        return (x_fp32 * r).mul_(w).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        x, w, r = ctx.saved_tensors
        unit = x * r # (..., C), at least float32
        dot = unit * dy
        dw = dot.flatten(0, -2).sum(0).to(w.dtype)
        mean = (dot @ w.to(dot.dtype)).div_(-x.size(-1)).unsqueeze(-1) # -mean(w dy x r)
        return (dy * w).to(unit.dtype).addcmul_(unit, mean).mul_(r).to(x.dtype), dw, None

class Norm(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.kind = cfg.norm
        self.eps = cfg.norm_eps
        self.before_product = cfg.residual != 'post' and not cfg.embed_norm
        init = torch.zeros if cfg.norm == 'rms+1' else torch.ones
        self.weight = nn.Parameter(init(cfg.n_embd))
        self.bias = nn.Parameter(torch.zeros(cfg.n_embd)) if cfg.norm == 'layer' else None

    def forward(self, x):
        if self.kind == 'layer':
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        w = self.weight if self.kind == 'rms' else 1 + self.weight.float()
        if torch.is_grad_enabled():
            if not elementwise.fused(x):
                return _RMSNorm.apply(x, w, self.eps)
            rounded = self.before_product and torch.is_autocast_enabled(x.device.type)
            dtype = torch.get_autocast_dtype(x.device.type) if rounded else x.dtype
            return elementwise.rms_norm(x, w, self.eps, dtype)
        if not x.is_cpu or x.dtype != torch.float32:
            return torch.rms_norm(x, w.shape, w, self.eps).to(x.dtype)
        # On a CPU, rms_norm makes twice as many calls as this.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        r = torch.full_like(length, self.eps).addcmul_(length, length, value=1 / x.size(-1)).rsqrt_()
        return r.mul(x).mul_(w)

def _rotate(x, cos, sin):
    x_fp32 = x.to(cos.dtype) # converted first, as arithmetic on mixed dtypes is slow on a CPU
    half = x.size(-1) // 2
    y = x_fp32 * cos
    y[..., :half].addcmul_(x_fp32[..., half:], sin[..., :half])
    y[..., half:].addcmul_(x_fp32[..., :half], sin[..., half:])
    return y.to(x.dtype)

class _Rotary(torch.autograd.Function):
    """Rotary positions: x (B, T, heads, D); cos and sin (B or 1, T, 1, D) as GPT.rotary gives them."""
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx, dy):
        cos, sin = ctx.saved_tensors
        return _rotate(dy, cos, -sin), None, None # the inverse rotation

class _SwiGLU(torch.autograd.Function):
    """g | u (..., 2 n) -> silu(g) u (..., n), whose backward writes both gradients into one tensor."""
    @staticmethod
    def forward(ctx, h):
        g, u = h.chunk(2, -1)
        a = F.silu(g)
        ctx.save_for_backward(h, a)
        return a * u

    @staticmethod
    def backward(ctx, dy):
        h, a = ctx.saved_tensors
        g, u = h.chunk(2, -1)
        dh = torch.empty_like(h)
        dg, du = dh.chunk(2, -1)
        torch.mul(dy, a, out=du)
        torch.ops.aten.silu_backward(dy * u, g, grad_input=dg)
        return dh

def recomputed(f, *x):
    """f(*x), whose activations are computed again in the backward instead of saved."""
    return checkpoint(f, *x, use_reentrant=False, preserve_rng_state=False) # nothing here is random

def _identity(x):
    return x

def _compose(f, g):
    return lambda x: g(f(x))

class Block(nn.Module):
    """A layer. cfg.residual says where its norms stand; f is the attention (f1), then the MLP (f2):

    pre         x + f(norm(x))            sandwich    x + norm'(f(norm(x)))
    post        norm(x + f(x))            parallel    x + f1(norm1(x)) + f2(norm2(x))
    after       x + norm(f(x))

    recompute: 'none', 'selective' (what lies between matrix products) or 'full' (in GPT.forward).
    """
    def __init__(self, cfg, layer, recompute='none'):
        super().__init__()
        self.cfg = cfg
        self.layer = layer
        self.recompute = recompute
        H, HK, D, C = cfg.n_head, cfg.n_kv_head, cfg.head_dim, cfg.n_embd
        self.rope = cfg.rope_of(layer)
        window = cfg.window if cfg.windowed[layer] else 0
        self.options = {'scale': cfg.attn_scalar ** -0.5, 'softcap': cfg.attn_softcap, 'window': window}
        self.norm1, self.norm2 = Norm(cfg), Norm(cfg)
        self.qkv = nn.Linear(C, (H + 2 * HK) * D, bias=cfg.qkv_bias)
        n_weights = {'none': 0, 'head': 2 * D, 'width': (H + HK) * D}[cfg.qk_norm]
        self.qk_norm = nn.Parameter(torch.ones(n_weights)) if n_weights else None # of q, then of k
        self.out = nn.Linear(H * D, C, bias=cfg.bias)
        self.up = nn.Linear(C, (1 + cfg.gated) * cfg.n_ffn, bias=cfg.bias) # g | u, or u alone
        self.down = nn.Linear(cfg.n_ffn, C, bias=cfg.bias)
        if cfg.residual == 'sandwich':
            self.post1, self.post2 = Norm(cfg), Norm(cfg)

    def recompute_if_selective(self, f, *x):
        """f(*x); with 'selective' the backward computes f again, up to its last matrix product."""
        return recomputed(f, *x) if self.recompute == 'selective' and torch.is_grad_enabled() else f(*x)

    def rotate(self, qkv, rope):
        """(B, T, H + 2 HK, D) -> q, k, v: normed, where the family does so, and rotated, in torch"""
        H, HK, R = self.cfg.n_head, self.cfg.n_kv_head, self.cfg.n_rope
        qk, v = qkv.split([H + HK, HK], 2) # in the backward, split takes half the passes of narrow
        if self.qk_norm is not None:
            qk = norm_rotate(qk, self.qk_norm, self.cfg.norm_eps, H, rope)
        elif rope is not None:
            rotate = _Rotary.apply if torch.is_grad_enabled() else _rotate
            if R == qk.size(-1):
                qk = rotate(qk, *rope)
            else:
                qk = torch.cat((rotate(qk[..., :R], *rope), qk[..., R:]), -1)
        return *qk.split([H, HK], 2), v

    def attend(self, norm, x, rope, slopes, docs, backend, cache):
        H, HK, R = self.cfg.n_head, self.cfg.n_kv_head, self.cfg.n_rope
        qkv = self.recompute_if_selective(_compose(norm, self.qkv), x)
        qkv = qkv.view(*x.shape[:2], H + 2 * HK, -1) # (B, T, H + 2 HK, D)
        plain = rope is not None and self.qk_norm is None
        if plain and elementwise.fused(qkv) and elementwise.can_rotate(qkv.size(-1), R):
            q, k, v = elementwise.rotated(qkv, *rope, H)
        else:
            q, k, v = self.rotate(qkv, rope)
        options = {**self.options, 'slopes': slopes}
        if cache is None:
            y = attention(q, k, v, docs, **options, backend=backend)
        else:
            y = cache.attend(self.layer, q, k, v, docs, options)
        return self.out(y.flatten(2)) # y is (B, T, H, D)

    def mlp(self, norm, x):
        h = self.recompute_if_selective(_compose(norm, self.up), x) # (B, T, n_ffn or 2 n_ffn)
        return self.recompute_if_selective(_compose(self.act, self.down), h)

    def act(self, h):
        act = ACTIVATIONS[self.cfg.activation]
        if not self.cfg.gated:
            return act(h)
        if act is F.silu and elementwise.fused(h):
            return elementwise.swiglu(h)
        if act is F.silu and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _SwiGLU.apply(h)
        g, u = h.chunk(2, -1) # (B, T, n_ffn) each
        return act(g) * u

    def forward(self, x, *context):
        """x (B, T, C) -> (B, T, C); context is what attend takes after x."""
        match self.cfg.residual:
            case 'pre':
                x = x + self.attend(self.norm1, x, *context)
                return x + self.mlp(self.norm2, x)
            case 'post':
                x = self.norm1(x + self.attend(_identity, x, *context))
                return self.norm2(x + self.mlp(_identity, x))
            case 'after':
                x = x + self.norm1(self.attend(_identity, x, *context))
                return x + self.norm2(self.mlp(_identity, x))
            case 'sandwich':
                x = x + self.post1(self.attend(self.norm1, x, *context))
                return x + self.post2(self.mlp(self.norm2, x))
            case 'parallel':
                return x + self.attend(self.norm1, x, *context) + self.mlp(self.norm2, x)

class GPT(nn.Module):
    def __init__(self, cfg: GPTConfig, attention=None, recompute='none'):
        """Random weights: normal with std 0.02, biases 0, norms 1, from torch's global generator.

        attention: the backend in training, 'triton', 'hopper' or 'sdpa'; None: the device's
        fastest. recompute: 'none', 'selective' or 'full', see Block.
        """
        super().__init__()
        self.cfg = cfg
        self.attention = attention
        def table(rows, width):
            return nn.Parameter(torch.empty(rows, width))
        self.embed = table(cfg.rows, cfg.n_word)
        self.head = None if cfg.tied else table(cfg.rows, cfg.n_word)
        self.positions = table(cfg.n_positions + OPT_OFFSET, cfg.n_embd) if cfg.position == 'learned' else None
        self.embed_norm = Norm(cfg) if cfg.embed_norm else None
        narrow = cfg.n_word != cfg.n_embd # opt-350m
        self.word_in = nn.Linear(cfg.n_word, cfg.n_embd, bias=False) if narrow else None
        self.word_out = nn.Linear(cfg.n_embd, cfg.n_word, bias=False) if narrow else None
        self.layers = nn.ModuleList(Block(cfg, layer, recompute) for layer in range(cfg.n_layer))
        self.norm = Norm(cfg) if cfg.residual != 'post' else None
        with torch.no_grad():
            for name, p in self.named_parameters():
                if p.ndim == 2:
                    p.normal_(std=0.02)
                elif name.endswith('bias'):
                    p.zero_()
            self._clear_padding()

    @torch.no_grad()
    def _clear_padding(self):
        for table in (self.embed, self.head):
            if table is not None:
                table[self.cfg.vocab_size:] = 0

    @property
    def head_weight(self):
        """(padded rows, n_word)"""
        return self.embed if self.head is None else self.head

    def rotary(self, positions):
        """{kind of cfg.rope_of: cos and sin of int positions (...,), each (..., n_rope)}; None has None."""
        kinds = dict.fromkeys(block.rope for block in self.layers)
        return {kind: kind and rotary_table(self.cfg, positions, kind == 'full') for kind in kinds}

    def forward(self, tokens, doc_start=None, cache=None, hidden_span=None):
        """tokens, doc_start (B, T) -> hidden states (B, T, n_word) for the head.

        With a cache, tokens are the prompts or, once cache.n is set, the next column (B, 1). Where
        documents share a prefix, hidden_span (B, T, 2) has the columns [begin, end) of other
        branches that a token skips, (0, 0) for none.
        Refuses rows that are longer than the table of learned positions.
        """
        cfg = self.cfg
        T = tokens.size(1)
        next_token = cache is not None and cache.n > 0
        column = cache.column if next_token else torch.arange(T, device=tokens.device) # (T,)
        position = column if doc_start is None else column - doc_start # (T,) or (B, T)
        if hidden_span is not None:
            # On a GPU, a mask would count distances along the row.
            by_distance = cfg.window or cfg.position == 'alibi'
            assert tokens.is_cpu or not by_distance, "hidden spans with windows or ALiBi: CPU only"
            position = position - (hidden_span[..., 1] - hidden_span[..., 0])
        backend = self.attention if cache is None else None
        docs = documents(doc_start, backend, hidden_span) if doc_start is not None and not next_token else None
        x = F.embedding(tokens, self.embed) # (B, T, n_word)
        if cfg.embed_scale:
            x = x * torch.tensor(cfg.n_embd ** 0.5, dtype=x.dtype) # rounded as in transformers
        if self.word_in is not None:
            x = self.word_in(x)
        slopes = None
        ropes = self.rotary(column[:, None]) if cache is None else cache.rope
        rows = slice(T) if doc_start is None and not next_token else position
        ropes = {kind: rope and [table[rows] for table in rope] for kind, rope in ropes.items()} # (T or B, T, 1, R)
        if cfg.position == 'learned':
            if T > cfg.n_positions:
                raise Refused(f"{T} tokens in a row, and the model has {cfg.n_positions} positions")
            x = x + F.embedding(position + OPT_OFFSET, self.positions)
        elif cfg.position == 'alibi' and not next_token: # the cache keeps them
            slopes = alibi_slopes(cfg.n_head).to(x.device)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        for block in self.layers:
            context = ropes[block.rope], slopes, docs, backend, cache
            full = block.recompute == 'full' and torch.is_grad_enabled()
            x = recomputed(block, x, *context) if full else block(x, *context)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.word_out is None else self.word_out(x)

    def logits(self, hidden, head=None):
        """Hidden states (..., n_word) -> (..., V), or (..., n) for rows (n, n_word) of the head."""
        head = self.head_weight if head is None else head
        logits = F.linear(hidden, head)[..., :self.cfg.vocab_size]
        cap = self.cfg.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def losses(self, tokens, doc_start, targets, hidden_span=None, rows=None):
        """-log p of each target, float32 (B*T,), 0 where it is -100; for rows (n,) of B*T, targets are (n,)."""
        hidden = self(tokens, doc_start, hidden_span=hidden_span).flatten(0, 1)
        if rows is not None:
            hidden = hidden[rows]
        return self._cross_entropy(linear_cross_entropy, hidden, targets)

    def loss_sum(self, tokens, doc_start, targets):
        """The sum of losses (), faster to train on, and the losses (B*T,) without a gradient."""
        hidden = self(tokens, doc_start).flatten(0, 1)
        return self._cross_entropy(linear_cross_entropy_sum, hidden, targets)

    def _cross_entropy(self, function, hidden, targets):
        cfg = self.cfg
        return function(hidden, self.head_weight, targets.flatten(), cfg.vocab_size, cfg.logit_softcap)

    # --------------------------------------------------------------------------------------------
    # counting

    def num_params(self):
        """The number of parameters, without the padding of the tables."""
        n_tables = 1 if self.head is None else 2
        padding = n_tables * (self.cfg.rows - self.cfg.vocab_size) * self.cfg.n_word
        return sum(p.numel() for p in self.parameters()) - padding

    def flops_per_token(self, keys):
        """FLOPs of forward and backward for a token: 6 a weight of a matrix product, and attention.

        The head counts once, tied or not. keys: how many keys a token sees, T by PaLM's convention,
        (T + 1) / 2 for a causal mask, or the mean position of a token in its document.
        """
        cfg = self.cfg
        weights = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        seen = sum(min(keys, block.options['window'] or keys) for block in self.layers)
        return 6 * (weights + cfg.vocab_size * cfg.n_word) + 12 * seen * cfg.n_head * cfg.head_dim

    # --------------------------------------------------------------------------------------------
    # generation

    def generate(self, prompts, *settings, **named_settings):
        """`stream` (whose settings these are) in one piece -> lists of new ids, up to and including a stop id."""
        new = [[] for _ in prompts]
        for tokens in self.stream(prompts, *settings, **named_settings):
            for row, token in zip(new, tokens):
                if token is not None:
                    row.append(token)
        return new

    @torch.inference_mode()
    def stream(self, prompts, max_new_tokens, temperature=1.0, top_k=None, repetition_penalty=1.0, allowed=None,
               stop=(), generator=None, decode='auto', codebook=None):
        """Continues prompts (lists of ids, any lengths); yields a list of the next id of each, None after its stop id.

        temperature 0 is greedy. allowed (V,) bool has the ids to choose from; no logits are
        computed for others. repetition_penalty, as in transformers, divides positive logits of ids
        already in the text and multiplies negative ones. decode: how steps run, see decoding.Steps.
        codebook (V,), of flat units: that of each id, -1 for ids that are no units; see decoding.Order.
        Refuses prompts that are empty, too long or have ids outside the vocabulary.
        """
        self._check_prompts(prompts, max_new_tokens)
        V = self.cfg.vocab_size
        device = self.embed.device
        B = len(prompts)
        P = max(map(len, prompts))
        # All prompts end in the same column. Each is a document that begins after its padding.
        tokens = torch.zeros(B, P, dtype=torch.long, device=device)
        begin = torch.tensor([[P - len(prompt)] for prompt in prompts], device=device) # (B, 1)
        used = torch.zeros(B, V, dtype=torch.bool, device=device) # ids in the text so far
        for i, prompt in enumerate(prompts):
            tokens[i, P - len(prompt):] = torch.tensor(prompt)
            used[i, prompt] = True
        cache = Cache(self, B, P + max_new_tokens, begin if begin.any() else None)
        column = torch.arange(P, device=device)
        doc_start = None if cache.begin is None else torch.where(column < begin, 0, begin) # (B, P)
        running = set(range(B))
        ids = None
        head = self.head_weight
        if allowed is not None and not allowed.all():
            ids = allowed.to(device).nonzero()[:, 0]
            head = head[ids] # a joint vocabulary of 152,167 ids has 500 units
        order = None
        if codebook is not None: # rows behind the vocabulary are no units
            order = Order(F.pad(codebook.to(device), (0, V - len(codebook)), value=-1), ids, tokens)
        if device.type == 'cpu':
            head = head.t().contiguous().t() # a copy: the table itself may be the embedding
        step = Steps(self, cache, decode)
        with by_columns(self._matrices(B) if device.type == 'cpu' else []):
            hidden = self(tokens, doc_start, cache)[:, -1]
            for i in range(max_new_tokens):
                if i > 0:
                    hidden = step(tokens, P + i - 1)
                logits = self.logits(hidden, head).float() # (B, V or allowed ids)
                if repetition_penalty != 1:
                    used.scatter_(1, tokens[:, -1:], True) # at first the prompt's last id
                    logits = penalize(logits, used if ids is None else used[:, ids], repetition_penalty)
                if order:
                    logits = order.mask(logits)
                tokens = choose(logits, temperature, top_k, generator) # (B, 1)
                if ids is not None:
                    tokens = ids[tokens]
                if order:
                    order.advance(tokens)
                new = [token if i in running else None for i, token in enumerate(tokens[:, 0].tolist())]
                running -= {i for i, token in enumerate(new) if token in stop}
                yield new
                if not running:
                    break

    def _matrices(self, B):
        """The weights that B rows read faster by columns; one row gains less."""
        matrices = [m for m in self.layers.modules() if isinstance(m, nn.Linear)]
        return [m.weight for m in matrices if B > 1 or m.out_features > m.in_features]

    def _check_prompts(self, prompts, max_new_tokens):
        V = self.cfg.vocab_size
        if min(map(len, prompts)) == 0:
            raise Refused("generate: an empty prompt; give at least one token (<speech>, BOS)")
        if min(map(min, prompts)) < 0 or max(map(max, prompts)) >= V:
            raise Refused(f"generate: a prompt has an id outside 0..{V - 1}, the model's vocabulary")
        longest = max(map(len, prompts))
        if longest + max_new_tokens - 1 > self.cfg.n_positions: # the last new token is never read
            raise Refused(f"generate: a prompt of {longest} tokens and {max_new_tokens} new ones, "
                          f"and the model has {self.cfg.n_positions} positions")

    # --------------------------------------------------------------------------------------------
    # vocabulary and files

    @torch.no_grad()
    def extend_vocabulary(self, vocab, new_rows='hf', generator=None):
        """TWIST: makes a text model one of vocab (vocab.py), in place; make optimizers after it.

        joint: rows of text ids stay bit for bit. speech: K + 2 ids are new. text: nothing changes.
        new_rows:
          hf      the papers' code: old rows stay in place (unused ids, or text rows for speech), the
                  others are the old rows' mean plus noise of 1e-9 times their covariance
          mean    every new id starts as the mean of the old rows
          normal  every new id has the mean and standard deviation of each column of the old rows
        """
        if new_rows not in ('hf', 'mean', 'normal'):
            raise Refused(f"new_rows={new_rows}: expected hf, mean or normal")
        n_old = self.cfg.vocab_size
        if n_old < vocab.n_text:
            raise Refused(f"extend_vocabulary: the model has {n_old} rows, "
                          f"fewer than the tokenizer's {vocab.n_text} ids")
        if vocab.kind == 'text':
            return
        n_kept = min(n_old, vocab.size) if new_rows == 'hf' else vocab.n_text # 0 for speech
        self.cfg = replace(self.cfg, vocab_size=vocab.size)
        if vocab.kind == 'speech':
            self.cfg = replace(self.cfg, bos_token_id=vocab.bos, eos_token_id=vocab.bos)
        n_new = vocab.size - n_kept
        for name in ('embed', 'head'):
            old = getattr(self, name)
            if old is None:
                continue
            rows = old[:n_kept or n_old].float()
            mean = rows.mean(0)
            noise = 0.0
            # Drawn on the CPU, so that it is the same on any device. Random sums of the centered rows
            # have the covariance of the rows.
            if new_rows == 'hf' and n_new > 0:
                draws = torch.randn(n_new, len(rows), generator=generator).to(rows.device)
                noise = (1e-9 / len(rows)) ** 0.5 * draws @ (rows - mean)
            elif new_rows == 'normal':
                draws = torch.randn(n_new, old.size(1), generator=generator).to(rows.device)
                noise = draws * rows.std(0)
            table = old.new_zeros(self.cfg.rows, old.size(1))
            table[:n_kept] = old[:n_kept]
            table[n_kept:vocab.size] = (mean + noise).to(table.dtype)
            setattr(self, name, nn.Parameter(table))

    def _hf_tensors(self):
        """Hugging Face's name of each tensor -> the view of a parameter that holds it."""
        cfg = self.cfg
        H, D = cfg.n_head, cfg.head_dim
        stacked = {'qkv': [H * D] + 2 * [cfg.n_kv_head * D], 'up': (1 + cfg.gated) * [cfg.n_ffn],
                   'qk_norm': [D, D] if cfg.qk_norm == 'head' else [H * D, cfg.n_kv_head * D]}
        tensors = {}
        for name, p in self.named_parameters():
            p = p.detach()
            layer = re.search(r'layers\.(\d+)\.', name)
            suffix = '.bias' if name.endswith('.bias') else '.weight' # tables have neither
            module = re.sub(r'layers\.\d+\.', 'layers.{}.', name).removesuffix(suffix)
            hf_names = FAMILIES[cfg.family]['names'][module]
            fused = isinstance(hf_names, str)
            if module in ('embed', 'head'):
                views = [p[:cfg.vocab_size]]
            elif module == 'layers.{}.qkv' and fused: # in Pythia and Bloom, heads come first
                views = [rearrange(p, '(qkv h d) ... -> h qkv d ...', qkv=3, h=H)]
            else:
                views = p.split(stacked.get(module.split('.')[-1], [len(p)]))
            for hf_name, view in zip([hf_names] if fused else hf_names, views):
                tensors[hf_name.format(layer and layer[1]) + suffix] = view
        return tensors

    def save_pretrained(self, folder, vocab=None, tokenizer=None, dtype=torch.float32):
        """Writes a Hugging Face folder: config, weights and, if given, vocabulary and tokenizer."""
        folders.write_weights(folder, self._hf_tensors(), dtype)
        self.save_config(folder, vocab, tokenizer, dtype)

    def save_config(self, folder, vocab=None, tokenizer=None, dtype=torch.float32):
        """Writes what a Hugging Face folder has beside the weights."""
        hf = self.cfg.to_hf(str(dtype).removeprefix('torch.'))
        write_json(Path(folder, 'config.json'), hf)
        ends = {key: hf[key] for key in ('bos_token_id', 'eos_token_id') if hf[key] is not None}
        write_json(Path(folder, 'generation_config.json'), {'_from_model_config': True, **ends})
        probes = None
        # A speech vocabulary makes its tokenizer without files to start from.
        if tokenizer is not None or vocab is not None and vocab.kind == 'speech':
            from hub.tokenizer import export_tokenizer
            probes = export_tokenizer(tokenizer, vocab, folder, self.cfg.family)
        if vocab is not None:
            vocab.save(folder, probes)

    @classmethod
    def unfilled(cls, cfg, dtype=torch.float32, device='cpu', attention=None, recompute='none'):
        """A model of a GPTConfig whose weights have any value yet."""
        with torch.device('meta'):
            model = cls(cfg, attention, recompute)
        return model._with_memory(dtype, device)

    def _with_memory(self, dtype, device):
        """A model of shapes alone (on 'meta') with memory, of any content but for the padding."""
        model = self.to(dtype).to_empty(device=device)
        model._clear_padding()
        return model

    @classmethod
    def from_pretrained(cls, folder, dtype=torch.float32, device='cpu', attention=None, recompute='none'):
        """A model from a Hugging Face folder or hub id, read straight into dtype and device.

        attention, recompute: as GPT has them. Refuses tensors that are not those of config.json.
        """
        folder = folders.local_folder(folder)
        folders.check_unchanged(folder, 'config.json', 'model*.safetensors*')
        cfg = folders.read_config(folder)
        folders.check_layers(folder, cfg.n_layer)
        try:
            with torch.device('meta'):
                model = cls(cfg, attention, recompute)
        except RuntimeError as e: # more bytes than can be counted
            raise Refused(f"{folder}/config.json: describes no model ({e})") from None
        names = FAMILIES[cfg.family]['names']
        tied = {names['head'] + '.weight': names['embed'] + '.weight'} if cfg.tied else {}
        prefix = names['embed'].split('.')[0] + '.' # Bloom's files leave it out
        folders.read_weights(folder, model._hf_tensors(), tied, prefix) # shapes, before memory is taken
        model = model._with_memory(dtype, device)
        folders.read_weights(folder, model._hf_tensors(), tied, prefix)
        return model
