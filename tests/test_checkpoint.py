"""training/checkpoint.py: whatever happens to a run or to its files, the same command ends where an untouched run ends."""
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_train import losses_of, make_corpus, make_tokenizer, small, state_of, weights_of

import train
from configurator import Refused
from training import checkpoint
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
    fetch = train.fetch
    def failing(loader, c, step, *rest):
        return fetch(loader, c, step, *rest) if step < 9 else 1 / 0
    train.fetch = failing
    try:
        train.main(cfg)
    except ZeroDivisionError:
        pass
    finally:
        train.fetch = fetch
    assert [f.name for f in checkpoint.folders(cfg.out)] == ['step-8', 'step-6']
    return cfg

def goes_on_to_the_same_end(cfg, untouched):
    train.main(cfg)
    assert weights_of(cfg.out) == weights_of(untouched) and state_of(cfg.out) == state_of(untouched)
    assert losses_of(cfg.out) == losses_of(untouched)

# ---- kills

def slow_run(cfg):
    """A run whose saves take as long as its steps, so that kills land in both."""
    save = checkpoint.save_file
    def slowly(*args):
        time.sleep(0.03)
        save(*args)
        time.sleep(0.03)
    checkpoint.save_file = slowly
    train.main(cfg)

def killed(cfg, after):
    """Runs in a process of its own, killed `after` seconds from its start; was it in the middle of a save?"""
    process = multiprocessing.get_context('fork').Process(target=slow_run, args=(cfg,))
    process.start()
    process.join(after)
    process.kill() # SIGKILL
    process.join()
    return any(Path(cfg.out).glob('step-*.tmp'))

def kill_at(corpus, untouched, tmp_path, moments):
    start = time.monotonic()
    killed(settings(corpus, tmp_path / 'measured'), 60)
    duration, in_save = time.monotonic() - start, 0
    for i in range(moments):
        cfg = settings(corpus, tmp_path / str(i))
        in_save += killed(cfg, random.Random(i).uniform(0.1, 1) * duration)
        goes_on_to_the_same_end(cfg, untouched)
    return in_save

def test_a_killed_run_ends_as_an_untouched_one(corpus, untouched, tmp_path):
    kill_at(corpus, untouched, tmp_path, 4)

@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_ends_as_an_untouched_one(corpus, untouched, tmp_path):
    assert kill_at(corpus, untouched, tmp_path, 20) >= 5 # of them inside a save

# ---- damage

def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

DAMAGE = {
    'flipped bit in the weights': (lambda f: flip(f / 'model.safetensors'),
                                   "model.safetensors has changed since it was written (sha256)"),
    'flipped bit in the moments': (lambda f: flip(f / 'state.safetensors'),
                                   "state.safetensors has changed since it was written (sha256)"),
    'truncated': (lambda f: (f / 'state.safetensors').write_bytes((f / 'state.safetensors').read_bytes()[:100]),
                  "state.safetensors has 100 bytes, not "),
    'missing file': (lambda f: (f / 'vocab.json').unlink(), "vocab.json is missing"),
    'no manifest': (lambda f: (f / 'MANIFEST.json').unlink(), "MANIFEST.json cannot be read (FileNotFoundError)"),
    'manifest cut': (lambda f: (f / 'MANIFEST.json').write_text('{"format": 1'),
                     "MANIFEST.json cannot be read (JSONDecodeError)"),
    'manifest that is a list': (lambda f: (f / 'MANIFEST.json').write_text('[]'),
                                "MANIFEST.json cannot be read (TypeError)"),
    'path in the manifest': (lambda f: (f / 'MANIFEST.json').write_text(
        '{"format": 1, "files": {"../step-6/vocab.json": {"bytes": 1, "sha256": ""}}}'),
                             "../step-6/vocab.json is missing"),
    'later format': (lambda f: (f / 'MANIFEST.json').write_text('{"format": 2}'), "format 2, this code reads 1")}

@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(cut, untouched, capsys, damage):
    harm, why = DAMAGE[damage]
    harm(Path(cut.out, 'step-8'))
    goes_on_to_the_same_end(cut, untouched)
    said = capsys.readouterr().out
    assert f"{cut.out}/step-8: {why}" in said and f": going back to {cut.out}/step-6" in said

def test_every_file_of_a_checkpoint_is_in_its_manifest(cut):
    folder = Path(cut.out, 'step-8')
    files = json.loads((folder / 'MANIFEST.json').read_text())['files']
    assert {*files, 'MANIFEST.json'} == {p.name for p in folder.iterdir()}
    assert {p.suffix for p in folder.iterdir()} == {'.json', '.safetensors'} # no pickle

def test_all_bad_is_refused_and_never_from_scratch(cut):
    for name in ('step-8', 'step-6'):
        flip(Path(cut.out, name, 'model.safetensors'))
    before = {p: p.stat().st_mtime_ns for p in Path(cut.out).rglob('*')}
    why = "model.safetensors has changed since it was written (sha256)"
    out = cut.out
    with pytest.raises(Refused) as refusal:
        train.main(cut)
    assert str(refusal.value) == (f"no checkpoint of {out} verifies: {out}/step-8: {why}; {out}/step-6: {why}; "
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
    left = Path(cut.out, 'step-10.tmp')
    shutil.copytree(Path(cut.out, 'step-8'), left)
    assert checkpoint.newest(cut.out).name == 'step-8'
    goes_on_to_the_same_end(cut, untouched)
    assert not left.exists() and [f.name for f in checkpoint.folders(cut.out)] == ['step-10', 'step-8']

def test_a_newer_folder_that_is_bad_does_not_push_good_ones_out(cut):
    """step-100 is of nobody; what is kept are the two newest of this run."""
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
    for where in ('norm.weight', 'norm.weight.exp_avg'):
        model, optimizer = parts(folder)
        checkpoint.load_optimizer(folder, model, optimizer)
        with torch.no_grad():
            (optimizer.state[model.norm.weight]['exp_avg'] if 'exp' in where else model.norm.weight)[0] = float('nan')
        with pytest.raises(Refused) as refusal:
            checkpoint.save(cut.out, 9, model, optimizer, {}, vocab, cut.tokenizer)
        assert str(refusal.value) == f"step 9: {where} is not finite, not saved; the last good one is {folder}"
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
    whole = load_file(folder / 'state.safetensors')
    for change, message in (
            ({'norm.weight.exp_avg': torch.zeros(3)}, r"norm.weight.exp_avg \(3,\) fits no parameter of the model"),
            ({'other.exp_avg': torch.zeros(3)}, r"other.exp_avg \(3,\) fits no parameter of the model")):
        save_file({**whole, **change}, folder / 'state.safetensors')
        with pytest.raises(Refused, match=message):
            checkpoint.load_optimizer(folder, model, optimizer)
    save_file({k: v for k, v in whole.items() if not k.startswith('norm.weight')}, folder / 'state.safetensors')
    with pytest.raises(Refused, match=r"state.safetensors: nothing for norm.weight"):
        checkpoint.load_optimizer(folder, *parts(folder))

def test_a_signal_that_comes_twice_at_once_is_one_and_a_later_one_ends_the_process(monkeypatch):
    ended = []
    old = {number: signal.signal(number, lambda number, _: ended.append(number)) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with signals() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM) # torchrun's, beside the scheduler's
            assert asked == [signal.SIGHUP, signal.SIGTERM] and not ended
            monkeypatch.setattr(checkpoint, 'REPEATED', 0.0)
            os.kill(os.getpid(), signal.SIGTERM)
            assert ended == [signal.SIGTERM]
        signal.signal(signal.SIGHUP, signal.SIG_IGN) # as nohup starts a command
        with signals() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
        assert asked == [] and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
