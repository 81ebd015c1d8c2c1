"""
Decoding with a key-value cache: a step takes one token of each row.

A step is the model's own forward, in which nothing but numbers in memory and one length differs
from token to token: so it can be compiled, or captured once as a CUDA graph and replayed. In eager
mode and compiled, attention goes over the columns that are filled, and needs no mask where all
prompts are of one length. `GPT.stream` of model.py is the loop around it.
"""
from contextlib import contextmanager
from functools import partial

import torch

from configurator import Refused
from kernels.attention import attention, attention_decode, decode_bias


class Cache:
    """Keys and values of the columns so far: (B, HK, capacity, D) a layer, allocated once.

    n is 0 while the prompts are read. Then it is the number of columns that the next token attends
    to, of which those behind the token's own, `column` (1,), are masked: n may be the capacity
    throughout, for a CUDA graph, whose shapes and numbers are fixed.
    """
    def __init__(self, model, B, capacity, begin=None):
        cfg = model.cfg
        shape = B, cfg.n_kv_head, capacity, cfg.head_dim
        self.k = [model.embed.new_zeros(shape) for _ in range(cfg.n_layer)] # 0 times a masked NaN would be a NaN
        self.v = [model.embed.new_zeros(shape) for _ in range(cfg.n_layer)]
        column = torch.arange(capacity, device=model.embed.device)
        self.rope = model.rotary(column[:, None]) # each (capacity, 1, n_rope)
        self.column = column[:1].clone()
        self.begin = begin # (B, 1), the column at which each row's document begins; None means 0
        self.slopes = None
        self.n = 0
        self.is_last = True # the token's own column is the last of the n
        self.biases = {} # of a step, by window

    def attend(self, layer, q, k, v, docs, options):
        """Stores k, v (B, T, HK, D), attends with q (B, T, H, D): the prompts, then a token of each."""
        if self.n == 0:
            self.k[layer].narrow(2, 0, q.size(1)).copy_(k.transpose(1, 2))
            self.v[layer].narrow(2, 0, q.size(1)).copy_(v.transpose(1, 2))
            self.slopes = options['slopes']
            return attention(q, k, v, docs, **options)
        self.k[layer].index_copy_(2, self.column, k.transpose(1, 2))
        self.v[layer].index_copy_(2, self.column, v.transpose(1, 2))
        keys = self.k[layer].narrow(2, 0, self.n)
        values = self.v[layer].narrow(2, 0, self.n)
        bias = self.bias(options['window'], q.dtype)
        return attention_decode(q, keys, values, bias, options['scale'], options['softcap'])

    def bias(self, window, dtype):
        """decode_bias of this step, None where all n columns are seen alike; computed once for all layers."""
        if self.is_last and self.begin is None and self.slopes is None and not 0 < window < self.n:
            return None
        if window not in self.biases:
            self.biases[window] = decode_bias(self.column, self.n, self.begin, window, self.slopes, dtype)
        return self.biases[window]

class Steps:
    """Runs the model on a token of each row: tokens (B, 1) at a column -> hidden states (B, n_word).

    decode: 'eager'; 'graph', with all shapes fixed, captured as a CUDA graph on a GPU; 'compile', by
    torch.compile; 'auto', a graph on a GPU and else eager.
    """
    def __init__(self, model, cache, decode):
        expected = ('auto', 'eager', 'graph', 'compile')
        if decode not in expected:
            raise Refused(f"decode is {decode!r}, expected {', '.join(expected)}")
        self.cache = cache
        self.capacity = cache.k[0].size(2)
        self.cuda = model.embed.is_cuda
        self.fixed = decode == 'graph' or decode == 'auto' and self.cuda
        self.graph = None
        step = _step
        if decode == 'compile': # the length is a symbol, so that no length compiles anew
            step = torch.compile(_step, fullgraph=True, dynamic=True, options={'cpp_wrapper': not self.cuda})
        self.step = partial(step, model, cache)

    def __call__(self, tokens, column):
        self.cache.column.fill_(column)
        if not self.fixed:
            return self.step(tokens, column + 1, True)
        if not self.cuda:
            return self.step(tokens, self.capacity, False)
        if self.graph is None:
            self.capture(tokens)
        self.tokens.copy_(tokens)
        self.graph.replay()
        return self.hidden

    def capture(self, tokens):
        self.tokens = tokens.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream): # what is set up in a first run must not be captured
            for _ in range(2): # writes the same keys and values each time
                self.step(self.tokens, self.capacity, False)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.hidden = self.step(self.tokens, self.capacity, False)

def _step(model, cache, tokens, n, is_last):
    """Hidden states (B, n_word) of tokens (B, 1) in the cache's column, which attend to n columns."""
    cache.n = n
    cache.is_last = is_last
    cache.biases = {}
    return model(tokens, cache.begin, cache)[:, -1]

@contextmanager
def by_columns(weights):
    """Stores weights (out, in) by columns inside the block: up to 1.4 x as fast for 4 to 32 rows on a CPU."""
    def store(layout):
        with torch.inference_mode(False), torch.no_grad():
            for w in weights:
                w.data = layout(w)
    try:
        store(lambda w: w.t().contiguous().t())
        yield
    finally:
        store(torch.Tensor.contiguous)

class Order:
    """Keeps flat units in the order of their codebooks: a unit of codebook k only behind one of codebook k - 1.

    codebook: (V,) that of each id, -1 for ids that are no units. ids: those that the logits are of,
    None for all. tokens: (B, T), the prompts, of which the last ids count. Behind the last codebook
    of a frame, and behind any other id, comes the first codebook or an id that is no unit.
    """
    def __init__(self, codebook, ids, tokens):
        self.codebook = codebook
        self.n = int(codebook.max()) + 1
        choices = codebook if ids is None else codebook[ids]
        due = torch.arange(self.n, device=codebook.device)[:, None]
        self.bias = torch.zeros(self.n, len(choices), device=codebook.device)
        self.bias[choices.clamp(min=0) != due] = -torch.inf
        self.advance(tokens[:, -1:])

    def advance(self, tokens):
        """tokens (B, 1): the newest id of each row."""
        self.due = (self.codebook[tokens[:, 0]] + 1) % self.n

    def mask(self, logits):
        """logits (B, ids), with -inf where an id may not follow."""
        return logits + self.bias[self.due]

def penalize(logits, used, penalty):
    """logits (B, n), where used (B, n) bool: divided by penalty if positive, multiplied by it if negative."""
    return torch.where(used, torch.where(logits > 0, logits / penalty, logits * penalty), logits)

def choose(logits, temperature, top_k, generator):
    """logits (B, n) -> the index of a chosen one in each row, (B, 1)"""
    if temperature == 0:
        return logits.max(-1, keepdim=True).indices # argmax takes twice as long on a CPU
    n = logits.size(-1)
    top, index = logits.topk(min(top_k or n, n)) # (B, k); drawing among all n costs much more
    p = (top / temperature).softmax(-1)
    return index.gather(1, torch.multinomial(p, 1, generator=generator))
