"""
Any folder of audio, or a list of it.

    FOLDER              every .wav, .flac, .ogg and .mp3 below it; id = path inside FOLDER without the extension;
                        NAME.txt beside NAME.wav is its text
    FOLDER with manifest.jsonl, or FILE.jsonl: one utterance per line,
                        {"id": ..., "audio": path relative to the file, "text": ..., "speaker": ...,
                         "words": [["the", 0.12, 0.25], ...] in seconds from the start of the audio, null where unknown}
                        id and audio are needed, the others may be absent or null; further fields are ignored
"""
import os

from configurator import Refused
from files import read_lines, unlisted

EXTENSIONS = ('.wav', '.flac', '.ogg', '.mp3')

def utterances(root):
    """Dicts {id, path, start, end, text, speaker, words}, sorted by id. Only texts and the manifest are opened."""
    root = os.fspath(root)
    if not os.path.exists(root):
        raise Refused(f"{root}: no such file or folder; expected a folder of audio or a .jsonl list")
    manifest = os.path.join(root, 'manifest.jsonl') if os.path.isdir(root) else root
    if not os.path.isfile(manifest):
        docs = _from_folder(root)
    elif manifest.endswith('.jsonl'):
        folder = os.path.dirname(manifest)
        docs = [from_line(line, place, folder) for place, line in read_lines(manifest)]
    else:
        raise Refused(f"{manifest}: expected a folder of audio or a .jsonl list")
    if not docs:
        raise Refused(f"{root}: no utterance in it; expected {' '.join(EXTENSIONS)} files or a manifest.jsonl")
    yield from sorted(docs, key=lambda u: u['id'])

def _from_folder(root):
    docs = []
    for folder, _, filenames in os.walk(root, onerror=unlisted): # does not follow links to folders, so it ends
        for filename in filenames:
            path = os.path.join(folder, filename)
            stem, extension = os.path.splitext(path)
            if extension.lower() in EXTENSIONS and os.path.isfile(path): # no pipes, no dangling links
                id = os.path.relpath(stem, root).replace(os.sep, '/')
                docs.append({'id': id, 'path': path, 'start': None, 'end': None,
                             'text': _text(stem + '.txt'), 'speaker': None, 'words': None})
    return docs

def _text(path):
    try:
        with open(path, encoding='utf-8-sig') as f:
            return f.read().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as e:
        raise Refused(f"{path}: expected UTF-8 text ({e})") from None

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
