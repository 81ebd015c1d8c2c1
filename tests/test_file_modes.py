"""Files for others: their modes are what the umask says, and what cannot be read is denied, absent or broken."""
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small import make_model, make_tokenizer

from configurator import Refused
from data import read_index
from files import atomically, read_array, read_info, read_json, write_json
from hub.folders import vocabulary
from model import GPT
from speech.kmeans import load_centroids
from speech.vocoder import SourceFilter, SourceFilterConfig, load_vocoder
from training import checkpoint

NOBODY = 65534

def modes(folder):
    return {path.name: path.stat().st_mode & 0o777 for path in sorted(folder.rglob('*')) if path.is_file()}

@pytest.mark.parametrize('umask, expected', [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_every_file_has_the_mode_that_the_umask_says(tmp_path, umask, expected):
    make_tokenizer(tmp_path / 'text')
    before = os.umask(umask)
    try:
        make_model(tmp_path / 'model', tmp_path / 'text')
        SourceFilter(SourceFilterConfig(n_units=20, n_embd=8, units_hash='a')).save_pretrained(tmp_path / 'vocoder')
        with atomically(tmp_path / 'folder') as tmp:
            (tmp / 'inner').mkdir(parents=True)
            save_file({'x': torch.zeros(1)}, tmp / 'inner' / 'x.safetensors')
            shutil.copy(tmp_path / 'text' / 'tokenizer.json', tmp)
            (tmp / 'tokenizer.json').chmod(0o400)
    finally:
        os.umask(before)
    for name in ('model', 'vocoder', 'folder'):
        assert set(modes(tmp_path / name).values()) == {expected}, modes(tmp_path / name)

def test_a_link_in_a_folder_does_not_change_the_mode_of_its_target(tmp_path):
    target = tmp_path / 'target'
    target.write_text('x')
    target.chmod(0o400)
    with atomically(tmp_path / 'folder') as tmp:
        tmp.mkdir()
        (tmp / 'link').symlink_to(target)
    assert target.stat().st_mode & 0o777 == 0o400

# --------------------------------------------------------------------------------------------------
# three ways in which a file cannot be read

@contextmanager
def another_account():
    """Without root's right to read everything; where the tests do not run as root, modes bind them already."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)

@pytest.fixture
def shared():
    """A folder that every account can reach; tmp_path is for one."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)

def write_model(folder):
    make_tokenizer(folder / 'text')
    make_model(folder, folder / 'text')

def write_vocoder(folder):
    SourceFilter(SourceFilterConfig(n_units=20, n_embd=8, units_hash='a')).save_pretrained(folder)

def write_small_files(folder):
    write_json(folder / 'info.json', {})
    write_json(folder / 'index.json', {})
    np.save(folder / 'x.npy', np.zeros(3, np.int32))
    with atomically(folder / 'k.safetensors') as tmp:
        save_file({'centroids': torch.zeros(2, 3)}, tmp)

def write_checkpoint(folder):
    (folder / 'step-1').mkdir()
    write_json(folder / 'step-1' / 'MANIFEST.json', {'format': checkpoint.FORMAT, 'files': {}})

READERS = { # what writes, what reads, the file, what is said of an absent and of a broken one
    'weights': (write_model, GPT.from_pretrained, 'model.safetensors', 'no model.safetensors',
                'not a whole safetensors file'),
    'shape': (write_model, GPT.from_pretrained, 'config.json', 'no such file', 'not JSON'),
    'vocabulary': (write_model, vocabulary, 'vocab.json', '', 'not JSON'),
    'tokenizer': (write_model, vocabulary, 'tokenizer.json', 'no tokenizer.json', 'not JSON'),
    'vocoder': (write_vocoder, load_vocoder, 'model.safetensors', 'is missing', 'not a vocoder'),
    'k-means': (write_small_files, lambda folder: load_centroids(folder / 'k.safetensors'), 'k.safetensors',
                'no such k-means file', 'expected safetensors'),
    'array': (write_small_files, lambda folder: read_array(folder / 'x.npy', np.int32), 'x.npy', 'no such file',
              'not a whole .npy'),
    'JSON': (write_small_files, lambda folder: read_json(folder, 'info.json', 'x.py'), 'info.json', 'no such file',
             'not JSON'),
    'info': (write_small_files, lambda folder: read_info(folder, 'x.py'), 'info.json', 'not complete', 'not JSON'),
    'shards': (write_small_files, read_index, 'index.json', 'missing', 'not JSON'),
    'checkpoint': (write_checkpoint, checkpoint.newest, 'step-1/MANIFEST.json', 'no checkpoint', 'no checkpoint')}

@pytest.mark.parametrize('name', READERS)
def test_denied_absent_and_broken_are_told_apart(shared, name):
    write, read, file, absent, broken = READERS[name]
    write(shared)
    path = shared / file
    for locked in (path, path.parent):
        mode = locked.stat().st_mode
        locked.chmod(0)
        denied = f'{locked}.*: this account may not read it; its owner can change that: chmod'
        with pytest.raises(Refused, match=denied), another_account():
            read(shared)
        locked.chmod(mode)
    path.write_bytes(b'{')
    with pytest.raises(Refused, match=broken):
        read(shared)
    path.unlink()
    if absent: # without vocab.json, tokenizer.json says where the units are
        with pytest.raises(Refused, match=absent):
            read(shared)
