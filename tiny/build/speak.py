"""
Text -> speech with exact word times, for building the embedded corpus (users never need this file).

    pip install -r tiny/build/requirements.txt
    python -m tiny.build.speak --part=stories --hours=40 --workers=2 --piper=VOICE.onnx --out=out/build/speech/stories
    python -m tiny.build.speak --part=talk    --hours=9  --workers=2 --kokoro=FOLDER   --out=out/build/speech/talk
    python -m tiny.build.speak --part=items-main   --items=1000 --piper=VOICE.onnx     --out=out/build/speech/items-main
    python -m tiny.build.speak --part=items-unseen --items=500  --kokoro=FOLDER        --out=out/build/speech/items-unseen

VOICE.onnx (with VOICE.onnx.json beside it) is a Piper voice, en_US-joe-medium here; FOLDER holds Kokoro's int8 model
kokoro-v1.0.int8.onnx, vocab.json and voices/NAME.bin. Both models tell how long each phone lasts; those durations sum
to the samples of the wave, so word times need no aligner:

    word start, end = of its phones; of the one-space token between two words the middle is the boundary;
                      tokens of punctuation are pauses and belong to no word
    silence         = Kokoro's last phone before a pause holds most of it: a word with at least 80 ms of silence (below
                      -40 dB of the sentence's power) at its end ends with its sound. And all of Kokoro's sound comes
                      30 ms before its durations say (pocketsphinx, and the first sound of sentences, against Piper's)
    joins           = espeak runs some words together ("was a" -> wʌzɐ): the last word takes the phones it is known by
    sentence        = from 50 ms before its first word to 150 ms behind its last; a document is its sentences with a
                      fixed silence between them, so whatever sentence follows, the join is the same
    16 kHz          = resampled by 320/441 (Piper) or 2/3 (Kokoro), times rounded to samples there

A sentence whose phones do not map to its words one for one is refused, with its whole group (a story, an item), and
counted. Part of the talk gets a room (exponentially decaying impulse response, direct path at sample 0, so that times
stay), noise at 10-30 dB and a level.

    DIR/00000/audio.flac     16 kHz, 16 bit: the documents of the shard, one after another
    DIR/00000/docs.jsonl     {"id", "start", "samples", "text", "speaker", "room", "words": [[word, start, end], ...]} a
                             line; start in audio.flac, word times from there; words carry the space before them (the
                             first has none), so that together they are the text
    DIR/00000/refused.jsonl  {"id", "sentences", "reason"}: the groups that were not spoken
    DIR/settings.json        what decides the bytes; another run into DIR must have the same
    DIR/info.json            counts and how it was made; comes last

Shard k is a function of these settings and k. A finished shard is skipped, so an interrupted run goes on. Piper's noise
is drawn here, from (seed, document, sentence), instead of by its graph's unseeded nodes, and Kokoro's graph has none:
with one thread a model the same machine repeats its bytes. Other processors may round differently.
"""
import hashlib
import json
import os
import re
import sys
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

BEFORE, AFTER = RATE * 50 // 1000, RATE * 150 // 1000 # what a sentence keeps around its words
FADE = RATE // 200 # 5 ms at both ends of a sentence: no click where silence begins

# gain of each voice, so that its words have an RMS of 0.06 (-24 dBFS)
GAINS = {'joe': 0.97, 'af_heart': 0.79, 'am_michael': 0.90, 'bf_emma': 0.62, 'bm_george': 0.66, 'af_bella': 0.75,
         'am_fenrir': 0.52, 'af_sarah': 0.66, 'bm_daniel': 0.67, 'am_puck': 0.47}
MAIN, UNSEEN = 'joe', 'am_puck'
VOICES = ('af_heart', 'am_michael', 'bf_emma', 'bm_george', 'af_bella', 'am_fenrir', 'af_sarah', 'bm_daniel')
PARTS = ('stories', 'talk', 'items-main', 'items-unseen')

@dataclass(frozen=True)
class Config:
    part: str = 'stories' # what to speak: stories | talk | items-main | items-unseen
    out: str = 'out/build/speech/stories' # a folder for this part alone
    hours: float = 1.0 # of stories or talk, estimated from the number of words; rounded up to whole shards
    items: int = 1000 # of the evaluation parts
    first: int = 0 # the shards before this one are spoken elsewhere (tiny/build/pack.py --keep joins them)
    piper: str = '' # VOICE.onnx, for stories and items-main
    kokoro: str = '' # Kokoro's folder, for talk and items-unseen
    workers: int = 1 # processes, one thread each
    shard_docs: int = 100 # documents (of items: 4 an item) in a shard
    pause: float = 0.25 # seconds of silence between two sentences
    edge: float = 0.1 # seconds of silence at the beginning and at the end
    room: float = 0.5 # share of the talk that gets a room and noise
    seed: int = 1

    def __post_init__(self):
        if self.part not in PARTS:
            raise Refused(f"part={self.part}: expected one of {' '.join(PARTS)}")
        for name in ('hours', 'items', 'workers', 'shard_docs'):
            if not 0 < getattr(self, name) < float('inf'):
                raise Refused(f"{name}={getattr(self, name)}: expected more than 0")
        if self.first < 0:
            raise Refused(f"first={self.first}: expected 0 or more")
        for name, most in (('pause', 5), ('edge', 5), ('room', 1)):
            if not 0 <= getattr(self, name) <= most:
                raise Refused(f"{name}={getattr(self, name)}: expected 0 to {most}")

class Unspeakable(ValueError):
    """A sentence whose word times would be a guess. The message is the reason that is counted."""

# ----------------------------------------------------------------------------------------------------------------
# phones of words

PUNCTUATION = '.,:;!?'
STRESS = 'ˈˌ'
# how espeak says words within a sentence, where that is not how it says them alone; longer forms first
WEAK = {'a': ('ɐ', 'ə'), 'an': ('ən', 'ɐn'), 'the': ('ðɪʲ', 'ðɪ', 'ðə'), 'to': ('tʊ', 'tə'), 'of': ('əv',),
        'for': ('fɚɹ', 'fɚ'), 'be': ('biː', 'bi'), 'been': ('bɪn',), 'have': ('hɐv', 'ɐv'), 'was': ('wʌz',),
        'were': ('wɜːɹ',), 'it': ('ɪt',), 'and': ('ænd', 'ən'), 'that': ('ðət',), 'am': ('ɐm',)}

def bare(phones):
    return ''.join(c for c in phones if c not in STRESS)

class Phonemizer:
    """espeak's phones (code points) of a text; remembers the last ones it was asked for."""
    def __init__(self):
        from piper.phonemize_espeak import EspeakPhonemizer
        espeak = EspeakPhonemizer()
        self.phones = lru_cache(2 ** 16)(
            lambda text: ' '.join(''.join(part).strip() for part in espeak.phonemize('en-us', text)))

    def __call__(self, text):
        return self.phones(text)

    def forms(self, word):
        """How a word may be said, without stress."""
        return (*WEAK.get(word.lower(), ()), bare(self(word)))

def phone_groups(phones):
    """[(first, end)] token positions of what stands between spaces and punctuation."""
    return [m.span() for m in re.finditer(f'[^ {PUNCTUATION}]+', phones)]

def split_join(phones, words, phonemize):
    """Where the words of one group begin in it: positions in `phones`, the first 0. Raises Unspeakable."""
    if len(words) == 1:
        return [0]
    for tail in phonemize.forms(words[-1]):
        if bare(phones).endswith(tail) and len(tail) < len(bare(phones)):
            left = len(tail) # phones that the last word still claims
            begin = len(phones)
            while left or phones[begin - 1] in STRESS: # a stress mark stands before its syllable
                begin -= 1
                left -= phones[begin] not in STRESS
            return split_join(phones[:begin], words[:-1], phonemize) + [begin]
    raise Unspeakable('join that cannot be split')

def _unlike(group, words, phonemize):
    """How far a group of phones is from these words said as one: the least edit distance to any way to say them."""
    said = {bare(phonemize(' '.join(words))), *map(''.join, product(*map(phonemize.forms, words)))}
    return min(edit_distance(bare(group), way) for way in said)

def word_tokens(sentence, phones, phonemize):
    """[(first, end)] token positions in `phones` for each word of `sentence.split()`. Raises Unspeakable."""
    words = [word.strip(PUNCTUATION + '"\'()') for word in sentence.split()]
    spans, at = [], 0
    for first, end in phone_groups(phones):
        group = phones[first:end]
        best = [(len(group), 0)] # (distance, words)
        while best[-1][1] < min(3, len(words) - at) and min(best)[0]: # one word, else a join of two or three
            n = best[-1][1] + 1
            best.append((_unlike(group, words[at:at + n], phonemize), n))
        off, n = min(best)
        if not n or off > max(2, len(bare(group)) // 2):
            raise Unspeakable('phones unlike the words')
        begins = split_join(group, words[at:at + n], phonemize)
        spans += [(first + a, first + b) for a, b in zip(begins, begins[1:] + [len(group)])]
        at += n
    if at < len(words):
        raise Unspeakable('words without phones')
    return spans

def word_times(phones, spans, samples):
    """Starts and ends (int64, in samples of the wave) of the words. samples: how long each token lasts, those of the
    beginning and the end included. The middle of a space is the boundary."""
    edges = np.concatenate([[0], np.cumsum(samples)]) # token t of phones lasts from edges[t + 1] to edges[t + 2]
    middle = lambda t: (edges[t + 1] + edges[t + 2]) // 2
    starts = [middle(a - 1) if a and phones[a - 1] == ' ' else edges[a + 1] for a, b in spans]
    ends = [middle(b) if b < len(phones) and phones[b] == ' ' else edges[b + 1] for a, b in spans]
    return np.array(starts), np.array(ends)

def ends_of_sound(wave, rate, starts, ends):
    """ends, a word that falls silent for 80 ms or more ending with its last 5 ms of sound."""
    hop, ends = rate // 200, ends.copy()
    frames = wave[:len(wave) // hop * hop].reshape(-1, hop).astype(np.float64)
    loud = (frames ** 2).mean(1) > 1e-4 * (frames ** 2).mean()
    for i, first in enumerate(starts // hop):
        heard = np.flatnonzero(loud[first:ends[i] // hop])
        if len(heard) and ends[i] - (first + heard[-1] + 1) * hop >= 16 * hop:
            ends[i] = (first + heard[-1] + 1) * hop
    return ends

# ----------------------------------------------------------------------------------------------------------------
# engines: phones -> wave and how many of its samples each token lasts

def _session(model):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
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
    rate, hop, late = 22_050, 256, 0

    def __init__(self, path, voice):
        settings = json.loads(Path(path + '.json').read_text(encoding='utf-8'))
        self.ids, self.voices = {c: ids[0] for c, ids in settings['phoneme_id_map'].items()}, (voice,)
        inference = settings['inference']
        self.scales = np.array([inference[k] for k in ('noise_scale', 'length_scale', 'noise_w')], np.float32)
        self.session = _session(self._with_noise_inputs(_onnx(path), path))

    @staticmethod
    def _with_noise_inputs(model, path):
        from onnx import TensorProto, helper
        graph, nodes = model.graph, []
        widths = [n.output[0] for n in graph.node if n.op_type == 'Ceil']
        random = [n.name for n in graph.node if n.op_type == 'RandomNormalLike'] # of the durations, then of the wave
        if len(widths) != 1 or len(random) != 2:
            raise Refused(f"{path}: not a Piper voice of one speaker ({len(widths)} Ceil, {len(random)} noise nodes)")
        for n in graph.node:
            if n.name == random[0]:
                n = helper.make_node('Identity', ['noise_w'], [n.output[0]])
            elif n.name == random[1]: # as many frames of the noise as this sentence turns out to have
                nodes.append(helper.make_node('Shape', [n.input[0]], ['noise_shape']))
                n = helper.make_node('Slice', ['noise', 'noise_begin', 'noise_shape'], [n.output[0]])
            nodes.append(n)
        del graph.node[:]
        graph.node.extend(nodes)
        graph.initializer.append(helper.make_tensor('noise_begin', TensorProto.INT64, [3], [0, 0, 0]))
        graph.input.append(helper.make_tensor_value_info('noise_w', TensorProto.FLOAT, [1, 2, None]))
        graph.input.append(helper.make_tensor_value_info('noise', TensorProto.FLOAT, [1, 192, None]))
        del graph.output[1:] # a patched file has the durations already
        graph.output.append(helper.make_tensor_value_info(widths[0], TensorProto.FLOAT, None))
        return model

    def __call__(self, phones, voice, rng):
        if not set(phones) <= set(self.ids):
            raise Unspeakable('phone unknown to the voice')
        ids = [self.ids['^'], 0, *(i for c in phones for i in (self.ids[c], 0)), self.ids['$']] # each followed by a pad
        wave, widths = self.session.run(None, {
            'input': np.array([ids]), 'input_lengths': np.array([len(ids)]), 'scales': self.scales,
            'noise_w': rng.standard_normal((1, 2, len(ids)), np.float32),
            'noise': rng.standard_normal((1, 192, 16 * len(ids) + 256), np.float32)}) # 0.19 s an id: they last 0.04
        return wave.ravel(), np.add.reduceat(widths.ravel(), np.arange(0, len(ids), 2)).astype(np.int64) * self.hop

class Kokoro:
    """Kokoro-82M: many voices, no noise. Its durations become an output."""
    rate, hop, late = 24_000, 600, 720 # late: samples by which the durations trail the sound

    def __init__(self, folder):
        import onnx
        folder = Path(folder)
        self.ids = json.loads((folder / 'vocab.json').read_text(encoding='utf-8'))['vocab']
        self.styles = {voice: np.fromfile(folder / 'voices' / f'{voice}.bin', np.float32).reshape(-1, 1, 256)
                       for voice in (*VOICES, UNSEEN)} # a style for each number of phones
        model = _onnx(folder / 'kokoro-v1.0.int8.onnx')
        model.graph.output.append(onnx.ValueInfoProto(name='/encoder/Clip_output_0'))
        self.session = _session(model)

    def __call__(self, phones, voice, rng):
        phones = re.sub('(.)\u0329', r'ə\1', phones) # it has no mark for a syllabic n: as many tokens without it
        if not set(phones) <= set(self.ids):
            raise Unspeakable('phone unknown to the voice')
        ids = [self.ids[c] for c in phones]
        wave, widths = self.session.run(None, {
            'tokens': np.array([[0, *ids, 0]]), 'style': self.styles[voice][len(ids) - 1],
            'speed': np.array([1], np.float32)})
        return wave.ravel(), widths.ravel().astype(np.int64) * self.hop

def say(engine, phonemize, sentence, voice, rng):
    """One sentence: wave (float32, 16 kHz), starts, ends of its words (in samples of it). Raises Unspeakable."""
    phones = phonemize(sentence)
    spans = word_tokens(sentence, phones, phonemize)
    wave, samples = engine(phones, voice, rng)
    starts, ends = (np.maximum(0, t - engine.late) for t in word_times(phones, spans, samples))
    ends = ends_of_sound(wave, engine.rate, starts, ends)
    if samples.sum() != len(wave) or not np.isfinite(wave).all() or not (starts < ends).all():
        raise Unspeakable('durations that do not fit the wave')
    wave = np.float32(GAINS[voice]) * resample(wave, engine.rate)
    starts, ends = (np.rint(t * (RATE / engine.rate)).astype(np.int64) for t in (starts, ends))
    first, end = max(0, starts[0] - BEFORE), min(len(wave), ends[-1] + AFTER)
    wave = wave[first:end]
    ramp = np.linspace(0, 1, FADE, dtype=np.float32)
    wave[:FADE] *= ramp
    wave[-FADE:] *= ramp[::-1]
    return wave, starts - first, ends - first

def document(engine, phonemize, doc, cfg):
    """A document, its sentences joined: (line of docs.jsonl without start, wave int16). Raises Unspeakable."""
    edge, pause = round(cfg.edge * RATE), round(cfg.pause * RATE)
    parts, words, at = [np.zeros(edge, np.float32)], [], edge
    for i, sentence in enumerate(doc['sentences']):
        wave, starts, ends = say(engine, phonemize, sentence, doc['speaker'], _rng(cfg.seed, doc['id'], i))
        words += [[' ' * bool(words or n) + word, int(at + a), int(at + b)]
                  for n, (word, a, b) in enumerate(zip(sentence.split(), starts, ends))]
        parts += [wave, np.zeros(pause, np.float32)]
        at += len(wave) + pause
    wave, room = np.concatenate(parts[:-1] + parts[:1]), None
    rng = _rng(cfg.seed, doc['id'], 'room')
    if doc['diverse'] and rng.random() < cfg.room:
        wave, room = in_room(wave, rng)
    line = {'id': doc['id'], 'samples': len(wave), 'text': ' '.join(doc['sentences']), 'speaker': doc['speaker'],
            'room': room, 'words': words}
    return line, np.rint(np.clip(wave, -1, 1) * 32767).astype(np.int16)

def _rng(seed, *name):
    return np.random.default_rng([seed, *hashlib.sha256(repr(name).encode()).digest()])

# ----------------------------------------------------------------------------------------------------------------
# room, noise, level

def impulse_response(rt60, direct_db, rng):
    """1 at sample 0, then noise from 2 ms on that falls by 60 dB in rt60 seconds; the direct path's energy is direct_db
    above that of the rest."""
    t = np.arange(int(rt60 * RATE)) / RATE
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / rt60) * (t >= 0.002)
    tail *= np.sqrt(10 ** (-direct_db / 10) / (tail ** 2).sum())
    tail[0] = 1
    return tail

def noise(kind, samples, rng):
    """Noise of unit power. white: flat; pink: power as 1/f; babble: as 1/f^2 above 500 Hz, and swelling like syllables
    (below 4 Hz)."""
    f = np.fft.rfftfreq(samples, 1 / RATE)
    shaped = lambda gain: np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * gain, samples)
    x = shaped({'white': 1, 'pink': np.maximum(f, 20) ** -0.5, 'babble': 500 / np.maximum(f, 500)}[kind])
    if kind == 'babble':
        swell = shaped(f < 4)
        x = x * np.exp(0.5 * swell / swell.std())
    return x / np.sqrt((x ** 2).mean())

def in_room(wave, rng):
    """(wave with reverberation, noise and a level, what was drawn). Nothing moves in time."""
    room = {'rt60': rng.uniform(0.15, 0.6), 'direct_db': rng.uniform(3, 15),
            'noise': str(rng.choice(('white', 'pink', 'babble'))), 'snr_db': rng.uniform(10, 30),
            'level_db': rng.uniform(-12, 3)}
    room = {key: round(x, 3) if isinstance(x, float) else x for key, x in room.items()}
    response = impulse_response(room['rt60'], room['direct_db'], rng)
    n = 1 << (len(wave) + len(response)).bit_length() # long enough that the product of spectra does not wrap around
    wave = np.fft.irfft(np.fft.rfft(wave, n) * np.fft.rfft(response, n), n)[:len(wave)]
    power = (wave ** 2).mean() * 10 ** (-room['snr_db'] / 10)
    wave = wave + np.sqrt(power) * noise(room['noise'], len(wave), rng)
    wave *= min(10 ** (room['level_db'] / 20), 0.99 / np.abs(wave).max())
    return wave.astype(np.float32), room

# ----------------------------------------------------------------------------------------------------------------
# what to speak: groups of documents; a group is spoken whole or not at all

WORDS_PER_SECOND = {'stories': 3.4, 'talk': 3.0} # of the two engines, with the margins of a sentence

def _seconds(sentences, cfg):
    """How long a document will be, about: the number of shards must not depend on what was spoken."""
    words = sum(len(s.split()) for s in sentences)
    return words / WORDS_PER_SECOND[cfg.part] + cfg.pause * (len(sentences) - 1) + 2 * cfg.edge

def groups(cfg):
    """Yields lists of documents {id, sentences, speaker, diverse}, without end for stories and talk."""
    if cfg.part == 'stories':
        from tiny.stories import stories
        for i, story in enumerate(stories('train', 10 ** 9, cfg.seed)):
            yield [{'id': f's{i:06d}', 'sentences': list(story.sentences), 'speaker': MAIN, 'diverse': False}]
    elif cfg.part == 'talk':
        from tiny.talk import utterances
        for i, utterance in enumerate(utterances(10 ** 9, cfg.seed)):
            yield [{'id': f't{i:06d}', 'sentences': list(utterance.sentences), 'speaker': VOICES[i % len(VOICES)],
                    'diverse': True}]
    else:
        from tiny.stories import items
        speaker = MAIN if cfg.part == 'items-main' else UNSEEN
        for i, item in enumerate(items(cfg.items, cfg.seed)): # the unseen voice says the first of the same items
            segments = {'context': item.context, 'right': [item.right], 'wrong': [item.wrong], 'topic': [item.topic]}
            yield [{'id': f'{cfg.part[6]}{i:05d}/{name}', 'sentences': list(said), 'speaker': speaker, 'diverse': False}
                   for name, said in segments.items()]

def plan(cfg):
    """The shards, each a list of groups. More hours only add shards: those before stay as they are."""
    source, shards, seconds = groups(cfg), [], 0.0
    per_shard = cfg.shard_docs if cfg.part in WORDS_PER_SECOND else ceil(cfg.shard_docs / 4)
    while cfg.part not in WORDS_PER_SECOND or seconds < cfg.hours * 3600:
        shard = list(islice(source, per_shard))
        if not shard:
            break
        shards.append(shard)
        if cfg.part in WORDS_PER_SECOND:
            seconds += sum(_seconds(doc['sentences'], cfg) for group in shard for doc in group)
    return shards

# ----------------------------------------------------------------------------------------------------------------
# shards

def write_shard(folder, shard, speak):
    """Speaks the groups of a shard into a folder, complete once it has its name. speak(doc) -> line, wave."""
    with atomically(folder) as tmp:
        tmp.mkdir()
        lines, refused, at = [], [], 0
        with soundfile.SoundFile(tmp / 'audio.flac', 'w', RATE, 1, 'PCM_16') as audio:
            for group in shard:
                try:
                    spoken = [speak(doc) for doc in group]
                except Unspeakable as e:
                    sentences = [sentence for doc in group for sentence in doc['sentences']]
                    refused.append({'id': group[0]['id'], 'sentences': sentences, 'reason': str(e)})
                    continue
                for line, wave in spoken:
                    lines.append({'id': line['id'], 'start': at, **line})
                    audio.write(wave)
                    at += len(wave)
        write_lines(tmp / 'docs.jsonl', lines)
        write_lines(tmp / 'refused.jsonl', refused)

def documents(folder):
    """What was spoken: yields (line of docs.jsonl, wave int16) in order."""
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

def _finished(folder, shard):
    """Whether the shard is there already. Raises Refused if it was spoken from other texts."""
    if not folder.exists():
        return False
    texts = {line['id']: line['text'] for _, line in read_lines(folder / 'docs.jsonl')}
    refused = {line['id'] for _, line in read_lines(folder / 'refused.jsonl')}
    wanted = {doc['id']: ' '.join(doc['sentences'])
              for group in shard if group[0]['id'] not in refused for doc in group}
    if texts != wanted:
        raise Refused(f"{folder}: spoken from other texts than the grammar gives now; remove {folder.parent} or change "
                      "--out")
    return True

# ----------------------------------------------------------------------------------------------------------------
# the run

_worker = {} # engine and phonemizer of this process

def _speak_shard(cfg, numbered):
    if not _worker:
        _worker['engine'] = Piper(cfg.piper, MAIN) if _speaks_main(cfg) else Kokoro(cfg.kokoro)
        _worker['phonemize'] = Phonemizer()
    k, shard = numbered
    speak = lambda doc: document(_worker['engine'], _worker['phonemize'], doc, cfg)
    write_shard(Path(cfg.out) / f'{k:05d}', shard, speak)
    return k

def _speaks_main(cfg):
    return cfg.part in ('stories', 'items-main')

def _asset_hashes(cfg):
    """sha256 of the engine's files that decide the bytes. Raises Refused where one is missing."""
    if _speaks_main(cfg):
        paths = [cfg.piper, cfg.piper + '.json']
    else:
        speakers = VOICES if cfg.part == 'talk' else (UNSEEN,)
        names = ('kokoro-v1.0.int8.onnx', 'vocab.json', *(f'voices/{voice}.bin' for voice in speakers))
        paths = [os.path.join(cfg.kokoro, name) for name in names]
    for path in paths:
        if not os.path.isfile(path):
            option = 'piper=VOICE.onnx' if _speaks_main(cfg) else 'kokoro=FOLDER'
            raise Refused(f"{path}: no such file; --{option} is where the voice is (see tiny/README.md)")
    return {os.path.basename(path): sha256(path) for path in paths}

def _same_settings(cfg):
    """Writes OUT/settings.json, or checks it against this run: shards of different settings never share a folder."""
    settings = {'part': cfg.part, 'seed': cfg.seed, 'shard_docs': cfg.shard_docs, 'pause': cfg.pause, 'edge': cfg.edge,
                'room': cfg.room, 'assets': _asset_hashes(cfg)}
    path = Path(cfg.out) / 'settings.json'
    if path.exists():
        old = json.loads(path.read_text(encoding='utf-8'))
        different = [name for name in settings if old.get(name) != settings[name]]
        if different:
            raise Refused(f"{cfg.out}: spoken with another {', '.join(different)}; remove it or change --out")
    else:
        write_json(path, settings)

def _summary(cfg, shards):
    lines, refused = [], []
    for k in shards:
        lines += [line for _, line in read_lines(Path(cfg.out) / f'{k:05d}' / 'docs.jsonl')]
        refused += [line for _, line in read_lines(Path(cfg.out) / f'{k:05d}' / 'refused.jsonl')]
    hours, reasons = {}, {}
    for line in lines:
        hours[line['speaker']] = hours.get(line['speaker'], 0) + line['samples'] / RATE / 3600
    for line in refused:
        reasons[line['reason']] = reasons.get(line['reason'], 0) + 1
    return {'part': cfg.part, 'documents': len(lines), 'hours': round(sum(hours.values()), 4),
            'words': sum(len(line['words']) for line in lines),
            'in_room': sum(line['room'] is not None for line in lines),
            'refused': len(refused), 'refused_share': len(refused) / sum(map(len, shards.values())), 'refused_for': reasons,
            'hours_of': {voice: round(h, 4) for voice, h in sorted(hours.items())}, **record(cfg)}

def main(cfg):
    _same_settings(cfg)
    shards = dict(list(enumerate(plan(cfg)))[cfg.first:])
    if not shards:
        raise Refused(f"--first={cfg.first}: all shards come before; expected a smaller one, or more hours or items")
    todo = [(k, shard) for k, shard in shards.items() if not _finished(Path(cfg.out) / f'{k:05d}', shard)]
    print(f"{cfg.part}: {len(shards)} shards, {len(shards) - len(todo)} of them finished before")
    speak = partial(_speak_shard, cfg)
    with ExitStack() as stack:
        if cfg.workers == 1: # here
            done = map(speak, todo)
        else:
            done = stack.enter_context(ProcessPoolExecutor(cfg.workers, get_context('spawn'))).map(speak, todo)
        for k in progress(done, total=len(todo), unit='shard'):
            if not sys.stderr.isatty():
                print(f"shard {k:05d} done", flush=True)
    info = _summary(cfg, shards)
    write_json(Path(cfg.out) / 'info.json', info)
    print(f"{info['hours']:.2f} h in {info['documents']} documents, {info['refused']} groups refused; see "
          f"{cfg.out}/info.json")

if __name__ == '__main__':
    run(main, Config)
