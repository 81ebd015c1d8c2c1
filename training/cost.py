"""
What training costs, by formula and before there is a GPU: the memory on each GPU and the time of a
step. train.py --memory, scaling/ and bench/plan.py share these formulas.

    memory      weights, gradients, moments, bf16 copies, saved activations, the head's buffers
    step_time   max(products, communication) of each micro-batch, the part of the gradients' sum that
                hides behind no product, and the optimizer

Matrix products run at `efficiency` of the chip's peak, which is what attention, norms and launches
leave. It is an assumption until bench/training.py measures it. Communication runs at 0.8 of what
the links carry. Between nodes it uses all links of a node at once, as NCCL's rings do.
"""
from typing import NamedTuple

import torch
from torch import nn

from kernels.cross_entropy import ROWS
from kernels.elementwise import can_rotate
from model import GPT

ROOM = 0.92 # share of a GPU's memory that a run may take: the rest is fragments and NCCL's buffers
LINKS = 0.8 # share of a link's bytes/s that a large collective reaches
NODE = 8 # GPUs in a node

class Chip(NamedTuple):
    """A GPU in a node of 8, by its maker's data sheet."""
    flops: float    # dense bf16, FLOP/s
    memory: float   # bytes that torch sees
    hbm: float      # bytes/s
    inside: float   # bytes/s to the other GPUs of the node, one way
    outside: float  # bytes/s to other nodes, one way: 200 Gb/s for each A100, 400 for each H100, H200

CHIPS = {'A100': Chip(312e12, 85.0e9, 2.04e12, 300e9, 25e9),
         'H100': Chip(989.4e12, 85.0e9, 3.35e12, 450e9, 50e9),
         'H200': Chip(989.4e12, 150.1e9, 4.8e12, 450e9, 50e9)}

def chip_of(name):
    """The Chip whose key is part of torch's name of a device, or None."""
    return next((chip for key, chip in CHIPS.items() if key in name), None)

def _bytes_of(dtype):
    """Bytes of a number in a product (activations, copies) and of one in the trained weights."""
    word = 4 if dtype == 'float32' else 2
    master = 2 if dtype == 'pure_bfloat16' else 4
    return word, master

def _saved_per_token(cfg, word, stream):
    """({recompute: bytes that a layer saves of a token}, bytes that a norm saves of a channel).

    word, stream: bytes of a number in a product, and in the row x between layers.
    """
    C, D, H, HK = cfg.n_embd, cfg.head_dim, cfg.n_head, cfg.n_kv_head
    # Each norm saves its input; torch's LayerNorm saves it in float32 under autocast.
    norm = 4 if cfg.norm == 'layer' and word == 2 else stream
    norms = {'pre': 2 * norm, 'post': 2 * norm, 'after': 2 * word, 'sandwich': 2 * norm + 2 * word,
             'parallel': norm if norm == stream else 2 * norm}[cfg.residual]
    # Attention saves q | k | v, its output and float32 statistics; q | k before their norm; and before their
    # rotation where kernels/elementwise.py does not serve the heads.
    normed = cfg.qk_norm != 'none'
    rotated = sum(cfg.rotated) / cfg.n_layer if cfg.position == 'rope' else 0 # share of the layers
    changed = 1 if normed else rotated * (not can_rotate(D, cfg.n_rope))
    attention = word * D * (2 * H + 2 * HK + (H + HK) * changed) + 4 * H
    attention += 4 * (H + HK) * normed # the norms' 1 / length
    up = word * cfg.n_ffn * (1 + cfg.gated)
    # Tensors of n_ffn channels: the input of `down`, what `up` made, and of a gate other than SwiGLU act(g).
    n_mlp = 3 + (cfg.activation != 'silu') if cfg.gated else 1 if cfg.activation == 'relu' else 2
    product_inputs = C * 2 * word # the norms' outputs
    return {
        'none': C * norms + product_inputs + attention + word * cfg.n_ffn * n_mlp,
        # Where no norm stands before the products, selective recomputing keeps the rows x themselves.
        'selective': C * (norms + 2 * stream * (cfg.residual == 'after')) + attention + up,
        'full': C * stream}, norm

def memory(cfg, tokens, world=1, parallel='ddp', dtype='bfloat16', recompute='none', optimizer='adamw'):
    """Bytes on each GPU while train.py trains a model with micro-batches of `tokens` tokens, by part.

    weights, gradients, moments: exact; with FSDP, of a shard. Muon has one moment of a layer's matrix, AdamW two
    copies    of the weights in bf16, exact; FSDP gathers two layers at a time
    saved     what the layers save for the backward with Triton's attention (heads not padded), to 2 %
    head      a chunk of logits and the head's gradient in float32; or, where that is more, that
              gradient and the layer that recompute='full' computes again in the backward

    The sum is the peak, as the head's backward runs at the end of the forward.
    """
    with torch.device('meta'):
        model = GPT(cfg)
    n_params = sum(p.numel() for p in model.parameters())
    n_linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    n_layer_params = sum(p.numel() for p in model.layers[0].parameters())
    n_table = cfg.rows * cfg.n_word
    n_matrices = sum(p.numel() for p in model.layers.parameters() if p.ndim == 2)
    n_moments = 2 * n_params - (n_matrices if optimizer == 'muon' else 0)
    sharded = world > 1 and parallel == 'fsdp'
    shards = world if sharded else 1
    word, master = _bytes_of(dtype)
    stream = 2 if word == 2 and (sharded or master == 2) else 4
    saved, norm = _saved_per_token(cfg, word, stream)
    if word == master:
        copies = 0
    elif sharded:
        copies = 2 * 2 * n_layer_params + 2 * (n_params - cfg.n_layer * n_layer_params)
    else:
        copies = 2 * n_linear
    logits = min(tokens, ROWS['cuda']) * cfg.rows * word
    head = logits + n_table * (4 + word * (word != master))
    if recompute == 'full':
        head = max(head, tokens * saved['none'] + 4 * n_table)
    outside_layers = cfg.n_embd * (norm * (1 + cfg.embed_norm) + word)
    return {
        'weights': master * n_params // shards,
        'gradients': master * n_params // shards,
        'moments': master * n_moments // shards,
        'copies': copies,
        'saved': tokens * (cfg.n_layer * saved[recompute] + outside_layers),
        'head': head}

def step_time(cfg, chip, world, batch_tokens, tokens, keys, parallel='ddp', dtype='bfloat16',
              recompute='none', efficiency=0.6):
    """Seconds of a step of train.py: batch_tokens on `world` GPUs, in micro-batches of `tokens`.

    keys: how many keys a token sees on average. Returns {'products', 'communication', 'exposed',
    'optimizer', 'seconds', 'tok_s', 'mfu'}: exposed is the communication that hides behind no
    product, and mfu does not count what is recomputed.
    """
    with torch.device('meta'):
        model = GPT(cfg)
    n_params = sum(p.numel() for p in model.parameters())
    flops = model.flops_per_token(keys)
    layer_flops = flops - 6 * cfg.vocab_size * cfg.n_word
    recomputed = layer_flops / 3 if recompute == 'full' else 0 # the layers' forward once more
    n_micro = batch_tokens / (world * tokens)
    products = tokens * (flops + recomputed) / (chip.flops * efficiency) # of a micro-batch
    slowest = min(chip.inside, NODE * chip.outside) if world > NODE else chip.inside
    ring = (world - 1) / world / (LINKS * slowest) # seconds a byte
    word, master = _bytes_of(dtype)
    if parallel == 'fsdp':
        # Each micro-batch gathers the weights for forward and backward, and sums float32 gradients.
        communication = n_micro * n_params * (2 * word + 4) * ring
        exposed = max(0.0, communication - n_micro * products)
    else:
        # Gradients are summed once a step, during the backward of the last micro-batch.
        communication = 2 * n_params * master * ring
        exposed = max(0.0, communication - products * 2 / 3)
    # AdamW reads weights, gradients and two moments, and writes weights and moments.
    optimizer = 7 * master * n_params / (world if parallel == 'fsdp' else 1) / chip.hbm
    seconds = n_micro * products + exposed + optimizer
    return {
        'products': n_micro * products,
        'communication': communication,
        'exposed': exposed,
        'optimizer': optimizer,
        'seconds': seconds,
        'tok_s': batch_tokens / seconds,
        'mfu': batch_tokens * flops / seconds / world / chip.flops}
