"""
A speech language model with what it needs to hear and to speak: the encoder of its units, a vocoder, and a Whisper
where one is named. The settings (`cfg`) are those of sample.py.

A span is {'kind': TEXT, 'text'} or {'kind': UNITS, 'units', 'runs', 'wave', 'seconds', 'heard'}, as far as each is
known; 'wave' is float32 at 16 kHz, 'heard' what Whisper wrote.
"""
import os
from dataclasses import replace
from time import perf_counter

import torch

from configurator import pick_device
from files import progress
from hub.folders import vocabulary
from listening.page import speech_of
from model import GPT
from speech.audio import RATE, load_audio
from speech.audio_files import names_audio
from speech.unit_cache import load_encoder, wave_for
from speech.units import refuse_foreign_units
from speech.vocoder import load_vocoder, lookahead, settled
from speech.whisper import Whisper
from vocab import TEXT, UNITS, allowed_ids, codebook_order, prompt_ids, spans_of

FIRST_SECONDS = 0.4 # how much is spoken at least before the rest is generated


def is_file(part):
    """Whether a part of a prompt is a file: it is there, or has the suffix of sound or video. Any other is text."""
    path = part.strip()
    return names_audio(path) or os.path.isfile(path) or os.sep in path and os.path.isdir(path)

class Speaker:
    """Loads what cfg names. hears: whether prompts have audio; if not, an encoder is loaded for its hash at most."""
    def __init__(self, cfg, hears):
        device = pick_device(cfg.device)
        self.device = device
        self.vocab, self.tokenizer = vocabulary(cfg.model)
        self.model = GPT.from_pretrained(cfg.model, device=device).eval()
        self.encoder = self.vocoder = None
        # A published model names its encoder, or nothing; the vocoder asks for the encoder's hash.
        knows_hash = self.vocab.units and '/' not in self.vocab.units
        if cfg.output != 'text' and not knows_hash or hears:
            self.encoder = load_encoder(cfg.encoder, cfg.layer, cfg.kmeans, device, self.vocab, cfg.normalize)
            self.vocab = replace(self.vocab, units=self.encoder.hash)
        if cfg.output != 'text':
            self.vocoder = load_vocoder(cfg.vocoder, self.vocab.codebooks).to(device)
            # Refuse other units here, not after everything has been generated.
            refuse_foreign_units([], self.vocab.n_units, self.vocab.units, self.vocoder.cfg.units_hash)
        self.order = codebook_order(self.vocab)
        self.asr = Whisper(cfg.asr, device) if cfg.asr else None

    def read(self, part, seconds):
        """A part of a prompt -> its span. Raises Refused."""
        return self.read_audio(part.strip(), seconds) if is_file(part) else {'kind': TEXT, 'text': part}

    def read_audio(self, path, seconds=0):
        """The span of an audio file, of its first `seconds`; 0: of all. Raises Refused."""
        wave = wave_for(self.encoder, path, seconds=seconds)
        [rows] = self.encoder.encode([wave])
        units, runs = self.encoder.runs(rows)
        if self.encoder.rate != RATE:
            wave = load_audio(path, first=seconds)
        return {'kind': UNITS, 'path': path, 'units': units, 'runs': runs, 'wave': wave, 'seconds': len(wave) / RATE}

    def _choices(self, cfg, may_end):
        """What GPT.generate and GPT.stream take besides the prompts; may_end: whether the model may end a document."""
        allowed, stop = allowed_ids(self.vocab, self.tokenizer, cfg.output)
        allowed[list(stop)] = may_end
        generator = torch.Generator(self.device).manual_seed(cfg.seed)
        return cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.repetition_penalty, allowed, stop, generator

    def _spans(self, tokens, stop):
        return spans_of([token for token in tokens if token not in stop], self.vocab, self.tokenizer)

    def generate(self, cfg, prompts, may_end=True):
        """The spans of a continuation of each prompt, a list of spans; speech as units alone."""
        ids = [prompt_ids(parts, cfg.output, self.vocab, self.tokenizer) for parts in prompts]
        *choices, stop, generator = self._choices(cfg, may_end)
        continuations = []
        for first in progress(range(0, len(ids), cfg.batch), desc='generate'):
            continuations += self.model.generate(ids[first:first + cfg.batch], *choices, stop, generator, **self.order)
        return [self._spans(tokens, stop) for tokens in continuations]

    def grow(self, cfg, prompt, times, may_end=True):
        """Continues one prompt, speaking while it generates. Yields the spans so far, longer each time.

        The wave of a span that goes on ends where no unit to come can change it (settled). The
        seconds that the model and the vocoder take are added to times['generate'] and times['speak'].
        """
        ids = prompt_ids(prompt, cfg.output, self.vocab, self.tokenizer)
        *choices, stop, generator = self._choices(cfg, may_end)
        due = lookahead(self.vocoder) + round(FIRST_SECONDS * RATE / self.vocoder.hop) # tokens before the first sound
        tokens = []
        begin = perf_counter()
        for [token] in self.model.stream([ids], *choices, stop, generator, **self.order):
            tokens.append(token)
            if len(tokens) == due and token not in stop and due < cfg.max_new_tokens:
                # Each time, all is spoken from its start: as the steps grow, that is three times the whole at most.
                due += due // 2
                times['generate'] += perf_counter() - begin
                yield self._spoken(self._spans(tokens, stop), times, goes_on=True)
                begin = perf_counter()
        times['generate'] += perf_counter() - begin
        yield self._spoken(self._spans(tokens, stop), times)

    def _spoken(self, spans, times, goes_on=False):
        """The spans with their waves, the last one's as far as it is settled if it goes on."""
        begin = perf_counter()
        self.speak(spans)
        if goes_on and spans and spans[-1]['kind'] == UNITS:
            spans[-1]['wave'] = spans[-1]['wave'][:settled(self.vocoder, spans[-1]['units'])]
        times['speak'] += perf_counter() - begin
        return spans

    def speak(self, spans):
        """Adds 'wave' and 'seconds' to spans of speech."""
        speech = speech_of(spans)
        waves = self.vocoder.speak([span['units'] for span in speech], units_hash=self.vocab.units) if speech else []
        for span, wave in zip(speech, waves):
            span |= {'wave': wave, 'seconds': len(wave) / RATE}

    def transcribe(self, spans):
        """Adds 'heard' to spans of speech that lack it, if there is a Whisper."""
        speech = [span for span in speech_of(spans) if 'heard' not in span]
        if self.asr:
            for span, text in zip(speech, self.asr.transcribe([span['wave'] for span in speech])):
                span['heard'] = text
