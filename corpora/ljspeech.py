"""
LJ Speech 1.1 (https://keithito.com/LJ-Speech-Dataset): 24 h of one voice reading English, with text.

    python -m corpora.ljspeech --download --root=data --subset=1.1
    python tokenize_speech.py --corpus=ljspeech --audio=data/LJSpeech-1.1 --out=...

    LJSpeech-1.1/metadata.csv      per utterance a line "LJ001-0001|as printed|as spoken"
    LJSpeech-1.1/wavs/LJ001-0001.wav

The text is the one as spoken, with numbers and abbreviations in words. The checksum is that of torchaudio.
"""
import os

from configurator import Refused
from corpora.download import script
from corpora.tree import by_id, files, lines, refuse_orphans, utterance

SUBSET = 'the folder LJSpeech-1.1 (metadata.csv and wavs/NAME.wav)'
URL = 'https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2'
CHECKSUM = 'sha256:be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5'
SUBSETS = {'1.1': ((URL, '', CHECKSUM),)}

def utterances(root):
    docs = []
    wavs = os.path.join(root, 'wavs')
    audio = files(wavs, '.wav', 'NAME', SUBSET)
    for place, line in lines(os.path.join(root, 'metadata.csv')):
        id, *texts = line.split('|')
        if len(texts) != 2 or not texts[1].strip():
            raise Refused(f"{place}: expected 'ID|as printed|as spoken', got '{line[:60]}'")
        docs.append(utterance(id, os.path.join(wavs, id + '.wav'), text=texts[1].strip(), speaker='LJ'))
    refuse_orphans(audio.values(), (u['path'] for u in docs), 'no line of metadata.csv')
    yield from by_id(docs)

if __name__ == '__main__':
    script(utterances, SUBSETS)
