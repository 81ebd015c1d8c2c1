"""
The decoder of the seven TextLM families of SIMS (hub/families.py has their tables), each equal to transformers. As Llama
and Qwen2.5 have it, for a row x of C channels, layer by layer:

    x += O attention(rope(q), rope(k), v)      q | k | v = QKV norm(x) + b        norm(x) = w x / sqrt(mean(x^2) + eps)
    x += D (silu(g) * u)                       g | u = U norm(x)                  logits  = E norm(x)
    rope: (a, b) -> (a cos - b sin, b cos + a sin), the two halves of a head; angle = position * theta^(-2i/D)

The others differ by flags of GPTConfig: LayerNorm, an MLP without gate, positions that are learned (OPT) or a slope on
the scores (Bloom's ALiBi), rotation of a part of each head and residuals in parallel (Pythia), soft-caps, windows and
norms on both sides (Gemma2).

A row may hold several documents: doc_start[t] is the index where token t's document begins. Attention stays inside,
positions restart there. The table E has V rows, padded in memory to a multiple of 256: padded rows are zero, never
targets, never sampled, never saved.

    model = GPT.from_pretrained('out/tiny', device='cuda')   a Hugging Face folder or hub id (safetensors only)
    model.extend_vocabulary(vocab)                           TWIST: a text model becomes a speech or a joint one
    losses = model.losses(tokens, doc_start, targets)        (B*T,), 0 where the target is -100
    model.save_pretrained('out/x', vocab=vocab, tokenizer='tiny/tokenizer')   AutoModelForCausalLM loads it

Letters: B batch, T time in tokens, C channels, H query heads, HK key heads, D head size, V vocabulary, L layers.
"""
import math
import re
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from configurator import Refused
from files import write_json
from hub import folders
from hub.families import FAMILIES, GPTConfig
from kernels.attention import attention, attention_decode, documents
from kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_sum

ACTIVATIONS = {'silu': F.silu, 'gelu': F.gelu, 'gelu_tanh': partial(F.gelu, approximate='tanh'), 'relu': F.relu}
OPT_OFFSET = 2                # learned positions: token t has row t + 2

# ----------------------------------------------------------------------------------------------------------------
# the decoder

class _RMSNorm(torch.autograd.Function):
    """w x r with r = 1 / sqrt(mean(x^2) + eps), in half of autograd's passes."""
    @staticmethod
    def forward(ctx, x, w, eps):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) # (..., 1)
        r = length.square_().div_(x.size(-1)).add_(eps).rsqrt_()
        ctx.save_for_backward(x, w, r)
        return (wide * r).mul_(w).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        x, w, r = ctx.saved_tensors
        unit = x * r # (..., C), float32 at least
        dot = unit * dy
        dw = dot.flatten(0, -2).sum(0).to(w.dtype)
        mean = (dot @ w.to(dot.dtype)).div_(-x.size(-1)).unsqueeze(-1) # -mean(w dy x r)
        return (dy * w).to(unit.dtype).addcmul_(unit, mean).mul_(r).to(x.dtype), dw, None

class Norm(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.kind, self.eps = cfg.norm, cfg.norm_eps
        self.weight = nn.Parameter(torch.zeros(cfg.n_embd) if cfg.norm == 'rms+1' else torch.ones(cfg.n_embd))
        self.bias = nn.Parameter(torch.zeros(cfg.n_embd)) if cfg.norm == 'layer' else None

    def forward(self, x):
        if self.kind == 'layer':
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        w = self.weight if self.kind == 'rms' else 1 + self.weight.float()
        if torch.is_grad_enabled():
            return _RMSNorm.apply(x, w, self.eps)
        if not x.is_cpu or x.dtype != torch.float32:
            return torch.rms_norm(x, w.shape, w, self.eps).to(x.dtype)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True) # half the calls rms_norm makes on a CPU
        return torch.full_like(length, self.eps).addcmul_(length, length, value=1 / x.size(-1)).rsqrt_().mul(x).mul_(w)

def _rotate(x, cos, sin):
    wide = x.to(cos.dtype) # at once: arithmetic on mixed types is slow on a CPU
    return (wide * cos).addcmul_(wide.roll(x.size(-1) // 2, -1), sin).to(x.dtype)

class _Rotary(torch.autograd.Function):
    """Rotary positions: x (B, T, heads, D); cos and sin (B or 1, T, 1, D), sin with its first half negated."""
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx, dy):
        cos, sin = ctx.saved_tensors
        return _rotate(dy, cos, -sin), None, None # the inverse

def alibi_slopes(n_head):
    """(H,) float32: 2^(-8 i / H), i = 1..H, for a power of 2; the others come from every second slope of twice it."""
    power = 2 ** int(math.log2(n_head))
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    return torch.tensor(slopes + [2 ** (-4 * i / power) for i in range(1, 2 * (n_head - power), 2)])

class Cache:
    """Keys and values of the columns seen so far: (B, HK, capacity, D) a layer, allocated once."""
    def __init__(self, model, B, capacity, begin=None):
        cfg, like = model.cfg, model.embed
        self.k, self.v = ([like.new_empty(B, cfg.n_kv_head, capacity, cfg.head_dim) for _ in range(cfg.n_layer)]
                          for _ in range(2))
        self.rope = model.rotary(torch.arange(capacity, device=like.device)[:, None]) # each (capacity, 1, n_rope)
        self.length = 0 # columns filled
        self.begin = begin # (B, 1): the column where each row's document begins; None is 0

    def attend(self, layer, q, k, v, docs, how):
        """Stores k, v (B, T, HK, D) and attends with q (B, T, H, D): first the whole prompt, then a token at a time."""
        T, end = q.size(1), self.length + q.size(1)
        self.k[layer].narrow(2, self.length, T).copy_(k.transpose(1, 2))
        self.v[layer].narrow(2, self.length, T).copy_(v.transpose(1, 2))
        if self.length == 0:
            return attention(q, k, v, docs, **how)
        assert T == 1, f"{T} tokens onto a filled cache, expected 1"
        return attention_decode(q, self.k[layer].narrow(2, 0, end), self.v[layer].narrow(2, 0, end), self.begin, **how)

def _again(f, *x):
    return checkpoint(f, *x, use_reentrant=False, preserve_rng_state=False) # nothing here is random

class Block(nn.Module):
    """A layer; where its norms stand is cfg.residual, with f the attention and then the MLP:

    pre x + f(norm(x))    post norm(x + f(x))    sandwich x + norm'(f(norm(x)))    parallel x + f1(norm1(x)) + f2(norm2(x))
    """
    def __init__(self, cfg, layer):
        super().__init__()
        self.cfg, self.layer, self.recompute = cfg, layer, 'none'
        H, HK, D, C = cfg.n_head, cfg.n_kv_head, cfg.head_dim, cfg.n_embd
        self.how = {'scale': cfg.attn_scalar ** -0.5, 'softcap': cfg.attn_softcap,
                    'window': cfg.window if layer % 2 == 0 else 0}
        self.norm1, self.norm2 = Norm(cfg), Norm(cfg)
        self.qkv = nn.Linear(C, (H + 2 * HK) * D, bias=cfg.qkv_bias)
        self.out = nn.Linear(H * D, C, bias=cfg.bias)
        self.up = nn.Linear(C, (1 + cfg.gated) * cfg.n_ffn, bias=cfg.bias) # g | u, or u alone
        self.down = nn.Linear(cfg.n_ffn, C, bias=cfg.bias)
        if cfg.residual == 'sandwich':
            self.post1, self.post2 = Norm(cfg), Norm(cfg)

    def light(self, f, *x):
        """f(*x); when recomputing, what f keeps for the backward is made again there, up to its last product."""
        return _again(f, *x) if self.recompute == 'selective' and torch.is_grad_enabled() else f(*x)

    def attend(self, norm, x, rope, slopes, docs, backend, cache):
        H, HK, R = self.cfg.n_head, self.cfg.n_kv_head, self.cfg.n_rope
        qkv = self.light(lambda x: self.qkv(norm(x)), x).view(*x.shape[:2], H + 2 * HK, -1) # (B, T, H + 2 HK, D)
        qk, v = qkv.narrow(2, 0, H + HK), qkv.narrow(2, H + HK, HK)
        if rope is not None:
            rotate = _Rotary.apply if torch.is_grad_enabled() else _rotate
            qk = rotate(qk, *rope) if R == qk.size(-1) else torch.cat((rotate(qk[..., :R], *rope), qk[..., R:]), -1)
        q, k = qk.narrow(2, 0, H), qk.narrow(2, H, HK)
        how = {**self.how, 'slopes': slopes}
        if cache is None:
            y = attention(q, k, v, docs, **how, backend=backend)
        else:
            y = cache.attend(self.layer, q, k, v, docs, how)
        return self.out(y.flatten(2)) # of (B, T, H, D)

    def mlp(self, norm, x):
        h = self.light(lambda x: self.up(norm(x)), x) # (B, T, n_ffn), or of g | u twice that
        return self.light(lambda h: self.down(self.act(h)), h)

    def act(self, h):
        act = ACTIVATIONS[self.cfg.activation]
        if self.cfg.gated:
            g, u = h.chunk(2, -1) # (B, T, n_ffn) each
            return act(g) * u
        return act(h)

    def forward(self, x, *where):
        match self.cfg.residual:
            case 'pre':
                x = x + self.attend(self.norm1, x, *where)
                return x + self.mlp(self.norm2, x)
            case 'post':
                x = self.norm1(x + self.attend(lambda x: x, x, *where))
                return self.norm2(x + self.mlp(lambda x: x, x))
            case 'sandwich':
                x = x + self.post1(self.attend(self.norm1, x, *where))
                return x + self.post2(self.mlp(self.norm2, x))
            case 'parallel':
                return x + self.attend(self.norm1, x, *where) + self.mlp(self.norm2, x)

class GPT(nn.Module):
    def __init__(self, cfg: GPTConfig):
        """Random weights: normal with std 0.02, biases 0, norms 1, from torch's global generator."""
        super().__init__()
        self.cfg = cfg
        self.attention = None # of training: None, the fastest of the device; 'triton', 'one-pass', 'sdpa'
        table = lambda rows, width: nn.Parameter(torch.empty(rows, width))
        self.embed = table(cfg.rows, cfg.n_word)
        self.head = None if cfg.tied else table(cfg.rows, cfg.n_word)
        self.positions = table(cfg.n_positions + OPT_OFFSET, cfg.n_embd) if cfg.position == 'learned' else None
        self.embed_norm = Norm(cfg) if cfg.embed_norm else None
        wide = cfg.n_word != cfg.n_embd
        self.word_in = nn.Linear(cfg.n_word, cfg.n_embd, bias=False) if wide else None
        self.word_out = nn.Linear(cfg.n_embd, cfg.n_word, bias=False) if wide else None
        self.layers = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layer))
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
        """(padded rows, C)"""
        return self.embed if self.head is None else self.head

    def rotary(self, positions):
        """cos and sin of int positions (...,) as (..., n_rope), for both halves of what is rotated, sin negated in the
        first."""
        R = self.cfg.n_rope
        freq = self.cfg.rope_theta ** -(torch.arange(0, R, 2, device=positions.device).float() / R) # (R/2,) a token
        if self.cfg.rope_scaling is not None: # llama3: long waves are stretched, short ones kept, a ramp between
            factor, low, high, original = self.cfg.rope_scaling
            ramp = ((original * freq / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
            freq = freq * (ramp + (1 - ramp) / factor)
        angle = positions[..., None].float() * freq
        cos, sin = angle.cos(), angle.sin()
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)

    def forward(self, tokens, doc_start=None, cache=None, gap=None):
        """tokens, doc_start (B, T) -> hidden (B, T, n_word) for the head; with a cache, of its next T columns.

        gap (B, T, 2), where documents share their beginning: the places that a branch leaves out, (0, 0) for none."""
        cfg, T, begin = self.cfg, tokens.size(1), 0 if cache is None else cache.length
        position = torch.arange(begin, begin + T, device=tokens.device) # (T,)
        if doc_start is not None:
            position = position - doc_start # (B, T)
        if gap is not None: # a mask counts distances along the row
            assert tokens.is_cpu or not (cfg.window or cfg.position == 'alibi'), "gaps with windows or ALiBi: CPU only"
            position = position - (gap[..., 1] - gap[..., 0])
        backend = self.attention if cache is None else None
        docs = documents(doc_start, backend, gap) if doc_start is not None and begin == 0 else None
        x = F.embedding(tokens, self.embed) # (B, T, n_word)
        if cfg.embed_scale:
            x = x * torch.tensor(cfg.n_embd ** 0.5, dtype=x.dtype) # rounded as transformers rounds it
        if self.word_in is not None:
            x = self.word_in(x)
        rope = slopes = None
        if cfg.position == 'rope':
            table = self.rotary(torch.arange(T, device=tokens.device)[:, None]) if cache is None else cache.rope
            rope = [t[begin:begin + T] if doc_start is None else t[position] for t in table] # (T, 1, R) or (B, T, 1, R)
        elif cfg.position == 'learned':
            if begin + T > cfg.n_positions:
                raise Refused(f"{begin + T} tokens in a row, and the model has {cfg.n_positions} positions")
            x = x + F.embedding(position + OPT_OFFSET, self.positions)
        else:
            slopes = alibi_slopes(cfg.n_head).to(x.device)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        for block in self.layers:
            where = x, rope, slopes, docs, backend, cache
            x = _again(block, *where) if block.recompute == 'full' and torch.is_grad_enabled() else block(*where)
        if cache is not None:
            cache.length += T
        x = x if self.norm is None else self.norm(x)
        return x if self.word_out is None else self.word_out(x)

    def logits(self, hidden, head=None):
        """(..., n_word) -> (..., V), or by some rows of the head alone (n, n_word) -> (..., n)"""
        logits = F.linear(hidden, self.head_weight if head is None else head)[..., :self.cfg.vocab_size]
        cap = self.cfg.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def losses(self, tokens, doc_start, targets, gap=None, rows=None):
        """-log p of each target, float32 (B*T,), 0 where the target is -100; or of those (n,) that follow rows (n,) of B*T."""
        return self._head(linear_cross_entropy, tokens, doc_start, targets, gap, rows)

    def loss_sum(self, tokens, doc_start, targets):
        """The sum of losses, (), by the faster way for training, and losses without a gradient."""
        return self._head(linear_cross_entropy_sum, tokens, doc_start, targets)

    def _head(self, way, tokens, doc_start, targets, gap=None, rows=None):
        hidden, cfg = self(tokens, doc_start, gap=gap).flatten(0, 1), self.cfg
        return way(hidden if rows is None else hidden[rows], self.head_weight, targets.flatten(), cfg.vocab_size, cfg.logit_softcap)

    # ------------------------------------------------------------------------------------------------------------
    # counting

    def num_params(self):
        """Parameters, the padding of the tables not counted."""
        tables = [self.embed] if self.head is None else [self.embed, self.head]
        body = sum(p.numel() for p in self.parameters()) - sum(t.numel() for t in tables)
        return body + len(tables) * self.cfg.vocab_size * self.cfg.n_word

    def flops_per_token(self, keys):
        """Forward and backward, per token: 6 a weight of a product, the head counted once, and attention to so many keys:
        the T of a row by PaLM's convention, (T + 1) / 2 causally, or on average the token's place in its document."""
        weights = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        seen = sum(min(keys, block.how['window'] or keys) for block in self.layers) # at most a window
        return 6 * (weights + self.cfg.vocab_size * self.cfg.n_word) + 12 * seen * self.cfg.n_head * self.cfg.head_dim

    # ------------------------------------------------------------------------------------------------------------
    # generation

    @torch.inference_mode()
    def generate(self, prompts, max_new_tokens, temperature=1.0, top_k=None, repetition_penalty=1.0, allowed=None,
                 stop=(), generator=None):
        """Continuations of the prompts (lists of ids, of any lengths) as lists of new ids, a stop id included.

        temperature 0 is greedy. allowed: (V,) bool, the ids that may be chosen; no logits are made of others.
        repetition_penalty as transformers: logits of ids already in the text are divided by it where positive, else multiplied.
        """
        V, device = self.cfg.vocab_size, self.embed.device
        if min(map(len, prompts)) == 0:
            raise Refused("generate: an empty prompt; give at least one token (<speech>, BOS)")
        if min(map(min, prompts)) < 0 or max(map(max, prompts)) >= V:
            raise Refused(f"generate: a prompt has an id outside 0..{V - 1}, the model's vocabulary")
        B, P, limit = len(prompts), max(map(len, prompts)), self.cfg.n_positions
        if P + max_new_tokens - 1 > limit: # the last new one is not read
            raise Refused(f"generate: a prompt of {P} tokens and {max_new_tokens} new ones, and the model has {limit} positions")
        # prompts end together, each a document of its own that begins after its padding
        tokens = torch.zeros(B, P, dtype=torch.long, device=device)
        begin = torch.tensor([[P - len(prompt)] for prompt in prompts], device=device) # (B, 1)
        used = torch.zeros(B, V, dtype=torch.bool, device=device) # ids in the text so far
        for row, seen, prompt in zip(tokens, used, prompts):
            row[P - len(prompt):] = torch.tensor(prompt)
            seen[prompt] = True
        cache = Cache(self, B, P + max_new_tokens, begin if begin.any() else None)
        doc_start = None if cache.begin is None else torch.where(torch.arange(P, device=device) < begin, 0, begin)
        new, running = [[] for _ in prompts], set(range(B))
        read, ids, head = [w for block in self.layers for w in (block.qkv.weight, block.up.weight)], None, None
        if allowed is None or allowed.all():
            read.append(self.head_weight)
        else:
            ids = allowed.to(device).nonzero()[:, 0]
            head = self.head_weight[ids] # of 152,167 ids of a joint vocabulary 500 are units
        with _by_columns(read if device.type == 'cpu' else []):
            for _ in range(max_new_tokens):
                logits = self.logits(self(tokens, doc_start, cache)[:, -1], head).float() # (B, V or allowed ids)
                if repetition_penalty != 1:
                    used.scatter_(1, tokens[:, -1:], True) # the last id; one of the prompt's at first
                    logits = torch.where(used if ids is None else used[:, ids], _penalized(logits, repetition_penalty), logits)
                tokens = _choose(logits, temperature, top_k, generator) # (B, 1)
                tokens = tokens if ids is None else ids[tokens]
                for i, token in enumerate(tokens[:, 0].tolist()):
                    if i in running:
                        new[i].append(token)
                        if token in stop:
                            running.discard(i)
                if not running:
                    break
                doc_start = cache.begin
        return new

    # ------------------------------------------------------------------------------------------------------------
    # vocabulary and files

    @torch.no_grad()
    def extend_vocabulary(self, vocab, new_rows='hf', generator=None):
        """TWIST: a text model becomes one of vocab (vocab.py), in place; make optimizers after it.

        joint: rows of text ids stay bit for bit. speech: the ids are new, of size K + 2. new_rows:
          hf      the papers' code: rows of the old table stay where they are (unused ids, and text rows for a speech
                  vocabulary), the rest are the old rows' mean with noise of 1e-9 times their covariance
          mean    every new id starts as the mean of the old rows
          normal  every new id is drawn with the old rows' mean and standard deviation of each column
        """
        if new_rows not in ('hf', 'mean', 'normal'):
            raise Refused(f"new_rows={new_rows}: expected hf, mean or normal")
        R, V, n_text = self.cfg.vocab_size, vocab.size, vocab.n_text
        if R < n_text:
            raise Refused(f"extend_vocabulary: the model has {R} rows, fewer than the tokenizer's {n_text} ids")
        if vocab.kind == 'text':
            return # unused rows of the table stay
        kept = min(R, V) if new_rows == 'hf' else n_text # n_text is 0 for a speech vocabulary
        self.cfg = replace(self.cfg, vocab_size=V)
        if vocab.kind == 'speech':
            self.cfg = replace(self.cfg, bos_token_id=vocab.bos, eos_token_id=vocab.bos)
        for name in ('embed', 'head'):
            old = getattr(self, name)
            if old is None:
                continue
            table, rows = old.new_zeros(self.cfg.rows, old.size(1)), old[:kept or R].float()
            table[:kept] = old[:kept]
            mean, noise = rows.mean(0), 0.0
            draw = lambda *shape: torch.randn(*shape, generator=generator).to(rows.device) # the same on any device
            if new_rows == 'hf' and V > kept: # a random sum of the centered rows has their covariance
                noise = (1e-9 / len(rows)) ** 0.5 * draw(V - kept, len(rows)) @ (rows - mean)
            elif new_rows == 'normal':
                noise = draw(V - kept, old.size(1)) * rows.std(0)
            table[kept:V] = (mean + noise).to(table.dtype)
            setattr(self, name, nn.Parameter(table))

    def _places(self):
        """Hugging Face's name -> the rows of ours that hold the tensor, a view."""
        cfg, places = self.cfg, {}
        H, D = cfg.n_head, cfg.head_dim
        parts = {'qkv': [H * D] + 2 * [cfg.n_kv_head * D], 'up': (1 + cfg.gated) * [cfg.n_ffn]}
        for name, p in self.named_parameters():
            p = p.detach()
            layer = re.search(r'layers\.(\d+)\.', name)
            ours, kind = re.fullmatch(r'(.*?)(\.weight|\.bias)?', re.sub(r'layers\.\d+\.', 'layers.{}.', name)).groups()
            theirs = FAMILIES[cfg.family]['names'][ours]
            if ours in ('embed', 'head'):
                views = [p[:cfg.vocab_size]]
            elif ours == 'layers.{}.qkv' and isinstance(theirs, str): # rows by head there: (H, 3, D) is (3, H, D) here
                views = [p.view(3, H, D, *p.shape[1:]).transpose(0, 1)]
            else:
                views = p.split(parts.get(ours.split('.')[-1], [len(p)]))
            for one, view in zip([theirs] if isinstance(theirs, str) else theirs, views):
                places[one.format(layer and layer[1]) + (kind or '.weight')] = view
        return places

    def save_pretrained(self, folder, vocab=None, tokenizer=None, dtype=torch.float32):
        """Writes a Hugging Face folder: config, weights, and vocab.json and tokenizer files where these are given."""
        folders.write_weights(folder, self._places(), dtype)
        hf = self.cfg.to_hf(str(dtype).removeprefix('torch.'))
        write_json(Path(folder, 'config.json'), hf)
        write_json(Path(folder, 'generation_config.json'), {'_from_model_config': True, **{
            key: hf[key] for key in ('bos_token_id', 'eos_token_id') if hf[key] is not None}})
        if vocab is not None:
            vocab.save(folder)
        if tokenizer is not None or vocab is not None and vocab.kind == 'speech': # which needs no files to start from
            from hub.tokenizer import export_tokenizer
            export_tokenizer(tokenizer, vocab, folder)

    @classmethod
    def from_pretrained(cls, folder, dtype=torch.float32, device='cpu'):
        """A model from a Hugging Face folder or hub id: every tensor accounted for, straight to dtype and device."""
        folder = folders.local_folder(folder)
        cfg = folders.read_config(folder)
        with torch.device('meta'):
            model = cls(cfg)
        model = model.to(dtype).to_empty(device=device)
        model._clear_padding()
        names = FAMILIES[cfg.family]['names']
        tied = {names['head'] + '.weight': names['embed'] + '.weight'} if cfg.tied else {}
        folders.read_weights(folder, model._places(), tied, names['embed'].split('.')[0] + '.') # Bloom's files leave that out
        return model

@contextmanager
def _by_columns(weights):
    """Stores weights (out, in) by columns meanwhile: a CPU's product with one token reads them faster that way."""
    def store(way):
        with torch.inference_mode(False), torch.no_grad():
            for w in weights:
                w.data = way(w)
    try:
        store(lambda w: w.t().contiguous().t())
        yield
    finally:
        store(torch.Tensor.contiguous)

def _penalized(logits, penalty):
    return torch.where(logits > 0, logits / penalty, logits * penalty)

def _choose(logits, temperature, top_k, generator):
    """logits (B, n) -> which of the n (B, 1)"""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    best, which = logits.topk(min(top_k or logits.size(-1), logits.size(-1))) # (B, k): drawing among n costs much more
    return which.gather(1, torch.multinomial((best / temperature).softmax(-1), 1, generator=generator))
