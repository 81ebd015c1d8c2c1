"""locks.py: one process writes in a place at a time, whatever the disk; a killed one leaves it free."""
# ruff: noqa: F401, F811 (fixtures of other tests)
import errno
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import soundfile
from small import make_items, make_model, make_tokenizer, make_units, speech_like, waiting_in
from test_dpo import inputs, small_config
from test_encoders import hubert
from test_make_spoken import tts
from test_tasks import make_storycloze
from test_train import corpus, losses_of, on_ranks, small

import align
import dpo
import interleave
import locks
import tokenize_speech
import train
from configurator import Refused
from evaluation import results
from files import atomically, read_lines, write_json
from locks import Busy, Lock, writing_in
from tasks import make_spoken


@pytest.fixture
def speech(tmp_path):
    (tmp_path / 'audio').mkdir()
    for i in range(2):
        soundfile.write(tmp_path / 'audio' / f'{i}.wav', speech_like(1 + i, i), 16000)
    return tmp_path / 'audio'

def content(folder):
    """{path: bytes} of a folder, but for locks."""
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob('*'))
            if path.is_file() and path.suffix != '.lock' and path.name != '.lock'}

def assert_second_is_refused(module, name, work, out):
    """While one process has stopped in module.NAME, another one is refused in a line and changes nothing.

    Then the first one ends well, and the same command finds it done, without a lock.
    """
    with waiting_in(module, name, work) as (pid, _):
        before = content(out)
        start = time.monotonic()
        with pytest.raises(Busy, match=f'another process is writing here .pid {pid} on {socket.gethostname()}, since'):
            work()
        assert time.monotonic() - start < 60 # on a busy machine: the models that are loaded before
        assert content(out) == before
    assert not list(out.parent.rglob('*lock')), "a lock is left"

# --------------------------------------------------------------------------------------------------
# the lock

def test_a_lock_ends_with_its_process_also_where_that_is_killed(tmp_path):
    def hold():
        with writing_in(tmp_path / 'x'):
            os.getppid()
    with waiting_in(os, 'getppid', hold) as (pid, _):
        with pytest.raises(Busy, match=f'x: another process is writing here .pid {pid} '):
            writing_in(tmp_path / 'x')
        os.kill(pid, signal.SIGKILL)
    assert (tmp_path / 'x' / '.lock').exists()
    start = time.monotonic()
    with writing_in(tmp_path / 'x'):
        assert json.loads((tmp_path / 'x' / '.lock').read_text())['pid'] == os.getpid()
    assert time.monotonic() - start < 5 and not os.listdir(tmp_path / 'x')

def test_a_lock_waits_as_long_as_it_is_told(tmp_path):
    first = Lock(tmp_path / 'a', 'a')
    with pytest.raises(Busy):
        Lock(tmp_path / 'a', 'a')
    start = time.monotonic()
    threading.Timer(0.5, first.close).start()
    with Lock(tmp_path / 'a', 'a', wait=20):
        assert time.monotonic() - start >= 0.5
        assert json.loads((tmp_path / 'a').read_text())['pid'] == os.getpid()

@pytest.mark.parametrize('place', ['file/x', '/proc/x'])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / 'file').write_text('')
    with pytest.raises(Refused, match='cannot be written'):
        writing_in(tmp_path / place)

def without_flock(*_):
    raise OSError(errno.ENOSYS, 'Function not implemented')

@pytest.mark.parametrize('is_alive', [True, False])
@pytest.mark.parametrize('has_flock', [True, False])
def test_where_locks_do_not_reach_other_machines_the_heartbeat_decides(tmp_path, monkeypatch, has_flock, is_alive):
    monkeypatch.setattr(locks, 'BEAT', 0.2)
    monkeypatch.setattr(locks, '_reaches_all', lambda path: False)
    if not has_flock:
        monkeypatch.setattr(locks.fcntl, 'flock', without_flock)
    path = tmp_path / 'x' / '.lock'
    path.parent.mkdir()
    path.write_text('{"host": "node7", "pid": 12, "since": "today", "kernel": "another"}')
    stop = threading.Event()
    def touch():
        while is_alive and not stop.wait(0.05):
            os.utime(path)
    heart = threading.Thread(target=touch)
    heart.start()
    try:
        if is_alive:
            with pytest.raises(Busy, match='pid 12 on node7, since today'):
                writing_in(path.parent)
        else:
            writing_in(path.parent).close()
    finally:
        stop.set()
        heart.join()

@pytest.mark.parametrize('kind, options, expected', [
    ('nfs4', 'rw,hard,local_lock=none,addr=1', True), ('nfs', 'rw,local_lock=flock', False),
    ('lustre', 'rw,flock', True), ('lustre', 'rw,localflock', False), ('beegfs', 'rw', False), ('ext4', 'rw', True)])
def test_whether_locks_reach_other_machines_is_read_from_the_mounts(tmp_path, monkeypatch, kind, options, expected):
    mounts = f'/dev/a / beegfs rw 0 0\nserver:/a {tmp_path} {kind} {options} 0 0\nserver:/b {tmp_path}/xy nfs rw 0 0\n'
    monkeypatch.setattr(Path, 'read_text', lambda path: mounts)
    assert locks._reaches_all(tmp_path / 'x' / '.lock') is expected

def test_an_old_lock_of_another_machine_is_taken_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, '_reaches_all', lambda path: False)
    path = tmp_path / '.lock'
    path.write_text('{"host": "node7", "pid": 12, "kernel": "another"}')
    os.utime(path, (0, 0))
    start = time.monotonic()
    writing_in(tmp_path).close()
    assert time.monotonic() - start < 5

def test_without_flock_a_living_process_of_this_machine_is_seen_by_its_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.fcntl, 'flock', without_flock)
    monkeypatch.setattr(locks, 'BEAT', 0.1)
    with writing_in(tmp_path), pytest.raises(Busy):
        writing_in(tmp_path)
    writing_in(tmp_path).close()

# --------------------------------------------------------------------------------------------------
# the stages

def test_two_trainings_on_one_folder(corpus, tmp_path):
    alone = small(corpus, tmp_path / 'alone', max_steps=4)
    train.main(alone)
    cfg = small(corpus, tmp_path / 'runs' / 'run', max_steps=4) # saves at its end alone: a thread changes files
    assert_second_is_refused(train, 'log_evaluation', lambda: train.main(cfg), Path(cfg.out))
    assert losses_of(cfg.out) == losses_of(alone.out)

def test_a_killed_training_goes_on_at_once(corpus, tmp_path):
    cfg = small(corpus, tmp_path / 'run', max_steps=4, save_every=2)
    with waiting_in(train, 'log_evaluation', lambda: train.main(cfg)) as (pid, _):
        os.kill(pid, signal.SIGKILL)
    train.main(cfg)
    assert [row[0] for row in losses_of(cfg.out)] == [1, 2, 3, 4]

def test_all_ranks_of_a_second_training_are_refused(corpus, tmp_path):
    cfg = small(corpus, tmp_path / 'run', max_steps=2)
    def work(rank):
        with pytest.raises(Refused, match=r'^rank 0 on [\w.-]+: .*: another process is writing here'):
            train.main(cfg)
    with waiting_in(train, 'log_evaluation', lambda: train.main(cfg)):
        assert on_ranks(2, work) == [0, 0]
    assert len(losses_of(cfg.out)) == 2

def test_two_preference_trainings_on_one_folder(inputs, tmp_path):
    cfg = small_config(inputs, tmp_path / 'runs' / 'run', max_steps=2)
    assert_second_is_refused(dpo, 'load_with_reference', lambda: dpo.main(cfg), Path(cfg.out))

def test_two_of_tokenize_align_and_interleave(speech, hubert, tmp_path):
    encode = tokenize_speech.Config(audio=str(speech), out=str(tmp_path / 'a' / 'units'), encoder=str(hubert), layer=2,
                                    shard_docs=1, device='cpu')
    assert_second_is_refused(tokenize_speech, 'write_units_shard', lambda: tokenize_speech.main(encode),
                             Path(encode.out))
    lines = [{'id': str(i), 'words': [['good', 0.1, 0.5], ['day', 0.5, 0.9]]} for i in range(2)]
    (tmp_path / 'words.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    words = align.Config(units=encode.out, words=str(tmp_path / 'words.jsonl'))
    assert_second_is_refused(align, 'write_words_shard', lambda: align.main(words), Path(encode.out, 'words'))
    make_tokenizer(tmp_path / 'tokenizer')
    tokens = interleave.Config(units=encode.out, tokenizer=str(tmp_path / 'tokenizer'), val_frac=0,
                               out=str(tmp_path / 'b' / 'tokens'))
    assert_second_is_refused(interleave, 'write_shard', lambda: interleave.main(tokens), Path(tokens.out))
    assert sum(n['documents'] for n in json.loads((Path(tokens.out) / 'info.json').read_text())['written'].values())

def test_a_folder_is_made_at_once_or_filled_bit_by_bit_by_one_process_alone(tmp_path):
    """As by interleave.py and by train.py, whichever is first; their locks have different names."""
    with atomically(tmp_path / 'x') as tmp:
        tmp.mkdir()
        with pytest.raises(Busy, match=f'{tmp_path}/x: another process is writing here .pid {os.getpid()} '):
            writing_in(tmp_path / 'x')
        assert not (tmp_path / 'x').exists()
    with writing_in(tmp_path / 'y'), pytest.raises(Busy, match='y: another process is writing here'):
        with atomically(tmp_path / 'y'):
            pass
    assert sorted(os.listdir(tmp_path)) == ['x']

def test_of_two_runs_that_begin_a_units_folder_at_once_one_is_refused(tmp_path):
    """Rank 1 of a run with other settings comes while the first one looks at the empty folder."""
    refusals = []
    def second():
        with pytest.raises(Refused) as e:
            tokenize_speech.open_folder(tmp_path, {'layer': 5}, rank=1, world=2)
        refusals.append(str(e.value))
    thread = threading.Thread(target=second)
    with Lock(tmp_path / '.settings.lock', tmp_path):
        thread.start()
        thread.join(0.5)
        tokenize_speech.begin_folder(tmp_path, {'layer': 4}, rank=0)
        assert not refusals
    thread.join()
    assert refusals == [f"{tmp_path}: begun with other settings (layer was 4, is now 5); take another --out, "
                        "or delete it"]
    assert json.loads((tmp_path / 'settings.json').read_text()) == {'layer': 4}

def test_ranks_of_one_tokenize_do_not_keep_each_other_out(tmp_path):
    with writing_in(tmp_path, 0), writing_in(tmp_path, 1), pytest.raises(Busy):
        writing_in(tmp_path, 1)

def test_two_fits_of_centroids(speech, hubert, tmp_path):
    cfg = tokenize_speech.Config(audio=str(speech), encoder=str(hubert), layer=2, device='cpu', fit_kmeans=3,
                                 kmeans=str(tmp_path / 'k' / 'new.safetensors'))
    assert_second_is_refused(tokenize_speech, 'fit_kmeans', lambda: tokenize_speech.main(cfg), Path(cfg.kmeans))

def test_two_of_make_spoken(tts, tmp_path):
    (tmp_path / 'text').mkdir()
    source = make_storycloze(tmp_path / 'text') / 'val.csv'
    cfg = make_spoken.Config(source=str(source), out=str(tmp_path / 'a' / 'spoken'), tts=tts, voices='a', workers=1)
    assert_second_is_refused(make_spoken, 'speak_all', lambda: make_spoken.main(cfg), Path(cfg.out))

def test_rows_of_two_evaluations_are_both_stored(tmp_path):
    def store(task):
        results.store(tmp_path, {'w': 'x'}, {f'{task}/T': {'value': 1}}, {task: [{'id': task}]}, {task: {}}, {})
    with waiting_in(results, 'write_json', lambda: store('blimp')) as (_, go_on):
        threading.Timer(0.5, go_on).start()
        store('storycloze')
    assert set(results.read_eval(tmp_path)['results']) == {'blimp/T', 'storycloze/T'}

def test_two_writers_of_one_name_and_a_name_that_is_taken_meanwhile(tmp_path):
    with atomically(tmp_path / 'a') as tmp:
        tmp.write_text('1')
        with pytest.raises(Busy), atomically(tmp_path / 'a'):
            pass
    assert (tmp_path / 'a').read_text() == '1'
    with pytest.raises(Busy, match='another process has written it meanwhile'), atomically(tmp_path / 'b') as tmp:
        tmp.mkdir()
        (tmp_path / 'b' / 'c').mkdir(parents=True)
    assert os.listdir(tmp_path / 'b') == ['c'] and len(os.listdir(tmp_path)) == 2

def test_locks_of_killed_ranks_are_removed_and_those_of_others_are_not(tmp_path):
    for name in ('.1.lock', '.2.lock'):
        (tmp_path / name).write_text('{"host": "a", "pid": 1, "kernel": "another"}')
    with Lock(tmp_path / '.3.lock', tmp_path):
        locks.remove_left_locks(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ['.3.lock']
