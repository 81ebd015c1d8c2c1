"""
Train the unit -> mel network of vocoder.py on speech of one voice, and measure what of the words comes through.

    python -m tiny.train_vocoder --speech=out/build/speech/stories --encoder=tiny/hubert --minutes=20 --out=tiny/mel
    python -m tiny.train_vocoder --score=100 --items=out/build/speech/items-main --whisper=FOLDER --out=tiny/mel

Units are made as those to be spoken are: by the encoder, of whole documents. Loss: L1 between log-mels on crops, and the
mean square of the log of a run's length. Adam, cosine. The score is the word error rate of a Whisper on held-out items
(context and right ending, joined): of the audio itself, of its mel through Griffin-Lim, and of its units through the
network with their own run lengths and with predicted ones; with the standard error over items. It goes to OUT/wer.json.
"""
import math
import re
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from audio import RATE
from configurator import Refused, progress, record, run, write_json
from encoders import Encoder, load_centroids
from scores import edit_distance
from tiny.pack import Config as PackConfig
from tiny.pack import encode_part, with_joined
from tiny.speak import documents
from vocoder import MelConfig, UnitToMel, griffin_lim, load_vocoder, log_mel


@dataclass(frozen=True)
class Config:
    speech: str = 'out/build/speech/stories' # shards of tiny/speak.py
    hours: float = 3.0 # of it
    encoder: str = 'tiny/hubert'
    layer: int = 4
    out: str = 'tiny/mel'
    minutes: float = 20.0 # of training
    batch: int = 16 # crops
    crop: int = 75 # frames of 40 ms
    learning_rate: float = 2e-3 # falls to zero
    seed: int = 0
    score: int = 0 # measure on so many items instead of training
    items: str = 'out/build/speech/items-main'
    whisper: str = '' # a Whisper folder with its tokenizer, for the score

def make_encoder(cfg):
    return Encoder(cfg.encoder, cfg.layer, load_centroids(Path(cfg.encoder) / 'kmeans.safetensors'))

# ----------------------------------------------------------------------------------------------------------------
# training

def prepare(cfg, encoder):
    """[(frames (F,), log-mel (4F, 80) float16, units, runs)] of the first hours of speech."""
    data, seconds = [], 0.0
    spoken = documents(cfg.speech)
    while seconds < cfg.hours * 3600 and (part := list(islice(spoken, 256))):
        for (line, wave), doc in zip(part, encode_part(part, encoder)):
            frames = np.repeat(doc['units'], doc['runs'])
            mel = log_mel(torch.from_numpy(wave[:len(frames) * encoder.hop].astype(np.float32) / 32768))
            data.append((torch.from_numpy(frames.astype(np.int64)), mel.half(), torch.from_numpy(doc['units'].astype(np.int64)),
                         torch.from_numpy(doc['runs'].astype(np.int64))))
            seconds += line['samples'] / RATE
    return data

def losses(model, data, cfg, rng):
    """One batch of crops -> mel L1, duration mean square."""
    docs = [data[i] for i in rng.integers(0, len(data), cfg.batch)]
    frames, mels = [], []
    for unit, mel, _, _ in docs:
        at = rng.integers(0, max(1, len(unit) - cfg.crop + 1))
        frames.append(F.pad(unit[at:at + cfg.crop], (0, max(0, cfg.crop - len(unit)))))
        mel = mel[model.up * at:model.up * (at + cfg.crop)].float()
        mels.append(F.pad(mel, (0, 0, 0, model.up * cfg.crop - len(mel)), value=math.nan))
    mel = torch.stack(mels)
    off = (model(torch.stack(frames)).float() - mel).abs()
    _, _, units, runs = docs[0] # durations are easy: one document a step
    return off[~mel.isnan()].mean(), (model.log_durations(units[None])[0].float() - runs.log()).square().mean()

def train(cfg):
    encoder = make_encoder(cfg)
    torch.manual_seed(cfg.seed)
    rng = np.random.default_rng(cfg.seed)
    model = UnitToMel(MelConfig(n_units=encoder.n_units, units_hash=encoder.hash, frame_hz=RATE / encoder.hop))
    data = prepare(cfg, encoder)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.learning_rate)
    start, step, smooth = time.monotonic(), 0, None
    while (done := (time.monotonic() - start) / (60 * cfg.minutes)) < 1:
        for group in optimizer.param_groups: # warm-up of 2 %, then a half cosine
            group['lr'] = cfg.learning_rate * min(done / 0.02 + 0.01, 0.5 + 0.5 * math.cos(math.pi * done))
        with torch.autocast('cpu', torch.bfloat16):
            mel_loss, duration_loss = losses(model, data, cfg, rng)
        (mel_loss + 0.1 * duration_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        smooth = mel_loss.item() if smooth is None else 0.99 * smooth + 0.01 * mel_loss.item()
        if step % 200 == 0:
            print(f"step {step} | {100 * done:.0f} % | mel L1 {smooth:.3f} | duration {duration_loss.item():.3f}", flush=True)
        step += 1
    model.save_pretrained(cfg.out, steps=step, mel_l1=round(smooth, 4), **record(cfg))
    print(f"{cfg.out}: {step} steps, mel L1 {smooth:.3f}")

# ----------------------------------------------------------------------------------------------------------------
# word error rate

def words(text):
    return re.sub(r"[^a-z' ]", ' ', text.lower()).split()

def transcriber(folder):
    """wave (S,) -> text, greedily, by a transformers Whisper."""
    from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor, WhisperForConditionalGeneration
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    features = WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(folder) / 'tokenizer.json'))
    ids = [tokenizer.convert_tokens_to_ids(t) for t in ('<|startoftranscript|>', '<|en|>', '<|transcribe|>', '<|notimestamps|>')]
    if tokenizer.convert_tokens_to_ids('<|zh|>') is None: # an English-only model
        ids = [ids[0], ids[-1]]
    end = tokenizer.convert_tokens_to_ids('<|endoftext|>')
    @torch.inference_mode()
    def transcribe(wave):
        x = features(wave, sampling_rate=RATE, return_tensors='pt').input_features
        encoded, out, cache, new = model.model.encoder(x), [], None, torch.tensor([ids])
        while len(out) < 100:
            step = model(encoder_outputs=encoded, decoder_input_ids=new, past_key_values=cache, use_cache=True)
            cache, token = step.past_key_values, step.logits[0, -1, :end + 1].argmax().item() # text and end: no markup
            if token == end:
                break
            out.append(token)
            new = torch.tensor([[token]])
        return tokenizer.decode(out)
    return transcribe

def score(cfg):
    encoder, model, transcribe = make_encoder(cfg), load_vocoder(cfg.out), transcriber(cfg.whisper)
    wanted = (pair for pair in with_joined(documents(cfg.items), PackConfig()) if pair[0]['id'].endswith('context+right'))
    pairs = list(islice(wanted, cfg.score))
    errors, samples = {}, []
    for (line, wave), doc in zip(progress(pairs, desc='score'), encode_part(pairs, encoder)):
        wave = wave.astype(np.float32) / 32768
        versions = {'original': wave, 'griffin_lim': griffin_lim(log_mel(torch.from_numpy(wave))).numpy(),
                    'units': model.speak([doc['units']], [doc['runs']], encoder.hash)[0],
                    'units, predicted runs': model.speak([doc['units']], None, encoder.hash)[0]}
        truth = words(''.join(w for w, _, _ in line['words']))
        for name, x in versions.items():
            said = words(transcribe(x))
            errors.setdefault(name, []).append((edit_distance(truth, said), len(truth)))
            samples.append({'id': line['id'], 'version': name, 'text': ' '.join(truth), 'heard': ' '.join(said)})
    rows = {}
    for name, of in errors.items():
        wrong, total = np.array(of, dtype=float).T
        wer = wrong.sum() / total.sum()
        spread = math.sqrt(((wrong - wer * total) ** 2).sum() * len(of) / max(1, len(of) - 1)) / total.sum()
        rows[name] = {'wer': wer, 'stderr': spread, 'n': len(of), 'words': int(total.sum())}
        print(f"{name:24} word error rate {100 * wer:5.1f} % +- {100 * spread:.1f} (n = {len(of)}, {int(total.sum())} words)")
    write_json(Path(cfg.out) / 'wer.json', {'rows': rows, 'samples': samples[:40], **record(cfg)})

def main(cfg):
    if cfg.score and not cfg.whisper:
        raise Refused("--score needs --whisper=FOLDER, a transformers Whisper with its tokenizer.json")
    score(cfg) if cfg.score else train(cfg)

if __name__ == '__main__':
    run(main, Config)
