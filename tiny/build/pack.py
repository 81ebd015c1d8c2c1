"""
The spoken parts of the embedded corpus as three small files; tiny/unpack.py has their format and the way back.

    python -m tiny.build.pack --speech=out/build/speech --encoder=out/build/encoder/hubert

--keep adds to what is packed already: a corpus of 50 hours can be spoken on several machines or days. Packing also writes
tiny/audio/: under two minutes of the speech itself as FLAC with a manifest.jsonl (corpora/folder.py reads it), so that
every stage can start from sound.
"""
import io
import json
import lzma
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile

from configurator import Refused, run
from files import atomically, progress, record, sha256
from speech.audio import RATE
from speech.encoders import Encoder
from speech.kmeans import load_centroids
from speech.units import deduplicate
from tiny.unpack import PARTS, read_packed

JOINED = ('right', 'wrong', 'topic') # endings of an item, spoken after its context

@dataclass(frozen=True)
class Config:
    speech: str = '' # folder of the parts that tiny/build/speak.py wrote
    encoder: str = 'tiny/hubert' # with kmeans.safetensors in it
    layer: int = 4
    keep: bool = False # documents packed before, by the same encoder, and not in speech now, stay
    pause: float = 0.25 # seconds between an item's context and its ending, as between sentences (tiny/build/speak.py)
    edge: float = 0.1 # seconds of silence at a document's beginning and end
    packed: str = 'tiny' # where the .npz.xz files go

    def __post_init__(self):
        if not self.speech:
            raise Refused("expected --speech=FOLDER, with the parts that tiny/build/speak.py wrote")

# ----------------------------------------------------------------------------------------------------------------
# the file

def as_bytes(value):
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode(), np.uint8)

def write_packed(path, docs, info):
    """docs: list of {id, speaker, samples, units, runs, words, starts, ends}; words with their leading spaces."""
    table = {w: i for i, w in enumerate(dict.fromkeys(w for d in docs for w in d['words']))}
    speakers = sorted({d['speaker'] for d in docs})
    join = lambda key, dtype: np.concatenate([np.asarray(d[key], dtype=np.int64) for d in docs]).astype(dtype)
    starts, ends = join('starts', np.int64), join('ends', np.int64)
    n_words = np.array([len(d['words']) for d in docs])
    before = np.concatenate([[0], ends[:-1]])
    before[(np.cumsum(n_words) - n_words)[n_words > 0]] = 0 # a document's first word is counted from 0
    data = io.BytesIO()
    np.savez(data, units=join('units', np.uint16), runs=join('runs', np.uint16),
             n_units=np.array([len(d['units']) for d in docs], np.int32), n_words=n_words.astype(np.int32),
             word=np.array([table[w] for d in docs for w in d['words']], np.uint16),
             gap=(starts - before).astype(np.int32), duration=(ends - starts).astype(np.int32),
             samples=np.array([d['samples'] for d in docs], np.int32),
             speaker=np.array([speakers.index(d['speaker']) for d in docs], np.uint8), table=as_bytes(list(table)),
             ids=as_bytes([d['id'] for d in docs]), speakers=as_bytes(speakers), info=as_bytes(info))
    with atomically(path) as tmp:
        tmp.write_bytes(lzma.compress(data.getvalue(), preset=9))

# ----------------------------------------------------------------------------------------------------------------
# speech -> file

def joined(context, ending, pause, edge):
    """An item's context and an ending as one document: their waves with one pause instead of two edges between them."""
    (a, x), (b, y) = context, ending
    cut, gap = round(edge * RATE), round(pause * RATE)
    wave = np.concatenate([x[:len(x) - cut], np.zeros(gap, x.dtype), y[cut:]])
    shift = len(x) - cut + gap - cut
    words = a['words'] + [[' ' + w if i == 0 else w, s + shift, e + shift] for i, (w, s, e) in enumerate(b['words'])]
    return {'id': f"{a['id']}+{b['id'].split('/')[1]}", 'speaker': a['speaker'], 'words': words}, wave

def with_joined(documents, cfg):
    """Segments of items as they come, and after the last of an item its joined documents."""
    item = {}
    for line, wave in documents:
        name, segment = line['id'].split('/')
        item = item if any(key[0] == name for key in item) else {}
        item[name, segment] = line, wave
        yield line, wave
        if len(item) == 1 + len(JOINED):
            for which in JOINED:
                yield joined(item[name, 'context'], item[name, which], cfg.pause, cfg.edge)

def encode_part(spoken, encoder):
    """(line, int16 wave) pairs -> docs for write_packed."""
    docs, waiting = [], []
    def flush():
        for (line, wave), frames in zip(waiting, encoder.encode([wave.astype(np.float32) / 32768 for _, wave in waiting])):
            units, runs = deduplicate(frames)
            words, starts, ends = zip(*line['words'])
            docs.append({'id': line['id'], 'speaker': line['speaker'], 'samples': len(wave), 'units': units, 'runs': runs,
                         'words': words, 'starts': starts, 'ends': ends})
        waiting.clear()
    for pair in progress(spoken, desc='encode', unit='doc'):
        waiting.append(pair)
        if len(waiting) == 512: # enough to sort by length
            flush()
    flush()
    return docs

def export_audio(folder, spoken):
    """(line, int16 wave) pairs -> one FLAC each, and a manifest.jsonl with words in seconds."""
    with atomically(folder) as tmp:
        tmp.mkdir()
        with open(tmp / 'manifest.jsonl', 'w', encoding='utf-8') as manifest:
            for line, wave in spoken:
                name = line['id'].replace('/', '.')
                soundfile.write(tmp / f'{name}.flac', wave, RATE, subtype='PCM_16')
                words = [[w.strip(), round(s / RATE, 4), round(e / RATE, 4)] for w, s, e in line['words']]
                manifest.write(json.dumps({'id': name, 'audio': f'{name}.flac', 'text': ''.join(w for w, _, _ in line['words']),
                                           'speaker': line['speaker'], 'words': words}) + '\n')

def kept(path, units_hash):
    """The documents of a packed file. Raises Refused if another encoder made their units."""
    docs, info = read_packed(path)
    if info['units_hash'] != units_hash:
        raise Refused(f"{path}: its units are of another encoder; --keep=False packs all of it anew from speech")
    return docs

def merged(before, docs):
    """Both lists as one, as if all had been spoken at once; of documents in both, those of docs."""
    new = {d['id'] for d in docs}
    both = [d for d in before if d['id'] not in new] + docs
    return sorted(both, key=lambda d: d['id'].split('/')[0]) # stable: the segments of an item stay in their order

def main(cfg):
    from tiny.build.speak import documents
    speech = Path(cfg.speech)
    if not (Path(cfg.packed) / 'audio').exists():
        contexts = lambda part: (pair for pair in documents(speech / part) if pair[0]['id'].endswith('/context'))
        export_audio(Path(cfg.packed) / 'audio', [pair for pairs, n in ((contexts('items-main'), 8), (contexts('items-unseen'), 2),
            (documents(speech / 'stories'), 5), (documents(speech / 'talk'), 5)) for pair in islice(pairs, n)])
    kmeans = Path(cfg.encoder) / 'kmeans.safetensors'
    encoder = Encoder(cfg.encoder, cfg.layer, load_centroids(kmeans))
    info = {'encoder': 'tiny/hubert', 'layer': cfg.layer, 'kmeans': sha256(kmeans), 'units_hash': encoder.hash,
            'n_units': encoder.n_units, 'frame_hz': RATE / encoder.hop, 'hop': encoder.hop}
    for name, parts in PARTS.items():
        path = Path(cfg.packed) / f'{name}.npz.xz'
        before = kept(path, encoder.hash) if cfg.keep else []
        spoken = (pair for part in parts if not before or (speech / part).exists() for pair in documents(speech / part))
        docs = encode_part(with_joined(spoken, cfg) if name == 'items' else spoken, encoder)
        docs = merged(before, docs)
        write_packed(path, docs, {**info, **record(cfg)})
        print(f"{path}: {len(docs)} documents, {sum(d['samples'] for d in docs) / RATE / 3600:.2f} h, "
              f"{path.stat().st_size / 1e6:.2f} MB")

if __name__ == '__main__':
    run(main, Config)
