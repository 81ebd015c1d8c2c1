"""
Refuses runs of train.py and dpo.py that cannot work, in one line and before any weights are read.
"""
import os
from importlib.util import find_spec

import torch

from configurator import Refused
from files import progress
from kernels.attention import choose_backend
from training.peers import together

CHOICES = {'vocab': ('joint', 'speech', 'text'), 'new_rows': ('hf', 'mean', 'normal'),
           'schedule': ('cosine', 'constant', 'inverse_sqrt', 'wsd'), 'device': ('auto', 'cuda', 'cpu'),
           'attention': (None, 'triton', 'hopper', 'sdpa'), 'parallel': ('ddp', 'fsdp'),
           'recompute': ('none', 'selective', 'full'), 'optimizer': ('adamw', 'muon'),
           'dtype': ('bfloat16', 'float32', 'pure_bfloat16'), 'verify': ('resume', 'always', 'never')}
POSITIVE = ('n_layer', 'n_head', 'n_kv_head', 'n_embd', 'head_dim', 'n_ffn', 'rope_theta', 'block_size',
            'batch_tokens', 'micro_batch', 'lr', 'decay', 'clip', 'max_steps', 'max_tokens', 'max_flops',
            'max_seconds', 'timeout', 'log_every', 'eval_every', 'eval_rows', 'save_every')

def check_settings(cfg, budgets):
    """Refuses an unknown choice, a count of 0, a second budget, an impossible schedule."""
    for name, choices in CHOICES.items():
        value = getattr(cfg, name, choices[0])
        if value not in choices:
            raise Refused(f"{name}={value!r}: expected one of {', '.join(map(str, choices))}")
    for name in POSITIVE:
        value = getattr(cfg, name, None)
        if value is not None and not value > 0:
            raise Refused(f"{name}={value}: expected more than 0")
    chosen = [name for name in budgets if getattr(cfg, name) is not None]
    if len(chosen) != 1:
        raise Refused(f"expected exactly one of {', '.join(budgets)}, got {' and '.join(chosen) or 'none'}")
    if cfg.wandb and not find_spec('wandb'):
        raise Refused(f"wandb={cfg.wandb!r}: expected its package; pip install wandb")
    if not 0 <= cfg.min_lr <= cfg.lr:
        raise Refused(f"min_lr={cfg.min_lr}: expected 0 to lr={cfg.lr}")
    if not 0 <= cfg.warmup < 1 or cfg.schedule == 'wsd' and cfg.warmup + cfg.decay > 1:
        raise Refused(f"warmup={cfg.warmup}, decay={cfg.decay}: "
                      "expected shares of the budget, of sum 1 at most")
    if cfg.schedule == 'inverse_sqrt' and cfg.warmup == 0:
        raise Refused("schedule='inverse_sqrt' falls from the end of the warm-up: "
                      "expected warmup above 0")

def check_init(cfg, shape_settings):
    """Refuses a shape beside an init that has one, and init='scratch' without shape or tokenizer."""
    shape = [name for name in shape_settings if getattr(cfg, name) is not None]
    if cfg.init_config and cfg.init != 'scratch':
        raise Refused(f"init_config={cfg.init_config!r}: goes with init='scratch', "
                      f"not with init={cfg.init!r}")
    if cfg.init_config or cfg.init != 'scratch':
        if shape:
            raise Refused(f"{shape[0]}: {cfg.init_config or cfg.init} has one; "
                          "it goes with init='scratch' alone")
        return
    missing = [name for name in ('n_layer', 'n_head', 'n_embd', 'n_ffn') if name not in shape]
    if missing:
        raise Refused(f"init='scratch': expected {', '.join(missing)} too, "
                      "or init_config=FOLDER to take its shape")
    if cfg.vocab != 'speech' and not cfg.tokenizer:
        raise Refused("init='scratch': expected tokenizer=FOLDER, the text tokenizer of the data")

def check_attention(cfg, shape, device):
    """Refuses an attention backend that the device or the model cannot have."""
    dtype = torch.float32 if cfg.dtype == 'float32' else torch.bfloat16
    choose_backend(device, cfg.attention, dtype, shape.head_dim, shape.attn_softcap)

def describe_memory(n_bytes, cfg, world):
    """{part: bytes} on a GPU as a line of text."""
    parts = ', '.join(f'{name} {size / 1e9:.1f}' for name, size in n_bytes.items())
    return (f"{sum(n_bytes.values()) / 1e9:.1f} GB on each of {world} GPUs at most ({parts}): {cfg.parallel}, "
            f"{cfg.dtype}, recompute={cfg.recompute}, {cfg.micro_batch} x {cfg.block_size} tokens")

def check_memory(cfg, world, n_bytes, room):
    """Refuses a run whose {part: bytes} on a GPU (training/cost.py) exceed `room` bytes."""
    needed = sum(n_bytes.values())
    if cfg.rows == cfg.micro_batch: # without accumulation, gradients are made as activations go
        needed -= n_bytes['gradients']
    if needed > room:
        raise Refused(f"{describe_memory(n_bytes, cfg, world)}; a GPU has {room / 1e9:.1f} GB: "
                      "expected a smaller micro_batch, recompute='selective' or 'full', "
                      "or parallel='fsdp'")

def verify_shards(cfg, run, loaders):
    """Where cfg.verify asks for it, reads all shards of the loaders; all ranks refuse one that was changed.

    The ranks of a node share the work; each node reads all, as it may have files of its own.
    """
    if cfg.verify == 'never' or cfg.verify == 'resume' and not run.folder:
        return
    rank, world, _, _ = run.place
    shards = [shard for loader in loaders for source in loader.sources for shard in source.shards]
    first = int(os.environ.get('LOCAL_RANK', rank))
    step = int(os.environ.get('LOCAL_WORLD_SIZE', world))
    with together(run.place):
        for i in progress(range(first, len(shards), step), desc='verify', unit='shard', leave=False):
            shards[i].verify()
