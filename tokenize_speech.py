"""
Audio -> units: a number for every 40 ms of speech (HuBERT at 25 Hz), repeats merged.

    python tokenize_speech.py --audio=FOLDER --out=out/units/mine       the embedded encoder
    python tokenize_speech.py --audio=list.jsonl --out=out/units/mine --layer=11 \
        --encoder=slprl/mhubert-base-25hz --kmeans=km500.safetensors    (made by speech/convert.py)
    python tokenize_speech.py --audio=FOLDER --encoder=openai/whisper-base --layer=4 \
        --fit_kmeans=500 --kmeans=km.safetensors          fits 500 centroids and does nothing else
    torchrun --nproc_per_node=8 tokenize_speech.py --audio=... --out=...       one process a GPU

corpora/folder.py says what FOLDER and list may hold; --corpus=NAME reads --audio by
corpora/NAME.py. Audio becomes mono at the rate of the encoder (16 kHz; Mimi 24 kHz). N samples have
N // step frames. A frame's unit is the number of its nearest centroid (speech/encoders.py), and

    units, runs = the units without repeats, and for how many frames each lasted

The result is a units folder (speech/units.py) with two more files:

    DIR/failures.jsonl    {"id", "path", "class", "message"} a line: what cannot be used, and why;
                          each shard has its own, too
    DIR/settings.json     what decides the bytes; a run with other settings is refused

A shard holds the documents of shard_docs consecutive ids and depends on these alone. Shard s
belongs to rank s % world, on one node or several; it is renamed into place when it is complete, and
shards that are there are skipped. So the same command continues a killed run, with any number of
processes, and ends with the same bytes. Processes never wait for each other; each that finds all
shards complete writes the same info.json. Shards that are there, and the audio that they were made of,
must be as they were (speech/sources.py).

On a CPU, windows are encoded by as many threads as torch has, each with one core, and in float32 unless
--dtype=bfloat16 says otherwise: about 4 x as fast where the processor has AMX, but 4 frames in 1,000 of the embedded
encoder get another unit (docs/speed.md). A folder keeps the dtype that it was begun with.

Threads decode the audio, about as fast as processes, as libsndfile and the resampling release
Python's lock (bench/prepare.py on two cores: 3,700 x real time against 3,500 for 16 kHz FLAC, 640
against 700 for 44.1 kHz). A file of any length takes the memory of its first 30 minutes: 5 hours
peaked at 0.77 GB, half an hour at 0.76 GB.
"""
import itertools
import json
import math
import os
import time
from array import array
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from configurator import Refused, pick_device, ranks, refuse_unwritable, run
from corpora.read import read_corpus
from files import (
    atomically,
    hash_of_shards,
    name_some,
    progress,
    read_array,
    read_json,
    read_lines,
    record,
    sha256,
    shard_folders,
    write_json,
)
from locks import Lock, remove_left_locks, writing_in
from speech.audio import RATE, BadAudio, stream_audio
from speech.encoders import Encoder, moments
from speech.failures import Failures, complete
from speech.kmeans import assign, centroids_path, fit_kmeans, load_centroids, load_segments, merge
from speech.nets import kind_of
from speech.sources import check_shards, sources_of
from speech.syllables import RATE_OF_SYLLABLES
from speech.units import write_units_shard

POOL = 1800 # seconds of audio that are decoded before their windows are sorted into batches
LONG = 1800 # a file of more seconds is encoded while it is read, a window at a time

@dataclass(frozen=True)
class Config:
    audio: str = '' # a folder of audio, a .jsonl list of files, or whatever corpora/NAME.py reads
    out: str = '' # the units folder to make
    corpus: str = 'folder' # NAME of the file corpora/NAME.py that reads --audio
    encoder: str = 'tiny/hubert' # a model of HuBERT, wav2vec2, WavLM, Whisper or Mimi: local folder or hub id
    layer: int = 4 # the layer to quantize, the first is 1 (mHuBERT-25Hz: 11, HuBERT-base: 9); not used for Mimi
    kmeans: str | None = None # safetensors with 'centroids' (K, C); None: kmeans.safetensors in the encoder's folder
    codebooks: int = 0 # of Mimi: the first n, flat (n units a frame); 0: the first alone, its repeats merged
    segment: str = '' # 'syllables': a unit a segment (speech/syllables.py); '': one a frame, or what the k-means is of
    rate: float | None = None # segments a second; None: those of the k-means, and 6.25 to fit one
    normalize: bool | None = None # waves to mean 0, variance 1; None: as published (speech/encoders.py)
    device: str = 'auto' # cpu, cuda, cuda:1, ...; auto: cuda:LOCAL_RANK if there is a GPU, else cpu
    dtype: str | None = None # float32 or bfloat16; None: bfloat16 on CUDA (Mimi: float32), float32 on a CPU
    window_s: float = 30.0 # longer audio is cut into windows of this many seconds
    margin_s: float = 2.0 # frames nearer than this to a cut come from the neighboring window
    batch_s: float = 120.0 # seconds of padded audio in a forward pass on CUDA; a CPU takes one window at a time
    max_seconds: float = 21600.0 # longer files are not used and are counted as TOO_LONG
    shard_docs: int = 2000 # utterances in a shard
    max_fail_frac: float = 0.01 # share of unusable files above which the run stops
    workers: int = 4 # threads that decode audio; never changes the result
    verify: bool = True # look whether the audio of shards that are there is as it was (cost: speech/sources.py)
    fit_kmeans: int = 0 # K above 0: fit so many centroids, write them to --kmeans and stop
    merge: int = 0 # above 0: the fit_kmeans centroids are joined to so many units (Ward's agglomerative clustering)
    fit_seconds: float = 10800.0 # seconds of audio for fit_kmeans: 3 h take 1 GB of memory at 25 Hz and C = 768
    seed: int = 0 # random seed of fit_kmeans

    def __post_init__(self):
        if not self.audio or not (self.kmeans if self.fit_kmeans else self.out):
            raise Refused("expected --audio=FOLDER_OR_JSONL and --out=DIR; "
                          "or --fit_kmeans=K with --kmeans=NEW.safetensors")
        if not 0 <= 2 * self.margin_s < self.window_s:
            raise Refused(f"margin_s is {self.margin_s}: two margins must fit into window_s, {self.window_s}")
        for key in ('layer', 'batch_s', 'max_seconds', 'shard_docs', 'workers', 'fit_seconds'):
            if not getattr(self, key) > 0:
                raise Refused(f"{key} is {getattr(self, key)}, must be above 0")
        if not 0 <= self.max_fail_frac <= 1:
            raise Refused(f"max_fail_frac is {self.max_fail_frac}, must be between 0 and 1")
        if self.segment not in ('', 'syllables'):
            raise Refused(f"segment is {self.segment!r}, expected syllables, or '' for a unit a frame")
        if self.rate is not None and not self.segment:
            raise Refused(f"rate is {self.rate:g}, of segments a second, and there are none: add --segment=syllables")
        if self.merge and not 0 < self.merge <= self.fit_kmeans:
            raise Refused(f"merge is {self.merge}, must be 0 (no), or at most fit_kmeans, {self.fit_kmeans}")
        if not 0 <= self.fit_kmeans <= 65535:
            raise Refused(f"fit_kmeans is {self.fit_kmeans}, must be 0 (no) or the number of centroids, up to 65535")

# --------------------------------------------------------------------------------------------------
# audio -> shards

def decode(utterance, step, max_seconds, rate=RATE):
    """An utterance's wave at `rate`, float32 (N,), or an iterator over its blocks if it is longer than LONG.

    If it cannot be used: the BadAudio that says why.
    """
    path = utterance['path']
    first_blocks = []
    n = 0
    try:
        blocks = stream_audio(path, utterance['start'], utterance['end'], max_seconds, rate)
        for block in blocks:
            first_blocks.append(block)
            n += len(block)
            if n > LONG * rate:
                return itertools.chain(first_blocks, blocks)
        wave = np.concatenate(first_blocks)
        if n < step:
            raise BadAudio('TOO_SHORT', path, f"{n} samples at {rate // 1000} kHz, a frame has {step}")
        if wave.min() == wave.max():
            raise BadAudio('SILENT', path, f"all {n} samples are {wave[0]:g}")
        return wave
    except BadAudio as e:
        return e

def decoded(cfg, encoder, utterances, pool):
    """Yields (utterance, what decode returns) in order while threads of the pool decode the next ones."""
    waiting = deque()
    for u in utterances:
        waiting.append((u, pool.submit(decode, u, encoder.step, cfg.max_seconds, encoder.rate)))
        if len(waiting) > 2 * cfg.workers:
            u, future = waiting.popleft()
            yield u, future.result()
    for u, future in waiting:
        yield u, future.result()

def encode_long(blocks, utterance, encoder, pool):
    """Blocks of a wave -> the unit of each frame, the number of samples; a thread decodes ahead.

    Where waves are normalized, the file is read twice. Raises BadAudio for what only the end of the
    file shows.
    """
    wave_moments = ()
    if encoder.normalize:
        wave_moments = moments(blocks)
        u = utterance
        blocks = stream_audio(u['path'], u['start'], u['end'], math.inf, encoder.rate) # its length was checked
    n = 0
    lowest = math.inf
    highest = -math.inf

    def read_ahead():
        nonlocal n, lowest, highest
        future = pool.submit(next, blocks, None)
        while (block := future.result()) is not None:
            future = pool.submit(next, blocks, None)
            if len(block):
                n += len(block)
                lowest = min(lowest, block.min())
                highest = max(highest, block.max())
            yield block

    frames = encoder.encode_blocks(read_ahead(), *wave_moments)
    if lowest == highest:
        raise BadAudio('SILENT', utterance['path'], f"all {n} samples are {lowest:g}")
    return frames, n

def in_samples(seconds):
    """A time in samples at 16 kHz; None where it is unknown."""
    return None if seconds is None else round(seconds * RATE)

def encode_shard(cfg, encoder, batch, pool, bar):
    """Utterances -> docs for write_units_shard, lines of words.jsonl and of failures.jsonl, in order of ids."""
    docs = []
    words = []
    failures = []
    waiting = [] # (utterance, wave) that will be encoded together

    def fail(u, error):
        failures.append({'id': u['id'], 'path': u['path'], 'class': error.kind, 'message': error.why})

    def add(u, n_samples, frames):
        units, runs = encoder.runs(frames)
        if runs.max() > 65535:
            return fail(u, BadAudio('SILENT', u['path'], f"one unit for {runs.max()} frames"))
        meta = {'id': u['id'], 'path': u['path'], 'seconds': n_samples / encoder.rate,
                'start': u['start'], 'end': u['end'], 'speaker': u['speaker'], 'text': u['text']}
        docs.append((meta, units, runs))
        timed = u['words'] and [[word, in_samples(start), in_samples(end)] for word, start, end in u['words']]
        words.append({'id': u['id'], 'words': timed})

    def encode_waiting():
        for (u, wave), frames in zip(waiting, encoder.encode([wave for _, wave in waiting])):
            add(u, len(wave), frames)
        waiting.clear()

    for u, wave in decoded(cfg, encoder, batch, pool):
        if isinstance(wave, BadAudio):
            fail(u, wave)
        elif isinstance(wave, np.ndarray):
            waiting.append((u, wave))
        else: # the blocks of a long wave
            encode_waiting() # first, to keep the order of ids
            try:
                frames, n_samples = encode_long(wave, u, encoder, pool)
                add(u, n_samples, frames)
            except BadAudio as e:
                fail(u, e)
        # This is enough audio to find windows of similar length; more would only take memory.
        if sum(len(wave) for _, wave in waiting) > POOL * encoder.rate:
            encode_waiting()
        bar.update()
    encode_waiting()
    return docs, words, sorted(failures, key=lambda failure: failure['id'])

# --------------------------------------------------------------------------------------------------
# the units folder

def begin_folder(out, settings, rank):
    """open_folder, for the process that has the lock."""
    path = out / 'settings.json'
    # Looked up before settings.json, which another rank may write now, and a shard soon after.
    has_results = out.exists() and ((out / 'info.json').exists() or complete(out))
    if path.exists():
        try:
            before = read_json(out, path.name, 'tokenize_speech.py')
        except Refused:
            raise Refused(f"{path}: not JSON; take another --out, or delete {out}") from None
        changes = [f"{key} was {before.get(key)!r}, is now {value!r}"
                   for key, value in settings.items() if before.get(key) != value]
        if changes:
            raise Refused(f"{out}: begun with other settings ({'; '.join(changes)}); "
                          "take another --out, or delete it")
    elif has_results:
        raise Refused(f"{out}: is there already, and no units folder of this script; take another --out")
    else:
        write_json(path, settings, f'.{rank}')

def open_folder(out, settings, rank, world):
    """Begins the units folder `out`, or checks that it was begun with the same settings. Raises Refused."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise Refused(f"{out}: is a file; take another --out")
    with Lock(out / '.settings.lock', out, wait=60): # of several ranks, and runs, the first one begins the folder
        begin_folder(out, settings, rank)
    # NAME.RANK.tmp is of a killed run if RANK is this rank, or one that this run lacks.
    for tmp in out.glob('*.json*.tmp'):
        owner = tmp.name.split('.')[-2]
        if owner == str(rank) or owner.isdecimal() and int(owner) >= world:
            tmp.unlink(missing_ok=True)

def finish(cfg, encoder, kmeans, failures, left_out):
    """Writes info.json, with counts that come from the shards."""
    folders = shard_folders(cfg.out)
    lines = (meta for folder in folders for _, meta in read_lines(folder / 'meta.jsonl'))
    seconds = array('d', (meta['seconds'] for meta in lines))
    if not seconds:
        raise Refused(f"{cfg.audio}: not one usable file, see {cfg.out}/failures.jsonl")
    n_units = sum(len(read_array(folder / 'units.npy', np.uint16)) for folder in folders)
    counts = Counter(failure['class'] for failure in failures)
    info = {'encoder': cfg.encoder, 'kind': encoder.kind, 'layer': encoder.layer, 'kmeans': kmeans and sha256(kmeans),
            'units_hash': encoder.hash, 'n_units': encoder.n_units, 'frame_hz': RATE / encoder.hop, 'hop': encoder.hop,
            'normalize': encoder.normalize, 'dtype': encoder.dtype,
            'documents': len(seconds), 'hours': round(math.fsum(seconds) / 3600, 4), 'runs': n_units,
            **({'codebooks': encoder.codebooks} if encoder.codebooks else {}),
            **({'segment': 'syllables', 'rate': encoder.segment_rate} if encoder.segment_rate else {}),
            'failures': dict(sorted(counts.items())), 'left_out': name_some(left_out),
            'content': hash_of_shards(cfg.out),
            **record(cfg)}
    write_json(Path(cfg.out) / 'info.json', info, f'.{ranks()[0]}')
    remove_left_locks(cfg.out)
    print(f"{cfg.out}: {len(seconds)} documents, {info['hours']:.2f} h, {n_units:,} units, {len(failures)} failed")

def make_encoder(cfg, centroids, device, segments):
    """The Encoder of the settings; segments: what load_segments returns."""
    return Encoder(cfg.encoder, cfg.layer, centroids, device, cfg.window_s, cfg.margin_s, cfg.batch_s, cfg.normalize,
                   cfg.dtype, cfg.codebooks, **segments)

def fit(cfg, docs, device):
    """--fit_kmeans: centroids of fit_seconds of random files -> safetensors at --kmeans."""
    kind, config = kind_of(cfg.encoder)
    if kind == 'mimi':
        raise Refused(f"{cfg.encoder}: Mimi has its own codebook, there is nothing to fit")
    if ranks()[1] > 1:
        raise Refused("fit_kmeans runs in one process, without torchrun")
    if os.path.exists(cfg.kmeans):
        raise Refused(f"{cfg.kmeans}: is there already; take another --kmeans for the new centroids, or delete it")
    refuse_unwritable(cfg.kmeans)
    placeholder = torch.zeros(1, config.hidden_size) # there are no centroids yet
    rate = cfg.rate or RATE_OF_SYLLABLES
    encoder = make_encoder(cfg, placeholder, device, {'rate': rate} if cfg.segment else {})
    order = np.random.default_rng(cfg.seed).permutation(len(docs))
    features = []
    seconds = 0
    with ThreadPoolExecutor(cfg.workers) as pool, progress(total=round(cfg.fit_seconds), unit='s') as bar:
        for _, wave in decoded(cfg, encoder, (docs[i] for i in order), pool):
            if isinstance(wave, BadAudio):
                continue # it is listed when the corpus is tokenized
            if not isinstance(wave, np.ndarray):
                wave = next(wave) # the first block of a long file
            wave = wave[:max(encoder.step, round((cfg.fit_seconds - seconds) * encoder.rate))]
            features.append(encoder.features(wave))
            seconds += len(wave) / encoder.rate
            bar.update(round(len(wave) / encoder.rate))
            if seconds >= cfg.fit_seconds:
                break
    x = torch.from_numpy(np.concatenate(features)) if features else torch.zeros(0, 1)
    what = 'segments' if cfg.segment else 'frames'
    n_distinct = len({hash(row.tobytes()) for row in x.numpy()}) # copies of a file have the same frames
    if n_distinct < cfg.fit_kmeans:
        raise Refused(f"{cfg.audio}: {len(x)} {what}, {n_distinct} of them distinct, too few for {cfg.fit_kmeans} "
                      "centroids; give more speech")
    centroids, inertia = fit_kmeans(x.to(encoder.device), cfg.fit_kmeans, cfg.seed)
    tensors = {'centroids': centroids.cpu()}
    if cfg.segment:
        tensors['rate'] = torch.tensor(rate, dtype=torch.float64)
    if cfg.merge:
        nearest, _ = assign(x, tensors['centroids'])
        counts = torch.bincount(nearest, minlength=cfg.fit_kmeans)
        tensors['labels'] = merge(tensors['centroids'], counts, cfg.merge)
    with atomically(cfg.kmeans) as tmp:
        origin = {**record(cfg), 'frames': len(x), 'mean squared distance': inertia}
        save_file(tensors, tmp, {'made': json.dumps(origin)})
    print(f"{cfg.kmeans}: {cfg.fit_kmeans} centroids of {len(x):,} {what}, {seconds / 3600:.2f} h "
          f"in {len(features)} files; mean squared distance {inertia:.4g}, "
          f"of the frames' own mean {x.var(0, correction=0).sum():.4g}")

def encode_shards(cfg, encoder, docs, shards, failures):
    """Encodes and writes the shards of these numbers, and prints a line for each."""
    rank, world = ranks()
    n_shards = -(-len(docs) // cfg.shard_docs)
    todo = sum(min(cfg.shard_docs, len(docs) - s * cfg.shard_docs) for s in shards)
    done = 0
    hours = 0.0
    begin = time.perf_counter()
    with ThreadPoolExecutor(cfg.workers) as pool, progress(total=todo, unit='doc', position=rank) as bar:
        for s in shards:
            batch = docs[s * cfg.shard_docs:(s + 1) * cfg.shard_docs]
            start = time.perf_counter()
            before = dict(encoder.seconds)
            encoded, words, failed = encode_shard(cfg, encoder, batch, pool, bar)
            failures.check(s, failed) # before the shard is written: a later run reads the mended files
            n_missing = sum(failure['class'] == 'MISSING' for failure in failed)
            if n_missing > max(10, len(batch) / 2): # probably a disk that is not mounted
                raise Refused(f"shard {s}: {n_missing} of its {len(batch)} files are not there, "
                              f"the first is {failed[0]['path']}; bring them back and run again")
            optional = {'words': words} if docs.has_words else {}
            sources = sources_of([u['path'] for u in batch], pool)
            write_units_shard(cfg.out, s, encoded, encoder.codebooks, failures=failed, audio=sources, **optional)

            elapsed = time.perf_counter() - start
            seconds = sum(meta['seconds'] for meta, _, _ in encoded)
            hours += seconds / 3600
            done += len(batch)
            minutes_left = (time.perf_counter() - begin) / done * (todo - done) / 60
            shares = {part: (encoder.seconds[part] - before[part]) / elapsed for part in before}
            shares['waiting for audio'] = 1 - sum(shares.values())
            shares = ', '.join(f'{part} {share:.0%}' for part, share in shares.items())
            prefix = f"rank {rank}: " if world > 1 else ''
            print(f"{prefix}shard {s + 1}/{n_shards} | {len(encoded)} documents, {seconds / 3600:.2f} h | "
                  f"{len(failed)} failed | {seconds / elapsed:.0f} x real time ({shares}) | {hours:.2f} h done, "
                  f"{minutes_left:.0f} min left", flush=True)

def main(cfg):
    rank, _ = ranks()
    docs, left_out = read_corpus(cfg)
    device = pick_device(cfg.device)
    if cfg.fit_kmeans:
        with Lock(f'{cfg.kmeans}.lock', cfg.kmeans):
            return fit(cfg, docs, device)
    with writing_in(cfg.out, rank):
        tokenize(cfg, docs, left_out, device)

def tokenize(cfg, docs, left_out, device):
    """Writes this rank's shards of the units folder; the last rank writes its info.json."""
    rank, world = ranks()
    kmeans = centroids_path(cfg.encoder, cfg.kmeans)
    centroids = load_centroids(kmeans) if kmeans else None # Mimi has its own
    segments = load_segments(kmeans, cfg.segment, cfg.rate) if kmeans else {}
    encoder = make_encoder(cfg, centroids, device, segments)
    settings = {'documents': len(docs), 'corpus': docs.hash, 'units_hash': encoder.hash, 'device': encoder.device.type,
                'dtype': encoder.dtype}
    for key in ('layer', 'shard_docs', 'window_s', 'margin_s', 'batch_s', 'max_seconds'):
        settings[key] = getattr(cfg, key)
    if encoder.normalize: # in units_hash, too
        settings['normalize'] = True
    open_folder(cfg.out, settings, rank, world)

    n_shards = -(-len(docs) // cfg.shard_docs)
    if n_shards < world and rank == 0:
        print(f"{n_shards} shards for {world} processes: --shard_docs={-(-len(docs) // world)} would give each one")
    shards = range(rank, n_shards, world)
    missing = [s for s in shards if not Path(cfg.out, f'{s:05d}').exists()]
    failures = Failures(cfg, len(docs))
    if cfg.verify:
        check_shards([Path(cfg.out, f'{s:05d}') for s in shards if s not in missing], cfg.workers)
    encode_shards(cfg, encoder, docs, missing, failures)
    if len(missing) < len(shards):
        print(f"{len(shards) - len(missing)} of {len(shards)} shards were there already")
    n_others = n_shards - len(complete(cfg.out))
    if n_others > 0:
        print(f"rank {rank} is done, {n_others} of {n_shards} shards are other ranks'; "
              "the last one done writes info.json")
        return
    all_failures = failures.check()
    failures.write(all_failures)
    finish(cfg, encoder, kmeans, all_failures, left_out)

if __name__ == '__main__':
    run(main, Config)
