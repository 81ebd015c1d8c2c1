"""
LibriSpeech (https://www.openslr.org/12): 960 h of read English, with text.

    python -m corpora.librispeech --download --root=data --subset=train-clean-100,train-clean-360,train-other-500
    python tokenize_speech.py --corpus=librispeech --audio=data/LibriSpeech/train-clean-100 --out=...

    SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-0000.flac
    SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt    a line "SPEAKER-CHAPTER-0000 WORDS IN CAPITALS" per utterance

Text is lower-cased, as in SIMS: a TextLM has rarely seen text all in capitals. The checksums are those of torchaudio.
"""
import os

from configurator import Refused
from corpora.download import script
from corpora.tree import by_id, files, lines, refuse_orphans, utterance

SUBSET = 'a subset such as LibriSpeech/train-clean-100'
CHECKSUMS = {
    'dev-clean': '76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3',
    'dev-other': '12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365',
    'test-clean': '39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23',
    'test-other': 'd09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29',
    'train-clean-100': 'd4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2',
    'train-clean-360': '146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf',
    'train-other-500': 'ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2'
}
SUBSETS = {name: ((f'https://www.openslr.org/resources/12/{name}.tar.gz', '', f'sha256:{checksum}'),)
           for name, checksum in CHECKSUMS.items()}

def utterances(root):
    docs = []
    for name, path in files(root, '.trans.txt', 'SPEAKER/CHAPTER/SPEAKER-CHAPTER', SUBSET).items():
        speaker, chapter, stem = name.split('/')
        for place, line in lines(path):
            id, _, text = line.partition(' ')
            if id.rpartition('-')[0] != stem or stem != f'{speaker}-{chapter}' or not text.strip():
                raise Refused(f"{place}: expected '{speaker}-{chapter}-NUMBER TEXT', got '{line[:40]}'")
            audio = os.path.join(os.path.dirname(path), id + '.flac')
            docs.append(utterance(id, audio, text=text.strip().lower(), speaker=speaker))
    audio = files(root, '.flac', 'SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER', SUBSET)
    refuse_orphans(audio.values(), (u['path'] for u in docs), 'no line of a .trans.txt')
    yield from by_id(docs)

if __name__ == '__main__':
    script(utterances, SUBSETS)
