"""training/log.py: log.jsonl has each step once, with the time that it took, and goes to Weights & Biases too."""
# ruff: noqa: F401, F811 (fixtures of test_train)
import importlib.machinery
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_train import (
    after,
    config,
    corpus,
    failing_at,
    interrupted_after,
    rows_of,
    small,
)

import train


class FakeWandb:
    """What train.py uses of the package."""
    __spec__ = importlib.machinery.ModuleSpec('wandb', None)
    def __init__(self):
        self.runs, self.rows = [], []
    def init(self, **settings):
        self.runs.append(settings)
        def log(row, step):
            self.rows.append((step, row))
        return SimpleNamespace(id=settings['id'] or 'new', log=log)

def test_log_has_each_step_once_after_a_kill_past_the_checkpoint(config):
    cfg = config(max_steps=10, save_every=4)
    with failing_at(8), pytest.raises(ZeroDivisionError):
        train.main(cfg)
    with open(Path(cfg.out, 'log.jsonl'), 'a') as log:
        log.write('{"step": 9, "lo') # a line cut short
    train.main(cfg)
    assert [r['step'] for r in rows_of(cfg.out)] == [*range(1, 11), 10]

def test_damaged_lines_stop_no_resume_and_are_kept(config, capsys):
    cfg = config(max_steps=6, save_every=4)
    with failing_at(5), pytest.raises(ZeroDivisionError):
        train.main(cfg)
    path = Path(cfg.out, 'log.jsonl')
    lines = path.read_bytes().splitlines(keepends=True)
    nested = b'[' * 100_000
    damage = [line + b'\n' for line in (b'{"step": 2, "lo', b'\xff\xfe', nested, b'[1]', b'{"step": null}', b'{}', b'')]
    path.write_bytes(b''.join([lines[0], *damage, *lines[1:]]))
    train.main(cfg)
    assert f"{path}: line 2, 3, 4, 5, 6, 7, 8 is damaged: moved to {path}.damaged" in capsys.readouterr().out
    assert [row['step'] for row in rows_of(cfg.out)] == [*range(1, 7), 6]
    assert Path(f'{path}.damaged').read_bytes() == b''.join(damage)

def test_a_last_line_without_its_end_is_kept_and_the_next_one_stands_below_it(config):
    cfg = config(max_steps=6, save_every=4)
    with failing_at(5), pytest.raises(ZeroDivisionError):
        train.main(cfg)
    path = Path(cfg.out, 'log.jsonl')
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join(lines[:4]).rstrip(b'\n'))
    train.main(cfg)
    assert [row['step'] for row in rows_of(cfg.out)] == [*range(1, 7), 6]

def test_wandb_gets_the_log_and_a_cut_run_goes_on_there(config, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', fake := FakeWandb())
    cfg = config(wandb='speech', max_steps=4)
    with interrupted_after(2):
        train.main(cfg)
    train.main(cfg)
    assert [(run['project'], run['id'], run['config']['max_steps']) for run in fake.runs] == [
        ('speech', None, 4), ('speech', 'new', 4)]
    assert [row for _, row in fake.rows] == rows_of(cfg.out) and [step for step, _ in fake.rows] == [1, 2, 3, 4, 4]

def test_every_step_is_given_the_time_it_took_and_no_evaluation(corpus, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(train.time, 'perf_counter', lambda: clock[0])
    monkeypatch.setattr(train, 'fetch', after(0.05, clock, train.fetch)) # one a step
    monkeypatch.setattr(train, 'evaluate', after(10.0, clock, train.evaluate))
    train.main(small(corpus, tmp_path / 'run', max_steps=6, eval_every=3))
    rows = map(json.loads, (tmp_path / 'run' / 'log.jsonl').read_text().splitlines())
    steps = [row for row in rows if 'ms' in row][1:]
    assert [(row['ms'], row['data']) for row in steps] == [(50.0, 1.0)] * 5
