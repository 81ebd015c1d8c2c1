"""
Trains the embedded encoder, tiny/hubert/: a HubertModel of 2.77 M parameters with mHuBERT's 25 Hz
strides. Only building the embedded corpus needs this script.

    python -m tiny.build.train_encoder --stage=STAGE

    features    audio -> features of the teacher; again whenever there is new audio
    classes     k-means of the teacher's features; once, as the classes must stay
    train       the student learns the classes; resumes where it was killed
    export      -> tiny/hubert/{config.json, model.safetensors, kmeans.safetensors}
    score       -> tiny/hubert/score.json

The teacher is Whisper tiny.en: the output of its third block, with frames averaged in pairs (25 Hz)
and clustered into 500 k-means classes. It hears each utterance alone, followed by a second of
silence instead of the usual padding to 30 s. This changes 2.3 % of the classes and is six times as
fast. The student learns the classes from augmented audio. Its head holds a centroid c_k for every
class:

    logits_k = s (h . c_k - |c_k|^2 / 2)

The likeliest class is thus the nearest centroid, and the c_k are shipped as the centroids of the
units.

tiny/build/score_encoder.py scores the units against phones, with a correction for chance.

Intermediate results are in `build`: {train,held}/NAME/00000/ hold audio.npy int16 (N,),
features.npy float16 (N / 640, 384), labels.npy uint16 (N / 640,) and utterances.json. NAME is a
folder of audio. In held/ it ends with -new (the speaker was never trained on) or -known. Utterances
follow one another without a gap.
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
from transformers import HubertConfig, HubertModel, WhisperFeatureExtractor

from configurator import Refused, run
from corpora.folder import utterances
from files import atomically, lines, read_lines, record, sha256, walk, write_json
from locks import writing_in
from speech.audio import RATE, load_audio
from speech.kmeans import load_centroids
from speech.pretrained import load_model, model_file

HOP = 640 # samples a frame: 25 Hz
STAGES = ('features', 'classes', 'train', 'export', 'score')

@dataclass(frozen=True)
class Config:
    stage: str = 'features' # features, classes, train, export or score, in this order
    human: tuple = () # folders of human speech: LibriSpeech's, or any that corpora/folder.py reads
    speech: tuple = () # folders of synthetic speech, as tiny/build/speak.py writes them
    # speakers and folders that are never trained on; nor is 1 in 50 of the other utterances
    held_speakers: tuple = ('118', '3947', '5789', '8629', 'am_puck')
    held_folders: tuple = ('librispeech_test-other', 'items-main', 'items-unseen')
    hours: float = 8.0 # the most that is taken of each folder
    teacher: str = 'out/build/whisper-tiny.en' # a Whisper folder
    teacher_layer: int = 3 # of 4; the last one gives poor classes
    n_units: int = 500 # classes, which become the units
    kmeans_frames: int = 120_000 # frames that the classes are fitted to, half of them human
    build: str = 'out/build/encoder' # folder for intermediate results
    out: str = 'tiny/hubert' # folder for the encoder
    minutes: float = 60.0 # CPU time of training, over all runs; the schedule ends there
    learning_rate: float = 1e-3
    human_share: float = 0.6 # share of the training crops that are human speech
    step_frames: int = 512 # frames a step, in crops of 64, 128 or 256
    threads: int = 1 # threads of torch
    seed: int = 0 # of the classes, the weights and the batches

    def __post_init__(self):
        if self.stage not in STAGES:
            raise Refused(f"--stage={self.stage}: expected one of {', '.join(STAGES)}")
        if not (self.minutes > 0 and 0 < self.human_share < 1 and self.step_frames % 256 == 0):
            raise Refused("expected minutes above 0, human_share between 0 and 1, step_frames a multiple of 256")

# --------------------------------------------------------------------------------------------------
# features of the teacher

def recordings(folder):
    """Yields dicts {id, path, start, end, text, speaker}, with times in seconds or None.

    The folder is one of tiny/build/speak.py, LibriSpeech's, or any that corpora/folder.py reads.
    """
    spoken_shards = sorted(Path(folder).glob('*[0-9]/docs.jsonl'))
    for docs in spoken_shards:
        for _, u in read_lines(docs):
            yield {
                **u,
                'path': docs.with_name('audio.flac'),
                'start': u['start'] / RATE,
                'end': (u['start'] + u['samples']) / RATE}
    if spoken_shards:
        return
    texts = {} # LibriSpeech's transcripts
    for name, path in walk(folder).items():
        if name.endswith('.trans.txt'):
            texts |= dict(line.split(' ', 1) for _, line in lines(path))
    for u in utterances(folder):
        name = Path(u['path']).stem
        yield {**u, 'text': u['text'] or texts.get(name), 'speaker': u['speaker'] or name.split('-')[0]}

def log_mel(extractor, wave):
    """(1, 80, T) at 100 Hz from a WhisperFeatureExtractor, without its padding to 30 s."""
    options = dict(padding='do_not_pad', truncation=False, return_tensors='pt')
    return extractor(wave, sampling_rate=RATE, **options).input_features

class Teacher:
    """teacher(wave) -> (floor(N / 640), 384): a layer of Whisper's encoder, frames averaged in pairs."""
    def __init__(self, folder, layer):
        self.encoder = load_model('WhisperModel', folder, dtype=torch.float32).encoder
        self.mel = WhisperFeatureExtractor.from_dict(model_file(folder, 'preprocessor_config.json'))
        self.layer = layer

    @torch.inference_mode()
    def __call__(self, wave):
        frames = len(wave) // HOP
        # With the second of silence there may be at most 30 s, as many as Whisper has positions for.
        wave = np.pad(wave, (0, RATE))
        encoder = self.encoder
        h = F.gelu(encoder.conv1(log_mel(self.mel, wave)))
        h = F.gelu(encoder.conv2(h)).transpose(1, 2) # (1, T, C) at 50 Hz
        h = h + encoder.embed_positions.weight[:h.shape[1]]
        for block in encoder.layers[:self.layer]:
            h = block(h, None)
        return h[0, :2 * frames].view(frames, 2, -1).mean(1)

def make_shard(path, group, teacher):
    """Writes a shard folder with the audio and features of a list of recordings.

    A folder that holds just these recordings is left as it is.
    """
    if (path / 'utterances.json').exists():
        present = json.loads((path / 'utterances.json').read_text())
        if [row['id'] for row in present] == [u['id'] for u in group]:
            return
        # The folder of audio has grown.
        shutil.rmtree(path)
    audio = []
    features = []
    rows = []
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
    """The folder below build to which an utterance of the folder `name` belongs."""
    if u['speaker'] in cfg.held_speakers or name in cfg.held_folders:
        return f'held/{name}-new'
    if zlib.crc32(u['id'].encode()) % 50 == 0:
        return f'held/{name}-known'
    return f'train/{name}'

def features(cfg):
    teacher = Teacher(cfg.teacher, cfg.teacher_layer)
    for folder in cfg.human + cfg.speech:
        parts = defaultdict(list)
        for u in recordings(folder):
            parts[part_of(cfg, Path(folder).name, u)].append(u)
        for part, group in parts.items():
            seconds = 0
            started = time.time()
            for i in range(0, len(group), 200):
                path = Path(cfg.build, part, f'{i // 200:05d}')
                make_shard(path, group[i:i + 200], teacher)
                seconds += len(np.load(path / 'audio.npy', mmap_mode='r')) / RATE
                if seconds > cfg.hours * 3600:
                    break
            print(f"{part}: {seconds / 3600:.2f} h in {time.time() - started:.0f} s")
    if Path(cfg.build, 'classes.safetensors').exists():
        label(cfg)

# --------------------------------------------------------------------------------------------------
# classes: k-means of the teacher's features

def nearest(x, centroids):
    """(N, C), (K, C) -> (N,) index of the nearest centroid."""
    half_squares = centroids.square().sum(1) / 2
    return torch.cat([(part @ centroids.T - half_squares).argmax(1) for part in x.float().split(8192)])

def kmeans(x, k, generator, rounds=25):
    """(k, C) centroids of x (N, C): k-means++ seeding, then Lloyd's iterations.

    A centroid that loses all its frames is moved to a random frame.
    """
    squares = x.square().sum(1)
    # The squared distance of each frame to the nearest centroid so far.
    distance = torch.full((len(x),), math.inf)
    chosen = [torch.randint(len(x), (), generator=generator)]
    while len(chosen) < k:
        i = chosen[-1]
        distance = torch.minimum(distance, squares - 2 * (x @ x[i]) + squares[i]).clamp(min=0)
        # A frame is the next centroid with a probability proportional to its distance.
        weights = distance.double().cumsum(0) + 1e-9
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
    """The shard folders of build/part that come from `folders`, in order."""
    names = {Path(folder).name for folder in folders}
    paths = [p.parent for p in sorted(Path(cfg.build, part).glob('*/*/utterances.json'))]
    return [p for p in paths if re.sub('-(new|known)$', '', p.parent.name) in names]

def training_sample(cfg, read, n):
    """n random rows of the arrays read(shard) of the training part as float32, half of them human.

    All rows if there are fewer.
    """
    rng = np.random.default_rng(cfg.seed)
    samples = []
    for folders in (cfg.human, cfg.speech):
        arrays = [read(p) for p in shards(cfg, 'train', folders)]
        share = n / 2 / sum(map(len, arrays))
        for array in arrays:
            rows = rng.permutation(len(array))[:round(share * len(array))]
            samples.append(array[np.sort(rows)])
    return torch.from_numpy(np.concatenate(samples).astype(np.float32))

def classes(cfg):
    path = Path(cfg.build, 'classes.safetensors')
    if path.exists():
        raise Refused(f"{path}: the classes exist, and students learn them; remove it to start again")
    def read(p):
        return np.load(p / 'features.npy', mmap_mode='r')
    x = training_sample(cfg, read, cfg.kmeans_frames)
    centroids = kmeans(x, cfg.n_units, torch.Generator().manual_seed(cfg.seed))
    with atomically(path) as tmp:
        save_file({'centroids': centroids}, tmp)
    write_json(Path(cfg.build, 'classes.json'), {'frames': len(x), **record(cfg)})
    label(cfg)

def label(cfg):
    """Writes labels.npy into every shard that lacks it."""
    centroids = load_centroids(Path(cfg.build, 'classes.safetensors'))
    for features_path in sorted(Path(cfg.build).glob('*/*/*/features.npy')):
        path = features_path.with_name('labels.npy')
        if not path.exists():
            x = torch.from_numpy(np.load(features_path))
            labels = nearest(x, centroids).numpy().astype(np.uint16)
            with atomically(path) as tmp, open(tmp, 'wb') as f:
                np.save(f, labels)

# --------------------------------------------------------------------------------------------------
# the student

def hubert_config(**changes):
    """2.77 M parameters. The first convolutions set the cost, so they are narrow; layers cost little."""
    return HubertConfig(**{
        'conv_dim': (64, 64, 96, 128, 128, 192, 192, 256),
        'conv_kernel': (10, 3, 3, 3, 3, 2, 2, 2),
        'conv_stride': (5, 2, 2, 2, 2, 2, 2, 2),
        'num_feat_extract_layers': 8,
        'feat_extract_norm': 'group',
        'hidden_size': 256,
        'num_hidden_layers': 4,
        'num_attention_heads': 4,
        'intermediate_size': 576,
        'num_conv_pos_embeddings': 31,
        'num_conv_pos_embedding_groups': 16,
        'mask_time_prob': 0.1,
        'layerdrop': 0.0,
        'hidden_dropout': 0.05,
        'attention_dropout': 0.0,
        'activation_dropout': 0.0,
        'feat_proj_dropout': 0.0,
        **changes})

class Student(nn.Module):
    """HubertModel with a head whose centroids are the units: audio (B, N) -> logits (B, N / 640, K)."""
    def __init__(self, config, n_units):
        super().__init__()
        self.hubert = HubertModel(config)
        self.centroids = nn.Parameter(torch.randn(n_units, config.hidden_size) * 0.1)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def head(self, h):
        half_squares = self.centroids.square().sum(1) / 2
        return self.log_scale.exp() * (h @ self.centroids.T - half_squares)

    def forward(self, audio, mask=None):
        with torch.autocast('cpu', torch.bfloat16):
            h = self.hubert(F.pad(audio, (40, 40)), mask_time_indices=mask).last_hidden_state
        return self.head(h.float())

class Stream:
    """The audio of some shards as one long recording with a class every 640 samples."""
    def __init__(self, paths):
        self.audio = [np.load(p / 'audio.npy', mmap_mode='r') for p in paths]
        self.labels = [np.load(p / 'labels.npy') for p in paths]
        self.ends = np.cumsum([len(x) for x in self.labels])
        if not paths or not self.ends[-1]:
            raise Refused("no frames to learn from; --stage=features and --stage=classes make them of the audio")
        self.hours = float(self.ends[-1]) * HOP / RATE / 3600

    def crop(self, rng, frames):
        """A random crop: float32 (frames * 640,), int64 (frames,)."""
        i = np.searchsorted(self.ends, rng.integers(self.ends[-1]), side='right')
        first = rng.integers(len(self.labels[i]) - frames + 1)
        wave = self.audio[i][first * HOP:(first + frames) * HOP] / np.float32(32767)
        return wave, self.labels[i][first:first + frames].astype(np.int64)

def augment(x, rng):
    """Augments half of the rows (B, N): randomly an equalizer, a room, noise or other talk; and a gain."""
    spectrum = np.fft.rfft(x, 2 * x.shape[1])
    out = np.array(x)
    for row in np.flatnonzero(rng.random(len(x)) < 0.5):
        out[row] = _augment_row(x, row, spectrum[row], rng)
    return out.astype(np.float32)

def _augment_row(x, row, spectrum, rng):
    B, N = x.shape
    level = np.sqrt(np.mean(x[row] ** 2)) + 1e-5
    bins = np.linspace(0, 1, N + 1)
    # An equalizer: gains of up to +-8 dB at 8 frequencies.
    if rng.random() < 0.6:
        gains = np.interp(bins, np.linspace(0, 1, 8) ** 2, rng.uniform(-8, 8, 8))
        spectrum = spectrum * 10 ** (gains / 20)
    # A room: a decaying tail of 0.1-0.5 s after the direct sound.
    if rng.random() < 0.4:
        n = int(rng.uniform(0.1, 0.5) * RATE)
        tail = rng.standard_normal(n) * np.exp(-6.9 * np.arange(n) / n)
        tail *= rng.uniform(0.1, 0.7) / np.sqrt(np.sum(tail ** 2))
        tail[0] = 1
        spectrum = spectrum * np.fft.rfft(tail, 2 * N)
    y = np.fft.irfft(spectrum)[:N]
    # White to brown noise, or another row of the batch, 5 to 40 dB below.
    if rng.random() < 0.6:
        color = rng.standard_normal(N + 1) + 1j * rng.standard_normal(N + 1)
        noise = np.fft.irfft(color / (bins + 0.01) ** rng.uniform(0, 1))[:N]
        if rng.random() < 0.3:
            noise = x[(row + 1) % B]
        scale = level / (np.std(noise) + 1e-5) * 10 ** (-rng.uniform(5, 40) / 20)
        y = y + noise * scale
    return y * 10 ** (rng.uniform(-12, 6) / 20)

def batch(cfg, streams, step):
    """Audio (B, N), classes (B, N / 640) and masked frames (B, N / 640) of a training step.

    They depend only on (seed, step).
    """
    rng = np.random.default_rng([cfg.seed, step])
    # Crops have several lengths because the first norm runs over time.
    frames = int(rng.choice([64, 128, 256]))
    crops = []
    for _ in range(cfg.step_frames // frames):
        stream = streams[0 if rng.random() < cfg.human_share else 1]
        crops.append(stream.crop(rng, frames))
    audio, labels = (np.stack(column) for column in zip(*crops))
    # About 9 % of the frames are masked, in spans of less than 0.4 s.
    mask = np.zeros(labels.shape, bool)
    for row in range(len(mask)):
        for start in rng.integers(frames, size=frames // 64):
            mask[row, start:start + int(rng.integers(2, 11))] = True
    return torch.from_numpy(augment(audio, rng)), torch.from_numpy(labels), torch.from_numpy(mask)

@torch.inference_mode()
def top1(student, stream, seconds=240):
    """The share of frames for which the student predicts the teacher's class."""
    student.eval()
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(max(1, seconds * 25 // 1024)):
        crops = [stream.crop(rng, 256) for _ in range(4)]
        audio, labels = (np.stack(column) for column in zip(*crops))
        predicted = student(torch.from_numpy(audio)).argmax(-1).numpy()
        shares.append((predicted == labels).mean())
    student.train()
    return float(np.mean(shares))

def save_state(path, student, optimizer, marks):
    tensors = {}
    for name, p in student.named_parameters():
        tensors[f'model.{name}'] = p.detach().contiguous()
        for key, value in optimizer.state[p].items():
            tensors[f'{key}.{name}'] = value.contiguous()
    with atomically(path) as tmp:
        save_file(tensors, tmp, {key: str(value) for key, value in marks.items()})

def load_state(path, student, optimizer, classes_hash):
    """Restores the student and the optimizer, unless it is None -> steps and seconds so far.

    Raises Refused if the state learned other classes.
    """
    with safe_open(path, 'pt') as f:
        marks = f.metadata()
    if marks['classes'] != classes_hash:
        raise Refused(f"{path}: learned other classes; remove it to start again")
    tensors = load_file(path)
    with torch.no_grad():
        for name, p in student.named_parameters():
            p.copy_(tensors[f'model.{name}'])
            if optimizer is not None:
                optimizer.state[p] = {key: tensors[f'{key}.{name}'] for key in ('step', 'exp_avg', 'exp_avg_sq')}
    return int(marks['step']), float(marks['seconds'])

def held_streams(cfg):
    """{group: Stream} of the held-out groups of more than 5000 frames (200 s)."""
    streams = {name: Stream(paths) for name, paths in held_groups(cfg).items()}
    return {name: stream for name, stream in streams.items() if stream.ends[-1] > 5000}

def train(cfg):
    build = Path(cfg.build)
    classes_hash = sha256(build / 'classes.safetensors')
    streams = [Stream(shards(cfg, 'train', folders)) for folders in (cfg.human, cfg.speech)]
    held_out = held_streams(cfg)
    torch.manual_seed(cfg.seed)
    student = Student(hubert_config(), cfg.n_units).train()
    optimizer = torch.optim.AdamW(student.parameters(), cfg.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    state = build / 'state.safetensors'
    step = 0
    seconds = 0.0
    if state.exists():
        step, seconds = load_state(state, student, optimizer, classes_hash)
    print(f"{sum(p.numel() for p in student.hubert.parameters()):,} parameters; "
          f"{streams[0].hours:.2f} h of human speech, {streams[1].hours:.2f} h synthetic; "
          f"from step {step}, minute {seconds / 60:.1f}", flush=True)

    # The schedule runs in CPU time, so that a busy machine does not shorten the training.
    clock = time.process_time() - seconds
    saved = seconds
    losses = []
    while seconds < 60 * cfg.minutes:
        # A linear warm-up of 200 steps, then a cosine from the full learning rate down to 1 %.
        progress = seconds / 60 / cfg.minutes
        factor = min((step + 1) / 200, 0.505 + 0.495 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group['lr'] = cfg.learning_rate * factor
        audio, labels, mask = batch(cfg, streams, step)
        loss = F.cross_entropy(student(audio, mask).flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        step += 1
        seconds = time.process_time() - clock
        if seconds - saved > 120 or seconds >= 60 * cfg.minutes:
            line = {'step': step, 'minute': round(seconds / 60, 1), 'loss': round(float(np.mean(losses)), 4)}
            line['top1'] = {name: round(top1(student, stream), 3) for name, stream in held_out.items()}
            print(json.dumps(line), flush=True)
            save_state(state, student, optimizer, {'step': step, 'seconds': seconds, 'classes': classes_hash})
            saved = seconds
            losses = []
    write_json(build / 'train.json', {'steps': step, 'minutes': round(seconds / 60, 1), **record(cfg)})

def held_groups(cfg):
    """{'NAME-new' or 'NAME-known': shard folders} of the held-out part."""
    groups = defaultdict(list)
    for p in shards(cfg, 'held', cfg.human + cfg.speech):
        groups[p.parent.name].append(p)
    return groups

def export(cfg):
    student = Student(hubert_config(), cfg.n_units).eval()
    classes_hash = sha256(Path(cfg.build, 'classes.safetensors'))
    step, seconds = load_state(Path(cfg.build, 'state.safetensors'), student, None, classes_hash)
    save_student(student, cfg.out)
    print(f"{cfg.out}: step {step}, minute {seconds / 60:.1f}")

def save_student(student, out):
    """Writes the encoder folder that tokenize_speech.py reads: fp16 weights and centroids."""
    student.hubert.half().save_pretrained(out)
    weights = Path(out, 'model.safetensors')
    with atomically(weights) as tmp: # transformers leaves it to its owner alone
        shutil.copyfile(weights, tmp)
    with atomically(Path(out, 'kmeans.safetensors')) as tmp:
        save_file({'centroids': student.centroids.detach().half()}, tmp)

# --------------------------------------------------------------------------------------------------

def main(cfg):
    # score_encoder.py imports this file, so this file cannot import it at the top.
    from tiny.build.score_encoder import score

    torch.set_num_threads(cfg.threads)
    stages = {'features': features, 'classes': classes, 'train': train, 'export': export, 'score': score}
    with writing_in(cfg.build):
        stages[cfg.stage](cfg)

if __name__ == '__main__':
    run(main, Config)
