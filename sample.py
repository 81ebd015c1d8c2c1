"""
Continues prompts (spoken, written or mixed) with speech, with text, or with both by turns.

    python sample.py --prompt=tiny/audio/m00000.context.flac                    speech -> speech
    python sample.py --prompt=tiny/audio/m00000.context.flac --output=text      speech -> text
    python sample.py --prompt="Tom had a kite." --output=speech                 text -> speech
    python sample.py --prompt="a.wav| and then she said|b.wav" --output=free    mixed -> by turns
    python sample.py --prompts=FOLDER_OR_TXT --n=4      each audio file, or line of the .txt, four times
    python sample.py --prompts=FOLDER --asr=openai/whisper-base    and transcribe all speech

The parts of a prompt are separated by |. Each is the path of an audio file, or else text. Documents
are those of eval.py: without separators if prompt and continuation are of one modality, otherwise
with <speech> or <text> before each span.

The folder --out gets files for each continuation, numbered through all prompts, and two for all:

    000.wav          the continuation's speech, one span after another, if there is any
    000.txt          its text, if there is any
    000.prompt.wav   the audio of its prompt, as far as it was used
    000.heard.txt    with --asr, a line for each span of prompt and continuation, heard or written
    samples.json     the spans with their units, runs, text and what was heard; the settings
    samples.html     a page without other files: players, a strip of spans over time, their words

What a spoken prompt says is known from the manifest.jsonl of its folder (a part of it, if that has the
times of words) or from NAME.txt beside it; what a spoken continuation says, from --asr alone.
"""
import base64
import html
import io
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from configurator import Refused, pick_device, run
from corpora.folder import transcripts
from files import atomically, lines, progress, record, write_json
from hub.folders import vocabulary
from locks import writing_in
from model import GPT
from speech.audio import RATE, load_audio
from speech.audio_files import audio_files, names_audio
from speech.unit_cache import load_encoder, wave_for
from speech.units import deduplicate, refuse_foreign_units
from speech.vocoder import load_vocoder
from speech.whisper import Whisper
from vocab import TEXT, UNITS, allowed_ids, prompt_ids, spans_of


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
    device: str = 'auto' # 'cpu', 'cuda', or 'auto': cuda if there is a GPU

    def __post_init__(self):
        if bool(self.prompt) == bool(self.prompts) or self.prompt and has_empty_part(self.prompt.split('|')):
            raise Refused("expected --prompt=FILES_AND_TEXTS (separated by |, none of them empty), "
                          "or --prompts=FOLDER_OR_TXT")
        if self.output not in ('speech', 'text', 'free'):
            raise Refused(f"output is {self.output!r}, expected speech, text or free")
        for key in ('n', 'max_new_tokens', 'top_k', 'repetition_penalty', 'batch'):
            if getattr(self, key) <= 0:
                raise Refused(f"{key} is {getattr(self, key)}, must be above 0")
        if self.temperature < 0 or self.seconds < 0:
            raise Refused("temperature and seconds must not be negative")

NAMES = {UNITS: 'speech', TEXT: 'text'}

# --------------------------------------------------------------------------------------------------
# prompts

def has_empty_part(parts):
    return not all(map(str.strip, parts))

def is_file(part):
    """Whether a part of a prompt is a file: it is there, or has the suffix of sound or video. Any other is text."""
    path = part.strip()
    return names_audio(path) or os.path.isfile(path) or os.sep in path and os.path.isdir(path)

def all_prompts(cfg):
    """The prompt of --prompt, or of each file or line of --prompts -> [[part, ...], ...]"""
    if cfg.prompt:
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

def read_part(part, cfg, encoder):
    """-> {'kind': TEXT, 'text'}, or of audio {'kind': UNITS, 'path', 'units', 'runs', 'wave'}."""
    if not is_file(part):
        return {'kind': TEXT, 'text': part}
    path = part.strip()
    units, runs = deduplicate(encoder.encode([wave_for(encoder, path, seconds=cfg.seconds)])[0])
    wave = load_audio(path)[:round(cfg.seconds * RATE) or None]
    return {'kind': UNITS, 'path': path, 'units': units, 'runs': runs, 'wave': wave}

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
# the page

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
 body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem;
         color: #222; background: #fff }}
 article {{ border-top: 1px solid #ddd; padding: .75rem 0 1rem }}
 h1 {{ font-size: 1.4rem }} h2 {{ font-size: 1rem; margin: .25rem 0 }}
 audio {{ width: 100%; height: 2.5rem }} .about {{ color: #666 }} p {{ margin: .25rem 0; overflow-wrap: anywhere }}
 .strip {{ display: flex; gap: 2px; margin: .35rem 0; font-size: .8rem; line-height: 1.6rem }}
 .strip span {{ min-width: 2px; padding: 0 .3rem; overflow: hidden; white-space: nowrap;
               text-overflow: ellipsis; border-radius: 3px }}
 .strip .speech {{ background: #0072B2; color: #fff }} .strip .text {{ background: #F0C870; color: #222 }}
 mark {{ background: none; color: #222; border-bottom: 3px solid #F0C870 }} mark.speech {{ border-color: #0072B2 }}
</style>
<h1>{title}</h1><p class="about">{about}</p>
{body}</html>
"""
SECONDS_A_WORD = 0.35 # the width of a written word in the strip, about what saying it takes

def text_of_span(span):
    """A span's text, or what Whisper heard in its speech, or what is known to be said; None if nothing is."""
    return span['text'] if span['kind'] == TEXT else span.get('heard', span.get('transcript'))

def strip(spans):
    """The spans as bars over time, as wide as they last, or as reading them aloud would last."""
    bars = []
    for span in spans:
        if span['kind'] == UNITS:
            seconds = span['seconds']
            label = f"{seconds:.1f} s"
        else:
            seconds = SECONDS_A_WORD * len(span['text'].split())
            label = html.escape(span['text'])
        bars.append(f'<span class="{NAMES[span["kind"]]}" style="flex:{100 * max(seconds, 0.05):.0f} 1 0" '
                    f'title="{html.escape(text_of_span(span) or label)}">{label}</span>')
    return f'<div class="strip">{"".join(bars)}</div>'

def marked_words(spans):
    """The words of the spans, each span underlined in the color of its modality."""
    marks = [f'<mark class="{NAMES[span["kind"]]}">{html.escape(text_of_span(span)) or "(nothing)"}</mark>'
             for span in spans if text_of_span(span) is not None]
    return f'<p>{" ".join(marks)}</p>' if marks else ''

def speech_of(spans):
    return [span for span in spans if span['kind'] == UNITS]

def joined_waves(spans):
    """The speech of all spans as one wave; None if there is none."""
    waves = [span['wave'] for span in speech_of(spans)]
    return np.concatenate(waves) if waves else None

def wav_bytes(wave):
    data = io.BytesIO()
    soundfile.write(data, wave, RATE, format='WAV', subtype='PCM_16')
    return data.getvalue()

def player(spans):
    """The audio of the spans; nothing if they have none."""
    wave = joined_waves(spans)
    if wave is None:
        return ''
    data = base64.b64encode(wav_bytes(wave)).decode()
    return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'

def section(heading, spans):
    if not spans:
        return f'<h2>{heading}</h2><p class="about">(ended at once)</p>'
    return f'<h2>{heading}</h2>{strip(spans)}{marked_words(spans)}{player(spans)}'

def page(samples, cfg):
    """samples.html: strip, words and player of each prompt and continuation, with their audio."""
    articles = []
    for sample in samples:
        prompt = section(f"{sample['name']} prompt", sample['prompt'])
        continuation = section('continuation', sample['spans'])
        articles.append(f'<article>{prompt}{continuation}</article>')
    about = (f"{html.escape(cfg.model)}, temperature {cfg.temperature:g}, top-k {cfg.top_k}, "
             f"seed {cfg.seed}. Audio is 16 kHz; continuations are spoken by "
             f"{html.escape(cfg.vocoder)} from generated units. Blue is speech, yellow text.")
    if cfg.asr:
        about += f" The words of speech are what {html.escape(cfg.asr)} heard."
    else:
        about += " The words of spoken prompts are those of their text files; of spoken continuations, none are known."
    return PAGE.format(title="nanoSLM samples", about=about, body='\n'.join(articles))

# --------------------------------------------------------------------------------------------------
# files

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

def generate(cfg, model, vocab, tokenizer, prompts, device):
    """The spans of n continuations of each prompt, prompt after prompt; speech as units alone."""
    ids = [prompt_ids(parts, cfg.output, vocab, tokenizer) for parts in prompts for _ in range(cfg.n)]
    allowed, stop = allowed_ids(vocab, tokenizer, cfg.output)
    generator = torch.Generator(device).manual_seed(cfg.seed)
    continuations = []
    for first in progress(range(0, len(ids), cfg.batch), desc='generate'):
        continuations += model.generate(
            ids[first:first + cfg.batch], cfg.max_new_tokens, cfg.temperature, cfg.top_k,
            cfg.repetition_penalty, allowed.to(device), stop, generator)
    return [spans_of([t for t in tokens if t not in stop], vocab, tokenizer) for tokens in continuations]

def load_speech(cfg, prompts, vocab, device):
    """-> (encoder, vocoder, vocab with the hash of its units); None for what is not needed."""
    encoder = vocoder = None
    # A published model names its encoder, or nothing; the vocoder asks for the encoder's hash.
    knows_hash = vocab.units and '/' not in vocab.units
    if cfg.output != 'text' and not knows_hash or any(map(is_file, sum(prompts, []))):
        encoder = load_encoder(cfg.encoder, cfg.layer, cfg.kmeans, device, vocab, cfg.normalize)
        vocab = replace(vocab, units=encoder.hash)
    if cfg.output != 'text':
        vocoder = load_vocoder(cfg.vocoder).to(device)
        # Refuse other units here, not after everything has been generated.
        refuse_foreign_units([], vocab.n_units, vocab.units, vocoder.cfg.units_hash)
    return encoder, vocoder, vocab

def main(cfg):
    with writing_in(cfg.out):
        continue_prompts(cfg)

def continue_prompts(cfg):
    device = pick_device(cfg.device)
    vocab, tokenizer = vocabulary(cfg.model)
    model = GPT.from_pretrained(cfg.model, device=device).eval()
    prompts = all_prompts(cfg)
    encoder, vocoder, vocab = load_speech(cfg, prompts, vocab, device)
    asr = Whisper(cfg.asr, device) if cfg.asr else None
    prompts = [[read_part(part, cfg, encoder) for part in parts] for parts in prompts]
    recorded = speech_of(sum(prompts, []))
    add_transcripts(recorded, cfg.seconds)
    continuations = generate(cfg, model, vocab, tokenizer, prompts, device)

    # ---- speak what was generated, and transcribe all speech
    spoken = speech_of(sum(continuations, []))
    waves = vocoder.speak([span['units'] for span in spoken], units_hash=vocab.units) if spoken else []
    for span, wave in zip(spoken, waves):
        span |= {'seconds': len(wave) / RATE, 'wave': wave}
    if asr:
        audible = recorded + spoken
        for span, text in zip(audible, asr.transcribe([span['wave'] for span in audible])):
            span['heard'] = text
    for part in recorded:
        part['seconds'] = len(part['wave']) / RATE

    # ---- write it
    out = Path(cfg.out)
    samples = []
    for i, spans in enumerate(continuations):
        prompt = prompts[i // cfg.n]
        sample = {'name': f'{i:03d}', 'prompt': prompt, 'spans': spans}
        write_sample(sample, out)
        samples.append(sample)
        source = ' | '.join(part.get('path') or part['text'] for part in prompt)
        print(f"{sample['name']} | {source} -> {' | '.join(map(describe, spans)) or '(ended at once)'}")
    write_bytes(out / 'samples.html', page(samples, cfg).encode())
    for sample in samples:
        sample['prompt'] = list(map(as_json, sample['prompt']))
        sample['spans'] = list(map(as_json, sample['spans']))
    write_json(out / 'samples.json', {'samples': samples, **record(cfg)})
    print(f"{out}/samples.html: {len(samples)} samples")

if __name__ == '__main__':
    run(main, Config)
