"""
Text -> speech with exact word times. Only building the embedded corpus needs this script.

    pip install -r tiny/build/requirements.txt
    out=out/build/speech
    python -m tiny.build.speak --part=stories --hours=40 --workers=2 --piper=VOICE.onnx --out=$out/stories
    python -m tiny.build.speak --part=talk    --hours=9  --workers=2 --kokoro=FOLDER   --out=$out/talk
    python -m tiny.build.speak --part=items-main   --items=1000 --piper=VOICE.onnx     --out=$out/items-main
    python -m tiny.build.speak --part=items-unseen --items=500  --kokoro=FOLDER        --out=$out/items-unseen

The parts voices (other stories, in the voices of the talk), world (what speech tells of the world of
tiny/world.py) and knowledge (items that ask for what it does not tell) are spoken likewise; build.sh
has every command.

VOICE.onnx is a Piper voice (en_US-joe-medium here) with VOICE.onnx.json beside it. FOLDER holds
Kokoro's int8 model kokoro-v1.0.int8.onnx, vocab.json and voices/NAME.bin. Both models say when each
phone is spoken; tiny/build/engines.py runs them and turns that into word times.

    sentences    A sentence is cut from 50 ms before its first word to 150 ms after its last. A
                 document is its sentences with a fixed silence between them, so the join never
                 depends on the next sentence.
    16 kHz       The wave is resampled by 320/441 (Piper) or 2/3 (Kokoro), and times are rounded to
                 its samples.

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
can go on. Piper's noise is drawn from (seed, document, sentence); Kokoro has none. With one thread
per model, the same machine repeats its bytes; other processors may round differently.
"""
import hashlib
import json
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import ceil
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile

from configurator import Refused, run
from files import atomically, progress, read_lines, record, sha256, write_json, write_lines
from speech.audio import RATE, resample
from tiny.build.engines import (
    GAINS,
    MAIN,
    UNSEEN,
    VOICES,
    Kokoro,
    Phonemizer,
    Piper,
    Unspeakable,
    ends_of_sound,
    word_times,
    word_tokens,
)
from tiny.unpack import read_packed

# What a sentence keeps around its words, in samples.
BEFORE = RATE * 50 // 1000
AFTER = RATE * 150 // 1000
# The fade at both ends of a sentence (5 ms) avoids a click where silence begins.
FADE = RATE // 200

PARTS = ('stories', 'voices', 'world', 'talk', 'items-main', 'items-unseen', 'knowledge')
# The packed files (tiny/unpack.py) with documents of each part.
PACKED_IN = {
    'stories': ('stories', 'stories-more'), 'voices': ('voices',), 'world': ('world',), 'talk': ('talk', 'talk-more'),
    'items-main': ('items',), 'items-unseen': ('items',), 'knowledge': ('knowledge',)}
VOICES_SEED = 1000 # added to the seed of the stories in other voices, so that they are other stories

@dataclass(frozen=True)
class Config:
    part: str = 'stories' # what to speak: stories | voices | world | talk | items-main | items-unseen | knowledge
    out: str = 'out/build/speech/stories' # a folder for this part alone
    hours: float = 1.0 # of a part without items, estimated from the number of words; rounded up to whole shards
    items: int = 1000 # items of an evaluation part
    first: int = 0 # first shard to speak; earlier ones are spoken elsewhere (tiny/build/pack.py --keep joins them)
    packed: str = '' # folder of packed files; shards that are in them are not spoken again
    piper: str = '' # VOICE.onnx, for stories, world, items-main and knowledge
    kokoro: str = '' # Kokoro's folder, for voices, talk and items-unseen
    workers: int = 1 # processes, one thread each
    shard_docs: int = 100 # documents in a shard; an item counts as 4
    pause: float = 0.25 # seconds of silence between two sentences
    edge: float = 0.1 # seconds of silence at the beginning and at the end
    room: float = 0.5 # share of the talk that gets a room and noise
    seed: int = 1 # of the texts, of Piper's noise and of the rooms

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

# --------------------------------------------------------------------------------------------------
# a sentence, a document

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

# --------------------------------------------------------------------------------------------------
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

# --------------------------------------------------------------------------------------------------
# what to speak: groups of documents; either all of a group is spoken or none of it

# Of the two engines, including the margins of a sentence.
WORDS_PER_SECOND = {'stories': 3.4, 'world': 3.4, 'voices': 3.0, 'talk': 3.0}

def _seconds(sentences, cfg):
    """Estimated duration of a document. The number of shards must not depend on what was spoken."""
    words = sum(len(sentence.split()) for sentence in sentences)
    return words / WORDS_PER_SECOND[cfg.part] + cfg.pause * (len(sentences) - 1) + 2 * cfg.edge

def _doc(name, sentences, speaker, diverse=False):
    return {'id': name, 'sentences': list(sentences), 'speaker': speaker, 'diverse': diverse}

def groups(cfg):
    """Yields lists of documents {id, sentences, speaker, diverse}; they never end, except for those of items."""
    from tiny import world
    from tiny.stories import items, stories
    from tiny.talk import utterances
    if cfg.part == 'stories':
        for i, story in enumerate(stories('train', 10 ** 9, cfg.seed)):
            yield [_doc(f's{i:06d}', story.sentences, MAIN)]
    elif cfg.part == 'voices':
        for i, story in enumerate(stories('train', 10 ** 9, cfg.seed + VOICES_SEED)):
            yield [_doc(f'v{i:06d}', story.sentences, VOICES[i % len(VOICES)])]
    elif cfg.part == 'talk':
        for i, utterance in enumerate(utterances(10 ** 9, cfg.seed)):
            yield [_doc(f't{i:06d}', utterance.sentences, VOICES[i % len(VOICES)], diverse=True)]
    elif cfg.part == 'world':
        for known in world.documents(10 ** 9, cfg.seed, spoken=True):
            yield [_doc(known.id, known.sentences, MAIN)]
    elif cfg.part == 'knowledge':
        for item in world.items(cfg.items, cfg.seed):
            yield [
                _doc(f'{item.id}/context', item.context, MAIN),
                _doc(f'{item.id}/right', [item.right], MAIN),
                _doc(f'{item.id}/wrong', [item.wrong], MAIN)]
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

# --------------------------------------------------------------------------------------------------
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
    shards = sorted(p for p in Path(folder).glob('[0-9]*') if p.name.isdigit())
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

# --------------------------------------------------------------------------------------------------
# the run

_worker = {} # the engine and the phonemizer of this process, made when it speaks its first shard

def _speak_shard(cfg, numbered_shard):
    if not _worker:
        _worker['engine'] = Piper(cfg.piper) if _speaks_main(cfg) else Kokoro(cfg.kokoro)
        _worker['phonemize'] = Phonemizer()
    k, shard = numbered_shard
    speak = partial(document, _worker['engine'], _worker['phonemize'], cfg=cfg)
    write_shard(Path(cfg.out) / f'{k:05d}', shard, speak)
    return k

def _speaks_main(cfg):
    return cfg.part in ('stories', 'world', 'items-main', 'knowledge')

def _asset_hashes(cfg):
    """{file: sha256} of the engine's files, which determine the bytes. Raises Refused if one is missing."""
    if _speaks_main(cfg):
        option = 'piper=VOICE.onnx'
        paths = [cfg.piper, cfg.piper + '.json']
    else:
        option = 'kokoro=FOLDER'
        speakers = VOICES if cfg.part in ('voices', 'talk') else (UNSEEN,)
        names = ('kokoro-v1.0.int8.onnx', 'vocab.json', *(f'voices/{voice}.bin' for voice in speakers))
        paths = [os.path.join(cfg.kokoro, name) for name in names]
    for path in paths:
        if not os.path.isfile(path):
            raise Refused(f"{path}: no such file; --{option} says where the voice is (see tiny/README.md)")
    return {os.path.basename(path): sha256(path) for path in paths}

def _packed_ids(cfg):
    """The ids of the documents of this part that are packed already."""
    ids = set()
    for name in PACKED_IN[cfg.part] if cfg.packed else ():
        path = Path(cfg.packed) / f'{name}.npz.xz'
        if path.exists():
            ids |= {doc['id'] for doc in read_packed(path)[0]}
    return ids

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
    packed = _packed_ids(cfg)
    shards = {k: shard for k, shard in list(enumerate(plan(cfg)))[cfg.first:]
              if not any(doc['id'] in packed for group in shard for doc in group)}
    if not shards and packed:
        return print(f"{cfg.part}: {cfg.packed} has all of it, nothing to speak")
    if not shards:
        raise Refused(f"--first={cfg.first}: all shards come before; expected a smaller one, or more hours or items")
    _same_settings(cfg)
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
