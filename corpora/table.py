"""
A table of folders of token shards (counts, lengths, fill of packed rows) and of units folders (hours, rates).

    python -m corpora.table --data=out/tokens
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configurator import Refused, run
from data import Shards, _read_index, pack
from files import read_info
from vocab import MODALITIES


@dataclass(frozen=True)
class Config:
    data: str = ''      # a folder of token shards or of units, or one above several
    block_size: int = 2048  # T of the fill column
    verify: bool = False    # read every shard and compare its sha256, counts and ids with the index

    def __post_init__(self):
        if not self.data:
            raise Refused("expected --data=DIR, a folder of token shards or of units, or one above several")

def bars(lengths):
    """How many documents have 1, 2-3, 4-7, ... tokens: a bar for each power of 2 that has some, and the first and last."""
    counts = np.bincount(np.log2(lengths).astype(int))
    first = int(np.flatnonzero(counts)[0])
    heights = np.ceil(counts[first:] / counts.max() * 8).astype(int)
    return f"{2 ** first:,} {''.join(' ▁▂▃▄▅▆▇█'[h] for h in heights)} {2 ** len(counts) - 1:,}"

def token_rows(folders, cfg):
    """The Markdown rows of token folders."""
    yield f"| tokens | documents | tokens | mean | lengths | text | units | separators | fill at {cfg.block_size} | cut |"
    yield '|' + '---|' * 10
    for folder in folders:
        index = _read_index(folder)
        row = [str(folder), f"{index['documents']:,}", f"{index['tokens']:,}"]
        if index['tokens']:
            shards = Shards(folder)
            lengths = shards.verify() if cfg.verify else shards.lengths
            plan = pack(lengths, cfg.block_size)
            row += [f"{lengths.mean():.1f}", bars(lengths), *(f"{index[k] / index['tokens']:.1%}" for k in MODALITIES),
                    f"{plan.fill(cfg.block_size):.2%}", f"{int(plan.cuts):,}"]
        yield '| ' + ' | '.join(row + [''] * (10 - len(row))) + ' |'

def unit_rows(infos):
    """The Markdown rows of units folders, {folder: its info.json}: the papers' table of corpora (SIMS Table 4)."""
    yield '| units | documents | hours | units | units a second |\n|---|---|---|---|---|'
    for folder, info in infos.items():
        rate = info['runs'] / max(info['hours'] * 3600, 1e-9)
        yield f"| {folder} | {info['documents']:,} | {info['hours']:,.2f} | {info['runs']:,} | {rate:.1f} |"

def main(cfg):
    folders = sorted(path.parent for path in Path(cfg.data).rglob('index.json'))
    infos = {path.parent: read_info(path.parent, 'tokenize_speech.py') for path in sorted(Path(cfg.data).rglob('info.json'))}
    infos = {folder: info for folder, info in infos.items() if {'runs', 'hours', 'units_hash'} <= info.keys()}
    if not folders and not infos:
        _read_index(cfg.data) # says what is wrong
    for line in (*(token_rows(folders, cfg) if folders else ()), *(unit_rows(infos) if infos else ())):
        print(line)

if __name__ == '__main__':
    run(main, Config)
