"""
Manifests of Lhotse (https://github.com/lhotse-speech/lhotse): whatever `lhotse prepare` or a CutSet wrote.

    python tokenize_speech.py --corpus=lhotse --audio=data/librispeech_supervisions_train-clean-100.jsonl.gz --out=...
    python tokenize_speech.py --corpus=lhotse --audio=data/cuts.jsonl.gz --out=...

    NAME_supervisions_PART.jsonl(.gz)    each supervision is an utterance, of the recording that the file
    NAME_recordings_PART.jsonl(.gz)      beside it names: what trim_to_supervisions gives
    any other .jsonl(.gz)                cuts, each of which is an utterance with the texts of its supervisions

Words are the alignment of type 'word', where each supervision with a text has one. Its times count from the start of
the recording in what Lhotse cuts, and from the start of the cut in what its aligners write; an utterance's words are
taken in the sense in which they lie inside their supervisions, and left out, counted and named where neither fits.

The path of a recording is taken from the manifest's folder if the file is there, else from the folder of the
command. Refused, by name: one channel of several, recordings that are no file or that Lhotse changes while it reads
them (except by resampling), and cuts of several recordings.
"""
import os

from configurator import Refused
from corpora.download import script
from corpora.tree import by_id, utterance
from files import read_lines

TOLERANCE = 0.05 # seconds by which a word may leave its supervision
ADVICE = "write such audio to files first: cuts.save_audios(FOLDER)"

def _field(place, line, name, kind):
    value = line.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Refused(f"{place}: '{name}' is {str(value)[:60]!r}, not what Lhotse writes there")
    return value

def _path(place, recording, channel, folder):
    """The path of a recording's file, all channels of which must be asked for: they are averaged when it is read."""
    id = recording.get('id')
    sources = _field(place, recording, 'sources', list)
    if not all(isinstance(source, dict) for source in sources):
        raise Refused(f"{place}: the sources of recording {id} are not what Lhotse writes there")
    if len(sources) != 1 or sources[0].get('type') != 'file':
        kinds = ', '.join(str(source.get('type')) for source in sources)
        raise Refused(f"{place}: recording {id} has the sources {kinds or 'none'}, expected one file; {ADVICE}")
    channels = sources[0].get('channels', [0])
    if set(channel if isinstance(channel, list) else [channel]) != set(channels):
        raise Refused(f"{place}: channel {channel} of recording {id}, which has the channels {channels}; expected all "
                      f"of them; {ADVICE}")
    transforms = [transform.get('name') for transform in recording.get('transforms') or []]
    if set(transforms) - {'Resample'}:
        names = ', '.join(map(str, transforms))
        raise Refused(f"{place}: recording {id} is changed by {names} when it is read; {ADVICE}")
    path = _field(place, sources[0], 'source', str)
    beside = os.path.join(folder, path)
    return beside if os.path.exists(beside) else path

def _aligned(place, supervision):
    """[[word, start, end]] of a supervision's alignment in its seconds, or None."""
    alignment = supervision.get('alignment') or {}
    try:
        if not alignment.get('word'):
            return None
        return [[word, start, start + duration] for word, start, duration, *_ in alignment['word']]
    except (AttributeError, TypeError, ValueError):
        id = supervision.get('id')
        raise Refused(f"{place}: alignment of {id}: expected [word, start, duration, score]") from None

def _lie_inside(words, supervision, shift):
    """Whether the words' times less shift lie inside the supervision."""
    first = supervision['start'] - TOLERANCE
    last = supervision['start'] + supervision['duration'] + TOLERANCE
    return all(first <= start - shift and end - shift <= last for _, start, end in words)

def _words(place, supervisions, shift):
    """The words of a cut that begins at shift in its recording; times in its seconds. None without any.

    Raises LookupError where the times fit in neither sense.
    """
    words = []
    for supervision in supervisions:
        aligned = _aligned(place, supervision)
        if aligned is None:
            return None
        senses = [by for by in (shift, 0.0) if _lie_inside(aligned, supervision, by)]
        if not senses:
            raise LookupError(supervision['id'])
        words += [[word, start - senses[0], end - senses[0]] for word, start, end in aligned]
    return words or None

def _utterance(place, line, path, supervisions):
    """(utterance, do its words fit) of a line with id, start and duration; its supervisions count from its start."""
    supervisions = sorted(supervisions, key=lambda supervision: supervision['start'])
    for supervision in supervisions:
        if supervision.get('text') is not None:
            _field(place, supervision, 'text', str)
    spoken = [supervision for supervision in supervisions if (supervision.get('text') or '').strip()]
    text = ' '.join(supervision['text'].strip() for supervision in spoken) or None
    speakers = {supervision.get('speaker') for supervision in supervisions}
    speaker = speakers.pop() if len(speakers) == 1 else None
    start = line['start']
    fit = True
    try:
        words = _words(place, spoken, start)
    except LookupError:
        words = None
        fit = False
    id = _field(place, line, 'id', str)
    return utterance(id, path, start, start + line['duration'], text, speaker, words), fit

def _of_supervisions(manifest, folder):
    name = os.path.basename(manifest)
    recordings_path = os.path.join(folder, name.replace('supervisions', 'recordings'))
    recordings = {_field(place, line, 'id', str): line for place, line in read_lines(recordings_path)}
    for place, line in read_lines(manifest):
        _check_times(place, line)
        id = _field(place, line, 'recording_id', str)
        if id not in recordings:
            raise Refused(f"{place}: recording {id} is not in {recordings_path}")
        path = _path(place, recordings[id], line.get('channel', 0), folder)
        yield _utterance(place, line, path, [{**line, 'start': 0.0}])

def _of_cuts(manifest, folder):
    for place, line in read_lines(manifest):
        if line.get('type') not in ('MonoCut', 'MultiCut'):
            kind = line.get('type', 'line without a type')
            raise Refused(f"{place}: a {kind}, expected cuts of one recording; {ADVICE}")
        _check_times(place, line)
        supervisions = _field(place, line, 'supervisions', list)
        for supervision in supervisions:
            _check_times(place, supervision)
        path = _path(place, _field(place, line, 'recording', dict), line.get('channel', 0), folder)
        yield _utterance(place, line, path, supervisions)

def _check_times(place, line):
    if not isinstance(line, dict):
        raise Refused(f"{place}: a supervision is {str(line)[:60]!r}, not what Lhotse writes there")
    for name in ('start', 'duration'):
        _field(place, line, name, (int, float))

def utterances(root):
    return by_id(in_any_order(root))

def in_any_order(root):
    manifest = os.fspath(root)
    if not manifest.endswith(('.jsonl', '.jsonl.gz')) or not os.path.isfile(manifest):
        raise Refused(f"{manifest}: expected a manifest of Lhotse, .jsonl or .jsonl.gz, of supervisions or cuts")
    folder = os.path.dirname(manifest)
    read = _of_supervisions if 'supervisions' in os.path.basename(manifest) else _of_cuts
    n = 0
    unfit = []
    for u, fit in read(manifest, folder):
        n += 1
        if not fit:
            unfit.append(u['id'])
        yield u
    if unfit:
        print(f"{manifest}: {len(unfit)} of {n} utterances come without their words, as these lie outside "
              f"their supervisions: {', '.join(unfit[:5])}")

if __name__ == '__main__':
    script(utterances)
