"""
The models of a scaling study: the shapes of the published families (hub/shapes.py), and of the tiny ones.

SHAPES has a row for each model, FAMILIES what the ids of a family begin with. models_of gives the
models of a family with the vocabulary of a speech language model, and their number of parameters.
"""
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from configurator import Refused
from hub.families import GPTConfig
from hub.folders import read_config
from hub.shapes import SHAPES as PUBLISHED
from hub.shapes import Shape
from model import GPT
from vocab import papers_vocab

SHAPES = PUBLISHED | {
    # Models of this repository, over the 2,048 ids of tiny/tokenizer. No hub has them.
    'tiny/0.25M': Shape('qwen2', 2, 2, 1, 64, 176, 2048, 223_808, 2048, {'head_dim': 32}),
    'tiny/0.5M': Shape('qwen2', 3, 3, 1, 96, 256, 2048, 492_672, 2048, {'head_dim': 32}),
    'tiny/1M': Shape('qwen2', 4, 4, 2, 128, 336, 2048, 977_024, 2048, {'head_dim': 32}),
    'tiny/2.8M': Shape('qwen2', 6, 6, 2, 192, 512, 2048, 2_756_928, 2048, {'head_dim': 32}),
    'tiny/6M': Shape('qwen2', 6, 9, 3, 288, 768, 2048, 5_904_864, 2048, {'head_dim': 32}),
    'tiny/10M': Shape('qwen2', 6, 12, 4, 384, 1024, 2048, 10_232_448, 2048, {'head_dim': 32}),
}

# How their ids begin.
FAMILIES = {'qwen2.5': 'Qwen/Qwen2.5-', 'llama3.2': 'meta-llama/Llama-3.2-', 'qwen3': 'Qwen/Qwen3-',
            'olmo2': 'allenai/OLMo-2-', 'tiny': 'tiny/'}

class Model(NamedTuple):
    """A model of a study, with the vocabulary that it trains with."""
    name: str # what a run starts from: a hub id, a folder, or a key of SHAPES
    config: GPTConfig
    n_params: int

def ids_of(family):
    """{size: hub id or folder} of a key of FAMILIES, or of ids and folders between commas."""
    if family in FAMILIES:
        prefix = FAMILIES[family]
        names = [name for name in SHAPES if name.startswith(prefix)]
        return {re.search(r'[\d.]+[BM]', name.removeprefix(prefix))[0]: name for name in names}
    names = family.split(',')
    ids = {Path(name).name: name for name in names}
    if len(ids) < len(names):
        raise Refused(f"family={family}: two of these have the same last name, by which runs are told apart; "
                      "rename a folder")
    return ids

def models_of(family, sizes='', init=None, vocab='joint'):
    """{size: Model} of a family, by rising number of parameters.

    sizes: some of the family, separated by commas; '' for all. init: a folder for each size, as in
    'out/text-{size}'; None or 'scratch' for the family's own. vocab: 'joint', 'speech' or 'text',
    with the papers' 500 units; the number of text ids is that of SHAPES or, for another folder or
    hub id, the vocab_size of its config.json.
    """
    ids = ids_of(family)
    chosen = sizes.split(',') if sizes else list(ids)
    missing = [size for size in chosen if size not in ids]
    if missing:
        raise Refused(f"sizes: {family} has no {', '.join(missing)}; expected some of {', '.join(ids)}")
    models = {}
    for size in chosen:
        name = init.replace('{size}', size) if init and init != 'scratch' else ids[size]
        config = SHAPES[name].config(SHAPES[name].n_text_ids) if name in SHAPES else read_config(name)
        config = replace(config, vocab_size=papers_vocab(vocab, config.vocab_size).size)
        models[size] = Model(name, config, n_params(config))
    return dict(sorted(models.items(), key=lambda item: item[1].n_params))

def n_params(config):
    """The number of parameters of a GPTConfig, without the padding of its table."""
    with torch.device('meta'):
        return GPT(config).num_params()
