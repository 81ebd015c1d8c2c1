"""
Small inputs that ask for much: a refusal takes under 2 s and 300 MB beyond the imports. Rows of the table of cases:

    10a  config file: a string or a tuple times a number, a text of any width       refused before it is made
    10b  config file: towers of powers, doubling line by line, tuples of tuples     refused before they are made
    10c  config file: 3,000 additions; a file without an end                        a line
    10d  config.json of a model: 1e9 rows, 1e6 layers, width 30,000         compared with the weights' shapes first
    10e  config.json of a vocoder, likewise                                         likewise
    10f  JSON nested deeply, in every reader                                        a line; no reader goes past files.py
    10g  index.json, config.json with values of other types                         a line, or read
    10h  numbers that are none (1e999, nan, 1e23 as seed) in every setting          a line
"""
import ast
import dataclasses
import importlib
import json
import math
import resource
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from small import make_model, make_tokenizer

from configurator import Refused, configure
from data import Shards, ShardWriter
from files import read_json, read_value, strict_json
from model import GPT
from speech.hifigan import HiFiGAN, HiFiGANConfig
from speech.vocoder import SourceFilter, SourceFilterConfig, load_vocoder
from vocab import Vocab

ROOT = Path(__file__).parents[1]
SECONDS = 2.0 # of this process: on a busy machine the clock on the wall says nothing
BYTES = 300e6

torch.set_num_threads(1) # another thread takes address space, too

def in_use():
    """Bytes of this process's address space."""
    return int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()

@contextmanager
def cheap():
    """Fails if the block takes more than SECONDS of processor time, or more than BYTES of address space."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    start = time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (int(in_use() + BYTES), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.process_time() - start < SECONDS

# --------------------------------------------------------------------------------------------------
# config files

@dataclasses.dataclass(frozen=True)
class Config:
    n: int = 1
    lr: float = 1.0
    seed: int = 0
    name: str = ''
    weights: tuple | None = None

DOUBLING = "_a = 'aa'\n" + "_a = _a + _a\n" * 40
NESTING = "_a = 1,\n" + "_a = _a, _a\n" * 40
EXPECTED = "expected numbers, strings, tuples, arithmetic or earlier names, got"
BOMBS = {
    "name = 'a' * 10**9": f"x.py:1: {EXPECTED} `'a' * 10 ** 9`",
    "name = 10**9 * 'a'": f"x.py:1: {EXPECTED} `10 ** 9 * 'a'`",
    "weights = (1, 2) * 10**9": f"x.py:1: {EXPECTED} `(1, 2) * 10 ** 9`",
    "name = '%999999999d' % 1": f"x.py:1: {EXPECTED} `'%999999999d' % 1`",
    "n = ((9**99)**99)**99": f"x.py:1: {EXPECTED} `(9 ** 99) ** 99`",
    "n = 9**9**9": f"x.py:1: {EXPECTED} `9 ** 9 ** 9`",
    "n = (9**999 * 9**999) * 0": f"x.py:1: {EXPECTED} `9 ** 999 * 9 ** 999`",
    f"n = 0x{'f' * 2000}": f"x.py:1: {EXPECTED} `{str(16 ** 2000 - 1)[:200]}...`",
    DOUBLING: f"x.py:13: {EXPECTED} `_a + _a`",
    NESTING: f"x.py:2: {EXPECTED} `(_a, _a)`",
    "n = " + "+".join("1" * 3000): "x.py:1: not Python: nested too deeply",
    "n = " + "1+" * 980 + "1": "x.py:1: nested too deeply; expected less arithmetic in a value",
    "# " + "a" * (1 << 15): "x.py:1: not Python: more than 32768 characters"}

@pytest.mark.parametrize('text, message', BOMBS.items(), ids=range(len(BOMBS)))
def test_a_config_file_cannot_take_much(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path('x.py').write_text(text)
    with cheap(), pytest.raises(Refused) as e:
        configure(Config, ['x.py'])
    assert str(e.value) == message

def test_the_largest_config_file_stays_within_the_bound(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = f"_0 = {'1,' * 1365}\n_1 = _0 + _0 + _0\n"
    for number in range(2100): # a tuple of 4,096 entries each
        text += f'_{number:x}a=_1+(1,)\n'
    assert 0.9 * (1 << 15) < len(text) < 1 << 15
    Path('x.py').write_text(text)
    with cheap():
        configure(Config, ['x.py'])

def test_a_file_without_an_end_is_no_config_file():
    with cheap(), pytest.raises(Refused, match='/dev/zero:1: not Python: more than 32768 characters'):
        configure(Config, ['/dev/zero'])

@pytest.mark.parametrize('arg, message', [
    ('--lr=1e999', 'lr must be finite, got inf'), ('--lr=1e999-1e999', 'lr must be finite, got nan'),
    ('--lr=-1e999', 'lr must be finite, got -inf'), ('--lr=10**400', 'lr must be finite, got inf'),
    ('--lr=nan', "lr must be float, got 'nan'"), ('--lr=(-8)**0.5', 'lr must be float, got '),
    ('--n=1e999', 'n must be int, got inf'), ('--n=2**63', 'n must be from -9223372036854775808 to '),
    ('--seed=1e23', 'seed must be from 0 to 4294967295, got 99999999999999991611392'),
    ('--seed=-1', 'seed must be from 0 to 4294967295, got -1'), ('--seed=2**32', 'seed must be from 0 to 4294967295'),
    ('--weights=1,1e999', 'weights must be finite, got (1, inf)'),
    ('--n=' + '1+' * 3000 + '1', 'n must be int, got '), ('--weights=(1,)*10**9', 'weights must be ')])
def test_numbers_that_are_none(arg, message):
    if arg.startswith('--weights=(1,)'): # words
        assert configure(Config, [arg]).weights == ('(1', ')*10**9')
        return
    with cheap(), pytest.raises(Refused) as e:
        configure(Config, [arg])
    source = arg if len(arg) <= 200 else arg[:200] + '...'
    assert str(e.value).startswith(f'{source}: {message}') and len(str(e.value)) < 500

def all_configs():
    """(name of the module, its Config) of every script but those of bench/ and tiny/build/."""
    for path in sorted([*ROOT.glob('*.py'), *ROOT.glob('[a-z]*/*.py')]):
        name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        if name.split('.')[0] in ('bench', 'tests', 'out') or 'class Config' not in path.read_text():
            continue
        yield name, importlib.import_module(name).Config

def test_no_setting_of_any_script_takes_a_number_that_is_none():
    n = 0
    for name, kind in all_configs():
        for field in dataclasses.fields(kind):
            if not any(word in str(field.type) for word in ('int', 'float', 'tuple')):
                continue
            for text in ('1e999', '-1e999', '1e999*0', '10**30 if 1 else 0', 'nan'):
                if 'tuple' in str(field.type) and text in ('nan', '10**30 if 1 else 0'):
                    continue # words
                with pytest.raises(Refused, match=rf'--{field.name}=.* must be'):
                    configure(kind, [f'--{field.name}={text}'])
                n += 1
    assert n > 500

# --------------------------------------------------------------------------------------------------
# JSON

DEEP = '[' * 100_000

def test_deep_json_is_a_line(tmp_path):
    (tmp_path / 'a.json').write_text(DEEP)
    for read in (read_value, lambda path: strict_json(path.read_text())):
        with pytest.raises(ValueError, match='nested too deeply'):
            read(tmp_path / 'a.json')
    with pytest.raises(Refused, match='a.json: not JSON .nested too deeply.'):
        read_json(tmp_path, 'a.json', 'train.py')

def json_calls(path):
    """The lines of a source that read JSON by the json module itself."""
    source = path.read_text()
    nodes = ast.walk(ast.parse(source)) if 'json.load' in source else []
    return [node.lineno for node in nodes
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ('json.load', 'json.loads')]

def test_what_reads_json_of_a_file_reads_it_by_files_py():
    """What is left: files.py itself, files that this code has written and hashed, and values that were just made."""
    rooms = [path for path in ROOT.rglob('*.py') if path.relative_to(ROOT).parts[0] not in
             ('tests', 'bench', 'out', '.venv', 'venv', 'data') and 'build' not in path.parts]
    users = {str(path.relative_to(ROOT)): len(json_calls(path)) for path in rooms if json_calls(path)}
    assert users == {
        'files.py': 1, 'locks.py': 2, 'interleave.py': 1, 'scaling/plan.py': 1, 'hub/tokenizer.py': 1,
        'papers/tables.py': 1, 'training/checkpoint.py': 5, 'training/peers.py': 3, 'corpora/read.py': 2,
        'speech/word_files.py': 1}

OTHERS = [None, True, -1, 0, 10 ** 9, 10 ** 30, math.inf, math.nan, 1.5, 'x', '', [], [1], {}, {'a': 1}, [[]], '3']

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """A joint model, its tokenizer, and token shards."""
    root = tmp_path_factory.mktemp('bombs')
    make_tokenizer(root / 'tokenizer')
    make_model(root / 'model', root / 'tokenizer')
    vocab = Vocab('text', 257, 0, 'abc')
    with ShardWriter(root / 'text', 'text', vocab, {}) as writer:
        writer.add(np.arange(20), [10, 10])
    return root

def with_value(path, keys, value):
    """Sets a value in a file of JSON."""
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))

def test_an_index_of_other_types_is_a_line_or_read(folders, tmp_path):
    content = json.loads((folders / 'text' / 'index.json').read_text())
    places = [[key] for key in content if key != 'record']
    places += [['vocab', key] for key in content['vocab']] + [['shards', 0, key] for key in content['shards'][0]]
    refused = 0
    with cheap():
        for number, keys in enumerate(places):
            for value in OTHERS:
                folder = tmp_path / 'text'
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(folders / 'text', folder)
                with_value(folder / 'index.json', keys, value)
                try:
                    Shards(folder)
                except Refused as e:
                    assert '\n' not in str(e)
                    refused += 1
    assert refused > 0.8 * len(places) * len(OTHERS), refused

@pytest.mark.slow
def test_a_config_json_of_other_types_is_a_line_or_read(folders, tmp_path):
    shutil.copytree(folders / 'model', tmp_path / 'model')
    path = tmp_path / 'model' / 'config.json'
    original = path.read_text()
    with cheap():
        for key in [*json.loads(original), 'base_config', 'layer_types', 'rope_parameters']:
            for value in OTHERS:
                with_value(path, [key], value)
                try:
                    GPT.from_pretrained(tmp_path / 'model')
                except Refused as e:
                    assert '\n' not in str(e)
                path.write_text(original)

@pytest.mark.parametrize('changes, message', [
    ({'vocab_size': 10 ** 9}, r'model.embed_tokens.weight is \(279, 32\), expected \(1000000000, 32\)'),
    ({'num_hidden_layers': 10 ** 6}, 'n_layer is 1,000,000, more than any model has'),
    ({'num_hidden_layers': 9999}, 'config.json has 9,999 layers, and the weights are 26 tensors'),
    ({'hidden_size': 30000}, r'model.embed_tokens.weight is \(279, 32\), expected \(279, 30000\)'),
    ({'intermediate_size': 2 ** 31, 'hidden_size': 2 ** 31}, 'config.json: describes no model'),
    ({'head_dim': 10 ** 8}, r'q_proj.weight is \(32, 32\), expected \(400000000, 32\)')])
def test_a_model_is_compared_with_its_weights_before_memory_is_taken(folders, tmp_path, changes, message):
    shutil.copytree(folders / 'model', tmp_path / 'model')
    for key, value in changes.items():
        with_value(tmp_path / 'model' / 'config.json', [key], value)
    with cheap(), pytest.raises(Refused, match=message):
        GPT.from_pretrained(tmp_path / 'model')

@pytest.mark.parametrize('weight_map', [None, [], 'x', {'a': 1}, {'a': ['model.safetensors']}])
def test_an_index_of_weights_of_other_types_is_a_line(folders, tmp_path, weight_map):
    shutil.copytree(folders / 'model', tmp_path / 'model')
    (tmp_path / 'model' / 'model.safetensors').rename(tmp_path / 'model' / 'model-1.safetensors')
    (tmp_path / 'model' / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    with pytest.raises(Refused, match=r'index.json: expected a weight_map, \{tensor: file\}; copy the folder again'):
        GPT.from_pretrained(tmp_path / 'model')

def test_more_ids_than_any_vocabulary_has_are_refused():
    with cheap(), pytest.raises(Refused, match='with n_units = 1,000,000,000, expected 16,777,216 at most'):
        Vocab('joint', 257, 10 ** 9)

HIFIGAN = HiFiGANConfig(12, 8, 8, (4, 4), (8, 8), (3,), ((1,),), model_in_dim=8)

@pytest.mark.parametrize('kind, changes, message', [
    (SourceFilter, {'n_units': 10 ** 9}, 'size mismatch for duration_embed.weight|Error.s. in loading'),
    (SourceFilter, {'n_slow': 10 ** 6}, r'not a vocoder: 1,000,001 blocks in config.json, and [0-9]+ tensors'),
    (SourceFilter, {'n_embd': 30000}, 'not a vocoder: Error.s. in loading'),
    (SourceFilter, {'frame_hz': 0}, 'not a vocoder: '),
    (HiFiGAN, {'num_embeddings': 10 ** 9}, 'not a vocoder: Error.s. in loading'),
    (HiFiGAN, {'upsample_initial_channel': 30000}, 'not a vocoder: Error.s. in loading'),
    (HiFiGAN, {'resblock_kernel_sizes': [3] * 3000, 'upsample_rates': [1] * 3000}, '9,000,000 blocks in config.json')])
def test_a_vocoder_is_compared_with_its_weights_before_memory_is_taken(tmp_path, kind, changes, message):
    from safetensors.torch import save_file
    config = SourceFilterConfig(12, 8, 1, 1) if kind is SourceFilter else HIFIGAN
    save_file(dict(kind(config).state_dict()), tmp_path / 'model.safetensors')
    content = json.dumps({**dataclasses.asdict(config), **changes})
    (tmp_path / 'config.json').write_text(content)
    with cheap(), pytest.raises(Refused, match=message):
        load_vocoder(tmp_path)

@pytest.mark.slow
@pytest.mark.parametrize('config', [SourceFilterConfig(12, 8, 1, 1), HIFIGAN])
def test_a_vocoder_of_other_types_is_a_line_or_read(tmp_path, config):
    from safetensors.torch import save_file
    kind = SourceFilter if type(config) is SourceFilterConfig else HiFiGAN
    save_file(dict(kind(config).state_dict()), tmp_path / 'model.safetensors')
    with cheap():
        for field in dataclasses.fields(config):
            for value in OTHERS:
                (tmp_path / 'config.json').write_text(json.dumps({**dataclasses.asdict(config), field.name: value}))
                try:
                    load_vocoder(tmp_path)
                except Refused as e:
                    assert '\n' not in str(e)
