"""
A cache of units: each piece of audio is encoded once for each encoder, whichever task asks for it.

    cache = UnitCache('out/cache', encoder=..., layer=..., kmeans=None, vocab=vocab, device='cpu')
    entries = cache.encode([audio, ...])        {audio: (units, runs, sample rate of the file)}

audio is a path, the bytes of a file, or a tuple of these, whose waves are joined. The cache knows
audio by its content, not by its name:

    CACHE/ENCODER-DEVICE/KEYS-PID.safetensors
        keys            (n, 32) uint8, the sha256 of each audio
        units, runs     uint16, those of all audios one after another
        offsets         (n + 1,) int64, audio i has units[offsets[i]:offsets[i + 1]]
        rate            (n,) int32, the sample rate of each file in Hz
        metadata        the sha256 of these arrays

So audio that was moved is found, audio that was changed is encoded anew, and an interrupted run
goes on where it stopped. A file of the cache that fails its sha256 is named and removed, and its
audio is encoded anew. The encoder is loaded only when something is missing from the cache. Audio shorter
than one frame has no units: (empty, empty), which the caller must not score.
"""
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from configurator import Refused
from files import atomically, check_readable, progress
from speech.audio import RATE, load_audio, seconds_and_rate
from speech.encoders import Encoder
from speech.kmeans import centroids_path, load_centroids, load_segments
from speech.nets import kind_of
from vocab import PUBLISHED, PUBLISHED_LAYER

EMBEDDED = 'tiny/hubert'
POOL = 600 * RATE # samples of audio between two writes

# --------------------------------------------------------------------------------------------------
# the encoder

def load_encoder(name, layer, kmeans, device, vocab=None, normalize=None):
    """The Encoder of these settings. Refused if it does not make the units of a model.

    vocab: that of the model, if there is one. Every script that measures or samples a model loads
    its encoder here, and uses its .hash, .hop (samples a unit), .rate and .encode.
    """
    if vocab and vocab.kind == 'text': # without units
        vocab = None
    unknown = vocab and not vocab.units
    is_name = vocab and '/' in vocab.units # the name of a published encoder, not a hash
    # Refuse before anything is downloaded.
    if unknown and name == EMBEDDED or is_name and not vocab.speaks('', name):
        source = vocab.units or 'an encoder that its folder does not name'
        raise Refused(f"{name}: the model's units are of {source}: give its --encoder, --layer and --kmeans "
                      "(for slprl/*: slprl/mhubert-base-25hz, 11, and what python -m speech.convert wrote)")
    if vocab and vocab.units == PUBLISHED and layer != PUBLISHED_LAYER:
        raise Refused(f"layer={layer}: the model's units are of layer {PUBLISHED_LAYER} "
                      f"of {PUBLISHED}: --layer={PUBLISHED_LAYER}")
    codebooks = vocab.codebooks if vocab else 0
    if codebooks and kind_of(name)[0] != 'mimi':
        raise Refused(f"{name}: the model's units are {codebooks} flat codebooks of a Mimi ({vocab.units}): "
                      "give its --encoder")
    path = centroids_path(name, kmeans)
    centroids = path and load_centroids(path)
    segments = load_segments(path) if path else {}
    encoder = Encoder(name, layer, centroids, device, normalize=normalize, codebooks=codebooks, **segments)
    if vocab and not unknown and not vocab.speaks(encoder.hash, name):
        raise Refused(f"{name}: its units are {encoder.hash}, "
                      f"the model was trained on {vocab.units}: "
                      "give the model's own --encoder, --layer, --kmeans and --normalize")
    if vocab and encoder.n_units != vocab.n_units:
        raise Refused(f"{name}: {encoder.n_units} units, the model has {vocab.n_units}")
    return encoder

# --------------------------------------------------------------------------------------------------
# audio

def key_of(audio):
    """The sha256 of a file's content; of a tuple, that of its parts' keys. Raises Refused."""
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
    """Reads a file (from start to end, in seconds) at the encoder's rate, as tokenize_speech.py does.

    seconds: how much of the wave to keep; 0: all of it. Raises Refused if it is shorter than a unit.
    """
    wave = load_audio(path, start, end, rate=encoder.rate, first=seconds)
    if len(wave) < encoder.step:
        raise Refused(f"{path}: {len(wave)} samples at {encoder.rate} Hz, "
                      f"one unit takes {encoder.step}; leave it out")
    return wave

def load(audio, rate=RATE):
    """A path, bytes or a tuple of these -> (mono wave at `rate`, the rate of the (first) file)."""
    if isinstance(audio, tuple):
        waves, rates = zip(*(load(part, rate) for part in audio))
        return np.concatenate(waves), rates[0]
    if isinstance(audio, bytes):
        with tempfile.NamedTemporaryFile(suffix='.audio') as f: # load_audio reads files only
            f.write(audio)
            f.flush()
            return load(f.name, rate)
    return load_audio(audio, rate=rate), seconds_and_rate(audio)[1]

# --------------------------------------------------------------------------------------------------
# the cache

class UnitCache:
    """A folder of encoded audio, in the format that the head of this file describes."""
    def __init__(self, folder, encoder, layer, kmeans, vocab, device='cpu', normalize=None):
        """vocab: the model's. If it names no hash of units, the encoder is loaded at once."""
        self.settings = encoder, layer, kmeans, device, vocab, normalize
        self.encoder = None
        named = vocab.units and '/' not in vocab.units
        units = vocab.units if named else self._encoder().hash
        self.folder = Path(folder) / f'{units}-{device.split(":")[0]}'
        self.entries = {} # key: (units, runs, rate)
        for path in sorted(self.folder.glob('*.safetensors')):
            self.entries |= self._read(path)

    def _encoder(self):
        if self.encoder is None:
            self.encoder = load_encoder(*self.settings)
        return self.encoder

    def _read(self, path):
        """The entries of a file of the cache; a damaged file is removed and has none."""
        check_readable(path)
        try:
            with safe_open(path, 'numpy') as f:
                arrays = {name: f.get_tensor(name) for name in sorted(f.keys())}
                metadata = f.metadata() or {}
            if metadata.get('sha256') != _digest(arrays):
                raise ValueError
        except (SafetensorError, OSError, ValueError):
            print(f"{path}: damaged, removed; its audio is encoded anew")
            path.unlink(missing_ok=True) # another process may have removed it
            return {}
        entries = {}
        offsets = arrays['offsets']
        for i, key in enumerate(arrays['keys']):
            part = slice(offsets[i], offsets[i + 1])
            units = arrays['units'][part].astype(np.int64)
            runs = arrays['runs'][part].astype(np.int64)
            entries[key.tobytes()] = units, runs, int(arrays['rate'][i])
        return entries

    def _write(self, keys):
        units, runs, rates = zip(*(self.entries[key] for key in keys))
        arrays = {'keys': np.frombuffer(b''.join(keys), np.uint8).reshape(-1, 32).copy(),
                  'offsets': np.cumsum([0, *map(len, units)], dtype=np.int64),
                  'rate': np.array(rates, np.int32),
                  'units': np.concatenate(units).astype(np.uint16),
                  'runs': np.concatenate(runs).astype(np.uint16)}
        # The process is part of the name: two processes may encode the same audio.
        name = hashlib.sha256(b''.join(keys)).hexdigest()[:16]
        with atomically(self.folder / f'{name}-{os.getpid()}.safetensors') as tmp:
            save_file(arrays, tmp, {'sha256': _digest(arrays)})

    def encode(self, audios):
        """{audio: (units, runs, rate)}: int64 units without repeats, frames of each, the file's Hz."""
        keys = {audio: key_of(audio) for audio in audios}
        audio_of = {key: audio for audio, key in keys.items()}
        missing = [key for key in audio_of if key not in self.entries]
        waiting = [] # (key, wave, rate)
        n_samples = 0
        for key in progress(missing, desc='encode', leave=False):
            wave, rate = load(audio_of[key], self._encoder().rate)
            waiting.append((key, wave, rate))
            n_samples += len(wave)
            if n_samples > POOL:
                self._flush(waiting, audio_of)
                n_samples = 0
        self._flush(waiting, audio_of)
        return {audio: self.entries[key] for audio, key in keys.items()}

    def _flush(self, waiting, audio_of):
        """Encodes and writes [(key, wave, rate)], and empties the list."""
        if not waiting:
            return
        encoder = self._encoder()
        long_enough = [item for item in waiting if len(item[1]) >= encoder.step]
        encoded_waves = encoder.encode([wave for _, wave, _ in long_enough])
        for (key, _, rate), frames in zip(long_enough, encoded_waves):
            units, runs = encoder.runs(frames)
            if runs.max() > 65535: # the largest uint16
                raise Refused(f"{audio_of[key]}: one unit for {runs.max()} frames; expected speech")
            self.entries[key] = units, runs, rate
        empty = np.zeros(0, np.int64)
        for key, _, rate in waiting:
            self.entries.setdefault(key, (empty, empty, rate))
        self._write([key for key, _, _ in waiting])
        waiting.clear()

def _digest(arrays):
    """sha256 of the names, types, shapes and bytes of arrays, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        digest.update(f'{name} {a.dtype} {a.shape} '.encode() + a.tobytes())
    return digest.hexdigest()
