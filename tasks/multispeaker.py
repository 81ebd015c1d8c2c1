"""
StoryCloze in several voices (SIMS 3 and A.3: sSC and tSC in four Kokoro voices), and StoryCloze across modalities.

    ms_ssc, ms_tsc   ROOT/VOICE/N_NAME.wav, paired by number as in tasks/storycloze.py, or the hub's parquet files
                     (slprl/multispeaker-storycloze): id, correct_text, correct_audio, negative_text, negative_audio
    cross_modal      ROOT[/SET[/VOICE]]/NAME_mutual.wav .txt, NAME_correct.wav .txt, NAME_incorrect.wav .txt:
                     context, right and wrong ending apart, so all of S, S->T, T->S and T can be scored

A voice of the parquet files is the folder that holds them below ROOT (or the file's name up to
'-'). If such names hold 'ssc' or 'tsc', only those of the task are read. Every voice must have the
same stories. Audio of any rate is resampled. Row 'all' is the mean over the items of all voices.
"""
import re
from pathlib import Path

from configurator import Refused
from files import read_text, walk
from speech.audio import open_parquet
from tasks.storycloze import check_files, numbered_pairs

PARTS = ('mutual', 'correct', 'incorrect')

def ms_ssc(root):
    return _spoken(root, 'ssc', 'tsc')

def ms_tsc(root):
    return _spoken(root, 'tsc', 'ssc')

def _spoken(root, task, other_task):
    root = Path(root)
    voices = {} # {voice: [(id, right, wrong), ...]}
    for voice, path in _parquet_files(root, task, other_task):
        voices.setdefault(voice, []).extend(_rows(path))
    if not voices:
        waves = [name for name in walk(root) if re.fullmatch(r'[^/]+/[^/]+\.wav', name)]
        for folder in sorted({root / name.split('/')[0] for name in waves}):
            voices[folder.name] = [(str(k), {'joined': right}, {'joined': wrong})
                                   for k, right, wrong in numbered_pairs(folder)]
    if not voices:
        raise Refused(f"{root}: neither *.parquet nor VOICE/N_NAME.wav; expected slprl/multispeaker-storycloze")
    ids = {voice: {id for id, _, _ in stories} for voice, stories in voices.items()}
    all_ids = set().union(*ids.values())
    for voice, stories in voices.items():
        if len(stories) != len(ids[voice]):
            raise Refused(f"{root}: {voice} has {len(stories)} stories under {len(ids[voice])} ids")
        if missing := sorted(all_ids - ids[voice]):
            raise Refused(f"{root}: {voice} lacks {len(missing)} stories that others have: {', '.join(missing[:10])}")
        for id, right, wrong in stories:
            yield {'id': f'{voice}/{id}', 'rows': ('all', voice), 'right': right, 'wrong': wrong}

def texts(root, task):
    """{id: (right story, wrong story)} of the hub's parquet files as text. task: 'ssc' or 'tsc'; root: may be a file.

    All voices of a task tell the same stories.
    """
    stories = {}
    for _, path in _parquet_files(Path(root), task, 'tsc' if task == 'ssc' else 'ssc'):
        for row in _columns(path, ['id', 'correct_text', 'negative_text']):
            id = str(row['id'])
            pair = row['correct_text'], row['negative_text']
            if row['id'] is None or not all(pair):
                raise Refused(f"{path}: story {id} has no id or lacks a text")
            if stories.setdefault(id, pair) != pair:
                raise Refused(f"{path}: story {id} has another text than in the files before; "
                              "expected the voices of one task")
    return stories

def _parquet_files(root, task, other_task):
    """Yields (voice, path) of the parquet files of a task below root, or of root if it is such a file."""
    paths = [root] if root.is_file() else [Path(path) for path in walk(root).values() if path.endswith('.parquet')]
    for path in paths:
        if path == root:
            voice = f'{path.parent.name}/{path.stem}'
        else:
            folder = path.parent.relative_to(root).as_posix()
            voice = path.stem.split('-')[0] if folder == '.' else folder.removesuffix('/data')
        if other_task not in voice.lower() or task in voice.lower():
            yield voice, path

def _columns(path, columns):
    table = open_parquet(path)
    if missing := set(columns) - set(table.schema_arrow.names):
        raise Refused(f"{path}: no column {', '.join(sorted(missing))}; expected {', '.join(columns)}")
    return table.read(columns).to_pylist()

def _rows(path):
    """Yields (id, right, wrong) of a parquet file; the audio is the bytes of a file."""
    for row in _columns(path, ['id', 'correct_text', 'correct_audio', 'negative_text', 'negative_audio']):
        sides = []
        for name in ('correct', 'negative'):
            text = row[f'{name}_text']
            audio = row[f'{name}_audio']
            if row['id'] is None or text is None or audio is None or not audio.get('bytes'):
                raise Refused(f"{path}: story {row['id']} has no text or no audio in it")
            sides.append({'prompt': ('', None), 'ending': (text, None), 'joined': audio['bytes']})
        yield str(row['id']), *sides

def cross_modal(root):
    """Items with context and endings apart."""
    root = Path(root)
    names = {} # {folder: names of its items}
    for path in [Path(path) for name, path in walk(root).items() if name.endswith('_correct.wav')]:
        names.setdefault(path.parent, []).append(path.name.removesuffix('_correct.wav'))
    if not names:
        raise Refused(f"{root}: no NAME_correct.wav in it or below; "
                      "expected NAME_mutual, NAME_correct and NAME_incorrect, each .wav and .txt")
    for folder in sorted(names):
        for ending in ('.wav', '.txt'):
            files = {f'{name}_{part}{ending}' for name in names[folder] for part in PARTS}
            check_files(folder, files, "the items' names", '*' + ending)
    for folder in sorted(names):
        inside = folder.relative_to(root).as_posix().removeprefix('.')
        rows = tuple(dict.fromkeys((inside.split('/')[0], inside)))
        for name in sorted(names[folder]):
            context, right, wrong = (_read(folder, f'{name}_{part}') for part in PARTS)
            yield {'id': f'{inside}/{name}'.lstrip('/'), 'rows': rows,
                   'right': {'prompt': context, 'ending': right, 'joined': (context[1], right[1])},
                   'wrong': {'prompt': context, 'ending': wrong, 'joined': (context[1], wrong[1])}}

def _read(folder, stem):
    """-> (text, path of the audio)."""
    return read_text(folder / f'{stem}.txt').strip(), folder / f'{stem}.wav'
