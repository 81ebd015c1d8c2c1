"""
Audio -> units, each piece of audio once for each encoder, whatever the task that asks for it.

    cache = UnitCache('out/cache', encoder=..., layer=..., kmeans=None, vocab=vocab, device='cpu')
    found = cache.encode([audio, ...])        {audio: (units, runs, rate of the file)}

audio is a path, the bytes of a file, or a tuple of these, whose waves are joined. What is stored is known by content:

    CACHE/ENCODER-DEVICE/KEYS-PID.safetensors   keys (n, 32) sha256 of each audio, units and runs uint16 of all, offsets
                                                (n + 1), rate (n,) in Hz; metadata: sha256 of these

so a file that moved is found, one that changed is encoded anew, and a run that was interrupted goes on where it stopped.
A file of the cache that fails its sha256 is named, removed, and its audio encoded anew. The encoder is loaded when
something is not there yet. Audio shorter than one frame has no units: (empty, empty), which the caller must not score.
"""
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from configurator import Refused
from files import atomically, progress
from speech.audio import RATE, load_audio
from speech.encoders import Encoder
from speech.kmeans import centroids_path, load_centroids
from speech.units import deduplicate
from vocab import PUBLISHED, PUBLISHED_LAYER

EMBEDDED = 'tiny/hubert'
POOL = 600 * RATE # samples of audio between two writes

def load_encoder(name, layer, kmeans, device, vocab=None):
    """The one place here that makes an encoder, of a model's units where vocab is given; its .hash, .hop (samples a unit) and
    .encode are used."""
    vocab = None if vocab and vocab.kind == 'text' else vocab # which has no units
    unknown = vocab and not vocab.units
    if unknown and name == EMBEDDED or vocab and '/' in vocab.units and not vocab.speaks('', name): # before it is downloaded
        raise Refused(f"{name}: the model's units are of {vocab.units or 'an encoder that its folder does not name'}: give its "
                      "--encoder, --layer and --kmeans (slprl/*: slprl/mhubert-base-25hz, 11, a file of speech/convert.py)")
    if vocab and vocab.units == PUBLISHED and layer != PUBLISHED_LAYER:
        raise Refused(f"layer={layer}: the model's units are of layer {PUBLISHED_LAYER} of {PUBLISHED}: --layer={PUBLISHED_LAYER}")
    path = centroids_path(name, kmeans)
    encoder = Encoder(name, layer, path and load_centroids(path), device)
    if vocab and not unknown and not vocab.speaks(encoder.hash, name):
        raise Refused(f"{name}: its units are {encoder.hash}, the model was trained on {vocab.units}: give the model's own "
                      "--encoder, --layer and --kmeans")
    if vocab and encoder.n_units != vocab.n_units:
        raise Refused(f"{name}: {encoder.n_units} units, the model has {vocab.n_units}")
    return encoder

def key_of(audio):
    """sha256 of a path's or bytes' content, of a tuple the sha256 of its parts' keys; raises Refused for no file."""
    if isinstance(audio, tuple):
        return hashlib.sha256(b'joined' + b''.join(map(key_of, audio))).digest()
    if isinstance(audio, bytes):
        return hashlib.sha256(audio).digest()
    try:
        with open(audio, 'rb') as f:
            return hashlib.file_digest(f, 'sha256').digest()
    except OSError as e:
        raise Refused(f"{audio}: not readable ({e.strerror})") from None

def wave_for(encoder, path, start=None, end=None, seconds=0):
    """A file (from start to end) at the rate that the encoder hears, as tokenize_speech.py reads it, or its first so many
    seconds; Refused where that is shorter than a unit."""
    wave = load_audio(path, start, end, rate=encoder.rate)[:round(seconds * encoder.rate) or None]
    if len(wave) < encoder.hop:
        raise Refused(f"{path}: {len(wave)} samples at {encoder.rate} Hz, one unit takes {encoder.hop}; leave it out")
    return wave

def load(audio, rate=RATE):
    """(mono wave at so many Hz, the file's own rate) of a path, bytes or a tuple of these."""
    if isinstance(audio, tuple):
        waves, rates = zip(*(load(part, rate) for part in audio))
        return np.concatenate(waves), rates[0]
    if isinstance(audio, bytes):
        with tempfile.NamedTemporaryFile(suffix='.audio') as f: # load_audio looks at the file itself
            f.write(audio)
            f.flush()
            return load(f.name, rate)
    return load_audio(audio, rate=rate), soundfile.info(str(audio)).samplerate

class UnitCache:
    def __init__(self, folder, encoder, layer, kmeans, vocab, device='cpu'):
        """vocab: of the model; where it does not say which units, the encoder is loaded at once."""
        self.settings, self.encoder = (encoder, layer, kmeans, device, vocab), None
        self.units = vocab.units if vocab.units and '/' not in vocab.units else self._encoder().hash
        self.folder = Path(folder) / f'{self.units}-{device.split(":")[0]}'
        self.found = {}
        for path in sorted(self.folder.glob('*.safetensors')):
            self.found |= self._read(path)

    def _encoder(self):
        if self.encoder is None:
            self.encoder = load_encoder(*self.settings)
        return self.encoder

    def _read(self, path):
        try:
            with safe_open(path, 'numpy') as f:
                arrays = {name: f.get_tensor(name) for name in sorted(f.keys())}
                said = (f.metadata() or {}).get('sha256')
            if said != _digest(arrays):
                raise ValueError
        except (SafetensorError, OSError, ValueError):
            print(f"{path}: damaged, removed; its audio is encoded anew")
            path.unlink()
            return {}
        cut = lambda name, i: arrays[name][arrays['offsets'][i]:arrays['offsets'][i + 1]].astype(np.int64)
        return {key.tobytes(): (cut('units', i), cut('runs', i), int(arrays['rate'][i]))
                for i, key in enumerate(arrays['keys'])}

    def _write(self, keys):
        of = [self.found[key] for key in keys]
        arrays = {'keys': np.frombuffer(b''.join(keys), np.uint8).reshape(-1, 32).copy(),
                  'offsets': np.cumsum([0] + [len(units) for units, *_ in of], dtype=np.int64),
                  'rate': np.array([rate for *_, rate in of], np.int32)}
        for i, name in enumerate(('units', 'runs')):
            arrays[name] = np.concatenate([np.zeros(0, np.int64), *(doc[i] for doc in of)]).astype(np.uint16)
        name = hashlib.sha256(b''.join(keys)).hexdigest()[:16] # the process too: two may encode the same
        with atomically(self.folder / f'{name}-{os.getpid()}.safetensors') as tmp:
            save_file(arrays, tmp, {'sha256': _digest(arrays)})

    def encode(self, audios):
        """{audio: (units, runs, rate)}; int64 arrays without repeats, frames each lasted, the file's rate in Hz."""
        keys = {audio: key_of(audio) for audio in audios}
        first = {key: audio for audio, key in keys.items()}
        waiting, size = [], 0
        for key in progress([key for key in first if key not in self.found], desc='encode', leave=False):
            waiting.append((key, *load(first[key], self._encoder().rate)))
            size += len(waiting[-1][1])
            if size > POOL:
                self._flush(waiting, first)
                size = 0
        self._flush(waiting, first)
        return {audio: self.found[key] for audio, key in keys.items()}

    def _flush(self, waiting, first):
        if not waiting:
            return
        encoder, none = self._encoder(), np.zeros(0, np.int64)
        long = [item for item in waiting if len(item[1]) >= encoder.hop]
        for (key, _, rate), frames in zip(long, encoder.encode([wave for _, wave, _ in long])):
            units, runs = deduplicate(frames)
            if runs.max() > 65535: # would wrap in uint16
                raise Refused(f"{first[key]}: one unit for {runs.max()} frames; expected speech")
            self.found[key] = units, runs, rate
        for key, _, rate in waiting:
            self.found.setdefault(key, (none, none, rate))
        self._write([key for key, *_ in waiting])
        waiting.clear()

def _digest(arrays):
    """sha256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        digest.update(f'{name} {a.dtype} {a.shape} '.encode() + a.tobytes())
    return digest.hexdigest()
