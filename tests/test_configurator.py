"""
The configurator: overrides in order, the exact text of every refusal, and files that are never half written.
"""
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from configurator import Refused, configure
from files import atomically, record, sha256, write_json


@dataclass(frozen=True)
class Config:
    n_layer: int = 6 # blocks
    learning_rate: float = 6e-4 # the peak
    compile: bool = False
    out_dir: str = 'out'
    init: str | None = None # a folder, or None
    max_tokens: int | None = None
    sources: tuple = ('text', 'speech')

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
    path = config_file('"""docs"""\n_gpus = 8 # a helper\nn_layer = _gpus // 2 + 1\nlearning_rate = -(2**-10) * n_layer\n'
                       "sources = ('text',)\ninit = None\nout_dir = 'out/' + 'x'\ncompile = True\n")
    cfg = configure(Config, [path])
    assert cfg == Config(n_layer=5, learning_rate=-5 / 1024, sources=('text',), out_dir='out/x', compile=True)

def test_command_line_values_take_the_wanted_type():
    cfg = configure(Config, ['--learning_rate=1', '--max_tokens=15e9', '--out=123', '--init=a=b', '--compile=True',
                             "--sources=('text',)"])
    assert cfg == Config(learning_rate=1.0, max_tokens=15_000_000_000, out_dir='123', init='a=b', compile=True, sources=('text',))
    assert type(cfg.learning_rate) is float and type(cfg.max_tokens) is int
    assert configure(Config, ['--init=x', '--init=None', '--max_tokens=7', '--max_tokens=None']) == Config()

EXPECTED = "expected numbers, strings, tuples, arithmetic or earlier names, got"
@pytest.mark.parametrize('text, message', [
    ("n_layers = 4", "x.py: no setting 'n_layers', did you mean 'n_layer'?"),
    ("zebra = 4", "x.py: no setting 'zebra'"),
    ("n_layer = '4'", "x.py: n_layer wants int, got '4'"),
    ("n_layer = 4.5", "x.py: n_layer wants int, got 4.5"),
    ("n_layer = True", "x.py: n_layer wants int, got True"),
    ("n_layer = None", "x.py: n_layer wants int, got None"),
    ("max_tokens = 'all'", "x.py: max_tokens wants int or None, got 'all'"),
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
    ('--compile=false', "--compile=false: compile wants bool, got 'false'"),
    ('--compile=1', "--compile=1: compile wants bool, got 1"),
    ('--n_layer=', "--n_layer=: n_layer wants int, got ''"),
    ('--n_layer=1e999', "--n_layer=1e999: n_layer wants int, got inf"),
    ('--n_layer=open("x")', "--n_layer=open(\"x\"): n_layer wants int, got 'open(\"x\")'"),
    ('--sources=text', "--sources=text: sources wants tuple, got 'text'"),
    ('config/none.py', "config/none.py: no such config file; settings are written --key=value"),
])
def test_command_line_refusals(arg, message):
    with pytest.raises(Refused) as e:
        configure(Config, [arg])
    assert str(e.value) == message

def test_script_ends_in_one_line_and_status_1_on_bad_input(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text("from dataclasses import dataclass\nfrom configurator import run\n@dataclass(frozen=True)\nclass Config:\n"
                      "    n: int = 1 # how many\ndef main(cfg): print(cfg.n)\nif __name__ == '__main__': run(main, Config)\n")
    call = lambda *args: subprocess.run([sys.executable, script, *args], capture_output=True, text=True,
                                        env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1])})
    bad, good, usage = call('--m=2'), call('--n=2'), call('--help')
    assert (bad.returncode, bad.stderr) == (1, "script.py: --m=2: no setting 'm'\n")
    assert (good.returncode, good.stdout) == (0, "overriding: n = 2 (was 1)\n2\n")
    assert usage.returncode == 0 and "n: int = 1 # how many" in usage.stdout

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
    made = record(Config(n_layer=3))
    assert made['settings']['n_layer'] == 3 and {'command', 'commit', 'versions'} <= made.keys()
    (tmp_path / 'f').write_bytes(b'abc')
    assert sha256(tmp_path / 'f') == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad' # FIPS 180-2's example
