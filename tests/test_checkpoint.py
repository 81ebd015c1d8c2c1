"""training/checkpoint.py: whatever happens to a run or its files, the same command ends where an untouched run ends."""
import json
import os
import random
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import checkpoint_tensors, killed
from test_train import (
    before_each_fetch,
    interrupted_after,
    losses_of,
    make_corpus,
    make_tokenizer,
    small,
    state_of,
    weights_of,
)

import train
from configurator import Refused
from files import fingerprint
from hub.folders import vocabulary
from training import checkpoint, export, processes
from training.processes import signals

torch.set_num_threads(1)

@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp('checkpoint')
    return make_corpus(root / 'made', make_tokenizer(root / 'tokenizer'), n=30)

def settings(corpus, out_dir, **changes):
    return small(corpus, out_dir, **{'max_steps': 10, 'save_every': 2, 'eval_rows': 1, **changes})

@pytest.fixture(scope='module')
def untouched(corpus):
    cfg = settings(corpus, corpus.parent / 'untouched')
    train.main(cfg)
    return cfg.out

@pytest.fixture
def cut(corpus, untouched, tmp_path):
    """A run that stopped after step 8: step-6 and step-8 are there, nothing else."""
    cfg = settings(corpus, tmp_path / 'cut')
    with interrupted_after(8):
        train.main(cfg)
    assert [f.name for f in checkpoint.folders(cfg.out)] == ['step-8', 'step-6']
    return cfg

def goes_on_to_the_same_end(cfg, untouched):
    train.main(cfg)
    assert weights_of(cfg.out) == weights_of(untouched) and state_of(cfg.out) == state_of(untouched)
    assert losses_of(cfg.out) == losses_of(untouched)

# ---- kills

def run_with_moments(cfg):
    """A run with further changes of files, at which small.killed can end it.

    A file `fetched` is written before each step, so that kills also come between saves; the tensors are written in two
    halves, so that kills also leave a file of which a part is missing.
    """
    write_part = checkpoint.write_part
    def mark(step):
        Path(cfg.out, 'fetched').write_text(str(step))
    def write_in_halves(path, *rest):
        result = write_part(path, *rest)
        data = path.read_bytes()
        path.write_bytes(data[:len(data) // 2])
        with open(path, 'ab') as file:
            file.write(data[len(data) // 2:])
        return result
    checkpoint.write_part = write_in_halves # in a process of its own
    with before_each_fetch(mark):
        train.main(cfg)

def kill_at_moments(corpus, untouched, tmp_path, n_kills):
    """Kills runs at n_kills different changes of their files -> how many of them were in the middle of a save."""
    cfg = settings(corpus, tmp_path / 'measured' / 'run')
    Path(cfg.out).mkdir(parents=True)
    n_changes = killed(lambda: run_with_moments(cfg), cfg.out)
    in_save = 0
    for moment in random.Random(0).sample(range(n_changes), n_kills):
        cfg = settings(corpus, tmp_path / str(moment) / 'run')
        Path(cfg.out).mkdir(parents=True)
        killed(lambda cfg=cfg: run_with_moments(cfg), cfg.out, moment)
        in_save += any(Path(cfg.out).glob('step-*.tmp'))
        goes_on_to_the_same_end(cfg, untouched)
    return in_save

def test_a_killed_run_ends_as_an_untouched_one(corpus, untouched, tmp_path):
    kill_at_moments(corpus, untouched, tmp_path, 4)

@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_ends_as_an_untouched_one(corpus, untouched, tmp_path):
    assert kill_at_moments(corpus, untouched, tmp_path, 20) >= 5 # of them inside a save

# ---- damage

def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

def two_parts(path):
    text = path.read_text()
    assert '"parts": 1,' in text
    path.write_text(text.replace('"parts": 1,', '"parts": 2,'))

def truncate(path):
    path.write_bytes(path.read_bytes()[:100])

NESTED = '[' * 200_000
MANIFEST_OF_ANOTHER_FOLDER = '{"format": 2, "files": {"../step-6/vocab.json": {"bytes": 1, "sha256": ""}}}'
# what is done to which file, and what is said of it
DAMAGE = {
    'flipped bit in the weights': (
        'part-00000.safetensors', flip, "part-00000.safetensors has changed since it was written (sha256)"),
    'flipped bit in the configuration': (
        'config.json', flip, "config.json has changed since it was written (sha256)"),
    'truncated': ('part-00000.safetensors', truncate, "part-00000.safetensors has 100 bytes, not "),
    'missing file': ('vocab.json', Path.unlink, "vocab.json is missing"),
    'no manifest': ('MANIFEST.json', Path.unlink, "MANIFEST.json cannot be read (FileNotFoundError)"),
    'manifest cut': ('MANIFEST.json', '{"format": 1', "MANIFEST.json cannot be read (JSONDecodeError)"),
    'manifest that is a list': ('MANIFEST.json', '[]', "MANIFEST.json cannot be read (TypeError)"),
    'manifest nested deeply': ('MANIFEST.json', NESTED, "MANIFEST.json cannot be read (RecursionError)"),
    'manifest without parts': (
        'MANIFEST.json', '{"format": 2, "files": {}}', "MANIFEST.json cannot be read (KeyError)"),
    'other parts in the manifest': (
        'MANIFEST.json', two_parts, "MANIFEST.json has changed since it was written (sha256)"),
    'path in the manifest': ('MANIFEST.json', MANIFEST_OF_ANOTHER_FOLDER, "../step-6/vocab.json is missing"),
    'earlier format': ('MANIFEST.json', '{"format": 1}', "format 1, which only the versions before December 2026 "),
    'later format': ('MANIFEST.json', '{"format": 3}', "format 3, this code reads 2")}

@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(cut, untouched, capsys, damage):
    name, harm, reason = DAMAGE[damage]
    path = Path(cut.out, 'step-8', name)
    if isinstance(harm, str):
        path.write_text(harm)
    else:
        harm(path)
    goes_on_to_the_same_end(cut, untouched)
    printed = capsys.readouterr().out
    assert f"{cut.out}/step-8: {reason}" in printed and f": going back to {cut.out}/step-6" in printed

def test_every_file_of_a_checkpoint_is_in_its_manifest(cut):
    folder = Path(cut.out, 'step-8')
    files = json.loads((folder / 'MANIFEST.json').read_text())['files']
    assert {*files, 'MANIFEST.json'} == {p.name for p in folder.iterdir()}
    assert {p.suffix for p in folder.iterdir()} == {'.json', '.safetensors'} # no pickle

def test_all_bad_is_refused_and_never_from_scratch(cut):
    for name in ('step-8', 'step-6'):
        flip(Path(cut.out, name, 'part-00000.safetensors'))
    before = {p: p.stat().st_mtime_ns for p in Path(cut.out).rglob('*')}
    reason = "part-00000.safetensors has changed since it was written (sha256)"
    out = cut.out
    with pytest.raises(Refused) as refusal:
        train.main(cut)
    assert str(refusal.value) == (f"no checkpoint of {out} verifies: {out}/step-8: {reason}; {out}/step-6: {reason}; "
                                  "to start anew, move the folder away")
    assert {p: p.stat().st_mtime_ns for p in Path(cut.out).rglob('*')} == before

def test_a_finished_folder_without_its_state_is_not_trained_over(cut, untouched):
    train.main(cut)
    for folder in checkpoint.folders(cut.out):
        shutil.rmtree(folder)
    with pytest.raises(Refused, match="holds a finished model without its step-N; choose another --out"):
        train.main(cut)
    assert weights_of(cut.out) == weights_of(untouched)

def test_leftovers_are_ignored_and_swept_away(cut, untouched):
    leftover = Path(cut.out, 'step-10.tmp')
    shutil.copytree(Path(cut.out, 'step-8'), leftover)
    assert checkpoint.newest(cut.out).name == 'step-8'
    goes_on_to_the_same_end(cut, untouched)
    assert not leftover.exists() and [f.name for f in checkpoint.folders(cut.out)] == ['step-10', 'step-8']

def test_a_newer_folder_that_is_bad_does_not_push_good_ones_out(cut):
    """No run made step-100; the two newest folders of this run stay."""
    shutil.copytree(Path(cut.out, 'step-8'), Path(cut.out, 'step-100'))
    flip(Path(cut.out, 'step-100', 'state.json'))
    train.main(cut)
    assert [f.name for f in checkpoint.folders(cut.out)] == ['step-10', 'step-8']
    assert all(checkpoint.why_unusable(f) is None for f in checkpoint.folders(cut.out))

# ---- what is not saved, and what is not loaded

def test_weights_or_moments_that_are_not_finite_are_not_saved(cut, monkeypatch):
    for name in ('norm.weight', 'norm.weight.exp_avg'):
        copy = checkpoint._copy
        def poisoned_copy(rows, copies, copy=copy, name=name):
            copy(rows, copies)
            copies[name][0] = float('nan')
        monkeypatch.setattr(checkpoint, '_copy', poisoned_copy)
        with pytest.raises(Refused) as refusal:
            train.main(cut)
        assert str(refusal.value) == (f"step 10: {name} is not finite, not saved; "
                                      f"the last good one is {cut.out}/step-8")
        assert sorted((f.name for f in Path(cut.out).glob('step-*')), reverse=True) == ['step-8', 'step-6']
        monkeypatch.undo()

def test_a_full_disk_is_named_with_the_bytes_and_older_ones_stay(cut, monkeypatch):
    full = shutil.disk_usage(cut.out)._replace(free=1234)
    monkeypatch.setattr(checkpoint.shutil, 'disk_usage', lambda path: full)
    with pytest.raises(Refused, match=r": a checkpoint needs [\d,]+ bytes, 1,234 are free; the older ones are intact"):
        train.main(cut)
    assert [f.name for f in checkpoint.folders(cut.out)] == ['step-8', 'step-6']
    assert checkpoint.why_unusable(Path(cut.out, 'step-8')) is None

def test_tensors_of_another_model_are_refused(cut):
    folder = Path(cut.out, 'step-8')
    manifest = checkpoint.read_manifest(folder)
    model = checkpoint.read_model(folder)
    for name in ('norm.weight.exp_avg', 'other.exp_avg', 'norm.weight'): # of another shape, of another name
        changed = {**manifest, 'tensors': {**manifest['tensors'], name: [3]}}
        (folder / 'MANIFEST.json').write_text(json.dumps(changed))
        with pytest.raises(Refused, match=rf"{name} \(3,\) fits no parameter of the model"):
            checkpoint.load(folder, model, train.make_optimizer(model, 1e-3))
    for prefix in ('norm.weight', 'norm.weight.exp_avg'):
        tensors = {name: shape for name, shape in manifest['tensors'].items() if not name.startswith('norm.weight')}
        if prefix == 'norm.weight.exp_avg':
            tensors['norm.weight'] = manifest['tensors']['norm.weight']
        (folder / 'MANIFEST.json').write_text(json.dumps({**manifest, 'tensors': tensors}))
        with pytest.raises(Refused, match=r"step-8: nothing for norm.weight"):
            checkpoint.load(folder, model, train.make_optimizer(model, 1e-3))

# ---- saved while training goes on

def test_an_error_in_the_loop_loses_no_checkpoint_that_was_begun(corpus, untouched, tmp_path, monkeypatch):
    cfg = settings(corpus, tmp_path / 'run')
    write_part = checkpoint.write_part
    is_raised = threading.Event()
    def write_late(path, header, data):
        assert is_raised.wait(60)
        return write_part(path, header, data)
    def fail(step):
        if step == 3: # fetched while the first checkpoint is being written
            is_raised.set()
            raise ZeroDivisionError
    with monkeypatch.context() as patch, before_each_fetch(fail), pytest.raises(ZeroDivisionError):
        patch.setattr(checkpoint, 'write_part', write_late)
        train.main(cfg)
    assert [folder.name for folder in checkpoint.folders(cfg.out)] == ['step-2']
    goes_on_to_the_same_end(cfg, untouched)

def test_training_goes_on_while_a_checkpoint_is_written(corpus, untouched, tmp_path, monkeypatch):
    """The thread that writes step 7 waits until step 10 is about to be fetched, when the weights are others."""
    cfg = settings(corpus, tmp_path / 'run', save_every=7)
    is_later = threading.Event()
    write_part = checkpoint.write_part
    def write_late(path, header, data):
        assert is_later.wait(600)
        return write_part(path, header, data)
    monkeypatch.setattr(checkpoint, 'write_part', write_late)
    monkeypatch.setattr(checkpoint, 'KEEP', 10)
    with before_each_fetch(lambda step: is_later.set() if step == 9 else None):
        train.main(cfg)
    seven, ten = (checkpoint_tensors(Path(cfg.out, name)) for name in ('step-7', 'step-10'))
    assert not torch.equal(seven['embed'], ten['embed'])
    shutil.rmtree(Path(cfg.out, 'step-10'))
    Path(cfg.out, 'settings.json').unlink()
    goes_on_to_the_same_end(cfg, untouched)

def test_the_rows_of_parts_are_those_of_chunks():
    for n in range(12):
        for parts in range(1, 8):
            rows = [list(range(*checkpoint.rows_of_part(n, part, parts))) for part in range(parts)]
            chunks = [chunk.tolist() for chunk in torch.arange(n).chunk(parts)] if n else []
            assert [part for part in rows if part] == chunks and sum(rows, []) == list(range(n))

def test_a_part_is_the_file_that_safetensors_reads(tmp_path):
    tensors = {'b': torch.randn(3, 5), 'a': torch.randn(2).bfloat16(), 'none': torch.zeros(0, 4)}
    header = {}
    end = 0
    for name, dtype in (('b', 'F32'), ('none', 'F32'), ('a', 'BF16')):
        begin = end
        end += tensors[name].nbytes
        header[name] = {'dtype': dtype, 'shape': list(tensors[name].shape), 'data_offsets': [begin, end]}
    data = b''.join(tensors[name].view(torch.uint8).numpy().tobytes() for name in header)
    path = tmp_path / 'part.safetensors'
    assert checkpoint.write_part(path, header, np.frombuffer(data, np.uint8)) == fingerprint(path)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], tensors[name]) for name in tensors)

# ---- the model at the end

@pytest.mark.parametrize('name, harm, reason', [
    ('model.safetensors', flip, 'model.safetensors has changed since it was written (sha256)'),
    ('model.safetensors', Path.unlink, 'model.safetensors is missing'),
    pytest.param('config.json', truncate, 'config.json has 100 bytes, not ', marks=pytest.mark.slow),
    pytest.param('vocab.json', Path.unlink, 'vocab.json is missing', marks=pytest.mark.slow),
    pytest.param('MANIFEST.json', Path.unlink, 'MANIFEST.json cannot be read (FileNotFoundError)',
                 marks=pytest.mark.slow)])
def test_the_model_of_a_finished_run_is_written_again(cut, untouched, capsys, name, harm, reason):
    train.main(cut)
    harm(Path(cut.out, name))
    capsys.readouterr()
    goes_on_to_the_same_end(cut, untouched)
    printed = capsys.readouterr().out
    assert f"{cut.out}: {reason}" in printed and f"; writing the model again from {cut.out}/step-10" in printed
    assert checkpoint.why_damaged(cut.out) is None
    train.main(cut)
    assert "finished before, at step 10; nothing to do" in capsys.readouterr().out

def test_a_run_that_an_earlier_version_finished_is_left_alone(cut, untouched, capsys):
    train.main(cut)
    folder = checkpoint.folders(cut.out)[0]
    (folder / 'MANIFEST.json').write_text('{"format": 1}')
    Path(cut.out, 'MANIFEST.json').unlink() # these versions left none
    capsys.readouterr()
    train.main(cut)
    assert "finished before, at step 10; nothing to do" in capsys.readouterr().out
    Path(cut.out, 'settings.json').unlink() # killed before it exported its model
    train.main(cut)
    printed = capsys.readouterr().out
    assert 'step-10: format 1, which only the versions before' in printed
    assert f'going back to {cut.out}/step-8' in printed
    assert weights_of(cut.out) == weights_of(untouched)

def test_a_model_that_changed_is_refused_by_whoever_loads_it(cut):
    train.main(cut)
    remedy = ("; the command that made the model writes it again from its last step-N; where the change was meant, "
              "remove MANIFEST.json")
    flip(Path(cut.out, 'model.safetensors'))
    with pytest.raises(Refused) as refusal:
        train.GPT.from_pretrained(cut.out)
    why = 'model.safetensors has changed since it was written (sha256)'
    assert str(refusal.value) == f"{cut.out}: {why}{remedy}"
    vocab = Path(cut.out, 'vocab.json')
    vocab.write_text(vocab.read_text() + ' ')
    with pytest.raises(Refused, match='vocab.json has [0-9]+ bytes, not [0-9]+; the command that made the model'):
        vocabulary(cut.out)
    Path(cut.out, 'MANIFEST.json').unlink()
    assert vocabulary(cut.out)[0].size == 271

def test_a_checkpoint_is_no_model_and_becomes_one(cut, tmp_path):
    folder = Path(cut.out, 'step-8')
    with pytest.raises(Refused) as refusal:
        train.GPT.from_pretrained(folder)
    assert str(refusal.value) == (f"{folder}: a checkpoint, whose weights are in parts; "
                                  f"python -m training.export --model={folder} --out=NEW_FOLDER makes a model of it")
    export.main(export.Config(model=str(folder), out=str(tmp_path / 'model'), dtype='float32'))
    model = train.GPT.from_pretrained(tmp_path / 'model')
    saved = checkpoint_tensors(folder)
    assert all(torch.equal(p, saved[name]) for name, p in model.named_parameters())
    flip(folder / 'part-00000.safetensors')
    with pytest.raises(Refused, match='part-00000.safetensors has changed since it was written'):
        export.main(export.Config(model=str(folder), out=str(tmp_path / 'other')))

# ---- signals

def test_a_signal_that_comes_twice_at_once_is_one_and_a_later_one_ends_the_process(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(processes.time, 'monotonic', lambda: clock[0])
    ended = []
    def end(number, frame):
        ended.append(number)
    old_handlers = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with signals() as stop_signals:
            os.kill(os.getpid(), signal.SIGHUP)
            clock[0] = processes.REPEATED
            os.kill(os.getpid(), signal.SIGTERM) # torchrun's, beside the scheduler's
            assert stop_signals == [signal.SIGHUP, signal.SIGTERM] and not ended
            clock[0] += 0.1
            os.kill(os.getpid(), signal.SIGTERM)
            assert ended == [signal.SIGTERM]
        signal.signal(signal.SIGHUP, signal.SIG_IGN) # as nohup starts a command
        with signals() as stop_signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop_signals == [] and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
