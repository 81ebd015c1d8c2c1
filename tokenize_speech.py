"""
Audio -> units: one id for every 40 ms of speech, repeats merged.

    python tokenize_speech.py --audio=FOLDER --out=out/units/mine            the embedded encoder
    python tokenize_speech.py --audio=list.jsonl --out=out/units/mine --encoder=slprl/mhubert-base-25hz --layer=11 \
                              --kmeans=km500.safetensors                     (speech/convert.py makes it of the published file)
    python tokenize_speech.py --audio=FOLDER --encoder=openai/whisper-base --layer=4 --fit_kmeans=500 --kmeans=km.safetensors
    torchrun --nproc_per_node=8 tokenize_speech.py --audio=... --out=...     a GPU a process; several nodes likewise

FOLDER or list: see corpora/folder.py; --corpus=NAME reads --audio by corpora/NAME.py instead. Audio becomes mono at the rate
of the encoder (speech/audio.py: 16 kHz; Mimi 24 kHz), a file of N samples N // step frames, each frame the number of its nearest
centroid (speech/encoders.py: HuBERT, Whisper, Mimi), and

    units, runs = the units without repeats, and for how many frames each lasted

--fit_kmeans=K takes fit_seconds of random files and writes their K centroids to --kmeans; nothing is tokenized.

A units folder (its one writer and its one reader are both here):

    DIR/00000/units.npy     uint16, the units of all documents of the shard, one after another
    DIR/00000/runs.npy      uint16, how many frames each lasted
    DIR/00000/offsets.npy   int64 (n+1), document i is units[offsets[i]:offsets[i+1]]
    DIR/00000/meta.jsonl    {"id", "path", "start", "end" (seconds in path, null: all), "seconds", "speaker", "text"} a line
    DIR/00000/words.jsonl   {"id", "words": [[word, start, end], ...]} in samples at 16 kHz, if the corpus has words
    DIR/00000/failures.jsonl  {"id", "path", "class", "message"}: what could not be used, and why
    DIR/failures.jsonl      those of all shards
    DIR/settings.json       what decides the bytes; a run with others is refused
    DIR/info.json           encoder, layer, n_units (K), frame_hz, hop, units_hash, counts, how it was made; comes last

A shard holds the documents of shard_docs consecutive ids and is a function of these alone. Shard s belongs to rank
s % world; it is renamed into place when complete, and shards that are there are skipped: a run that was killed goes on
where it stopped, at any number of processes, and ends with the same bytes. Processes never wait for each other; each
that finds all shards complete writes info.json, the same.

Threads decode: libsndfile and the resampling let go of Python's lock, so that four are about as quick as four processes (on two
cores 3,700 x real time against 3,500 for 16 kHz FLAC, 640 against 700 for 44.1 kHz: bench/prepare.py), and simpler.
A file of any length takes the memory of its first 30 minutes: 5 hours peaked at 0.77 GB, half an hour at 0.76.
"""
import hashlib
import itertools
import json
import math
import os
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from configurator import Refused, pick_device, ranks, run
from corpora.read import read_corpus
from files import atomically, progress, read_array, read_lines, record, sha256, shard_folders, write_json, write_lines
from speech.audio import RATE, BadAudio, stream_audio
from speech.encoders import Encoder, kind_of
from speech.kmeans import centroids_path, fit_kmeans, load_centroids
from speech.units import deduplicate, write_units_shard

POOL = 1800 # seconds of audio that are decoded before their windows are sorted into batches
LONG = 1800 # a file of more seconds is encoded while it is read, a window at a time

@dataclass(frozen=True)
class Config:
    audio: str = '' # a folder of audio, or a .jsonl list; or whatever corpora/NAME.py reads
    out: str = '' # the units folder
    corpus: str = 'folder' # corpora/NAME.py
    encoder: str = 'tiny/hubert' # a HubertModel, WhisperModel or MimiModel: local folder or hub id
    layer: int = 4 # whose output is quantized, 1 is the first (mHuBERT-25Hz: 11, HuBERT-base: 9); Mimi: not used
    kmeans: str | None = None # safetensors with 'centroids' (K, C); None: kmeans.safetensors in the encoder's folder
    device: str = 'auto' # cpu, cuda, cuda:1, ...; auto: cuda where there is one, cuda:LOCAL_RANK under torchrun (in bf16)
    window_s: float = 30.0 # longer audio is cut into windows of this many seconds
    margin_s: float = 2.0 # frames nearer than this to a cut come from the neighboring window
    batch_s: float = 120.0 # seconds of padded audio in a forward pass on CUDA; a CPU takes one window at a time
    max_seconds: float = 21600.0 # a longer file is TOO_LONG
    shard_docs: int = 2000 # utterances in a shard
    max_fail_frac: float = 0.01 # share of unusable files above which the run stops
    workers: int = 4 # threads that decode; never changes the result
    fit_kmeans: int = 0 # K: fit so many centroids, write them to --kmeans and stop
    fit_seconds: float = 10800.0 # of audio that they are fitted on: 1 GB of features at 25 Hz and C = 768
    seed: int = 0 # of fit_kmeans

    def __post_init__(self):
        if not self.audio or not (self.kmeans if self.fit_kmeans else self.out):
            raise Refused("expected --audio=FOLDER_OR_JSONL and --out=DIR; or --fit_kmeans=K with --kmeans=NEW.safetensors")
        if not 0 <= 2 * self.margin_s < self.window_s:
            raise Refused(f"margin_s is {self.margin_s}: two margins must fit into window_s, {self.window_s}")
        for key in ('layer', 'batch_s', 'max_seconds', 'shard_docs', 'workers', 'fit_seconds'):
            if not getattr(self, key) > 0:
                raise Refused(f"{key} is {getattr(self, key)}, must be above 0")
        if not 0 <= self.max_fail_frac <= 1:
            raise Refused(f"max_fail_frac is {self.max_fail_frac}, must be between 0 and 1")
        if not 0 <= self.fit_kmeans <= 65535:
            raise Refused(f"fit_kmeans is {self.fit_kmeans}, must be 0 (no) or the number of centroids, up to 65535")

# ----------------------------------------------------------------------------------------------------------------
# audio -> shards

def ahead(pool, function, items, n):
    """Like pool.map, but at most n results wait."""
    waiting = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) > n:
            item, future = waiting.popleft()
            yield item, future.result()
    for item, future in waiting:
        yield item, future.result()

def decode(utterance, step, max_seconds, rate=RATE):
    """The utterance's wave at `rate`, or its blocks if it is longer than LONG, or the BadAudio that says why not."""
    try:
        blocks, held, n = stream_audio(utterance['path'], utterance['start'], utterance['end'], max_seconds, rate), [], 0
        for block in blocks:
            held.append(block)
            n += len(block)
            if n > LONG * rate:
                return itertools.chain(held, blocks)
        wave = np.concatenate(held)
        if len(wave) < step:
            raise BadAudio('TOO_SHORT', utterance['path'], f"{len(wave)} samples at {rate // 1000} kHz, a frame has {step}")
        if wave.min() == wave.max():
            raise BadAudio('SILENT', utterance['path'], f"all {len(wave)} samples are {wave[0]:g}")
        return wave
    except BadAudio as e:
        return e

def encode_long(blocks, utterance, encoder, pool):
    """Blocks -> units a frame, and how many samples there were; the next block is decoded meanwhile. Raises BadAudio."""
    n, lowest, highest = 0, math.inf, -math.inf

    def watched():
        nonlocal n, lowest, highest
        future = pool.submit(next, blocks, None)
        while (block := future.result()) is not None:
            future = pool.submit(next, blocks, None)
            if len(block):
                n, lowest, highest = n + len(block), min(lowest, block.min()), max(highest, block.max())
            yield block

    frames = encoder.encode_blocks(watched())
    if lowest == highest:
        raise BadAudio('SILENT', utterance['path'], f"all {n} samples are {lowest:g}")
    return frames, n

def encode_shard(cfg, encoder, batch, pool, bar):
    """Utterances -> docs for write_units_shard, words, failures, all in the order of ids."""
    docs, words, failures, waiting = [], [], [], []

    def add(u, samples, frames):
        units, runs = deduplicate(frames)
        if runs.max() > 65535:
            failures.append((u, BadAudio('SILENT', u['path'], f"one unit for {runs.max()} frames")))
            return
        docs.append(({'id': u['id'], 'path': u['path'], 'seconds': samples / encoder.rate,
                      'start': u['start'], 'end': u['end'], 'speaker': u['speaker'], 'text': u['text']}, units, runs))
        words.append({'id': u['id'], 'words': u['words'] and [
            [word, *(None if t is None else round(t * RATE) for t in times)] for word, *times in u['words']]})

    def flush():
        for (u, wave), frames in zip(waiting, encoder.encode([wave for _, wave in waiting])):
            add(u, len(wave), frames)
        waiting.clear()

    for u, wave in ahead(pool, lambda u: decode(u, encoder.step, cfg.max_seconds, encoder.rate), batch, 2 * cfg.workers):
        if isinstance(wave, BadAudio):
            failures.append((u, wave))
        elif isinstance(wave, np.ndarray):
            waiting.append((u, wave))
        else:
            flush() # the order stays that of the ids
            try:
                frames, samples = encode_long(wave, u, encoder, pool)
                add(u, samples, frames)
            except BadAudio as e: # what only its end shows
                failures.append((u, e))
        if sum(len(wave) for _, wave in waiting) > POOL * encoder.rate: # enough to sort by length; bounds the memory
            flush()
        bar.update()
    flush()
    failures = [{'id': u['id'], 'path': u['path'], 'class': e.kind, 'message': e.why} for u, e in failures]
    return docs, words, sorted(failures, key=lambda f: f['id'])

def open_folder(out, wanted, rank, world):
    """Makes `out`, or checks that it was begun with the same settings."""
    out, path = Path(out), Path(out) / 'settings.json'
    if out.exists() and not out.is_dir():
        raise Refused(f"{out}: is a file; take another --out")
    # looked up before settings.json, which a rank that is ahead writes before its shards
    foreign = out.exists() and ((out / 'info.json').exists() or complete(out))
    if path.exists():
        try:
            was = json.loads(path.read_text(encoding='utf-8'))
        except ValueError:
            raise Refused(f"{path}: not JSON; take another --out, or delete {out}") from None
        other = [f"{key} was {was.get(key)!r}, is now {wanted[key]!r}" for key in wanted if was.get(key) != wanted[key]]
        if other:
            raise Refused(f"{out}: begun with other settings ({'; '.join(other)}); take another --out, or delete it")
    elif foreign:
        raise Refused(f"{out}: is there already, and no units folder of this script; take another --out")
    else:
        write_json(path, wanted, f'.{rank}')
    for left in out.glob('*.json*.tmp'): # of a killed run: this rank's, or a rank's that no longer is
        if (owner := left.name.split('.')[-2]) == str(rank) or owner.isdecimal() and int(owner) >= world:
            left.unlink(missing_ok=True)

def complete(out):
    """The numbers of the shards that are there."""
    return sorted(int(name) for name in os.listdir(out) if name.isdecimal() and len(name) >= 5)

class Failures:
    """The failures of all complete shards, read once each, and those of a shard that is about to be written."""
    def __init__(self, cfg, total, rank):
        self.cfg, self.total, self.rank, self.of = cfg, total, rank, {}

    def check(self, shard=None, failed=()):
        """The list; refuses, after it wrote DIR/failures.jsonl, if it is more than max_fail_frac of all utterances."""
        cfg = self.cfg
        for s in complete(cfg.out):
            if s not in self.of:
                self.of[s] = [f for _, f in read_lines(Path(cfg.out, f'{s:05d}', 'failures.jsonl'))]
        of = self.of if shard is None else {**self.of, shard: failed}
        found = [failure for s in sorted(of) for failure in of[s]]
        if len(found) > cfg.max_fail_frac * self.total:
            self.write(found)
            counts = Counter(failure['class'] for failure in found)
            over = sum(map(len, self.of.values())) > cfg.max_fail_frac * self.total # ranks that finished at once
            remedy = "; when mended, delete the shards that list them and run again" if over else ''
            raise Refused(f"{cfg.audio}: {len(found)} of {self.total} files cannot be used "
                          f"({', '.join(f'{n} {kind}' for kind, n in sorted(counts.items()))}), max_fail_frac is "
                          f"{cfg.max_fail_frac:g}; see {cfg.out}/failures.jsonl{remedy}")
        return found

    def write(self, found):
        """DIR/failures.jsonl."""
        with atomically(Path(self.cfg.out) / 'failures.jsonl', f'.{self.rank}') as tmp:
            write_lines(tmp, found)

def finish(cfg, encoder, kmeans, failures, rank):
    """info.json, with counts that come from the shards."""
    folders = shard_folders(cfg.out)
    seconds = [meta['seconds'] for folder in folders for _, meta in read_lines(folder / 'meta.jsonl')]
    if not seconds:
        raise Refused(f"{cfg.audio}: not one usable file, see {cfg.out}/failures.jsonl")
    info = {'encoder': cfg.encoder, 'kind': encoder.kind, 'layer': encoder.layer, 'kmeans': kmeans and sha256(kmeans),
            'units_hash': encoder.hash, 'n_units': encoder.n_units, 'frame_hz': RATE / encoder.hop, 'hop': encoder.hop,
            'documents': len(seconds), 'hours': round(math.fsum(seconds) / 3600, 4),
            'runs': sum(len(read_array(folder / 'units.npy', np.uint16)) for folder in folders),
            'failures': dict(sorted(Counter(failure['class'] for failure in failures).items())), **record(cfg)}
    write_json(Path(cfg.out) / 'info.json', info, f'.{rank}')
    print(f"{cfg.out}: {len(seconds)} documents, {info['hours']:.2f} h, {info['runs']:,} units, {len(failures)} failed")

def fit(cfg, docs, device):
    """--fit_kmeans: centroids of fit_seconds of the corpus -> safetensors at --kmeans."""
    kind, config = kind_of(cfg.encoder)
    if kind == 'mimi':
        raise Refused(f"{cfg.encoder}: Mimi has its own codebook, there is nothing to fit")
    if ranks()[1] > 1:
        raise Refused("fit_kmeans runs in one process, without torchrun")
    if os.path.exists(cfg.kmeans):
        raise Refused(f"{cfg.kmeans}: is there already; take another --kmeans for the new centroids, or delete it")
    encoder = Encoder(cfg.encoder, cfg.layer, torch.zeros(1, config.hidden_size), device, cfg.window_s, cfg.margin_s,
                      cfg.batch_s) # no centroids yet
    order, rows, seconds, files = np.random.default_rng(cfg.seed).permutation(len(docs)), [], 0, 0
    with ThreadPoolExecutor(cfg.workers) as pool, progress(total=round(cfg.fit_seconds), unit='s') as bar:
        read = lambda i: decode(docs[i], encoder.step, cfg.max_seconds, encoder.rate)
        for _, wave in ahead(pool, read, order, 2 * cfg.workers):
            if isinstance(wave, BadAudio):
                continue # counted when the corpus is tokenized
            if not isinstance(wave, np.ndarray):
                wave = next(wave) # of a long file the first block
            wave = wave[:max(encoder.step, round((cfg.fit_seconds - seconds) * encoder.rate))]
            rows.append(encoder.features(wave))
            seconds, files = seconds + len(wave) / encoder.rate, files + 1
            bar.update(round(len(wave) / encoder.rate))
            if seconds >= cfg.fit_seconds:
                break
    x = torch.from_numpy(np.concatenate(rows)) if rows else torch.zeros(0, 1)
    if len(x) < cfg.fit_kmeans:
        raise Refused(f"{cfg.audio}: {len(x)} frames, too few for {cfg.fit_kmeans} centroids")
    centroids, inertia = fit_kmeans(x.to(encoder.device), cfg.fit_kmeans, cfg.seed)
    with atomically(cfg.kmeans) as tmp:
        made = {**record(cfg), 'frames': len(x), 'mean squared distance': inertia}
        save_file({'centroids': centroids.cpu()}, tmp, {'made': json.dumps(made)})
    print(f"{cfg.kmeans}: {cfg.fit_kmeans} centroids of {len(x):,} frames, {seconds / 3600:.2f} h in {files} files; "
          f"mean squared distance {inertia:.4g}, of the frames' own mean {x.var(0, correction=0).sum():.4g}")

def main(cfg):
    rank, world = ranks()
    docs, device = read_corpus(cfg), pick_device(cfg.device)
    if cfg.fit_kmeans:
        return fit(cfg, docs, device)
    kmeans = centroids_path(cfg.encoder, cfg.kmeans)
    encoder = Encoder(cfg.encoder, cfg.layer, kmeans and load_centroids(kmeans), device, cfg.window_s, cfg.margin_s,
                      cfg.batch_s)
    settings = {key: getattr(cfg, key)
                for key in ('layer', 'shard_docs', 'window_s', 'margin_s', 'batch_s', 'max_seconds')}
    open_folder(cfg.out, {'documents': len(docs), 'corpus': hashlib.sha256(json.dumps(docs).encode()).hexdigest()[:16],
                          'units_hash': encoder.hash, 'device': encoder.device.type, **settings}, rank, world)
    failures, has_words = Failures(cfg, len(docs), rank), any(u['words'] for u in docs)
    count = -(-len(docs) // cfg.shard_docs)
    mine = range(rank, count, world)
    if count < world and rank == 0:
        print(f"{count} shards for {world} processes: --shard_docs={-(-len(docs) // world)} would give each one")
    missing = [s for s in mine if not Path(cfg.out, f'{s:05d}').exists()]
    todo, hours, begin = sum(len(docs[s * cfg.shard_docs:][:cfg.shard_docs]) for s in missing), 0.0, time.perf_counter()
    left = todo
    with ThreadPoolExecutor(cfg.workers) as pool, progress(total=todo, unit='doc', position=rank) as bar:
        for s in missing:
            start, spent = time.perf_counter(), dict(encoder.seconds)
            batch = docs[s * cfg.shard_docs:(s + 1) * cfg.shard_docs]
            done, words, failed = encode_shard(cfg, encoder, batch, pool, bar)
            failures.check(s, failed) # before the shard is there: mend the files and run again
            gone = sum(failure['class'] == 'MISSING' for failure in failed)
            if gone > max(10, len(batch) / 2): # a disk that is away, not files that are
                raise Refused(f"shard {s}: {gone} of its {len(batch)} files are not there, the first is {failed[0]['path']}; "
                              "bring them back and run again")
            write_units_shard(cfg.out, s, done, failures=failed, **({'words': words} if has_words else {}))
            seconds, took = sum(meta['seconds'] for meta, _, _ in done), time.perf_counter() - start
            hours, left = hours + seconds / 3600, left - len(batch)
            share = {part: (encoder.seconds[part] - spent[part]) / took for part in spent}
            share['waiting for audio'] = 1 - sum(share.values())
            eta = (time.perf_counter() - begin) / (todo - left) * left
            print((f"rank {rank}: " if world > 1 else '') + f"shard {s + 1}/{count} | {len(done)} documents, "
                  f"{seconds / 3600:.2f} h | {len(failed)} failed | {seconds / took:.0f} x real time "
                  f"({', '.join(f'{part} {x:.0%}' for part, x in share.items())}) | {hours:.2f} h done, "
                  f"{eta / 60:.0f} min left", flush=True)
    if len(missing) < len(mine):
        print(f"{len(mine) - len(missing)} of {len(mine)} shards were there already")
    if (others := count - len(complete(cfg.out))) > 0:
        print(f"rank {rank} is done, {others} of {count} shards are other ranks'; the last one done writes info.json")
        return
    found = failures.check()
    failures.write(found)
    finish(cfg, encoder, kmeans, found, rank)

if __name__ == '__main__':
    run(main, Config)
