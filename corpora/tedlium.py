"""
TED-LIUM 3 (https://www.openslr.org/51): 452 h of talks in English, with text (SIMS Table 4: 1,600).

    python -m corpora.tedlium --download --root=data --subset=release-3
    python tokenize_speech.py --corpus=tedlium --audio=data/TEDLIUM_release-3/legacy/train --out=...

    SUBSET/sph/TALK.sph    16 kHz NIST sphere; libsndfile reads it
    SUBSET/stm/TALK.stm    per segment a line "TALK 1 SPEAKER START END <o,f0,female> the text", in seconds

SUBSET is legacy/{train,dev,test}, or speaker-adaptation's. Marks of sounds ({NOISE}, <sil>) and
pronunciations (the(2)) are removed from the text, and split endings joined (it 's). A segment
marked ignore_time_segment_in_scoring, or with an <unk> in it, is yielded without text, since its
words are not known. The checksum is that of torchaudio.
"""
import os
import re

from configurator import Refused
from corpora.download import script
from corpora.tree import files, lines, refuse_orphans, utterance

SUBSET = 'a subset such as TEDLIUM_release-3/legacy/train (sph/TALK.sph and stm/TALK.stm)'
URL = 'https://www.openslr.org/resources/51/TEDLIUM_release-3.tgz'
CHECKSUM = 'sha256:ad1e454d14d1ad550bc2564c462d87c7a7ec83d4dc2b9210f22ab4973b9eccdb'
SUBSETS = {'release-3': ((URL, '', CHECKSUM),)}
MARKS = re.compile(r"<sil>|\{[^}]*\}|\[[^]]*\]|\(\d+\)")
ENDINGS = re.compile(r" '(?=(s|m|d|t|re|ve|ll)\b)")

def utterances(root):
    talks = files(os.path.join(root, 'stm'), '.stm', 'TALK', SUBSET)
    audio = {talk: os.path.join(root, 'sph', talk + '.sph') for talk in talks}
    audio_on_disk = files(os.path.join(root, 'sph'), '.sph', 'TALK', SUBSET)
    refuse_orphans(audio_on_disk.values(), audio.values(), 'no table in stm/')
    for talk, path in talks.items():
        for place, line in lines(path):
            if line.startswith(';;'): # a comment
                continue
            try:
                name, _, speaker, start, end, label, *text = line.split(maxsplit=6)
                start = float(start)
                end = float(end)
                if name != talk or start < 0 or not label.startswith('<'):
                    raise ValueError
            except ValueError:
                raise Refused(f"{place}: expected '{talk} CHANNEL SPEAKER START END <LABEL> TEXT', "
                              f"got '{line[:60]}'") from None
            line_number = int(place.rpartition(':')[2])
            if speaker == 'inter_segment_gap':
                speaker = None
            yield utterance(f'{talk}/{line_number:05d}', audio[talk], start, end, _text(''.join(text)), speaker)

def _text(text):
    if 'ignore_time_segment_in_scoring' in text or '<unk>' in text:
        return None
    return ENDINGS.sub("'", ' '.join(MARKS.sub(' ', text).split())) or None

if __name__ == '__main__':
    script(utterances, SUBSETS)
