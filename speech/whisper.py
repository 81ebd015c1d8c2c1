"""
Speech -> what is said in it, and when, by a transformers Whisper of any size, multilingual or English only.

    Whisper('openai/whisper-large-v3-turbo').transcribe([wave, ...])      -> [text, ...]
    Whisper('openai/whisper-large-v3-turbo').align([wave, ...])           -> [(words, starts, ends, reason), ...]

Waves are float32 at 16 kHz, times samples. Audio longer than 30 s is cut at its quietest moments (aligners.cuts); windows
are heard 16 at a time, greedily, each without its neighbors. The text is text alone: no token of time or markup is allowed.

Times come from one forward pass over a window and its text y_1..y_n: the best monotone path (aligners.viterbi) of states,
each a token, the last the end token, through the frames of 20 ms, where state s scores at frame t

    x_t(s) = mean over heads of median_7 over t of (w - mean_s w) / std_s w            w = softmax_t(q_s k_t / sqrt(d))

of the heads listed in generation_config.json, else of all in the upper half of the decoder (openai-whisper's timing.py;
its DTW also lets two tokens share a frame). A word ends where the token after it begins, and then both its edges move over
silence, inwards (aligners.tighten). For `align` a window that ends in a loop is cut in two and heard again, and when it is
short, refused.
"""
import json
import math
import zlib

import numpy as np
import torch

from configurator import Refused
from files import progress
from speech.audio import RATE
from speech.ctc import cuts, load_model, model_file, tighten, viterbi

SHORTEST = 8 * RATE # a longer piece in which Whisper loops is cut once more
AUDIBLE = RATE // 10 # of less, Whisper invents words
BATCH = 16 # windows at once
LOOP = 3.0 # bytes of text to bytes of its zlib; above, a window repeats itself (knitting patterns have 2.4, loops 5 and more)
SPACELESS = {'zh', 'ja', 'th', 'lo', 'my', 'yue'} # languages in which Whisper's characters are its words

def spell(pieces, spaceless=False):
    """[text of token groups] -> [(word, first, last)]: words by their spaces, last the group behind its last letter.

    A word without letter or digit (a dash) joins the word before it, or the first one; its time is not counted.
    """
    words = [] # word, first group, group behind the last one with a letter
    for i, piece in enumerate(pieces):
        spoken = any(c.isalnum() for c in piece)
        if spoken and (not words or piece[:1].isspace() or spaceless):
            words.append([piece, i, i + 1])
        elif words:
            words[-1][0] += piece
            words[-1][2] = i + 1 if spoken else words[-1][2]
        else:
            words.append([piece, i, i])
    if len(words) > 1 and words[0][1] == words[0][2]: # nothing but signs so far
        words[1][0], words[1][1] = words[0][0] + words[1][0], words[0][1]
        del words[0]
    return [tuple(word) for word in words if word[2] > word[1]]

class Whisper:
    """name: folder or hub id; language of the speech: 'en', 'de', ..., '': heard in the first window of each wave."""
    needs_text = False
    hop = 320 # samples of an encoder frame

    def __init__(self, name, device='cpu', language=''):
        from tokenizers import Tokenizer
        from transformers import WhisperFeatureExtractor
        self.tokenizer = Tokenizer.from_str(json.dumps(model_file(name, 'tokenizer.json')))
        generation = model_file(name, 'generation_config.json', needed=False) or {}
        self.model, self.hash = load_model('WhisperForConditionalGeneration', name, ('whisper',), device)
        self.features = WhisperFeatureExtractor.from_dict(model_file(name, 'preprocessor_config.json'))
        config, token = self.model.config, self.tokenizer.token_to_id
        self.end, self.start, translate = (token(f'<|{t}|>') for t in ('endoftext', 'startoftranscript', 'translate'))
        no_times = token('<|notimestamps|>')
        if None in (self.end, self.start, translate, no_times):
            raise Refused(f"{name}/tokenizer.json: not a Whisper tokenizer, it lacks <|startoftranscript|> and others")
        self.no_speech = token('<|nospeech|>') if token('<|nospeech|>') is not None else token('<|nocaptions|>')
        self.suppressed = [i for i in generation.get('suppress_tokens') or () if 0 <= i < self.end]
        self.at_first = [i for i in generation.get('begin_suppress_tokens') or () if 0 <= i < self.end]
        heads = generation.get('alignment_heads') or [
            (layer, head) for layer in range(config.decoder_layers // 2, config.decoder_layers)
            for head in range(config.decoder_attention_heads)]
        if not all(0 <= layer < config.decoder_layers and 0 <= head < config.decoder_attention_heads for layer, head in heads):
            raise Refused(f"{name}/generation_config.json: alignment_heads {heads}, expected [layer, head] of its "
                          f"{config.decoder_layers} layers of {config.decoder_attention_heads}")
        self.heads = {layer: [h for k, h in heads if k == layer] for layer, _ in heads}
        languages = {self.tokenizer.id_to_token(i)[2:-2]: i for i in range(self.start + 1, min(translate, token('<|transcribe|>')))}
        self.languages = languages if config.vocab_size >= 51865 or len(languages) < 99 else {} # else: English only
        if language and language not in (self.languages or ('en',)):
            raise Refused(f"{name}: knows no language '{language}', but {', '.join(list(self.languages) or ['en'])}")
        self.language, self.task = language, [token('<|transcribe|>'), no_times] if self.languages else [no_times]
        self.n_heads, self.device = config.decoder_attention_heads, self.model.device

    @torch.inference_mode()
    def transcribe(self, waves):
        """float32 (N,) waves at 16 kHz -> a text each, '' where nothing is heard, or nothing is there to hear."""
        pieces = [(i, wave[first:last]) for i, wave in enumerate(waves) for first, last in cuts(wave, self.hop)
                  if last - first >= AUDIBLE]
        heard, spoken = [[] for _ in waves], {}
        for at in progress(range(0, len(pieces), BATCH), desc='transcribe', leave=False):
            part = pieces[at:at + BATCH]
            tokens, _ = self._decode(*self._encode(part, spoken), limit=200)
            for (i, _), row in zip(part, tokens):
                heard[i].append(self.tokenizer.decode(row).strip()) # without the end token
        return [' '.join(filter(None, texts)) for texts in heard]

    @torch.inference_mode()
    def align(self, waves):
        """float32 (N,) waves at 16 kHz -> a list of (words, starts, ends, reason); starts, ends are samples.

        Words have the leading spaces of the text; a reason ('' where all went well) comes with none: WHISPER_LOOPS (a
        window's text repeats itself or does not end), TOO_MANY_WORDS (more tokens than frames).
        """
        todo = [(i, first, wave[first:last]) for i, wave in enumerate(waves) for first, last in cuts(wave, self.hop)]
        spoken, found, out = {}, {}, [([], [], [], '') for _ in waves] # spoken: the language of each wave's first window
        while todo:
            again = []
            for at in range(0, len(todo), BATCH):
                part = todo[at:at + BATCH]
                for (i, first, piece), heard in zip(part, self._windows(part, spoken)):
                    if heard[3] == 'WHISPER_LOOPS' and len(piece) > SHORTEST:
                        again += [(i, first + a, piece[a:b]) for a, b in cuts(piece, self.hop, -(-len(piece) // 2))]
                    else:
                        found[i, first] = heard
            todo = again
        for (i, first), (words, starts, ends, reason) in sorted(found.items()):
            if reason or out[i][3]:
                out[i] = [], [], [], out[i][3] or reason
                continue
            out[i][0].extend(words)
            out[i][1].extend(first + t for t in starts)
            out[i][2].extend(first + t for t in ends)
        return out

    def _encode(self, part, spoken):
        """Windows [(wave's index, ..., samples)] -> the encoder's output (B, 1500, C), and the tokens before each text."""
        x = self.features([np.asarray(piece) for *_, piece in part], sampling_rate=RATE, return_tensors='pt').input_features
        encoded = self.model.model.encoder(x.to(self.device, self.model.dtype)).last_hidden_state
        return encoded, [[self.start, *self._language(i, row, spoken), *self.task] for (i, *_), row in zip(part, encoded)]

    def _windows(self, part, spoken):
        """Words of up to BATCH windows [(wave's index, first sample, samples)], times from each window's start."""
        encoded, prompt = self._encode(part, spoken)
        tokens, silent = self._decode(encoded, prompt)
        frames = [max(1, -(-len(piece) // self.hop)) for *_, piece in part]
        scores, prompts = self._scores(encoded, prompt, tokens, frames), len(prompt[0])
        jumps = self._jumps(scores)
        out = []
        for row, (i, _, piece) in enumerate(part):
            text = self.tokenizer.decode(tokens[row][:-1]) if tokens[row][-1:] == [self.end] else None
            looped = text is None or len(text) > 100 and len(text.encode()) > LOOP * len(zlib.compress(text.encode()))
            if silent[row] or text == '':
                out.append(([], [], [], ''))
            elif looped or jumps[row] is None:
                out.append(([], [], [], 'WHISPER_LOOPS' if looped else 'TOO_MANY_WORDS'))
            else:
                code = self.tokenizer.id_to_token(prompt[row][1])[2:-2] if prompts > 2 else 'en'
                words, starts, ends = self._words(tokens[row][:-1], jumps[row], len(piece), code in SPACELESS)
                out.append((words, *tighten(piece, starts, ends), ''))
        return out

    def _language(self, i, encoded, spoken):
        """[id of the language token] of wave i, [] for an English-only model; heard in the wave's first window."""
        if not self.languages:
            return []
        if self.language:
            return [self.languages[self.language]]
        if i not in spoken:
            logits = self.model(encoder_outputs=(encoded[None],), decoder_input_ids=torch.tensor(
                [[self.start]], device=self.device), use_cache=False).logits[0, -1]
            ids = list(self.languages.values())
            spoken[i] = ids[int(logits[ids].argmax())]
        return [spoken[i]]

    def _decode(self, encoded, prompt, limit=224):
        """(B, 1500, C), B prompts -> greedy tokens of each window, the end token last if it came; is it silent?"""
        B, cache, new = len(prompt), None, torch.tensor(prompt, device=self.device)
        out, total = [[] for _ in range(B)], torch.zeros(B)
        for n in range(limit):
            step = self.model(encoder_outputs=(encoded,), decoder_input_ids=new, past_key_values=cache, use_cache=True)
            cache, logits = step.past_key_values, step.logits[:, -1].float()
            if n == 0:
                empty = step.logits[:, 0].float().softmax(-1)[:, self.no_speech].cpu() if self.no_speech else torch.zeros(B)
                logits[:, self.at_first] = -math.inf
            logits[:, self.suppressed] = -math.inf
            chance, token = logits[:, :self.end + 1].log_softmax(-1).max(-1) # text and the end: never markup
            new = token[:, None]
            for row, (i, p) in enumerate(zip(token.tolist(), chance.tolist())):
                if out[row][-1:] != [self.end]:
                    out[row].append(i)
                    total[row] += p
            if all(row[-1] == self.end for row in out):
                break
        doubtful = total / torch.tensor([len(row) for row in out]) < -1 # openai-whisper's rule for silence
        return out, ((empty > 0.6) & doubtful).tolist()

    def _scores(self, encoded, prompt, tokens, frames):
        """x_t(s) of each window, (F, n+1): of its n text tokens and the end token."""
        P, texts = len(prompt[0]), [[i for i in row if i != self.end] for row in tokens]
        N = P + max(map(len, texts))
        ids = torch.full((len(prompt), N), self.end)
        for row, text in enumerate(texts):
            ids[row, :P + len(text)] = torch.tensor(prompt[row] + text)
        seen, hooks = {}, []
        for layer in self.heads:
            attention = self.model.model.decoder.layers[layer].encoder_attn
            for name in ('q_proj', 'k_proj'):
                keep = lambda module, args, y, key=(layer, name): seen.__setitem__(key, y.float())
                hooks.append(getattr(attention, name).register_forward_hook(keep))
        try:
            self.model.model.decoder(input_ids=ids.to(self.device), encoder_hidden_states=encoded, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        out = []
        for row, (text, F) in enumerate(zip(texts, frames)):
            all_heads = []
            for layer, heads in self.heads.items():
                q, k = (seen[layer, name][row].unflatten(-1, (self.n_heads, -1)).transpose(0, 1)[heads]
                        for name in ('q_proj', 'k_proj')) # (heads, N or 1500, D)
                all_heads.append((q[:, :P + len(text)] @ k[:, :F].mT / q.shape[-1] ** 0.5).softmax(-1))
            w = torch.cat(all_heads)
            w = (w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True, unbiased=False).clamp(min=1e-9)
            if F > 3: # median over 7 frames
                w = torch.nn.functional.pad(w, (3, 3), mode='reflect').unfold(-1, 7, 1).median(-1).values
            out.append(w.mean(0)[P - 1:].T) # position P-1 gives the first token of the text
        return out

    def _jumps(self, scores):
        """For each window, the frame at which each of its tokens begins; None where there are more tokens than frames."""
        x = torch.full((len(scores), max(len(s) for s in scores), max(s.shape[1] for s in scores)), -math.inf)
        for row, s in enumerate(scores):
            x[row, :s.shape[0], :s.shape[1]] = s
        frames, n = (torch.tensor([s.shape[axis] for s in scores]) for axis in (0, 1))
        path, score = viterbi(x, frames, torch.arange(x.shape[2]).expand(len(scores), -1), n)
        path = path.numpy()
        return [np.searchsorted(path[row, :len(scores[row])], np.arange(scores[row].shape[1])) if score[row] > -math.inf else None
                for row in range(len(scores))]

    def _words(self, tokens, jumps, samples, spaceless):
        """Text tokens and the frames they (and the end) begin at -> words, starts, ends."""
        pieces, groups, group = [], [0], []
        for i, token in enumerate(tokens):
            group.append(token)
            text = self.tokenizer.decode(group)
            if '\ufffd' not in text or i + 1 == len(tokens): # else the bytes of a character are not all there
                pieces, groups, group = [*pieces, text], [*groups, i + 1], []
        times = np.minimum(jumps * self.hop, samples)
        words = spell(pieces, spaceless)
        return ([word for word, _, _ in words], [int(times[groups[a]]) for _, a, _ in words],
                [int(times[groups[b]]) for _, _, b in words])
