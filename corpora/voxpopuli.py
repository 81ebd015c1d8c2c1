"""
VoxPopuli (https://github.com/facebookresearch/voxpopuli): the European Parliament, 24,100 h of it in English.

    python -m corpora.voxpopuli --download --root=data/voxpopuli --subset=en_v2    24,100 h; en: 4,500 h, plenaries
    python tokenize_speech.py --corpus=voxpopuli --audio=data/voxpopuli/raw_audios/en --out=...

    ROOT/raw_audios/LANGUAGE/YEAR/EVENT_LANGUAGE.ogg        sessions of hours
    ROOT/unlabelled_data/unlabelled_v2.tsv.gz               event_id, segment_no, start, end (seconds) of all languages
    ROOT/transcribed_data/LANGUAGE/asr_SPLIT.tsv            id, raw_text, normalized_text, speaker_id, ... and
    ROOT/transcribed_data/LANGUAGE/YEAR/ID.ogg              what the authors' get_asr_data writes: parts of sessions

--audio is the folder of a language in raw_audios, which is cut here by the table, or one asr_SPLIT.tsv. If all sessions
there are plenaries (the subset en), only rows of plenaries are read. A session without rows is yielded whole.
"""
import os
from glob import escape, glob

from configurator import Refused
from corpora.download import script
from corpora.tree import by_id, files, refuse_orphans, utterance
from files import read_table

SUBSET = 'ROOT/raw_audios/LANGUAGE or ROOT/transcribed_data/LANGUAGE/asr_SPLIT.tsv'
URL = 'https://dl.fbaipublicfiles.com/voxpopuli'
SEGMENTS = (f'{URL}/annotations/unlabelled_v2.tsv.gz', 'unlabelled_data', None)
YEARS = range(2009, 2021)
PLENARIES = tuple((f'{URL}/audios/en_{year}.tar', 'raw_audios', None) for year in YEARS)
OTHERS = tuple((f'{URL}/audios/en_{year}_2.tar', 'raw_audios', None) for year in YEARS)
SUBSETS = {'en': (SEGMENTS, *PLENARIES), 'en_v2': (SEGMENTS, *PLENARIES, *OTHERS)}

def utterances(root):
    root = os.path.abspath(root) # so that the last part of its path names the language, also for '.'
    docs = _transcribed(root) if root.endswith('.tsv') else _sessions(root)
    yield from by_id(docs)

def _transcribed(tsv):
    folder = os.path.dirname(tsv)
    def audio(row):
        return os.path.join(folder, row['id'][:4], row['id'] + '.ogg')
    listed = set()
    for split in glob(os.path.join(escape(folder), 'asr_*.tsv')): # the folders of years hold the audio of all splits
        listed |= {audio(row) for _, row in read_table(split, ('id',), '\t')}
    refuse_orphans(files(folder, '.ogg', 'YEAR/ID', SUBSET).values(), listed, 'no row in any asr_SPLIT.tsv')
    for _, row in read_table(tsv, ('id', 'raw_text', 'normalized_text', 'speaker_id'), '\t'):
        speaker = None if row['speaker_id'] in ('', 'None') else row['speaker_id']
        # raw_text has case and punctuation, but is empty in some rows.
        text = row['raw_text'] or row['normalized_text'] or None
        yield utterance(row['id'], audio(row), text=text, speaker=speaker)

def _sessions(root):
    language = os.path.basename(root)
    sessions = {name.partition('/')[2]: path for name, path in files(root, '.ogg', 'YEAR/EVENT', SUBSET).items()}
    only_plenaries = all('PLENARY' in event for event in sessions)
    data = os.path.dirname(os.path.dirname(root))
    segments = os.path.join(data, 'unlabelled_data', 'unlabelled_v2.tsv.gz')
    cut = set()
    for place, row in read_table(segments, ('event_id', 'segment_no', 'start', 'end'), '\t'):
        event = row['event_id']
        if not event.endswith('_' + language) or only_plenaries and 'PLENARY' not in event:
            continue
        try:
            start = float(row['start'])
            end = float(row['end'])
        except ValueError:
            raise Refused(f"{place}: start and end are {row['start']}, {row['end']}, expected seconds") from None
        cut.add(event)
        path = sessions.get(event, os.path.join(root, event[:4], event + '.ogg'))
        yield utterance(f"{event}_{row['segment_no']}", path, start, end)
    for event in set(sessions) - cut:
        yield utterance(event, sessions[event])

if __name__ == '__main__':
    script(utterances, SUBSETS)
