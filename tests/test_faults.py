"""
What must never lose a run, over several processes; and nothing in the tree that runs what a file says.

    case                                                outcome
    one of two ranks is killed inside a save            goes on to the same end, to the bit: 20 of 20, DDP and FSDP
    ranks with other settings, versions or data         all end before the first step, by one line
    what one rank alone refuses                         all refuse it, by a line that names the rank
    one rank cannot write its part                      all end by its line; the older checkpoints stay
    a rank dies                                         the others end at once and name it
    a rank hangs                                        the others end after the timeout and say that all can be reached

The other cases of faults are tables or tests of their own: two hosts in test_hosts.py; terminals and disks in
test_terminal_and_disk.py; small inputs that ask for much in test_bombs.py; data that changed behind a run in
test_changed_data.py; model folders that are not whole or want code in test_pretrained.py; 3,000 shards at 256 open
files in test_interleave.py; damaged logs in test_log.py and manifests in test_checkpoint.py; dpo.py's signals and bytes
in test_dpo.py; memory of lists at millions of utterances in test_memory.py; archives in test_corpora.py; two at once in
test_locks.py.
"""
# ruff: noqa: F401, F811 (fixtures of test_train)
import ast
import json
import os
import random
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_house import tracked
from test_train import (
    ROOT,
    before_each_fetch,
    config,
    corpus,
    interrupted_after,
    on_ranks,
    rows_of,
    state_of,
    weights_of,
)

import train
from configurator import Refused
from training import checkpoint, peers

MODULES = {'pickle', 'cPickle', 'dill', 'joblib', 'shelve', 'marshal'}
CALLS = {'exec', 'eval', 'compile', '__import__', 'torch.load', 'os.system', 'os.popen'}
METHODS = {'extractall', 'unpack_archive'}
KEYWORDS = {'trust_remote_code', 'allow_pickle', 'shell'}

def dangers(source):
    """What of a source could run the content of a file: [(line, name)]."""
    uses = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                uses += [(node.lineno, name.name) for name in names if name.name.split('.')[0] in MODULES]
            case ast.ImportFrom(module=module):
                if (module or '').split('.')[0] in MODULES:
                    uses.append((node.lineno, module))
            case ast.Call(func=func, keywords=keywords):
                name = ast.unparse(func)
                if name in CALLS or name.rsplit('.', 1)[-1] in METHODS:
                    uses.append((node.lineno, name))
                uses += [(node.lineno, keyword.arg) for keyword in keywords if is_dangerous(keyword)]
    return uses

def is_dangerous(keyword):
    """Is it one of KEYWORDS, with anything but a false constant?"""
    is_false = isinstance(keyword.value, ast.Constant) and not keyword.value.value
    return keyword.arg in KEYWORDS and not is_false

def test_nothing_in_the_tree_runs_what_a_file_says():
    foreign = {'.venv', 'venv', 'out', 'data'}
    files = [path for path in ROOT.rglob('*.py') if not foreign & set(path.relative_to(ROOT).parts)]
    assert len(files) > 50
    uses = {str(path.relative_to(ROOT)): dangers(path.read_text(encoding='utf-8')) for path in files}
    [(_, module)] = uses.pop('tests/test_convert.py') # makes hostile files, which are refused
    [(_, function)] = uses.pop('speech/convert.py') # with weights_only, see the test below
    assert (module, function) == ('pickle', 'torch.load')
    uses.pop('tests/gluon_model.py') # executes the source of a kernel of this tree
    assert {name: lines for name, lines in uses.items() if lines} == {}

def test_the_one_torch_load_reads_tensors_only():
    tree = ast.parse((ROOT / 'speech/convert.py').read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    [load] = [call for call in calls if ast.unparse(call.func) == 'torch.load']
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in load.keywords}
    assert keywords['weights_only'] == 'True'

@pytest.mark.parametrize('source', [
    'import pickle', 'from joblib import load', 'torch.load(f)', 'eval("1")', 'exec(s)', 'os.system("ls")',
    'tar.extractall()', 'np.load(f, allow_pickle=True)', 'AutoModel.from_pretrained(x, trust_remote_code=True)',
    'subprocess.run(c, shell=True)'])
def test_such_a_thing_would_be_found(source):
    assert dangers(source)

def may_ask(source):
    """Where a source lets transformers read a folder without trust_remote_code=False: [line].

    from_pretrained of model.py's own GPT, and of nothing else, needs none.
    """
    tree = ast.parse(source)
    harmless = {id(call.func) for call in ast.walk(tree) if isinstance(call, ast.Call) and any(
        keyword.arg == 'trust_remote_code' and ast.unparse(keyword.value) == 'False' for keyword in call.keywords)}
    return [node.lineno for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in ('from_pretrained', 'from_config', 'pipeline')
            and ast.unparse(node.value) != 'GPT' and id(node) not in harmless]

def test_nothing_that_transformers_reads_may_ask_to_run_code():
    paths = [path for path in tracked('*.py') if path.parts[0] != 'tests']
    sources = {str(path): (ROOT / path).read_text(encoding='utf-8') for path in paths}
    assert {path: lines for path, source in sources.items() if (lines := may_ask(source))} == {}
    loaders = {path for path, source in sources.items() if 'trust_remote_code=False' in source}
    elsewhere = {path for path in loaders if not path.startswith(('bench/', 'tiny/build/'))}
    assert elsewhere == {'speech/pretrained.py', 'hub/tokenizer.py'}

@pytest.mark.parametrize('source', [
    'AutoModel.from_pretrained(x)', 'AutoModel.from_pretrained(x, trust_remote_code=asked)',
    'load = transformers.AutoModel.from_pretrained', "getattr(transformers, name).from_pretrained(x, dtype=y)",
    'AutoModel.from_config(x)', "transformers.pipeline('text-generation', x)"])
def test_a_call_that_may_ask_would_be_found(source):
    assert may_ask(source)

def without_times(rows):
    return [{key: value for key, value in row.items() if key not in ('ms', 'tok_s', 'data')} for row in rows]

@pytest.mark.parametrize('parallel', ['ddp', 'fsdp'])
def test_sigterm_to_one_rank_saves_once_and_ends_all_with_0(config, tmp_path, parallel):
    cut, uncut = (config(out=str(tmp_path / name), micro_batch=3, parallel=parallel) for name in ('cut', 'uncut'))
    def work(rank):
        if rank == 1:
            with interrupted_after(9):
                train.main(cut)
        else:
            train.main(cut)
    assert on_ranks(2, work) == [0, 0]
    [folder] = checkpoint.folders(cut.out)
    assert checkpoint.why_unusable(folder) is None and not Path(cut.out, 'settings.json').exists()
    for cfg in (cut, uncut):
        assert on_ranks(2, lambda rank, cfg=cfg: train.main(cfg)) == [0, 0]
    assert without_times(rows_of(cut.out)) == without_times(rows_of(uncut.out))

@pytest.mark.parametrize('number', [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_rank_that_dies_or_hangs_ends_the_others_within_the_timeout(config, tmp_path, capfd, number):
    """Rank 1 gets the signal as it begins step 6. Rank 0, when it has ended, kills rank 1, which may only be stopped.

    The timeout is far longer than any step, so that a busy machine does not end the ranks before.
    """
    cfg = config(micro_batch=3, timeout=40.0)
    pid = tmp_path / 'pid'
    def lose(step):
        if step == 6:
            pid.write_text(str(os.getpid()))
            os.kill(os.getpid(), number)
    def work(rank):
        if rank == 1:
            with before_each_fetch(lose):
                return train.main(cfg)
        try:
            train.main(cfg)
        finally:
            os.kill(int(pid.read_text()), signal.SIGKILL)
    first, second = on_ranks(2, work)
    assert first not in (0, None, -signal.SIGKILL) # rank 0 ended by itself
    assert second == -signal.SIGKILL
    why = 'rank 1 on .* \\(has ended\\)' if number == signal.SIGKILL else 'none, so one hangs or a link was down'
    pattern = f"rank 0 on .* lost others; missing: {why}; no checkpoint was saved"
    assert any(re.match(pattern, line) for line in refusals(capfd))
    assert all(json.loads(line) for line in Path(cfg.out, 'log.jsonl').read_text().splitlines())

# ---- kills inside a save

def changes_of_checkpoints(work, moment=None):
    """Runs work(), and ends the process just before its change number `moment` of a step-N/ -> number of changes.

    Parts are written in two halves, so that kills leave some of which the second is missing.
    """
    write_part = checkpoint.write_part
    def write_in_halves(path, *rest):
        result = write_part(path, *rest)
        data = path.read_bytes()
        path.write_bytes(data[:len(data) // 2])
        with open(path, 'ab') as file:
            file.write(data[len(data) // 2:])
        return result
    n_changes = 0
    def hook(event, args):
        nonlocal n_changes
        is_change = event in ('os.rename', 'os.mkdir', 'os.remove', 'os.rmdir')
        if is_change or event == 'open' and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
            if '/step-' in str(args[0]):
                if n_changes == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                n_changes += 1
    sys.addaudithook(hook) # in a process of its own
    checkpoint.write_part = write_in_halves
    work()
    return n_changes

@pytest.mark.slow
@pytest.mark.parametrize('parallel', ['ddp', 'fsdp'])
def test_one_of_two_ranks_killed_inside_a_save_twenty_times(config, tmp_path, parallel):
    settings = config(micro_batch=3, parallel=parallel, max_steps=6, save_every=2, eval_rows=1)
    uncut = replace(settings, out=str(tmp_path / 'uncut'))
    def count(rank):
        n = changes_of_checkpoints(lambda: train.main(uncut))
        (tmp_path / f'{rank}.txt').write_text(str(n))
    assert on_ranks(2, count) == [0, 0]
    moments = [(rank, moment) for rank in (0, 1) for moment in range(int((tmp_path / f'{rank}.txt').read_text()))]
    chosen = random.Random(parallel).sample([m for m in moments if m[0] == 0], 13)
    chosen += random.Random(parallel).sample([m for m in moments if m[0] == 1], 7)
    in_save = 0
    for victim, moment in chosen:
        cfg = replace(settings, out=str(tmp_path / f'{victim}-{moment}'))
        def work(rank, cfg=cfg, victim=victim, moment=moment):
            if rank == victim:
                changes_of_checkpoints(lambda: train.main(cfg), moment)
            train.main(cfg)
        codes = on_ranks(2, work)
        assert codes[victim] == -signal.SIGKILL, (victim, moment, codes)
        in_save += any(Path(cfg.out).glob('step-*.tmp'))
        assert on_ranks(2, lambda rank, cfg=cfg: train.main(cfg)) == [0, 0], (victim, moment)
        assert state_of(cfg.out) == state_of(uncut.out) and weights_of(cfg.out) == weights_of(uncut.out)
        assert without_times(rows_of(cfg.out)) == without_times(rows_of(uncut.out))
    assert in_save >= 10

# ---- what one rank refuses, all refuse

def refusals(capfd):
    """The distinct refusals of forked ranks, which Python prints as the last lines of their tracebacks."""
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith('configurator.Refused: ')]
    return [line.removeprefix('configurator.Refused: ') for line in lines]

def test_ranks_with_other_settings_versions_or_commit_are_refused_on_all(config, capfd, monkeypatch):
    record = checkpoint.record
    cfg = config(micro_batch=3)
    def work(rank):
        if rank == 1:
            def other(cfg):
                versions = {**record(cfg)['versions'], 'torch': '2.12.0'}
                return record(cfg) | {'commit': 'abc', 'versions': versions}
            monkeypatch.setattr(checkpoint, 'record', other)
        train.main(replace(cfg, lr=5e-3, seed=7) if rank == 1 else cfg)
    assert on_ranks(2, work) == [1, 1]
    lines = refusals(capfd)
    here = record(cfg)
    host = peers.socket.gethostname()
    assert lines == 2 * [
        f"rank 1 on {host} differs from rank 0 on {host}: lr is 0.005, not 0.01; seed is 7, not 0; "
        f"torch is '2.12.0', not '{here['versions']['torch']}'; commit is 'abc', not {here['commit']!r}; "
        "expected the same command, code, data and packages on all hosts"]
    assert not Path(cfg.out, 'log.jsonl').exists()

def test_what_one_rank_cannot_read_ends_all_by_its_line(config, capfd):
    cfg = config(micro_batch=3)
    assert on_ranks(2, lambda rank: train.main(replace(cfg, data='/absent') if rank else cfg)) == [1, 1]
    host = peers.socket.gethostname()
    assert refusals(capfd) == 2 * [f"rank 1 on {host}: /absent/train/text: no such folder; expected token shards "
                                   "as interleave.py writes them"]

@pytest.mark.parametrize('done', [False, True])
def test_a_part_that_cannot_be_written_ends_all_ranks_by_its_line(config, capfd, done):
    """At a save in the middle, which is told to all by the sums of a step, and at the last one."""
    cfg = config(micro_batch=3, save_every=2, max_steps=4 if done else 400, out=str(config().out) + str(done))
    def work(rank):
        if rank == 1:
            write_part = checkpoint.write_part
            def fail(path, *rest):
                if 'step-4' in str(path):
                    raise OSError(28, 'No space left on device', str(path))
                return write_part(path, *rest)
            checkpoint.write_part = fail
        train.main(cfg)
    assert on_ranks(2, work) == [1, 1]
    host = peers.socket.gethostname()
    first, second = refusals(capfd)
    pattern = f"rank 1 on {host}: {cfg.out}/step-4: No space left on device: [\\d,]+ are free; make room"
    assert first == second and re.fullmatch(pattern, first)
    assert [path.name for path in Path(cfg.out).glob('step-*')] == ['step-2']
