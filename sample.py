"""
Continue a prompt, spoken or written, in speech or in text.

    python sample.py --model=out/tiny --prompt=tiny/audio/m00000.flac                     speech -> speech
    python sample.py --model=out/tiny --prompt=tiny/audio/m00000.flac --output=text       speech -> text
    python sample.py --model=out/tiny --prompt="Tom wanted a red kite." --output=speech   text -> speech

A prompt is the path of an audio file or else text; several are separated by |. The documents are those of eval.py: one
modality goes on without a separator, a change of modality is <speech> .. <text> .. or <text> .. <speech> ..
Written to --out: 000.wav (a spoken continuation) or 000.txt, 000.prompt.wav (the part of an audio prompt that was used),
samples.json (units, texts, settings) and samples.html, one page with players that needs nothing else.
"""
import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from audio import RATE, load_audio, resample
from configurator import Refused, atomically, record, run, write_json
from encoders import Encoder, centroids_path, load_centroids
from model import GPT
from tokenize_speech import deduplicate
from vocab import TEXT, UNIT, TextTokenizer, Vocab
from vocoder import UnitToMel


@dataclass(frozen=True)
class Config:
    model: str = 'out/tiny' # a folder that train.py wrote
    prompt: str = '' # audio files or texts, separated by |
    output: str = 'speech' # speech or text
    seconds: float = 3.0 # of an audio prompt that are used, from its start; 0: all
    n: int = 1 # continuations a prompt
    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 25
    repetition_penalty: float = 1.0
    seed: int = 0
    encoder: str = 'tiny/hubert' # a HubertModel with kmeans.safetensors in its folder
    layer: int = 4
    vocoder: str = 'tiny/mel'
    out: str = 'out/samples'
    device: str = 'auto' # cpu, cuda; auto: cuda where there is one

    def __post_init__(self):
        if not all(self.prompts):
            raise Refused("expected --prompt=FILE_OR_TEXT (several separated by |), none of them empty")
        if self.output not in ('speech', 'text'):
            raise Refused(f"output is {self.output!r}, expected speech or text")
        for key in ('n', 'max_new_tokens', 'top_k', 'repetition_penalty'):
            if getattr(self, key) <= 0:
                raise Refused(f"{key} is {getattr(self, key)}, must be above 0")
        if self.temperature < 0 or self.seconds < 0:
            raise Refused("temperature and seconds must not be negative")

    @property
    def prompts(self):
        return [part.strip() for part in self.prompt.split('|')]

AUDIO = {'.wav', '.flac', '.ogg', '.mp3'}

def read_prompt(text, cfg, encoder):
    """{'text'} or {'path', 'units', 'runs', 'wave'} of one prompt."""
    if Path(text).suffix.lower() not in AUDIO:
        return {'text': text}
    wave = load_audio(text)[:round(cfg.seconds * RATE) or None]
    if len(wave) < encoder.hop:
        raise Refused(f"{text}: {len(wave)} samples at 16 kHz, one unit takes {encoder.hop}")
    units, runs = deduplicate(encoder.encode([resample(wave, RATE, encoder.rate)])[0])
    return {'path': text, 'units': units, 'runs': runs, 'wave': wave}

def prompt_ids(prompt, output, vocab, tokenizer):
    """The ids that the continuation follows."""
    spoken = 'units' in prompt
    if vocab.kind == 'speech':
        if not spoken or output == 'text':
            raise Refused("a speech-only model reads and writes speech alone: give an audio prompt and --output=speech")
        return [vocab.bos, *vocab.unit_to_token(prompt['units']).tolist()]
    if vocab.kind == 'text' and (spoken or output == 'speech'):
        raise Refused("a text-only model reads and writes text alone: give a text prompt and --output=text")
    body = vocab.unit_to_token(prompt['units']).tolist() if spoken else tokenizer.encode(prompt['text'])
    if spoken == (output == 'speech'):
        return [*tokenizer.first, *body]
    before, after = (vocab.speech, vocab.text) if spoken else (vocab.text, vocab.speech)
    return [*tokenizer.first, before, *body, after]

def allowed_ids(vocab, tokenizer, output):
    """(V,) bool: the ids of the wanted modality and what ends a document; and the ids that end it."""
    kind = vocab.modality(np.arange(vocab.size))
    allowed = torch.from_numpy(kind == (UNIT if output == 'speech' else TEXT))
    stop = {vocab.bos} if vocab.kind == 'speech' else {tokenizer.eot} - {None}
    allowed[list(stop)] = True
    return allowed, stop

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
 audio {{ width: 100%; height: 2.5rem }} .from {{ color: #666 }} p {{ margin: .25rem 0; overflow-wrap: anywhere }}
</style>
<h1>{title}</h1><p class="from">{about}</p>
{body}</html>
"""

def page(samples, cfg):
    """samples.html: prompt and continuation of each sample, audio inside the page."""
    def part(name, text, wave):
        player = '' if wave is None else \
            f'<audio controls src="data:audio/wav;base64,{base64.b64encode(wav_bytes(wave)).decode()}"></audio>'
        return f'<h2>{name}</h2>' + (f'<p>{html.escape(text)}</p>' if text else '') + player
    body = '\n'.join('<article>' + part(f"Prompt ({s['from']})", s['prompt_text'], s['prompt_wave'])
                     + part(f"Continuation ({s['to']})", s['text'], s['wave']) + '</article>' for s in samples)
    about = (f"{html.escape(cfg.model)}, temperature {cfg.temperature:g}, top-k {cfg.top_k}, seed {cfg.seed}. Audio is 16 kHz; "
             "continuations are spoken by the vocoder from generated units.")
    return PAGE.format(title="nanoSLM samples", about=about, body=body)

def main(cfg):
    device = ('cuda' if torch.cuda.is_available() else 'cpu') if cfg.device == 'auto' else cfg.device
    vocab, model = Vocab.load(cfg.model), GPT.from_pretrained(cfg.model, device=device).eval()
    tokenizer = None if vocab.kind == 'speech' else TextTokenizer(cfg.model)
    encoder = vocoder = None
    if any(Path(p).suffix.lower() in AUDIO for p in cfg.prompts):
        kmeans = centroids_path(cfg.encoder)
        encoder = Encoder(cfg.encoder, cfg.layer, kmeans and load_centroids(kmeans), device)
        if vocab.units and encoder.hash != vocab.units:
            raise Refused(f"{cfg.encoder}: its units are {encoder.hash}, the model was trained on {vocab.units}")
    if cfg.output == 'speech':
        vocoder = UnitToMel.from_pretrained(cfg.vocoder)
    prompts = [read_prompt(p, cfg, encoder) for p in cfg.prompts]
    ids = [prompt_ids(p, cfg.output, vocab, tokenizer) for p in prompts]
    allowed, stop = allowed_ids(vocab, tokenizer, cfg.output)
    generator = torch.Generator(device).manual_seed(cfg.seed)
    new = model.generate([x for x in ids for _ in range(cfg.n)], cfg.max_new_tokens, cfg.temperature, cfg.top_k,
                         cfg.repetition_penalty, allowed.to(device), stop, generator)
    samples, out = [], Path(cfg.out)
    for i, tokens in enumerate(new):
        prompt, tokens = prompts[i // cfg.n], [t for t in tokens if t not in stop]
        name = f"{i:03d}"
        sample = {'name': name, 'from': 'speech' if 'units' in prompt else 'text', 'to': cfg.output,
                  'prompt_text': prompt.get('text') or prompt.get('path'), 'prompt_wave': prompt.get('wave'),
                  'text': '', 'wave': None, 'units': []}
        if cfg.output == 'text':
            sample['text'] = tokenizer.decode(tokens).strip()
            with atomically(out / f'{name}.txt') as tmp:
                tmp.write_text(sample['text'] + '\n', encoding='utf-8')
        else:
            sample['units'] = vocab.token_to_unit(tokens).tolist()
            sample['wave'] = vocoder.speak(sample['units'], units_hash=vocab.units)
            for file, wave in ((f'{name}.wav', sample['wave']), (f'{name}.prompt.wav', prompt.get('wave'))):
                if wave is not None:
                    with atomically(out / file) as tmp:
                        tmp.write_bytes(wav_bytes(wave))
        samples.append(sample)
        said = f"{len(sample['wave']) / RATE:.2f} s of speech, {len(sample['units'])} units" \
            if cfg.output == 'speech' else repr(sample['text'])
        print(f"{name} | {sample['prompt_text']} | -> {said}")
    with atomically(out / 'samples.html') as tmp:
        tmp.write_text(page(samples, cfg), encoding='utf-8')
    keep = [{k: v for k, v in s.items() if not k.endswith('wave')} for s in samples]
    write_json(out / 'samples.json', {'samples': keep, **record(cfg)})
    print(f"{out}/samples.html: {len(samples)} samples")

if __name__ == '__main__':
    run(main, Config)
