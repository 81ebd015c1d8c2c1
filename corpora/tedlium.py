"""
TED-LIUM 3 (https://www.openslr.org/51): 452 h of talks in English, with text.

    python -m corpora.tedlium --download --root=data --subset=release-3
    python tokenize_speech.py --corpus=tedlium --audio=data/TEDLIUM_release-3/legacy/train --out=...

    SUBSET/sph/TALK.sph    16 kHz NIST sphere; libsndfile reads it
    SUBSET/stm/TALK.stm    a line "TALK 1 SPEAKER START END <o,f0,female> what is said" a segment, in seconds

SUBSET is legacy/{train,dev,test}, or speaker-adaptation's. Marks of sounds ({NOISE}, <sil>) and pronunciations (the(2))
are taken out of the text and split endings joined (it 's). A segment marked ignore_time_segment_in_scoring, or with an
<unk> in it, is yielded without text: what is said there is not known. The checksum is that of torchaudio.
"""
import os
import re

from configurator import Refused
from corpora.download import script
from corpora.tree import files, lines, refuse_orphans, utterance

SUBSET = 'a subset such as TEDLIUM_release-3/legacy/train (sph/TALK.sph and stm/TALK.stm)'
SUBSETS = {'release-3': (('https://www.openslr.org/resources/51/TEDLIUM_release-3.tgz', '',
                          'sha256:ad1e454d14d1ad550bc2564c462d87c7a7ec83d4dc2b9210f22ab4973b9eccdb'),)}
MARKS = re.compile(r"<sil>|\{[^}]*\}|\[[^]]*\]|\(\d+\)")
ENDINGS = re.compile(r" '(?=(s|m|d|t|re|ve|ll)\b)")

def utterances(root):
    talks = files(os.path.join(root, 'stm'), '.stm', 'TALK', SUBSET)
    audio = {talk: os.path.join(root, 'sph', talk + '.sph') for talk in talks}
    there = files(os.path.join(root, 'sph'), '.sph', 'TALK', SUBSET)
    refuse_orphans(there.values(), audio.values(), 'no table in stm/')
    for talk, path in talks.items():
        for where, line in lines(path):
            if line.startswith(';;'): # a comment
                continue
            try:
                name, _, speaker, start, end, label, *text = line.split(maxsplit=6)
                start, end = float(start), float(end)
                if name != talk or start < 0 or not label.startswith('<'):
                    raise ValueError
            except ValueError:
                raise Refused(f"{where}: expected '{talk} CHANNEL SPEAKER START END <LABEL> TEXT', got "
                              f"'{line[:60]}'") from None
            id = f"{talk}/{int(where.rpartition(':')[2]):05d}" # the line
            speaker = None if speaker == 'inter_segment_gap' else speaker
            yield utterance(id, audio[talk], start, end, _text(''.join(text)), speaker)

def _text(text):
    if 'ignore_time_segment_in_scoring' in text or '<unk>' in text:
        return None
    return ENDINGS.sub("'", ' '.join(MARKS.sub(' ', text).split())) or None

if __name__ == '__main__':
    script(utterances, SUBSETS)
