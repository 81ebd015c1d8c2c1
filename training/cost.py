"""
What training costs, by formula and before there is a GPU: the memory each GPU holds, and the time of a step. train.py
--memory, scaling/ and bench/plan.py share these.

    memory      weights, gradients, moments, bf16 copies, what the layers keep for the backward, the head's buffers
    step_time   max(products, communication) of each micro-batch, what of the gradients' sum is left over, the optimizer

Products run at `efficiency` of the peak of the chip, an assumption until it is measured (bench/training.py): it is what
attention, norms and launches leave. Communication runs at 0.8 of what the links carry, between nodes over all of a
node's links at once, as NCCL's rings do.
"""
from typing import NamedTuple

import torch
from torch import nn

from kernels.cross_entropy import ROWS
from model import GPT

ROOM = 0.92 # of a GPU's memory that a run may take: the rest is fragments and NCCL's buffers
LINKS = 0.8 # of a link's bytes/s that a large collective reaches
NODE = 8 # GPUs

class Chip(NamedTuple):
    """A GPU of a node of 8, by its maker's data sheet."""
    flops: float    # dense bf16, FLOP/s
    memory: float   # bytes that torch sees
    hbm: float      # bytes/s
    inside: float   # bytes/s to the other GPUs of the node, one way
    outside: float  # bytes/s to other nodes, one way: a 200 Gb/s link for each A100, 400 Gb/s for each H100 and H200

CHIPS = {'A100': Chip(312e12, 85.0e9, 2.04e12, 300e9, 25e9), 'H100': Chip(989.4e12, 85.0e9, 3.35e12, 450e9, 50e9),
         'H200': Chip(989.4e12, 150.1e9, 4.8e12, 450e9, 50e9)}

def chip_of(name):
    """The Chip of a device that torch calls so; None of one that is not here."""
    return next((chip for key, chip in CHIPS.items() if key in name), None)

def memory(cfg, tokens, world=1, parallel='ddp', dtype='bfloat16', recompute='none'):
    """Bytes on each GPU of training a model of shape cfg with micro-batches of so many tokens, as train.py does it.

    weights, gradients, moments and bf16 copies are exact (of shards, two layers are gathered at a time); saved is what the
    layers keep for the backward with Triton's attention (heads not padded), within 2 %; head is one chunk of logits and the
    head's gradient in float32 or, where that is more, the layer that recompute='full' makes again in the backward. The sum is
    the peak, as the head's backward is made at the end of the forward.
    """
    with torch.device('meta'):
        model = GPT(cfg)
    N, table = sum(p.numel() for p in model.parameters()), cfg.rows * cfg.n_word
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    layer = sum(p.numel() for p in model.layers[0].parameters())
    sharded, master = world > 1 and parallel == 'fsdp', 2 if dtype == 'pure_bfloat16' else 4
    word = 4 if dtype == 'float32' else 2 # bytes of the compute,
    stream = 2 if word == 2 and (sharded or master == 2) else 4 # and of x between the layers
    share = world if sharded else 1
    C, F_, D, H, HK = cfg.n_embd, cfg.n_ffn, cfg.head_dim, cfg.n_head, cfg.n_kv_head
    # a token of a layer: what norms and products were given, q | k | v, o and its statistics
    norm = stream if cfg.norm != 'layer' or word == 4 else 4 # torch's LayerNorm keeps float32 under autocast
    norms = {'pre': 2 * norm, 'post': 2 * norm, 'sandwich': 2 * norm + 2 * word,
             'parallel': norm if norm == stream else 2 * norm}[cfg.residual]
    into = 2 * word # what the norms give to the products
    mixer = word * D * (2 * H + 2 * HK + (H + HK) * (cfg.position == 'rope')) + 4 * H
    mlp = word * F_ * (4 if cfg.gated else 1 if cfg.activation == 'relu' else 2)
    whole = C * (norms + into) + mixer + mlp
    each = {'none': whole, 'selective': C * norms + mixer + word * F_ * (1 + cfg.gated), 'full': C * stream}[recompute]
    copies = 0 if word == master else (2 * 2 * layer + 2 * (N - cfg.n_layer * layer)) if sharded else 2 * linear
    head = min(tokens, ROWS['cuda']) * cfg.rows * word + table * (4 + word * (word != master))
    again = tokens * whole + 4 * table if recompute == 'full' else 0 # beside the head's gradient
    return {'weights': master * N // share, 'gradients': master * N // share, 'moments': 2 * master * N // share,
            'copies': copies, 'saved': tokens * (cfg.n_layer * each + C * (norm * (1 + cfg.embed_norm) + word)),
            'head': max(head, again)}

def step_time(cfg, chip, world, batch_tokens, tokens, keys, parallel='ddp', dtype='bfloat16', recompute='none',
              efficiency=0.6):
    """Seconds of a step of batch_tokens over `world` GPUs in micro-batches of so many tokens, as train.py makes it.

    keys: how many keys a token sees on average. Returns {'products', 'communication', 'exposed', 'optimizer', 'seconds',
    'tok_s', 'mfu'}: exposed is the part of the communication that hides behind no product, mfu counts no recomputing.
    """
    with torch.device('meta'):
        model = GPT(cfg)
    N, per_token = sum(p.numel() for p in model.parameters()), model.flops_per_token(keys)
    layers = per_token - 6 * cfg.vocab_size * cfg.n_word
    again = layers / 3 if recompute == 'full' else 0 # a second forward of the layers
    micros = batch_tokens / (world * tokens)
    products = tokens * (per_token + again) / (chip.flops * efficiency) # of a micro-batch
    links = LINKS * min(chip.inside, NODE * chip.outside if world > NODE else chip.inside)
    ring, master = (world - 1) / world / links, 2 if dtype == 'pure_bfloat16' else 4
    word = 4 if dtype == 'float32' else 2
    if parallel == 'fsdp': # weights gathered for the forward and for the backward, gradients summed in float32
        communication = micros * N * (2 * word + 4) * ring
        exposed = max(0.0, communication - micros * products)
    else: # gradients summed once a step, while the last backward goes on
        communication = 2 * N * master * ring
        exposed = max(0.0, communication - products * 2 / 3)
    optimizer = 7 * master * N / (world if parallel == 'fsdp' else 1) / chip.hbm # reads w, g, m, v and writes w, m, v
    seconds = micros * products + exposed + optimizer
    return {'products': micros * products, 'communication': communication, 'exposed': exposed, 'optimizer': optimizer,
            'seconds': seconds, 'tok_s': batch_tokens / seconds,
            'mfu': batch_tokens * per_token / seconds / world / chip.flops}
