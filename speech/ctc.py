"""
Forced alignment: when each word of a known text is said, by any CTC model. Also what
speech/whisper.py shares: audio in pieces that a model can take, and the best monotone path through
frames.

    ctc = CTC('facebook/wav2vec2-base-960h')
    ctc.align([wave, ...], [text, ...])     -> [(words, starts, ends, reason), ...]

Waves are float32 at 16 kHz, times are samples, words carry the leading space they have in the text.
The reason is '' or why a document has no words. The path of the highest score through frames t and
states s is found by Viterbi's recursion

    a_t(s) = x_t(s) + max(a_{t-1}(s), a_{t-1}(s-1), a_{t-1}(s-2) if s can be reached by a skip)

For CTC the states are blank l_1 blank l_2 ... l_L blank, x_t is the log softmax, and a skip passes
over the blank between two different labels (Graves et al. 2006). Words are separated by spaces; in
scripts without spaces, each letter is a word (speech.words.split_words). A
word's characters are spelled in the model's alphabet (as they are, in the other case, or without
accents); those that it lacks are left out. A word that has none left ('2014') becomes one label
that matches any frame, so it lies between its neighbors. A word lasts from its first label to 60 ms
after its last one, or to the next word. Audio longer than 30 s is cut at its quietest moments
(`cuts`). No piece is given samples of its neighbors, and the cuts depend on the wave only.
"""
import hashlib
import math
import os
import unicodedata

import numpy as np
import torch
import torch.nn.functional as F

from configurator import Refused, refuse_library
from files import read_value
from speech.audio import RATE
from speech.words import split_words

WINDOW = 30 * RATE # samples of the longest piece
BATCH = 16 # documents at once
CELLS = 1 << 30 # frames times states of the documents aligned at once; one document may have more
BLOCK = 1 << 26 # bytes of back pointers in memory at once

# --------------------------------------------------------------------------------------------------
# audio in pieces, paths through them

def cuts(wave, hop, limit=WINDOW):
    """A wave in pieces of at most limit samples, cut at multiples of hop -> [(first, last)].

    A piece ends in the middle of the 0.3 s of least energy in the second half of what it may hold.
    """
    if len(wave) <= limit:
        return [(0, len(wave))]
    width = max(1, round(0.3 * RATE / hop)) | 1 # odd, in frames
    n = len(wave) // hop
    power = np.square(wave[:n * hop], dtype=np.float64).reshape(n, hop).sum(1)
    power = np.convolve(power, np.ones(width), 'same')
    longest = limit // hop
    edges = [0]
    while len(wave) - edges[-1] > limit:
        first = edges[-1] // hop
        low = first + max(1, longest // 2)
        quietest = low + int(power[low:first + longest + 1].argmin())
        edges.append(quietest * hop)
    return list(zip(edges, [*edges[1:], len(wave)]))

def tighten(wave, starts, ends, hop=RATE // 50, silence=-30.0):
    """Moves the starts and ends of words (lists, in samples) inwards to their loud frames.

    A frame is loud above `silence` dB, relative to the level that a twentieth of the frames exceed.
    A word without a loud frame stays as it is. -> starts, ends (the same lists).
    """
    power = np.zeros(1)
    if n := len(wave) // hop:
        power = np.square(wave[:n * hop], dtype=np.float64).reshape(n, hop).mean(1)
    power = np.convolve(power, np.ones(3) / 3, 'same')[:max(n, 1)]
    loud = np.flatnonzero(power > np.quantile(power, 0.95) * 10 ** (silence / 10))
    for i, (start, end) in enumerate(zip(starts, ends)):
        first, last = np.searchsorted(loud, [start // hop, -(-end // hop)])
        if first < last:
            starts[i] = max(start, int(loud[first]) * hop)
            ends[i] = min(end, (int(loud[last - 1]) + 1) * hop)
    return starts, ends

def _viterbi_step(best, x_t, states, skip, live):
    """Best scores (B, S) at frame t-1 -> those at t, and the move to each (0 stay, 1 next, 2 skip).

    x_t: (B, V) scores at t; live: (B, 1) bool, False for rows that have ended: they do not change.
    """
    candidates = [best, F.pad(best, (1, 0), value=-math.inf)[:, :-1]]
    if skip is not None:
        two_before = F.pad(best, (2, 0), value=-math.inf)[:, :-2]
        candidates.append(two_before.masked_fill(~skip, -math.inf))
    reached, move = torch.stack(candidates).max(0)
    reached = reached + x_t.double().gather(1, states)
    return torch.where(live, reached, best), (move * live).to(torch.uint8)

def viterbi(x, frames, states, n_states, skip=None):
    """The best path of each row -> states (B, T), -1 after the last frame; scores (B,) or -inf.

    x: (B, T, V) scores; frames: (B,) how many of T count; states: (B, S) the column of x that each
    state scores; n_states: (B,); skip: (B, S) bool, states also reached from the one two before.
    With skip a path begins in state 0 or 1 and ends in the last state or the one before it. Without
    skip it begins in state 0 and ends in the last. Only the float64 scores at the start of each
    block of frames are kept, and the back pointers (a byte each) are computed again, one block at a
    time: memory grows with the root of T where BLOCK bytes cannot hold all of them.
    """
    B, T, _ = x.shape
    S = states.shape[1]
    block = max(math.isqrt(8 * T) + 1, BLOCK // (B * S))
    n_first = 1 if skip is None else 2
    best = torch.full((B, S), -math.inf, dtype=torch.float64, device=x.device)
    best[:, :n_first] = x[:, 0].double().gather(1, states[:, :n_first])

    def step(best, t):
        return _viterbi_step(best, x[:, t], states, skip, (t < frames)[:, None])

    block_starts = [best]
    for t in range(1, T):
        best, _ = step(best, t)
        if t % block == 0:
            block_starts.append(best)
    state = n_states - 1
    score = best.gather(1, state[:, None])[:, 0]
    if skip is not None:
        before_last = (state - 1).clamp(min=0)
        score_before_last = best.gather(1, before_last[:, None])[:, 0]
        state = torch.where(score_before_last > score, before_last, state)
        score = torch.maximum(score, score_before_last)
    path = torch.empty(T, B, dtype=torch.int64, device=x.device)
    for start in reversed(range(0, T, block)):
        best = block_starts[start // block]
        moves = []
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

# --------------------------------------------------------------------------------------------------
# folders of models

def model_file(name, file, needed=True):
    """The JSON of a file in a model's folder or hub id, None if there is none. Raises Refused."""
    from transformers.utils import cached_file
    is_folder = os.path.isdir(name)
    try:
        if is_folder:
            path = os.path.join(name, file)
        else:
            path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError): # no network, or not a valid name of a repository
        raise Refused(f"{name}: no such folder, nor a hub id that can be reached; "
                      "expected a model of transformers") from None
    value = None
    try:
        if path and os.path.isfile(path):
            value = read_value(path)
    except (OSError, ValueError) as e:
        raise Refused(f"{name}/{file}: not JSON ({e})") from None
    if value is None and needed:
        if is_folder:
            raise Refused(f"{name}: no {file} in it, which a model for align.py needs")
        raise Refused(f"{name}: no such folder; "
                      f"and the hub has no {file} under this id, or is out of reach")
    return value

def load_model(auto, name, types, device):
    """(model, hash of its weights); in eval mode, float32 on a CPU and float16 elsewhere.

    auto: the class of transformers that loads it; types: model_types to accept, () for all.
    """
    import transformers  # here: those who only read words need not wait for it

    log = transformers.utils.logging
    verbosity = log.get_verbosity()
    log.set_verbosity_error()
    log.disable_progress_bar()
    dtype = torch.float32 if torch.device(device).type == 'cpu' else torch.float16
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        if config.model_type not in types and types:
            raise Refused(f"{name}: holds a '{config.model_type}', "
                          f"expected one of {', '.join(types)}")
        model, info = getattr(transformers, auto).from_pretrained(
            name, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except Refused:
        raise
    except (ImportError, OSError, ValueError, KeyError, RuntimeError) as e:
        refuse_library(e)
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise Refused(f"{name}: expected a model that transformers' {auto} reads "
                      f"(config.json, model.safetensors): {why}") from None
    finally:
        log.set_verbosity(verbosity)
    optional = 'proj_out.weight', 'masked_spec_embed'
    missing = sorted(key for key in info['missing_keys'] if not key.endswith(optional))
    if missing:
        raise Refused(f"{name}: lacks {len(missing)} weights of the model, "
                      f"the first is {missing[0]}")
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return model.eval().to(device), digest.hexdigest()[:16]

# --------------------------------------------------------------------------------------------------
# CTC

class CTC:
    """CTC(name).align(waves, texts): where the words of each text are in its wave.

    name: folder or hub id of a model with a CTC head. The reasons why a document gets no words:
    NO_LETTERS       nothing of its text is in the model's alphabet
    TEXT_TOO_LONG    more labels than frames
    UNLIKE_TEXT      another text was said: the log-probability of the path, less that of the
                     likeliest labels of all, per label of the text is below min_score
    """
    needs_text = True
    # A label is emitted before its sound ends. With these samples the ends are right in the median.
    tail = round(0.06 * RATE)

    def __init__(self, name, device='cpu', min_score=-4.0):
        self.name = name
        vocab = model_file(name, 'vocab.json')
        settings = model_file(name, 'preprocessor_config.json', needed=False) or {}
        tokenizer = model_file(name, 'tokenizer_config.json', needed=False) or {}
        self.model, self.hash = load_model('AutoModelForCTC', name, (), device)
        config = self.model.config
        V = config.vocab_size
        if not isinstance(vocab, dict) or \
                not all(type(i) is int and 0 <= i < V for i in vocab.values()):
            raise Refused(f"{name}/vocab.json: expected one id below {V} for each character")
        if type(config.pad_token_id) is not int:
            raise Refused(f"{name}/config.json: no pad_token_id, which is the blank of a CTC model")
        extractor = settings.get('feature_extractor_type')
        if not hasattr(config, 'conv_stride') or extractor == 'SeamlessM4TFeatureExtractor':
            raise Refused(f"{name}: a '{config.model_type}' does not read waves; "
                          "expected wav2vec2, HuBERT, WavLM or alike")
        self.blank = config.pad_token_id
        delimiter = tokenizer.get('word_delimiter_token', '|')
        self.delimiter = vocab.get(delimiter)
        self.alphabet = {c: i for c, i in vocab.items()
                         if len(c) == 1 and c != delimiter and i != self.blank and not c.isspace()}
        if not self.alphabet:
            raise Refused(f"{name}/vocab.json: no single characters in it, {len(vocab)} entries; "
                          "a text cannot be spelled with it")
        self.normalize = settings.get('do_normalize', True)
        self.min_score = min_score
        self.device = self.model.device
        self.hop = math.prod(config.conv_stride)
        receptive = 1 # samples that a frame is computed from
        for kernel, stride in zip(config.conv_kernel[::-1], config.conv_stride[::-1]):
            receptive = (receptive - 1) * stride + kernel
        # With this padding N samples give floor(N / hop) frames, each centered on its own hop.
        self.pad = ((receptive - self.hop) // 2, (receptive - self.hop + 1) // 2)

    def spell(self, word):
        """A word's labels: each character as it is, in the other case, or without its accents."""
        labels = []
        for c in unicodedata.normalize('NFC', word):
            plain = unicodedata.normalize('NFKD', c)
            for form in (c, c.upper(), c.lower(), plain, plain.upper(), plain.lower()):
                ids = [self.alphabet[part] for part in form if part in self.alphabet]
                if ids:
                    labels += ids
                    break
        return labels

    @torch.inference_mode()
    def emissions(self, wave):
        """float32 (N,) -> log-probabilities (floor(N / hop), V)."""
        x = torch.from_numpy(np.ascontiguousarray(wave, np.float32))
        if self.normalize:
            x = (x - x.mean()) / (x.var(unbiased=False) + 1e-7).sqrt()
        logp = []
        for first, last in cuts(wave, self.hop):
            n_samples = last - first
            if n_samples < self.hop:
                continue
            piece = F.pad(x[first:last], self.pad).to(self.device, self.model.dtype)
            logp.append(self.model(piece[None]).logits[0].float().log_softmax(-1))
            if len(logp[-1]) != n_samples // self.hop:
                raise Refused(f"{self.name}: {len(logp[-1])} frames of {n_samples} samples, "
                              f"expected one of {self.hop} each")
        return torch.cat(logp)

    def align(self, waves, texts):
        """float32 (N,) waves at 16 kHz and their texts -> [(words, starts, ends, reason), ...]."""
        words = [split_words(text) for text in texts]
        labels, reasons = zip(*map(self._labels, words))
        results = []
        todo = []
        for i, wave in enumerate(waves):
            results.append(([], [], [], reasons[i] or ('TEXT_TOO_LONG' if words[i] else '')))
            if words[i] and not reasons[i] and len(wave) >= self.hop:
                todo.append(i)
        todo.sort(key=lambda i: len(waves[i]))

        def cells(part):
            """Frames times states of these documents as a padded batch; the last wave is the longest."""
            n_states = max(2 * len(labels[i][0]) + 1 for i in part)
            return len(part) * len(waves[part[-1]]) // self.hop * n_states

        while todo:
            n = 1
            while n < min(BATCH, len(todo)) and cells(todo[:n + 1]) <= CELLS:
                n += 1
            part = todo[:n]
            todo = todo[n:]
            outcomes = self._batch([waves[i] for i in part], [labels[i] for i in part])
            for i, outcome in zip(part, outcomes):
                if isinstance(outcome, str):
                    results[i] = [], [], [], outcome
                else:
                    results[i] = words[i], *outcome, ''
        return results

    def _labels(self, words):
        """Words of a document -> (label ids, the word of each or -1 for a delimiter), reason."""
        labels = []
        word_of_label = []
        any_letter = not words
        for i, word in enumerate(words):
            if i > 0 and word[:1].isspace() and self.delimiter is not None:
                labels.append(self.delimiter)
                word_of_label.append(-1)
            letters = self.spell(word)
            any_letter |= bool(letters)
            # A word that cannot be spelled is the column after the alphabet: any label.
            letters = letters or [self.model.config.vocab_size]
            labels += letters
            word_of_label += [i] * len(letters)
        return (labels, word_of_label), '' if any_letter else 'NO_LETTERS'

    def _batch(self, waves, labels):
        """(starts, ends) of each document's words, or the reason why it has none."""
        logp = [self.emissions(wave) for wave in waves]
        B = len(waves)
        V = self.model.config.vocab_size
        n_labels = torch.tensor([len(ids) for ids, _ in labels])
        frames = torch.tensor([len(e) for e in logp])
        n_states = 2 * n_labels + 1
        x = torch.zeros(B, int(frames.max()), V + 1, device=self.device)
        states = torch.full((B, int(n_states.max())), self.blank)
        for b, e in enumerate(logp):
            x[b, :len(e), :V] = e
            x[b, :len(e), V] = e.max(-1).values # any label scores as the likeliest one
            states[b, 1:2 * n_labels[b]:2] = torch.tensor(labels[b][0])
        skip = states != self.blank
        skip[:, 2:] &= states[:, 2:] != states[:, :-2]
        arguments = (a.to(self.device) for a in (frames, states, n_states, skip))
        path, score = viterbi(x, *arguments)
        score = (score - x.max(-1).values.double().sum(1)).cpu() / n_labels
        results = []
        for b in range(B):
            if score[b] == -math.inf:
                results.append('TEXT_TOO_LONG')
            elif score[b] < self.min_score:
                results.append('UNLIKE_TEXT')
            else:
                word_of_label = np.array(labels[b][1])
                results.append(self._times(path[b].cpu().numpy(), word_of_label, len(waves[b])))
        return results

    def _times(self, path, word_of_label, n_samples):
        """States (T,) and the word of each label (L,) -> starts, ends of the words in samples."""
        frames = np.flatnonzero((path > 0) & (path % 2 == 1)) # those on a label
        frames = frames[word_of_label[path[frames] // 2] >= 0]
        words = word_of_label[path[frames] // 2] # ascending
        n = np.arange(word_of_label.max() + 1)
        starts = frames[np.searchsorted(words, n, 'left')] * self.hop
        last = frames[np.searchsorted(words, n, 'right') - 1]
        ends = np.minimum((last + 1) * self.hop + self.tail, np.append(starts[1:], n_samples))
        return starts.tolist(), ends.tolist()
