"""
WebDataset shards (https://github.com/webdataset/webdataset): .tar files of audio with text beside it, as Emilia comes.

    hf download amphion/Emilia-Dataset --repo-type dataset --include 'Emilia/EN/*' --local-dir data
    python tokenize_speech.py --corpus=webdataset --audio=data/Emilia/EN --out=...

    SHARD.tar: KEY.mp3      the audio: .flac, .wav, .ogg, ... and nothing that is not audio
               KEY.json     "text" (or "transcription", ...), "speaker"; other fields are not read
               KEY.txt      the text, where no .json has one

A key is a member's path up to the first dot of its name. ids are SHARD/KEY. --audio is a folder, all .tar below which
are read, or one of them. They are not unpacked: a .tar is read where its members lie, and so it must not be compressed.
A key without audio is counted as MISSING by tokenize_speech.py.
"""
import os
import posixpath
import tarfile

from configurator import Refused
from corpora.download import script
from corpora.parquet import SPEAKERS, TEXTS
from corpora.tree import by_id, files, utterance
from files import is_hidden, strict_json
from speech.audio import tar_members
from speech.audio_files import names_audio

SUBSET = "a folder of .tar shards"

def _samples(path):
    """{key: {'audio': name of its member, 'json': dict, 'txt': text}} of a shard, each where it has such a member."""
    samples = {}
    for tar, member in tar_members(path):
        folder, _, name = member.name.rpartition('/')
        if is_hidden(name):
            continue
        stem, _, extension = name.partition('.')
        sample = samples.setdefault(posixpath.normpath(f'{folder}/{stem}').lstrip('/'), {})
        if names_audio(name):
            if 'audio' in sample:
                raise Refused(f"{path}: {member.name} beside {sample['audio']}: two audio files of one key")
            sample['audio'] = member.name
        elif extension.lower() in ('json', 'txt'):
            sample[extension.lower()] = _content(path, tar, member)
    return samples

def _content(path, tar, member):
    """A .txt member as text, a .json member as a dict."""
    try:
        data = tar.extractfile(member).read()
        value = strict_json(data) if member.name.lower().endswith('.json') else data.decode('utf-8-sig').strip()
    except (OSError, ValueError, tarfile.TarError) as e:
        raise Refused(f"{path}: {member.name}: expected UTF-8 text or JSON ({e})") from None
    if member.name.lower().endswith('.json') and not isinstance(value, dict):
        raise Refused(f"{path}: {member.name}: expected a JSON object")
    return value

def _first(line, names):
    """The value of the first of these fields that a dict has, as text; None without any."""
    value = next((line[name] for name in names if line.get(name) is not None), None)
    return None if value is None else str(value).strip()

def utterances(root):
    return by_id(in_any_order(root))

def in_any_order(root):
    root = os.fspath(root)
    if os.path.isfile(root):
        shards = {os.path.basename(root).removesuffix('.tar'): root}
    else:
        shards = files(root, '.tar', '**', SUBSET)
    for shard, path in shards.items():
        for key, sample in _samples(path).items():
            line = sample.get('json', {})
            text = _first(line, TEXTS) or sample.get('txt') or None
            name = sample.get('audio', key)
            yield utterance(f'{shard}/{key}', f'{path}#{name}', text=text, speaker=_first(line, SPEAKERS))

if __name__ == '__main__':
    script(utterances)
