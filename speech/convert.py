"""
Converts published files that are pickles to safetensors: k-means for tokenize_speech.py, unit
HiFi-GANs for sample.py.

    python -m speech.convert --kmeans=mhubert_base_25hz_L11_km500.bin --out=km500.safetensors
    python -m speech.convert --vocoder=hifigan_lj_mhubert_base_25hz.pt \\
        --config=hifigan_lj_mhubert_base_25hz_config.json --units_hash=HASH --out=vocoder

HASH is in the info.json of the units that the vocoder is to speak.

Published k-means files are scikit-learn's KMeans or MiniBatchKMeans dumped by joblib. Such a file
is a pickle, plain or compressed by zlib or gzip. The bytes of each array follow the object that
describes it:

    ... NumpyArrayWrapper {shape, order, dtype} BUILD    the description
    1 byte n, n bytes of padding                         from joblib 1.2 on
    the bytes of the array
    ...

Unpickling would run whatever code the file names. Here nothing is unpickled, and neither
scikit-learn nor joblib is needed. The opcodes are read one by one (pickletools only splits them).
The few that such a file needs build tuples, dicts and `PickledObject` records of plain data. Names
of classes and functions stay text: they are never looked up, called or imported. A file that holds
anything else (another name, another opcode, an array of objects, more bytes or opcodes than a
k-means has) is refused in one line.

A vocoder's .pt is a torch.save of {'generator': weights}. torch reads it with weights_only, which
allows only what a file of tensors needs. Weight norm is multiplied out: w = g v / |v|, where the
norm is over all but the first dimension.
"""
import io
import json
import math
import os
import pickletools
import zlib
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import save_file

from configurator import Refused, run
from files import atomically, parse_json, record, sha256, write_json
from speech.audio import RATE

# Limits for a file, after decompression.
MAX_BYTES = 1 << 28
MAX_OPCODES = 100_000

WRAPPERS = {
    'joblib.numpy_pickle NumpyArrayWrapper',
    'sklearn.externals.joblib.numpy_pickle NumpyArrayWrapper',
}
KMEANS = {
    'sklearn.cluster._kmeans KMeans',
    'sklearn.cluster._kmeans MiniBatchKMeans',
    'sklearn.cluster.k_means_ KMeans',
    'sklearn.cluster.k_means_ MiniBatchKMeans',
}
NAMES = WRAPPERS | KMEANS | {
    'numpy ndarray',
    'numpy dtype',
    '_codecs encode',
    'numpy.core.multiarray scalar',
    'numpy._core.multiarray scalar',
    'numpy.core.multiarray _reconstruct',
    'numpy._core.multiarray _reconstruct',
    # for random_state=RandomState(...)
    'numpy.random __RandomState_ctor',
    'numpy.random._pickle __randomstate_ctor',
    'numpy.random._pickle __bit_generator_ctor',
    'numpy.random._mt19937 MT19937',
}
DTYPES = {'b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8'}

@dataclass(frozen=True)
class Config:
    kmeans: str = '' # a k-means file that joblib dumped
    vocoder: str = '' # or the .pt of a unit HiFi-GAN of textlesslib
    config: str = '' # the config.json of that HiFi-GAN
    units_hash: str = '' # units_hash in the info.json of the units that the HiFi-GAN speaks; '': it accepts any
    out: str = '' # NEW.safetensors with 'centroids' (K, C) in float32; or the vocoder's new folder

    def __post_init__(self):
        one_source = bool(self.kmeans) != bool(self.vocoder)
        config_fits = bool(self.vocoder) == bool(self.config)
        if not one_source or not config_fits or not self.out:
            raise Refused("expected --kmeans=FILE and --out=NEW.safetensors, or --vocoder=FILE.pt, "
                          "--config=FILE.json and --out=FOLDER")

class Name(str):
    """'module name' of a class or function that the pickle refers to."""

@dataclass
class PickledObject:
    """An object that unpickling would make by calling `name`: the arguments and the state."""
    name: Name
    args: tuple
    state: object = None

@dataclass
class Array:
    """An array in the file; its bytes begin at `start`."""
    dtype: np.dtype
    shape: tuple
    order: str
    start: int

class InvalidFile(Exception):
    """The reason why a file is not a k-means. read_kmeans adds the path."""

def _check(ok, reason):
    if not ok:
        raise InvalidFile(reason)

def _shown(name):
    """A name as a message shows it: cut to 80 characters, or its type if it is not text."""
    return ascii(name[:80]) if isinstance(name, str) else type(name).__name__

def _summary(error):
    """The first line of an exception's message, or its type."""
    lines = str(error).splitlines() or [type(error).__name__]
    return ascii(lines[0])

# --------------------------------------------------------------------------------------------------
# the k-means file

def _read(path):
    """Reads a pickle -> its bytes, decompressed."""
    try:
        with open(path, 'rb') as f:
            data = f.read(MAX_BYTES + 1)
    except OSError as e:
        raise InvalidFile(f"not readable ({e.strerror})") from None
    _check(len(data) <= MAX_BYTES, f"more than {MAX_BYTES:,} bytes")
    if data[:2] == b'\x1f\x8b' or data[:1] == b'\x78':
        decompressor = zlib.decompressobj(47) # zlib or gzip, by the header
        try:
            data = decompressor.decompress(data, MAX_BYTES + 1)
        except zlib.error as e:
            raise InvalidFile(f"damaged: {e}") from None
        _check(len(data) <= MAX_BYTES, f"more than {MAX_BYTES:,} bytes when decompressed")
        _check(decompressor.eof, "ends early")
    other_formats = {'bz2': b'BZ', 'xz': b'\xfd7zXZ', 'lzma': b']\0\0', 'lz4': b'\x04"M\x18'}
    for name, magic in other_formats.items():
        _check(not data.startswith(magic), f"compressed by {name}, expected plain, zlib or gzip")
    _check(data[:1] == b'\x80' and b'\2' <= data[1:2] <= b'\5', "not a pickle of protocol 2 to 5")
    return data

def _dtype(value):
    """A pickled numpy dtype -> the dtype, of plain numbers."""
    message = "an array without a plain dtype"
    _check(isinstance(value, PickledObject) and value.name == 'numpy dtype', message)
    args = value.args
    state = value.state
    _check(len(args) > 0 and isinstance(args[0], str), message)
    _check(isinstance(state, tuple) and len(state) > 1, message)
    _check(state[1] in ('<', '>', '|', '='), message)
    _check(args[0] in DTYPES, f"an array of {_shown(args[0])}, expected plain numbers")
    return np.dtype(args[0]).newbyteorder(state[1])

def _array(state, f, size):
    """The state of a NumpyArrayWrapper -> the Array behind it in the file f. f moves past it."""
    _check(isinstance(state, dict), "an array without a description")
    subclass = state.get('subclass')
    _check(subclass == 'numpy ndarray',
           f"an array of class {_shown(subclass)}, expected numpy ndarray")
    dtype = _dtype(state.get('dtype'))
    shape = state.get('shape')
    order = state.get('order')
    _check(isinstance(shape, tuple) and len(shape) <= 4, "an array without a plain shape")
    plain_sizes = all(type(n) is int and n >= 0 for n in shape)
    _check(plain_sizes and order in ('C', 'F'), "an array without a plain shape")
    if state.get('numpy_array_alignment_bytes') is not None:
        padding = f.read(1)
        f.seek(padding[0] if padding else 0, os.SEEK_CUR)
    start = f.tell()
    n_bytes = math.prod(shape) * dtype.itemsize
    _check(start + n_bytes <= size, f"an array of shape {shape} needs {n_bytes:,} bytes, "
           f"{max(0, size - start):,} are there")
    f.seek(n_bytes, os.SEEK_CUR)
    return Array(dtype, shape, order, start)

def _name(text, position):
    _check(text in NAMES, f"names {_shown(text)} at byte {position}, which no k-means needs")
    return Name(text)

CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False, 'EMPTY_TUPLE': ()}
VALUES = {
    'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT',
    'BINUNICODE', 'SHORT_BINUNICODE', 'BINBYTES', 'SHORT_BINBYTES',
}
TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}
ITEMS = {'APPEND': 1, 'SETITEM': 2} # values on the stack
MARK = object()

def _pop(stack, n):
    """Pops n values -> list of them in the order in which they were pushed."""
    return [stack.pop() for _ in range(n)][::-1]

def _pop_to_mark(stack):
    """Pops the last mark and all above it -> list of what was above."""
    items = []
    while stack:
        value = stack.pop()
        if value is MARK:
            return items[::-1]
        items.append(value)
    raise InvalidFile("no mark")

def _fill(target, items):
    """Appends items to a list, or sets the items key, value, key, value, ... of a dict."""
    if type(target) is list:
        target += items
        return
    keys = items[::2]
    values = items[1::2]
    _check(type(target) is dict and len(keys) == len(values), "items without a dict")
    _check(all(type(key) is str for key in keys), "items without a dict")
    target.update(zip(keys, values))

def parse(data):
    """Bytes of a pickle -> plain values, PickledObject and Array. Raises InvalidFile."""
    f = io.BytesIO(data)
    stack = []
    memo = {}
    for count, (opcode, arg, position) in enumerate(pickletools.genops(f)):
        _check(count < MAX_OPCODES, f"more than {MAX_OPCODES:,} opcodes")
        match opcode.name:
            case 'PROTO' | 'FRAME':
                pass
            case 'STOP':
                _check(len(stack) == 1, f"{len(stack)} values at its end, expected one")
                return stack[0]
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case name if name in VALUES:
                stack.append(arg)
            case name if name in TUPLES:
                stack.append(tuple(_pop(stack, TUPLES[name])))
            case 'MARK':
                stack.append(MARK)
            case 'EMPTY_DICT':
                stack.append({})
            case 'EMPTY_LIST':
                stack.append([])
            case 'TUPLE':
                stack.append(tuple(_pop_to_mark(stack)))
            case 'SETITEMS' | 'APPENDS':
                items = _pop_to_mark(stack)
                _fill(stack[-1], items)
            case name if name in ITEMS:
                items = _pop(stack, ITEMS[name])
                _fill(stack[-1], items)
            case 'BINPUT' | 'LONG_BINPUT':
                memo[arg] = stack[-1]
            case 'MEMOIZE':
                memo[len(memo)] = stack[-1]
            case 'BINGET' | 'LONG_BINGET':
                stack.append(memo[arg])
            case 'GLOBAL':
                stack.append(_name(arg, position))
            case 'STACK_GLOBAL':
                module, name = _pop(stack, 2)
                _check(type(module) is type(name) is str, "a name that is not text")
                stack.append(_name(f'{module} {name}', position))
            case 'REDUCE' | 'NEWOBJ':
                name, args = _pop(stack, 2)
                _check(isinstance(name, Name) and type(args) is tuple, "a call without a name")
                stack.append(PickledObject(name, args))
            case 'BUILD':
                value, state = _pop(stack, 2)
                _check(isinstance(value, PickledObject), "a state without an object")
                value.state = state
                if value.name in WRAPPERS:
                    value = _array(state, f, len(data))
                stack.append(value)
            case name:
                raise InvalidFile(f"opcode {name} at byte {position}, which no k-means needs")

def _centroids(data):
    """Bytes of a pickle -> centroids, float32 (K, C). Raises InvalidFile."""
    try:
        kmeans = parse(data)
    except (ValueError, IndexError, KeyError) as e: # from pickletools, the stack or the memo
        raise InvalidFile(f"damaged or cut short ({_summary(e)[:120]})") from None
    _check(isinstance(kmeans, PickledObject) and kmeans.name in KMEANS, "holds no KMeans")
    _check(isinstance(kmeans.state, dict) and 'cluster_centers_' in kmeans.state,
           "a KMeans that was not fitted")
    array = kmeans.state['cluster_centers_']
    _check(isinstance(array, Array), "its cluster_centers_ are not an array that joblib wrote "
           "(was it pickled without joblib?)")
    values = np.frombuffer(data, array.dtype, math.prod(array.shape), array.start)
    with np.errstate(over='ignore'): # too large a number becomes infinite and is refused below
        values = values.astype(np.float32)
    values = values.reshape(array.shape, order=array.order)
    _check(values.ndim == 2 and 1 <= len(values) <= 65535 and np.isfinite(values).all(),
           f"cluster_centers_ of shape {array.shape}, expected (K, C) finite numbers, K up to 65535")
    return np.ascontiguousarray(values)

def read_kmeans(path):
    """Reads a k-means file -> its centroids, float32 (K, C), without running any code in it.

    Raises Refused, in one line, for any other file.
    """
    try:
        return _centroids(_read(path))
    except InvalidFile as e:
        raise Refused(f"{path}: {e}; expected a (MiniBatch)KMeans of scikit-learn that joblib "
                      "dumped") from None

# --------------------------------------------------------------------------------------------------
# the vocoder

def read_generator(path):
    """Reads the generator of a textlesslib checkpoint -> {name: float32 tensor}.

    Weight norm is multiplied out. Raises Refused for any other file.
    """
    import torch

    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        weights = {name: tensor.float() for name, tensor in checkpoint['generator'].items()}
    except Exception as e: # torch documents no list of errors for a file that is not one of its own
        raise Refused(f"{path}: expected a torch file of tensors with 'generator' in it "
                      f"({_summary(e)[:160]})") from None
    for name in list(weights):
        if not name.endswith('.weight_v'):
            continue
        v = weights.pop(name)
        g = weights.pop(name[:-1] + 'g', None)
        if g is None or v.ndim < 2 or g.numel() != len(v):
            raise Refused(f"{path}: {name} has no weight_g of {len(v)} numbers beside it")
        scale = g.flatten() / v.flatten(1).norm(dim=1)
        weights[name[:-2]] = v * scale.view(-1, *[1] * (v.ndim - 1))
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise Refused(f"{path}: a weight is not finite")
    return {name: tensor.contiguous() for name, tensor in weights.items()}

def write_vocoder(cfg):
    """Writes the vocoder folder cfg.out."""
    from safetensors.torch import save_file as save_tensors

    from speech.vocoder import load_vocoder
    try:
        with open(cfg.config, encoding='utf-8') as f:
            settings = parse_json(f.read())
        if not isinstance(settings, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as e:
        raise Refused(f"{cfg.config}: expected the vocoder's settings in JSON ({e})") from None
    with atomically(cfg.out) as tmp:
        tmp.mkdir()
        save_tensors(read_generator(cfg.vocoder), tmp / 'model.safetensors')
        provenance = {**record(cfg), 'source': sha256(cfg.vocoder)}
        settings |= {'units_hash': cfg.units_hash, 'made': provenance}
        write_json(tmp / 'config.json', settings)
        vocoder = load_vocoder(tmp)
    print(f"{cfg.out}: a vocoder of {vocoder.cfg.num_embeddings} units, "
          f"{RATE / vocoder.hop:g} a second")

def main(cfg):
    if os.path.exists(cfg.out):
        raise Refused(f"{cfg.out}: is there already; take another --out, or delete it")
    if cfg.vocoder:
        return write_vocoder(cfg)
    centroids = read_kmeans(cfg.kmeans)
    with atomically(cfg.out) as tmp:
        provenance = json.dumps({**record(cfg), 'source': sha256(cfg.kmeans)})
        save_file({'centroids': centroids}, tmp, {'made': provenance})
    K, C = centroids.shape
    print(f"{cfg.out}: {K} centroids of {C} numbers")

if __name__ == '__main__':
    run(main, Config)
