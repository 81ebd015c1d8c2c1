"""
Text -> speech with exact word times. Only building the embedded corpus needs this script.

    pip install -r tiny/build/requirements.txt
    python -m tiny.build.speak --part=stories --hours=40 --workers=2 --piper=VOICE.onnx --out=out/build/speech/stories
    python -m tiny.build.speak --part=talk    --hours=9  --workers=2 --kokoro=FOLDER   --out=out/build/speech/talk
    python -m tiny.build.speak --part=items-main   --items=1000 --piper=VOICE.onnx     --out=out/build/speech/items-main
    python -m tiny.build.speak --part=items-unseen --items=500  --kokoro=FOLDER        --out=out/build/speech/items-unseen

VOICE.onnx is a Piper voice (en_US-joe-medium here) with VOICE.onnx.json beside it. FOLDER holds
Kokoro's int8 model kokoro-v1.0.int8.onnx, vocab.json and voices/NAME.bin. Both models predict the
duration of each phone. These durations sum to the samples of the wave, so word times need no
aligner:

    word times      A word lasts from its first to its last phone. The space between two words is
                    one token, whose middle is the boundary. Tokens of punctuation are pauses and
                    belong to no word.
    silence         Kokoro puts most of a pause into the last phone before it. So a word that ends
                    with 80 ms or more of silence (below -40 dB of the sentence's power) ends where
                    its sound ends. Kokoro's sound also comes 30 ms before its durations say
                    (measured by pocketsphinx, and by the first sound of sentences, against
                    Piper's); its word times are moved accordingly.
    joined words    espeak merges some words ("was a" -> wʌzɐ). The last word takes the phones it is
                    known by.
    sentences       A sentence is cut from 50 ms before its first word to 150 ms after its last. A
                    document is its sentences with a fixed silence between them, so the join never
                    depends on the next sentence.
    16 kHz          The wave is resampled by 320/441 (Piper) or 2/3 (Kokoro), and times are rounded
                    to its samples.

If the phones of a sentence do not map one to one to its words, its whole group (a story, an item)
is refused and counted. Part of the talk gets a room (an exponentially decaying impulse response
with the direct path at sample 0, so word times do not move), noise at 10-30 dB and a random level.

    DIR/00000/audio.flac     16 kHz, 16 bit: the documents of the shard, one after another
    DIR/00000/docs.jsonl     one line per document: {"id", "start", "samples", "text", "speaker",
                             "room", "words": [[word, start, end], ...]}. start is a sample of
                             audio.flac, and word times count from it. Every word but the first
                             begins with a space, so together the words are the text.
    DIR/00000/refused.jsonl  {"id", "sentences", "reason"}: the groups that were not spoken
    DIR/settings.json        what determines the bytes; another run into DIR must have the same
                             settings
    DIR/info.json            counts and how it was made; written last

Shard k depends on these settings and on k alone. Finished shards are skipped, so an interrupted run
can go on. Piper's noise is drawn here, from (seed, document, sentence), in place of the unseeded
nodes of its graph. Kokoro's graph has no noise. With one thread per model, the same machine repeats
its bytes; other processors may round differently.
"""
import hashlib
import json
import os
import re
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice, product
from math import ceil
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile

from configurator import Refused, run
from files import atomically, progress, read_lines, record, sha256, write_json, write_lines
from speech.audio import RATE, resample
from speech.words import edit_distance

# What a sentence keeps around its words, in samples.
BEFORE = RATE * 50 // 1000
AFTER = RATE * 150 // 1000
# The fade at both ends of a sentence (5 ms) avoids a click where silence begins.
FADE = RATE // 200

# Gain of each voice that brings its words to an RMS of 0.06 (-24 dBFS).
GAINS = {
    'joe': 0.97, 'af_heart': 0.79, 'am_michael': 0.90, 'bf_emma': 0.62, 'bm_george': 0.66,
    'af_bella': 0.75, 'am_fenrir': 0.52, 'af_sarah': 0.66, 'bm_daniel': 0.67, 'am_puck': 0.47}
MAIN = 'joe'
UNSEEN = 'am_puck'
VOICES = (
    'af_heart', 'am_michael', 'bf_emma', 'bm_george', 'af_bella', 'am_fenrir', 'af_sarah', 'bm_daniel')
PARTS = ('stories', 'talk', 'items-main', 'items-unseen')

@dataclass(frozen=True)
class Config:
    part: str = 'stories' # what to speak: stories | talk | items-main | items-unseen
    out: str = 'out/build/speech/stories' # a folder for this part alone
    hours: float = 1.0 # of stories or talk, estimated from the number of words; rounded up to whole shards
    items: int = 1000 # of the evaluation parts
    first: int = 0 # first shard to speak; earlier ones are spoken elsewhere (tiny/build/pack.py --keep joins them)
    piper: str = '' # VOICE.onnx, for stories and items-main
    kokoro: str = '' # Kokoro's folder, for talk and items-unseen
    workers: int = 1 # processes, one thread each
    shard_docs: int = 100 # documents in a shard; an item is 4 documents
    pause: float = 0.25 # seconds of silence between two sentences
    edge: float = 0.1 # seconds of silence at the beginning and at the end
    room: float = 0.5 # share of the talk that gets a room and noise
    seed: int = 1

    def __post_init__(self):
        if self.part not in PARTS:
            raise Refused(f"part={self.part}: expected one of {' '.join(PARTS)}")
        for name in ('hours', 'items', 'workers', 'shard_docs'):
            value = getattr(self, name)
            if not 0 < value < float('inf'):
                raise Refused(f"{name}={value}: expected more than 0")
        if self.first < 0:
            raise Refused(f"first={self.first}: expected 0 or more")
        for name, maximum in (('pause', 5), ('edge', 5), ('room', 1)):
            value = getattr(self, name)
            if not 0 <= value <= maximum:
                raise Refused(f"{name}={value}: expected 0 to {maximum}")

class Unspeakable(ValueError):
    """A sentence whose word times would be a guess. The message is the reason that is counted."""

# ----------------------------------------------------------------------------------------------------------------
# phones of words

PUNCTUATION = '.,:;!?'
STRESS = 'ˈˌ'
# How espeak says words within a sentence, if it says them differently alone. Longer forms come first.
WEAK = {
    'a': ('ɐ', 'ə'), 'an': ('ən', 'ɐn'), 'the': ('ðɪʲ', 'ðɪ', 'ðə'), 'to': ('tʊ', 'tə'),
    'of': ('əv',), 'for': ('fɚɹ', 'fɚ'), 'be': ('biː', 'bi'), 'been': ('bɪn',),
    'have': ('hɐv', 'ɐv'), 'was': ('wʌz',), 'were': ('wɜːɹ',), 'it': ('ɪt',), 'and': ('ænd', 'ən'),
    'that': ('ðət',), 'am': ('ɐm',)}

def bare(phones):
    """The phones without their stress marks."""
    return ''.join(c for c in phones if c not in STRESS)

class Phonemizer:
    """phonemize(text) -> espeak's phones as a string of code points. Recent results are cached."""
    def __init__(self):
        from piper.phonemize_espeak import EspeakPhonemizer
        self.espeak = EspeakPhonemizer()
        self.phones = lru_cache(2 ** 16)(self._phonemize)

    def _phonemize(self, text):
        parts = self.espeak.phonemize('en-us', text)
        return ' '.join(''.join(part).strip() for part in parts)

    def __call__(self, text):
        return self.phones(text)

    def forms(self, word):
        """The ways to say a word, without stress."""
        return (*WEAK.get(word.lower(), ()), bare(self(word)))

def phone_groups(phones):
    """[(first, end)]: token positions of the groups of phones between spaces and punctuation."""
    return [m.span() for m in re.finditer(f'[^ {PUNCTUATION}]+', phones)]

def split_join(phones, words, phonemize):
    """Positions in `phones` where the joined words of a group begin, the first 0. Raises Unspeakable."""
    if len(words) == 1:
        return [0]
    for tail in phonemize.forms(words[-1]):
        if bare(phones).endswith(tail) and len(tail) < len(bare(phones)):
            # Walk back over the phones of the tail and the stress mark that precedes its first syllable.
            remaining = len(tail)
            begin = len(phones)
            while remaining or phones[begin - 1] in STRESS:
                begin -= 1
                remaining -= phones[begin] not in STRESS
            return split_join(phones[:begin], words[:-1], phonemize) + [begin]
    raise Unspeakable('join that cannot be split')

def _distance(group, words, phonemize):
    """The least edit distance, without stress, from a group of phones to any way to say these words."""
    variants = set(map(''.join, product(*map(phonemize.forms, words))))
    variants.add(bare(phonemize(' '.join(words))))
    return min(edit_distance(bare(group), variant) for variant in variants)

def _match_words(group, words, phonemize):
    """(distance, n): the group is nearest to the first n of these words. A smaller n wins a tie."""
    matches = [(len(group), 0)]
    for n in range(1, len(words) + 1):
        matches.append((_distance(group, words[:n], phonemize), n))
        if not matches[-1][0]:
            break
    return min(matches)

def word_tokens(sentence, phones, phonemize):
    """[(first, end)]: token positions in `phones` for each word of `sentence.split()`.

    A group of phones is matched with one word or, if that is not exact, with a join of two or
    three. Raises Unspeakable.
    """
    words = [word.strip(PUNCTUATION + '"\'()') for word in sentence.split()]
    spans = []
    for first, end in phone_groups(phones):
        group = phones[first:end]
        next_words = words[len(spans):]
        distance, n = _match_words(group, next_words[:3], phonemize)
        if not n or distance > max(2, len(bare(group)) // 2):
            raise Unspeakable('phones unlike the words')
        begins = split_join(group, next_words[:n], phonemize)
        for begin, stop in zip(begins, [*begins[1:], len(group)]):
            spans.append((first + begin, first + stop))
    if len(spans) < len(words):
        raise Unspeakable('words without phones')
    return spans

def word_times(phones, spans, samples):
    """Starts and ends (int64, in samples of the wave) of the words.

    samples: the duration of each token, including those of the beginning and the end. The middle of
    a space is the boundary between two words.
    """
    # Token t of phones lasts from edges[t + 1] to edges[t + 2].
    edges = np.concatenate([[0], np.cumsum(samples)])
    def middle(t):
        return (edges[t + 1] + edges[t + 2]) // 2
    starts = []
    ends = []
    for first, end in spans:
        starts.append(middle(first - 1) if phones[:first].endswith(' ') else edges[first + 1])
        ends.append(middle(end) if phones[end:].startswith(' ') else edges[end + 1])
    return np.array(starts), np.array(ends)

def ends_of_sound(wave, rate, starts, ends):
    """The ends of the words. A word with 80 ms or more of silence at its end stops after its last 5 ms of sound."""
    ends = ends.copy()
    hop = rate // 200
    frames = wave[:len(wave) // hop * hop].reshape(-1, hop).astype(np.float64)
    energy = frames ** 2
    loud = energy.mean(1) > 1e-4 * energy.mean()
    for i, first in enumerate(starts // hop):
        loud_frames = np.flatnonzero(loud[first:ends[i] // hop])
        if len(loud_frames):
            sound_end = (first + loud_frames[-1] + 1) * hop
            if ends[i] - sound_end >= 16 * hop:
                ends[i] = sound_end
    return ends

# ----------------------------------------------------------------------------------------------------------------
# engines: phones -> wave, and how many of its samples each token lasts

def _session(model):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])

def _onnx(path):
    import onnx
    from google.protobuf.message import DecodeError
    try:
        return onnx.load(path)
    except (OSError, DecodeError) as e:
        raise Refused(f"{path}: not an ONNX model ({type(e).__name__})") from None

class Piper:
    """A Piper (VITS) voice. Its two noise nodes become inputs, its durations an output."""
    rate, hop, lag = 22_050, 256, 0

    def __init__(self, path):
        settings = json.loads(Path(path + '.json').read_text(encoding='utf-8'))
        self.ids = {c: ids[0] for c, ids in settings['phoneme_id_map'].items()}
        inference = settings['inference']
        scales = ('noise_scale', 'length_scale', 'noise_w')
        self.scales = np.array([inference[name] for name in scales], np.float32)
        self.session = _session(self._with_noise_inputs(_onnx(path), path))

    @staticmethod
    def _with_noise_inputs(model, path):
        from onnx import TensorProto, helper
        graph = model.graph
        durations = [node.output[0] for node in graph.node if node.op_type == 'Ceil']
        # The first noise node is that of the durations, the second that of the wave.
        noise_names = [node.name for node in graph.node if node.op_type == 'RandomNormalLike']
        if len(durations) != 1 or len(noise_names) != 2:
            counts = f"{len(durations)} Ceil, {len(noise_names)} noise nodes"
            raise Refused(f"{path}: not a Piper voice of one speaker ({counts}; expected 1 and 2)")
        nodes = []
        for node in graph.node:
            if node.name == noise_names[0]:
                node = helper.make_node('Identity', ['noise_w'], [node.output[0]])
            elif node.name == noise_names[1]:
                # Cut the noise to the number of frames that this sentence turns out to have.
                nodes.append(helper.make_node('Shape', [node.input[0]], ['noise_shape']))
                node = helper.make_node('Slice', ['noise', 'noise_begin', 'noise_shape'], [node.output[0]])
            nodes.append(node)
        del graph.node[:]
        graph.node.extend(nodes)
        graph.initializer.append(helper.make_tensor('noise_begin', TensorProto.INT64, [3], [0, 0, 0]))
        graph.input.append(helper.make_tensor_value_info('noise_w', TensorProto.FLOAT, [1, 2, None]))
        graph.input.append(helper.make_tensor_value_info('noise', TensorProto.FLOAT, [1, 192, None]))
        # A patched file already has the durations as its second output.
        del graph.output[1:]
        graph.output.append(helper.make_tensor_value_info(durations[0], TensorProto.FLOAT, None))
        return model

    def __call__(self, phones, voice, rng):
        if not set(phones) <= set(self.ids):
            raise Unspeakable('phone unknown to the voice')
        # A pad (id 0) follows the beginning and every phone.
        ids = [self.ids['^'], 0]
        for c in phones:
            ids += [self.ids[c], 0]
        ids.append(self.ids['$'])
        # 16 frames of noise an id are 0.19 s; an id lasts 0.04 s.
        wave, durations = self.session.run(None, {
            'input': np.array([ids]),
            'input_lengths': np.array([len(ids)]),
            'scales': self.scales,
            'noise_w': rng.standard_normal((1, 2, len(ids)), np.float32),
            'noise': rng.standard_normal((1, 192, 16 * len(ids) + 256), np.float32)})
        # A token and its pad count as one.
        frames = np.add.reduceat(durations.ravel(), np.arange(0, len(ids), 2))
        return wave.ravel(), frames.astype(np.int64) * self.hop

class Kokoro:
    """Kokoro-82M: many voices, no noise. Its durations become an output."""
    rate, hop, lag = 24_000, 600, 720

    def __init__(self, folder):
        import onnx
        folder = Path(folder)
        self.ids = json.loads((folder / 'vocab.json').read_text(encoding='utf-8'))['vocab']
        self.styles = {} # of each voice, one for each number of phones
        for voice in (*VOICES, UNSEEN):
            style = np.fromfile(folder / 'voices' / f'{voice}.bin', np.float32)
            self.styles[voice] = style.reshape(-1, 1, 256)
        model = _onnx(folder / 'kokoro-v1.0.int8.onnx')
        model.graph.output.append(onnx.ValueInfoProto(name='/encoder/Clip_output_0'))
        self.session = _session(model)

    def __call__(self, phones, voice, rng):
        # Kokoro lacks the mark of a syllabic consonant. A schwa before it keeps the number of tokens.
        phones = re.sub('(.)\u0329', r'ə\1', phones)
        if not set(phones) <= set(self.ids):
            raise Unspeakable('phone unknown to the voice')
        ids = [self.ids[c] for c in phones]
        wave, durations = self.session.run(None, {
            'tokens': np.array([[0, *ids, 0]]),
            'style': self.styles[voice][len(ids) - 1],
            'speed': np.array([1], np.float32)})
        return wave.ravel(), durations.ravel().astype(np.int64) * self.hop

def say(engine, phonemize, sentence, voice, rng):
    """One sentence: its wave (float32, 16 kHz) and the starts and ends of its words in samples. Raises Unspeakable.

    engine.rate is its sample rate, engine.lag the number of samples by which its durations trail its sound.
    """
    phones = phonemize(sentence)
    spans = word_tokens(sentence, phones, phonemize)
    wave, samples = engine(phones, voice, rng)
    starts, ends = (np.maximum(0, t - engine.lag) for t in word_times(phones, spans, samples))
    ends = ends_of_sound(wave, engine.rate, starts, ends)
    if samples.sum() != len(wave) or not np.isfinite(wave).all() or not (starts < ends).all():
        raise Unspeakable('durations that do not fit the wave')
    wave = np.float32(GAINS[voice]) * resample(wave, engine.rate)
    starts, ends = (np.rint(t * (RATE / engine.rate)).astype(np.int64) for t in (starts, ends))
    first = max(0, starts[0] - BEFORE)
    wave = wave[first:ends[-1] + AFTER]
    ramp = np.linspace(0, 1, FADE, dtype=np.float32)
    wave[:FADE] *= ramp
    wave[-FADE:] *= ramp[::-1]
    return wave, starts - first, ends - first

def document(engine, phonemize, doc, cfg):
    """Joins sentences: (line of docs.jsonl without start, wave int16). Raises Unspeakable."""
    edge = np.zeros(round(cfg.edge * RATE), np.float32)
    pause = np.zeros(round(cfg.pause * RATE), np.float32)
    parts = [edge]
    words = []
    position = len(edge) # of the sentence in the wave
    for i, sentence in enumerate(doc['sentences']):
        rng = _rng(cfg.seed, doc['id'], i)
        wave, starts, ends = say(engine, phonemize, sentence, doc['speaker'], rng)
        for word, start, end in zip(sentence.split(), starts, ends):
            space = ' ' if words else ''
            words.append([space + word, int(position + start), int(position + end)])
        parts += [wave, pause]
        position += len(wave) + len(pause)
    parts[-1] = edge
    wave = np.concatenate(parts)
    room = None
    rng = _rng(cfg.seed, doc['id'], 'room')
    if doc['diverse'] and rng.random() < cfg.room:
        wave, room = in_room(wave, rng)
    line = {'id': doc['id'], 'samples': len(wave), 'text': ' '.join(doc['sentences']),
            'speaker': doc['speaker'], 'room': room, 'words': words}
    return line, np.rint(np.clip(wave, -1, 1) * 32767).astype(np.int16)

def _rng(seed, *name):
    return np.random.default_rng([seed, *hashlib.sha256(repr(name).encode()).digest()])

# ----------------------------------------------------------------------------------------------------------------
# room, noise, level

def impulse_response(rt60, direct_db, rng):
    """1 at sample 0, then noise that starts at 2 ms and decays by 60 dB in rt60 seconds.

    The energy of the direct path is direct_db above that of the rest.
    """
    t = np.arange(int(rt60 * RATE)) / RATE
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / rt60) * (t >= 0.002)
    tail *= np.sqrt(10 ** (-direct_db / 10) / (tail ** 2).sum())
    tail[0] = 1
    return tail

def noise(kind, samples, rng):
    """Noise of unit power.

    white is flat; pink has power 1/f; babble has 1/f^2 above 500 Hz and swells like syllables
    (below 4 Hz).
    """
    f = np.fft.rfftfreq(samples, 1 / RATE)
    def filtered(gain):
        spectrum = np.fft.rfft(rng.standard_normal(samples))
        return np.fft.irfft(spectrum * gain, samples)
    gains = {'white': 1, 'pink': np.maximum(f, 20) ** -0.5, 'babble': 500 / np.maximum(f, 500)}
    x = filtered(gains[kind])
    if kind == 'babble':
        swell = filtered(f < 4)
        x = x * np.exp(0.5 * swell / swell.std())
    return x / np.sqrt((x ** 2).mean())

def in_room(wave, rng):
    """Adds reverberation, noise and a level -> (wave, the settings drawn). Nothing moves in time."""
    room = {
        'rt60': round(rng.uniform(0.15, 0.6), 3),
        'direct_db': round(rng.uniform(3, 15), 3),
        'noise': str(rng.choice(('white', 'pink', 'babble'))),
        'snr_db': round(rng.uniform(10, 30), 3),
        'level_db': round(rng.uniform(-12, 3), 3)}
    response = impulse_response(room['rt60'], room['direct_db'], rng)
    # The FFT is long enough that the product of the spectra does not wrap around.
    n = 1 << (len(wave) + len(response)).bit_length()
    wave = np.fft.irfft(np.fft.rfft(wave, n) * np.fft.rfft(response, n), n)[:len(wave)]
    power = (wave ** 2).mean() * 10 ** (-room['snr_db'] / 10)
    wave = wave + np.sqrt(power) * noise(room['noise'], len(wave), rng)
    wave *= min(10 ** (room['level_db'] / 20), 0.99 / np.abs(wave).max())
    return wave.astype(np.float32), room

# ----------------------------------------------------------------------------------------------------------------
# what to speak: groups of documents; either all of a group is spoken or none of it

WORDS_PER_SECOND = {'stories': 3.4, 'talk': 3.0} # of the two engines, including the margins of a sentence

def _seconds(sentences, cfg):
    """Estimated duration of a document. The number of shards must not depend on what was spoken."""
    words = sum(len(sentence.split()) for sentence in sentences)
    return words / WORDS_PER_SECOND[cfg.part] + cfg.pause * (len(sentences) - 1) + 2 * cfg.edge

def _doc(name, sentences, speaker, diverse=False):
    return {'id': name, 'sentences': list(sentences), 'speaker': speaker, 'diverse': diverse}

def groups(cfg):
    """Yields lists of documents {id, sentences, speaker, diverse}; stories and talk never end."""
    from tiny.stories import items, stories
    from tiny.talk import utterances
    if cfg.part == 'stories':
        for i, story in enumerate(stories('train', 10 ** 9, cfg.seed)):
            yield [_doc(f's{i:06d}', story.sentences, MAIN)]
    elif cfg.part == 'talk':
        for i, utterance in enumerate(utterances(10 ** 9, cfg.seed)):
            yield [_doc(f't{i:06d}', utterance.sentences, VOICES[i % len(VOICES)], diverse=True)]
    else:
        # The unseen voice says the first of the items that the main voice says.
        speaker = MAIN if cfg.part == 'items-main' else UNSEEN
        for i, item in enumerate(items(cfg.items, cfg.seed)):
            name = f'{cfg.part[6]}{i:05d}'
            yield [
                _doc(f'{name}/context', item.context, speaker),
                _doc(f'{name}/right', [item.right], speaker),
                _doc(f'{name}/wrong', [item.wrong], speaker),
                _doc(f'{name}/topic', [item.topic], speaker)]

def plan(cfg):
    """The shards, each a list of groups. More hours add shards and leave the earlier ones alone."""
    source = groups(cfg)
    endless = cfg.part in WORDS_PER_SECOND
    per_shard = cfg.shard_docs if endless else ceil(cfg.shard_docs / 4)
    shards = []
    seconds = 0.0
    while not endless or seconds < cfg.hours * 3600:
        shard = list(islice(source, per_shard))
        if not shard:
            break
        shards.append(shard)
        if endless:
            seconds += sum(_seconds(doc['sentences'], cfg) for group in shard for doc in group)
    return shards

# ----------------------------------------------------------------------------------------------------------------
# shards

def write_shard(folder, shard, speak):
    """Speaks the groups of a shard into a folder that appears when complete. speak(doc) -> line, wave."""
    lines = []
    refused = []
    position = 0 # in audio.flac
    with atomically(folder) as tmp:
        tmp.mkdir()
        with soundfile.SoundFile(tmp / 'audio.flac', 'w', RATE, 1, 'PCM_16') as audio:
            for group in shard:
                try:
                    spoken = [speak(doc) for doc in group]
                except Unspeakable as e:
                    sentences = [sentence for doc in group for sentence in doc['sentences']]
                    refused.append({'id': group[0]['id'], 'sentences': sentences, 'reason': str(e)})
                    continue
                for line, wave in spoken:
                    lines.append({'id': line['id'], 'start': position, **line})
                    audio.write(wave)
                    position += len(wave)
        write_lines(tmp / 'docs.jsonl', lines)
        write_lines(tmp / 'refused.jsonl', refused)

def documents(folder):
    """Reads what was spoken: yields (line of docs.jsonl, wave int16) in order.

    Raises Refused for a folder without shards, and for a shard whose audio is too short.
    """
    shards = sorted(p for p in Path(folder).glob('[0-9]*') if p.suffix != '.tmp')
    if not shards:
        raise Refused(f"{folder}: no speech in it; python -m tiny.build.speak writes it")
    for shard in shards:
        with soundfile.SoundFile(shard / 'audio.flac') as audio:
            for _, line in read_lines(shard / 'docs.jsonl'):
                wave = audio.read(line['samples'], dtype='int16')
                if len(wave) != line['samples']:
                    raise Refused(f"{shard}/audio.flac: ends within {line['id']}; remove {shard} and speak it again")
                yield line, wave

def _is_finished(folder, shard):
    """Whether the shard exists. Raises Refused if it was spoken from other texts."""
    if not folder.exists():
        return False
    texts = {line['id']: line['text'] for _, line in read_lines(folder / 'docs.jsonl')}
    refused = {line['id'] for _, line in read_lines(folder / 'refused.jsonl')}
    expected = {}
    for group in shard:
        if group[0]['id'] not in refused:
            expected |= {doc['id']: ' '.join(doc['sentences']) for doc in group}
    if texts != expected:
        raise Refused(f"{folder}: spoken from other texts than the grammar gives now; "
                      f"remove {folder.parent} or change --out")
    return True

# ----------------------------------------------------------------------------------------------------------------
# the run

_worker = {} # engine and phonemizer of this process

def _speak_shard(cfg, numbered_shard):
    if not _worker:
        _worker['engine'] = Piper(cfg.piper) if _speaks_main(cfg) else Kokoro(cfg.kokoro)
        _worker['phonemize'] = Phonemizer()
    k, shard = numbered_shard
    speak = partial(document, _worker['engine'], _worker['phonemize'], cfg=cfg)
    write_shard(Path(cfg.out) / f'{k:05d}', shard, speak)
    return k

def _speaks_main(cfg):
    return cfg.part in ('stories', 'items-main')

def _asset_hashes(cfg):
    """sha256 of the engine's files that determine the bytes. Raises Refused if one is missing."""
    if _speaks_main(cfg):
        option = 'piper=VOICE.onnx'
        paths = [cfg.piper, cfg.piper + '.json']
    else:
        option = 'kokoro=FOLDER'
        speakers = VOICES if cfg.part == 'talk' else (UNSEEN,)
        names = ('kokoro-v1.0.int8.onnx', 'vocab.json', *(f'voices/{voice}.bin' for voice in speakers))
        paths = [os.path.join(cfg.kokoro, name) for name in names]
    for path in paths:
        if not os.path.isfile(path):
            raise Refused(f"{path}: no such file; --{option} says where the voice is (see tiny/README.md)")
    return {os.path.basename(path): sha256(path) for path in paths}

def _same_settings(cfg):
    """Writes OUT/settings.json, or raises Refused if the shards there have other settings."""
    names = ('part', 'seed', 'shard_docs', 'pause', 'edge', 'room')
    settings = {name: getattr(cfg, name) for name in names}
    settings['assets'] = _asset_hashes(cfg)
    path = Path(cfg.out) / 'settings.json'
    if not path.exists():
        write_json(path, settings)
        return
    written = json.loads(path.read_text(encoding='utf-8'))
    different = [name for name in settings if written.get(name) != settings[name]]
    if different:
        raise Refused(f"{cfg.out}: spoken with another {', '.join(different)}; remove it or change --out")

def _summary(cfg, shards):
    lines = []
    refused = []
    for k in shards:
        folder = Path(cfg.out) / f'{k:05d}'
        lines += [line for _, line in read_lines(folder / 'docs.jsonl')]
        refused += [line for _, line in read_lines(folder / 'refused.jsonl')]
    hours = Counter()
    for line in lines:
        hours[line['speaker']] += line['samples'] / RATE / 3600
    return {
        'part': cfg.part,
        'documents': len(lines),
        'hours': round(sum(hours.values()), 4),
        'words': sum(len(line['words']) for line in lines),
        'in_room': sum(line['room'] is not None for line in lines),
        'refused': len(refused),
        'refused_share': len(refused) / sum(map(len, shards.values())),
        'refused_for': Counter(line['reason'] for line in refused),
        'hours_of': {voice: round(h, 4) for voice, h in sorted(hours.items())},
        **record(cfg)}

def main(cfg):
    _same_settings(cfg)
    shards = dict(list(enumerate(plan(cfg)))[cfg.first:])
    if not shards:
        raise Refused(f"--first={cfg.first}: all shards come before; expected a smaller one, or more hours or items")
    todo = [(k, shard) for k, shard in shards.items() if not _is_finished(Path(cfg.out) / f'{k:05d}', shard)]
    print(f"{cfg.part}: {len(shards)} shards, {len(shards) - len(todo)} of them finished before")
    speak = partial(_speak_shard, cfg)
    with ExitStack() as stack:
        if cfg.workers == 1: # in this process
            results = map(speak, todo)
        else:
            pool = stack.enter_context(ProcessPoolExecutor(cfg.workers, get_context('spawn')))
            results = pool.map(speak, todo)
        for k in progress(results, total=len(todo), unit='shard'):
            if not sys.stderr.isatty():
                print(f"shard {k:05d} done", flush=True)
    info = _summary(cfg, shards)
    write_json(Path(cfg.out) / 'info.json', info)
    print(f"{info['hours']:.2f} h in {info['documents']} documents, {info['refused']} groups refused; "
          f"see {cfg.out}/info.json")

if __name__ == '__main__':
    run(main, Config)
