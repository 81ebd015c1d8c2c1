"""
Tests of speech/convert.py.

A k-means that joblib dumped comes back, and a published vocoder becomes a folder that speaks.
Whatever else a pickle says is refused in one line and never done.
"""
import base64
import json
import os
import pickle
import pickletools
import struct
import zlib

import numpy as np
import pytest
import torch
from safetensors import safe_open

from configurator import Refused
from speech import convert
from speech.convert import Config, main, read_kmeans
from speech.kmeans import load_centroids
from speech.vocoder import load_vocoder

# scikit-learn 1.9.1's MiniBatchKMeans(2, random_state=0, n_init=1, batch_size=4) of [0, 0], [0, 1], [10, 10], [10, 11],
# dumped by joblib 1.6.0 with protocol 4, and compressed by zlib for this file
REAL = zlib.decompress(base64.b64decode(
    'eNptkzFv00AUxxM3bdK0akNBMFQCgQoqCjUqQggkRAsMlTDNwMJ4OjtX7qh9tu7OLSlFgopCkG7jwsLEF2BkoSsjOxITGxPwDcrzOa6pylMUn8/v'
    '+f3u/39+Xhu4TsWGPiXXQ4IFd4MwlYoIF61HBHNp9PQq4+wOVgH1Vu3OW3PxhXlm5nWTo2G2NJ6ja5CnjB5fX7CV7bbRjQg/QQwSjNfVIyoOzUpl'
    'GHqMI1vgVXV9gwg/lsR4FT0pMO/GEZIKK7sxk72Dx4hFiYg3SEQ41DR108+QkGRbkFXTU0EcJakiKMQ+CaXp6/Hs7fnzjp4RBEvJHvGsHAmsWGxW'
    'll5u/Vj5eOKpnuJojWCVCiKBCdnDoIwW2tdRyTmBDjdtorKHveVIUejUtXrUURCnXIGExx/Hfsh8l6dR0kMJC0Bro491stvbQuDeQ4GTBFQ6kLYh'
    'Uz8IAdnoUVtldJ13cZYLSXpUUpxAT2cX1rHoQqmu3oV1V/Vgn54pVpDrrF03b/qvzQMz743o6k3T6XTu7UPYP6+ijK+bOAzjTRRFOAHlZnNO2w3h'
    'sFDN7ykCB2ul/ti+jdzIW8vFdfC+8HYSkU0M4hChGAahv37a2ev/vKZb/+6jiHF49mVtu/Xu/gc9/R+TT4KikvEgs1WCb0MTAUK3hqOHAsiFCUSG'
    'zubi0dP0LD3nOZ7zytA5ep5eoG3q9unlDH1iv4wcdm75968s5paL0dz7nMX3pcF2cR5gKyckTlVmbwPQFEmgsTcN5tgxz9f5CB4Bqu0WOPPaYVdL'
    'U+ilo5YcADdL3iqgVCtlDK4UfI1CUtDzz8LON/iB1sNPGsHXJVnMYTwW3Rvuokl99y+03Iq8'))
CENTROIDS = np.array([[10, 157 / 15], [0, 13 / 30]], np.float32)

def assert_refused(path, match=None):
    """read_kmeans refuses the file with one short line that begins with its path -> that line."""
    with pytest.raises(Refused, match=match) as e:
        read_kmeans(path)
    message = str(e.value)
    assert message.startswith(f'{path}: ')
    assert '\n' not in message and len(message) < 400
    return message

@pytest.fixture
def file(tmp_path):
    """A function that writes bytes into a file -> its path."""
    def write(data):
        path = tmp_path / 'km.bin'
        path.write_bytes(data)
        return path
    return write

# --------------------------------------------------------------------------------------------------
# k-means files

def test_a_real_file_becomes_safetensors_that_the_tokenizer_reads(file, tmp_path, capsys):
    out = tmp_path / 'new/km.safetensors'
    cfg = Config(kmeans=str(file(REAL)), out=str(out))
    main(cfg)
    assert np.abs(load_centroids(out).numpy() - CENTROIDS).max() < 1e-5
    assert '2 centroids of 2 numbers' in capsys.readouterr().out
    with safe_open(out, 'np') as f:
        assert '"source": "' in f.metadata()['made']
    with pytest.raises(Refused, match='is there already'):
        main(cfg)
    with pytest.raises(Refused, match='expected --kmeans=FILE'):
        Config(out='x')

def gzipped(data):
    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(data) + compressor.flush()

@pytest.mark.parametrize('compress', [zlib.compress, gzipped])
def test_zlib_and_gzip_are_read(file, compress):
    centroids = read_kmeans(file(compress(REAL)))
    assert np.abs(centroids - CENTROIDS).max() < 1e-5

@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('compress', [0, 3, ('gzip', 3)])
def test_whatever_sklearn_and_joblib_write_is_read_as_joblib_reads_it(tmp_path, protocol, compress):
    joblib = pytest.importorskip('joblib')
    cluster = pytest.importorskip('sklearn.cluster')
    path = tmp_path / 'km.bin'
    x = np.random.default_rng(0).standard_normal((300, 6))
    cases = (
        (cluster.KMeans, 'f4', 1),
        (cluster.MiniBatchKMeans, 'f8', np.random.RandomState(0)),
    )
    for kind, dtype, random_state in cases:
        model = kind(7, random_state=random_state, n_init=1).fit(x.astype(dtype))
        rows_first = model.cluster_centers_
        for centers in (rows_first, np.asfortranarray(rows_first)):
            model.cluster_centers_ = centers
            joblib.dump(model, path, compress=compress, protocol=protocol)
            assert np.array_equal(read_kmeans(path), centers.astype(np.float32))

# --------------------------------------------------------------------------------------------------
# files in joblib's format, written by hand

class Global:
    """Pickled as a reference to 'module name', whatever that is."""
    def __init__(self, name):
        self.name = name

class Call:
    """Pickled as a call of 'module name' with arguments, and perhaps a state."""
    def __init__(self, name, *args, state=None):
        self.name = name
        self.args = args
        self.state = state

class Raw(bytes):
    """Opcodes that are put into the pickle as they are."""

class Array:
    """An array as joblib writes it, with whatever shape, dtype or class the test wants to claim."""
    def __init__(self, array, shape=None, dtype=None, order='C', subclass='numpy ndarray', data=None):
        byte_order = array.dtype.str[0]
        kind = array.dtype.str[1:]
        state = (3, byte_order, None, None, None, -1, -1, 0)
        self.shape = array.shape if shape is None else shape
        self.dtype = dtype or Call('numpy dtype', kind, False, True, state=state)
        self.order = order
        self.subclass = subclass
        self.data = array.tobytes() if data is None else data

    def wrapper(self):
        is_name = isinstance(self.subclass, str)
        state = {
            'subclass': Global(self.subclass) if is_name else self.subclass,
            'shape': self.shape,
            'order': self.order,
            'dtype': self.dtype,
            'allow_mmap': True,
        }
        return Call('joblib.numpy_pickle NumpyArrayWrapper', state=state)

def opcodes(value):
    """The opcodes that push a value, which may hold Global, Call, Raw and Array."""
    match value:
        case Raw():
            return value
        case Global():
            module, name = value.name.split(' ', 1)
            return b'c' + f'{module}\n{name}\n'.encode()
        case Call():
            call = opcodes(Global(value.name)) + opcodes(value.args) + b'R'
            return call if value.state is None else call + opcodes(value.state) + b'b'
        case tuple():
            return b'(' + b''.join(map(opcodes, value)) + b't'
        case dict():
            items = []
            for key, item in value.items():
                items += [opcodes(key), opcodes(item)]
                if isinstance(item, Array):
                    items.append(item.data)
            return b'}(' + b''.join(items) + b'u'
        case Array():
            return opcodes(value.wrapper())
        case _:
            return pickle.dumps(value, 3)[2:-1]

def dump(value):
    return b'\x80\x04' + opcodes(value) + b'.'

def kmeans(centers, name='sklearn.cluster.k_means_ MiniBatchKMeans', **state):
    return dump(Call(name, state={'n_clusters': 2, **state, 'cluster_centers_': centers}))

C = np.arange(6, dtype='f8').reshape(3, 2)

def test_old_joblib_files_big_endian_numbers_and_columns_first_are_read(file):
    big_endian = kmeans(Array(C.astype('>f4')), labels_=Array(np.arange(9)))
    columns_first = kmeans(Array(C, order='F', data=C.T.tobytes()))
    for data in (kmeans(Array(C)), big_endian, columns_first):
        assert np.array_equal(read_kmeans(file(data)), C)

OBJECT_DTYPE = Call('numpy dtype', 'O8', False, True, state=(3, '|'))
PLAIN_PICKLE = Call(
    'numpy._core.multiarray _reconstruct', Global('numpy ndarray'), (0,), b'b', state=(1, (3, 2)))
WRONG = {
    'another class': (dump(Call('sklearn.cluster._kmeans KMeans')), 'was not fitted'),
    'a dict': (dump({'cluster_centers_': Array(C)}), 'holds no KMeans'),
    'another model': (
        kmeans(Array(C), 'sklearn.decomposition._pca PCA'),
        r"names 'sklearn\.decomposition\._pca PCA' at byte 2",
    ),
    'no array': (kmeans([[1.0]]), 'are not an array that joblib wrote'),
    'three axes': (kmeans(Array(C[None])), r'shape \(1, 3, 2\), expected \(K, C\)'),
    'none': (kmeans(Array(C[:0])), r'shape \(0, 2\), expected'),
    'NaN': (kmeans(Array(C * np.nan)), 'finite'),
    'too large for float32': (kmeans(Array(C * 1e300)), 'finite'),
    'objects': (
        kmeans(Array(C, dtype=OBJECT_DTYPE)),
        "an array of 'O8', expected plain numbers",
    ),
    'a matrix': (kmeans(Array(C, subclass='numpy matrix')), "names 'numpy matrix'"),
    'a class that is none': (
        kmeans(Array(C, subclass=5)),
        'class int, expected numpy ndarray',
    ),
    'text': (b'centroids', 'not a pickle of protocol 2 to 5'),
    'nothing': (b'', 'not a pickle'),
    'protocol 0': (pickle.dumps({}, 0), 'not a pickle of protocol'),
    'an array alone': (pickle.dumps(C, 4), 'holds no KMeans'),
    'without joblib': (
        kmeans(PLAIN_PICKLE),
        r'not an array that joblib wrote \(was it pickled without joblib',
    ),
    'bz2': (b'BZh91AY', 'compressed by bz2'),
    'xz': (b'\xfd7zXZ\0', 'compressed by xz'),
    'broken zlib': (zlib.compress(REAL)[:40] + b'\xff' * 40, 'damaged|ends early'),
    'cut zlib': (zlib.compress(REAL)[:-30], 'ends early'),
}

@pytest.mark.parametrize('name', WRONG)
def test_what_is_no_k_means_is_refused_in_one_line(file, name):
    data, match = WRONG[name]
    assert_refused(file(data), match)

def test_missing_and_unreadable_files_are_refused(tmp_path):
    assert_refused(tmp_path / 'none.bin', 'not readable')
    assert_refused(tmp_path, 'not readable')

def test_a_file_cut_or_changed_anywhere_is_read_or_refused_and_nothing_else(file):
    for n in range(0, len(REAL) - 1, 11):
        assert_refused(file(REAL[:n]))
    rng = np.random.default_rng(0)
    for _ in range(500):
        data = bytearray(REAL)
        for position in rng.integers(2, len(data), rng.integers(1, 4)):
            data[position] = rng.integers(256)
        try:
            centroids = read_kmeans(file(bytes(data)))
            assert centroids.ndim == 2
        except Refused as e:
            assert '\n' not in str(e)

# --------------------------------------------------------------------------------------------------
# hostile files

class Reduce:
    """An object whose unpickling calls function(*args)."""
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call

def hostile_values(path):
    """Values whose unpickling would leave `path` behind, or import or call what it should not."""
    touch = Reduce(os.system, f'touch {path}')
    python = f'open({str(path)!r}, "w")'
    return {
        'os.system': touch,
        'eval': Reduce(eval, python),
        'exec': Reduce(exec, python),
        'open': Reduce(open, str(path), 'w'),
        'getattr': Reduce(getattr, Reduce(__import__, 'os'), 'system'),
        'import': Reduce(__import__, 'antigravity'),
        'nested': [{'a': (touch,)}],
        'load': Reduce(np.load, str(path), None, True),
    }

@pytest.mark.parametrize('name', hostile_values('x'))
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_nothing_a_hostile_pickle_says_is_done(file, tmp_path, name, protocol):
    mark = tmp_path / 'done'
    value = hostile_values(mark)[name]
    hostile = pickle.dumps(value, protocol)
    assert_refused(file(hostile), 'names .* which no k-means needs')
    assert_refused(file(zlib.compress(hostile)), 'names .* which no k-means needs')
    # As an attribute of a KMeans, whose array comes later.
    attribute = Raw(pickle.dumps(value, 3)[2:-1])
    assert_refused(file(kmeans(Array(C), verbose=attribute)), 'names .* which no k-means needs')
    # In the bytes of an array, where joblib puts a pickle if the array holds objects.
    array = Array(C, dtype=OBJECT_DTYPE, data=hostile)
    assert_refused(file(kmeans(array)), "an array of 'O8'")
    assert not mark.exists()
    # Unpickling would indeed have left the mark.
    if name in ('os.system', 'open') and protocol == 4:
        pickle.loads(hostile)
        assert mark.exists()

def test_allowed_names_are_not_called_or_imported_either(file, monkeypatch):
    import codecs

    def called(*args):
        pytest.fail('called')

    monkeypatch.setattr(codecs, 'encode', called)
    state = {
        'a': Call('_codecs encode', 'x', 'latin1'),
        'b': Call('numpy ndarray', (1 << 40,)),
        'c': Call('numpy.random._mt19937 MT19937'),
    }
    assert np.array_equal(read_kmeans(file(kmeans(Array(C), **state))), C)
    # A state for a name, a dict and a list.
    for opcodes_before in (b'c_codecs\nencode\n}X\x01\0\0\0aK\x01sb', b'}}b', b']}b'):
        assert_refused(file(b'\x80\x04' + opcodes_before + b'.'), 'a state without an object')
    assert_refused(file(b'\x80\x04K\x05)R.'), 'a call without a name')
    assert_refused(file(b'\x80\x04cnumpy.core.multiarray scalar\nos.system\n.'), 'names')

DOUBLED = Raw(b')' + b''.join(b'q' + bytes([i]) + b'h' + bytes([i]) + b'\x86' for i in range(100)))
DOUBLED_KEY = b''.join(b'\x94h' + bytes([i]) + b'\x86' for i in range(60))
BOMBS = {
    'a string of 2**62 bytes': b'\x80\x04\x8d' + struct.pack('<Q', 1 << 62) + b'x.',
    'bytes of 2**63 bytes': b'\x80\x04\x8e' + struct.pack('<Q', 1 << 63) + b'x.',
    'a number of 2**31 bytes': b'\x80\x04\x8b' + struct.pack('<i', (1 << 31) - 1) + b'x.',
    'a frame of 2**62 bytes': b'\x80\x04\x95' + struct.pack('<Q', 1 << 62) + b'N.',
    'a memo of 2**32': b'\x80\x04Nr' + struct.pack('<I', (1 << 32) - 1) + b'.',
    'opcodes': b'\x80\x04' + b'N' * 200_000 + b'.',
    'marks': b'\x80\x04' + b'(' * 90_000 + b't' * 90_000 + b'.',
    'depth': b'\x80\x04)' + b'\x85' * 90_000 + b'.',
    'doubling': b'\x80\x04)' + b'\x94h\x00\x86' * 40 + b'.',
    'a doubled key': b'\x80\x04})' + DOUBLED_KEY + b'Ns.',
    'a doubled class': kmeans(Array(C, subclass=DOUBLED)),
    'a doubled shape': kmeans(Array(C, shape=DOUBLED)),
}

@pytest.mark.parametrize('name', BOMBS)
def test_bombs_are_refused_without_the_memory_or_the_time(file, name):
    assert_refused(file(BOMBS[name]))

SHAPES = [
    (1 << 40, 2),
    (1 << 62, 1 << 62),
    (-3, 2),
    (3.0, 2),
    (True, 6),
    (1,) * 40,
    'ab',
    None,
    (4, 2),
]

@pytest.mark.parametrize('shape', SHAPES)
def test_shapes_that_the_file_does_not_hold_are_refused(file, shape):
    array = Array(C)
    array.shape = shape
    assert_refused(file(kmeans(array)), 'needs .* bytes|without a plain shape|damaged')

def test_a_file_that_grows_when_decompressed_is_stopped(file, monkeypatch):
    monkeypatch.setattr(convert, 'MAX_BYTES', 1 << 20)
    bomb = zlib.compress(bytes(1 << 24))
    assert_refused(file(bomb), 'more than 1,048,576 bytes when decompressed')
    assert_refused(file(bytes((1 << 20) + 1)), 'more than 1,048,576 bytes')

def test_only_opcodes_that_a_k_means_needs_are_known(file):
    known = {
        'PROTO', 'FRAME', 'STOP', 'MARK', 'EMPTY_DICT', 'EMPTY_LIST', 'TUPLE', 'SETITEM', 'SETITEMS',
        'APPEND', 'APPENDS', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE', 'BINGET', 'LONG_BINGET', 'GLOBAL',
        'STACK_GLOBAL', 'REDUCE', 'NEWOBJ', 'BUILD',
        *convert.VALUES, *convert.CONSTANTS, *convert.TUPLES,
    }
    for opcode in pickletools.opcodes:
        if opcode.name in known:
            continue
        code = opcode.code.encode('latin1')
        data = b'\x80\x04NNN' + code + b'\0' * 16 + b'\n\n.'
        message = assert_refused(file(data), 'which no k-means needs|damaged')
        # The argument of an opcode may already be refused as damaged.
        assert opcode.name in message or opcode.arg is not None

# --------------------------------------------------------------------------------------------------
# vocoders

def unchanged(state):
    return state

def published(folder, change=unchanged):
    """Writes a checkpoint as textlesslib publishes it, with weight norm -> Config that converts it.

    It has the weights of tests/test_hifigan.py, which are written into folder / 'plain'. change:
    what is done to {name: tensor} before it is written.
    """
    from test_hifigan import PUBLISHED, hifigan
    _, weights = hifigan(folder / 'plain')
    state = {}
    for name, w in weights.items():
        if w.ndim == 3 and not name.startswith('dur'):
            norm = w.flatten(1).norm(dim=1).view(-1, 1, 1)
            state[name + '_g'] = norm
            state[name + '_v'] = w / norm * 3.0 # the length of v does not matter
        else:
            state[name] = w
    torch.save({'generator': change(state)}, folder / 'g.pt')
    (folder / 'config.json').write_text(json.dumps(PUBLISHED))
    return Config(
        vocoder=str(folder / 'g.pt'),
        config=str(folder / 'config.json'),
        units_hash='abc',
        out=str(folder / 'vocoder'),
    )

def test_a_published_vocoder_becomes_a_folder_that_speaks(tmp_path, capsys):
    from test_hifigan import RUNS, UNITS
    cfg = published(tmp_path)
    main(cfg)
    assert '10 units, 400 a second' in capsys.readouterr().out
    converted = load_vocoder(cfg.out)
    waves = converted.speak(UNITS, RUNS)
    expected = load_vocoder(tmp_path / 'plain').speak(UNITS, RUNS)
    assert len(waves) == len(expected)
    for a, b in zip(waves, expected):
        np.testing.assert_allclose(a, b, atol=1e-5)
    with pytest.raises(Refused, match="made for units abc"):
        converted.speak(UNITS, units_hash='x')

def with_code(state):
    return state | {'x': Reduce(os.system, 'touch hostile')}

def not_a_dict(state):
    return [1]

def without_norms(state):
    return {name: w for name, w in state.items() if not name.endswith('_g')}

def without_a_layer(state):
    return {name: w for name, w in state.items() if 'conv_post' not in name}

def not_finite(state):
    return {name: w * torch.nan for name, w in state.items()}

@pytest.mark.parametrize('change, message', [
    (with_code, "expected a torch file of tensors"),
    (not_a_dict, "expected a torch file of tensors with 'generator'"),
    (without_norms, "has no weight_g"),
    (without_a_layer, "not a vocoder"),
    (not_finite, "not finite"),
])
def test_other_vocoder_files_are_refused_and_never_run(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=message) as e:
        main(published(tmp_path, change))
    assert '\n' not in str(e.value)
    assert not (tmp_path / 'vocoder').exists() and not (tmp_path / 'hostile').exists()
