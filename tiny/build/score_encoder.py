"""
Scores the embedded encoder's units against phones: the last stage of tiny/build/train_encoder.py.

    python -m tiny.build.train_encoder --stage=score       -> tiny/hubert/score.json

The phones come from pocketsphinx's forced alignment. The score is the phone-normalized mutual
information. With K = 500 and a few minutes of speech even shuffled units score high, so the score
is corrected for chance:

    PNMI = I(phone; unit) / H(phone)
    corrected = (PNMI - PNMI of shuffled units) / (1 - PNMI of shuffled units)

score.json has these numbers for each held-out group of speech: of the student's units, of the
teacher's classes, and of two baselines, k-means of log-mels and of MFCCs. `top1` is the share of
frames for which the student's unit is the teacher's class; `of teacher` is the student's corrected
score over the teacher's.
"""
import json
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from files import record, write_json
from speech.encoders import Encoder
from speech.kmeans import load_centroids
from speech.pretrained import model_file
from tiny.build.train_encoder import HOP, held_groups, hubert_config, kmeans, log_mel, nearest, training_sample


def pnmi(phones, units):
    """I(phone; unit) / H(phone) of two equally long arrays of ids."""
    joint = np.zeros((phones.max() + 1, units.max() + 1))
    np.add.at(joint, (phones, units), 1)
    joint /= joint.sum()
    p_phone = joint.sum(1)
    p_unit = joint.sum(0)
    seen = joint > 0
    information = np.sum(joint[seen] * np.log(joint[seen] / np.outer(p_phone, p_unit)[seen]))
    p_phone = p_phone[p_phone > 0]
    entropy = -np.sum(p_phone * np.log(p_phone))
    return float(information / entropy)

def corrected(phones, units, seed=0):
    """{'pnmi', 'shuffled', 'corrected'}.

    The corrected value is 1 for units that determine the phone and about 0 for random units.
    """
    rng = np.random.default_rng(seed)
    raw = pnmi(phones, units)
    chance = float(np.mean([pnmi(phones, rng.permutation(units)) for _ in range(5)]))
    return {
        'pnmi': round(raw, 4),
        'shuffled': round(chance, 4),
        'corrected': round((raw - chance) / (1 - chance), 4)}

def align_phones(pcm, text):
    """int16 audio at 16 kHz and its text -> the phone at the middle of each frame, by forced alignment.

    None if the alignment fails or a word is not in the dictionary.
    """
    from pocketsphinx import Decoder
    # A new decoder each time, because a failed alignment spoils the next one.
    decoder = Decoder(lm=None, loglevel='FATAL')
    words = re.findall(r"[a-z']+", (text or '').lower())
    if not words or any(decoder.lookup_word(word) is None for word in words):
        return None
    decoder.set_align_text(' '.join(words))
    try:
        # The first pass aligns words, the second their phones.
        for align_phones_too in (False, True):
            if align_phones_too:
                decoder.set_alignment()
            decoder.start_utt()
            decoder.process_raw(pcm.tobytes(), full_utt=True)
            decoder.end_utt()
    except RuntimeError:
        return None
    names = np.full(len(pcm) // 160 + 4, 'SIL', dtype='<U4') # 100 Hz
    for word in decoder.get_alignment():
        for phone in word:
            name = 'SIL' if phone.name.startswith('+') else phone.name # '+' marks a filler
            names[phone.start:phone.start + phone.duration] = name
    return names[2::4][:len(pcm) // HOP]

def mel_features(path, extractor, cepstra):
    """Baseline features of a shard at 25 Hz, normalized over each utterance: (frames, C).

    They are 80 log-mels, or 13 cepstra with their first and second differences.
    """
    audio = np.load(path / 'audio.npy')
    rows = json.loads((path / 'utterances.json').read_text())
    dct = torch.cos(math.pi / 80 * (torch.arange(80) + 0.5) * torch.arange(13)[:, None])
    features = []
    start = 0
    for row in rows:
        frames = row['frames']
        wave = audio[start * HOP:(start + frames) * HOP] / np.float32(32767)
        start += frames
        x = log_mel(extractor, wave)[0]
        if cepstra:
            x = dct @ x
            first = torch.gradient(x, dim=1)[0]
            second = torch.gradient(first, dim=1)[0]
            x = torch.cat([x, first, second])
        x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
        features.append(x[:, :4 * frames].view(len(x), -1, 4).mean(2).T)
    return torch.cat(features).numpy()

def score_shard(path, encoder, baselines):
    """{'phones', 'teacher', 'student', each baseline: the phone or unit of each frame}.

    Utterances whose alignment fails are left out.
    """
    audio = np.load(path / 'audio.npy')
    rows = json.loads((path / 'utterances.json').read_text())
    ends = np.cumsum([row['frames'] for row in rows])
    pcms = np.split(audio, ends[:-1] * HOP)
    units = {'teacher': np.load(path / 'labels.npy').astype(np.int64)}
    units['student'] = np.concatenate(encoder.encode([pcm / np.float32(32767) for pcm in pcms]))
    for name, (read, centroids) in baselines.items():
        units[name] = nearest(torch.from_numpy(read(path)), centroids).numpy()
    phones = [np.zeros(0, '<U4')]
    aligned = []
    for pcm, row in zip(pcms, rows):
        names = align_phones(pcm, row['text'])
        aligned += [names is not None] * row['frames']
        if names is not None:
            phones.append(names)
    return {'phones': np.concatenate(phones), **{name: ids[aligned] for name, ids in units.items()}}

def make_baselines(cfg):
    """{'log-mel', 'mfcc': (read(shard) -> features, their centroids)}"""
    extractor = WhisperFeatureExtractor.from_dict(model_file(cfg.teacher, 'preprocessor_config.json'))
    baselines = {}
    for name, cepstra in (('log-mel', False), ('mfcc', True)):
        read = partial(mel_features, extractor=extractor, cepstra=cepstra)
        x = training_sample(cfg, read, cfg.kmeans_frames // 2)
        baselines[name] = read, kmeans(x, cfg.n_units, torch.Generator().manual_seed(cfg.seed))
    return baselines

def score(cfg):
    centroids = load_centroids(Path(cfg.out, 'kmeans.safetensors'))
    encoder = Encoder(cfg.out, hubert_config().num_hidden_layers, centroids)
    baselines = make_baselines(cfg)
    table = {}
    for group, paths in held_groups(cfg).items():
        parts = [score_shard(p, encoder, baselines) for p in paths]
        frames = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        phone_names, phones = np.unique(frames.pop('phones'), return_inverse=True)
        if len(phones) < 1000:
            continue
        scores = {name: corrected(phones, units) for name, units in frames.items()}
        ratio = scores['student']['corrected'] / scores['teacher']['corrected']
        table[group] = {
            'minutes': round(len(phones) / 1500, 1),
            'phones': len(phone_names),
            'top1': round(float(np.mean(frames['teacher'] == frames['student'])), 3),
            **scores,
            'of teacher': round(ratio, 3)}
        print(group, json.dumps(table[group]), flush=True)
    write_json(Path(cfg.out, 'score.json'), {'groups': table, **record(cfg)})
