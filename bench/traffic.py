"""
Counts the bytes that a layer reads and writes in memory between its matrix products. It needs no GPU:

    python bench/traffic.py               layers of Qwen2.5-0.5B and 7B, in bytes a token
    python bench/traffic.py --compile     what torch.compile plans for 0.5B as well

The layer runs forward and backward in bf16 autocast, on fake tensors, which have sizes and no numbers.
Each operator counts that is no view: each tensor that it reads, and each that it writes, once. Matrix
products and attention have no choice and are left out.

    torch       the definitions of model.py, as they run on a CPU
    kernels     kernels/elementwise.py, as on a GPU
    floor       each activation between two products once: a norm also adds its branch to the residual
    compile     what the fused kernels read and write that torch.compile plans, without kernels/elementwise.py

`norms`, `positions` and `SwiGLU` are parts measured alone; `rest` is residual additions, casts between
float32 and bf16, and the sums of gradients that meet. ms is of a step of 65,536 tokens at the 4.3 TB/s
that a copy reaches on an H200.

Writes bench/results/traffic.json.
"""
import math
import os
import sys
from collections import Counter
from pathlib import Path

if __name__ == '__main__':
    os.environ['TRITON_INTERPRET'] = '1' # before the kernels are defined: lets the model choose them on a CPU

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import save, table
from hub.families import GPTConfig
from kernels import elementwise
from kernels.attention import documents
from model import GPT

LAYERS = {'Qwen2.5-0.5B': 24, 'Qwen2.5-7B': 28}
CONFIGS = {
    'Qwen2.5-0.5B': GPTConfig(vocab_size=256, n_layer=1, n_head=14, n_kv_head=2, n_embd=896, n_ffn=4864),
    'Qwen2.5-7B': GPTConfig(vocab_size=256, n_layer=1, n_head=28, n_kv_head=4, n_embd=3584, n_ffn=18944)}
T = 2048
ROWS = 8
STEP = 65536 # tokens
BANDWIDTH = 4.3e12 # bytes a second
NOT_COUNTED = {'mm', 'addmm', 'bmm', 'attention_forward', 'attention_backward',
               'empty', 'new_empty', 'empty_like', 'empty_strided', 'new_empty_strided'}
OVERWRITING = {'copy_', 'zero_', 'fill_'} # do not read what they write
COLUMNS = ('model', 'of', 'forward', 'backward', 'norms', 'positions', 'SwiGLU', 'rest', 'ms')

def nbytes(x):
    """Bytes of the distinct elements of a tensor: an expanded dimension counts once."""
    sizes = [size for size, stride in zip(x.shape, x.stride()) if stride != 0]
    return math.prod(sizes) * x.element_size()

def tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]

def moved(func, args, kwargs, result):
    """The bytes that a call of an operator reads and writes, 0 if it is a view."""
    read = {} # {id: tensor}, each once
    written = []
    overwriting = func.__name__.partition('.')[0] in OVERWRITING
    for i, argument in enumerate(func._schema.arguments):
        values = tensors(args[i] if i < len(args) else kwargs.get(argument.name))
        changes = argument.alias_info is not None and argument.alias_info.is_write
        if changes:
            written += values
        if not (changes and (overwriting or argument.name == 'out')):
            read |= {id(x): x for x in values}
    storages = {x.untyped_storage()._cdata for x in [*read.values(), *written]}
    written += [x for x in tensors(result) if x.untyped_storage()._cdata not in storages]
    return sum(map(nbytes, [*read.values(), *written])) if written else 0

class Traffic(TorchDispatchMode):
    """Counts the bytes of the operators that run inside, by operator."""
    def __init__(self):
        super().__init__()
        self.bytes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.__name__.partition('.')[0]
        if name not in NOT_COUNTED:
            self.bytes[name] += moved(func, args, kwargs or {}, result)
        return result

def run(f, x):
    """ys = f(x), a tensor or several, in bf16 autocast, and its backward: yields once after each."""
    with torch.autocast('cpu', torch.bfloat16):
        y = f(x)
    yield
    ys = y if isinstance(y, tuple) else (y,)
    torch.autograd.grad(ys, x, [torch.empty_like(y) for y in ys])
    yield

def traffic(f, x):
    """Bytes of the operators of f(x) and of its backward."""
    totals = []
    with Traffic() as counted:
        for _ in run(f, x):
            totals.append(counted.bytes.total())
    return totals[0], totals[1] - totals[0]

def layer_of(cfg, n_rows, length):
    """-> (a layer, the input of its forward, the context that follows it)"""
    model = GPT(cfg, attention='triton')
    rope = model.rotary(torch.arange(length)[:, None])['full']
    docs = documents(torch.zeros(n_rows, length, dtype=torch.int32), 'triton')
    x = torch.zeros(n_rows, length, cfg.n_embd, requires_grad=True)
    return model.layers[0], x, (rope, None, docs, 'triton', None)

def of_parts(cfg):
    """{part: (bytes of a token forward, backward)} of a layer; 'all' is the layer."""
    H, HK, D = cfg.n_head, cfg.n_kv_head, cfg.head_dim
    with FakeTensorMode():
        block, x, context = layer_of(cfg, ROWS, T)
        qkv = torch.zeros(ROWS, T, H + 2 * HK, D, dtype=torch.bfloat16, requires_grad=True)
        h = torch.zeros(ROWS, T, 2 * cfg.n_ffn, dtype=torch.bfloat16, requires_grad=True)

        def positions(qkv):
            if elementwise.fused(qkv):
                return elementwise.rotated(qkv, *context[0], H)
            return block.rotate(qkv, context[0])

        norm = traffic(block.norm1, x)
        parts = {'all': traffic(lambda x: block(x, *context), x),
                 'norms': [2 * n for n in norm],
                 'positions': traffic(positions, qkv),
                 'SwiGLU': traffic(block.act, h)}
    return {part: [n / (ROWS * T) for n in pair] for part, pair in parts.items()}

def floor_of(cfg):
    """The same, of a layer that reads and writes each activation once."""
    C, F = cfg.n_embd, cfg.n_ffn
    rotated = 4 * (cfg.n_head + cfg.n_kv_head) * cfg.head_dim # read and written in bf16
    # x + branch -> x, norm(x): float32, bf16 -> float32, bf16. Backward: the gradient of norm(x), x, and
    # the gradient of x -> the gradient of x, in float32 and, for the branch, in bf16.
    norms = 2 * (4 + 2 + 4 + 2) * C, 2 * (2 + 4 + 4 + 4 + 2) * C
    gates = 3 * 2 * F, 5 * 2 * F
    both = [sum(pair) for pair in zip(norms, gates, (rotated, rotated))]
    return {'all': both, 'norms': norms, 'positions': (rotated, rotated), 'SwiGLU': gates}

def planning(totals):
    """A backend of torch.compile that fuses as inductor does, adds the bytes of its kernels to totals, and
    compiles nothing. Products and attention are not inductor's kernels. It uses internals of torch 2.13."""
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    def plan(module, inputs, **_):
        output = module.graph.output_node()
        values = [node and node.meta.get('val') for node in output.args[0]]
        strides = [value.stride() if isinstance(value, torch.Tensor) else None for value in values]
        output.meta['original_output_strides'] = strides
        fake_mode = next(node.meta['val'].fake_mode for node in module.graph.nodes
                         if isinstance(node.meta.get('val'), torch.Tensor))
        graph = GraphLowering(module)
        with V.set_fake_mode(fake_mode), V.set_graph_handler(graph), V.set_real_inputs(inputs), \
                V.set_debug_handler(DebugContext()):
            graph.run(*inputs)
            graph.init_wrapper_code()
            graph._update_scheduler()
            _, words, _ = graph.count_bytes()
        totals.append(4 * sum(n for node, n in words if 'Extern' not in type(node).__name__))

        def run_eagerly(arguments):
            inputs = list(arguments)
            arguments.clear() # as compiled functions do
            return module.forward(*inputs)

        run_eagerly._boxed_call = True
        return run_eagerly

    return lambda module, inputs: compile_fx(module, inputs, inner_compile=plan)

def planned_bytes(cfg, length):
    """[forward, backward] bytes of the kernels that torch.compile plans for a layer and `length` tokens."""
    torch.compiler.reset()
    block, x, context = layer_of(cfg, 1, length)
    totals = []
    compiled = torch.compile(block.forward, dynamic=False, backend=planning(totals))
    for _ in run(lambda x: compiled(x, *context), x):
        pass
    return totals

def planned(cfg):
    """{'all': bytes of a token} by torch.compile: the difference of two lengths has no weights in it."""
    short, long = planned_bytes(cfg, 64), planned_bytes(cfg, 128)
    return {'all': [(b - a) / 64 for a, b in zip(short, long)]}

def row_of(name, label, parts):
    row = {'model': name, 'of': label, 'forward': round(parts['all'][0]), 'backward': round(parts['all'][1])}
    total = sum(parts['all'])
    for part in ('norms', 'positions', 'SwiGLU'):
        if part in parts:
            row[part] = round(sum(parts[part]))
    if 'norms' in row:
        row['rest'] = round(total) - row['norms'] - row['positions'] - row['SwiGLU']
    return row | {'ms': round(total * STEP * LAYERS[name] / BANDWIDTH * 1e3, 1)}

def rows(compile):
    for name, cfg in CONFIGS.items():
        for label in ('torch', 'kernels'):
            elementwise.fused = lambda x, label=label: label == 'kernels'
            yield row_of(name, label, of_parts(cfg))
        elementwise.fused = lambda x: False
        if compile and name == 'Qwen2.5-0.5B':
            yield row_of(name, 'compile', planned(cfg))
        yield row_of(name, 'floor', floor_of(cfg))

if __name__ == '__main__':
    if sys.argv[1:] not in ([], ['--compile']):
        raise SystemExit(__doc__)
    save('traffic', False, rows=table(rows('--compile' in sys.argv), *COLUMNS))
