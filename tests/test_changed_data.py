"""Data that changes behind a run: between a cut and its resume, or between two stages.

case                                                      outcome
3a  a token shard flipped before a resume                 refused by name and hash, on every rank
3b  the same with the old time put back                   refused: a resume reads all (--verify)
3c  a plan edited, or exchanged for another whole one     refused
3d  shards copied, so that index.json is the oldest       read once, then as fast as before
3e  units, runs, offsets or meta of a shard changed       interleave.py and all readers refuse the file by name
3f  a shard exchanged for a whole other one               refused
3g  words changed behind an unchanged info.json           refused
3h  an audio file exchanged before a rerun of a cut       refused by name, also with the old size and time
3i  an audio file touched, moved or removed since         goes on
3j  audio exchanged before align.py hears it              the document is refused as AUDIO_CHANGED
"""
# ruff: noqa: F811 (fixtures of test_train)
import dataclasses
import json
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small import K, make_tokenizer, speech_like
from test_encoders import hubert
from test_train import config, corpus, interrupted_after, make_corpus, on_ranks

import align
import data
import interleave
import tokenize_speech
import train
from configurator import Refused
from data import Shards
from files import hash_of_shards, read_json, write_hashes, write_json
from hub.tokenizer import TextTokenizer
from speech.units import Units, write_units_shard
from speech.words import Words
from training import checkpoint

__all__ = ['config', 'corpus', 'hubert'] # fixtures

def flip(path, place, restore_time=False):
    """Changes a byte; place: from the end where it is negative."""
    times = os.stat(path)
    with open(path, 'r+b') as f:
        f.seek(place, os.SEEK_SET if place >= 0 else os.SEEK_END)
        byte = f.read(1)
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte[0] ^ 1]))
    if restore_time:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

# --------------------------------------------------------------------------------------------------
# token shards and plans

@pytest.fixture
def cut(corpus, config, tmp_path):
    """Settings of a run that was stopped in the middle, with data of its own."""
    cfg = config(data=str(make_corpus(tmp_path / 'made', TextTokenizer(corpus.parent / 'tokenizer'))))
    with interrupted_after(6):
        train.main(cfg)
    return cfg

def shard_of(cfg):
    return Path(cfg.data, 'train/text/text_000000.bin')

@pytest.mark.parametrize('restore_time', [False, True])
def test_a_shard_that_was_changed_between_a_cut_and_its_resume_is_refused(cut, restore_time):
    flip(shard_of(cut), 70, restore_time)
    with pytest.raises(Refused) as e:
        train.main(cut)
    index = data.read_index(shard_of(cut).parent)
    assert str(e.value) == (
        f"{shard_of(cut)} was changed: sha256 {data.sha256(shard_of(cut))}, index.json says "
        f"{index['shards'][0]['sha256']}; write the folder again, or bring the old file back")
    flip(shard_of(cut), 70) # the old content, of a new time
    assert train.main(cut) is not None

@pytest.mark.slow
def test_all_ranks_refuse_a_shard_that_one_of_them_has_read(cut):
    flip(shard_of(cut), 70, restore_time=True)
    path = Path(cut.out, 'refusals')
    path.mkdir()
    def work(rank):
        with pytest.raises(Refused, match='text_000000.bin was changed') as e:
            train.main(train.replace(cut, micro_batch=3))
        (path / str(rank)).write_text(str(e.value))
    assert on_ranks(2, work) == [0, 0]
    line = (path / '0').read_text()
    assert line.startswith(f"rank 0 on {socket.gethostname()}: {shard_of(cut)} was changed: ")
    assert 'index.json says' in line
    assert (path / '1').read_text() == line

@pytest.mark.slow
def test_verify_is_a_setting(cut, monkeypatch):
    reads = []
    monkeypatch.setattr(data.Shard, 'verify', lambda shard: reads.append(shard))
    train.main(train.replace(cut, out=cut.out + '2', max_steps=1))
    assert not reads # a new run looks at sizes and times
    train.main(train.replace(cut, verify='never', max_steps=20))
    assert not reads
    train.main(train.replace(cut, out=cut.out + '3', max_steps=1, verify='always'))
    assert {shard.path.parent.parent.name for shard in reads} == {'train', 'val'}
    with pytest.raises(Refused, match="verify='x': expected one of resume, always, never"):
        train.replace(cut, verify='x')

def test_a_plan_that_was_edited_or_exchanged_is_refused(cut):
    [folder] = shard_of(cut).parent.glob('plan_*')
    flip(folder / 'start.npy', -8, restore_time=True)
    with pytest.raises(Refused, match='damaged plan, remove it to have it made again'):
        train.main(cut)
    plan = data.Plan(*(np.load(folder / f'{name}.npy') for name in data.Plan._fields))
    (folder / 'sha256.txt').write_text(plan.hash()) # a whole plan, but not that of the run
    with pytest.raises(Refused, match=r"holds another run: text plan was '[0-9a-f]{16}' and is '[0-9a-f]{16}'"):
        train.main(cut)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert train.main(cut) is not None # made again

def test_copied_shards_are_read_once_and_then_trusted(cut, monkeypatch):
    folder = shard_of(cut).parent
    os.utime(folder / 'index.json', (1, 1))
    reads = []
    verify = data.Shard.verify
    monkeypatch.setattr(data.Shard, 'verify', lambda shard: (reads.append(shard), verify(shard)))
    for _ in range(2):
        Shards(folder)
        assert len(reads) == len(data.read_index(folder)['shards'])

@pytest.mark.slow
def test_a_checkpoint_of_a_version_without_hashes_of_plans_goes_on(cut):
    [folder] = checkpoint.folders(cut.out)
    state = checkpoint.read_state(folder)
    state['run'] = {key: value for key, value in state['run'].items() if not key.endswith(' plan')}
    (folder / 'state.json').write_text(json.dumps(state))
    manifest = json.loads((folder / 'MANIFEST.json').read_text())
    facts = {'bytes': os.path.getsize(folder / 'state.json'), 'sha256': data.sha256(folder / 'state.json')}
    manifest['files']['state.json'] = facts
    manifest['sha256'] = checkpoint._hash_of(manifest)
    (folder / 'MANIFEST.json').write_text(json.dumps(manifest))
    assert train.main(cut) is not None

# --------------------------------------------------------------------------------------------------
# units and words

def write_units(folder, n_shards=2, seed=0):
    """A units folder with the words of its corpus, four documents a shard -> its path."""
    rng = np.random.default_rng(seed)
    for s in range(n_shards):
        docs = []
        words = []
        for i in range(4):
            id = f'{s}{i}'
            units = np.arange(20) % K
            meta = {'id': id, 'path': None, 'seconds': 0.8, 'speaker': None, 'text': 'a b'}
            docs.append((meta, (units + rng.integers(K)) % K, np.ones(20, np.int64)))
            words.append({'id': id, 'words': [['a', 0, 5000], ['b', 5000, 9000]]})
        write_units_shard(folder, s, docs, words=words)
    facts = {'n_units': K, 'units_hash': 'abc', 'hop': 640, 'frame_hz': 25.0, 'documents': 4 * n_shards}
    write_json(folder / 'info.json', {**facts, 'content': hash_of_shards(folder)})
    align.main(align.Config(units=str(folder)))
    return folder

@pytest.fixture
def stages(tmp_path):
    """(units folder, a function that runs interleave.py on it)."""
    folder = write_units(tmp_path / 'units')
    make_tokenizer(tmp_path / 'tokenizer')
    cfg = interleave.Config(units=str(folder), tokenizer=str(tmp_path / 'tokenizer'), out=str(tmp_path / 'tokens'))
    return folder, lambda: interleave.main(cfg)

@pytest.mark.parametrize('finished', [False, True])
@pytest.mark.parametrize('name, script', [
    ('00001/units.npy', 'tokenize_speech.py'), ('00001/runs.npy', 'tokenize_speech.py'),
    ('00000/meta.jsonl', 'tokenize_speech.py'), ('words/00000/start.npy', 'align.py'),
    ('words/00001/words.json', 'align.py')])
def test_a_shard_that_was_changed_is_refused_by_the_name_of_the_file(stages, finished, name, script):
    folder, run = stages
    if finished:
        run()
    path = folder / name
    content = path.read_bytes()
    if path.suffix == '.npy':
        array = np.load(path)
        array[-1] = 2 if name.endswith('runs.npy') else array[-2]
        np.save(path, array)
    else:
        path.write_bytes(content.replace(b'a', b'c', 1) if 'words' in name else content.replace(b'a b', b'b a', 1))
    assert path.read_bytes() != content and path.stat().st_size == len(content)
    with pytest.raises(Refused) as e:
        run()
    assert str(e.value) == (f"{path}: not what {script} wrote there; bring the old file back, or remove {path.parent} "
                            f"and run {script} again")
    path.write_bytes(content)
    run()

def test_a_shard_that_was_exchanged_for_a_whole_one_is_refused(stages, tmp_path):
    folder, run = stages
    other = write_units(tmp_path / 'other', seed=1)
    np.save(other / 'words/00001/end.npy', np.load(other / 'words/00001/end.npy') - 1)
    write_hashes(other / 'words/00001')
    for shards, words in ((folder, ''), (folder / 'words', 'words')):
        kept = shards / '00001'
        kept.rename(tmp_path / 'kept')
        (other / words / '00001').rename(kept)
        script = 'align.py' if words else 'tokenize_speech.py'
        with pytest.raises(Refused, match=f'{shards}: its shards are not those that info.json was written for .content '
                                          f'[0-9a-f]*, info.json says [0-9a-f]*.; bring them back, or run {script}'):
            run()
        kept.rename(tmp_path / f'other {words}')
        (tmp_path / 'kept').rename(kept)
    run()

def test_folders_of_earlier_versions_are_read(stages):
    folder, run = stages
    for path in folder.rglob('sha256.json'):
        path.unlink()
    for place in (folder, folder / 'words'):
        info = read_json(place, 'info.json', 'a test')
        del info['content']
        write_json(place / 'info.json', info)
    assert len(Units(folder)) == len(Words(folder / 'words')) == 8
    run()

# --------------------------------------------------------------------------------------------------
# audio

@pytest.fixture
def audio(hubert, tmp_path):
    """(Config of tokenize_speech.py, path of its third file): six files in shards of two, all of one length."""
    folder = tmp_path / 'audio'
    folder.mkdir()
    for i in range(6):
        soundfile.write(folder / f'{i}.wav', speech_like(1.0, i), 16000)
    cfg = tokenize_speech.Config(audio=str(folder), out=str(tmp_path / 'units'), encoder=str(hubert), layer=2,
                                 shard_docs=2, device='cpu', workers=1)
    return cfg, folder / '2.wav'

def cut_after_two_shards(cfg):
    def write_two(out, index, *documents, **lines):
        if index == 2:
            raise KeyboardInterrupt
        write_units_shard(out, index, *documents, **lines)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tokenize_speech, 'write_units_shard', write_two)
        tokenize_speech.main(cfg)

def exchange(path, restore):
    """Puts other speech of the same length in a file's place, perhaps with the old file's time."""
    times = os.stat(path)
    new = path.with_name('new')
    soundfile.write(new, speech_like(1.0, 99), 16000, format='WAV')
    new.rename(path)
    if restore:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size

@pytest.mark.parametrize('when', ['cut', pytest.param('finished', marks=pytest.mark.slow)])
@pytest.mark.parametrize('restore', [False, True])
def test_audio_that_was_exchanged_before_a_rerun_is_refused_by_name(audio, when, restore):
    cfg, path = audio
    if when == 'cut':
        cut_after_two_shards(cfg)
    else:
        tokenize_speech.main(cfg)
    exchange(path, restore)
    with pytest.raises(Refused) as e:
        tokenize_speech.main(cfg)
    assert str(e.value) == (f"{path}: was changed after {cfg.out}/00001 was made of it; bring the old file back, or "
                            f"remove {cfg.out}/00001 to have it made again")
    shutil.rmtree(Path(cfg.out, '00001'))
    tokenize_speech.main(cfg)
    assert len(Units(cfg.out)) == 6

@pytest.mark.slow
def test_audio_that_was_touched_or_moved_or_removed_is_the_same(audio):
    cfg, path = audio
    cut_after_two_shards(cfg)
    os.utime(path, (1, 1))
    copy = path.with_name('copy')
    shutil.copy(path, copy)
    copy.rename(path)
    tokenize_speech.main(cfg)
    manifest = path.with_name('manifest.jsonl')
    manifest.write_text(''.join(f'{{"id": "{i}", "audio": "{i}.wav"}}\n' for i in range(6)))
    first = Units(cfg.out)
    cfg = dataclasses.replace(cfg, out=cfg.out + '2')
    tokenize_speech.main(cfg)
    path.unlink()
    tokenize_speech.main(cfg)
    assert len(first) == len(Units(cfg.out)) == 6

@pytest.mark.slow
def test_verify_is_a_setting_of_tokenize_speech_too(audio):
    cfg, path = audio
    cut_after_two_shards(cfg)
    exchange(path, restore=False)
    tokenize_speech.main(dataclasses.replace(cfg, verify=False))
    assert len(Units(cfg.out)) == 6

def test_a_shard_of_a_cut_run_that_was_changed_is_refused(audio):
    cfg, _ = audio
    cut_after_two_shards(cfg)
    flip(Path(cfg.out, '00000/units.npy'), -1, restore_time=True)
    with pytest.raises(Refused, match='00000/units.npy: not what tokenize_speech.py wrote there'):
        tokenize_speech.main(cfg)

def test_audio_that_was_exchanged_is_not_aligned(audio):
    cfg, path = audio
    tokenize_speech.main(cfg)
    exchange(path, restore=True)
    class Aligner:
        needs_text = False
        def align(self, waves):
            return [(['a'], [0], [9000], '') for _ in waves]
    shard = Path(cfg.out, '00001')
    metas = Units(cfg.out).meta.shards[1]
    sources = {source['path']: source for source in align.read_sources(shard)}
    docs = align.aligned_words(Aligner(), metas, 1, sources)
    assert [(meta['id'], doc[3]) for meta, doc in zip(metas, docs)] == [('2', 'AUDIO_CHANGED'), ('3', '')]
