"""
Published files that are pickles -> safetensors: k-means for tokenize_speech.py, unit HiFi-GANs for sample.py.

    python -m speech.convert --kmeans=mhubert_base_25hz_L11_km500.bin --out=km500.safetensors
    python -m speech.convert --vocoder=hifigan_lj_mhubert_base_25hz.pt --config=hifigan_lj_mhubert_base_25hz_config.json \\
                      --units_hash=HASH --out=vocoder          HASH: of the info.json of the units it is to speak

Published k-means files are scikit-learn's KMeans or MiniBatchKMeans dumped by joblib: a pickle, plain or in zlib or gzip,
with the bytes of each array right behind the object that describes it,

    ... NumpyArrayWrapper {shape, order, dtype} BUILD | 1 byte n, n bytes of padding (joblib >= 1.2) | the array | ...

Unpickling would run what the file says. Here nothing is unpickled, and neither scikit-learn nor joblib is needed: the
opcodes are read one by one (pickletools only splits them), the few that such a file needs build tuples, dicts and
`Made` records of plain data, and a name is a name: it is never looked up, called or imported. Whatever else a file holds
(another name, another opcode, an array of objects, more bytes or opcodes than a k-means has) is refused in one line.

A vocoder's .pt is a torch.save of {'generator': weights}: torch reads it with weights_only, its own list of what a file of
tensors needs. Weight norm is multiplied out, w = g v / |v|, the norm over all but the first dimension.
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
from files import atomically, record, sha256, write_json
from speech.audio import RATE

MOST_BYTES, MOST_OPCODES = 1 << 28, 100_000 # of a file, once it is decompressed

WRAPPERS = {'joblib.numpy_pickle NumpyArrayWrapper', 'sklearn.externals.joblib.numpy_pickle NumpyArrayWrapper'}
KMEANS = {f'sklearn.cluster.{module} {name}' for module in ('_kmeans', 'k_means_') for name in ('KMeans', 'MiniBatchKMeans')}
NAMES = WRAPPERS | KMEANS | {
    'numpy ndarray', 'numpy dtype', '_codecs encode', 'numpy.core.multiarray scalar', 'numpy._core.multiarray scalar',
    'numpy.core.multiarray _reconstruct', 'numpy._core.multiarray _reconstruct',
    'numpy.random __RandomState_ctor', 'numpy.random._pickle __randomstate_ctor', # random_state=RandomState(...)
    'numpy.random._pickle __bit_generator_ctor', 'numpy.random._mt19937 MT19937'}
DTYPES = {'b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8'}

@dataclass(frozen=True)
class Config:
    kmeans: str = '' # the file that joblib wrote
    vocoder: str = '' # or the .pt of a unit HiFi-GAN of textlesslib,
    config: str = '' # its config.json,
    units_hash: str = '' # and of which units it is; '': not checked when it speaks
    out: str = '' # NEW.safetensors, with 'centroids' (K, C) in float32; or the vocoder's new folder

    def __post_init__(self):
        if bool(self.kmeans) == bool(self.vocoder) or bool(self.vocoder) != bool(self.config) or not self.out:
            raise Refused("expected --kmeans=FILE and --out=NEW.safetensors, or --vocoder=FILE.pt, --config=FILE.json and "
                          "--out=FOLDER")

class Name(str):
    """'module name' of a global."""

@dataclass
class Made:
    """What the file says was made by calling `name`: its arguments and state, nothing else."""
    name: Name
    args: tuple
    state: object = None

@dataclass
class Array:
    """Where an array lies in the file."""
    dtype: np.dtype
    shape: tuple
    order: str
    start: int

class Bad(Exception):
    """Why the file is none of a k-means; read_kmeans says which file."""

def _check(ok, why):
    if not ok:
        raise Bad(why)

def _shown(name):
    """For a message: text, cut; of anything else, which may be nested without end, the type."""
    return ascii(name[:80]) if isinstance(name, str) else type(name).__name__

# ----------------------------------------------------------------------------------------------------------------
# the file

def _read(path):
    """The pickle's bytes, decompressed."""
    try:
        with open(path, 'rb') as f:
            data = f.read(MOST_BYTES + 1)
    except OSError as e:
        raise Bad(f"not readable ({e.strerror})") from None
    _check(len(data) <= MOST_BYTES, f"more than {MOST_BYTES:,} bytes")
    if data[:2] == b'\x1f\x8b' or data[:1] == b'\x78':
        unzip = zlib.decompressobj(47) # either header
        try:
            data = unzip.decompress(data, MOST_BYTES + 1)
        except zlib.error as e:
            raise Bad(f"damaged: {e}") from None
        _check(len(data) <= MOST_BYTES, f"more than {MOST_BYTES:,} bytes when decompressed")
        _check(unzip.eof, "ends early")
    for magic, how in ((b'BZ', 'bz2'), (b'\xfd7zXZ', 'xz'), (b']\0\0', 'lzma'), (b'\x04"M\x18', 'lz4')):
        _check(not data.startswith(magic), f"compressed by {how}, expected plain, zlib or gzip")
    _check(data[:1] == b'\x80' and b'\2' <= data[1:2] <= b'\5', "not a pickle of protocol 2 to 5")
    return data

def _dtype(made):
    _check(isinstance(made, Made) and made.name == 'numpy dtype' and len(made.args) > 0 and isinstance(made.args[0], str)
           and isinstance(made.state, tuple) and len(made.state) > 1 and made.state[1] in ('<', '>', '|', '='),
           "an array of no plain dtype")
    _check(made.args[0] in DTYPES, f"an array of {_shown(made.args[0])}, expected plain numbers")
    return np.dtype(made.args[0]).newbyteorder(made.state[1])

def _inlined(state, f, size):
    """The array behind a NumpyArrayWrapper with this state; f moves past it."""
    _check(isinstance(state, dict), "an array without a description")
    _check(state.get('subclass') == 'numpy ndarray',
           f"an array of class {_shown(state.get('subclass'))}, expected numpy ndarray")
    dtype, shape, order = _dtype(state.get('dtype')), state.get('shape'), state.get('order')
    plain = isinstance(shape, tuple) and len(shape) <= 4 and all(type(n) is int and n >= 0 for n in shape)
    _check(plain and order in ('C', 'F'), "an array of no plain shape")
    if state.get('numpy_array_alignment_bytes') is not None:
        padding = f.read(1)
        f.seek(padding[0] if padding else 0, os.SEEK_CUR)
    array = Array(dtype, shape, order, f.tell())
    length = math.prod(shape) * dtype.itemsize
    _check(array.start + length <= size,
           f"an array of shape {shape} needs {length:,} bytes, {max(0, size - array.start):,} are there")
    f.seek(length, os.SEEK_CUR)
    return array

def _name(text, where):
    _check(text in NAMES, f"names {_shown(text)} at byte {where}, which no k-means needs")
    return Name(text)

CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False, 'EMPTY_TUPLE': ()}
VALUES = {'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINBYTES',
          'SHORT_BINBYTES'}
TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}
MARK = object()

def _to_mark(stack):
    """Pops what lies above the last mark, and the mark."""
    at = next((i for i in range(len(stack) - 1, -1, -1) if stack[i] is MARK), None)
    _check(at is not None, "no mark")
    items = stack[at + 1:]
    del stack[at:]
    return items

def _fill(target, items):
    """SETITEM(S), APPEND(S)."""
    if type(target) is list:
        target += items
    else:
        _check(type(target) is dict and len(items) % 2 == 0 and all(type(key) is str for key in items[::2]), "items of no dict")
        target.update(zip(items[::2], items[1::2]))

def parse(data):
    """Bytes of a pickle -> its value, in tuples, dicts, lists, numbers, strings, Made and Array. Raises Bad."""
    f, stack, memo = io.BytesIO(data), [], {}
    pops = lambda n: [stack.pop() for _ in range(n)][::-1]
    for count, (opcode, arg, at) in enumerate(pickletools.genops(f)):
        _check(count < MOST_OPCODES, f"more than {MOST_OPCODES:,} opcodes")
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
                stack.append(tuple(pops(TUPLES[name])))
            case 'MARK':
                stack.append(MARK)
            case 'EMPTY_DICT' | 'EMPTY_LIST':
                stack.append({} if opcode.name == 'EMPTY_DICT' else [])
            case 'TUPLE':
                stack.append(tuple(_to_mark(stack)))
            case 'SETITEM' | 'SETITEMS' | 'APPEND' | 'APPENDS':
                items = _to_mark(stack) if opcode.name[-1] == 'S' else pops(2 if opcode.name == 'SETITEM' else 1)
                _fill(stack[-1], items)
            case 'BINPUT' | 'LONG_BINPUT' | 'MEMOIZE':
                memo[len(memo) if opcode.name == 'MEMOIZE' else arg] = stack[-1]
            case 'BINGET' | 'LONG_BINGET':
                stack.append(memo[arg])
            case 'GLOBAL':
                stack.append(_name(arg, at))
            case 'STACK_GLOBAL':
                module, name = pops(2)
                _check(type(module) is type(name) is str, "a name that is no text")
                stack.append(_name(f'{module} {name}', at))
            case 'REDUCE' | 'NEWOBJ':
                name, args = pops(2)
                _check(isinstance(name, Name) and type(args) is tuple, "a call of what is no name")
                stack.append(Made(name, args))
            case 'BUILD':
                made, state = pops(2)
                _check(isinstance(made, Made), "a state of what is no object")
                made.state = state
                stack.append(_inlined(state, f, len(data)) if made.name in WRAPPERS else made)
            case name:
                raise Bad(f"opcode {name} at byte {at}, which no k-means needs")

def read_kmeans(path):
    """The k-means file at `path` -> its centroids, float32 (K, C). Raises Refused: one line, and nothing was run."""
    try:
        data = _read(path)
        try:
            found = parse(data)
        except (ValueError, IndexError, KeyError) as e: # pickletools; a stack or memo without what is asked of it
            why = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise Bad(f"damaged or cut short ({ascii(why)[:120]})") from None
        _check(isinstance(found, Made) and found.name in KMEANS, "holds no KMeans")
        _check(isinstance(found.state, dict) and 'cluster_centers_' in found.state, "a KMeans that was not fitted")
        c = found.state['cluster_centers_']
        _check(isinstance(c, Array), "its cluster_centers_ are no array that joblib wrote (was it pickled without joblib?)")
        with np.errstate(over='ignore'): # becomes infinite, which is refused below
            values = np.frombuffer(data, c.dtype, math.prod(c.shape), c.start).astype(np.float32)
        values = values.reshape(c.shape) if c.order == 'C' else values.reshape(c.shape[::-1]).T
        _check(values.ndim == 2 and 1 <= len(values) <= 65535 and np.isfinite(values).all(),
               f"cluster_centers_ of shape {c.shape}, expected (K, C) finite numbers, K up to 65535")
        return np.ascontiguousarray(values)
    except Bad as e:
        raise Refused(f"{path}: {e}; expected a (MiniBatch)KMeans of scikit-learn that joblib dumped") from None

def read_generator(path):
    """A textlesslib checkpoint's generator: {name: float32 tensor}, weight norm multiplied out. Raises Refused."""
    import torch

    try:
        weights = torch.load(path, map_location='cpu', weights_only=True)['generator']
        weights = {name: tensor.float() for name, tensor in weights.items()}
    except Exception as e: # whatever a file that is none raises
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise Refused(f"{path}: expected a torch file of tensors with 'generator' in it ({ascii(why)[:160]})") from None
    for name in [name for name in weights if name.endswith('.weight_v')]:
        v, g = weights.pop(name), weights.pop(name[:-1] + 'g', None)
        if g is None or v.ndim < 2 or g.numel() != len(v):
            raise Refused(f"{path}: {name} has no weight_g of {len(v)} numbers beside it")
        weights[name[:-2]] = v * (g.flatten() / v.flatten(1).norm(dim=1)).view(-1, *[1] * (v.ndim - 1))
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise Refused(f"{path}: a weight is not finite")
    return {name: tensor.contiguous() for name, tensor in weights.items()}

def write_vocoder(cfg):
    from safetensors.torch import save_file as save_tensors

    from speech.vocoder import load_vocoder
    try:
        with open(cfg.config, encoding='utf-8') as f:
            settings = json.load(f)
        if not isinstance(settings, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as e:
        raise Refused(f"{cfg.config}: expected the vocoder's settings in JSON ({e})") from None
    with atomically(cfg.out) as tmp:
        tmp.mkdir()
        save_tensors(read_generator(cfg.vocoder), tmp / 'model.safetensors')
        write_json(tmp / 'config.json', {**settings, 'units_hash': cfg.units_hash, 'made': {**record(cfg), 'source': sha256(cfg.vocoder)}})
        vocoder = load_vocoder(tmp)
    print(f"{cfg.out}: a vocoder of {vocoder.cfg.num_embeddings} units, {RATE / vocoder.hop:g} a second")

def main(cfg):
    if os.path.exists(cfg.out):
        raise Refused(f"{cfg.out}: is there already; take another --out, or delete it")
    if cfg.vocoder:
        return write_vocoder(cfg)
    centroids = read_kmeans(cfg.kmeans)
    with atomically(cfg.out) as tmp:
        save_file({'centroids': centroids}, tmp, {'made': json.dumps({**record(cfg), 'source': sha256(cfg.kmeans)})})
    print(f"{cfg.out}: {centroids.shape[0]} centroids of {centroids.shape[1]} numbers")

if __name__ == '__main__':
    run(main, Config)
