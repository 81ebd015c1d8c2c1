"""
Manifests of NeMo (https://github.com/NVIDIA-NeMo/NeMo): a line of JSON for each utterance.

    python tokenize_speech.py --corpus=nemo --audio=data/train_manifest.json --out=...

    {"audio_filepath": "clips/a.wav", "duration": 3.2, "text": "hello there", "offset": 0.0, "speaker": "joe"}

Only audio_filepath is needed; further fields are not read. offset and duration, in seconds, select a part
of a file where there is an offset. A relative path counts from the manifest's folder. The id is the path without
extension, inside the folder that all have in common, and behind it @OFFSET where there is one.
"""
import os

from configurator import Refused
from corpora.download import script
from corpora.tree import by_id, utterance
from files import read_lines


def _number(place, line, name):
    """A field in seconds, None where it is absent."""
    value = line.get(name)
    if not isinstance(value, (int, float, type(None))) or isinstance(value, bool):
        raise Refused(f"{place}: '{name}' is {str(value)[:40]!r}, expected seconds")
    return value

def utterances(root):
    manifest = os.fspath(root)
    if not os.path.isfile(manifest):
        raise Refused(f"{manifest}: no such file; expected a manifest of NeMo, with a line of JSON for each utterance")
    lines = []
    for place, line in read_lines(manifest):
        audio = line.get('audio_filepath')
        if not isinstance(audio, str) or not audio:
            raise Refused(f"{place}: expected a string 'audio_filepath', got {str(audio)[:40]!r}")
        for name in ('text', 'speaker'):
            if not isinstance(line.get(name), (str, type(None))):
                raise Refused(f"{place}: '{name}' is {str(line[name])[:40]!r}, expected a string")
        path = os.path.join(os.path.dirname(manifest), audio)
        lines.append((path, _number(place, line, 'offset'), _number(place, line, 'duration'), line))
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path, *_ in lines]) if lines else ''
    docs = []
    for path, offset, duration, line in lines:
        id = os.path.splitext(os.path.relpath(os.path.abspath(path), common))[0]
        end = None
        if offset is not None:
            id = f'{id}@{offset:g}'
            end = None if duration is None else offset + duration
        text = (line.get('text') or '').strip() or None
        docs.append(utterance(id, path, offset, end, text, line.get('speaker')))
    yield from by_id(docs)

if __name__ == '__main__':
    script(utterances)
