"""
tiny/build/train_encoder.py and score_encoder.py on data made here: k-means against planted clusters, the head against
distances, PNMI against a table done by hand, the exported folder against the trained student, a few steps of training
on tones, and the score of tones.

Not tested: the teacher and pocketsphinx, which are not installed where the tests run.
"""
import json

import numpy as np
import pytest
import torch

pytest.importorskip('transformers')
from configurator import Refused
from speech.encoders import Encoder
from speech.kmeans import load_centroids
from tiny.build import score_encoder
from tiny.build import train_encoder as te

SMALL = dict(conv_dim=(16,) * 8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)

@pytest.fixture
def small(monkeypatch):
    """A student of 30 thousand parameters in place of the 2.8 million."""
    config = te.hubert_config
    for module in (te, score_encoder):
        monkeypatch.setattr(module, 'hubert_config', lambda: config(**SMALL, num_conv_pos_embeddings=7))

def tones(path, folder, labels):
    """Writes shards whose class is the pitch: class k is a tone of 300 + 200 k Hz for five frames."""
    rng = np.random.default_rng(len(labels))
    for part in (f'train/{folder}', f'held/{folder}-known'):
        shard = path / part / '00000'
        shard.mkdir(parents=True)
        classes = np.repeat(rng.permutation(labels), 5)
        hz = np.repeat(300 + 200 * classes, te.HOP)
        t = np.arange(len(hz)) / te.RATE
        wave = 0.3 * np.sin(2 * np.pi * hz * t)
        np.save(shard / 'audio.npy', (wave * 32767).astype(np.int16))
        np.save(shard / 'labels.npy', classes.astype(np.uint16))
        utterance = {'id': 'a', 'frames': len(classes), 'text': 'x'}
        (shard / 'utterances.json').write_text(json.dumps([utterance]))

def test_kmeans_finds_planted_clusters_and_revives_empty_ones():
    g = torch.Generator().manual_seed(0)
    planted = torch.randn(6, 8, generator=g) * 20
    x = (planted[:, None] + torch.randn(6, 200, 8, generator=g)).flatten(0, 1)
    centroids = te.kmeans(x, 6, g)
    assert torch.cdist(planted, centroids).min(1).values.max() < 0.5 # standard error of a coordinate: 1 / sqrt(200)
    assert (te.nearest(x, centroids).view(6, 200) == te.nearest(planted, centroids)[:, None]).all()
    # All frames are equal, so three of the four centroids lose theirs.
    equal = te.kmeans(torch.ones(50, 3), 4, torch.Generator().manual_seed(0))
    assert torch.equal(equal, torch.ones(4, 3))

def test_likeliest_class_is_the_nearest_centroid():
    torch.manual_seed(0)
    student = te.Student(te.hubert_config(**SMALL), 50)
    h = torch.randn(200, 32)
    for scale in (-2.0, 3.0):
        student.log_scale.data.fill_(scale)
        assert torch.equal(student.head(h).argmax(1), torch.cdist(h, student.centroids).argmin(1))

def test_pnmi_equals_a_table_done_by_hand():
    # H(phone) is 1 bit. I is the sum of p(phone, unit) log2 (p(phone, unit) / (p(phone) p(unit))).
    phones = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    units = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    information = 3 / 8 * np.log2(3 / 8 / (1 / 2 * 3 / 8))
    information += 1 / 8 * np.log2(1 / 8 / (1 / 2 * 5 / 8))
    information += 1 / 2 * np.log2(1 / 2 / (1 / 2 * 5 / 8))
    assert score_encoder.pnmi(phones, units) == pytest.approx(information)
    assert score_encoder.pnmi(phones, phones + 7) == pytest.approx(1) # ids need not be dense

def test_chance_correction_takes_shuffled_units_to_zero():
    rng = np.random.default_rng(0)
    phones = rng.integers(40, size=3000)
    units = rng.integers(500, size=3000)
    assert score_encoder.pnmi(phones, units) > 0.3 # few frames, many units: looks like knowledge
    assert abs(score_encoder.corrected(phones, units)['corrected']) < 0.02
    assert score_encoder.corrected(phones, phones)['corrected'] == 1

def test_batches_repeat_and_noise_leaves_half_of_the_rows_alone(tmp_path):
    tones(tmp_path, 'h', np.arange(300) % 4)
    cfg = te.Config(human=('h',), speech=('h',), build=str(tmp_path))
    streams = [te.Stream(te.shards(cfg, 'train', cfg.human))] * 2
    for step in range(4):
        audio, labels, mask = te.batch(cfg, streams, step)
        again = te.batch(cfg, streams, step)
        assert all(torch.equal(a, b) for a, b in zip((audio, labels, mask), again))
        assert audio.shape == (len(labels), labels.shape[1] * te.HOP)
        assert labels.numel() == cfg.step_frames
        assert mask.shape == labels.shape
        assert mask.any() and mask.float().mean() < 0.25
    assert not torch.equal(audio, te.batch(cfg, streams, 9)[0])
    x = np.random.default_rng(0).standard_normal((64, 3200)).astype(np.float32)
    y = te.augment(x, np.random.default_rng(1))
    assert y.dtype == np.float32 and np.isfinite(y).all()
    assert 16 < (y == x).all(1).sum() < 48

def test_exported_folder_gives_the_students_units(tmp_path):
    torch.manual_seed(0)
    student = te.Student(te.hubert_config(), 500).eval()
    wave = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    # This also rounds student.hubert to fp16, so both have the same weights.
    te.save_student(student, tmp_path)
    files = [tmp_path / name for name in ('model.safetensors', 'kmeans.safetensors', 'config.json')]
    assert sum(f.stat().st_size for f in files) < 6e6
    assert sum(p.numel() for p in student.hubert.parameters()) < 2.8e6
    centroids = load_centroids(tmp_path / 'kmeans.safetensors')
    units = Encoder(tmp_path, 4, centroids).encode([wave])[0]
    with torch.no_grad():
        audio = torch.from_numpy(np.pad(wave, 40))[None]
        h = student.hubert.float()(audio).last_hidden_state[0]
    assert units.shape == (25,)
    assert (units == torch.cdist(h, centroids).argmin(1).numpy()).all()

@pytest.mark.slow
def test_training_lowers_the_loss_and_goes_on_after_a_kill(tmp_path, small, capsys):
    tones(tmp_path, 'h', np.arange(400) % 4)
    tones(tmp_path, 's', np.arange(300) % 4)
    te.save_file({'centroids': torch.zeros(4, 2)}, tmp_path / 'classes.safetensors')
    settings = dict(
        stage='train', human=('h',), speech=('s',), build=str(tmp_path), n_units=4, learning_rate=1e-2)
    cfg = te.Config(**settings, minutes=0.03)
    streams = [te.Stream(te.shards(cfg, 'train', (f,))) for f in 'hs']
    audio, labels, _ = te.batch(cfg, streams, 10 ** 6)

    def evaluate():
        """The steps, seconds and loss of the saved state."""
        student = te.Student(te.hubert_config(), 4).eval()
        classes_hash = te.sha256(tmp_path / 'classes.safetensors')
        step, seconds = te.load_state(tmp_path / 'state.safetensors', student, None, classes_hash)
        with torch.no_grad():
            logits = student(audio)
        loss = te.F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return step, seconds, loss.item()

    te.train(cfg)
    step, seconds, loss = evaluate()
    assert step > 5 and seconds >= 1.8
    assert loss < 1.2 # chance is log 4 = 1.39
    te.train(te.Config(**settings, minutes=0.045))
    assert f'from step {step}, ' in capsys.readouterr().out
    later_step, _, later_loss = evaluate()
    assert later_step > step and later_loss < 1.2
    te.save_file({'centroids': torch.ones(4, 2)}, tmp_path / 'classes.safetensors')
    with pytest.raises(Refused, match='learned other classes'):
        te.train(cfg)

def test_the_score_is_one_where_the_units_are_the_phones(tmp_path, small, monkeypatch):
    def pitches(pcm, text):
        """In place of pocketsphinx: the phone of a frame is its pitch."""
        spectrum = np.abs(np.fft.rfft(pcm.reshape(-1, te.HOP)))
        return (spectrum.argmax(1) * te.RATE // te.HOP).astype('<U4')
    monkeypatch.setattr(score_encoder, 'align_phones', pitches)
    tones(tmp_path, 'h', np.arange(400) % 4)
    tones(tmp_path, 's', np.arange(300) % 4)
    torch.manual_seed(0)
    te.save_student(te.Student(te.hubert_config(), 4), tmp_path / 'out')
    te.WhisperFeatureExtractor().save_pretrained(tmp_path / 'teacher')
    te.main(te.Config(stage='score', human=('h',), speech=('s',), n_units=4, teacher=str(tmp_path / 'teacher'),
                      build=str(tmp_path), out=str(tmp_path / 'out')))
    groups = json.loads((tmp_path / 'out' / 'score.json').read_text())['groups']
    assert groups.keys() == {'h-known', 's-known'}
    for name, minutes in (('h-known', 1.3), ('s-known', 1.0)):
        group = groups[name]
        assert group['minutes'] == minutes and group['phones'] == 4
        assert group['teacher']['corrected'] == 1 # the classes are the pitches
        assert group['student']['corrected'] < 0.9 # not trained
        assert group['of teacher'] == pytest.approx(group['student']['corrected'], abs=1e-3)

def test_refusals_come_before_work():
    with pytest.raises(Refused, match='--stage=trian: expected one of features, classes, train, export, score'):
        te.Config(stage='trian')
    with pytest.raises(Refused, match='human_share between 0 and 1'):
        te.Config(human_share=1.0)
