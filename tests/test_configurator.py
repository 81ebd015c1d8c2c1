"""
The configurator: overrides in order, and the exact text of every refusal. Files: never half written, read with checks.
"""
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from configurator import Refused, configure, pick_device, refuse_library, run, script_name
from files import atomically, read_info, read_json, record, sha256, write_json


@dataclass(frozen=True)
class Config:
    n_layer: int = 6 # blocks
    learning_rate: float = 6e-4 # the peak
    compile: bool = False
    out: str = 'out'
    init: str | None = None # a folder, or None
    max_tokens: int | None = None
    sources: tuple = ('text', 'speech')
    weights: tuple | None = None

@pytest.fixture
def config_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    def write(text):
        Path('x.py').write_text(text)
        return 'x.py'
    return write

def test_defaults_stay_without_arguments():
    assert configure(Config, []) == Config()

def test_later_arguments_win_over_earlier_ones(config_file):
    path = config_file("n_layer = 2\nlearning_rate = 1e-3\n")
    assert configure(Config, ['--n_layer=4', path]).n_layer == 2
    assert configure(Config, [path, '--n_layer=4']) == Config(n_layer=4, learning_rate=1e-3)

def test_config_file_computes_with_earlier_names(config_file):
    path = config_file('''"""docs"""
_gpus = 8 # a helper
n_layer = _gpus // 2 + 1
learning_rate = -(2**-10) * n_layer
sources = ('text',)
init = None
out = 'out/' + 'x'
compile = True
''')
    cfg = configure(Config, [path])
    assert cfg == Config(n_layer=5, learning_rate=-5 / 1024, sources=('text',), out='out/x', compile=True)

def test_command_line_values_take_the_wanted_type():
    cfg = configure(Config, ['--learning_rate=1', '--max_tokens=15e9', '--out=123', '--init=a=b', '--compile=True',
                             "--sources=('text',)"])
    assert cfg == Config(learning_rate=1.0, max_tokens=15_000_000_000, out='123', init='a=b', compile=True,
                         sources=('text',))
    assert type(cfg.learning_rate) is float and type(cfg.max_tokens) is int
    assert configure(Config, ['--init=x', '--init=None', '--max_tokens=7', '--max_tokens=None']) == Config()

def test_the_name_of_a_bool_alone_sets_it():
    assert configure(Config, ['--compile']) == Config(compile=True)
    assert configure(Config, ['--compile', '--compile=False']) == Config()

@pytest.mark.parametrize('text, sources', [
    ('textless', ('textless',)), ('S,T', ('S', 'T')), ('S,S->T', ('S', 'S->T')), ('text, speech', ('text', 'speech')),
    ("('S','S->T')", ('S', 'S->T')), ("['S', 'T']", ('S', 'T')), ("'S'", ('S',)), ('S,', ('S',)), ('', ()), ('()', ()),
    ('0.5,2', (0.5, 2)), ('3', (3,))])
def test_words_and_commas_give_a_tuple(text, sources):
    assert configure(Config, [f'--sources={text}']).sources == sources

def test_a_tuple_that_may_be_none_is_none_or_a_tuple():
    assert configure(Config, ['--weights=1,2']).weights == (1, 2)
    assert configure(Config, ['--weights=1,2', '--weights=None']).weights is None

EXPECTED = "expected numbers, strings, tuples, arithmetic or earlier names, got"
@pytest.mark.parametrize('text, message', [
    ("n_layers = 4", "x.py: no setting 'n_layers', did you mean 'n_layer'?"),
    ("zebra = 4", "x.py: no setting 'zebra'"),
    ("n_layer = '4'", "x.py: n_layer must be int, got '4'"),
    ("n_layer = 4.5", "x.py: n_layer must be int, got 4.5"),
    ("n_layer = True", "x.py: n_layer must be int, got True"),
    ("n_layer = None", "x.py: n_layer must be int, got None"),
    ("max_tokens = 'all'", "x.py: max_tokens must be int or None, got 'all'"),
    ("sources = 'text'", "x.py: sources must be tuple, got 'text'"),
    ("import os", "x.py:1: expected `name = value`, got `import os`"),
    ("n_layer = 1\nprint(n_layer)", "x.py:2: expected `name = value`, got `print(n_layer)`"),
    ("n_layer += 1", "x.py:1: expected `name = value`, got `n_layer += 1`"),
    ("for i in (1,):\n    n_layer = i", "x.py:1: expected `name = value`, got `for i in (1,):`"),
    ("n_layer = int('4')", f"x.py:1: {EXPECTED} `int('4')`"),
    ("n_layer = __import__('os').getpid()", f"x.py:1: {EXPECTED} `__import__('os').getpid()`"),
    ("n_layer = later\nlater = 1", f"x.py:1: {EXPECTED} `later`"),
    ("n_layer = 1 // 0", f"x.py:1: {EXPECTED} `integer division or modulo by zero`"),
    ("n_layer = 9**9**9", f"x.py:1: {EXPECTED} `9 ** 9 ** 9`"),
    ("n_layer = 'a' - 1", f"x.py:1: {EXPECTED} `unsupported operand type(s) for -: 'str' and 'int'`"),
    ("n_layer = (", "x.py:1: not Python: '(' was never closed"),
])
def test_config_file_refusals(config_file, text, message):
    with pytest.raises(Refused) as e:
        configure(Config, [config_file(text)])
    assert str(e.value) == message

@pytest.mark.parametrize('arg, message', [
    ('--n_layr=4', "--n_layr=4: no setting 'n_layr', did you mean 'n_layer'?"),
    ('--n_layer', "--n_layer: expected --key=value"),
    ('-n_layer=4', "-n_layer=4: expected --key=value"),
    ('-compile', "-compile: expected --key=value"),
    ('--compile=false', "--compile=false: compile must be bool, got 'false'"),
    ('--compile=1', "--compile=1: compile must be bool, got 1"),
    ('--n_layer=', "--n_layer=: n_layer must be int, got ''"),
    ('--n_layer=1e999', "--n_layer=1e999: n_layer must be int, got inf"),
    ('--n_layer=open("x")', "--n_layer=open(\"x\"): n_layer must be int, got 'open(\"x\")'"),
    ('--sources=None', "--sources=None: sources must be tuple, got None"),
    ('config/none.py', "config/none.py: no such config file; settings are written --key=value"),
])
def test_command_line_refusals(arg, message):
    with pytest.raises(Refused) as e:
        configure(Config, [arg])
    assert str(e.value) == message

SCRIPT = '''
from dataclasses import dataclass
from configurator import run
@dataclass(frozen=True)
class Config:
    n: int = 1 # how many
def main(cfg): print(cfg.n)
if __name__ == '__main__': run(main, Config)
'''

def test_script_ends_in_one_line_and_status_1_on_bad_input(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1])}
    def call(arg):
        return subprocess.run([sys.executable, script, arg], capture_output=True, text=True, env=environment)
    refused = call('--m=2')
    assert (refused.returncode, refused.stderr) == (1, "script.py: --m=2: no setting 'm'\n")
    ran = call('--n=2')
    assert (ran.returncode, ran.stdout) == (0, "overriding: n = 2 (was 1)\n2\n")
    usage = call('--help')
    assert usage.returncode == 0 and "    n: int = 1 # how many" in usage.stdout
    assert "dataclass" not in usage.stdout and "def " not in usage.stdout

@pytest.mark.parametrize('raised', [
    "import torch.no_such_module", "raise OSError('libtorchaudio.so: undefined symbol: _ZN3c10')",
    "raise RuntimeError('built for torch 2.5')"])
@pytest.mark.parametrize('wrapped', [False, True])
def test_a_library_that_cannot_be_imported_is_named_and_not_the_users_folder(tmp_path, monkeypatch, raised, wrapped):
    (tmp_path / 'unfitting_library.py').write_text(raised)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Refused, match=r'^unfitting_library cannot be imported \(.+\); install the version that fits'):
        try:
            try:
                import unfitting_library  # noqa: F401
            except Exception as e:
                if wrapped:
                    raise RuntimeError('Failed to import transformers.models.hubert') from e
                raise
        except Exception as e:
            refuse_library(e)

def test_other_errors_are_not_taken_for_those_of_a_library():
    for error in (OSError('no such file'), RuntimeError('size mismatch'), ValueError('not a model')):
        try:
            raise error
        except Exception as e:
            assert refuse_library(e) is None # it returns, and the caller gives its own reason

def test_a_script_is_named_as_the_repository_names_it(monkeypatch):
    root = Path(__file__).parents[1]
    for path, name in ((root / 'train.py', 'train.py'), (root / 'scaling/plan.py', 'scaling/plan.py'),
                       ('/elsewhere/x.py', 'x.py')):
        monkeypatch.setattr(sys, 'argv', [str(path)])
        assert script_name() == name

@pytest.mark.parametrize('device, local_rank, expected', [
    ('auto', None, 'cuda:0'), ('auto', '1', 'cuda:1'), ('cuda', '1', 'cuda:1'), ('cuda:0', '1', 'cuda:0'),
    ('cpu', '1', 'cpu')])
def test_a_process_takes_the_gpu_of_its_number_on_the_machine(monkeypatch, device, local_rank, expected):
    current = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', current.append)
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    if local_rank:
        monkeypatch.setenv('LOCAL_RANK', local_rank)
    assert pick_device(device) == expected
    assert [f'cuda:{index}' for index in current] == [expected] * (expected != 'cpu')
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(Refused, match='device is cuda:2, this machine has 2 GPUs: start one process per GPU'):
        pick_device('auto')

@pytest.mark.parametrize('device', ['cuda', 'cuda:1', 'tpu', 'auto:1', 'cuda:x'])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert pick_device('auto') == 'cpu'
    with pytest.raises(Refused, match='expected auto, cpu, or cuda where there is one'):
        pick_device(device)

# --------------------------------------------------------------------------------------------------
# files

def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / 'a' / 'x.json'
    write_json(path, {'old': 1})
    with pytest.raises(ZeroDivisionError), atomically(path) as tmp:
        tmp.write_text('half')
        1 / 0
    assert json.loads(path.read_text()) == {'old': 1} and os.listdir(path.parent) == ['x.json']

def test_a_folder_appears_whole_and_leftovers_of_a_killed_run_vanish(tmp_path):
    (tmp_path / '00000.tmp').mkdir()
    (tmp_path / '00000.tmp' / 'stale').write_text('of a killed run')
    with atomically(tmp_path / '00000') as tmp:
        tmp.mkdir()
        (tmp / 'a').write_text('1')
        assert not (tmp_path / '00000').exists()
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['00000', 'a']

def test_record_names_settings_and_versions(tmp_path):
    origin = record(Config(n_layer=3))
    assert origin['settings']['n_layer'] == 3
    assert {'command', 'commit', 'versions'} <= origin.keys()
    (tmp_path / 'f').write_bytes(b'abc')
    of_abc = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad' # FIPS 180-2's example
    assert sha256(tmp_path / 'f') == of_abc

def test_errors_of_the_system_about_named_paths_are_one_line(tmp_path, monkeypatch):
    """A full or read-only disk, or a file without permission, wherever the path that was named leads."""
    monkeypatch.setattr(sys, 'argv', ['x.py', f'--out={tmp_path}/out', f'--init={tmp_path}/a,{tmp_path}/b'])
    def fails(path):
        def main(cfg):
            raise PermissionError(13, 'Permission denied', path)
        return main
    for path in (f'{tmp_path}/out/00000.tmp', tmp_path / 'out.tmp', f'{tmp_path}/b/config.json'):
        with pytest.raises(SystemExit, match=f'x.py: {path}: Permission denied'):
            run(fails(path), Config)
    def full(cfg):
        raise OSError(28, 'No space left on device')
    with pytest.raises(SystemExit, match=f'x.py: {tmp_path}/out: No space left on device'):
        run(full, Config)
    for path in (f'{tmp_path}/other', None, 3):
        with pytest.raises(PermissionError): # a mistake of ours: the whole story
            run(fails(path), Config)
    assert os.listdir(tmp_path) == [] # nothing is left of the trial

def test_json_files_are_read_as_objects(tmp_path):
    write_json(tmp_path / 'a.json', {'é': [1]})
    (tmp_path / 'b.jsonl').write_text('{"step": 1}\n{"step": 2}\n')
    assert read_json(tmp_path, 'a.json', 'train.py') == {'é': [1]}
    assert read_json(str(tmp_path), 'b.jsonl', 'train.py') == [{'step': 1}, {'step': 2}]
    with pytest.raises(Refused, match=f'{tmp_path}/c.json: no such file; train.py writes it'):
        read_json(tmp_path, 'c.json', 'train.py')

@pytest.mark.parametrize('name, content, message', [
    ('a.json', b'{"cut', 'a.json: not JSON'), ('a.json', b'', 'a.json: not JSON'),
    ('a.json', b'{"\xff": 1}', 'a.json: not JSON'), ('a.json', b'[' * 100_000, 'a.json: not JSON'),
    ('a.json', b'[1, 2]', 'a.json: expected a JSON object, got .1, 2.'),
    ('a.jsonl', b'{"step": 1}\n{"st', 'a.jsonl: not JSON'), ('a.jsonl', b'{}\n3\n', 'expected a JSON object, got 3')])
def test_what_is_no_json_object_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=message):
        read_json(tmp_path, name, 'train.py')

def test_a_folder_without_its_info_is_not_complete(tmp_path):
    with pytest.raises(Refused, match='nowhere: no such folder; align.py makes it'):
        read_info(tmp_path / 'nowhere', 'align.py')
    with pytest.raises(Refused, match='no info.json in it, so it is not complete; align.py makes it'):
        read_info(tmp_path, 'align.py')
    write_json(tmp_path / 'info.json', {'words': 3})
    assert read_info(tmp_path, 'align.py') == {'words': 3}
