"""
Times in audio: pieces that a model can hear, paths through its frames, and CTC, which finds where a known text was said.

    CTC('facebook/wav2vec2-base-960h').align([wave, ...], [text, ...])    -> [(words, starts, ends, reason), ...]

Waves are float32 at 16 kHz, times samples; words carry the leading space they have in the text. A reason ('' where all
went well) comes with no words. What was said where no text is known, speech/whisper.py hears; both end in one search, the best
monotone path of states s through frames t:

    a_t(s) = x_t(s) + max(a_{t-1}(s), a_{t-1}(s-1), a_{t-1}(s-2) where s may be reached by a skip)             (Viterbi)

Here states are blank l_1 blank l_2 ... l_L blank, x_t = log softmax; a skip passes over the blank between two unlike labels
(Graves et al. 2006). A word is what stands between spaces; its characters are spelled in the model's alphabet (as they
are, in the other case, without accents), what is left of others is left out. A word of which nothing is left ('2014') is
one label that fits any frame: it lies between its neighbors. A word lasts from its first label to 60 ms after its last, or
to the next word. Audio longer than 30 s is cut at its quietest moments (`cuts`), and each piece is heard alone: no piece
hears its neighbors, and where pieces begin depends on the wave only.
"""
import hashlib
import json
import math
import os
import re
import unicodedata

import numpy as np
import torch

from configurator import Refused
from speech.audio import RATE

WINDOW = 30 * RATE # samples of the longest piece
BATCH = 16 # documents at once
CELLS = 1 << 30 # frames times states of the documents that are aligned at once, if they are more than one
BLOCK = 1 << 26 # back pointers held at once

# ----------------------------------------------------------------------------------------------------------------
# audio in pieces, paths through them

def cuts(wave, hop, limit=WINDOW):
    """[(first, last)] samples of the pieces of a wave, none longer than limit; all but the last are multiples of hop.

    A piece ends in the middle of the 0.3 s of least energy in the second half of what it may hold.
    """
    n, edges = len(wave) // hop, [0]
    if len(wave) <= limit:
        return [(0, len(wave))]
    power = np.square(wave[:n * hop], dtype=np.float64).reshape(n, hop).sum(1)
    width = max(1, round(0.3 * RATE / hop)) | 1
    power = np.convolve(power, np.ones(width), 'same')
    while len(wave) - edges[-1] > limit:
        first = edges[-1] // hop
        low, high = first + max(1, limit // hop // 2), first + limit // hop + 1
        edges.append((low + int(power[low:high].argmin())) * hop)
    return list(zip(edges, [*edges[1:], len(wave)]))

def tighten(wave, starts, ends, hop=RATE // 50, silence=-30.0):
    """starts, ends (samples) of the words of a wave, moved inwards to the first and last frame of each that is not silent.

    A frame is silent `silence` dB below the level that a twentieth of the frames exceed; a word in silence stays.
    """
    n = len(wave) // hop
    power = np.square(wave[:n * hop], dtype=np.float64).reshape(n, hop).mean(1) if n else np.zeros(1)
    power = np.convolve(power, np.ones(3) / 3, 'same')[:max(n, 1)]
    loud = np.flatnonzero(power > np.quantile(power, 0.95) * 10 ** (silence / 10))
    for i, (start, end) in enumerate(zip(starts, ends)):
        inside = loud[np.searchsorted(loud, start // hop):np.searchsorted(loud, -(-end // hop))]
        if len(inside):
            starts[i], ends[i] = max(start, int(inside[0]) * hop), min(end, (int(inside[-1]) + 1) * hop)
    return starts, ends

def viterbi(x, frames, states, n_states, skip=None):
    """The best path of each row: state at each frame (B, T), -1 after the last, and its score (B,), -inf if there is none.

    x: (B, T, V) scores; frames: (B,) how many of T count; states: (B, S) column of x that each state scores; n_states:
    (B,); skip: (B, S) bool, states reached from the one before the last too. With skip a path begins in state 0 or 1 and
    ends in the last or the one before it, else in 0 and the last. Back pointers (a byte) are made again block by block from
    the float64 row that each block begins with: memory grows with the root of T where BLOCK bytes do not hold them all.
    """
    (B, T, _), S = x.shape, states.shape[1]
    block = max(math.isqrt(8 * T) + 1, BLOCK // (B * S))
    best = torch.full((B, S), -math.inf, dtype=torch.float64, device=x.device)
    best[:, :1 if skip is None else 2] = x[:, 0].double().gather(1, states[:, :1 if skip is None else 2])

    def step(best, t):
        """best (B, S) at frame t-1 -> at frame t, and which of the moves (stay, one, skip) was the best"""
        moves = [best, torch.nn.functional.pad(best, (1, 0), value=-math.inf)[:, :-1]]
        if skip is not None:
            two = torch.nn.functional.pad(best, (2, 0), value=-math.inf)[:, :-2]
            moves.append(two.masked_fill(~skip, -math.inf))
        new, move = torch.stack(moves).max(0)
        live = (t < frames)[:, None]
        return torch.where(live, new + x[:, t].double().gather(1, states), best), (move * live).to(torch.uint8)

    kept = [best] # at the first frame of each block
    for t in range(1, T):
        best, _ = step(best, t)
        if t % block == 0:
            kept.append(best)
    last = n_states - 1
    score = best.gather(1, last[:, None])[:, 0]
    if skip is not None:
        other = best.gather(1, (last - 1).clamp(min=0)[:, None])[:, 0]
        last = torch.where(other > score, (last - 1).clamp(min=0), last)
        score = torch.maximum(score, other)
    path, state = torch.empty(T, B, dtype=torch.int64, device=x.device), last
    for start in reversed(range(0, T, block)):
        best, moves = kept[start // block], []
        for t in range(start + 1, min(start + block + 1, T)):
            best, move = step(best, t)
            moves.append(move)
        for t in reversed(range(start, min(start + block, T))):
            if t + 1 < T:
                state = state - moves[t - start].gather(1, state[:, None])[:, 0].long()
            path[t] = state
    path = path.T
    path[torch.arange(T, device=x.device) >= frames[:, None]] = -1
    return path, score

def model_file(name, file, needed=True):
    """The JSON of a file of a model's folder or hub id; None where it has no such file."""
    from transformers.utils import cached_file
    try:
        path = os.path.join(name, file) if os.path.isdir(name) else \
            cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError): # no network, or no name of a repository
        raise Refused(f"{name}: no such folder, nor a hub id that can be reached; expected a model of transformers") from None
    try:
        value = json.loads(open(path, encoding='utf-8').read()) if path and os.path.isfile(path) else None
    except (OSError, ValueError) as e:
        raise Refused(f"{name}/{file}: not JSON ({e})") from None
    if value is None and needed:
        raise Refused(f"{name}: no {file} in it, which a model for align.py needs" if os.path.isdir(name) else
                      f"{name}: no such folder; and the hub has no {file} under this id, or is out of reach")
    return value

def load_model(auto, name, types, device):
    """The model, eval, float32 on a CPU and float16 elsewhere, and a hash of its weights."""
    import transformers  # here: readers of words need not wait for it

    log = transformers.utils.logging
    before = log.get_verbosity()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        if config.model_type not in types and types:
            raise Refused(f"{name}: holds a '{config.model_type}', expected one of {', '.join(types)}")
        model, info = getattr(transformers, auto).from_pretrained(
            name, dtype=torch.float32 if torch.device(device).type == 'cpu' else torch.float16, use_safetensors=True,
            output_loading_info=True)
    except Refused:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise Refused(f"{name}: expected a model that transformers' {auto} reads (config.json, model.safetensors): {why}") from None
    finally:
        log.set_verbosity(before)
    if missing := sorted(key for key in info['missing_keys'] if not key.endswith(('proj_out.weight', 'masked_spec_embed'))):
        raise Refused(f"{name}: lacks {len(missing)} weights of the model, the first is {missing[0]}")
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return model.eval().to(device), digest.hexdigest()[:16]

# ----------------------------------------------------------------------------------------------------------------
# CTC

def split_words(text):
    """'the  dog ' -> ['the', '  dog']: words with the spaces before them."""
    return re.findall(r'\s*\S+', text.rstrip())

class CTC:
    """CTC(name).align(waves, texts): where the words of each text are. name: folder or hub id of a model with a CTC head.

    Reasons: NO_LETTERS (nothing of the text is in the model's alphabet), TEXT_TOO_LONG (more labels than frames),
    UNLIKE_TEXT (log-probability of the path, less that of the likeliest labels of all, a label of the text, is under
    min_score: another text was said).
    """
    needs_text = True
    tail = round(0.06 * RATE) # a label is emitted before its sound ends; with this, ends are right in the median

    def __init__(self, name, device='cpu', min_score=-4.0):
        self.name, vocab = name, model_file(name, 'vocab.json')
        settings = model_file(name, 'preprocessor_config.json', needed=False) or {}
        tokenizer = model_file(name, 'tokenizer_config.json', needed=False) or {}
        self.model, self.hash = load_model('AutoModelForCTC', name, (), device)
        config = self.model.config
        if not isinstance(vocab, dict) or not all(type(i) is int and 0 <= i < config.vocab_size for i in vocab.values()):
            raise Refused(f"{name}/vocab.json: expected one id below {config.vocab_size} for each character")
        if type(config.pad_token_id) is not int:
            raise Refused(f"{name}/config.json: no pad_token_id, which is the blank of a CTC model")
        if not hasattr(config, 'conv_stride') or settings.get('feature_extractor_type') == 'SeamlessM4TFeatureExtractor':
            raise Refused(f"{name}: a '{config.model_type}' does not read waves; expected wav2vec2, HuBERT, WavLM or alike")
        self.blank, delimiter = config.pad_token_id, tokenizer.get('word_delimiter_token', '|')
        self.delimiter = vocab.get(delimiter)
        self.alphabet = {c: i for c, i in vocab.items() if len(c) == 1 and c != delimiter and i != self.blank and not c.isspace()}
        if not self.alphabet:
            raise Refused(f"{name}/vocab.json: no single characters in it, {len(vocab)} entries; a text cannot be spelled with it")
        self.normalize, self.min_score, self.device = settings.get('do_normalize', True), min_score, self.model.device
        self.hop, receptive = math.prod(config.conv_stride), 1
        for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride))):
            receptive = (receptive - 1) * stride + kernel
        self.pad = ((receptive - self.hop) // 2, (receptive - self.hop + 1) // 2) # floor(N / hop) frames, each over its own hop

    def spell(self, word):
        """The word's labels: each character as it is, in the other case, or without accents; what is none is left out."""
        labels = []
        for c in unicodedata.normalize('NFC', word):
            for form in (c, c.upper(), c.lower(), *(f(unicodedata.normalize('NFKD', c)) for f in (str, str.upper, str.lower))):
                found = [self.alphabet[part] for part in form if part in self.alphabet]
                if found:
                    labels += found
                    break
        return labels

    @torch.inference_mode()
    def emissions(self, wave):
        """float32 (N,) -> log-probabilities (floor(N / hop), V)."""
        x = torch.from_numpy(np.ascontiguousarray(wave, np.float32))
        if self.normalize:
            x = (x - x.mean()) / (x.var(unbiased=False) + 1e-7).sqrt()
        out = []
        for first, last in cuts(wave, self.hop):
            piece = torch.nn.functional.pad(x[first:last], self.pad).to(self.device, self.model.dtype)
            if last - first >= self.hop:
                out.append(self.model(piece[None]).logits[0].float().log_softmax(-1))
                if len(out[-1]) != (last - first) // self.hop:
                    raise Refused(f"{self.name}: {len(out[-1])} frames of {last - first} samples, expected one of {self.hop} each")
        return torch.cat(out)

    def align(self, waves, texts):
        """float32 (N,) waves at 16 kHz and their texts -> a list of (words, starts, ends, reason)."""
        words = [split_words(text) for text in texts]
        labels, reasons = zip(*(self._labels(doc) for doc in words))
        out = [([], [], [], reason or ('TEXT_TOO_LONG' if doc else '')) for doc, reason in zip(words, reasons)]
        order = sorted((i for i in range(len(waves)) if words[i] and not reasons[i] and len(waves[i]) >= self.hop),
                       key=lambda i: len(waves[i]))
        size = lambda part: len(part) * len(waves[part[-1]]) // self.hop * max(2 * len(labels[i][0]) + 1 for i in part)
        while order:
            n = 1
            while n < min(BATCH, len(order)) and size(order[:n + 1]) <= CELLS:
                n += 1
            part, order = order[:n], order[n:]
            for i, found in zip(part, self._batch([waves[i] for i in part], [labels[i] for i in part])):
                out[i] = ([], [], [], found) if isinstance(found, str) else (words[i], *found, '')
        return out

    def _labels(self, words):
        """Label ids of a document's words and, for each, its word, -1 for a delimiter; and a reason."""
        labels, of_word, any_letter = [], [], not words
        for i, word in enumerate(words):
            if i > 0 and self.delimiter is not None:
                labels.append(self.delimiter), of_word.append(-1)
            letters = self.spell(word)
            any_letter |= bool(letters)
            labels += letters or [self.model.config.vocab_size] # the column behind the alphabet: any label
            of_word += [i] * max(len(letters), 1)
        return (labels, of_word), '' if any_letter else 'NO_LETTERS'

    def _batch(self, waves, labels):
        """(starts, ends) of each document's words, or the reason why there are none."""
        logp = [self.emissions(wave) for wave in waves]
        B, V = len(waves), self.model.config.vocab_size
        frames, n_states = torch.tensor([len(e) for e in logp]), torch.tensor([2 * len(row) + 1 for row, _ in labels])
        x = torch.zeros(B, int(frames.max()), V + 1, device=self.device)
        states = torch.full((B, int(n_states.max())), self.blank)
        for b, (e, (row, _)) in enumerate(zip(logp, labels)):
            x[b, :len(e), :V], x[b, :len(e), V] = e, e.max(-1).values # any label: as likely as the likeliest
            states[b, 1:2 * len(row):2] = torch.tensor(row)
        skip = states != self.blank
        skip[:, 2:] &= states[:, 2:] != states[:, :-2]
        frames, n_states, states, skip = (a.to(self.device) for a in (frames, n_states, states, skip))
        path, score = viterbi(x, frames, states, n_states, skip)
        score = (score - x.max(-1).values.double().sum(1)).cpu() / torch.tensor([len(row) for row, _ in labels])
        return ['TEXT_TOO_LONG' if score[b] == -math.inf else 'UNLIKE_TEXT' if score[b] < self.min_score else
                self._times(path[b].cpu().numpy(), np.array(labels[b][1]), len(waves[b])) for b in range(B)]

    def _times(self, path, of_word, samples):
        """States (T,), word of each label (L,), length of the wave -> starts, ends of the words in samples."""
        at = np.flatnonzero((path > 0) & (path % 2 == 1)) # frames on a label
        at = at[of_word[path[at] // 2] >= 0]
        word, n = of_word[path[at] // 2], np.arange(of_word.max() + 1) # word rises
        starts = at[np.searchsorted(word, n, 'left')] * self.hop
        ends = (at[np.searchsorted(word, n, 'right') - 1] + 1) * self.hop + self.tail
        return starts.tolist(), np.minimum(ends, np.append(starts[1:], samples)).tolist()
