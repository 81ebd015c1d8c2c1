"""
Continue prompts: spoken, written or mixed ones, in speech, in text, or freely in both by turns.

    python sample.py --model=tiny/slm --prompt=tiny/audio/m00000.context.flac                speech -> speech
    python sample.py --model=tiny/slm --prompt=tiny/audio/m00000.context.flac --output=text  speech -> text
    python sample.py --model=tiny/slm --prompt="Tom had a kite." --output=speech             text -> speech
    python sample.py --prompt="a.wav| and then she said|b.wav" --output=free                 mixed -> by turns
    python sample.py --prompts=FOLDER --n=4         each audio file of a folder, or each line of a .txt, is a prompt
    python sample.py --prompts=FOLDER --asr=openai/whisper-base         and what Whisper hears in each span of speech

The parts of a prompt, separated by |, are paths of audio files or else text. The documents are those of eval.py: where all
is one modality there is no separator; else <speech> or <text> stands before each span of one modality.

Written to --out, for prompt and continuation i: 000.wav (its speech, spans one behind the other) and 000.txt (its text),
where it has some; 000.prompt.wav (what was used of an audio prompt); with --asr 000.heard.txt, a line a span of prompt and
continuation, heard or written; samples.json (spans with their units, runs, text, and what was heard; settings);
samples.html, one page that needs nothing else: players, each sample's spans as a strip over its time, and their words.
"""
import base64
import html
import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from configurator import Refused, pick_device, run
from files import atomically, progress, record, write_json
from hub.folders import vocabulary
from model import GPT
from speech.audio import RATE, load_audio
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
    output: str = 'speech' # speech, text, or free: both, by turns, as the model likes
    seconds: float = 3.0 # of each audio file that are used, from its start; 0: all
    n: int = 1 # continuations a prompt
    max_new_tokens: int = 100
    temperature: float = 0.8 # 0: always the most likely
    top_k: int = 25
    repetition_penalty: float = 1.0
    seed: int = 0
    batch: int = 16 # continuations made at once
    encoder: str = 'tiny/hubert'
    layer: int = 4
    kmeans: str | None = None # None: kmeans.safetensors in the encoder's folder
    vocoder: str = 'tiny/vocoder'
    asr: str = '' # Whisper, a folder or hub id, to write down what is said in prompts and continuations; '': none
    out: str = 'out/samples'
    device: str = 'auto' # cpu, cuda; auto: cuda where there is one

    def __post_init__(self):
        if bool(self.prompt) == bool(self.prompts) or self.prompt and not all(map(str.strip, self.prompt.split('|'))):
            raise Refused("expected --prompt=FILES_AND_TEXTS (separated by |, none of them empty), or --prompts=FOLDER_OR_TXT")
        if self.output not in ('speech', 'text', 'free'):
            raise Refused(f"output is {self.output!r}, expected speech, text or free")
        for key in ('n', 'max_new_tokens', 'top_k', 'repetition_penalty', 'batch'):
            if getattr(self, key) <= 0:
                raise Refused(f"{key} is {getattr(self, key)}, must be above 0")
        if self.temperature < 0 or self.seconds < 0:
            raise Refused("temperature and seconds must not be negative")

AUDIO = {'.wav', '.flac', '.ogg', '.mp3'}
NAMES = {UNITS: 'speech', TEXT: 'text'}

# ----------------------------------------------------------------------------------------------------------------
# prompts

def all_prompts(cfg):
    """[[part, ...], ...]: of --prompt, or of each file or line of --prompts."""
    if cfg.prompt:
        return [cfg.prompt.split('|')]
    path = Path(cfg.prompts)
    try:
        found = sorted(str(p) for p in path.iterdir() if p.suffix.lower() in AUDIO) if path.is_dir() else \
            [line for line in path.read_text(encoding='utf-8-sig').splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise Refused(f"{path}: expected a folder of audio, or UTF-8 text with a prompt a line ({e})") from None
    if not found:
        raise Refused(f"{path}: no prompt in it; expected {' '.join(sorted(AUDIO))} files, or lines")
    if path.is_dir():
        return [[file] for file in found]
    for line in found:
        if not all(map(str.strip, line.split('|'))):
            raise Refused(f"{path}: {line!r}: expected audio files and texts separated by |, none of them empty")
    return [line.split('|') for line in found]

def is_audio(part):
    return Path(part.strip()).suffix.lower() in AUDIO

def read_part(part, cfg, encoder):
    """{'kind': TEXT, 'text'} or {'kind': UNITS, 'path', 'units', 'runs', 'wave'} of a part of a prompt."""
    if not is_audio(part):
        return {'kind': TEXT, 'text': part}
    path = part.strip()
    units, runs = deduplicate(encoder.encode([wave_for(encoder, path, seconds=cfg.seconds)])[0])
    return {'kind': UNITS, 'path': path, 'units': units, 'runs': runs, 'wave': load_audio(path)[:round(cfg.seconds * RATE) or None]}

# ----------------------------------------------------------------------------------------------------------------
# files

def wav_bytes(wave):
    data = io.BytesIO()
    soundfile.write(data, wave, RATE, format='WAV', subtype='PCM_16')
    return data.getvalue()

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
 body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }}
 article {{ border-top: 1px solid #ddd; padding: .75rem 0 1rem }}
 h1 {{ font-size: 1.4rem }} h2 {{ font-size: 1rem; margin: .25rem 0 }}
 audio {{ width: 100%; height: 2.5rem }} .about {{ color: #666 }} p {{ margin: .25rem 0; overflow-wrap: anywhere }}
 .strip {{ display: flex; gap: 2px; margin: .35rem 0; font-size: .8rem; line-height: 1.6rem }}
 .strip span {{ min-width: 2px; padding: 0 .3rem; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; border-radius: 3px }}
 .strip .speech {{ background: #0072B2; color: #fff }} .strip .text {{ background: #F0C870; color: #222 }}
 mark {{ background: none; color: #222; border-bottom: 3px solid #F0C870 }} mark.speech {{ border-color: #0072B2 }}
</style>
<h1>{title}</h1><p class="about">{about}</p>
{body}</html>
"""
WORD = 0.35 # seconds that a written word takes in the strip, about what saying it takes

def said(span):
    """What a span says: its text, or what was heard; None where nobody listened."""
    return span['text'] if span['kind'] == TEXT else span.get('heard')

def strip(spans):
    """Spans as bars over time: as wide as they last, or as reading them out would."""
    bars = []
    for span in spans:
        wide = span['seconds'] if span['kind'] == UNITS else WORD * len(span['text'].split())
        label = f"{span['seconds']:.1f} s" if span['kind'] == UNITS else html.escape(span['text'])
        bars.append(f'<span class="{NAMES[span["kind"]]}" style="flex:{100 * max(wide, 0.05):.0f} 1 0" '
                    f'title="{html.escape(said(span) or label)}">{label}</span>')
    return f'<div class="strip">{"".join(bars)}</div>'

def player(wave):
    return f'<audio controls src="data:audio/wav;base64,{base64.b64encode(wav_bytes(wave)).decode()}"></audio>'

def told(span):
    """A span of a continuation in the terminal."""
    if span['kind'] == TEXT:
        return repr(span['text'])
    return f"{span['seconds']:.2f} s of speech, {len(span['units'])} units" + (f", {span['heard']!r}" if 'heard' in span else '')

def words(spans):
    """The words of the spans one behind the other, each underlined in the color of its modality."""
    marks = [f'<mark class="{NAMES[span["kind"]]}">{html.escape(said(span)) or "(nothing)"}</mark>'
             for span in spans if said(span) is not None]
    return f'<p>{" ".join(marks)}</p>' if marks else ''

def page(samples, cfg):
    """samples.html: prompt and continuation of each sample as strips, words and players, audio inside the page."""
    def part(name, spans, wave):
        return f'<h2>{name}</h2>' + strip(spans) + words(spans) + ('' if wave is None else player(wave))
    body = '\n'.join('<article>' + part(f"{s['name']} prompt", s['prompt'], s['prompt_wave'])
                     + part('continuation', s['spans'], s['wave']) + '</article>' for s in samples)
    about = (f"{html.escape(cfg.model)}, temperature {cfg.temperature:g}, top-k {cfg.top_k}, seed {cfg.seed}. Audio is 16 kHz; "
             f"continuations are spoken by {html.escape(cfg.vocoder)} from generated units. Blue is speech, yellow text."
             + (f" The words of speech are what {html.escape(cfg.asr)} heard." if cfg.asr else ''))
    return PAGE.format(title="nanoSLM samples", about=about, body=body)

def joined(waves):
    """One wave of several, None of none."""
    return np.concatenate(waves) if waves else None

def write(out, name, data):
    with atomically(out / name) as tmp:
        tmp.write_bytes(data)

def keep(sample, out):
    """The files of one sample."""
    text = ' '.join(span['text'] for span in sample['spans'] if span['kind'] == TEXT)
    for name, wave in ((f"{sample['name']}.wav", sample['wave']), (f"{sample['name']}.prompt.wav", sample['prompt_wave'])):
        if wave is not None:
            write(out, name, wav_bytes(wave))
    if any(span['kind'] == TEXT for span in sample['spans']):
        write(out, f"{sample['name']}.txt", (text + '\n').encode())
    if any('heard' in span for part in ('prompt', 'spans') for span in sample[part]):
        lines = [f"{name}\t{NAMES[span['kind']]}\t{' '.join(said(span).split())}\n" for name, spans in (
            ('prompt', sample['prompt']), ('continuation', sample['spans'])) for span in spans]
        write(out, f"{sample['name']}.heard.txt", ''.join(lines).encode())

# ----------------------------------------------------------------------------------------------------------------

def generate(cfg, model, vocab, tokenizer, prompts, device):
    """For each prompt and continuation its spans; speech not yet spoken."""
    ids = [prompt_ids(parts, cfg.output, vocab, tokenizer) for parts in prompts for _ in range(cfg.n)]
    allowed, stop = allowed_ids(vocab, tokenizer, cfg.output)
    generator, new = torch.Generator(device).manual_seed(cfg.seed), []
    for at in progress(range(0, len(ids), cfg.batch), desc='generate'):
        new += model.generate(ids[at:at + cfg.batch], cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.repetition_penalty,
                              allowed.to(device), stop, generator)
    return [spans_of([t for t in tokens if t not in stop], vocab, tokenizer) for tokens in new]

def main(cfg):
    device = pick_device(cfg.device)
    (vocab, tokenizer), model = vocabulary(cfg.model), GPT.from_pretrained(cfg.model, device=device).eval()
    encoder, vocoder, parts = None, None, all_prompts(cfg)
    if any(is_audio(part) for prompt in parts for part in prompt) or cfg.output != 'text' and '/' in (vocab.units or '/'): # unknown, or by a name: the vocoder asks
        encoder = load_encoder(cfg.encoder, cfg.layer, cfg.kmeans, device, vocab)
        vocab = replace(vocab, units=encoder.hash)
    if cfg.output != 'text':
        vocoder = load_vocoder(cfg.vocoder).to(device)
        refuse_foreign_units([], vocab.n_units, vocab.units, vocoder.cfg.units_hash) # now, not when all has been generated
    asr = Whisper(cfg.asr, device) if cfg.asr else None
    prompts = [[read_part(part, cfg, encoder) for part in prompt] for prompt in parts]
    made = generate(cfg, model, vocab, tokenizer, prompts, device)
    spoken = [span for spans in made for span in spans if span['kind'] == UNITS]
    waves = vocoder.speak([span['units'] for span in spoken], units_hash=vocab.units) if spoken else []
    for span, wave in zip(spoken, waves):
        span |= {'seconds': len(wave) / RATE, 'wave': wave}
    if asr:
        audible = [part for prompt in prompts for part in prompt if part['kind'] == UNITS] + spoken
        for span, text in zip(audible, asr.transcribe([span['wave'] for span in audible])):
            span['heard'] = text
    samples, out = [], Path(cfg.out)
    for i, spans in enumerate(made):
        prompt = [{**part, 'seconds': len(part['wave']) / RATE} if part['kind'] == UNITS else part for part in prompts[i // cfg.n]]
        sample = {'name': f'{i:03d}', 'prompt': prompt, 'prompt_wave': joined([p['wave'] for p in prompt if p['kind'] == UNITS]),
                  'spans': spans, 'wave': joined([span['wave'] for span in spans if span['kind'] == UNITS])}
        keep(sample, out)
        samples.append(sample)
        print(f"{sample['name']} | {' | '.join(p.get('path') or p['text'] for p in prompt)} -> {' | '.join(map(told, spans)) or 'nothing'}")
    write(out, 'samples.html', page(samples, cfg).encode())
    plain = lambda span: {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in span.items() if k != 'wave'} \
        | {'kind': NAMES[span['kind']]}
    write_json(out / 'samples.json', {'samples': [{'name': s['name'], 'prompt': list(map(plain, s['prompt'])),
                                                   'spans': list(map(plain, s['spans']))} for s in samples], **record(cfg)})
    print(f"{out}/samples.html: {len(samples)} samples")

if __name__ == '__main__':
    run(main, Config)
