"""
What goes away under a script: its terminal, the room on its disk, its folder. Rows of the table of cases:

    5a  the terminal is closed (ssh cut), with SIGHUP   train.py saves, status 0; the same command goes on
    5b  the terminal is closed, without SIGHUP (nohup)  the script goes on, status 0
    5c  the reader of a pipe ends (| head)              train.py goes on to its end, status 0
    5d  standard output is a file on a full disk        a line on standard error, and the script goes on
    8a  a log line on a full disk                       training goes on, saves, and writes the line when there is room
    8b  a full disk in tokenize, align, interleave, sample, at a checkpoint's tokenizer files       a line
    8c  ulimit -f (SIGXFSZ), also in libraries in Rust and in numpy        a line with the limit
    8d  a read-only remount, out removed under a run    a line
"""
# ruff: noqa: F401, F811 (fixtures of other tests)
import errno
import json
import os
import pty
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small import make_tokenizer, make_units
from test_encoders import hubert
from test_locks import speech
from test_sample import house, settings
from test_train import ROOT, before_each_fetch, config, corpus, losses_of, rows_of

import align
import interleave
import sample
import tokenize_speech
import train
from configurator import Refused, disk_refusal, printable
from files import atomically, write_json
from hub.tokenizer import export_tokenizer
from training import log

SCRIPT = '''
import sys, time
from dataclasses import dataclass
from pathlib import Path
from configurator import run
from files import progress
@dataclass(frozen=True)
class Config:
    out: str = ''
def main(cfg):
    print('\\x1b[2J', 'begun', flush=True)
    while not Path(cfg.out + '.gone').exists():
        time.sleep(0.01)
    for i in progress(range(2000)):
        print(i, 'é\\udcff', flush=i % 2 == 0)
        print(i, file=sys.stderr)
    Path(cfg.out).write_text('saved')
if __name__ == '__main__': run(main, Config)
'''

def start(tmp_path, stdout, stderr, script=SCRIPT, **environment):
    (tmp_path / 'script.py').write_text(script)
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), **environment}
    return subprocess.Popen([sys.executable, tmp_path / 'script.py', f'--out={tmp_path}/out'], env=environment,
                            stdout=stdout, stderr=stderr)

def read_until(number, mark):
    text = b''
    while mark not in text:
        part = os.read(number, 1024)
        assert part, text
        text += part

@pytest.mark.parametrize('kind', ['terminal', 'pipe'])
def test_a_script_whose_output_goes_away_ends_its_work_with_status_0(tmp_path, kind):
    reader, writer = pty.openpty() if kind == 'terminal' else os.pipe()
    process = start(tmp_path, writer, writer)
    os.close(writer)
    read_until(reader, rb'\x1b[2J begun') # the control character as an escape
    os.close(reader)
    (tmp_path / 'out.gone').touch()
    assert process.wait(60) == 0
    assert (tmp_path / 'out').read_text() == 'saved'

def test_what_is_printed_without_a_buffer_comes_at_once(tmp_path):
    reader, writer = os.pipe()
    process = start(tmp_path, writer, writer, SCRIPT.replace(", flush=True", ""), PYTHONUNBUFFERED='1')
    os.close(writer)
    read_until(reader, b'begun')
    (tmp_path / 'out.gone').touch()
    read_until(reader, rb'1999 \xc3\xa9\udcff'.replace(rb'\xc3\xa9', 'é'.encode()))
    assert process.wait(60) == 0
    os.close(reader)

def test_an_output_on_a_full_disk_is_named_and_the_script_goes_on(tmp_path):
    (tmp_path / 'out.gone').touch()
    with open('/dev/full', 'w') as full:
        process = start(tmp_path, full, subprocess.PIPE)
    _, errors = process.communicate(timeout=60)
    lines = errors.decode().splitlines()
    assert lines[0] == 'script.py: standard output: No space left on device; going on without it'
    assert lines[1:] == [str(i) for i in range(2000)] and process.returncode == 0
    assert (tmp_path / 'out').read_text() == 'saved'

def test_what_a_terminal_would_obey_is_printed_as_escapes():
    assert printable('a\x1b[2Jb\nc\u202ed\x9be é\t') == r'a\x1b[2Jb\nc\u202ed\x9be é' + '\t'

# --------------------------------------------------------------------------------------------------
# training

def train_command(cfg, **changes):
    settings = {**asdict(cfg), **changes}
    return [sys.executable, '-m', 'train', *(f'--{key}={value!r}' if isinstance(value, tuple) else f'--{key}={value}'
                                             for key, value in settings.items() if key != 'memory')]

@pytest.mark.slow
def test_a_hang_up_saves_and_the_same_command_goes_on(config, tmp_path):
    """The last line of the terminal comes long before the save, so that its writes fail."""
    whole = config(out=str(tmp_path / 'whole'), max_steps=400)
    cut = config(max_steps=400, log_every=1)
    train.main(whole)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        command = train_command(cut)
        os.execv(command[0], command)
    read_until(terminal, b'step 3/')
    os.close(terminal) # the kernel sends SIGHUP
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    [folder] = Path(cut.out).glob('step-*')
    assert 3 <= int(folder.name.removeprefix('step-')) < 400
    train.main(cut)
    assert losses_of(cut.out) == losses_of(whole.out)

@pytest.mark.slow
def test_a_training_piped_into_head_ends_well(config):
    cfg = config(max_steps=60, log_every=1)
    process = subprocess.Popen(train_command(cfg), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    read_until(process.stdout.fileno(), b'step 3/')
    process.stdout.close()
    assert process.wait() == 0
    assert [row['step'] for row in rows_of(cfg.out)] == [*range(1, 61), 60]
    assert Path(cfg.out, 'settings.json').is_file()

class FillingDisk:
    """A log file whose disk is full while steps 3 to 5 are written; it takes a part of the first line."""
    def __init__(self, file):
        self.file = file
        self.name = file.name
        self.n_writes = 0
    def write(self, data):
        self.n_writes += 1
        if 4 <= self.n_writes <= 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data[:7] if self.n_writes == 3 else data)
    def fileno(self):
        return self.file.fileno()

def test_a_log_on_a_full_disk_costs_no_step_and_is_whole_when_there_is_room(config, monkeypatch, capsys):
    cfg = config(max_steps=8, save_every=4)
    open_log = log._open
    monkeypatch.setattr(log, '_open', lambda *args: FillingDisk(open_log(*args)))
    train.main(cfg)
    assert [row['step'] for row in rows_of(cfg.out)] == [*range(1, 9), 8]
    message = (rf"^{cfg.out}/log.jsonl: No space left on device: [0-9,]+ are free; make room; training goes on, and "
               "writes these lines once the disk takes them$")
    assert len(re.findall(message, capsys.readouterr().out, re.MULTILINE)) == 1

# --------------------------------------------------------------------------------------------------
# the disk

@pytest.fixture
def disk(tmp_path):
    """A function: bytes -> a folder on a disk of that size."""
    mounted = []
    def mount(size, *options):
        folder = tmp_path / f'disk{len(mounted)}'
        folder.mkdir()
        command = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root can mount a disk here")
        mounted.append(folder)
        return folder
    yield mount
    for folder in mounted:
        subprocess.run(['umount', '-l', folder], check=True)

def write_numpy(path):
    np.save(path.with_suffix('.npy'), np.ones(1 << 18))

def write_safetensors(path):
    save_file({'x': torch.ones(1 << 19)}, path)

def write_text(path):
    path.write_text('x' * (1 << 21))

def write_by_tokenizers(path):
    from tokenizers import Tokenizer, models
    Tokenizer(models.WordLevel({f'{i:064d}': i for i in range(1 << 14)}, '0' * 64)).save(str(path))

WRITERS = [write_numpy, write_safetensors, write_text, write_by_tokenizers]

@pytest.mark.parametrize('write', WRITERS)
def test_a_full_disk_is_one_line_whatever_library_writes(disk, write):
    """Of 1 MiB, for files of 1 MB and 2 MB."""
    folder = disk('1m')
    with pytest.raises(Refused) as e, atomically(folder / 'x') as tmp:
        tmp.mkdir()
        write(tmp / 'file')
    words = str(e.value)
    assert words.startswith(f'{folder}/x: No space left on device: ') and words.endswith(
        ' are free; make room')
    assert os.listdir(folder) == []

@pytest.mark.parametrize('write', WRITERS)
def test_a_limit_on_files_is_one_line_whatever_library_writes(tmp_path, write):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
    try:
        with pytest.raises(Refused) as e, atomically(tmp_path / 'x') as tmp:
            tmp.mkdir()
            write(tmp / 'file')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(e.value) == (f"{tmp_path}/x: File too large: files of more than 524,288 bytes are not allowed here; "
                            "lift that (ulimit -f)")
    assert os.listdir(tmp_path) == []

def test_a_disk_that_is_read_only_is_one_line(disk):
    folder = disk('1m')
    subprocess.run(['mount', '-o', 'remount,ro', folder], check=True)
    with pytest.raises(Refused) as e:
        write_json(folder / 'x.json', {})
    assert str(e.value) == (f"{folder}/x.json: cannot be written ({folder}/x.json.tmp.lock: Read-only file system); "
                            "take another place")

def test_a_disk_that_became_read_only_is_one_line(tmp_path, monkeypatch):
    """As the kernel does after an error: nothing more can be written, renamed or removed."""
    def read_only(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
    with pytest.raises(Refused) as e, atomically(tmp_path / 'x') as tmp:
        tmp.write_text('')
        monkeypatch.setattr(os, 'replace', read_only)
        monkeypatch.setattr(Path, 'unlink', read_only)
    assert str(e.value) == f"{tmp_path}/x: Read-only file system: mount it for writing, or take another place"

@pytest.mark.parametrize('write', WRITERS)
def test_a_folder_that_was_removed_while_it_was_written_is_one_line(tmp_path, write):
    (tmp_path / 'a').mkdir()
    with pytest.raises(Refused) as e, atomically(tmp_path / 'a' / 'x') as tmp:
        shutil.rmtree(tmp_path / 'a')
        write(tmp)
    assert str(e.value) == f"{tmp_path}/a/x: No such file or directory: its folder was removed meanwhile"

def test_a_folder_that_was_removed_under_a_run_is_one_line(tmp_path):
    script = SCRIPT.replace("Path(cfg.out).write_text('saved')", "import shutil; shutil.disk_usage(Path(cfg.out))")
    (tmp_path / 'out.gone').touch()
    process = start(tmp_path, subprocess.DEVNULL, subprocess.PIPE, script)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.decode().splitlines()[2000:] == [f'script.py: {tmp_path}/out: No such file or directory']

@pytest.mark.slow
def test_a_training_goes_on_while_its_disk_is_full_and_its_log_is_whole_in_the_end(disk, config, capsys):
    """The disk is full from step 20 to step 60; lines of 40 steps are more than a page of memory."""
    folder = disk('2m')
    cfg = config(out=f'{folder}/run', max_steps=80, save_every=70)
    def fill(step):
        if step == 20:
            with pytest.raises(OSError, match='No space left'), open(folder / 'filler', 'wb', buffering=0) as f:
                while True:
                    f.write(bytes(4096))
        if step == 60:
            (folder / 'filler').unlink()
    with before_each_fetch(fill):
        train.main(cfg)
    assert [row['step'] for row in rows_of(cfg.out)] == [*range(1, 81), 80]
    assert f'{cfg.out}/log.jsonl: No space left on device: ' in capsys.readouterr().out

def full_line(path):
    needs = r"it needs more than the [0-9,]+ bytes that were written, "
    return rf"^{path}: No space left on device: ({needs})?[0-9,]+ are free; make room$"

def test_a_full_disk_in_interleave_and_align_is_one_line(disk, tmp_path):
    """Of three pages of memory: for the lock, and two files."""
    units = make_units(tmp_path / 'units', {f'{i:03d}': ('so it was', [1, 2, 3] * 40) for i in range(99)})
    make_tokenizer(tmp_path / 'tokenizer')
    folder = disk('12k')
    tokens = interleave.Config(units=str(units), out=f'{folder}/tokens', tokenizer=str(tmp_path / 'tokenizer'),
                               sources=('speech', 'textless'))
    with pytest.raises(Refused, match=full_line(f'{folder}/tokens')):
        interleave.main(tokens)
    lines = [{'id': f'{i:03d}', 'words': [['so', 0.1, 0.5], ['it', 0.5, 0.9], ['was', 1.0, 1.1]]} for i in range(99)]
    (tmp_path / 'words.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    words = align.Config(units=str(units), words=str(tmp_path / 'words.jsonl'), out=f'{folder}/words')
    with pytest.raises(Refused, match=full_line(f'{folder}/words/00000')):
        align.main(words)
    assert os.listdir(folder) in (['words'], []) and not any((folder / 'words').glob('*'))

def test_a_full_disk_in_tokenize_is_one_line(disk, speech, hubert):
    folder = disk('16k')
    cfg = tokenize_speech.Config(audio=str(speech), out=f'{folder}/units', encoder=str(hubert), layer=2, device='cpu')
    with pytest.raises(Refused, match=full_line(f'{folder}/units/00000')):
        tokenize_speech.main(cfg)

def test_a_full_disk_in_sample_is_one_line(disk, house):
    root, _ = house
    folder = disk('16k')
    with pytest.raises(Refused, match=full_line(f'{folder}/out/000.wav')):
        sample.main(settings(root, out=f'{folder}/out'))

def test_a_full_disk_at_a_tokenizers_files_is_one_line(disk, tmp_path):
    tokenizer = make_tokenizer(tmp_path / 'tokenizer')
    folder = disk('8k')
    with pytest.raises(Refused, match=full_line(f'{folder}/tokenizer(_config)?.json')):
        export_tokenizer(str(tmp_path / 'tokenizer'), tokenizer.vocab, folder)

def test_errors_that_are_not_of_the_disk_stay_what_they_are(tmp_path):
    assert disk_refusal(ValueError('no (os error 2)'), tmp_path) is None
    assert disk_refusal(OSError('8 requested and 4 read'), tmp_path) is None
    with pytest.raises(PermissionError), atomically(tmp_path / 'x'):
        raise PermissionError(errno.EACCES, 'Permission denied')
