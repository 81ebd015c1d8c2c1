"""Viterbi against every path and a slow loop, cuts and edges, CTC on small random models and one taught on the spot."""
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small import speech_like, waves

from configurator import Refused
from speech import ctc as aligners
from speech.audio import load_audio
from speech.ctc import CTC, RATE, cuts, split_words, tighten, viterbi

ROOT = Path(__file__).parent.parent
LETTERS = 'abcdefghijklmnopqrstuvwxyz'

# --------------------------------------------------------------------------------------------------
# paths and pieces

def is_legal(path, n_states, skip):
    """Does the path end in a final state, and does it skip only into states that allow it?"""
    finals = (n_states - 1,) if skip is None else (n_states - 1, n_states - 2)
    moves = zip(np.diff(path), path[1:])
    return path[-1] in finals and all(move < 2 or skip[s] for move, s in moves)

def every_path(x, states, skip):
    """The best of all monotone paths, by trying them all -> (score, path), path None if there is none."""
    best = -np.inf, None
    n_moves = 2 if skip is None else 3
    for first in range(1 if skip is None else 2):
        for moves in itertools.product(range(n_moves), repeat=len(x) - 1):
            path = np.cumsum([first, *moves])
            if not is_legal(path, len(states), skip):
                continue
            score = sum(x[t, states[s]] for t, s in enumerate(path))
            if score > best[0]:
                best = score, path.tolist()
    return best

def ctc_states(labels):
    """Labels -> the states blank l_1 blank ... blank (0 is the blank), which of them a skip may reach."""
    states = [0]
    for label in labels:
        states += [label, 0]
    skip = [s % 2 == 1 and (s < 2 or states[s] != states[s - 2]) for s in range(len(states))]
    return states, skip

def slow_ctc(logp, labels):
    """Best path of Graves's extended labels, cell by cell in float64 -> (path, score)."""
    states, _ = ctc_states(labels)
    T = len(logp)
    S = len(states)
    a = np.full((T, S), -np.inf)
    back = np.zeros((T, S), int)
    a[0, :2] = [logp[0, s] for s in states[:2]]
    for t in range(1, T):
        for s in range(S):
            sources = [s]
            if s > 0:
                sources.append(s - 1)
            if s > 1 and states[s] != 0 and states[s] != states[s - 2]:
                sources.append(s - 2)
            back[t, s] = max(sources, key=lambda source: a[t - 1, source])
            a[t, s] = a[t - 1, back[t, s]] + logp[t, states[s]]
    before_last = max(0, S - 2)
    path = [S - 1 if a[-1, S - 1] >= a[-1, before_last] else S - 2]
    for t in range(T - 1, 0, -1):
        path.append(back[t, path[-1]])
    return path[::-1], max(a[-1, -1], a[-1, before_last])

def batched(rows, skips=True):
    """[(x (T, V), states, skip)] -> viterbi's arguments"""
    frames = torch.tensor([len(x) for x, _, _ in rows])
    n_states = torch.tensor([len(states) for _, states, _ in rows])
    B = len(rows)
    x = torch.zeros(B, int(frames.max()), rows[0][0].shape[1])
    states = torch.zeros(B, int(n_states.max()), dtype=torch.int64)
    skip = torch.zeros(states.shape, dtype=torch.bool)
    for i, (row_x, row_states, row_skip) in enumerate(rows):
        x[i, :len(row_x)] = torch.from_numpy(row_x)
        states[i, :len(row_states)] = torch.tensor(row_states)
        skip[i, :len(row_states)] = torch.tensor(row_skip)
    return x, frames, states, n_states, skip if skips else None

@pytest.mark.parametrize('skips', [True, False])
def test_the_path_is_the_best_of_all_paths(skips):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(40):
        labels = rng.integers(1, 4, rng.integers(1, 4)).tolist() # repeated labels too
        states, skip = ctc_states(labels) if skips else (labels, [False] * len(labels))
        T = int(rng.integers(len(labels), 8))
        rows.append((rng.standard_normal((T, 4)).astype(np.float32), states, skip))
    paths, scores = viterbi(*batched(rows, skips))
    for (x, states, skip), padded_path, score in zip(rows, paths, scores):
        best, expected = every_path(x.astype(np.float64), states, skip if skips else None)
        if expected is None:
            assert score == -np.inf
            continue
        path = padded_path[:len(x)]
        assert score == pytest.approx(best, abs=1e-5)
        assert (padded_path[len(x):] == -1).all()
        assert set(np.diff(path).tolist()) <= {0, 1, 2}
        assert sum(x[t, states[s]] for t, s in enumerate(path)) == pytest.approx(best, abs=1e-5)
        assert path.tolist() == expected or not skips # without blanks repeated labels tie
    assert 0 < torch.isinf(scores).sum() < 20 or not skips # a repeated label needs a blank: some do not fit

@pytest.mark.parametrize('block', [1 << 26, 40, 1])
def test_long_paths_are_those_of_the_slow_loop_however_small_the_blocks(block, monkeypatch):
    monkeypatch.setattr(aligners, 'BLOCK', block)
    rng = np.random.default_rng(1)
    rows = []
    labels = [[1, 1, 2], [3] * 9, rng.integers(1, 5, 30).tolist(), [4]]
    for row, T in zip(labels, (9, 50, 120, 77)):
        x = np.log(rng.dirichlet([.3] * 5, T) + 1e-6).astype(np.float32)
        rows.append((x, *ctc_states(row)))
    paths, scores = viterbi(*batched(rows))
    for (x, _, _), row, path, score in zip(rows, labels, paths, scores):
        expected, best = slow_ctc(x.astype(np.float64), row)
        assert path[:len(x)].tolist() == expected
        assert score == pytest.approx(best, abs=1e-6)

def test_pieces_cover_a_wave_and_end_where_it_is_quiet():
    wave = speech_like(95, 0)
    for second in (21, 47, 70):
        wave[second * RATE:second * RATE + RATE // 2] *= 1e-4
    pieces = cuts(wave, 640)
    firsts, lasts = map(list, zip(*pieces))
    assert firsts == [0, *lasts[:-1]] and lasts[-1] == len(wave)
    assert all(last - first <= 30 * RATE for first, last in pieces)
    assert all(last % 640 == 0 for last in lasts[:-1])
    assert [int(last / RATE) for last in lasts[:-1]] == [21, 47, 70]
    assert cuts(wave[:480000], 320) == [(0, 480000)]
    assert len(cuts(np.zeros(480001, np.float32), 320)) == 2
    assert cuts(np.zeros(0, np.float32), 320) == [(0, 0)]

def test_edges_move_inwards_over_silence():
    wave = np.zeros(RATE, np.float32)
    wave[4000:8000] = .5
    wave[9600:11200] = .3
    starts, ends = tighten(wave, [0, 8640, 12800, 9600], [8640, 12800, 16000, 9600])
    # Both are right within a frame of 20 ms and the smoothing over its neighbors.
    assert abs(np.subtract(starts, [4000, 9600, 12800, 9600])).max() <= 640
    assert abs(np.subtract(ends, [8000, 11200, 16000, 9600])).max() <= 640
    assert tighten(np.zeros(100, np.float32), [0], [50]) == ([0], [50])
    assert tighten(wave[:0], [0], [0]) == ([0], [0])

# --------------------------------------------------------------------------------------------------
# CTC

VOCAB = ['<pad>', '<s>', '</s>', '<unk>', '|', *LETTERS.upper(), "'"]

def write_settings(folder, normalize):
    """The files beside the weights of a CTC model whose vocabulary is VOCAB."""
    (folder / 'vocab.json').write_text(json.dumps({c: i for i, c in enumerate(VOCAB)}))
    (folder / 'preprocessor_config.json').write_text(json.dumps({'do_normalize': normalize}))

@pytest.fixture(scope='module')
def ctc(tmp_path_factory):
    """A random HuBERT with a CTC head: 20 ms frames, group norm, as HuBERT-base."""
    from transformers import HubertConfig, HubertForCTC
    folder = tmp_path_factory.mktemp('ctc')
    torch.manual_seed(0)
    config = HubertConfig(
        vocab_size=len(VOCAB), pad_token_id=0, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, conv_dim=[16] * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2)
    HubertForCTC(config).save_pretrained(folder)
    write_settings(folder, normalize=True)
    return folder

def copy_files(source, folder):
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())

def emitted(labels, T=50, p=.9):
    """log-probabilities that spell `labels` = {frame: character}, blank elsewhere."""
    p_rest = (1 - p) / (len(VOCAB) - 1)
    x = torch.full((T, len(VOCAB)), p_rest)
    x[:, 0] = p
    for t, c in labels.items():
        x[t, 0] = p_rest
        x[t, VOCAB.index(c)] = p
    return x.log()

def aligned(ctc, monkeypatch, labels, text):
    """The words of a text, [(word, first frame, end frame)], in one second that spells labels; or the reason."""
    model = CTC(ctc)
    monkeypatch.setattr(model, 'emissions', lambda wave: emitted(labels))
    words, starts, ends, reason = model.align([np.ones(16000, np.float32)], [text])[0]
    return reason or list(zip(words, [s // 320 for s in starts], [e // 320 for e in ends]))

SPOKEN = {3: 'T', 4: 'H', 7: 'E', 9: '|', 15: 'B', 16: 'E', 18: 'E', 22: '|', 30: "D", 31: "'", 33: 'S'}

def test_what_is_no_ctc_model_is_refused_in_one_line(ctc, tmp_path):
    for file in ('config.json', 'model.safetensors'):
        (tmp_path / file).write_bytes((ctc / file).read_bytes())
    for name, message in (('/none', 'nor a hub id'), (tmp_path, 'no vocab.json')):
        with pytest.raises(Refused) as e:
            CTC(name)
        assert message in str(e.value) and '\n' not in str(e.value), e.value

@pytest.mark.parametrize('text, expected', [
    ("The bee d's", [('The', 3, 11), (' bee', 15, 22), (" d's", 30, 37)]), # 3 frames of 20 ms behind the last label
    ('thé  "BEE" \n d\'s!\n', [('thé', 3, 11), ('  "BEE"', 15, 22), (" \n d's!", 30, 37)]),
    ('... 2 & 東京', 'NO_LETTERS'),
    ('zzz qqq zzz qqq', 'UNLIKE_TEXT'),
    ('the ' * 30, 'TEXT_TOO_LONG'),
    ('', []), (' ', []),
])
def test_known_text_gets_the_times_of_its_labels(ctc, monkeypatch, text, expected):
    assert aligned(ctc, monkeypatch, SPOKEN, text) == expected

def test_a_word_without_letters_lies_between_its_neighbors(ctc, monkeypatch):
    words = aligned(ctc, monkeypatch, SPOKEN, "the 2014 d's")
    assert [word for word, _, _ in words] == ['the', ' 2014', " d's"]
    _, start, end = words[1]
    assert 9 < start < 23 and end <= 30
    assert words[2] == (" d's", 30, 37)

def test_a_document_is_aligned_alone_as_together_and_long_audio_in_pieces(ctc):
    model = CTC(ctc, min_score=-99.0)
    x = waves(1, 3, 2.5, 61, .01)
    texts = ['so it was', "they don't know 42 things", 'a', ' '.join(['one two three'] * 25), 'x']
    together = model.align(x, texts)
    alone = [model.align([wave], [text])[0] for wave, text in zip(x, texts)]
    assert together == alone
    assert [reason for *_, reason in together] == ['', '', '', '', 'TEXT_TOO_LONG']
    for (words, starts, ends, _), text in zip(together[:4], texts):
        edges = np.stack([starts, ends], 1).ravel()
        assert ''.join(words) == text and (np.diff(edges) >= 0).all()
    assert len(model.emissions(x[3])) == len(x[3]) // 320

def test_a_piece_does_not_hear_the_next_one(ctc):
    model = CTC(ctc)
    model.normalize = False # which would see the whole wave
    quiet = speech_like(61, 3)
    quiet[20 * RATE:21 * RATE] = 0 # the first piece ends here
    changed = quiet.copy()
    changed[40 * RATE:] *= -.5
    a = model.emissions(quiet)
    b = model.emissions(changed)
    assert torch.equal(a[:20 * 50], b[:20 * 50]) and not torch.equal(a, b)

def test_the_alphabet_is_the_models_own(ctc, tmp_path):
    model = CTC(ctc)
    for word, expected in (("Don't", "DON'T"), ('naïve', 'NAIVE'), ('Œuvre', 'UVRE'), ('ﬁn', 'FIN'),
                           ('3D', 'D'), ('—', '')):
        assert ''.join(VOCAB[i] for i in model.spell(word)) == expected
    assert split_words('  a b\tc \n') == ['  a', ' b', '\tc'] and split_words(' ') == []
    assert split_words('今天，OK 2014年') == ['今', '天，', 'OK', ' 2014', '年']
    for vocab, message in (('{"A": 99}', 'expected one id below'), ('{"a": {"b": 1}}', 'expected one id below'),
                           ('["a"]', 'expected one id below'), ('{', 'not JSON'),
                           ('{"ab": 1, "<pad>": 0}', 'no single characters')):
        copy_files(ctc, tmp_path)
        (tmp_path / 'vocab.json').write_text(vocab)
        with pytest.raises(Refused, match=message):
            CTC(tmp_path)

# --------------------------------------------------------------------------------------------------
# a taught model

def teach(lines, waves, folder, steps=450):
    """tiny/hubert with a CTC head over letters, its last layer and head trained on a few spoken texts."""
    from transformers import HubertConfig, HubertForCTC
    torch.manual_seed(0)
    hubert = ROOT / 'tiny/hubert'
    config = HubertConfig.from_pretrained(hubert, vocab_size=len(VOCAB), pad_token_id=0, final_dropout=0.0)
    model = HubertForCTC.from_pretrained(hubert, config=config, dtype=torch.float32).eval()
    labels = []
    for line in lines:
        letters = re.sub("[^A-Z' ]", '', line['text'].upper())
        labels.append([VOCAB.index(c) for c in letters.replace(' ', '|')])
    inputs = [] # of the last layer
    for wave in waves:
        x = torch.nn.functional.pad(torch.from_numpy(wave), (40, 40))[None]
        with torch.no_grad():
            inputs.append(model.hubert(x, output_hidden_states=True).hidden_states[-2])
    last = model.hubert.encoder.layers[-1]
    optimizer = torch.optim.AdamW([*model.lm_head.parameters(), *last.parameters()], lr=1e-3)
    for step in range(steps):
        optimizer.param_groups[0]['lr'] = 1e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        y = torch.tensor(labels[step % len(inputs)])
        h = last(inputs[step % len(inputs)])
        logp = model.lm_head(h[0] if isinstance(h, tuple) else h)[0].log_softmax(-1)
        loss = torch.nn.functional.ctc_loss(logp, y, torch.tensor(len(logp)), torch.tensor(len(y)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    write_settings(folder, normalize=False)

@pytest.mark.slow
def test_word_starts_of_the_embedded_corpus_are_within_60_ms_of_the_exact_ones_in_the_median(tmp_path):
    lines = [json.loads(line) for line in (ROOT / 'tiny/audio/manifest.jsonl').read_text().splitlines()]
    waves = [load_audio(ROOT / 'tiny/audio' / line['audio']) for line in lines]
    learned = [i for i in range(len(lines)) if i % 4 != 1]
    teach([lines[i] for i in learned], [waves[i] for i in learned], tmp_path)
    model = CTC(tmp_path)
    test_lines = lines[1::4] # never learned from; the voices are those of the others, but for one
    test_waves = waves[1::4]
    results = model.align(test_waves, [line['text'] for line in test_lines])
    assert [reason for *_, reason in results] == [''] * 5
    for column, name in ((1, 'starts'), (2, 'ends')):
        errors = []
        for result, line in zip(results, test_lines):
            exact = [word[column] for word in line['words']]
            errors.extend(abs(np.array(result[column]) / RATE - exact))
        assert len(errors) == 85 and np.median(errors) < .06, f"{name}: median {np.median(errors):.3f} s"
    texts = [line['text'] for line in lines]
    unlike = [reason for *_, reason in model.align(test_waves, texts[3::4])] # texts of other documents
    assert set(unlike) == {'UNLIKE_TEXT', 'TEXT_TOO_LONG'}, unlike
