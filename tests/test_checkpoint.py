"""training/checkpoint.py: whatever happens to a run or its files, the same command ends where an untouched run ends."""
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import killed
from test_train import (
    before_each_fetch,
    failing_at,
    losses_of,
    make_corpus,
    make_tokenizer,
    small,
    state_of,
    weights_of,
)

import train
from configurator import Refused
from training import checkpoint, processes
from training.processes import signals
from vocab import Vocab

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
    with failing_at(9), pytest.raises(ZeroDivisionError):
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

    A file `fetched` is written before each step, so that kills also come between saves; the moments are written in two
    halves, so that kills also leave a file of which a part is missing.
    """
    def mark(step):
        Path(cfg.out, 'fetched').write_text(str(step))
    def save_in_halves(tensors, path):
        save_file(tensors, path)
        data = path.read_bytes()
        path.write_bytes(data[:len(data) // 2])
        with open(path, 'ab') as file:
            file.write(data[len(data) // 2:])
    checkpoint.save_file = save_in_halves # in a process of its own
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

def truncate(path):
    path.write_bytes(path.read_bytes()[:100])

NESTED = '[' * 200_000
MANIFEST_OF_ANOTHER_FOLDER = '{"format": 1, "files": {"../step-6/vocab.json": {"bytes": 1, "sha256": ""}}}'
# what is done to which file, and what is said of it
DAMAGE = {
    'flipped bit in the weights': (
        'model.safetensors', flip, "model.safetensors has changed since it was written (sha256)"),
    'flipped bit in the moments': (
        'state.safetensors', flip, "state.safetensors has changed since it was written (sha256)"),
    'truncated': ('state.safetensors', truncate, "state.safetensors has 100 bytes, not "),
    'missing file': ('vocab.json', Path.unlink, "vocab.json is missing"),
    'no manifest': ('MANIFEST.json', Path.unlink, "MANIFEST.json cannot be read (FileNotFoundError)"),
    'manifest cut': ('MANIFEST.json', '{"format": 1', "MANIFEST.json cannot be read (JSONDecodeError)"),
    'manifest that is a list': ('MANIFEST.json', '[]', "MANIFEST.json cannot be read (TypeError)"),
    'manifest nested deeply': ('MANIFEST.json', NESTED, "MANIFEST.json cannot be read (RecursionError)"),
    'path in the manifest': ('MANIFEST.json', MANIFEST_OF_ANOTHER_FOLDER, "../step-6/vocab.json is missing"),
    'later format': ('MANIFEST.json', '{"format": 2}', "format 2, this code reads 1")}

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
        flip(Path(cut.out, name, 'model.safetensors'))
    before = {p: p.stat().st_mtime_ns for p in Path(cut.out).rglob('*')}
    reason = "model.safetensors has changed since it was written (sha256)"
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

def parts(folder):
    model = train.GPT.from_pretrained(folder)
    optimizer = train.make_optimizer(model, 1e-3)
    return model, optimizer

def test_weights_or_moments_that_are_not_finite_are_not_saved(cut):
    folder = Path(cut.out, 'step-8')
    vocab = Vocab.load(folder)
    for name in ('norm.weight', 'norm.weight.exp_avg'):
        model, optimizer = parts(folder)
        checkpoint.load_optimizer(folder, model, optimizer)
        weight = model.norm.weight
        tensor = weight if name == 'norm.weight' else optimizer.state[weight]['exp_avg']
        with torch.no_grad():
            tensor[0] = float('nan')
        with pytest.raises(Refused) as refusal:
            checkpoint.save(cut.out, 9, model, optimizer, {}, vocab, cut.tokenizer)
        assert str(refusal.value) == f"step 9: {name} is not finite, not saved; the last good one is {folder}"
        assert [f.name for f in checkpoint.folders(cut.out)] == ['step-8', 'step-6']

def test_a_full_disk_is_named_with_the_bytes_and_older_ones_stay(cut, monkeypatch):
    full = shutil.disk_usage(cut.out)._replace(free=1234)
    monkeypatch.setattr(checkpoint.shutil, 'disk_usage', lambda path: full)
    with pytest.raises(Refused, match=r": a checkpoint needs [\d,]+ bytes, 1,234 are free; the older ones are intact"):
        train.main(cut)
    assert [f.name for f in checkpoint.folders(cut.out)] == ['step-8', 'step-6']
    assert checkpoint.why_unusable(Path(cut.out, 'step-8')) is None

def test_moments_of_another_model_are_refused(cut):
    folder = Path(cut.out, 'step-8')
    model, optimizer = parts(folder)
    saved = load_file(folder / 'state.safetensors')
    for name in ('norm.weight.exp_avg', 'other.exp_avg'): # of another shape, of another name
        save_file({**saved, name: torch.zeros(3)}, folder / 'state.safetensors')
        with pytest.raises(Refused, match=rf"{name} \(3,\) fits no parameter of the model"):
            checkpoint.load_optimizer(folder, model, optimizer)
    without_norm = {name: value for name, value in saved.items() if not name.startswith('norm.weight')}
    save_file(without_norm, folder / 'state.safetensors')
    with pytest.raises(Refused, match=r"state.safetensors: nothing for norm.weight"):
        checkpoint.load_optimizer(folder, *parts(folder))

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
