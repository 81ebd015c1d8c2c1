"""
The models of a scaling study: the shapes of published families, and of the tiny ones.
"""
from dataclasses import replace
from pathlib import Path

import torch

from configurator import Refused
from hub.families import GPTConfig
from hub.folders import read_config
from model import GPT
from vocab import papers_vocab

SHAPES = { # config.json of the hub id: family, layers, heads, key heads, channels, ffn, rows of the table, other settings;
    # parameters of the published model; ids of its text tokenizer
    'Qwen/Qwen2.5-0.5B': ('qwen2', 24, 14, 2, 896, 4864, 151936, {}, 494_032_768, 151665),
    'Qwen/Qwen2.5-1.5B': ('qwen2', 28, 12, 2, 1536, 8960, 151936, {}, 1_543_714_304, 151665),
    'Qwen/Qwen2.5-3B': ('qwen2', 36, 16, 2, 2048, 11008, 151936, {}, 3_085_938_688, 151665),
    'Qwen/Qwen2.5-7B': ('qwen2', 28, 28, 4, 3584, 18944, 152064, {'tied': False}, 7_615_616_512, 151665),
    'meta-llama/Llama-3.2-1B': ('llama', 16, 32, 8, 2048, 8192, 128256, {}, 1_235_814_400, 128256),
    'meta-llama/Llama-3.2-3B': ('llama', 28, 24, 8, 3072, 8192, 128256, {}, 3_212_749_824, 128256),
    'HuggingFaceTB/SmolLM2-1.7B': ('llama', 24, 32, 32, 2048, 8192, 49152, {}, 1_711_376_384, 49152),
    'google/gemma-2-2b': ('gemma2', 26, 8, 4, 2304, 9216, 256000, {'head_dim': 256}, 2_614_341_888, 256000),
    'EleutherAI/pythia-160m': ('gpt_neox', 12, 12, 12, 768, 3072, 50304, {'tied': False}, 162_322_944, 50277),
    'facebook/opt-125m': ('opt', 12, 12, 12, 768, 3072, 50272, {'n_positions': 2048}, 125_239_296, 50265),
    'bigscience/bloom-1b7': ('bloom', 24, 16, 16, 2048, 8192, 250880, {}, 1_722_408_960, 250680),
    # ours, over the 2,048 ids of tiny/tokenizer; no hub has them
    'tiny/0.25M': ('qwen2', 2, 2, 1, 64, 176, 2048, {'head_dim': 32}, 223_808, 2048),
    'tiny/0.5M': ('qwen2', 3, 3, 1, 96, 256, 2048, {'head_dim': 32}, 492_672, 2048),
    'tiny/1M': ('qwen2', 4, 4, 2, 128, 336, 2048, {'head_dim': 32}, 977_024, 2048),
    'tiny/2.8M': ('qwen2', 6, 6, 2, 192, 512, 2048, {'head_dim': 32}, 2_756_928, 2048),
    'tiny/6M': ('qwen2', 6, 9, 3, 288, 768, 2048, {'head_dim': 32}, 5_904_864, 2048),
    'tiny/10M': ('qwen2', 6, 12, 4, 384, 1024, 2048, {'head_dim': 32}, 10_232_448, 2048)}

FAMILIES = {'qwen2.5': 'Qwen/Qwen2.5-', 'llama3.2': 'meta-llama/Llama-3.2-', 'tiny': 'tiny/'} # what their sizes' ids begin with

def models_of(family, sizes='', init=None, vocab='joint'):
    """{size: (what a run starts from, GPTConfig with the vocabulary it trains with, N)} by rising N.

    The vocabulary has the papers' 500 units; its text ids are the tokenizer's in SHAPES; of a folder or hub id,
    its config.json's vocab_size.
    """
    ids = {key.removeprefix(FAMILIES[family]): key for key in SHAPES if key.startswith(FAMILIES[family])} \
        if family in FAMILIES else {Path(part).name: part for part in family.split(',')}
    if family not in FAMILIES and len(ids) < len(family.split(',')):
        raise Refused(f"family={family}: two of these have the same last name, which runs are told apart by; rename a folder")
    wanted = sizes.split(',') if sizes else list(ids)
    if lacking := [size for size in wanted if size not in ids]:
        raise Refused(f"sizes: {family} has no {', '.join(lacking)}; expected some of {', '.join(ids)}")
    found = {}
    for size in wanted:
        name = init.replace('{size}', size) if init and init != 'scratch' else ids[size]
        if name in SHAPES:
            kind, L, H, HK, C, ffn, rows, other, _, T = SHAPES[name]
            shape = GPTConfig(family=kind, vocab_size=T, n_layer=L, n_head=H, n_kv_head=HK, n_embd=C, n_ffn=ffn, **other)
        else:
            shape = read_config(name)
        shape = replace(shape, vocab_size=papers_vocab(vocab, shape.vocab_size).size)
        found[size] = name, shape, n_params(shape)
    return dict(sorted(found.items(), key=lambda item: item[1][2]))

def n_params(shape):
    """Parameters of a GPTConfig, the padding of the table not counted."""
    with torch.device('meta'):
        return GPT(shape).num_params()
