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
import json
import os
from pathlib import Path

import numpy as np
import pytest
from test_train import config, corpus, interrupted_after, make_corpus, on_ranks

import data
import train
from configurator import Refused
from data import Shards
from hub.tokenizer import TextTokenizer
from training import checkpoint

__all__ = ['config', 'corpus'] # fixtures

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
    assert 'index.json says' in (path / '0').read_text()
    assert (path / '1').read_text() == f"{shard_of(cut)} was changed, as another rank says"

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
    (folder / 'MANIFEST.json').write_text(json.dumps(manifest))
    assert train.main(cut) is not None
