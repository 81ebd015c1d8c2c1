"""
Any folder of audio, or a list of it.

    FOLDER              every .wav, .flac, .ogg and .mp3 below it; id = path inside FOLDER without the extension;
                        NAME.txt beside NAME.wav is its text
    FOLDER with manifest.jsonl, or FILE.jsonl: one utterance a line,
                        {"id": ..., "audio": path relative to the file, "text": ..., "speaker": ...,
                         "words": [["the", 0.12, 0.25], ...] in seconds from the start of the audio, null where unknown}
                        id and audio are needed, the others may be absent or null; further fields are ignored
"""
import os

from configurator import Refused
from files import read_lines, unlisted

EXTENSIONS = ('.wav', '.flac', '.ogg', '.mp3')

def utterances(root):
    """Dicts {id, path, start, end, text, speaker, words}, sorted by id. Nothing is opened but texts and manifest."""
    root = os.fspath(root)
    if not os.path.exists(root):
        raise Refused(f"{root}: no such file or folder; expected a folder of audio or a .jsonl list")
    manifest = os.path.join(root, 'manifest.jsonl') if os.path.isdir(root) else root
    if os.path.isfile(manifest):
        if not manifest.endswith('.jsonl'):
            raise Refused(f"{manifest}: expected a folder of audio or a .jsonl list")
        found = [from_line(u, where, os.path.dirname(manifest)) for where, u in read_lines(manifest)]
    else:
        found = _from_folder(root)
    if not found:
        raise Refused(f"{root}: no utterance in it; expected {' '.join(EXTENSIONS)} files or a manifest.jsonl")
    yield from sorted(found, key=lambda u: u['id'])

def _from_folder(root):
    found = []
    for folder, _, names in os.walk(root, onerror=unlisted): # does not follow links to folders, so it ends
        for name in names:
            path = os.path.join(folder, name)
            stem, extension = os.path.splitext(path)
            if extension.lower() in EXTENSIONS and os.path.isfile(path): # no pipes, no dangling links
                found.append({'id': os.path.relpath(stem, root).replace(os.sep, '/'), 'path': path, 'start': None,
                              'end': None, 'text': _text(stem + '.txt'), 'speaker': None, 'words': None})
    return found

def _text(path):
    try:
        with open(path, encoding='utf-8-sig') as f:
            return f.read().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as e:
        raise Refused(f"{path}: expected UTF-8 text ({e})") from None

def from_line(u, where, folder):
    for key in ('id', 'audio'):
        if not (isinstance(u.get(key), str) and u[key] and '\0' not in u[key]):
            raise Refused(f"{where}: '{key}' must be a non-empty string, got {u.get(key)!r}")
    for key in ('text', 'speaker'):
        if not isinstance(u.get(key), (str, type(None))):
            raise Refused(f"{where}: '{key}' must be a string or null, got {u[key]!r}")
    words = u.get('words')
    if words is not None and not (isinstance(words, list) and all(map(is_word, words))):
        raise Refused(f"{where}: 'words' must be a list of [word, start, end], in seconds or null")
    return {'id': u['id'], 'path': os.path.join(folder, u['audio']), 'start': None, 'end': None,
            'text': u.get('text'), 'speaker': u.get('speaker'), 'words': words}

def is_word(w):
    return (isinstance(w, list) and len(w) == 3 and isinstance(w[0], str)
            and all(t is None or type(t) in (int, float) and -1e9 < t < 1e9 for t in w[1:])) # NaN is not
