"""speech/convert.py: a file that joblib wrote comes back; whatever else a pickle says is refused in one line and never done."""
import base64
import io
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
# dumped by joblib 1.6.0 with protocol 4; compressed here
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

def refused(path, match=None):
    with pytest.raises(Refused, match=match) as e:
        read_kmeans(path)
    assert '\n' not in str(e.value) and str(e.value).startswith(f'{path}: ') and len(str(e.value)) < 400
    return str(e.value)

@pytest.fixture
def file(tmp_path):
    def write(data):
        (tmp_path / 'km.bin').write_bytes(data)
        return tmp_path / 'km.bin'
    return write

# ----------------------------------------------------------------------------------------------------------------
# files that are one

def test_a_real_file_becomes_safetensors_that_the_tokenizer_reads(file, tmp_path, capsys):
    out = tmp_path / 'new/km.safetensors'
    main(Config(kmeans=str(file(REAL)), out=str(out)))
    assert np.abs(load_centroids(out).numpy() - CENTROIDS).max() < 1e-5 and '2 centroids of 2 numbers' in capsys.readouterr().out
    with safe_open(out, 'np') as f:
        assert '"source": "' in f.metadata()['made']
    with pytest.raises(Refused, match='is there already'):
        main(Config(kmeans=str(file(REAL)), out=str(out)))
    with pytest.raises(Refused, match='expected --kmeans=FILE'):
        Config(out='x')

def gzipped(data):
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()

@pytest.mark.parametrize('pack', [zlib.compress, gzipped])
def test_zlib_and_gzip_are_read(file, pack):
    assert np.abs(read_kmeans(file(pack(REAL))) - CENTROIDS).max() < 1e-5

@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('compress', [0, 3, ('gzip', 3)])
def test_whatever_sklearn_and_joblib_write_is_read_as_joblib_reads_it(tmp_path, protocol, compress):
    joblib, cluster = pytest.importorskip('joblib'), pytest.importorskip('sklearn.cluster')
    x = np.random.default_rng(0).standard_normal((300, 6))
    for kind, dtype, state in ((cluster.KMeans, 'f4', 1), (cluster.MiniBatchKMeans, 'f8', np.random.RandomState(0))):
        model = kind(7, random_state=state, n_init=1).fit(x.astype(dtype))
        for model.cluster_centers_ in (model.cluster_centers_, np.asfortranarray(model.cluster_centers_)):
            joblib.dump(model, tmp_path / 'km.bin', compress=compress, protocol=protocol)
            assert np.array_equal(read_kmeans(tmp_path / 'km.bin'), model.cluster_centers_.astype(np.float32))

# ----------------------------------------------------------------------------------------------------------------
# files in joblib's format, written by hand

class Global:
    """Pickled as a global by its name, whatever that is."""
    def __init__(self, name):
        self.name = name

class Call:
    def __init__(self, name, *args, state=None):
        self.name, self.args, self.state = name, args, state

def dump(value, protocol=4):
    """A pickle, with Global and Call as opcodes and bytes in `Raw` put in between."""
    out = io.BytesIO(b'')
    out.write(b'\x80' + bytes([protocol]))
    def put(v):
        match v:
            case Raw(): out.write(v)
            case Global(): out.write(b'c' + '\n'.join(v.name.split(' ', 1)).encode() + b'\n')
            case Call():
                put(Global(v.name)), put(v.args), out.write(b'R')
                if v.state is not None:
                    put(v.state), out.write(b'b')
            case tuple():
                out.write(b'('), [put(x) for x in v], out.write(b't')
            case dict():
                out.write(b'}(')
                for key, x in v.items():
                    put(key), put(x)
                    if isinstance(x, Array):
                        out.write(x.data)
                out.write(b'u')
            case Array(): put(x_wrapper(v))
            case _: out.write(pickle.dumps(v, 3)[2:-1])
    put(value)
    return out.getvalue() + b'.'

class Raw(bytes):
    pass

class Array:
    """An array as joblib puts it, with whatever shape, dtype or class the test wants to claim."""
    def __init__(self, array, shape=None, dtype=None, order='C', subclass='numpy ndarray', data=None):
        self.shape, self.order, self.subclass = array.shape if shape is None else shape, order, subclass
        self.dtype = dtype or Call('numpy dtype', array.dtype.str[1:], False, True, state=(3, array.dtype.str[0], None, None, None, -1, -1, 0))
        self.data = array.tobytes() if data is None else data

def x_wrapper(a):
    subclass = Global(a.subclass) if isinstance(a.subclass, str) else a.subclass
    return Call('joblib.numpy_pickle NumpyArrayWrapper', state={'subclass': subclass, 'shape': a.shape, 'order': a.order,
                                                                'dtype': a.dtype, 'allow_mmap': True})

def kmeans(centers, name='sklearn.cluster.k_means_ MiniBatchKMeans', **state):
    return dump(Call(name, state={'n_clusters': 2, **state, 'cluster_centers_': centers}))

C = np.arange(6, dtype='f8').reshape(3, 2)

def test_old_joblib_files_big_endian_numbers_and_columns_first_are_read(file):
    assert np.array_equal(read_kmeans(file(kmeans(Array(C)))), C)
    assert np.array_equal(read_kmeans(file(kmeans(Array(C.astype('>f4')), labels_=Array(np.arange(9))))), C)
    assert np.array_equal(read_kmeans(file(kmeans(Array(C, order='F', data=C.T.tobytes())))), C)

WRONG = {
    'another class': (dump(Call('sklearn.cluster._kmeans KMeans')), 'was not fitted'),
    'a dict': (dump({'cluster_centers_': Array(C)}), 'holds no KMeans'),
    'another model': (kmeans(Array(C), 'sklearn.decomposition._pca PCA'), r"names 'sklearn\.decomposition\._pca PCA' at byte 2"),
    'no array': (kmeans([[1.0]]), 'are no array that joblib wrote'),
    'three axes': (kmeans(Array(C[None])), r'shape \(1, 3, 2\), expected \(K, C\)'),
    'none': (kmeans(Array(C[:0])), r'shape \(0, 2\), expected'),
    'NaN': (kmeans(Array(C * np.nan)), 'finite'),
    'too large for float32': (kmeans(Array(C * 1e300)), 'finite'),
    'objects': (kmeans(Array(C, dtype=Call('numpy dtype', 'O8', False, True, state=(3, '|')))), "an array of 'O8', expected plain numbers"),
    'a matrix': (kmeans(Array(C, subclass='numpy matrix')), "names 'numpy matrix'"),
    'a class that is none': (kmeans(Array(C, subclass=5)), 'class int, expected numpy ndarray'),
    'text': (b'centroids', 'not a pickle of protocol 2 to 5'),
    'nothing': (b'', 'not a pickle'),
    'protocol 0': (pickle.dumps({}, 0), 'not a pickle of protocol'),
    'an array alone': (pickle.dumps(C, 4), 'holds no KMeans'),
    'without joblib': (kmeans(Call('numpy._core.multiarray _reconstruct', Global('numpy ndarray'), (0,), b'b', state=(1, (3, 2)))),
                       r'no array that joblib wrote \(was it pickled without joblib'),
    'bz2': (b'BZh91AY', 'compressed by bz2'),
    'xz': (b'\xfd7zXZ\0', 'compressed by xz'),
    'broken zlib': (zlib.compress(REAL)[:40] + b'\xff' * 40, 'damaged|ends early'),
    'cut zlib': (zlib.compress(REAL)[:-30], 'ends early'),
}

@pytest.mark.parametrize('name', WRONG)
def test_what_is_no_k_means_is_refused_in_one_line(file, name):
    data, match = WRONG[name]
    refused(file(data), match)

def test_missing_and_unreadable_files_are_refused(tmp_path):
    refused(tmp_path / 'none.bin', 'not readable')
    refused(tmp_path, 'not readable')

def test_a_file_cut_or_changed_anywhere_is_read_or_refused_and_nothing_else(file):
    for data in [REAL[:n] for n in range(0, len(REAL) - 1, 11)]:
        refused(file(data))
    rng = np.random.default_rng(0)
    for _ in range(500):
        data = bytearray(REAL)
        for at in rng.integers(2, len(data), rng.integers(1, 4)):
            data[at] = rng.integers(256)
        try:
            assert read_kmeans(file(bytes(data))).ndim == 2
        except Refused as e:
            assert '\n' not in str(e)

# ----------------------------------------------------------------------------------------------------------------
# hostile files

class Reduce:
    """An object whose unpickling calls function(*args)."""
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call

def runs(path):
    """Calls that would leave `path` behind."""
    command = f'touch {path}'
    return {'os.system': Reduce(os.system, command), 'eval': Reduce(eval, f'open({str(path)!r}, "w")'),
            'exec': Reduce(exec, f'open({str(path)!r}, "w")'), 'open': Reduce(open, str(path), 'w'),
            'getattr': Reduce(getattr, Reduce(__import__, 'os'), 'system'), 'import': Reduce(__import__, 'antigravity'),
            'nested': [{'a': (Reduce(os.system, command),)}], 'load': Reduce(np.load, str(path), None, True)}

@pytest.mark.parametrize('name', runs('x'))
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_nothing_a_hostile_pickle_says_is_done(file, tmp_path, name, protocol):
    mark = tmp_path / 'done'
    hostile = pickle.dumps(runs(mark)[name], protocol)
    refused(file(hostile), 'names .* which no k-means needs')
    refused(file(zlib.compress(hostile)), 'names .* which no k-means needs')
    inside = Raw(pickle.dumps(runs(mark)[name], 3)[2:-1]) # as an attribute of a KMeans, whose array comes later
    refused(file(kmeans(Array(C), verbose=inside)), 'names .* which no k-means needs')
    array = Array(C, dtype=Call('numpy dtype', 'O8', False, True, state=(3, '|')), data=hostile) # as joblib puts objects
    refused(file(kmeans(array)), "an array of 'O8'")
    assert not mark.exists()
    if name in ('os.system', 'open') and protocol == 4: # that it would have been
        pickle.loads(hostile)
        assert mark.exists()

def test_allowed_names_are_not_called_or_imported_either(file, monkeypatch):
    import codecs
    monkeypatch.setattr(codecs, 'encode', lambda *args: pytest.fail('called'))
    state = {'a': Call('_codecs encode', 'x', 'latin1'), 'b': Call('numpy ndarray', (1 << 40,)), 'c': Call('numpy.random._mt19937 MT19937')}
    assert np.array_equal(read_kmeans(file(kmeans(Array(C), **state))), C)
    for attribute in (b'c_codecs\nencode\n}X\x01\0\0\0aK\x01sb', b'}}b', b']}b'): # a state for what is no object
        refused(file(b'\x80\x04' + attribute + b'.'), 'state of what is no object')
    refused(file(b'\x80\x04K\x05)R.'), 'a call of what is no name')
    refused(file(b'\x80\x04cnumpy.core.multiarray scalar\nos.system\n.'), 'names')

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
    'a doubled key': b'\x80\x04})' + b''.join(b'\x94h' + bytes([i]) + b'\x86' for i in range(60)) + b'Ns.',
    'a doubled class': None, 'a doubled shape': None,
}
DOUBLED = Raw(b')' + b''.join(b'q' + bytes([i]) + b'h' + bytes([i]) + b'\x86' for i in range(100)))
BOMBS['a doubled class'] = kmeans(Array(C, subclass=DOUBLED))
BOMBS['a doubled shape'] = kmeans(Array(C, shape=DOUBLED))

@pytest.mark.parametrize('name', BOMBS)
def test_bombs_are_refused_without_the_memory_or_the_time(file, name):
    refused(file(BOMBS[name]))

@pytest.mark.parametrize('shape', [(1 << 40, 2), (1 << 62, 1 << 62), (-3, 2), (3.0, 2), (True, 6), (1,) * 40, 'ab', None, (4, 2)])
def test_shapes_that_the_file_does_not_hold_are_refused(file, shape):
    array = Array(C, shape=shape)
    array.shape = shape
    refused(file(kmeans(array)), 'needs .* bytes|no plain shape|damaged')

def test_a_file_that_grows_when_decompressed_is_stopped(file, monkeypatch):
    monkeypatch.setattr(convert, 'MOST_BYTES', 1 << 20)
    refused(file(zlib.compress(bytes(1 << 24))), 'more than 1,048,576 bytes when decompressed')
    refused(file(bytes((1 << 20) + 1)), 'more than 1,048,576 bytes')

def test_only_opcodes_that_a_k_means_needs_are_known(file):
    known = set(convert.VALUES) | set(convert.CONSTANTS) | set(convert.TUPLES) | {
        'PROTO', 'FRAME', 'STOP', 'MARK', 'EMPTY_DICT', 'EMPTY_LIST', 'TUPLE', 'SETITEM', 'SETITEMS', 'APPEND', 'APPENDS', 'BINPUT',
        'LONG_BINPUT', 'MEMOIZE', 'BINGET', 'LONG_BINGET', 'GLOBAL', 'STACK_GLOBAL', 'REDUCE', 'NEWOBJ', 'BUILD'}
    for opcode in pickletools.opcodes:
        if opcode.name not in known:
            data = b'\x80\x04NNN' + opcode.code.encode('latin1') + b'\0' * 16 + b'\n\n.'
            assert opcode.name in refused(file(data), 'which no k-means needs|damaged') or opcode.arg is not None

# ----------------------------------------------------------------------------------------------------------------
# vocoders

def published(folder, change=lambda state: state):
    """A checkpoint as textlesslib publishes it, weight norm in it, of tests/test_vocoder.py's shape; and the weights."""
    from test_vocoder import PUBLISHED, hifigan
    _, weights = hifigan(folder / 'plain')
    state = {}
    for name, w in weights.items():
        if w.ndim == 3 and not name.startswith('dur'):
            g = w.flatten(1).norm(dim=1).view(-1, 1, 1)
            state |= {name + '_g': g, name + '_v': w / g * 3.0} # v of any length
        else:
            state[name] = w
    torch.save({'generator': change(state)}, folder / 'g.pt')
    (folder / 'config.json').write_text(json.dumps(PUBLISHED))
    return Config(vocoder=str(folder / 'g.pt'), config=str(folder / 'config.json'), units_hash='abc', out=str(folder / 'vocoder'))

def test_a_published_vocoder_becomes_a_folder_that_speaks(tmp_path, capsys):
    from test_vocoder import RUNS, UNITS
    cfg = published(tmp_path)
    main(cfg)
    assert '10 units, 400 a second' in capsys.readouterr().out
    ours, plain = (load_vocoder(path).speak(UNITS, RUNS) for path in (cfg.out, tmp_path / 'plain'))
    for a, b in zip(ours, plain):
        np.testing.assert_allclose(a, b, atol=1e-5)
    with pytest.raises(Refused, match="made for units abc"):
        load_vocoder(cfg.out).speak(UNITS, units_hash='x')

class Shell:
    def __reduce__(self):
        return os.system, ('touch hostile',)

@pytest.mark.parametrize('change, message', [
    (lambda state: state | {'x': Shell()}, "expected a torch file of tensors"),
    (lambda state: [1], "expected a torch file of tensors with 'generator'"),
    (lambda state: {k: v for k, v in state.items() if not k.endswith('_g')}, "has no weight_g"),
    (lambda state: {k: v for k, v in state.items() if 'conv_post' not in k}, "not a vocoder"),
    (lambda state: {k: v * torch.nan for k, v in state.items()}, "not finite")])
def test_other_vocoder_files_are_refused_and_never_run(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=message) as e:
        main(published(tmp_path, change))
    assert '\n' not in str(e.value) and not (tmp_path / 'vocoder').exists() and not (tmp_path / 'hostile').exists()
