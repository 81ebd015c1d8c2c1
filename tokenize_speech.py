"""
Audio -> units: one id for every 40 ms of speech, repeats merged.

    python tokenize_speech.py --audio=FOLDER --out=out/units/mine            the embedded encoder
    python tokenize_speech.py --audio=list.jsonl --out=out/units/mine --encoder=slprl/mhubert-base-25hz --layer=11 \
                              --kmeans=km500.safetensors

FOLDER or list: see corpora/folder.py. All at 16 kHz mono, N samples, after audio.load_audio:

    h_f         = output of layer L of HuBERT for frame f, the input padded by (receptive field - hop) / 2 = 40 zeros on
                  each side: exactly floor(N / hop) frames; hop = product of the strides (640 samples: 25 Hz)
    unit_f      = argmin_k |h_f - c_k|^2 = argmax_k (h_f . c_k - |c_k|^2 / 2)
    units, runs = the units without repeats, and for how many frames each lasted

Audio longer than window_s is cut into windows that overlap by 2 * margin_s; a frame comes from the window where it is
at least margin_s from a cut. Windows depend on the file alone, and a file's units are the same alone and in any batch:
norms over time see the file's own frames only, and padding is zero wherever a convolution reads it. (What is left is
rounding: in padded batches 1 frame in 10,000 of a random encoder is near enough to a tie to flip.)

A units folder (its one writer and its one reader are both here):

    DIR/00000/units.npy     uint16, the units of all documents of the shard, one after another
    DIR/00000/runs.npy      uint16, how many frames each lasted
    DIR/00000/offsets.npy   int64 (n+1), document i is units[offsets[i]:offsets[i+1]]
    DIR/00000/meta.jsonl    {"id", "path", "seconds", "speaker", "text"} a line
    DIR/00000/words.jsonl   {"id", "words": [[word, start, end], ...]} in samples, if the corpus has words
    DIR/failures.jsonl      {"id", "path", "class", "message"}: what could not be used, and why
    DIR/settings.json       what decides the bytes; a run with others is refused
    DIR/info.json           encoder, layer, n_units (K), frame_hz, hop, units_hash, counts, how it was made; comes last

A shard holds the documents of shard_docs consecutive ids, and its own failures.jsonl. It is renamed into place when
complete: a run that was interrupted goes on where it stopped and ends with the same bytes.
"""
import hashlib
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
from safetensors import SafetensorError, safe_open
from torch import nn

from audio import RATE, BadAudio, load_audio
from configurator import Refused, atomically, progress, record, run, sha256, write_json
from corpora.folder import utterances
from folders import read_array, read_info, read_lines, shard_folders, write_lines, write_shard

POOL = 1800 * RATE # samples that are decoded before their windows are sorted into batches

@dataclass(frozen=True)
class Config:
    audio: str = '' # a folder of audio, or a .jsonl list
    out: str = '' # the units folder
    encoder: str = 'tiny/hubert' # a HubertModel: local folder or hub id
    layer: int = 4 # whose output is quantized, 1 is the first (mHuBERT-25Hz: 11, HuBERT-base: 9)
    kmeans: str | None = None # safetensors with 'centroids' (K, C); None: kmeans.safetensors in the encoder's folder
    device: str = 'auto' # cpu, cuda, cuda:1, ...; auto: cuda where there is one (in bf16)
    window_s: float = 30.0 # longer audio is cut into windows of this many seconds
    margin_s: float = 2.0 # frames nearer than this to a cut come from the neighboring window
    batch_s: float = 120.0 # seconds of padded audio in a forward pass on CUDA; a CPU takes one window at a time
    max_seconds: float = 21600.0 # a longer file is TOO_LONG (a file is held in memory: 64 kB a second)
    shard_docs: int = 2000 # utterances in a shard
    max_fail_frac: float = 0.01 # share of unusable files above which the run stops
    workers: int = 4 # threads that decode; never changes the result

    def __post_init__(self):
        if not self.audio or not self.out:
            raise Refused("expected --audio=FOLDER_OR_JSONL and --out=DIR")
        if not 0 <= 2 * self.margin_s < self.window_s:
            raise Refused(f"margin_s is {self.margin_s}: two margins must fit into window_s, {self.window_s}")
        for key in ('layer', 'batch_s', 'max_seconds', 'shard_docs', 'workers'):
            if not getattr(self, key) > 0:
                raise Refused(f"{key} is {getattr(self, key)}, must be above 0")
        if not 0 <= self.max_fail_frac <= 1:
            raise Refused(f"max_fail_frac is {self.max_fail_frac}, must be between 0 and 1")

# ----------------------------------------------------------------------------------------------------------------
# the encoder

class MaskedGroupNorm(nn.Module):
    """One group a channel, statistics over each row's own frames (set by Encoder): what the row would get alone."""
    def __init__(self, norm):
        super().__init__()
        self.norm, self.frames = norm, None

    def forward(self, x): # (B, C, F)
        y = torch.zeros_like(x)
        for row, n in enumerate(self.frames):
            y[row:row + 1, :, :n] = self.norm(x[row:row + 1, :, :n])
        return y

class MaskedBatchNorm(MaskedGroupNorm):
    """mHuBERT's norm before the positional convolution: its bias would lift the padding off zero."""
    def forward(self, x): # (B, C, F)
        y = self.norm(x)
        for row, n in enumerate(self.frames):
            y[row, :, n:] = 0
        return y

def load_centroids(path):
    """safetensors {"centroids"} -> float32 (K, C)."""
    try:
        with safe_open(path, 'pt') as f:
            c = f.get_tensor('centroids').float()
    except FileNotFoundError:
        raise Refused(f"{path}: no such k-means file; expected --kmeans=FILE.safetensors holding 'centroids'") from None
    except (SafetensorError, OSError) as e:
        raise Refused(f"{path}: expected safetensors holding 'centroids' ({e}); a pickled k-means is never read, a "
                      "converter comes with the published models") from None
    if c.dim() != 2 or not 1 <= len(c) <= 65535 or not c.isfinite().all():
        raise Refused(f"{path}: centroids of shape {tuple(c.shape)}, expected (K, C) finite numbers, K up to 65535")
    return c

def _load_hubert(name, layer):
    """HubertModel up to `layer`, float32, eval; every weight must come from the files."""
    import transformers  # here, because readers of units need not wait for it

    log = transformers.utils.logging
    before = log.get_verbosity()
    log.set_verbosity_error() # the layers left out are no news
    log.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        if config.model_type != 'hubert':
            raise Refused(f"{name}: holds a '{config.model_type}', expected a HubertModel")
        if layer > config.num_hidden_layers:
            raise Refused(f"{name}: has {config.num_hidden_layers} layers, --layer={layer} is not among them")
        config.num_hidden_layers = layer
        model, info = transformers.HubertModel.from_pretrained(name, config=config, use_safetensors=True,
                                                               output_loading_info=True)
    except Refused:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as e:
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise Refused(f"{name}: expected a HubertModel (config.json, model.safetensors): {why}") from None
    finally:
        log.set_verbosity(before)
    if missing := sorted(set(info['missing_keys']) - {'masked_spec_embed'}): # transformers would make them up
        raise Refused(f"{name}: lacks {len(missing)} weights of the model, the first is {missing[0]}")
    if config.do_stable_layer_norm:
        model.encoder.layer_norm = nn.Identity() # comes after the last layer of all, not after ours
    return model.float().eval()

def windows(n_frames, window, margin):
    """[(first, last, keep_from, keep_to)] in frames: the windows of a file and the part of each that is kept."""
    if n_frames <= window:
        return [(0, n_frames, 0, n_frames)]
    step = window - 2 * margin
    count = -(-(n_frames - 2 * margin) // step)
    return [(i * step, min(i * step + window, n_frames), i * step + margin * (i > 0),
             (i + 1) * step + margin if i + 1 < count else n_frames) for i in range(count)]

class Encoder:
    """encoder.encode([wave, ...]) -> units a frame; hop, n_units, receptive (samples), hash.

    name: folder or hub id of a HubertModel; centroids: (K, C). bf16 autocast on CUDA, float32 elsewhere.
    """
    def __init__(self, name, layer, centroids, device='cpu', window_s=30.0, margin_s=2.0, batch_s=120.0):
        self.model, self.device = _load_hubert(name, layer), torch.device(device)
        config = self.config = self.model.config
        self.centroids = torch.as_tensor(centroids).float()
        if self.centroids.shape[1] != config.hidden_size:
            raise Refused(f"centroids have {self.centroids.shape[1]} numbers, {name} gives {config.hidden_size}")
        self.n_units, self.hop, self.receptive = len(self.centroids), math.prod(config.conv_stride), 1
        for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride))):
            self.receptive = (self.receptive - 1) * stride + kernel
        self.pad = ((self.receptive - self.hop) // 2, (self.receptive - self.hop + 1) // 2)
        self.window, self.margin = round(window_s * RATE / self.hop), round(margin_s * RATE / self.hop)
        self.batch = int(batch_s * RATE) if self.device.type == 'cuda' else 0 # a CPU gains nothing, and is bit-exact
        self.hash = self._hash()
        self.masked = []
        if config.feat_extract_norm == 'group':
            first = self.model.feature_extractor.conv_layers[0]
            first.layer_norm = MaskedGroupNorm(first.layer_norm)
            self.masked.append((first.layer_norm, 1)) # after one convolution
        position = self.model.encoder.pos_conv_embed
        if getattr(position, 'batch_norm', None) is not None:
            position.batch_norm = MaskedBatchNorm(position.batch_norm)
            self.masked.append((position.batch_norm, len(config.conv_kernel)))
        self.model.to(self.device)
        self.centroids = self.centroids.to(self.device)

    def _hash(self):
        """Of all that decides a unit: weights up to the layer, geometry, centroids; not of file names or formats."""
        keys = ('conv_stride', 'num_attention_heads', 'feat_extract_norm', 'do_stable_layer_norm', 'hidden_act',
                'feat_extract_activation', 'layer_norm_eps') # the shapes of the weights say the rest
        digest = hashlib.sha256(json.dumps([getattr(self.config, key) for key in keys]).encode())
        tensors = {**self.model.state_dict(), 'centroids': self.centroids}
        tensors.pop('masked_spec_embed', None) # training only
        for name in sorted(tensors):
            digest.update(name.encode() + tensors[name].contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _frames(self, samples, layers):
        """How many frames `layers` convolutions make of so many samples."""
        for kernel, stride in list(zip(self.config.conv_kernel, self.config.conv_stride))[:layers]:
            samples = (samples - kernel) // stride + 1
        return samples

    @torch.inference_mode()
    def _forward(self, waves):
        lengths = [len(w) + sum(self.pad) for w in waves]
        x = torch.zeros(len(waves), max(lengths))
        for row, wave in zip(x, waves):
            row[self.pad[0]:self.pad[0] + len(wave)] = torch.from_numpy(wave)
        mask = torch.arange(x.shape[1]) < torch.tensor(lengths)[:, None]
        for norm, layers in self.masked:
            norm.frames = [self._frames(n, layers) for n in lengths]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == 'cuda'):
            h = self.model(x.to(self.device), attention_mask=mask.to(self.device).long()).last_hidden_state # (B, F, C)
        units = (h.float() @ self.centroids.T - self.centroids.square().sum(1) / 2).argmax(-1).cpu().numpy()
        return [row[:len(wave) // self.hop] for row, wave in zip(units, waves)]

    def encode(self, waves):
        """float32 (N,) waves at 16 kHz -> an int64 array of floor(N / hop) units each; the same alone and together."""
        cuts, out = [], [np.empty(len(w) // self.hop, np.int64) for w in waves]
        for i, wave in enumerate(waves):
            if len(wave) < self.hop:
                raise Refused(f"{len(wave)} samples are less than one frame of {self.hop}")
            for first, last, *keep in windows(len(out[i]), self.window, self.margin):
                end = len(wave) if last == len(out[i]) else last * self.hop
                cuts.append((i, first, keep, np.ascontiguousarray(wave[first * self.hop:end], np.float32)))
        cuts.sort(key=lambda cut: len(cut[3])) # like lengths together: less padding
        while cuts:
            n = 1
            while n < len(cuts) and (n + 1) * len(cuts[n][3]) <= self.batch:
                n += 1
            batch, cuts = cuts[:n], cuts[n:]
            for (i, first, keep, _), units in zip(batch, self._forward([cut[3] for cut in batch])):
                out[i][keep[0]:keep[1]] = units[keep[0] - first:keep[1] - first]
        return out

# ----------------------------------------------------------------------------------------------------------------
# the units folder

def deduplicate(frames):
    """(F,) units a frame -> units without repeats, runs (the frames each lasted). [5 5 5 2 5] -> [5 2 5], [3 1 1]"""
    frames = np.asarray(frames)
    starts = np.flatnonzero(np.diff(frames, prepend=frames[:1] - 1)) # the first differs from what is before it
    return frames[starts], np.diff(starts, append=len(frames))

def write_units_shard(dir, index, docs, **lines):
    """docs: list of (meta dict, units, runs); lines: further lists of dicts to lie in the shard (words=, failures=)."""
    arrays = {'offsets': np.cumsum([0] + [len(units) for _, units, _ in docs], dtype=np.int64)}
    for name, column, lowest in (('units', 1, 0), ('runs', 2, 1)):
        for doc in docs:
            a = np.asarray(doc[column])
            if len(a) != len(doc[1]) or len(a) and not lowest <= a.min() <= a.max() <= 65535: # uint16 would wrap
                raise Refused(f"{doc[0]['id']}: {name} must be {len(doc[1])} integers from {lowest} to 65535")
        arrays[name] = np.concatenate([np.zeros(0, np.int64), *(doc[column] for doc in docs)]).astype(np.uint16)
    write_shard(dir, index, arrays, {'meta': [meta for meta, _, _ in docs], **lines})

class Units:
    """A units folder, checked. len(u) documents; u[i] -> (units, runs); u.meta[i]; u.find(id) -> i; u.info.

    u.units, u.runs, u.offsets are lists with one memory-mapped array a shard; shard s begins with document u.first[s].
    """
    def __init__(self, dir):
        self.info, self.meta, self.first, self._index = read_info(dir, 'tokenize_speech.py'), [], [0], None
        self.units, self.runs, self.offsets = [], [], []
        K = self.info.get('n_units')
        if type(K) is not int or K < 1:
            raise Refused(f"{dir}/info.json: n_units is {K!r}, expected the number of centroids")
        for folder in shard_folders(dir):
            units, runs = (read_array(folder / f'{name}.npy', np.uint16) for name in ('units', 'runs'))
            offsets = read_array(folder / 'offsets.npy', np.int64)
            meta = [line for _, line in read_lines(folder / 'meta.jsonl')]
            if not len(offsets) or offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] != len(units):
                raise Refused(f"{folder}/offsets.npy: must rise from 0 to {len(units)}, the number of units")
            if len(runs) != len(units) or (runs == 0).any():
                raise Refused(f"{folder}/runs.npy: expected {len(units)} run lengths of 1 and more")
            if len(units) and units.max() >= K:
                raise Refused(f"{folder}/units.npy: holds unit {units.max()}, info.json says {K} units")
            if len(meta) != len(offsets) - 1:
                raise Refused(f"{folder}/meta.jsonl: {len(meta)} lines, offsets.npy has {len(offsets) - 1} documents")
            self.meta += meta
            self.units.append(units), self.runs.append(runs), self.offsets.append(offsets)
            self.first.append(len(self.meta))
        if len(self.meta) != self.info.get('documents'):
            raise Refused(f"{dir}: {len(self.meta)} documents, info.json says {self.info.get('documents')}")

    def __len__(self):
        return len(self.meta)

    def __getitem__(self, i):
        if not 0 <= i < len(self.meta):
            raise IndexError(f"document {i} of {len(self.meta)}")
        s = int(np.searchsorted(self.first, i, side='right')) - 1
        a, b = self.offsets[s][i - self.first[s]:][:2]
        return self.units[s][a:b], self.runs[s][a:b]

    def find(self, id):
        """The document's number; KeyError where there is none."""
        if self._index is None:
            self._index = {meta['id']: i for i, meta in enumerate(self.meta)}
        return self._index[id]

# ----------------------------------------------------------------------------------------------------------------
# the run

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

def decode(utterance, hop, max_seconds):
    """The utterance's wave, or the BadAudio that says why there is none."""
    try:
        wave = load_audio(utterance['path'], utterance['start'], utterance['end'], max_seconds)
        if len(wave) < hop:
            raise BadAudio('TOO_SHORT', utterance['path'], f"{len(wave)} samples at 16 kHz, a frame has {hop}")
        if wave.min() == wave.max():
            raise BadAudio('SILENT', utterance['path'], f"all {len(wave)} samples are {wave[0]:g}")
        return wave
    except BadAudio as e:
        return e

def encode_shard(cfg, encoder, batch, pool, bar):
    """Utterances -> docs for write_units_shard, words, failures, all in the order of ids."""
    docs, words, failures, waiting = [], [], [], []

    def flush():
        for (u, wave), frames in zip(waiting, encoder.encode([wave for _, wave in waiting])):
            units, runs = deduplicate(frames)
            if runs.max() > 65535:
                failures.append((u, BadAudio('SILENT', u['path'], f"one unit for {runs.max()} frames")))
                continue
            docs.append(({'id': u['id'], 'path': u['path'], 'seconds': len(wave) / RATE,
                          'speaker': u['speaker'], 'text': u['text']}, units, runs))
            words.append({'id': u['id'], 'words': u['words'] and [
                [word, *(None if t is None else round(t * RATE) for t in times)] for word, *times in u['words']]})
        waiting.clear()

    for u, wave in ahead(pool, lambda u: decode(u, encoder.hop, cfg.max_seconds), batch, 2 * cfg.workers):
        if isinstance(wave, BadAudio):
            failures.append((u, wave))
        else:
            waiting.append((u, wave))
        if sum(len(wave) for _, wave in waiting) > POOL: # enough to sort by length; bounds the memory
            flush()
        bar.update()
    flush()
    failures = [{'id': u['id'], 'path': u['path'], 'class': e.kind, 'message': e.why} for u, e in failures]
    return docs, words, sorted(failures, key=lambda f: f['id'])

def open_folder(out, wanted):
    """Makes `out`, or checks that it was begun with the same settings."""
    path = Path(out) / 'settings.json'
    if path.exists():
        try:
            was = json.loads(path.read_text(encoding='utf-8'))
        except ValueError:
            raise Refused(f"{path}: not JSON; take another --out, or delete {out}") from None
        other = [f"{key} was {was.get(key)!r}, is now {wanted[key]!r}" for key in wanted if was.get(key) != wanted[key]]
        if other:
            raise Refused(f"{out}: begun with other settings ({'; '.join(other)}); take another --out, or delete it")
    elif Path(out).exists() and (not Path(out).is_dir() or (Path(out) / 'info.json').exists() or shard_folders(out)):
        raise Refused(f"{out}: is there already, and no units folder of this script; take another --out")
    else:
        write_json(path, wanted)

def write_failures(cfg, failures, total):
    """failures.jsonl; refuses to go on if they are more than max_fail_frac of all."""
    with atomically(Path(cfg.out) / 'failures.jsonl') as tmp:
        write_lines(tmp, failures)
    if len(failures) > cfg.max_fail_frac * total:
        counts = Counter(failure['class'] for failure in failures)
        raise Refused(f"{cfg.audio}: {len(failures)} of {total} files cannot be used "
                      f"({', '.join(f'{n} {kind}' for kind, n in sorted(counts.items()))}), max_fail_frac is "
                      f"{cfg.max_fail_frac:g}; see {cfg.out}/failures.jsonl")

def finish(cfg, encoder, kmeans, failures):
    """info.json, with counts that come from the shards."""
    folders = shard_folders(cfg.out)
    seconds = [meta['seconds'] for folder in folders for _, meta in read_lines(folder / 'meta.jsonl')]
    if not seconds:
        raise Refused(f"{cfg.audio}: not one usable file, see {cfg.out}/failures.jsonl")
    info = {'encoder': cfg.encoder, 'layer': cfg.layer, 'kmeans': sha256(kmeans), 'units_hash': encoder.hash,
            'n_units': encoder.n_units, 'frame_hz': RATE / encoder.hop, 'hop': encoder.hop, 'documents': len(seconds),
            'hours': round(math.fsum(seconds) / 3600, 4),
            'runs': sum(len(read_array(folder / 'units.npy', np.uint16)) for folder in folders),
            'failures': dict(sorted(Counter(failure['class'] for failure in failures).items())), **record(cfg)}
    write_json(Path(cfg.out) / 'info.json', info)
    print(f"{cfg.out}: {len(seconds)} documents, {info['hours']:.2f} h, {info['runs']:,} units, {len(failures)} failed")

def main(cfg):
    docs = list(utterances(cfg.audio))
    for one, two in zip(docs, docs[1:]):
        if one['id'] == two['id']:
            raise Refused(f"{cfg.audio}: two utterances with the id '{one['id']}': {one['path']} and {two['path']}")
    device = ('cuda' if torch.cuda.is_available() else 'cpu') if cfg.device == 'auto' else cfg.device
    if device != 'cpu' and not (device.startswith('cuda') and torch.cuda.is_available()):
        raise Refused(f"device is {cfg.device}, expected auto, cpu, or cuda where there is one")
    kmeans = cfg.kmeans or os.path.join(cfg.encoder, 'kmeans.safetensors')
    encoder = Encoder(cfg.encoder, cfg.layer, load_centroids(kmeans), device, cfg.window_s, cfg.margin_s, cfg.batch_s)
    settings = {key: getattr(cfg, key)
                for key in ('layer', 'shard_docs', 'window_s', 'margin_s', 'batch_s', 'max_seconds')}
    open_folder(cfg.out, {'documents': len(docs), 'corpus': hashlib.sha256(json.dumps(docs).encode()).hexdigest()[:16],
                          'units_hash': encoder.hash, 'device': encoder.device.type, **settings})
    has_words = any(u['words'] for u in docs)
    count, failures, skipped = -(-len(docs) // cfg.shard_docs), [], 0
    with ThreadPoolExecutor(cfg.workers) as pool, progress(total=len(docs), unit='doc') as bar:
        for s in range(count):
            batch, start = docs[s * cfg.shard_docs:(s + 1) * cfg.shard_docs], time.perf_counter()
            folder = Path(cfg.out) / f'{s:05d}'
            if folder.exists():
                failures += [failure for _, failure in read_lines(folder / 'failures.jsonl')]
                skipped += 1
                bar.update(len(batch))
                continue
            done, words, failed = encode_shard(cfg, encoder, batch, pool, bar)
            failures += failed
            write_failures(cfg, failures, len(docs)) # before the shard is there: mend the files and run again
            write_units_shard(cfg.out, s, done, failures=failed, **({'words': words} if has_words else {}))
            seconds = sum(meta['seconds'] for meta, _, _ in done)
            print(f"shard {s + 1}/{count} | {len(done)} documents, {seconds / 3600:.2f} h | {len(failed)} failed | "
                  f"{seconds / (time.perf_counter() - start):.0f} x real time")
    if skipped:
        print(f"{skipped} of {count} shards were there already")
    write_failures(cfg, failures, len(docs))
    finish(cfg, encoder, kmeans, failures)

if __name__ == '__main__':
    run(main, Config)
