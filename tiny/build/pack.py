"""
Packs the spoken parts of the embedded corpus into small files (format: tiny/unpack.py).

    python -m tiny.build.pack --speech=out/build/speech

A file of which nothing is in the folder stays as it is. With --keep, documents that are packed
already stay in the files, so that a corpus of 50 hours can be spoken on several machines or days.

Packing also writes tiny/audio/: under two minutes of the speech itself, as FLAC with a
manifest.jsonl (corpora/folder.py reads it), so that every stage can start from sound.
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

# The endings of an item, spoken after its context, in each packed file that has items.
ENDINGS = {'items': ('right', 'wrong', 'topic'), 'knowledge': ('right', 'wrong')}

@dataclass(frozen=True)
class Config:
    speech: str = '' # folder of the parts that tiny/build/speak.py wrote
    encoder: str = 'tiny/hubert' # folder of the encoder, with kmeans.safetensors in it
    layer: int = 4 # layer of the encoder whose output becomes units
    keep: bool = False # keep packed documents that are not in speech; the encoder must be the same
    pause: float = 0.25 # seconds between context and ending, as between sentences in speak.py
    edge: float = 0.1 # seconds of silence at a document's beginning and end, as in speak.py
    packed: str = 'tiny' # where the .npz.xz files go

    def __post_init__(self):
        if not self.speech:
            raise Refused("expected --speech=FOLDER, with the parts that tiny/build/speak.py wrote")

# --------------------------------------------------------------------------------------------------
# the file

def json_bytes(value):
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode(), np.uint8)

def write_packed(path, docs, info):
    """Writes a packed file (tiny/unpack.py has the format). The same docs give the same bytes.

    docs: list of {id, speaker, samples, units, runs, words, starts, ends}; the words have their
    leading spaces, starts and ends are in samples.
    """
    def column(key):
        return [d[key] for d in docs]

    def stream(key):
        return np.concatenate([np.asarray(values, dtype=np.int64) for values in column(key)])

    words = [w for d in docs for w in d['words']]
    table = {w: i for i, w in enumerate(dict.fromkeys(words))}
    n_words = np.array([len(values) for values in column('words')])
    speakers = sorted(set(column('speaker')))

    # Starts are stored as gaps from the end of the word before, or from 0 for a document's first.
    starts = stream('starts')
    ends = stream('ends')
    previous_ends = np.concatenate([[0], ends[:-1]])
    first_words = np.cumsum(n_words) - n_words
    previous_ends[first_words[n_words > 0]] = 0

    arrays = {
        'units': stream('units').astype(np.uint16),
        'runs': stream('runs').astype(np.uint16),
        'n_units': np.array([len(values) for values in column('units')], np.int32),
        'n_words': n_words.astype(np.int32),
        'word': np.array([table[w] for w in words], np.uint16),
        'gap': (starts - previous_ends).astype(np.int32),
        'duration': (ends - starts).astype(np.int32),
        'samples': np.array(column('samples'), np.int32),
        'speaker': np.array([speakers.index(name) for name in column('speaker')], np.uint8),
        'table': json_bytes(list(table)),
        'ids': json_bytes(column('id')),
        'speakers': json_bytes(speakers),
        'info': json_bytes(info),
    }
    data = io.BytesIO()
    np.savez(data, **arrays)
    with atomically(path) as tmp:
        tmp.write_bytes(lzma.compress(data.getvalue(), preset=9))

# --------------------------------------------------------------------------------------------------
# speech -> file

def join_ending(context, ending, pause, edge):
    """An item's context and an ending, both (line, wave) -> one document (line, wave).

    Between the two waves, one pause takes the place of two edges. Words have times in samples.
    """
    line, x = context
    ending_line, y = ending
    edge = round(edge * RATE)
    pause = round(pause * RATE)
    wave = np.concatenate([x[:len(x) - edge], np.zeros(pause, x.dtype), y[edge:]])
    shift = len(x) - edge + pause - edge
    words = list(line['words'])
    for i, (word, start, end) in enumerate(ending_line['words']):
        # The first word of a segment has no leading space.
        word = ' ' + word if i == 0 else word
        words.append([word, start + shift, end + shift])
    ending_name = ending_line['id'].split('/')[1]
    return {'id': f"{line['id']}+{ending_name}", 'speaker': line['speaker'], 'words': words}, wave

def with_joined(documents, endings, cfg):
    """Yields the segments of items and, after the last segment of an item, its joined documents.

    A segment is the context of an item or one of its endings, with the id ITEM/SEGMENT. The
    segments of an item come one after another.
    """
    item_name = None
    for line, wave in documents:
        name, segment = line['id'].split('/')
        if name != item_name:
            item_name = name
            segments = {}
        segments[segment] = line, wave
        yield line, wave
        if len(segments) == 1 + len(endings):
            for ending in endings:
                yield join_ending(segments['context'], segments[ending], cfg.pause, cfg.edge)

def encode_part(spoken, encoder):
    """(line, int16 wave) pairs -> docs for write_packed."""
    docs = []
    waiting = []

    def flush():
        waves = [wave.astype(np.float32) / 32768 for _, wave in waiting]
        for (line, wave), frames in zip(waiting, encoder.encode(waves)):
            units, runs = deduplicate(frames)
            words, starts, ends = zip(*line['words'])
            docs.append({
                'id': line['id'],
                'speaker': line['speaker'],
                'samples': len(wave),
                'units': units,
                'runs': runs,
                'words': words,
                'starts': starts,
                'ends': ends,
            })
        waiting.clear()

    for pair in progress(spoken, desc='encode', unit='doc'):
        waiting.append(pair)
        if len(waiting) == 512: # enough for the encoder to batch waves of similar lengths
            flush()
    flush()
    return docs

def export_audio(folder, spoken):
    """Writes (line, int16 wave) pairs as a FLAC each, and a manifest.jsonl with words in seconds."""
    with atomically(folder) as tmp:
        tmp.mkdir()
        with open(tmp / 'manifest.jsonl', 'w', encoding='utf-8') as manifest:
            for line, wave in spoken:
                name = line['id'].replace('/', '.')
                audio = f'{name}.flac'
                soundfile.write(tmp / audio, wave, RATE, subtype='PCM_16')
                text = ''
                words = []
                for word, start, end in line['words']:
                    text += word
                    words.append([word.strip(), round(start / RATE, 4), round(end / RATE, 4)])
                entry = {
                    'id': name,
                    'audio': audio,
                    'text': text,
                    'speaker': line['speaker'],
                    'words': words,
                }
                manifest.write(json.dumps(entry) + '\n')

def packed_docs(path, units_hash):
    """The documents of a packed file. Raises Refused if another encoder made their units."""
    docs, info = read_packed(path)
    if info['units_hash'] != units_hash:
        raise Refused(f"{path}: its units are of another encoder; "
                      "without --keep all of it is packed anew from speech")
    return docs

def merge(packed, docs):
    """Both lists as one, as if all had been spoken at once; documents in both are taken from docs."""
    ids = {d['id'] for d in docs}
    merged = [d for d in packed if d['id'] not in ids] + docs
    # Sorting is stable, so the segments of an item stay in their order.
    return sorted(merged, key=lambda d: d['id'].split('/')[0])

def audio_samples(speech):
    """Yields the (line, wave) pairs of tiny/audio/."""
    from tiny.build.speak import documents
    for part, n in (('items-main', 8), ('items-unseen', 2), ('stories', 5), ('talk', 5)):
        pairs = documents(speech / part)
        if part.startswith('items'):
            pairs = (pair for pair in pairs if pair[0]['id'].endswith('/context'))
        yield from islice(pairs, n)

def main(cfg):
    from tiny.build.speak import documents
    speech = Path(cfg.speech)
    audio = Path(cfg.packed) / 'audio'
    if not audio.exists():
        export_audio(audio, list(audio_samples(speech)))
    kmeans = Path(cfg.encoder) / 'kmeans.safetensors'
    encoder = Encoder(cfg.encoder, cfg.layer, load_centroids(kmeans))
    info = {
        'encoder': 'tiny/hubert',
        'layer': cfg.layer,
        'kmeans': sha256(kmeans),
        'units_hash': encoder.hash,
        'n_units': encoder.n_units,
        'frame_hz': RATE / encoder.hop,
        'hop': encoder.hop,
    }
    for name, parts in PARTS.items():
        path = Path(cfg.packed) / f'{name}.npz.xz'
        spoken_parts = [part for part in parts if (speech / part).exists()]
        if not spoken_parts:
            print(f"{path}: stays as it is; {speech} has none of {', '.join(parts)}")
            continue
        packed = packed_docs(path, encoder.hash) if cfg.keep and path.exists() else []
        if packed:
            parts = spoken_parts
        spoken = (pair for part in parts for pair in documents(speech / part))
        if name in ENDINGS:
            spoken = with_joined(spoken, ENDINGS[name], cfg)
        docs = merge(packed, encode_part(spoken, encoder))
        write_packed(path, docs, {**info, **record(cfg)})
        hours = sum(d['samples'] for d in docs) / RATE / 3600
        print(f"{path}: {len(docs)} documents, {hours:.2f} h, {path.stat().st_size / 1e6:.2f} MB")

if __name__ == '__main__':
    run(main, Config)
