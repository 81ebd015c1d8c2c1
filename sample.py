"""
Continues prompts (spoken, written or mixed) with speech, with text, or with both by turns.

    python sample.py --prompt=tiny/audio/m00000.context.flac                    speech -> speech
    python sample.py --prompt=tiny/audio/m00000.context.flac --output=text      speech -> text
    python sample.py --prompt="Tom had a kite." --output=speech                 text -> speech
    python sample.py --prompt="a.wav| and then she said|b.wav" --output=free    mixed -> by turns
    python sample.py --prompts=FOLDER_OR_TXT --n=4      each audio file, or line of the .txt, four times
    python sample.py --prompts=FOLDER --asr=openai/whisper-base    and transcribe all speech
    python sample.py --serve=7860    a page to talk to the model, at http://127.0.0.1:7860 (pip install gradio)

The parts of a prompt are separated by |. Each is the path of an audio file, or else text. Documents
are those of eval.py: without separators if prompt and continuation are of one modality, otherwise
with <speech> or <text> before each span.

The folder --out gets files for each continuation, numbered through all prompts, and two for all; those of an
earlier run, as its samples.json names them, are removed first:

    000.wav          the continuation's speech, one span after another, if there is any
    000.txt          its text, if there is any
    000.prompt.wav   the audio of its prompt, as far as it was used
    000.heard.txt    with --asr, a line for each span of prompt and continuation, heard or written
    samples.json     the spans with their units, runs, text and what was heard; the settings
    samples.html     a page without other files: players, a strip of spans over time, their words

What a spoken prompt says is known from the manifest.jsonl of its folder (a part of it, if that has the
times of words) or from NAME.txt beside it; what a spoken continuation says, from --asr alone.
"""
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configurator import Refused, run
from corpora.folder import transcripts
from files import atomically, lines, read_value, record, write_json
from listening.page import NAMES, joined_waves, page, speech_of, text_of_span, wav_bytes
from listening.speaker import Speaker, is_file
from locks import writing_in
from speech.audio import RATE
from speech.audio_files import audio_files
from vocab import TEXT

SUFFIXES = ('wav', 'txt', 'prompt.wav', 'heard.txt') # of a sample's files

@dataclass(frozen=True)
class Config:
    model: str = 'tiny/slm' # a folder that train.py wrote
    prompt: str = '' # one prompt: audio files and texts, separated by |
    prompts: str = '' # or many: a folder of audio, or a .txt with a prompt a line
    output: str = 'speech' # 'speech', 'text', or 'free': both by turns, as the model likes
    seconds: float = 3.0 # how much of each audio file is used, from its start; 0: all
    n: int = 1 # continuations a prompt
    max_new_tokens: int = 100 # length of a continuation in tokens, at most; 25 units take a second or more
    temperature: float = 0.8 # 0: always the most likely token
    top_k: int = 25 # number of the likeliest tokens to sample from
    repetition_penalty: float = 1.0 # above 1: tokens that are there already become less likely
    seed: int = 0 # of the sampling
    batch: int = 16 # continuations generated at once
    encoder: str = 'tiny/hubert' # encoder of the model's units
    layer: int = 4 # layer of the encoder that the units come from
    kmeans: str | None = None # file of the units' centroids; None: kmeans.safetensors in the encoder's folder
    normalize: bool | None = None # of the units' waves, as for tokenize_speech.py
    vocoder: str = 'tiny/vocoder' # folder of the vocoder that speaks the units
    asr: str = '' # Whisper, a folder or hub id, to transcribe prompts and continuations; '': none
    out: str = 'out/samples' # folder for the audio, text and page
    serve: int = 0 # port of a page to talk to the model; 0: none
    host: str = '127.0.0.1' # address that the page is served at; 0.0.0.0: to other machines too
    device: str = 'auto' # 'cpu', 'cuda', or 'auto': cuda if there is a GPU

    def __post_init__(self):
        if self.serve:
            if self.prompt or self.prompts:
                raise Refused("serve: a page takes its prompts from whoever speaks: leave --prompt and --prompts out")
        elif bool(self.prompt) == bool(self.prompts) or self.prompt and has_empty_part(self.prompt.split('|')):
            raise Refused("expected --prompt=FILES_AND_TEXTS (separated by |, none of them empty), "
                          "or --prompts=FOLDER_OR_TXT")
        if self.output not in ('speech', 'text', 'free'):
            raise Refused(f"output is {self.output!r}, expected speech, text or free")
        for key in ('n', 'max_new_tokens', 'top_k', 'repetition_penalty', 'batch'):
            if getattr(self, key) <= 0:
                raise Refused(f"{key} is {getattr(self, key)}, must be above 0")
        if self.temperature < 0 or self.seconds < 0:
            raise Refused("temperature and seconds must not be negative")

# --------------------------------------------------------------------------------------------------
# prompts

def has_surrogates(text):
    """Whether a text has halves of characters, which Python makes of arguments that are not UTF-8."""
    return any('\ud800' <= character <= '\udfff' for character in text)

def has_empty_part(parts):
    return not all(map(str.strip, parts))

def all_prompts(cfg):
    """The prompt of --prompt, or of each file or line of --prompts -> [[part, ...], ...]"""
    if cfg.prompt:
        for part in cfg.prompt.split('|'):
            if not is_file(part) and has_surrogates(part):
                raise Refused(f"prompt: {part!r} is not UTF-8; expected text in UTF-8, or files of audio")
        return [cfg.prompt.split('|')]
    path = Path(cfg.prompts)
    if path.is_dir():
        if Path(cfg.out).is_dir() and os.path.samefile(path, cfg.out):
            raise Refused(f"{path}: is --out too, whose continuations would be prompts; take another --out")
        paths, _ = audio_files(path, cfg.out)
        prompts = [[part] for part in paths.values()]
    else:
        prompts = [line.split('|') for _, line in lines(path)]
    if not prompts:
        raise Refused(f"{path}: no prompt in it; expected lines or files of audio")
    for parts in prompts:
        if has_empty_part(parts):
            raise Refused(f"{path}: {'|'.join(parts)!r}: expected audio files and texts separated by |, "
                          "none of them empty")
    return prompts

def add_transcripts(recorded, seconds):
    """Adds 'transcript', what is said in audio, where a file beside it tells; in the first seconds, by word times."""
    known = transcripts([part['path'] for part in recorded])
    for part in recorded:
        text, words = known[part['path']]
        if seconds and len(part['wave']) == round(seconds * RATE): # the audio may go on
            timed = words and all(start is not None for _, start, _ in words)
            text = ' '.join(word for word, start, _ in words if start < seconds) if timed else None
        if text:
            part['transcript'] = text

# --------------------------------------------------------------------------------------------------
# files

def remove_earlier(out):
    """Removes the files of samples that an earlier run left, as its samples.json names them."""
    try:
        names = [sample['name'] for sample in read_value(out / 'samples.json')['samples']]
    except (OSError, ValueError, KeyError, TypeError): # there is none, or it is not of this script
        return
    for name in names:
        if re.fullmatch(r'\d{3,}', str(name)):
            for suffix in SUFFIXES:
                (out / f'{name}.{suffix}').unlink(missing_ok=True)

def write_bytes(path, data):
    with atomically(path) as tmp:
        tmp.write_bytes(data)

def write_sample(sample, out):
    """Writes the .wav and .txt files of one sample."""
    path = f"{out}/{sample['name']}"
    for suffix, spans in (('wav', sample['spans']), ('prompt.wav', sample['prompt'])):
        wave = joined_waves(spans)
        if wave is not None:
            write_bytes(f'{path}.{suffix}', wav_bytes(wave))
    texts = [span['text'] for span in sample['spans'] if span['kind'] == TEXT]
    if texts:
        write_bytes(f'{path}.txt', f"{' '.join(texts)}\n".encode())
    if any('heard' in span for span in sample['prompt'] + sample['spans']):
        lines = []
        for part, spans in (('prompt', sample['prompt']), ('continuation', sample['spans'])):
            for span in spans:
                words = ' '.join(text_of_span(span).split())
                lines.append(f"{part}\t{NAMES[span['kind']]}\t{words}\n")
        write_bytes(f'{path}.heard.txt', ''.join(lines).encode())

def describe(span):
    """A span of a continuation for the terminal."""
    if span['kind'] == TEXT:
        return repr(span['text'])
    heard = f", {span['heard']!r}" if 'heard' in span else ''
    return f"{span['seconds']:.2f} s of speech, {len(span['units'])} units{heard}"

def as_json(span):
    """A span for samples.json: without its wave, arrays as lists."""
    fields = {}
    for key, value in span.items():
        if key != 'wave':
            fields[key] = value.tolist() if isinstance(value, np.ndarray) else value
    return fields | {'kind': NAMES[span['kind']]}

# --------------------------------------------------------------------------------------------------

def main(cfg):
    with writing_in(cfg.out):
        if cfg.serve:
            from listening.talk import serve  # needs Gradio
            serve(cfg)
        else:
            continue_prompts(cfg)

def continue_prompts(cfg):
    prompts = all_prompts(cfg)
    speaker = Speaker(cfg, hears=any(map(is_file, sum(prompts, []))))
    prompts = [[speaker.read(part, cfg.seconds) for part in parts] for parts in prompts]
    add_transcripts(speech_of(sum(prompts, [])), cfg.seconds)
    continuations = speaker.generate(cfg, [parts for parts in prompts for _ in range(cfg.n)])
    speaker.speak(sum(continuations, []))
    speaker.transcribe(sum(prompts + continuations, []))

    # ---- write it; samples.json first, as it names the files that the next run removes
    out = Path(cfg.out)
    remove_earlier(out)
    samples = []
    for i, spans in enumerate(continuations):
        samples.append({'name': f'{i:03d}', 'prompt': prompts[i // cfg.n], 'spans': spans})
    described = []
    for sample in samples:
        described.append({'name': sample['name'], 'prompt': list(map(as_json, sample['prompt'])),
                          'spans': list(map(as_json, sample['spans']))})
    write_json(out / 'samples.json', {'samples': described, **record(cfg)})
    for sample in samples:
        write_sample(sample, out)
        source = ' | '.join(part.get('path') or part['text'] for part in sample['prompt'])
        print(f"{sample['name']} | {source} -> {' | '.join(map(describe, sample['spans'])) or '(ended at once)'}")
    write_bytes(out / 'samples.html', page(samples, cfg).encode('utf-8', 'backslashreplace'))
    print(f"{out}/samples.html: {len(samples)} samples")

if __name__ == '__main__':
    run(main, Config)
