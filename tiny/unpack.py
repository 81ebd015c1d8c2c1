"""
The embedded corpus: tiny/{stories,talk,items}.npz.xz -> units folders with their words.

    python -m tiny.unpack            -> out/data/{stories,talk,items}/, each with words/ inside

out/data/NAME/ is what tokenize_speech.py and align.py write: stories (synthetic: one voice), talk (diverse: other voices,
rooms, noise), items (evaluation; documents as in tasks/tiny.py).

NAME.npz.xz is an .npz file of integer arrays with xz around it (times are stored as gaps and durations, which repeat):

    units, runs     (R,) uint16        of all documents, one after another     n_units (n,) how many belong to each
    word            (W,) uint16        index into `table`                      n_words (n,)
    gap, duration   (W,) int32         samples from the word before (or from 0) to its start, and from its start to its end
    samples         (n,) int32         at 16 kHz     speaker (n,) uint8 index
    table, ids, speakers, info         JSON as bytes: distinct words, document ids, names, info.json of the encoder

tiny/build/pack.py writes these files.
"""
import io
import json
import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configurator import Refused, run
from files import atomically, sha256, write_json
from speech.audio import RATE
from speech.units import write_units_shard
from speech.words import write_words_shard

# Each packed file, and the parts of tiny/build/speak.py that are in it.
PARTS = {'stories': ('stories',), 'talk': ('talk',), 'items': ('items-main', 'items-unseen')}

SHARD_DOCS = 10_000

@dataclass(frozen=True)
class Config:
    packed: str = 'tiny' # where the .npz.xz files are
    out: str = 'out/data' # where units folders go

def read_packed(path):
    """docs, info as write_packed took them. Raises Refused for a file that is none."""
    try:
        with np.load(io.BytesIO(lzma.decompress(Path(path).read_bytes()))) as packed:
            a = dict(packed)
        table, ids, speakers, info = (json.loads(a[key].tobytes()) for key in ('table', 'ids', 'speakers', 'info'))
    except FileNotFoundError:
        raise Refused(f"{path}: no such file; tiny/build/build.sh makes it, and a clone of the repository holds it") from None
    except (lzma.LZMAError, ValueError, KeyError, EOFError) as e:
        raise Refused(f"{path}: not a packed corpus ({e}); check it out again") from None
    docs, edges = [], {key: np.concatenate([[0], np.cumsum(a[key])]) for key in ('n_units', 'n_words')}
    for i, name in enumerate(ids):
        of_units, of_words = (slice(*edges[key][i:i + 2]) for key in ('n_units', 'n_words'))
        ends = np.cumsum(a['gap'][of_words] + a['duration'][of_words])
        docs.append({'id': name, 'speaker': speakers[a['speaker'][i]], 'samples': int(a['samples'][i]),
                     'units': a['units'][of_units], 'runs': a['runs'][of_units],
                     'words': [table[w] for w in a['word'][of_words]], 'starts': ends - a['duration'][of_words], 'ends': ends})
    return docs, info

def main(cfg):
    for name in PARTS:
        source, folder = Path(cfg.packed) / f'{name}.npz.xz', Path(cfg.out) / name
        digest = sha256(source) if source.is_file() else None
        if (folder / 'info.json').exists() and json.loads((folder / 'info.json').read_text()).get('packed') == digest:
            print(f"{folder}: there already")
            continue
        docs, info = read_packed(source)
        if folder.exists():
            raise Refused(f"{folder}: made from another {source}; remove it or change --out")
        with atomically(folder) as tmp:
            for index in range(0, -(-len(docs) // SHARD_DOCS)):
                shard = docs[index * SHARD_DOCS:(index + 1) * SHARD_DOCS]
                write_units_shard(tmp, index, [({'id': d['id'], 'path': None, 'seconds': d['samples'] / RATE,
                    'speaker': d['speaker'], 'text': ''.join(d['words'])}, d['units'], d['runs']) for d in shard])
                write_words_shard(tmp / 'words', index, [(d['id'], d['words'], d['starts'], d['ends']) for d in shard])
            counts = {'documents': len(docs), 'hours': round(sum(d['samples'] for d in docs) / RATE / 3600, 4),
                      'runs': sum(len(d['units']) for d in docs)}
            write_json(tmp / 'words' / 'info.json', {'units_hash': info['units_hash'], 'documents': len(docs),
                                                     'words': sum(len(d['words']) for d in docs), 'refused': {}})
            write_json(tmp / 'info.json', {**info, **counts, 'packed': digest})
        print(f"{folder}: {counts['documents']} documents, {counts['hours']:.2f} h, {counts['runs']:,} units")

if __name__ == '__main__':
    run(main, Config)
