"""
Any folder of audio, or a list of it.

    FOLDER              every file below it that is audio, through links and without hidden ones
                        (speech/audio_files.py); id = path inside FOLDER without the extension;
                        NAME.txt beside NAME.wav is its text
    FOLDER with manifest.jsonl, or FILE.jsonl: one utterance per line,
                        {"id": ..., "audio": path relative to the file, "text": ..., "speaker": ...,
                         "words": [["the", 0.12, 0.25], ...] in seconds from the start of the audio, null where unknown}
                        id and audio are needed, the others may be absent or null; further fields are ignored
"""
import os
from array import array

import numpy as np

from configurator import Refused, ranks
from files import name_some, outside_units, read_lines, read_text, walk
from speech.audio_files import audio_files, names_audio


def utterances(root):
    """Dicts {id, path, start, end, text, speaker, words}, sorted by id. Returns the names of the files left out."""
    left_out = None

    def read():
        nonlocal left_out
        left_out = yield from in_any_order(root)

    yield from sorted(read(), key=lambda u: u['id'])
    return left_out

def in_any_order(root):
    """As utterances, without the sorting: of a manifest, a line at a time is in memory."""
    root = os.fspath(root)
    if not os.path.exists(root):
        raise Refused(f"{root}: no such file or folder; expected a folder of audio or a .jsonl list")
    manifest = os.path.join(root, 'manifest.jsonl') if os.path.isdir(root) else root
    if os.path.isfile(manifest) and not manifest.endswith('.jsonl'):
        raise Refused(f"{manifest}: expected a folder of audio or a .jsonl list")
    left_out = []
    listed = array('q') # hashes of the paths
    if os.path.isfile(manifest):
        folder = os.path.dirname(manifest)
        for place, line in read_lines(manifest):
            u = from_line(line, place, folder)
            listed.append(hash(os.path.abspath(u['path'])))
            yield u
        is_empty = not listed
        left_out = _unlisted(root, listed) if os.path.isdir(root) and listed else []
    else:
        docs, left_out = _from_folder(root)
        is_empty = not docs
        yield from docs
    if is_empty:
        raise Refused(f"{root}: no utterance in it; expected files of audio or a manifest.jsonl")
    return left_out

def _from_folder(root):
    """-> (utterances, the names of the other files)."""
    paths, left_out = audio_files(root)
    docs = []
    for name, path in paths.items():
        text = read_text(os.path.splitext(path)[0] + '.txt')
        docs.append({'id': os.path.splitext(name)[0], 'path': path, 'start': None, 'end': None,
                     'text': text and text.strip(), 'speaker': None, 'words': None})
    return docs, left_out

def _unlisted(root, listed):
    """The names of the audio below a folder that is not in its manifest, which is said in a line."""
    paths = {name: path for name, path in outside_units(walk(root)).items() if names_audio(name)}
    hashes = np.array([hash(os.path.abspath(path)) for path in paths.values()], np.int64)
    is_listed = np.isin(hashes, np.array(listed, np.int64))
    names = [name for name, known in zip(paths, is_listed) if not known]
    if names and ranks()[0] == 0:
        print(f"{root}: left out, as not in its manifest.jsonl: {name_some(names)}")
    return names

def transcripts(paths):
    """{path of an audio file: (text, words), each None where nothing says it}, as `utterances` has them of its folder.

    A manifest.jsonl of another form is named in a line, and says nothing.
    """
    listed = {}
    for folder in {os.path.dirname(path) for path in paths}:
        manifest = os.path.join(folder, 'manifest.jsonl')
        try:
            lines = read_lines(manifest) if os.path.isfile(manifest) else ()
            docs = [from_line(line, place, folder) for place, line in lines]
        except Refused as e:
            print(f"{e}; what is said in {folder} is taken as unknown")
            docs = []
        listed |= {os.path.abspath(u['path']): (u['text'], u['words']) for u in docs}
    by_path = {}
    for path in paths:
        text = read_text(os.path.splitext(path)[0] + '.txt')
        by_path[path] = listed.get(os.path.abspath(path), (text and text.strip(), None))
    return by_path

def from_line(line, place, folder):
    """A line of a manifest (a dict) -> an utterance; folder: the one that audio paths are relative to."""
    for key in ('id', 'audio'):
        value = line.get(key)
        if not isinstance(value, str) or not value or '\0' in value:
            raise Refused(f"{place}: '{key}' must be a non-empty string, got {value!r}")
    for key in ('text', 'speaker'):
        if not isinstance(line.get(key), (str, type(None))):
            raise Refused(f"{place}: '{key}' must be a string or null, got {line[key]!r}")
    words = line.get('words')
    if words is not None and not (isinstance(words, list) and all(map(is_word, words))):
        raise Refused(f"{place}: 'words' must be a list of [word, start, end], in seconds or null")
    return {'id': line['id'], 'path': os.path.join(folder, line['audio']), 'start': None, 'end': None,
            'text': line.get('text'), 'speaker': line.get('speaker'), 'words': words}

def is_word(word):
    """Whether this is [word, start, end] with times that are numbers (NaN is not one) or None."""
    if not (isinstance(word, list) and len(word) == 3 and isinstance(word[0], str)):
        return False
    return all(t is None or type(t) in (int, float) and -1e9 < t < 1e9 for t in word[1:])
