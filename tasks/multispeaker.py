"""
Multi-speaker StoryCloze (SIMS 3 and A.3: the texts of sSC and tSC in four Kokoro voices), and across modalities.

    ms_ssc, ms_tsc   ROOT/VOICE/N_NAME.wav, paired by number as in tasks/storycloze.py, or the hub's parquet files
                     (slprl/multispeaker-storycloze): id, correct_text, correct_audio, negative_text, negative_audio
    cross_modal      ROOT[/SET[/VOICE]]/NAME_mutual.wav .txt, NAME_correct.wav .txt, NAME_incorrect.wav .txt:
                     context, right and wrong ending apart, so all of S, S->T, T->S, T can be asked

A voice of the parquet files is the folder they lie in below ROOT (or the file's name up to '-'). Where such names hold
'ssc' or 'tsc', only those of the task asked for are read. Every voice must have the same stories. Audio of any rate is
resampled by speech/audio.py. Row 'all' is the mean over the items of all voices.
"""
from pathlib import Path

from configurator import Refused
from tasks.storycloze import check_files, numbered_pairs

PARTS = ('mutual', 'correct', 'incorrect')

def ms_ssc(root):
    return _spoken(root, 'ssc', 'tsc')

def ms_tsc(root):
    return _spoken(root, 'tsc', 'ssc')

def _spoken(root, task, other):
    root, voices = Path(root), {}
    mine = lambda name: other not in name.lower() or task in name.lower()
    parquet = [p for p in sorted(root.rglob('*.parquet')) if mine(_voice(root, p))]
    for path in parquet:
        voices.setdefault(_voice(root, path), []).extend(_rows(path))
    for folder in [] if parquet else sorted({p.parent for p in root.glob('*/*.wav')}):
        voices[folder.name] = [(str(k), {'joined': right}, {'joined': wrong}) for k, right, wrong in numbered_pairs(folder)]
    if not voices:
        raise Refused(f"{root}: neither *.parquet nor VOICE/N_NAME.wav; expected slprl/multispeaker-storycloze")
    ids = {voice: {name for name, *_ in stories} for voice, stories in voices.items()}
    for voice, stories in voices.items():
        if len(stories) != len(ids[voice]):
            raise Refused(f"{root}: {voice} has {len(stories)} stories under {len(ids[voice])} ids")
        if lacks := set().union(*ids.values()) - ids[voice]:
            raise Refused(f"{root}: {voice} lacks {len(lacks)} stories that others have: {', '.join(sorted(lacks)[:10])}")
        for name, right, wrong in stories:
            yield {'id': f'{voice}/{name}', 'rows': ('all', voice), 'right': right, 'wrong': wrong}

def _voice(root, path):
    inside = path.parent.relative_to(root).as_posix()
    return path.stem.split('-')[0] if inside == '.' else inside.removesuffix('/data')

def _rows(path):
    """(id, right, wrong) of a parquet file; its audio as bytes."""
    try:
        import pyarrow.parquet  # only here
    except ImportError:
        raise Refused(f"{path}: needs pyarrow; `pip install pyarrow`") from None
    columns = ['id', 'correct_text', 'correct_audio', 'negative_text', 'negative_audio']
    table = pyarrow.parquet.ParquetFile(path)
    if missing := set(columns) - set(table.schema_arrow.names):
        raise Refused(f"{path}: no column {', '.join(sorted(missing))}; expected {', '.join(columns)}")
    for row in table.read(columns).to_pylist():
        if not all(row[c] is not None for c in columns) or not all(row[c].get('bytes') for c in columns if c.endswith('audio')):
            raise Refused(f"{path}: story {row['id']} has no text or no audio in it")
        side = lambda which: {'prompt': ('', None), 'ending': (row[f'{which}_text'], None),
                              'joined': row[f'{which}_audio']['bytes']}
        yield str(row['id']), side('correct'), side('negative')

def cross_modal(root):
    """Items with context and endings apart."""
    root = Path(root)
    names = sorted({(p.parent, p.name[:-len('_correct.wav')]) for p in root.rglob('*_correct.wav')})
    if not names:
        raise Refused(f"{root}: no NAME_correct.wav in it or below; expected NAME_mutual, NAME_correct and NAME_incorrect, "
                      "each .wav and .txt")
    for folder in sorted({folder for folder, _ in names}):
        for ending in ('.wav', '.txt'):
            check_files(folder, {f'{name}_{part}{ending}' for f, name in names if f == folder for part in PARTS},
                        "the items' names", '*' + ending)
    for folder, name in names:
        inside = folder.relative_to(root).as_posix().removeprefix('.')
        text = lambda part: (folder / f'{name}_{part}.txt').read_text(encoding='utf-8').strip()
        read = lambda part: (text(part), folder / f'{name}_{part}.wav')
        context = read('mutual')
        side = lambda part: {'prompt': context, 'ending': read(part), 'joined': (context[1], read(part)[1])}
        yield {'id': f'{inside}/{name}'.lstrip('/'), 'rows': tuple(dict.fromkeys((inside.split('/')[0], inside))),
               'right': side('correct'), 'wrong': side('incorrect')}
