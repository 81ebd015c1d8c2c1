"""
The engines of tiny/build/speak.py, Piper and Kokoro; and which of their phones belong to which word.

    phonemize = Phonemizer()                            a sentence -> espeak's phones
    spans = word_tokens(sentence, phones, phonemize)    the phones of each word
    wave, samples = Piper(path)(phones, voice, rng)     the wave, and how long each phone lasts
    starts, ends = word_times(phones, spans, samples)   when each word begins and ends in the wave

Kokoro(folder) is called like Piper(path). Both models predict the duration of each phone. These
durations sum to the samples of the wave, so word times need no aligner:

    word times      A word lasts from its first to its last phone. The space between two words is
                    one token, whose middle is the boundary. Tokens of punctuation are pauses and
                    belong to no word.
    silence         Kokoro puts most of a pause into the last phone before it. So a word that ends
                    with 80 ms or more of silence (below -40 dB of the sentence's power) ends where
                    its sound ends. Kokoro's sound also comes 30 ms before its durations say
                    (measured by pocketsphinx, and by the first sound of sentences, against
                    Piper's). These 30 ms are its `lag`, by which speak.py moves its word times.
    joined words    espeak merges some words ("was a" -> wʌzɐ). The last word takes the phones it is
                    known by.

Piper's noise comes from rng, in place of the unseeded nodes of its graph. Kokoro's graph has no noise.
"""
import json
import re
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np

from configurator import Refused
from speech.words import edit_distance

# Gain of each voice that brings its words to an RMS of 0.06 (-24 dBFS).
GAINS = {
    'joe': 0.97, 'af_heart': 0.79, 'am_michael': 0.90, 'bf_emma': 0.62, 'bm_george': 0.66,
    'af_bella': 0.75, 'am_fenrir': 0.52, 'af_sarah': 0.66, 'bm_daniel': 0.67, 'am_puck': 0.47}
MAIN = 'joe'
UNSEEN = 'am_puck'
VOICES = (
    'af_heart', 'am_michael', 'bf_emma', 'bm_george', 'af_bella', 'am_fenrir', 'af_sarah', 'bm_daniel')

class Unspeakable(ValueError):
    """A sentence whose word times would be a guess. The message is the reason that is counted."""

# --------------------------------------------------------------------------------------------------
# phones of words

PUNCTUATION = '.,:;!?'
STRESS = 'ˈˌ'
# How espeak says words within a sentence, if it says them differently alone. Longer forms go first.
WEAK = {
    'a': ('ɐ', 'ə'), 'an': ('ən', 'ɐn'), 'the': ('ðɪʲ', 'ðɪ', 'ðə'), 'to': ('tʊ', 'tə'),
    'of': ('əv',), 'for': ('fɚɹ', 'fɚ'), 'be': ('biː', 'bi'), 'been': ('bɪn',),
    'have': ('hɐv', 'ɐv'), 'was': ('wʌz',), 'were': ('wɜːɹ',), 'it': ('ɪt',), 'and': ('ænd', 'ən'),
    'that': ('ðət',), 'am': ('ɐm',)}

def bare(phones):
    """The phones without their stress marks."""
    return ''.join(c for c in phones if c not in STRESS)

class Phonemizer:
    """phonemize(text) -> espeak's phones as a string of code points. Recent results are cached."""
    def __init__(self):
        from piper.phonemize_espeak import EspeakPhonemizer
        self.espeak = EspeakPhonemizer()
        self.phones = lru_cache(2 ** 16)(self._phonemize)

    def _phonemize(self, text):
        parts = self.espeak.phonemize('en-us', text)
        return ' '.join(''.join(part).strip() for part in parts)

    def __call__(self, text):
        return self.phones(text)

    def forms(self, word):
        """The ways to say a word, without stress."""
        return (*WEAK.get(word.lower(), ()), bare(self(word)))

def phone_groups(phones):
    """[(first, end)]: token positions of the groups of phones between spaces and punctuation."""
    return [m.span() for m in re.finditer(f'[^ {PUNCTUATION}]+', phones)]

def split_join(phones, words, phonemize):
    """Positions in `phones` where the joined words of a group begin, the first 0. Raises Unspeakable."""
    if len(words) == 1:
        return [0]
    for tail in phonemize.forms(words[-1]):
        if bare(phones).endswith(tail) and len(tail) < len(bare(phones)):
            # Walk back over the phones of the tail and the stress mark before its first syllable.
            remaining = len(tail)
            begin = len(phones)
            while remaining or phones[begin - 1] in STRESS:
                begin -= 1
                remaining -= phones[begin] not in STRESS
            return split_join(phones[:begin], words[:-1], phonemize) + [begin]
    raise Unspeakable('join that cannot be split')

def _distance(group, words, phonemize):
    """The least edit distance, without stress, from a group of phones to any way to say these words."""
    variants = set(map(''.join, product(*map(phonemize.forms, words))))
    variants.add(bare(phonemize(' '.join(words))))
    return min(edit_distance(bare(group), variant) for variant in variants)

def _match_words(group, words, phonemize):
    """(distance, n): the group is nearest to the first n of these words. A smaller n wins a tie."""
    matches = [(len(group), 0)]
    for n in range(1, len(words) + 1):
        matches.append((_distance(group, words[:n], phonemize), n))
        if not matches[-1][0]:
            break
    return min(matches)

def word_tokens(sentence, phones, phonemize):
    """[(first, end)]: token positions in `phones` for each word of `sentence.split()`.

    A group of phones is matched with one word or, if that is not exact, with a join of two or
    three. Raises Unspeakable.
    """
    words = [word.strip(PUNCTUATION + '"\'()') for word in sentence.split()]
    spans = []
    for first, end in phone_groups(phones):
        group = phones[first:end]
        next_words = words[len(spans):]
        distance, n = _match_words(group, next_words[:3], phonemize)
        if not n or distance > max(2, len(bare(group)) // 2):
            raise Unspeakable('phones unlike the words')
        begins = split_join(group, next_words[:n], phonemize)
        for begin, stop in zip(begins, [*begins[1:], len(group)]):
            spans.append((first + begin, first + stop))
    if len(spans) < len(words):
        raise Unspeakable('words without phones')
    return spans

def word_times(phones, spans, samples):
    """Starts and ends (int64, in samples of the wave) of the words.

    samples: the duration of each token, including those of the beginning and the end. The middle of
    a space is the boundary between two words.
    """
    # Token t of phones lasts from edges[t + 1] to edges[t + 2].
    edges = np.concatenate([[0], np.cumsum(samples)])
    def middle(t):
        return (edges[t + 1] + edges[t + 2]) // 2
    starts = []
    ends = []
    for first, end in spans:
        starts.append(middle(first - 1) if phones[:first].endswith(' ') else edges[first + 1])
        ends.append(middle(end) if phones[end:].startswith(' ') else edges[end + 1])
    return np.array(starts), np.array(ends)

def ends_of_sound(wave, rate, starts, ends):
    """The ends of the words. A word with 80 ms or more of silence at its end stops after its last 5 ms of sound."""
    ends = ends.copy()
    hop = rate // 200
    frames = wave[:len(wave) // hop * hop].reshape(-1, hop).astype(np.float64)
    energy = frames ** 2
    loud = energy.mean(1) > 1e-4 * energy.mean()
    for i, first in enumerate(starts // hop):
        loud_frames = np.flatnonzero(loud[first:ends[i] // hop])
        if len(loud_frames):
            sound_end = (first + loud_frames[-1] + 1) * hop
            if ends[i] - sound_end >= 16 * hop:
                ends[i] = sound_end
    return ends

# --------------------------------------------------------------------------------------------------
# engines: phones -> wave, and how many of its samples each token lasts

def _session(model):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3 # no warning for each weight that an edited graph no longer needs
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])

def _onnx(path):
    import onnx
    from google.protobuf.message import DecodeError
    try:
        return onnx.load(path)
    except (OSError, DecodeError) as e:
        raise Refused(f"{path}: not an ONNX model ({type(e).__name__})") from None

class Piper:
    """A Piper (VITS) voice. Its two noise nodes become inputs, its durations an output."""
    rate, hop, lag = 22_050, 256, 0

    def __init__(self, path):
        settings = json.loads(Path(path + '.json').read_text(encoding='utf-8'))
        self.ids = {c: ids[0] for c, ids in settings['phoneme_id_map'].items()}
        inference = settings['inference']
        scales = ('noise_scale', 'length_scale', 'noise_w')
        self.scales = np.array([inference[name] for name in scales], np.float32)
        self.session = _session(self._with_noise_inputs(_onnx(path), path))

    @staticmethod
    def _with_noise_inputs(model, path):
        from onnx import TensorProto, helper
        graph = model.graph
        durations = [node.output[0] for node in graph.node if node.op_type == 'Ceil']
        # The first noise node is that of the durations, the second that of the wave.
        noise_names = [node.name for node in graph.node if node.op_type == 'RandomNormalLike']
        if len(durations) != 1 or len(noise_names) != 2:
            counts = f"{len(durations)} Ceil, {len(noise_names)} noise nodes"
            raise Refused(f"{path}: not a Piper voice of one speaker ({counts}; expected 1 and 2)")
        nodes = []
        for node in graph.node:
            if node.name == noise_names[0]:
                node = helper.make_node('Identity', ['noise_w'], [node.output[0]])
            elif node.name == noise_names[1]:
                # Cut the noise to the number of frames that this sentence turns out to have.
                nodes.append(helper.make_node('Shape', [node.input[0]], ['noise_shape']))
                node = helper.make_node('Slice', ['noise', 'noise_begin', 'noise_shape'], [node.output[0]])
            nodes.append(node)
        del graph.node[:]
        graph.node.extend(nodes)
        graph.initializer.append(helper.make_tensor('noise_begin', TensorProto.INT64, [3], [0, 0, 0]))
        graph.input.append(helper.make_tensor_value_info('noise_w', TensorProto.FLOAT, [1, 2, None]))
        graph.input.append(helper.make_tensor_value_info('noise', TensorProto.FLOAT, [1, 192, None]))
        # A patched file already has the durations as its second output.
        del graph.output[1:]
        graph.output.append(helper.make_tensor_value_info(durations[0], TensorProto.FLOAT, None))
        return model

    def __call__(self, phones, voice, rng):
        if not set(phones) <= set(self.ids):
            raise Unspeakable('phone unknown to the voice')
        # A pad (id 0) follows the beginning and every phone.
        ids = [self.ids['^'], 0]
        for c in phones:
            ids += [self.ids[c], 0]
        ids.append(self.ids['$'])
        # 16 frames of noise an id are 0.19 s; an id lasts 0.04 s.
        wave, durations = self.session.run(None, {
            'input': np.array([ids]),
            'input_lengths': np.array([len(ids)]),
            'scales': self.scales,
            'noise_w': rng.standard_normal((1, 2, len(ids)), np.float32),
            'noise': rng.standard_normal((1, 192, 16 * len(ids) + 256), np.float32)})
        # A token and its pad count as one.
        frames = np.add.reduceat(durations.ravel(), np.arange(0, len(ids), 2))
        return wave.ravel(), frames.astype(np.int64) * self.hop

def _convolutions_as_products(model):
    """Replaces the convolutions of bytes in a graph by matrix products of the same bytes.

    The products give the same integers, so the wave stays bit for bit. onnxruntime multiplies an
    unsigned by a signed matrix with VNNI instructions, but has no such kernel for a convolution.
    Kokoro needs two thirds of the time (EPYC, one thread: 2.7 x real time instead of 1.85 x).
    """
    from onnx import helper, numpy_helper
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []

    def constant(name, value):
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def signed(name):
        return (numpy_helper.to_array(constants[name]).astype(np.int16) - 128).astype(np.int8)

    def add(operator, inputs, output, **attributes):
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    for node in graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type != 'ConvInteger' or attributes['group'] > 1 or attributes['strides'] != [1]:
            nodes.append(node)
            continue
        x, weight, zero_x, zero_weight = node.input
        y = node.output[0]
        w = signed(weight) # (channels out, channels in, kernel)
        rows = constant(f'{y}_weight', w.transpose(2, 1, 0).reshape(-1, len(w)))
        zero = constant(f'{y}_zero', signed(zero_weight))
        before, after = attributes['pads']
        pads = constant(f'{y}_pads', np.array([0, before, 0, 0, after, 0]))
        axis = constant(f'{y}_axis', np.array([1]))
        frames = add('Transpose', [x], f'{y}_frames', perm=[0, 2, 1])
        frames = add('Pad', [frames, pads, zero_x], f'{y}_padded')
        shifted = []
        for k in range(w.shape[2]):
            # Slice's end counts from the last frame; the largest number stands for no limit.
            shift = attributes['dilations'][0] * np.array([k, k + 1 - w.shape[2]])
            first = constant(f'{y}_first{k}', shift[:1])
            end = constant(f'{y}_end{k}', shift[1:] if shift[1] else np.array([2 ** 62]))
            shifted.append(add('Slice', [frames, first, end, axis], f'{y}_shift{k}'))
        columns = add('Concat', shifted, f'{y}_columns', axis=2)
        product = add('MatMulInteger', [columns, rows, zero_x, zero], f'{y}_product')
        add('Transpose', [product], y, perm=[0, 2, 1])
    del graph.node[:]
    graph.node.extend(nodes)
    return model

class Kokoro:
    """Kokoro-82M: many voices, no noise. Its durations become an output."""
    rate, hop, lag = 24_000, 600, 720

    def __init__(self, folder):
        import onnx
        folder = Path(folder)
        self.ids = json.loads((folder / 'vocab.json').read_text(encoding='utf-8'))['vocab']
        self.styles = {} # {voice: a style for each number of phones}
        for voice in (*VOICES, UNSEEN):
            style = np.fromfile(folder / 'voices' / f'{voice}.bin', np.float32)
            self.styles[voice] = style.reshape(-1, 1, 256)
        model = _onnx(folder / 'kokoro-v1.0.int8.onnx')
        model.graph.output.append(onnx.ValueInfoProto(name='/encoder/Clip_output_0'))
        self.session = _session(_convolutions_as_products(model))

    def __call__(self, phones, voice, rng):
        # Kokoro lacks the mark of a syllabic consonant. A schwa before the consonant takes the
        # place of the mark, so that the number of tokens stays.
        phones = re.sub('(.)\u0329', r'ə\1', phones)
        if not set(phones) <= set(self.ids):
            raise Unspeakable('phone unknown to the voice')
        ids = [self.ids[c] for c in phones]
        wave, durations = self.session.run(None, {
            'tokens': np.array([[0, *ids, 0]]),
            'style': self.styles[voice][len(ids) - 1],
            'speed': np.array([1], np.float32)})
        return wave.ravel(), durations.ravel().astype(np.int64) * self.hop
