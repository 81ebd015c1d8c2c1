"""
Speech -> what is said and when, by a Whisper of transformers, multilingual or English only.

    whisper = Whisper('openai/whisper-large-v3-turbo')
    whisper.transcribe([wave, ...])     -> [text, ...]
    whisper.align([wave, ...])          -> [(words, starts, ends, reason), ...]

Waves are float32 at 16 kHz, times are samples. Audio longer than 30 s is cut into windows at its
quietest moments (`cuts` of speech/ctc.py). Windows are decoded greedily, 16 at a time, each without
its neighbors. Only tokens of text are allowed, none of time or markup.

Times come from one forward pass over a window and its text y_1..y_n: the best monotone path
(`viterbi` of speech/ctc.py) through the encoder's frames of 20 ms. Its states are the tokens of the
text and the end token; state s scores at frame t

    x_t(s) = mean over heads of median_7 over t of (w - mean_s w) / std_s w
    w = softmax_t(q_s k_t / sqrt(d))

for the cross-attention heads listed in generation_config.json, else for all heads in the upper half
of the decoder (openai-whisper's timing.py, whose DTW also lets two tokens share a frame). A word
ends where the token after it begins. Then both its edges move inwards over silence (`tighten` of
speech/ctc.py). If the text of a window loops, `align` cuts the window in two and decodes the
halves; a window that is already short is refused.

Whisper writes "you" or "Thank you." where nothing is said. So a window without sound is not decoded:
no 20 ms of it are above -80 dB of full scale. And `align` leaves out, and counts, words

  of a window that Whisper gives a probability above 0.5 that nobody speaks, or a text all in brackets;
  whose loudest 20 ms are below -80 dB, or 60 dB below the level that a twentieth of the wave exceeds.

Of tiny.en and base, that probability was 0.50 to 0.99 for silence, noise, tones, hum and clicks of
1 to 30 s (70 waves), at most 0.26 for 113 utterances of LibriSpeech, and at most 0.35 for speech in
as much noise as can be understood (to -5 dB); the faintest of the utterances' words was 49 dB below
that level. What `transcribe` writes of audible sound is left as it is: it is what is scored.
"""
import json
import math
import re
import zlib
from itertools import compress

import numpy as np
import torch

from configurator import Refused
from files import progress
from speech.audio import RATE
from speech.ctc import cuts, load_aligner, tighten, viterbi
from speech.pretrained import model_file

SHORTEST = 8 * RATE # only a piece longer than this is cut again when its text loops
AUDIBLE = RATE // 10 # Whisper invents words for audio shorter than this
BATCH = 16 # windows at once
# Bytes of a text over bytes of its zlib. Above this the text repeats itself: knitting patterns have
# 2.4, loops 5 and more.
LOOP = 3.0
NO_SPEECH = 0.5 # probability of <|nospeech|> above which nobody speaks in a window
SILENCE = -80.0 # dB of full scale; 16 bits of dither have -92
FAINT = 60.0 # dB below the level that a twentieth of a wave exceeds
SPACELESS = {'zh', 'ja', 'th', 'lo', 'my', 'yue'} # languages whose words are single characters here

def levels(wave):
    """float32 (N,) at 16 kHz -> the level of every 20 ms without its mean, in dB of full scale."""
    size = RATE // 50
    n = max(1, len(wave) // size)
    frames = np.zeros((n, size)) # a shorter wave is one frame
    flat = np.asarray(wave[:n * size], np.float64)
    frames.flat[:len(flat)] = flat
    return 10 * np.log10(np.maximum(frames.var(1), 1e-30))

def is_audible(wave):
    return bool(levels(wave).max() > SILENCE)

def heard(wave, starts, ends):
    """Whether each word, from start to end in samples of the wave, has a sound."""
    level = levels(wave)
    floor = max(SILENCE, np.quantile(level, 0.95) - FAINT)
    size = RATE // 50
    return [bool(level[min(start // size, len(level) - 1):-(-end // size) or 1].max(initial=-300) > floor)
            for start, end in zip(starts, ends)]

def is_no_speech(text):
    """Whether a window's text has no words: nothing at all, or all in brackets, as (water running)."""
    return bool(re.fullmatch(r'\s*|\s*(\[[^]]*\]|\([^)]*\)|\*[^*]*\*|♪.*♪|♪)\s*', text, re.DOTALL))

def spell(pieces, spaceless=False):
    """Joins the texts of token groups into words, by their spaces -> [(word, first, end)].

    A word is said in the groups first..end-1. A group without letters and digits (a dash) joins the
    word before it or, at the beginning, the first word. It adds no time at the word's end: group
    end-1 has its last letter.
    """
    words = [] # [word, first, end]
    for i, piece in enumerate(pieces):
        spoken = any(c.isalnum() for c in piece)
        if spoken and (not words or piece[:1].isspace() or spaceless):
            words.append([piece, i, i + 1])
        elif words:
            words[-1][0] += piece
            if spoken:
                words[-1][2] = i + 1
        else:
            words.append([piece, i, i])
    if len(words) > 1 and words[0][1] == words[0][2]: # the first word has signs only
        sign, first, _ = words.pop(0)
        words[0][0] = sign + words[0][0]
        words[0][1] = first
    return [tuple(word) for word in words if word[2] > word[1]]

class Whisper:
    """A Whisper model of transformers, which transcribes and aligns.

    name: folder or hub id. language: that of the speech ('en', 'de', ...); '': detected in the
    first window of each wave.
    """
    needs_text = False
    hop = 320 # samples of an encoder frame

    def __init__(self, name, device='cpu', language=''):
        from tokenizers import Tokenizer
        from transformers import WhisperFeatureExtractor
        self.tokenizer = Tokenizer.from_str(json.dumps(model_file(name, 'tokenizer.json')))
        generation = model_file(name, 'generation_config.json', needed=False) or {}
        class_name = 'WhisperForConditionalGeneration'
        self.model, self.hash = load_aligner(class_name, name, ('whisper',), device)
        settings = model_file(name, 'preprocessor_config.json')
        self.features = WhisperFeatureExtractor.from_dict(settings)
        config = self.model.config
        token = self.tokenizer.token_to_id
        self.end = token('<|endoftext|>')
        self.start = token('<|startoftranscript|>')
        translate = token('<|translate|>')
        transcribe = token('<|transcribe|>')
        no_times = token('<|notimestamps|>')
        if None in (self.end, self.start, translate, transcribe, no_times):
            raise Refused(f"{name}/tokenizer.json: not a Whisper tokenizer, "
                          "it lacks <|startoftranscript|> and others")
        self.no_speech = token('<|nospeech|>')
        if self.no_speech is None: # its name in older tokenizers
            self.no_speech = token('<|nocaptions|>')
        suppressed = generation.get('suppress_tokens') or ()
        self.suppressed = [i for i in suppressed if 0 <= i < self.end]
        suppressed = generation.get('begin_suppress_tokens') or ()
        self.suppressed_first = [i for i in suppressed if 0 <= i < self.end]
        L = config.decoder_layers
        H = config.decoder_attention_heads
        heads = generation.get('alignment_heads')
        if not heads:
            heads = [(layer, head) for layer in range(L // 2, L) for head in range(H)]
        if not all(0 <= layer < L and 0 <= head < H for layer, head in heads):
            raise Refused(f"{name}/generation_config.json: alignment_heads {heads}, "
                          f"expected [layer, head] of its {L} layers of {H}")
        self.n_heads = H
        self.heads = {} # layer: [heads]
        for layer, head in heads:
            self.heads.setdefault(layer, []).append(head)
        self.languages = {} # code: token; stays empty for an English-only model
        language_tokens = range(self.start + 1, min(translate, transcribe))
        if config.vocab_size >= 51865 or len(language_tokens) < 99:
            self.languages = {self.tokenizer.id_to_token(i)[2:-2]: i for i in language_tokens}
        codes = list(self.languages) or ['en']
        if language and language not in codes:
            raise Refused(f"{name}: knows no language '{language}', but {', '.join(codes)}")
        self.language = language
        self.task = [transcribe, no_times] if self.languages else [no_times]
        self.device = self.model.device

    @torch.inference_mode()
    def transcribe(self, waves):
        """float32 (N,) waves at 16 kHz -> a text each, '' where there is nothing to hear."""
        pieces = [(i, wave[first:last]) for i, wave in enumerate(waves)
                  for first, last in cuts(wave, self.hop)
                  if last - first >= AUDIBLE and is_audible(wave[first:last])]
        texts = [[] for _ in waves]
        languages = {}
        for start in progress(range(0, len(pieces), BATCH), desc='transcribe', leave=False):
            part = pieces[start:start + BATCH]
            rows, _ = self._decode(*self._encode(part, languages), limit=200)
            for (i, _), row in zip(part, rows):
                texts[i].append(self.tokenizer.decode(row).strip()) # without the end token
        return [' '.join(filter(None, parts)) for parts in texts]

    @torch.inference_mode()
    def align(self, waves):
        """float32 (N,) waves at 16 kHz -> [(words, starts, ends, reason), ...], times in samples.

        Words have the leading spaces of the text. The reason is '' or why a wave has no words:
        WHISPER_LOOPS (the text of a window repeats itself or does not end) or TOO_MANY_WORDS (more
        tokens than frames). Then .unheard has the number of words that were left out of each wave.
        """
        self.unheard = [0] * len(waves)
        todo = []
        for i, wave in enumerate(waves):
            pieces = [(i, first, wave[first:last]) for first, last in cuts(wave, self.hop)]
            todo += [part for part in pieces if is_audible(part[-1])]
        languages = {}
        windows = {}
        while todo:
            shorter = []
            for start in range(0, len(todo), BATCH):
                part = todo[start:start + BATCH]
                for (i, first, piece), window in zip(part, self._windows(part, languages)):
                    if window[3] == 'WHISPER_LOOPS' and len(piece) > SHORTEST:
                        halves = cuts(piece, self.hop, -(-len(piece) // 2))
                        shorter += [(i, first + a, piece[a:b]) for a, b in halves]
                    else:
                        windows[i, first] = window
            todo = shorter
        results = [([], [], [], '') for _ in waves]
        for (i, offset), (words, starts, ends, reason) in sorted(windows.items()):
            if reason or results[i][3]:
                results[i] = [], [], [], results[i][3] or reason
                continue
            results[i][0].extend(words)
            results[i][1].extend(offset + t for t in starts)
            results[i][2].extend(offset + t for t in ends)
        for i, (words, starts, ends, reason) in enumerate(results):
            has_sound = heard(waves[i], starts, ends)
            self.unheard[i] += len(words) - sum(has_sound)
            results[i] = *(list(compress(column, has_sound)) for column in (words, starts, ends)), reason
        return results

    def _encode(self, part, languages):
        """Windows [(wave's index, ..., samples)] -> the encoder's output (B, 1500, C), B prompts.

        languages: {wave's index: token of its language}, filled here.
        """
        pieces = [np.asarray(piece) for *_, piece in part]
        x = self.features(pieces, sampling_rate=RATE, return_tensors='pt').input_features
        encoded = self.model.model.encoder(x.to(self.device, self.model.dtype)).last_hidden_state
        prompts = []
        for (i, *_), row in zip(part, encoded):
            prompts.append([self.start, *self._language(i, row, languages), *self.task])
        return encoded, prompts

    def _windows(self, part, languages):
        """Up to BATCH windows [(wave's index, offset, samples)] -> [(words, starts, ends, reason)].

        Times count from the start of the window.
        """
        encoded, prompts = self._encode(part, languages)
        tokens, silent = self._decode(encoded, prompts)
        frames = [max(1, -(-len(piece) // self.hop)) for *_, piece in part]
        token_starts = self._token_starts(self._scores(encoded, prompts, tokens, frames))
        windows = []
        for row, (i, _, piece) in enumerate(part):
            ended = tokens[row][-1:] == [self.end]
            text = self.tokenizer.decode(tokens[row][:-1]) if ended else ''
            utf8 = text.encode()
            repeats = len(text) > 100 and len(utf8) > LOOP * len(zlib.compress(utf8))
            if silent[row] or ended and is_no_speech(text):
                self.unheard[i] += len(text.split())
                windows.append(([], [], [], ''))
            elif repeats or not ended:
                windows.append(([], [], [], 'WHISPER_LOOPS'))
            elif token_starts[row] is None:
                windows.append(([], [], [], 'TOO_MANY_WORDS'))
            else:
                code = self.tokenizer.id_to_token(prompts[row][1])[2:-2] if self.languages else 'en'
                words, starts, ends = self._words(
                    tokens[row][:-1], token_starts[row], len(piece), code in SPACELESS)
                windows.append((words, *tighten(piece, starts, ends), ''))
        return windows

    def _language(self, i, encoded, languages):
        """[token of wave i's language], detected in its first window; [] if the model has none."""
        if not self.languages:
            return []
        if self.language:
            return [self.languages[self.language]]
        if i not in languages:
            ids = list(self.languages.values())
            start = torch.tensor([[self.start]], device=self.device)
            logits = self.model(encoder_outputs=(encoded[None],), decoder_input_ids=start,
                                use_cache=False).logits[0, -1]
            languages[i] = ids[int(logits[ids].argmax())]
        return [languages[i]]

    def _decode(self, encoded, prompts, limit=224):
        """(B, 1500, C), B prompts -> greedy tokens of each window, whether nobody speaks in it.

        The end token is the last of a window's tokens if it came within the limit.
        """
        B = len(prompts)
        cache = None
        new = torch.tensor(prompts, device=self.device)
        tokens = [[] for _ in range(B)]
        for n in range(limit):
            step = self.model(encoder_outputs=(encoded,), decoder_input_ids=new,
                              past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            logits = step.logits[:, -1].float()
            if n == 0:
                p_no_speech = torch.zeros(B)
                if self.no_speech:
                    p_no_speech = step.logits[:, 0].float().softmax(-1)[:, self.no_speech].cpu()
                logits[:, self.suppressed_first] = -math.inf
            logits[:, self.suppressed] = -math.inf
            # The tokens behind the end token are markup, which is never chosen.
            token = logits[:, :self.end + 1].argmax(-1)
            new = token[:, None]
            for row, i in enumerate(token.tolist()):
                if tokens[row][-1:] != [self.end]:
                    tokens[row].append(i)
            if all(row[-1] == self.end for row in tokens):
                break
        return tokens, (p_no_speech > NO_SPEECH).tolist()

    def _queries_and_keys(self, ids, encoded):
        """The cross-attention's queries and keys in one pass of the decoder over ids (B, N).

        -> {(layer, 'q_proj'): (B, N, C), (layer, 'k_proj'): (B, 1500, C)} for layers of self.heads
        """
        outputs = {}
        hooks = []
        decoder = self.model.model.decoder
        for layer in self.heads:
            for name in ('q_proj', 'k_proj'):
                def record(module, args, y, key=(layer, name)):
                    outputs[key] = y.float()
                projection = getattr(decoder.layers[layer].encoder_attn, name)
                hooks.append(projection.register_forward_hook(record))
        try:
            decoder(input_ids=ids.to(self.device), encoder_hidden_states=encoded, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs

    def _scores(self, encoded, prompts, tokens, frames):
        """The scores x_t(s) of each window -> [(F, n + 1)].

        F is its number of frames; the columns are its n text tokens and the end token.
        """
        P = len(prompts[0])
        texts = [[i for i in row if i != self.end] for row in tokens]
        ids = torch.full((len(prompts), P + max(map(len, texts))), self.end)
        for row, text in enumerate(texts):
            ids[row, :P + len(text)] = torch.tensor(prompts[row] + text)
        outputs = self._queries_and_keys(ids, encoded)
        scores = []
        for row, (text, F) in enumerate(zip(texts, frames)):
            weights = []
            for layer, heads in self.heads.items():
                q, k = (outputs[layer, name][row].unflatten(-1, (self.n_heads, -1))
                        for name in ('q_proj', 'k_proj'))
                q = q.transpose(0, 1)[heads][:, :P + len(text)] # (heads, P+n, D)
                k = k.transpose(0, 1)[heads][:, :F] # (heads, F, D)
                weights.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1))
            w = torch.cat(weights)
            std = w.std(1, keepdim=True, unbiased=False).clamp(min=1e-9)
            w = (w - w.mean(1, keepdim=True)) / std
            if F > 3: # the median over 7 frames
                padded = torch.nn.functional.pad(w, (3, 3), mode='reflect')
                w = padded.unfold(-1, 7, 1).median(-1).values
            scores.append(w.mean(0)[P - 1:].T) # position P-1 gives the first token of the text
        return scores

    def _token_starts(self, scores):
        """The frame at which each token of a window begins, or None if no path fits."""
        frames = torch.tensor([len(s) for s in scores])
        n_states = torch.tensor([s.shape[1] for s in scores])
        x = torch.full((len(scores), int(frames.max()), int(n_states.max())), -math.inf)
        for row, s in enumerate(scores):
            x[row, :s.shape[0], :s.shape[1]] = s
        states = torch.arange(x.shape[2]).expand(len(scores), -1)
        paths, path_scores = viterbi(x, frames, states, n_states)
        starts = []
        for path, score, s in zip(paths.numpy(), path_scores, scores):
            first = np.searchsorted(path[:len(s)], np.arange(s.shape[1]))
            starts.append(first if score > -math.inf else None)
        return starts

    def _words(self, tokens, token_starts, n_samples, spaceless):
        """Text tokens and the frames where they and the end token begin -> words, starts, ends."""
        pieces = []
        edges = [0] # token at which each piece begins, and the end
        for i in range(1, len(tokens) + 1):
            text = self.tokenizer.decode(tokens[edges[-1]:i])
            if '\ufffd' not in text or i == len(tokens): # all bytes of its last character are there
                pieces.append(text)
                edges.append(i)
        times = np.minimum(token_starts * self.hop, n_samples)
        spelled = spell(pieces, spaceless)
        words = [word for word, _, _ in spelled]
        starts = [int(times[edges[first]]) for _, first, _ in spelled]
        ends = [int(times[edges[end]]) for _, _, end in spelled]
        return words, starts, ends
