"""
A table of token folders (counts, lengths, fill of packed rows) and of units folders (hours, units a second).

    python -m corpora.table --data=out                                          all folders below
    python -m corpora.table --data=out/tokens/a --block_size=512 --verify       also reads and checks every shard

The table is Markdown. Its bars count the documents by length, with a bar for each power of 2.
"""
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from configurator import Refused, run
from data import Shards, pack, read_index
from files import read_info, walk
from vocab import MODALITIES


@dataclass(frozen=True)
class Config:
    data: str = ''         # a folder of token shards or of units, or one above several
    block_size: int = 2048 # tokens in a row, for the column of the fill
    verify: bool = False   # read every shard and compare its sha256 and largest id with index.json

    def __post_init__(self):
        if not self.data:
            raise Refused("expected --data=DIR, a folder of token shards or of units, or one above several")

def bars(lengths):
    """How many documents have 1, 2-3, 4-7, ... tokens: a bar per power of 2, from the first to the last with any."""
    counts = np.bincount(np.log2(lengths).astype(int))
    first = int(np.flatnonzero(counts)[0])
    heights = np.ceil(counts[first:] / counts.max() * 8).astype(int)
    drawn_bars = ''.join(' ▁▂▃▄▅▆▇█'[height] for height in heights)
    return f"{2 ** first:,} {drawn_bars} {2 ** len(counts) - 1:,}"

def token_row(folder, cfg):
    """The cells of a token folder; those that need documents are left empty where there are none."""
    index = read_index(folder)
    n_tokens = index['tokens']
    row = [str(folder), f"{index['documents']:,}", f"{n_tokens:,}"]
    if not n_tokens:
        return row + [''] * 7
    shards = Shards(folder)
    lengths = shards.verify() if cfg.verify else shards.lengths
    plan = pack(lengths, cfg.block_size)
    shares = [f"{index[name] / n_tokens:.1%}" for name in MODALITIES]
    fill = f"{plan.fill(cfg.block_size):.2%}"
    return [*row, f"{lengths.mean():.1f}", bars(lengths), *shares, fill, f"{int(plan.cuts):,}"]

def token_rows(folders, cfg):
    """The Markdown rows of token folders."""
    columns = ['tokens', 'documents', 'tokens', 'mean', 'lengths', *MODALITIES, f'fill at {cfg.block_size}', 'cut']
    yield '| ' + ' | '.join(columns) + ' |'
    yield '|' + '---|' * len(columns)
    for folder in folders:
        yield '| ' + ' | '.join(token_row(folder, cfg)) + ' |'

def unit_rows(infos):
    """The Markdown rows of units folders, {folder: its info.json}: the papers' table of corpora (SIMS Table 4)."""
    yield '| units | documents | hours | units | units a second |'
    yield '|---|---|---|---|---|'
    for folder, info in infos.items():
        rate = info['runs'] / max(info['hours'] * 3600, 1e-9)
        yield f"| {folder} | {info['documents']:,} | {info['hours']:,.2f} | {info['runs']:,} | {rate:.1f} |"

def main(cfg):
    paths = [Path(path) for path in walk(cfg.data).values()]
    folders = sorted(path.parent for path in paths if path.name == 'index.json')
    infos = {}
    for path in sorted(path for path in paths if path.name == 'info.json'):
        info = read_info(path.parent, 'tokenize_speech.py')
        if {'runs', 'hours', 'units_hash'} <= info.keys():
            infos[path.parent] = info
    if not folders and not infos:
        read_index(cfg.data) # refuses it, and says why
    lines = chain(token_rows(folders, cfg) if folders else (), unit_rows(infos) if infos else ())
    for line in lines:
        print(line)

if __name__ == '__main__':
    run(main, Config)
