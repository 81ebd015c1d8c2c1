"""
Unpacks the embedded corpus: tiny/NAME.npz.xz -> units folders with their words.

    python -m tiny.unpack                -> out/data/{stories,talk,items}/, each with words/ inside
    python -m tiny.unpack --parts=all    -> the parts of the wide corpus too

out/data/NAME/ is what tokenize_speech.py and align.py write.

    stories         synthetic: stories in one voice
    talk            diverse: other sentences in other voices, with rooms and noise
    items           StoryCloze, for evaluation (tasks/tiny.py)
    stories-more    more stories in the voice of the stories
    voices          other stories, in the voices of the talk
    world           what the voice of the stories tells of the world of tiny/world.py
    talk-more       more of the talk
    knowledge       items that ask for a fact that no speech tells, for evaluation (tasks/tiny.py)

The wide corpus is all of them but the items. --parts names some, separated by commas.

NAME.npz.xz is an .npz file of integer arrays, compressed by xz. Of n documents with R runs and W
words in all, it holds

    units, runs     (R,) uint16   of all documents, one after another
    n_units         (n,) int32    runs of each document
    word            (W,) uint16   index into `table`
    gap             (W,) int32    samples from the end of the word before (or from 0) to its start
    duration        (W,) int32    samples from its start to its end
    n_words         (n,) int32    words of each document
    samples         (n,) int32    length of each document, at 16 kHz
    speaker         (n,) uint8    index into `speakers`
    table           JSON          the distinct words
    ids             JSON          document ids
    speakers        JSON          names of the speakers
    info            JSON          info.json of the encoder

JSON is stored as an array of bytes. Gaps and durations repeat more often than times do, so they
compress better. tiny/build/pack.py writes these files.
"""
import io
import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configurator import Refused, run
from files import atomically, hash_of_shards, parse_json, read_json, sha256, write_json
from speech.audio import RATE
from speech.units import write_units_shard
from speech.words import write_words_shard

# Each packed file, and the folders of speech that tiny/build/build.sh makes for it.
PARTS = {
    'stories': ('stories',),
    'talk': ('talk',),
    'items': ('items-main', 'items-unseen'),
    'stories-more': ('stories-more',),
    'voices': ('voices',),
    'world': ('world',),
    'talk-more': ('talk-more',),
    'knowledge': ('knowledge',)}

SHARD_DOCS = 10_000

@dataclass(frozen=True)
class Config:
    packed: str = 'tiny' # folder of the .npz.xz files
    out: str = 'out/data' # folder for the units folders
    parts: str = 'stories,talk,items' # names of packed files, separated by commas; all: all that there are

    def __post_init__(self):
        for name in self.names:
            if name not in PARTS:
                raise Refused(f"parts={self.parts}: no part '{name}'; there are {', '.join(PARTS)}, all")

    @property
    def names(self):
        return tuple(PARTS) if self.parts == 'all' else tuple(map(str.strip, self.parts.split(',')))

def read_packed(path):
    """Reads a packed file -> docs, info, as write_packed of tiny/build/pack.py takes them.

    docs: list of {id, speaker, samples, units, runs, words, starts, ends}; the words have their
    leading spaces, starts and ends are in samples. Raises Refused for any other file.
    """
    try:
        with np.load(io.BytesIO(lzma.decompress(Path(path).read_bytes()))) as packed:
            a = dict(packed)
        for key in ('table', 'ids', 'speakers', 'info'):
            a[key] = parse_json(a[key].tobytes())
    except FileNotFoundError:
        raise Refused(f"{path}: no such file; it is in a clone of the repository, and "
                      "tiny/build/build.sh makes it anew") from None
    except (lzma.LZMAError, ValueError, KeyError, EOFError) as e:
        raise Refused(f"{path}: not a packed corpus ({e}); check it out again") from None
    docs = []
    first_unit = 0
    first_word = 0
    for i, name in enumerate(a['ids']):
        of_units = slice(first_unit, first_unit + int(a['n_units'][i]))
        of_words = slice(first_word, first_word + int(a['n_words'][i]))
        first_unit = of_units.stop
        first_word = of_words.stop
        duration = a['duration'][of_words]
        ends = np.cumsum(a['gap'][of_words] + duration)
        docs.append({
            'id': name,
            'speaker': a['speakers'][a['speaker'][i]],
            'samples': int(a['samples'][i]),
            'units': a['units'][of_units],
            'runs': a['runs'][of_units],
            'words': [a['table'][w] for w in a['word'][of_words]],
            'starts': ends - duration,
            'ends': ends,
        })
    return docs, a['info']

def write_shard(folder, index, docs):
    """Writes a shard of the units folder, and the same shard of the words folder in it."""
    unit_docs = []
    word_docs = []
    for d in docs:
        meta = {
            'id': d['id'],
            'path': None,
            'seconds': d['samples'] / RATE,
            'speaker': d['speaker'],
            'text': ''.join(d['words']),
        }
        unit_docs.append((meta, d['units'], d['runs']))
        word_docs.append((d['id'], d['words'], d['starts'], d['ends']))
    write_units_shard(folder, index, unit_docs)
    write_words_shard(folder / 'words', index, word_docs)

def main(cfg):
    for name in cfg.names:
        source = Path(cfg.packed) / f'{name}.npz.xz'
        folder = Path(cfg.out) / name
        digest = sha256(source) if source.is_file() else None
        info_path = folder / 'info.json'
        if info_path.exists() and read_json(folder, 'info.json', 'tiny.unpack').get('packed') == digest:
            print(f"{folder}: there already")
            continue
        docs, info = read_packed(source)
        if folder.exists():
            raise Refused(f"{folder}: made from another {source}; remove it or change --out")
        words_info = {
            'units_hash': info['units_hash'],
            'documents': len(docs),
            'words': sum(len(d['words']) for d in docs),
            'refused': {},
        }
        hours = sum(d['samples'] for d in docs) / RATE / 3600
        counts = {
            'documents': len(docs),
            'hours': round(hours, 4),
            'runs': sum(len(d['units']) for d in docs),
        }
        with atomically(folder) as tmp:
            for index, first in enumerate(range(0, len(docs), SHARD_DOCS)):
                write_shard(tmp, index, docs[first:first + SHARD_DOCS])
            write_json(tmp / 'words' / 'info.json', {**words_info, 'content': hash_of_shards(tmp / 'words')})
            write_json(tmp / 'info.json', {**info, **counts, 'content': hash_of_shards(tmp), 'packed': digest})
        print(f"{folder}: {len(docs)} documents, {counts['hours']:.2f} h, {counts['runs']:,} units")

if __name__ == '__main__':
    run(main, Config)
