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

# ----------------------------------------------------------------------------------------------------------------
# paths and pieces

def every_path(x, states, skip):
    """The best of all monotone paths, by trying them all."""
    S, best = len(states), (-np.inf, None)
    for steps in itertools.product(range(3 if skip is not None else 2), repeat=len(x) - 1):
        for first in (0,) if skip is None else (0, 1):
            path = np.cumsum([first, *steps])
            legal = path[-1] in ((S - 1,) if skip is None else (S - 1, S - 2)) and \
                all(step < 2 or skip[s] for step, s in zip(steps, path[1:]))
            if legal and (score := sum(x[t, states[s]] for t, s in enumerate(path))) > best[0]:
                best = score, path.tolist()
    return best

def ctc_states(labels):
    states = [0]
    for label in labels:
        states += [label, 0]
    skip = [s % 2 == 1 and (s < 2 or states[s] != states[s - 2]) for s in range(len(states))]
    return states, skip

def slow_ctc(logp, labels):
    """Best path of Graves's extended labels, cell by cell in float64 -> (path, score)."""
    states, _ = ctc_states(labels)
    T, S = len(logp), len(states)
    a, back = np.full((T, S), -np.inf), np.zeros((T, S), int)
    a[0, :2] = [logp[0, s] for s in states[:2]]
    for t in range(1, T):
        for s in range(S):
            ways = [(a[t - 1, s], s)] + [(a[t - 1, s - 1], s - 1)] * (s > 0)
            if s > 1 and states[s] != 0 and states[s] != states[s - 2]:
                ways.append((a[t - 1, s - 2], s - 2))
            a[t, s], back[t, s] = max(ways, key=lambda w: w[0])
            a[t, s] += logp[t, states[s]]
    path = [S - 1 if a[-1, S - 1] >= a[-1, max(0, S - 2)] else S - 2]
    for t in range(T - 1, 0, -1):
        path.append(back[t, path[-1]])
    return path[::-1], max(a[-1, -1], a[-1, max(0, S - 2)])

def batched(rows, skips=True):
    """[(x (T, V), states, skip)] -> viterbi's arguments"""
    T, S = max(len(x) for x, _, _ in rows), max(len(states) for _, states, _ in rows)
    x, states = torch.zeros(len(rows), T, rows[0][0].shape[1]), torch.zeros(len(rows), S, dtype=torch.int64)
    skip = torch.zeros(len(rows), S, dtype=torch.bool)
    for i, (xi, si, ki) in enumerate(rows):
        x[i, :len(xi)], states[i, :len(si)] = torch.from_numpy(xi), torch.tensor(si)
        skip[i, :len(si)] = torch.tensor(ki)
    return (x, torch.tensor([len(x) for x, _, _ in rows]), states, torch.tensor([len(s) for _, s, _ in rows]),
            skip if skips else None)

@pytest.mark.parametrize('skips', [True, False])
def test_the_path_is_the_best_of_all_paths(skips):
    rng, rows = np.random.default_rng(0), []
    for _ in range(40):
        labels = rng.integers(1, 4, rng.integers(1, 4)).tolist() # repeated labels too
        states, skip = ctc_states(labels) if skips else (labels, [False] * len(labels))
        rows.append((rng.standard_normal((int(rng.integers(len(labels), 8)), 4)).astype(np.float32), states, skip))
    paths, scores = viterbi(*batched(rows, skips))
    for (x, states, skip), path, score in zip(rows, paths, scores):
        best, expected = every_path(x.astype(np.float64), states, skip if skips else None)
        assert (score == -np.inf) if expected is None else score == pytest.approx(best, abs=1e-5)
        if expected is not None:
            assert (path[len(x):] == -1).all() and {0, 1} >= set((np.diff(path[:len(x)]) > 1).astype(int))
            assert sum(x[t, states[s]] for t, s in enumerate(path[:len(x)])) == pytest.approx(best, abs=1e-5)
            assert path[:len(x)].tolist() == expected or not skips # without blanks repeated labels tie
    assert 0 < torch.isinf(scores).sum() < 20 or not skips # a repeated label needs a blank: some do not fit

@pytest.mark.parametrize('block', [1 << 26, 40, 1])
def test_long_paths_are_those_of_the_slow_loop_however_small_the_blocks(block, monkeypatch):
    monkeypatch.setattr(aligners, 'BLOCK', block)
    rng, rows = np.random.default_rng(1), []
    labels = [[1, 1, 2], [3] * 9, rng.integers(1, 5, 30), [4]]
    for row, T in zip(labels, (9, 50, 120, 77)):
        x = np.log(rng.dirichlet([.3] * 5, T) + 1e-6).astype(np.float32)
        rows.append((x, *ctc_states([int(i) for i in row])))
    paths, scores = viterbi(*batched(rows))
    for (x, _, _), row, path, score in zip(rows, labels, paths, scores):
        expected, best = slow_ctc(x.astype(np.float64), row)
        assert path[:len(x)].tolist() == expected and score == pytest.approx(best, abs=1e-6)

def test_pieces_cover_a_wave_and_end_where_it_is_quiet():
    wave = speech_like(95, 0)
    for at in (21, 47, 70):
        wave[at * RATE:at * RATE + RATE // 2] *= 1e-4
    pieces = cuts(wave, 640)
    assert [a for a, _ in pieces[1:]] == [b for _, b in pieces[:-1]] and (pieces[0][0], pieces[-1][1]) == (0, len(wave))
    assert all(b - a <= 30 * RATE for a, b in pieces) and all(b % 640 == 0 for _, b in pieces[:-1])
    assert [int(b / RATE) for _, b in pieces[:-1]] == [21, 47, 70]
    assert cuts(wave[:480000], 320) == [(0, 480000)] and len(cuts(np.zeros(480001, np.float32), 320)) == 2
    assert cuts(np.zeros(0, np.float32), 320) == [(0, 0)]

def test_edges_move_inwards_over_silence():
    wave = np.zeros(RATE, np.float32)
    wave[4000:8000], wave[9600:11200] = .5, .3
    starts, ends = tighten(wave, [0, 8640, 12800, 9600], [8640, 12800, 16000, 9600])
    expected = [4000, 9600, 12800, 9600], [8000, 11200, 16000, 9600] # within a frame and the one before or after it
    assert abs(np.subtract(starts, expected[0])).max() <= 640 >= abs(np.subtract(ends, expected[1])).max()
    assert tighten(np.zeros(100, np.float32), [0], [50]) == ([0], [50]) and tighten(wave[:0], [0], [0]) == ([0], [0])

# ----------------------------------------------------------------------------------------------------------------
# CTC

VOCAB = ['<pad>', '<s>', '</s>', '<unk>', '|', *LETTERS.upper(), "'"]

@pytest.fixture(scope='module')
def ctc(tmp_path_factory):
    """A random HuBERT with a CTC head: 20 ms frames, group norm, as HuBERT-base."""
    from transformers import HubertConfig, HubertForCTC
    folder = tmp_path_factory.mktemp('ctc')
    torch.manual_seed(0)
    HubertForCTC(HubertConfig(
        vocab_size=len(VOCAB), pad_token_id=0, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=[16] * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2)).save_pretrained(folder)
    (folder / 'vocab.json').write_text(json.dumps({c: i for i, c in enumerate(VOCAB)}))
    (folder / 'preprocessor_config.json').write_text(json.dumps({'do_normalize': True}))
    return folder

def emitted(labels, T=50, p=.9):
    """log-probabilities that spell `labels` = {frame: character}, blank elsewhere."""
    x = torch.full((T, len(VOCAB)), (1 - p) / (len(VOCAB) - 1))
    x[:, 0] = p
    for t, c in labels.items():
        x[t, 0], x[t, VOCAB.index(c)] = (1 - p) / (len(VOCAB) - 1), p
    return x.log()

def said(ctc, monkeypatch, labels, text, **settings):
    model = CTC(ctc, **settings)
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
    ('the 2014 d\'s', [('the', 3, 11), (' 2014', 10, 25), (" d's", 30, 37)]),
    ('... 2 & 東京', 'NO_LETTERS'),
    ('zzz qqq zzz qqq', 'UNLIKE_TEXT'),
    ('the ' * 30, 'TEXT_TOO_LONG'),
    ('', []), (' ', []),
])
def test_known_text_gets_the_times_of_its_labels(ctc, monkeypatch, text, expected):
    got = said(ctc, monkeypatch, SPOKEN, text)
    if '2014' in text: # it fits anywhere between its neighbors
        assert [w for w, *_ in got] == ['the', ' 2014', " d's"] and 9 < got[1][1] < 23 and got[1][2] <= 30 and got[2] == expected[2]
        return
    assert got == expected

def test_a_document_is_aligned_alone_as_together_and_long_audio_in_pieces(ctc):
    model, x = CTC(ctc, min_score=-99.0), waves(1, 3, 2.5, 61, .01)
    texts = ['so it was', "they don't know 42 things", 'a', ' '.join(['one two three'] * 25), 'x']
    together = model.align(x, texts)
    assert together == [model.align([w], [t])[0] for w, t in zip(x, texts)]
    assert [reason for *_, reason in together] == ['', '', '', '', 'TEXT_TOO_LONG']
    for (words, starts, ends, _), text in zip(together[:4], texts):
        assert ''.join(words) == text and (np.diff(np.stack([starts, ends], 1).ravel()) >= 0).all()
    assert len(model.emissions(x[3])) == len(x[3]) // 320
    quiet = x[3].copy()
    quiet[20 * RATE:21 * RATE] = 0 # the first piece ends here: what comes later is not heard before
    other = quiet.copy()
    other[40 * RATE:] *= -.5
    model.normalize = False
    a, b = model.emissions(quiet), model.emissions(other)
    assert torch.equal(a[:20 * 50], b[:20 * 50]) and not torch.equal(a, b)

def test_the_alphabet_is_the_models_own(ctc, tmp_path):
    model = CTC(ctc)
    ids = lambda word: ''.join(VOCAB[i] for i in model.spell(word))
    assert [ids(w) for w in ("Don't", 'naïve', 'Œuvre', 'ﬁn', '3D', '—')] == ["DON'T", 'NAIVE', 'UVRE', 'FIN', 'D', '']
    assert split_words('  a b\tc \n') == ['  a', ' b', '\tc'] and split_words(' ') == []
    for vocab, message in (('{"A": 99}', 'expected one id below'), ('{"a": {"b": 1}}', 'expected one id below'), ('["a"]', 'expected one id below'),
                           ('{', 'not JSON'),
                           ('{"ab": 1, "<pad>": 0}', 'no single characters')):
        for file in ctc.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / 'vocab.json').write_text(vocab)
        with pytest.raises(Refused, match=message):
            CTC(tmp_path)

# ----------------------------------------------------------------------------------------------------------------
# real ones

def taught(lines, waves, folder, steps=450):
    """tiny/hubert with a CTC head over letters, its last layer and head trained on a few spoken texts."""
    from transformers import HubertConfig, HubertForCTC
    torch.manual_seed(0)
    config = HubertConfig.from_pretrained(ROOT / 'tiny/hubert', vocab_size=len(VOCAB), pad_token_id=0, final_dropout=0.0)
    model = HubertForCTC.from_pretrained(ROOT / 'tiny/hubert', config=config, dtype=torch.float32).eval()
    labels = [[VOCAB.index(c) for c in re.sub("[^A-Z' ]", '', line['text'].upper()).replace(' ', '|')] for line in lines]
    with torch.no_grad():
        inputs = [model.hubert(torch.nn.functional.pad(torch.from_numpy(wave), (40, 40))[None],
                               output_hidden_states=True).hidden_states[-2] for wave in waves]
    last = model.hubert.encoder.layers[-1]
    optimizer = torch.optim.AdamW([*model.lm_head.parameters(), *last.parameters()], lr=1e-3)
    for step in range(steps):
        optimizer.param_groups[0]['lr'] = 1e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        x, y = inputs[step % len(inputs)], labels[step % len(inputs)]
        h = last(x)
        logp = model.lm_head(h[0] if isinstance(h, tuple) else h)[0].log_softmax(-1)
        loss = torch.nn.functional.ctc_loss(logp, torch.tensor(y), torch.tensor(len(logp)), torch.tensor(len(y)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    (folder / 'vocab.json').write_text(json.dumps({c: i for i, c in enumerate(VOCAB)}))
    (folder / 'preprocessor_config.json').write_text('{"do_normalize": false}')

def test_word_starts_of_the_embedded_corpus_are_within_60_ms_of_the_exact_ones_in_the_median(tmp_path):
    lines = [json.loads(line) for line in (ROOT / 'tiny/audio/manifest.jsonl').read_text().splitlines()]
    waves = [load_audio(ROOT / 'tiny/audio' / line['audio']) for line in lines]
    held = slice(1, None, 4) # never learned from; the voices are those of the others, but for one
    learned = [i for i in range(len(lines)) if i % 4 != 1]
    taught([lines[i] for i in learned], [waves[i] for i in learned], tmp_path)
    model = CTC(tmp_path)
    found = model.align(waves[held], [line['text'] for line in lines[held]])
    assert [reason for *_, reason in found] == [''] * 5
    for side, name in ((1, 'starts'), (2, 'ends')):
        errors = np.concatenate([np.array(doc[side]) / RATE - [w[side] for w in line['words']] for doc, line in zip(found, lines[held])])
        assert len(errors) == 85 and np.median(abs(errors)) < .06, f"{name}: median {np.median(abs(errors)):.3f} s"
    texts = [line['text'] for line in lines]
    shifted = [reason for *_, reason in model.align(waves[held], texts[3::4])] # of other documents
    assert set(shifted) == {'UNLIKE_TEXT', 'TEXT_TOO_LONG'}, shifted
