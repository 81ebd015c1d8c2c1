"""
The embedded encoder, tiny/hubert/: a HubertModel of 2.77 M parameters with mHuBERT's 25 Hz strides. Build time only.

    python -m tiny.build.train_encoder --stage=features    audio -> features of the teacher, once more when there is new audio
    python -m tiny.build.train_encoder --stage=classes     k-means of the teacher's features, once: the classes stay
    python -m tiny.build.train_encoder --stage=train       the student learns the classes; goes on where it was killed
    python -m tiny.build.train_encoder --stage=export      -> tiny/hubert/{config.json, model.safetensors, kmeans.safetensors}
    python -m tiny.build.train_encoder --stage=score       -> tiny/hubert/score.json

The teacher is Whisper tiny.en: its third block's output, frames averaged in pairs (25 Hz), 500 k-means classes. It
hears each utterance alone with a second of silence behind it instead of the usual padding to 30 s: 2.3 % of the classes
change, and it is six times as fast. The student learns them from augmented audio, with the frame's own centroids as
the head,

    logits_k = s (h . c_k - |c_k|^2 / 2)        so the likeliest class is the nearest centroid: c_k are what is shipped

Units are judged by phones from pocketsphinx's forced alignment: phone-normalized mutual information, corrected for
chance, because with K = 500 and a few minutes shuffled units have a high one too:

    PNMI = I(phone; unit) / H(phone)            (PNMI - PNMI of shuffled units) / (1 - PNMI of shuffled units)

Work lies in `build`: {train,held}/NAME/00000/ hold audio.npy int16 (N,), features.npy float16 (N / 640, 384),
labels.npy uint16 (N / 640,) and utterances.json, where NAME is a folder of audio (in held with -new or -known behind
it: its speakers are) and utterances follow one another without a gap.
"""
import json
import math
import re
import shutil
import time
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import HubertConfig, HubertModel, WhisperFeatureExtractor, WhisperModel

from configurator import Refused, run
from corpora.folder import utterances
from files import atomically, read_lines, record, sha256, write_json
from speech.audio import RATE, load_audio
from speech.encoders import Encoder
from speech.kmeans import load_centroids

HOP = 640 # samples a frame: 25 Hz
STAGES = ('features', 'classes', 'train', 'export', 'score')

@dataclass(frozen=True)
class Config:
    stage: str = 'features' # one of STAGES
    human: tuple = () # folders of human speech: LibriSpeech's, or any of corpora/folder.py
    speech: tuple = () # folders of synthetic speech, as tiny/build/speak.py writes them
    held_speakers: tuple = ('118', '3947', '5789', '8629', 'am_puck') # never trained on
    held_folders: tuple = ('librispeech_test-other', 'items-main', 'items-unseen') # nor these; of the rest, 1 in 50
    hours: float = 8.0 # at most so much of each folder
    teacher: str = 'out/build/whisper-tiny.en' # a Whisper folder, from tools of the build
    teacher_layer: int = 3 # of 4; the last is poor
    n_units: int = 500
    kmeans_frames: int = 120_000 # half of them human
    build: str = 'out/build/encoder'
    out: str = 'tiny/hubert'
    minutes: float = 60.0 # of training in CPU time, all runs together; the schedule ends there
    learning_rate: float = 1e-3
    human_share: float = 0.6 # of the training crops
    step_frames: int = 512 # frames a step, in crops of 64, 128 or 256
    threads: int = 1
    seed: int = 0

    def __post_init__(self):
        if self.stage not in STAGES:
            raise Refused(f"--stage={self.stage}: expected one of {', '.join(STAGES)}")
        if not self.minutes > 0 or not 0 < self.human_share < 1 or self.step_frames % 256:
            raise Refused("expected minutes above 0, human_share between 0 and 1, step_frames a multiple of 256")

# ----------------------------------------------------------------------------------------------------------------
# features: what the teacher hears

def recordings(folder):
    """Dicts {id, path, start, end (seconds or None), text, speaker}: of tiny/build/speak.py, LibriSpeech or any folder."""
    for docs in sorted(Path(folder).glob('*[0-9]/docs.jsonl')):
        for _, u in read_lines(docs):
            yield {**u, 'path': docs.with_name('audio.flac'), 'start': u['start'] / RATE,
                   'end': (u['start'] + u['samples']) / RATE}
    if next(Path(folder).glob('*[0-9]/docs.jsonl'), None):
        return
    texts = {}
    for path in Path(folder).rglob('*.trans.txt'):
        texts |= dict(line.split(' ', 1) for line in path.read_text().splitlines())
    for u in utterances(folder):
        name = Path(u['path']).stem
        yield {**u, 'text': u['text'] or texts.get(name), 'speaker': u['speaker'] or name.split('-')[0]}

class Teacher:
    """teacher(wave) -> (floor(N / 640), 384): a hidden layer of Whisper's encoder, frames averaged in pairs."""
    def __init__(self, folder, layer):
        self.encoder = WhisperModel.from_pretrained(folder, dtype=torch.float32).encoder.eval()
        self.mel, self.layer = WhisperFeatureExtractor.from_pretrained(folder), layer

    @torch.inference_mode()
    def __call__(self, wave):
        wave, e = np.pad(wave, (0, RATE)), self.encoder # at most 30 s together: so many positions there are
        mel = self.mel(wave, sampling_rate=RATE, padding='do_not_pad', truncation=False, return_tensors='pt')
        h = F.gelu(e.conv2(F.gelu(e.conv1(mel.input_features)))).transpose(1, 2) # (1, T, C) at 50 Hz
        h = h + e.embed_positions.weight[:h.shape[1]]
        for block in e.layers[:self.layer]:
            h = block(h, None)
        frames = (len(wave) - RATE) // HOP
        return h[0, :2 * frames].view(frames, 2, -1).mean(1)

def make_shard(path, group, teacher):
    """The audio and features of a list of recordings -> a shard folder; one that holds just these is left."""
    wanted = [u['id'] for u in group]
    if (path / 'utterances.json').exists():
        if [u['id'] for u in json.loads((path / 'utterances.json').read_text())] == wanted:
            return
        shutil.rmtree(path) # the folder of audio has grown
    audio, features, rows = [], [], []
    for u in group:
        wave = load_audio(u['path'], u['start'], u['end'])[:29 * RATE]
        wave = wave[:len(wave) // HOP * HOP]
        audio.append((wave.clip(-1, 1) * 32767).round().astype(np.int16))
        features.append(teacher(wave).half().numpy())
        rows.append({'id': u['id'], 'speaker': u['speaker'], 'frames': len(wave) // HOP, 'text': u['text']})
    with atomically(path) as tmp:
        tmp.mkdir()
        np.save(tmp / 'audio.npy', np.concatenate(audio))
        np.save(tmp / 'features.npy', np.concatenate(features))
        (tmp / 'utterances.json').write_text(json.dumps(rows))

def part_of(cfg, name, u):
    """Where an utterance of folder `name` belongs, below build."""
    if u['speaker'] in cfg.held_speakers or name in cfg.held_folders:
        return f'held/{name}-new'
    return f'held/{name}-known' if zlib.crc32(u['id'].encode()) % 50 == 0 else f'train/{name}'

def features(cfg):
    teacher = Teacher(cfg.teacher, cfg.teacher_layer)
    for folder in cfg.human + cfg.speech:
        parts = defaultdict(list)
        for u in recordings(folder):
            parts[part_of(cfg, Path(folder).name, u)].append(u)
        for part, found in parts.items():
            seconds, started = 0, time.time()
            for i in range(0, len(found), 200):
                path = Path(cfg.build, part, f'{i // 200:05d}')
                make_shard(path, found[i:i + 200], teacher)
                seconds += len(np.load(path / 'audio.npy', mmap_mode='r')) / RATE
                if seconds > cfg.hours * 3600:
                    break
            print(f"{part}: {seconds / 3600:.2f} h in {time.time() - started:.0f} s")
    if Path(cfg.build, 'classes.safetensors').exists():
        label(cfg)

# ----------------------------------------------------------------------------------------------------------------
# classes: k-means of the teacher's features

def nearest(x, centroids):
    """(N, C), (K, C) -> (N,) index of the nearest centroid."""
    half = centroids.square().sum(1) / 2
    return torch.cat([(part @ centroids.T - half).argmax(1) for part in x.float().split(8192)])

def kmeans(x, k, generator, rounds=25):
    """(k, C) centroids of x (N, C): k-means++, then Lloyd; one that loses all its frames starts again at a frame."""
    chosen, square = [torch.randint(len(x), (), generator=generator)], x.square().sum(1)
    apart = torch.full((len(x),), math.inf)
    while len(chosen) < k: # frames far from all centroids so far are likely to be the next
        i = chosen[-1]
        apart = torch.minimum(apart, square - 2 * (x @ x[i]) + square[i]).clamp(min=0)
        weights = apart.double().cumsum(0) + 1e-9
        draw = torch.rand((), generator=generator, dtype=torch.float64) * weights[-1]
        chosen.append(torch.searchsorted(weights, draw).clamp(max=len(x) - 1))
    centroids = x[torch.stack(chosen)]
    for _ in range(rounds):
        labels = nearest(x, centroids)
        count = torch.bincount(labels, minlength=k)
        centroids = torch.zeros_like(centroids).index_add_(0, labels, x) / count.clamp(min=1)[:, None]
        empty = (count == 0).nonzero()[:, 0]
        centroids[empty] = x[torch.randint(len(x), (len(empty),), generator=generator)]
    return centroids

def shards(cfg, part, folders):
    """Shard folders of build/part that come from `folders`, in order."""
    names = {Path(f).name for f in folders}
    return [p.parent for p in sorted(Path(cfg.build, part).glob('*/*/utterances.json'))
            if re.sub('-(new|known)$', '', p.parent.parent.name) in names]

def training_sample(cfg, read, n):
    """n rows of the arrays read(shard) of the training part, half of them human, as float32; all if there are fewer."""
    rng, out = np.random.default_rng(cfg.seed), []
    for folders in (cfg.human, cfg.speech):
        arrays = [read(p) for p in shards(cfg, 'train', folders)]
        share = n / 2 / sum(map(len, arrays))
        out += [a[np.sort(rng.permutation(len(a))[:round(share * len(a))])] for a in arrays]
    return torch.from_numpy(np.concatenate(out).astype(np.float32))

def classes(cfg):
    path = Path(cfg.build, 'classes.safetensors')
    if path.exists():
        raise Refused(f"{path}: the classes are there already, and students learn them; remove it to begin anew")
    x = training_sample(cfg, lambda p: np.load(p / 'features.npy', mmap_mode='r'), cfg.kmeans_frames)
    centroids = kmeans(x, cfg.n_units, torch.Generator().manual_seed(cfg.seed))
    with atomically(path) as tmp:
        save_file({'centroids': centroids}, tmp)
    write_json(Path(cfg.build, 'classes.json'), {'frames': len(x), **record(cfg)})
    label(cfg)

def label(cfg):
    """labels.npy of every shard that lacks it."""
    centroids = load_centroids(Path(cfg.build, 'classes.safetensors'))
    for p in sorted(Path(cfg.build).glob('*/*/*/features.npy')):
        if not (p.parent / 'labels.npy').exists():
            labels = nearest(torch.from_numpy(np.load(p)), centroids).numpy().astype(np.uint16)
            with atomically(p.parent / 'labels.npy') as tmp, open(tmp, 'wb') as f:
                np.save(f, labels)

# ----------------------------------------------------------------------------------------------------------------
# the student

def hubert_config(**changes):
    """2.77 M parameters. The first convolutions set the cost, so they are narrow; the layers cost hardly anything."""
    return HubertConfig(**{
        'conv_dim': (64, 64, 96, 128, 128, 192, 192, 256), 'conv_kernel': (10, 3, 3, 3, 3, 2, 2, 2),
        'conv_stride': (5, 2, 2, 2, 2, 2, 2, 2), 'num_feat_extract_layers': 8, 'feat_extract_norm': 'group',
        'hidden_size': 256, 'num_hidden_layers': 4, 'num_attention_heads': 4, 'intermediate_size': 576,
        'num_conv_pos_embeddings': 31, 'num_conv_pos_embedding_groups': 16, 'mask_time_prob': 0.1, 'layerdrop': 0.0,
        'hidden_dropout': 0.05, 'attention_dropout': 0.0, 'activation_dropout': 0.0, 'feat_proj_dropout': 0.0,
        **changes})

class Student(nn.Module):
    """HubertModel and the head whose centroids are the units: audio (B, N) -> logits (B, N / 640, K)."""
    def __init__(self, config, n_units):
        super().__init__()
        self.hubert = HubertModel(config)
        self.centroids = nn.Parameter(torch.randn(n_units, config.hidden_size) * 0.1)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def head(self, h):
        return self.log_scale.exp() * (h @ self.centroids.T - self.centroids.square().sum(1) / 2)

    def forward(self, audio, mask=None):
        with torch.autocast('cpu', torch.bfloat16):
            h = self.hubert(F.pad(audio, (40, 40)), mask_time_indices=mask).last_hidden_state
        return self.head(h.float())

class Stream:
    """The training audio of some folders as one long tape with a class every 640 samples."""
    def __init__(self, paths):
        self.audio = [np.load(p / 'audio.npy', mmap_mode='r') for p in paths]
        self.labels = [np.load(p / 'labels.npy') for p in paths]
        self.ends = np.cumsum([len(x) for x in self.labels])
        self.hours = float(self.ends[-1]) * HOP / RATE / 3600

    def crop(self, rng, frames):
        """A random crop: float32 (frames * 640,), int64 (frames,)."""
        i = np.searchsorted(self.ends, rng.integers(self.ends[-1]), side='right')
        first = rng.integers(len(self.labels[i]) - frames + 1)
        wave = self.audio[i][first * HOP:(first + frames) * HOP] / np.float32(32767)
        return wave, self.labels[i][first:first + frames].astype(np.int64)

def augment(x, rng):
    """Half of the rows (B, N) get some of: a random equalizer, a room of 0.1-0.5 s, noise or other talk, a gain."""
    B, N = x.shape
    spectrum, out = np.fft.rfft(x, 2 * N), np.array(x)
    bins = np.linspace(0, 1, N + 1)
    for row in np.flatnonzero(rng.random(B) < 0.5):
        level = np.sqrt(np.mean(x[row] ** 2)) + 1e-5
        s = spectrum[row]
        if rng.random() < 0.6: # gains at 8 frequencies, +-8 dB
            s = s * 10 ** (np.interp(bins, np.linspace(0, 1, 8) ** 2, rng.uniform(-8, 8, 8)) / 20)
        if rng.random() < 0.4: # a decaying tail behind the direct sound
            n = int(rng.uniform(0.1, 0.5) * RATE)
            tail = rng.standard_normal(n) * np.exp(-6.9 * np.arange(n) / n)
            tail *= rng.uniform(0.1, 0.7) / np.sqrt(np.sum(tail ** 2))
            tail[0] = 1
            s = s * np.fft.rfft(tail, 2 * N)
        y = np.fft.irfft(s)[:N]
        if rng.random() < 0.6: # white to brown noise, or another row of the batch, 5 to 40 dB below
            color = rng.standard_normal(N + 1) + 1j * rng.standard_normal(N + 1)
            noise = np.fft.irfft(color / (bins + 0.01) ** rng.uniform(0, 1))[:N]
            if rng.random() < 0.3:
                noise = x[(row + 1) % B]
            y = y + noise * (level / (np.std(noise) + 1e-5) * 10 ** (-rng.uniform(5, 40) / 20))
        out[row] = y * 10 ** (rng.uniform(-12, 6) / 20)
    return out.astype(np.float32)

def batch(cfg, streams, step):
    """Audio (B, N), classes (B, N / 640), masked frames: a pure function of (seed, step)."""
    rng = np.random.default_rng([cfg.seed, step])
    frames = int(rng.choice([64, 128, 256])) # of all lengths, because the first norm runs over time
    pairs = [streams[0 if rng.random() < cfg.human_share else 1].crop(rng, frames)
             for _ in range(cfg.step_frames // frames)]
    audio, labels = (np.stack(column) for column in zip(*pairs))
    mask = np.zeros(labels.shape, bool)
    for row in range(len(mask)):
        for start in rng.integers(frames, size=frames // 64):
            mask[row, start:start + int(rng.integers(2, 11))] = True # about 9 % of the frames, in spans below 0.4 s
    return torch.from_numpy(augment(audio, rng)), torch.from_numpy(labels), torch.from_numpy(mask)

@torch.inference_mode()
def top1(student, stream, seconds=240):
    """Share of frames where the student finds the teacher's class."""
    student.eval()
    rng, right = np.random.default_rng(0), []
    for _ in range(max(1, seconds * 25 // 1024)):
        audio, labels = zip(*(stream.crop(rng, 256) for _ in range(4)))
        right.append((student(torch.from_numpy(np.stack(audio))).argmax(-1).numpy() == np.stack(labels)).mean())
    student.train()
    return float(np.mean(right))

def save_state(path, student, optimizer, marks):
    tensors = {'model.' + n: p.detach() for n, p in student.named_parameters()}
    for n, p in student.named_parameters():
        for key, value in optimizer.state[p].items():
            tensors[f'{key}.{n}'] = value
    with atomically(path) as tmp:
        save_file({n: t.contiguous() for n, t in tensors.items()}, tmp, {n: str(v) for n, v in marks.items()})

def load_state(path, student, optimizer, classes_hash):
    """Fills student and optimizer (None: the student alone); -> steps and seconds so far."""
    with safe_open(path, 'pt') as f:
        marks = f.metadata()
    if marks['classes'] != classes_hash:
        raise Refused(f"{path}: learned other classes; remove it to begin anew")
    tensors = load_file(path)
    with torch.no_grad():
        for n, p in student.named_parameters():
            p.copy_(tensors['model.' + n])
            if optimizer is not None:
                optimizer.state[p] = {key: tensors[f'{key}.{n}'] for key in ('step', 'exp_avg', 'exp_avg_sq')}
    return int(marks['step']), float(marks['seconds'])

def train(cfg):
    build, classes_hash = Path(cfg.build), sha256(Path(cfg.build, 'classes.safetensors'))
    streams = [Stream(shards(cfg, 'train', folders)) for folders in (cfg.human, cfg.speech)]
    held = {name: Stream(paths) for name, paths in held_groups(cfg).items()
            if sum(len(np.load(p / 'labels.npy', mmap_mode='r')) for p in paths) > 5000}
    torch.manual_seed(cfg.seed)
    student = Student(hubert_config(), cfg.n_units).train()
    optimizer = torch.optim.AdamW(student.parameters(), cfg.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    state, step, seconds, losses = build / 'state.safetensors', 0, 0.0, []
    if state.exists():
        step, seconds = load_state(state, student, optimizer, classes_hash)
    print(f"{sum(p.numel() for p in student.hubert.parameters()):,} parameters; "
          f"{streams[0].hours:.2f} h of human speech, {streams[1].hours:.2f} h synthetic; "
          f"from step {step}, minute {seconds / 60:.1f}", flush=True)
    clock, saved = time.process_time() - seconds, seconds # CPU time: a busy machine changes nothing
    while seconds < 60 * cfg.minutes:
        done = seconds / 60 / cfg.minutes
        for group in optimizer.param_groups:
            group['lr'] = cfg.learning_rate * min((step + 1) / 200, 0.505 + 0.495 * math.cos(math.pi * done))
        audio, labels, mask = batch(cfg, streams, step)
        loss = F.cross_entropy(student(audio, mask).flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        step, seconds = step + 1, time.process_time() - clock
        if seconds - saved > 120 or seconds >= 60 * cfg.minutes:
            right = {name: round(top1(student, stream), 3) for name, stream in held.items()}
            line = {'step': step, 'minute': round(seconds / 60, 1), 'loss': round(float(np.mean(losses)), 4)}
            print(json.dumps({**line, 'top1': right}), flush=True)
            save_state(state, student, optimizer, {'step': step, 'seconds': seconds, 'classes': classes_hash})
            saved, losses = seconds, []
    write_json(build / 'train.json', {'steps': step, 'minutes': round(seconds / 60, 1), **record(cfg)})

def held_groups(cfg):
    """{'NAME-new' or 'NAME-known': shard folders} of the held-out part."""
    groups = defaultdict(list)
    for p in shards(cfg, 'held', cfg.human + cfg.speech):
        groups[p.parent.name].append(p)
    return groups

def export(cfg):
    student = Student(hubert_config(), cfg.n_units).eval()
    step, seconds = load_state(Path(cfg.build, 'state.safetensors'), student, None,
                               sha256(Path(cfg.build, 'classes.safetensors')))
    save_student(student, cfg.out)
    print(f"{cfg.out}: step {step}, minute {seconds / 60:.1f}")

def save_student(student, out):
    """The folder that tokenize_speech.py takes: fp16 weights and centroids."""
    student.hubert.half().save_pretrained(out)
    save_file({'centroids': student.centroids.detach().half()}, Path(out, 'kmeans.safetensors'))

# ----------------------------------------------------------------------------------------------------------------
# score

def pnmi(phones, units):
    """I(phone; unit) / H(phone) of two equally long arrays of ids."""
    joint = np.zeros((phones.max() + 1, units.max() + 1))
    np.add.at(joint, (phones, units), 1)
    joint /= joint.sum()
    p, u = joint.sum(1), joint.sum(0)
    some = joint > 0
    information = np.sum(joint[some] * np.log(joint[some] / np.outer(p, u)[some]))
    return float(information / -np.sum(p[p > 0] * np.log(p[p > 0])))

def corrected(phones, units, seed=0):
    """{'pnmi', 'shuffled', 'corrected'}: 1 for units that tell the phone, about 0 for units that know nothing of it."""
    rng = np.random.default_rng(seed)
    raw, chance = pnmi(phones, units), float(np.mean([pnmi(phones, rng.permutation(units)) for _ in range(5)]))
    return {'pnmi': round(raw, 4), 'shuffled': round(chance, 4), 'corrected': round((raw - chance) / (1 - chance), 4)}

def align_phones(pcm, text):
    """int16 audio at 16 kHz, its text -> the phone at each frame's middle, by forced alignment; None where it fails."""
    from pocketsphinx import Decoder
    decoder = Decoder(lm=None, loglevel='FATAL') # a fresh one: a failed alignment spoils the next
    words = re.findall(r"[a-z']+", (text or '').lower())
    if not words or any(decoder.lookup_word(word) is None for word in words):
        return None
    decoder.set_align_text(' '.join(words))
    try:
        for phones_too in (False, True):
            if phones_too:
                decoder.set_alignment()
            decoder.start_utt()
            decoder.process_raw(pcm.tobytes(), full_utt=True)
            decoder.end_utt()
    except RuntimeError:
        return None
    at = np.full(len(pcm) // 160 + 4, 'SIL', dtype='<U4') # 100 Hz
    for phone in (phone for word in decoder.get_alignment() for phone in word):
        at[phone.start:phone.start + phone.duration] = 'SIL' if phone.name.startswith('+') else phone.name
    return at[2::4][:len(pcm) // HOP]

def mel_features(audio, rows, mel, cepstra):
    """Baselines at 25 Hz, normalized over each utterance: 80 log-mels, or 13 cepstra with two differences."""
    out, start = [], 0
    dct = torch.cos(math.pi / 80 * (torch.arange(80) + 0.5) * torch.arange(13)[:, None])
    for row in rows:
        wave = audio[start * HOP:(start + row['frames']) * HOP] / np.float32(32767)
        start += row['frames']
        x = mel(wave, sampling_rate=RATE, padding='do_not_pad', truncation=False, return_tensors='pt').input_features[0]
        if cepstra:
            x = dct @ x
            first = torch.gradient(x, dim=1)[0]
            x = torch.cat([x, first, torch.gradient(first, dim=1)[0]])
        x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
        out.append(x[:, :4 * row['frames']].view(len(x), -1, 4).mean(2).T)
    return torch.cat(out).numpy()

def score_shard(path, encoder, baselines):
    """{'phones', 'teacher', 'student', each baseline: phones or units by frame} of the utterances that align."""
    audio, rows = np.load(path / 'audio.npy'), json.loads((path / 'utterances.json').read_text())
    starts = np.cumsum([0] + [row['frames'] for row in rows])
    units = {'teacher': np.load(path / 'labels.npy').astype(np.int64)}
    waves = [audio[a * HOP:b * HOP] / np.float32(32767) for a, b in zip(starts, starts[1:])]
    units['student'] = np.concatenate(encoder.encode(waves))
    for name, (read, centroids) in baselines.items():
        units[name] = nearest(torch.from_numpy(read(path)), centroids).numpy()
    phones = [align_phones(audio[a * HOP:b * HOP], row['text']) for a, b, row in zip(starts, starts[1:], rows)]
    keep = np.concatenate([np.full(row['frames'], p is not None) for row, p in zip(rows, phones)])
    found = [p for p in phones if p is not None]
    return {'phones': np.concatenate(found) if found else np.zeros(0, '<U4'), **{n: u[keep] for n, u in units.items()}}

def score(cfg):
    mel = WhisperFeatureExtractor.from_pretrained(cfg.teacher)
    encoder = Encoder(cfg.out, hubert_config().num_hidden_layers, load_centroids(Path(cfg.out, 'kmeans.safetensors')))
    baselines = {}
    for name, cepstra in (('log-mel', False), ('mfcc', True)):
        read = lambda p, cepstra=cepstra: mel_features(np.load(p / 'audio.npy'),
                                                       json.loads((p / 'utterances.json').read_text()), mel, cepstra)
        x = training_sample(cfg, read, cfg.kmeans_frames // 2)
        baselines[name] = read, kmeans(x, cfg.n_units, torch.Generator().manual_seed(cfg.seed))
    table = {}
    for group, paths in held_groups(cfg).items():
        parts = [score_shard(p, encoder, baselines) for p in paths]
        found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        if len(found['phones']) < 1000:
            continue
        names, phones = np.unique(found.pop('phones'), return_inverse=True)
        scores = {name: corrected(phones, units) for name, units in found.items()}
        table[group] = {'minutes': round(len(phones) / 1500, 1), 'phones': len(names),
                        'top1': round(float(np.mean(found['teacher'] == found['student'])), 3), **scores,
                        'of teacher': round(scores['student']['corrected'] / scores['teacher']['corrected'], 3)}
        print(group, json.dumps(table[group]), flush=True)
    write_json(Path(cfg.out, 'score.json'), {'groups': table, **record(cfg)})

def main(cfg):
    torch.set_num_threads(cfg.threads)
    {'features': features, 'classes': classes, 'train': train, 'export': export, 'score': score}[cfg.stage](cfg)

if __name__ == '__main__':
    run(main, Config)
