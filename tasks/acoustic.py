"""
What of a voice do units hold at all? SALMon's question on the two voices of tiny/audio: same words, another sound.

    python eval.py --model=out/x --tasks=acoustic --where=acoustic=tiny/audio --data= --items=

A sentence is followed by another one, in the same sound (right) or in another one (wrong):

    speaker   of two speakers who say the same sentences
    gender    a speaker, and the same recording with pitch and formants a third higher (and as much faster)
    room      a recording, and the same in a room: an exponentially decaying impulse response of 0.5 s

Every pair of sounds is used both ways round, each sound as often right as wrong, so a model that
merely likes one of them gets half. Right and wrong have the same words: a unit stream without voice
is the same for both, every item is a tie, and the score is exactly 1/2.

ROOT is a folder of audio with a manifest.jsonl that has speakers and words with times, as
corpora/folder.py describes it, in which speakers say the same texts. Sentences are cut from it in
the middle of the pauses.
"""
import io
from itertools import permutations
from pathlib import Path

import numpy as np
import soundfile

from configurator import Refused
from files import read_lines
from speech.audio import RATE, load_audio, resample

HIGHER = 1.25 # a third, as women's voices are above men's in formants at least
ROOM = 0.5 # seconds in which the sound of the room falls by 60 dB
SENTENCE_ENDS = ('.', '?', '!')

def sentences_of(path, words):
    """Yields (text, wave at 16 kHz) of the sentences of a file; words: [[word, start, end], ...] in seconds."""
    wave = load_audio(path)
    begin = 0
    first = 0
    for i, (word, _, end) in enumerate(words):
        is_last = i + 1 == len(words)
        if is_last or word.endswith(SENTENCE_ENDS):
            stop = len(wave) if is_last else round((end + words[i + 1][1]) / 2 * RATE)
            yield ' '.join(word for word, _, _ in words[first:i + 1]), wave[begin:stop]
            begin = stop
            first = i + 1

def shared_sentences(root):
    """{text: {speaker: wave}} of the sentences that at least two speakers say. Raises Refused if there are not two."""
    manifest = Path(root) / 'manifest.jsonl'
    by_text = {}
    for _, line in read_lines(manifest) if manifest.exists() else ():
        words = line.get('words')
        if line.get('audio') and line.get('speaker') and words and all(start is not None for _, start, _ in words):
            for text, wave in sentences_of(manifest.parent / line['audio'], words):
                by_text.setdefault(text, {})[line['speaker']] = wave
    shared = {text: waves for text, waves in sorted(by_text.items()) if len(waves) > 1}
    if len(shared) < 2:
        raise Refused(f"{root}: {len(shared)} sentences that two speakers say, expected at least 2; a manifest.jsonl "
                      "with speakers and times of words tells, such as that of tiny/audio")
    return shared

def higher(wave):
    """The wave as if it were played HIGHER times as fast."""
    return resample(wave, round(RATE * HIGHER), RATE)

def in_room(wave):
    """The wave in a room, of the same power; the direct sound comes first, and the end is cut."""
    n = round(ROOM * RATE)
    response = np.random.default_rng(0).standard_normal(n) * 10 ** (-3 * np.arange(n) / n) * 0.1
    response[0] = 1
    size = 1 << (len(wave) + n).bit_length()
    wet = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(response, size), size)[:len(wave)]
    return (wet * np.sqrt(np.mean(wave ** 2) / max(np.mean(wet ** 2), 1e-12))).astype(np.float32)

def as_file(wave):
    """A wave as the bytes of a .wav file, no sample louder than full scale."""
    file = io.BytesIO()
    soundfile.write(file, wave / max(1, np.abs(wave).max()), RATE, format='WAV', subtype='PCM_16')
    return file.getvalue()

def sounds(shared):
    """Yields (part, names of two sounds, {text: {name: bytes of a file}})."""
    speakers = sorted({speaker for waves in shared.values() for speaker in waves})
    for i, one in enumerate(speakers):
        for other in speakers[i + 1:]:
            both = {text: {name: as_file(waves[name]) for name in (one, other)}
                    for text, waves in shared.items() if one in waves and other in waves}
            if len(both) > 1:
                yield 'speaker', (one, other), both
    for part, change in (('gender', higher), ('room', in_room)):
        for speaker in speakers:
            changed = f'{speaker}_{part}'
            spoken = {text: {speaker: as_file(waves[speaker]), changed: as_file(change(waves[speaker]))}
                      for text, waves in shared.items() if speaker in waves}
            if len(spoken) > 1:
                yield part, (speaker, changed), spoken

def items(root):
    """Items of the three parts: every two sentences one after another, in every two sounds both ways round."""
    for part, names, files in sounds(shared_sentences(root)):
        for i, (context, ending) in enumerate(permutations(files, 2)):
            for same, other in permutations(names):
                right = {'joined': (files[context][same], files[ending][same])}
                wrong = {'joined': (files[context][same], files[ending][other])}
                yield {'id': f"{part}/{'-'.join(names)}/{same}/{i}", 'rows': (part,), 'right': right, 'wrong': wrong}
