"""
What the readers of published corpora share: trees of files, tables, parquet, the cutting of long recordings.

A transcript whose audio is missing is yielded, and tokenize_speech.py counts it as MISSING; audio whose transcript is
missing is refused, because half an archive looks like that. Long recordings are cut by start and end, in seconds: no
audio is written. Where a corpus publishes dev and test they are folders or files of their own and a reader is given one
subset; elsewhere interleave.py keeps 1 % for validation, by the hash of the id.
"""
import gzip
import os
import zlib

from configurator import Refused
from files import read_lines, unlisted
from speech.audio import open_parquet

SECONDS, PAUSE = 60.0, 2.0 # of a piece of a long recording: at most so long, without a longer silence

def utterance(id, path, start=None, end=None, text=None, speaker=None, words=None):
    """What a reader yields. start, end: where in the file, in seconds; words: [[word, start, end]], from start on."""
    return {'id': id, 'path': path, 'start': start, 'end': end, 'text': text, 'speaker': speaker, 'words': words}

def files(root, extension, layout, subset):
    """{name: path} of all files below root that end in extension, by name; name: path inside root without extension.

    layout: the names, like 'SPEAKER/CHAPTER/NAME', whose depth is checked; '**' for any. subset: what root should be.
    """
    root, found = os.fspath(root), {}
    for folder, _, names in os.walk(root, onerror=unlisted):
        for name in names:
            if name.endswith(extension):
                path = os.path.join(folder, name)
                found[os.path.relpath(path, root).replace(os.sep, '/').removesuffix(extension)] = path
    found = dict(sorted(found.items(), key=lambda item: item[0] + '/')) # as ids that go on behind a / are sorted
    wrong = [path for name, path in found.items() if layout != '**' and name.count('/') != layout.count('/')]
    if wrong or not found:
        raise Refused(f"{wrong[0] if wrong else root}: {'' if wrong else f'no {extension} in it; '}expected {subset}, "
                      f"with {layout}{extension} in it")
    return found

def refuse_orphans(audio, known, why):
    """Refuses paths of audio that are not known."""
    if orphans := sorted(set(audio) - set(known)):
        raise Refused(f"{orphans[0]}: {why}, one of {len(orphans)} such; unpack the archive again, or move them away")

def lines(path):
    """(where, line) of each line of a UTF-8 text or .gz that is not empty."""
    try:
        with (gzip.open if path.endswith('.gz') else open)(path, 'rt', encoding='utf-8-sig', newline='\n') as f:
            for number, line in enumerate(f, start=1):
                if line.strip():
                    yield f'{path}:{number}', line.rstrip('\r\n')
    except FileNotFoundError:
        raise Refused(f"{path}: no such file; it is part of the corpus") from None
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as e:
        raise Refused(f"{path}: expected UTF-8 text ({e})") from None

def table(path, columns, separator='\t'):
    """(where, {column: value}) of each row of a table that has a header with these columns, and perhaps others."""
    rows = lines(path)
    header = next(rows, ('', ''))[1].split(separator)
    if not set(columns) <= set(header):
        raise Refused(f"{path}: columns {', '.join(header)}; expected {', '.join(columns)}")
    for where, line in rows:
        values = line.split(separator)
        if len(values) != len(header):
            raise Refused(f"{where}: {len(values)} columns, the header has {len(header)}")
        yield where, dict(zip(header, values))

def parquet_files(root, subset):
    """{name: path} of a folder's .parquet files, or of the one that root is."""
    root = os.fspath(root)
    if os.path.isfile(root):
        return {os.path.basename(root).removesuffix('.parquet'): root}
    return files(root, '.parquet', 'NAME', subset)

def rows(path, columns):
    """(path of the row's audio for load_audio, {column: value}) of each row of a parquet file. No audio is read."""
    file = open_parquet(path)
    if missing := sorted({*columns, 'audio'} - set(file.schema_arrow.names)):
        raise Refused(f"{path}: no column {', '.join(missing)}; expected audio, {', '.join(columns)}, got "
                      f"{', '.join(file.schema_arrow.names)}")
    number = 0
    try:
        for batch in file.iter_batches(batch_size=1024, columns=list(columns)):
            for row in batch.to_pylist():
                yield f'{path}#{number}', row
                number += 1
    except (OSError, ValueError) as e: # ArrowInvalid is a ValueError
        raise Refused(f"{path}: row {number} and what follows cannot be read ({str(e).splitlines()[0]})") from None

def documents(path):
    """(id, text, its line of JSON) of a .txt (a line is a document) or .jsonl, .json.gz ('raw_content' or 'text')."""
    name = os.path.basename(path)
    if path.endswith('.txt'):
        for where, line in lines(path):
            yield f"{name}:{where.rpartition(':')[2]}", line.strip(), {}
        return
    for where, line in read_lines(path):
        text, id = line.get('raw_content', line.get('text')), line.get('doc_id', line.get('id'))
        if not isinstance(text, str):
            raise Refused(f"{where}: expected a string 'raw_content' or 'text', got {text!r}")
        yield id if isinstance(id, str) else f"{name}:{where.rpartition(':')[2]}", text, line

def pieces(spans, seconds=SECONDS, pause=PAUSE):
    """(start, end, ...) in order of time -> lists of consecutive ones, each list at most `seconds` long, from its first
    start to its last end, and without a silence longer than `pause`. A span that is longer alone is a list alone."""
    piece = []
    for span in spans:
        if piece and (span[1] - piece[0][0] > seconds or span[0] - piece[-1][1] > pause):
            yield piece
            piece = []
        piece.append(span)
    if piece:
        yield piece
