"""
What the readers of published corpora share: listing files, reading tables and parquet, cutting long recordings.

A transcript whose audio is missing is yielded, and tokenize_speech.py counts it as MISSING. Audio
whose transcript is missing is refused, since that is what half an archive looks like. Long
recordings are cut by start and end in seconds; no audio is written. Where a corpus publishes dev
and test, they are folders or files of their own, and a reader gets one subset. Elsewhere
interleave.py keeps 1 % for validation, by the hash of the id.
"""
import os
import re

from configurator import Refused
from files import lines, read_lines, walk
from speech.audio import open_parquet

SECONDS = 60.0 # maximum length of a piece of a long recording
PAUSE = 2.0 # maximum silence inside a piece, in seconds
TEXTS = ('.txt', '.txt.gz', '.jsonl', '.jsonl.gz', '.json.gz') # the files of documents()

def utterance(id, path, start=None, end=None, text=None, speaker=None, words=None):
    """What a reader yields. start, end: seconds within the file; words: [[word, start, end]], in seconds from start."""
    return {'id': id, 'path': path, 'start': start, 'end': end, 'text': text, 'speaker': speaker, 'words': words}

def files(root, extension, layout, subset):
    """{name: path} of all files below root that end in extension, sorted by name.

    A name is the path inside root without the extension. layout: what names look like, as
    'SPEAKER/CHAPTER/NAME'; their depth is checked, except for '**'. subset: what root should be,
    for the error message.
    """
    paths = {name.removesuffix(extension): path for name, path in walk(root).items() if name.endswith(extension)}
    if not paths:
        raise Refused(f"{root}: no {extension} in it; expected {subset}, with {layout}{extension} in it")
    # Sorted as the ids are that continue these names with a '/'.
    paths = dict(sorted(paths.items(), key=lambda item: item[0] + '/'))
    for name, path in paths.items():
        if layout != '**' and name.count('/') != layout.count('/'):
            raise Refused(f"{path}: expected {subset}, with {layout}{extension} in it")
    return paths

def by_id(utterances):
    """The utterances sorted by id, which is the order in which a reader yields them."""
    return sorted(utterances, key=lambda u: u['id'])

def refuse_orphans(audio, known, why):
    """Refuses paths of audio that are not among the known ones."""
    if orphans := sorted(set(audio) - set(known)):
        raise Refused(f"{orphans[0]}: {why}, one of {len(orphans)} such; unpack the archive again, or move them away")

def parquet_files(root, subset):
    """{name: path} of the .parquet files in a folder, or of root if it is such a file."""
    root = os.fspath(root)
    if os.path.isfile(root):
        return {os.path.basename(root).removesuffix('.parquet'): root}
    return files(root, '.parquet', 'NAME', subset)

def rows(path, columns):
    """Yields (path of the row's audio for load_audio, {column: value}) for each row. No audio is read."""
    file = open_parquet(path)
    names = file.schema_arrow.names
    if missing := sorted({*columns, 'audio'} - set(names)):
        raise Refused(f"{path}: no column {', '.join(missing)}; "
                      f"expected audio, {', '.join(columns)}, got {', '.join(names)}")
    number = 0
    try:
        for batch in file.iter_batches(batch_size=1024, columns=list(columns)):
            for row in batch.to_pylist():
                yield f'{path}#{number}', row
                number += 1
    except (OSError, ValueError) as e: # ArrowInvalid is a ValueError
        reason = str(e).splitlines()[0]
        raise Refused(f"{path}: cannot be read from row {number} on ({reason})") from None

def documents(path):
    """Yields (id, text, the document's line of JSON as a dict).

    path: one of TEXTS: .txt(.gz) has a document per line, the others its text in 'raw_content' or 'text'.
    """
    filename = os.path.basename(path)
    if not re.search(r'\.jsonl?(\.gz)?$', path.lower()):
        for place, line in lines(path):
            yield f"{filename}:{place.rpartition(':')[2]}", line.strip(), {}
        return
    for place, line in read_lines(path):
        id = line.get('doc_id', line.get('id'))
        text = line.get('raw_content', line.get('text'))
        if not isinstance(text, str):
            raise Refused(f"{place}: expected a string 'raw_content' or 'text', got {text!r}")
        if not isinstance(id, str) or not id:
            id = f"{filename}:{place.rpartition(':')[2]}"
        yield id, text, line

def pieces(spans, seconds=SECONDS, pause=PAUSE):
    """Yields lists of consecutive spans: pieces of at most `seconds`, without a silence longer than `pause`.

    spans: tuples (start, end, ...) in order of time. A piece lasts from its first span's start to
    its last span's end. A span that is longer than `seconds` is a piece of its own.
    """
    piece = []
    for span in spans:
        if piece and (span[1] - piece[0][0] > seconds or span[0] - piece[-1][1] > pause):
            yield piece
            piece = []
        piece.append(span)
    if piece:
        yield piece
