"""
Libri-Light (https://github.com/facebookresearch/libri-light/tree/main/data_preparation): 57,700 h of read English
(SIMS Table 4: 50,000).

    python -m corpora.librilight --download --root=data --subset=small      577 h; medium: 5,193 h, large: 51,934 h
    python tokenize_speech.py --corpus=librilight --audio=data/small --out=...

    SUBSET/SPEAKER/BOOK/FILE.flac     a chapter, minutes to hours
    SUBSET/SPEAKER/BOOK/FILE.json     {"speaker", "book_meta": {...}, "snr", "voice_activity": [[start, end], ...], ...}

Chapters are cut at the published voice activity (seconds) into pieces of at most a minute, as in
the authors' cut_by_vad.py; unlike there, short pauses inside a piece stay, and one of more than 2 s
ends it. There is no text and no validation part.
"""

from configurator import Refused
from corpora.download import script
from corpora.tree import files, pieces, refuse_orphans, utterance
from files import read_value

SUBSET = 'small, medium or large of Libri-Light'
URL = 'https://dl.fbaipublicfiles.com/librilight/data'
SUBSETS = {
    'small': ((f'{URL}/small.tar', '', 'md5:c49207eb86a8e8ac895561c37232041e'),),
    'medium': ((f'{URL}/medium.tar', '', 'md5:c75e7ac62471bfbf2db77528d62a9b74'),),
    'large': ((f'{URL}/large.tar', '', 'md5:4dfbac018f50b99797ece101fc9f0c30'),)
}

def utterances(root):
    chapters = files(root, '.json', 'SPEAKER/BOOK/FILE', SUBSET)
    audio = {name: path.removesuffix('.json') + '.flac' for name, path in chapters.items()}
    audio_on_disk = files(root, '.flac', 'SPEAKER/BOOK/FILE', SUBSET)
    refuse_orphans(audio_on_disk.values(), audio.values(), 'no .json beside it')
    for name, path in chapters.items():
        speaker = name.partition('/')[0]
        for i, piece in enumerate(pieces(_voice_activity(path))):
            start, end = piece[0][0], piece[-1][1]
            yield utterance(f'{name}/{i:05d}', audio[name], start, end, speaker=speaker)

def _voice_activity(path):
    try:
        spans = read_value(path)['voice_activity']
        last_end = 0
        for start, end in spans:
            if not last_end <= start <= end:
                raise ValueError(f"[{start}, {end}] comes after {last_end}")
            last_end = end
    except (OSError, ValueError, KeyError, TypeError) as e: # TypeError: a number or list instead of an object
        raise Refused(f"{path}: expected JSON with 'voice_activity', rising [start, end] in seconds ({e!r})") from None
    if not spans:
        raise Refused(f"{path}: no voice activity; move it and its .flac away")
    return spans

if __name__ == '__main__':
    script(utterances, SUBSETS)
