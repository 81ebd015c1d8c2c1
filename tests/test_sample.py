"""
sample.py on a random model: the documents it builds, the modality it keeps to, and the files it leaves.
"""
import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from small import K, make_model, make_tokenizer, make_whisper
from transformers import HubertConfig, HubertModel

from configurator import Refused
from model import GPT
from sample import Config, main, read_part
from speech.audio import RATE, load_audio
from speech.encoders import Encoder
from speech.kmeans import load_centroids
from speech.vocoder import SourceFilter, SourceFilterConfig
from speech.whisper import Whisper
from vocab import TEXT, UNITS, Vocab, allowed_ids, prompt_ids, spans_of


@pytest.fixture(scope='module')
def house(tmp_path_factory):
    """A random encoder, vocoder, joint, speech and text model that agree on the units, and a spoken prompt."""
    root = tmp_path_factory.mktemp('house')
    tokenizer = make_tokenizer(root / 'tokenizer')
    torch.manual_seed(0)
    HubertModel(HubertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                             conv_dim=[8] * 8, conv_kernel=[10, 3, 3, 3, 3, 2, 2, 2], conv_stride=[5, 2, 2, 2, 2, 2, 2, 2],
                             num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)).save_pretrained(root / 'hubert')
    save_file({'centroids': torch.randn(K, 16)}, root / 'hubert' / 'kmeans.safetensors')
    units = Encoder(root / 'hubert', 1, load_centroids(root / 'hubert' / 'kmeans.safetensors')).hash
    vocoder = SourceFilter(SourceFilterConfig(n_units=K, n_embd=8, n_slow=1, n_fast=1, units_hash=units))
    torch.nn.init.constant_(vocoder.duration[-1].bias, 1.6) # about 5 frames a unit, enough to be heard
    vocoder.save_pretrained(root / 'vocoder')
    (root / 'whisper').mkdir()
    make_whisper(root / 'whisper')
    for kind in ('joint', 'speech', 'text'):
        _, vocab = make_model(root / kind, root / 'tokenizer', kind)
        if kind != 'text':
            Vocab(vocab.kind, vocab.n_text, vocab.n_units, vocab.tokenizer, units).save(root / kind)
    rng = np.random.default_rng(0)
    soundfile.write(root / 'prompt.wav', rng.normal(0, 0.1, 44100 * 2), 44100)
    return root, tokenizer

def settings(root, **more):
    return Config(**{'model': str(root / 'joint'), 'encoder': str(root / 'hubert'), 'layer': 1, 'vocoder': str(root / 'vocoder'),
                     'max_new_tokens': 12, 'prompt': str(root / 'prompt.wav'), 'device': 'cpu', 'seconds': 1.0, **more})

def test_prompt_ids_of_every_direction(house):
    root, tokenizer = house
    vocab, T = Vocab.load(root / 'joint'), tokenizer.size
    spoken, written = {'kind': UNITS, 'units': np.array([3, 1])}, {'kind': TEXT, 'text': ' ab '}
    ab, _ab, speech, text = tokenizer.encode('ab'), tokenizer.encode(' ab'), T + K, T + K + 1
    ids = lambda parts, output: prompt_ids(parts, output, vocab, tokenizer)
    assert ids([spoken], 'speech') == [T + 3, T + 1]
    assert ids([spoken], 'text') == [speech, T + 3, T + 1, text]
    assert ids([written], 'speech') == [text, *ab, speech]
    assert ids([written], 'text') == ab
    assert ids([written, written], 'text') == [*ab, *_ab]
    assert ids([spoken], 'free') == [speech, T + 3, T + 1] and ids([written], 'free') == [text, *ab]
    assert ids([spoken, written, spoken], 'speech') == [speech, T + 3, T + 1, text, *_ab, speech, T + 3, T + 1]
    assert ids([spoken, spoken, written], 'free') == [speech, T + 3, T + 1, T + 3, T + 1, text, *_ab]
    assert prompt_ids([spoken], 'speech', Vocab.load(root / 'speech'), None) == [1, 5, 3]

def test_what_was_generated_is_parted_into_spans(house):
    root, tokenizer = house
    vocab, T = Vocab.load(root / 'joint'), tokenizer.size
    speech, text = T + K, T + K + 1
    tokens = [T + 2, T + 4, text, *tokenizer.encode(' ab'), speech, text, speech, T, *tokenizer.encode('c')]
    assert spans_of(tokens, vocab, tokenizer) == [
        {'kind': UNITS, 'units': [2, 4]}, {'kind': TEXT, 'text': 'ab'}, {'kind': UNITS, 'units': [0]}, {'kind': TEXT, 'text': 'c'}]
    assert spans_of([], vocab, tokenizer) == []

def test_only_the_wanted_modality_and_the_end_may_be_chosen(house):
    root, tokenizer = house
    vocab, T = Vocab.load(root / 'joint'), tokenizer.size
    allowed, stop = allowed_ids(vocab, tokenizer, 'speech')
    assert allowed.nonzero().flatten().tolist() == [tokenizer.eot, *range(T, T + K)] and stop == {tokenizer.eot}
    allowed, _ = allowed_ids(vocab, tokenizer, 'text')
    assert allowed.nonzero().flatten().tolist() == list(range(T))
    allowed, stop = allowed_ids(vocab, tokenizer, 'free')
    assert allowed.all() and len(allowed) == vocab.size and stop == {tokenizer.eot}

def test_speech_to_speech_writes_wave_units_and_page(house, tmp_path):
    root, _ = house
    main(settings(root, out=str(tmp_path / 'a'), n=2))
    assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == [
        '000.prompt.wav', '000.wav', '001.prompt.wav', '001.wav', 'samples.html', 'samples.json']
    samples = json.loads((tmp_path / 'a' / 'samples.json').read_text())['samples']
    units = [sample['spans'][0]['units'] for sample in samples]
    wave, rate = soundfile.read(tmp_path / 'a' / '000.wav')
    assert rate == 16000 and len(wave) % 640 == 0 and len(wave) >= 640 * len(units[0]) > 0
    assert units[0] != units[1] and max(units[0]) < K and samples[0]['prompt'][0]['kind'] == 'speech'
    assert len(soundfile.read(tmp_path / 'a' / '000.prompt.wav')[0]) == 16000 # one of the two seconds
    page = (tmp_path / 'a' / 'samples.html').read_text()
    assert page.count('<audio controls src="data:audio/wav;base64,') == 4
    assert not re.search(r'src="(?!data:)|href=|<script', page) # nothing from elsewhere

def test_the_same_seed_gives_the_same_bytes_and_another_does_not(house, tmp_path):
    root, _ = house
    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
        main(settings(root, out=str(tmp_path / name), seed=seed, n=3))
    a, b, c = ({path.name: path.read_bytes() for path in (tmp_path / name).glob('00?.wav')} for name in 'abc')
    assert a and a == b != c

def test_speech_to_text_and_text_to_speech(house, tmp_path):
    root, _ = house
    main(settings(root, out=str(tmp_path / 'a'), output='text'))
    assert (tmp_path / 'a' / '000.txt').exists() and not (tmp_path / 'a' / '000.wav').exists()
    (tmp_path / 'lines.txt').write_text('one <b>text</b>\n\nanother\n')
    main(settings(root, out=str(tmp_path / 'b'), prompt='', prompts=str(tmp_path / 'lines.txt')))
    assert len(list((tmp_path / 'b').glob('*.wav'))) == 2
    assert 'one &lt;b&gt;text&lt;/b&gt;' in (tmp_path / 'b' / 'samples.html').read_text()

def test_mixed_prompts_go_on_freely(house, tmp_path):
    root, _ = house
    wav = root / 'prompt.wav'
    main(settings(root, out=str(tmp_path / 'a'), prompt=f'{wav}|and then she said|{wav}', output='free', n=3, max_new_tokens=60))
    samples = json.loads((tmp_path / 'a' / 'samples.json').read_text())['samples']
    kinds = [[span['kind'] for span in sample['spans']] for sample in samples]
    assert [part['kind'] for part in samples[0]['prompt']] == ['speech', 'text', 'speech']
    assert all({'speech', 'text'} <= set(of) for of in kinds) # a random model changes often
    for sample, of in zip(samples, kinds):
        wave, _ = soundfile.read(tmp_path / 'a' / f"{sample['name']}.wav")
        assert len(wave) / 16000 == pytest.approx(sum(span.get('seconds', 0) for span in sample['spans']))
        assert (tmp_path / 'a' / f"{sample['name']}.txt").exists()
    assert len(soundfile.read(tmp_path / 'a' / '000.prompt.wav')[0]) == 2 * 16000
    page = (tmp_path / 'a' / 'samples.html').read_text()
    assert page.count('<span class=') == sum(map(len, kinds)) + 9 and 'heard' not in page

def test_what_is_said_is_written_down_span_by_span(house, tmp_path):
    root, _ = house
    wav, out = root / 'prompt.wav', tmp_path / 'a'
    main(settings(root, out=str(out), prompt=f'{wav}|and <then>', output='free', n=2, max_new_tokens=60, asr=str(root / 'whisper')))
    samples, page = json.loads((out / 'samples.json').read_text())['samples'], (out / 'samples.html').read_bytes().decode()
    for sample in samples:
        spans = [('prompt', span) for span in sample['prompt']] + [('continuation', span) for span in sample['spans']]
        words = [span['heard'] if span['kind'] == 'speech' else span['text'] for _, span in spans]
        assert {span['kind'] for _, span in spans} == {'speech', 'text'} and words[0] # what the stand-in heard in the prompt
        lines = (out / f"{sample['name']}.heard.txt").read_text().split('\n')[:-1]
        assert lines == [f"{part}\t{span['kind']}\t{' '.join(text.split())}" for (part, span), text in zip(spans, words)]
        for (_, span), text in zip(spans, words):
            assert f'<mark class="{span["kind"]}">{html.escape(text) or "(nothing)"}</mark>' in page
    with_whisper = Whisper(root / 'whisper')
    wave = load_audio(out / '000.prompt.wav')
    assert samples[0]['prompt'][0]['heard'] == with_whisper.transcribe([wave])[0]
    long = next((sample, i) for sample in samples for i, span in enumerate(sample['spans']) if span.get('seconds', 0) > 0.1)
    sample, i = long # where its wave lies in the sample's, in samples at 16 kHz
    at, n = (round(RATE * sum(span.get('seconds', 0) for span in sample['spans'][a:b])) for a, b in ((0, i), (i, i + 1)))
    wave = load_audio(out / f"{sample['name']}.wav")[at:at + n]
    assert sample['spans'][i]['heard'] == with_whisper.transcribe([wave])[0]

def test_a_folder_of_prompts_in_batches(house, tmp_path):
    root, _ = house
    for name in 'ba':
        (tmp_path / 'in').mkdir(exist_ok=True)
        (tmp_path / 'in' / f'{name}.wav').write_bytes((root / 'prompt.wav').read_bytes())
    main(settings(root, out=str(tmp_path / 'out'), prompt='', prompts=str(tmp_path / 'in'), n=3, batch=2))
    samples = json.loads((tmp_path / 'out' / 'samples.json').read_text())['samples']
    assert [Path(s['prompt'][0]['path']).name for s in samples] == ['a.wav'] * 3 + ['b.wav'] * 3

@pytest.mark.parametrize('said, output, kinds', [('nothing', 'speech', []), ('end', 'speech', []), ('nothing', 'text', []),
    ('text', 'free', ['text']), ('separators', 'free', []), ('one unit', 'free', ['speech'])])
def test_whatever_a_model_says_becomes_files(house, tmp_path, monkeypatch, said, output, kinds):
    root, tokenizer = house
    T = tokenizer.size
    tokens = {'nothing': [], 'end': [tokenizer.eot], 'text': tokenizer.encode('a b'), 'separators': [T + K, T + K + 1, T + K],
              'one unit': [T + 3]}[said]
    monkeypatch.setattr(GPT, 'generate', lambda self, prompts, *_: [list(tokens) for _ in prompts])
    main(settings(root, out=str(tmp_path), output=output))
    sample, = json.loads((tmp_path / 'samples.json').read_text())['samples']
    assert [span['kind'] for span in sample['spans']] == kinds
    assert (tmp_path / '000.wav').exists() == ('speech' in kinds) and (tmp_path / 'samples.html').stat().st_size > 1000

@pytest.mark.parametrize('change, message', [
    ({'prompt': ''}, "expected --prompt=FILES_AND_TEXTS"),
    ({'prompt': '', 'prompts': 'none.txt'}, "none.txt: expected a folder of audio, or UTF-8 text"),
    ({'model': 'speech', 'output': 'free'}, "a speech-only model reads and writes speech alone"),
    ({'output': 'free', 'batch': 0}, "batch is 0, must be above 0"),
    ({'model': 'speech', 'output': 'text'}, "a speech-only model reads and writes speech alone"),
    ({'model': 'speech', 'prompt': 'hello'}, "a speech-only model reads and writes speech alone"),
    ({'model': 'text'}, "a text-only model reads and writes text alone"),
    ({'prompt': 'none.wav'}, "none.wav: MISSING"),
    ({'prompt': 'a||b'}, "expected --prompt"),
    ({'output': 'song'}, "expected speech, text or free"),
    ({'top_k': 0}, "top_k is 0, must be above 0"),
    ({'vocoder': 'none'}, "none: no vocoder here"),
    ({'model': 'none'}, "none: no such model folder; expected a folder, or a hub id"),
    ({'temperature': -1.0}, "temperature and seconds must not be negative"),
    ({'prompt': '', 'prompts': 'lines.txt'}, "lines.txt: 'so | | it was': expected audio files and texts separated by |"),
    ({'prompt': '', 'prompts': 'blank.txt'}, "blank.txt: no prompt in it"),
    ({'prompt': '', 'prompts': 'folder'}, "folder: no prompt in it"),
    ({'prompt': 'empty.wav'}, "empty.wav: EMPTY"),
    ({'prompt': 'short.wav'}, "short.wav: 639 samples at 16000 Hz, one unit takes 640"),
    ({'prompt': 'text.wav'}, "text.wav: NOT_AUDIO"),
    ({'prompt': ' '}, "expected --prompt"),
    ({'prompt': 'so it was ' * 4, 'model': 'short'}, "a prompt of 41 tokens and 12 new ones, and the model has 40 positions"),
    ({'vocoder': 'other'}, "vocoder: made for units other, given units"),
    ({'asr': '/none'}, "/none: no such folder, nor a hub id that can be reached"),
])
def test_bad_input_is_refused(house, change, message, tmp_path, monkeypatch):
    root, _ = house
    monkeypatch.chdir(tmp_path)
    for name, text in (('lines.txt', 'once\nso | | it was\n'), ('blank.txt', ' \n\n'), ('text.wav', 'once')):
        Path(name).write_text(text)
    for name, n in (('empty.wav', 0), ('short.wav', 639)):
        soundfile.write(name, np.zeros(n), 16000)
    Path('folder').mkdir()
    shutil.copytree(root / 'joint', 'short')
    config = json.loads(Path('short/config.json').read_text())
    Path('short/config.json').write_text(json.dumps({**config, 'max_position_embeddings': 40}))
    SourceFilter(SourceFilterConfig(n_units=K, n_embd=8, n_slow=1, n_fast=1, units_hash='other')).save_pretrained('other')
    if 'model' in change and change['model'] != 'short':
        change = {**change, 'model': str(root / change['model'])}
    if change.get('vocoder') == 'other': # at once, not when all has been generated
        monkeypatch.setattr(GPT, 'generate', lambda *_: 1 / 0)
    with pytest.raises(Refused, match=re.escape(message)) as e:
        main(settings(root, out=str(tmp_path / 'x'), **change))
    assert not (tmp_path / 'x').exists() and '\n' not in str(e.value)

def test_a_unit_that_the_model_does_not_know_is_refused(house):
    root, tokenizer = house
    for kind in ('joint', 'speech'):
        with pytest.raises(Refused, match=f"units 0..{K}, expected 0..{K - 1}"):
            prompt_ids([{'kind': UNITS, 'units': np.array([0, K])}], 'speech', Vocab.load(root / kind), tokenizer)

@pytest.mark.parametrize('rate, channels', [(8000, 1), (16000, 1), (44100, 2), (48000, 1)])
def test_a_prompt_of_any_rate_is_the_same_second(house, rate, channels, tmp_path):
    root, _ = house
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    soundfile.write(tmp_path / 'tone.wav', np.stack([tone] * channels, 1), rate)
    encoder = Encoder(root / 'hubert', 1, load_centroids(root / 'hubert' / 'kmeans.safetensors'))
    part = read_part(str(tmp_path / 'tone.wav'), settings(root, seconds=0.0), encoder)
    assert abs(part['runs'].sum() - 25) <= 1 and part['units'].max() < K

@pytest.mark.parametrize('output, said, kinds', [
    ('free', 'text', ['text']), ('free', 'units', ['speech']), ('free', 'separators', []), ('speech', 'units', ['speech']),
    ('speech', 'end', []), ('text', 'end', [])])
def test_a_model_that_says_one_thing_only_ends_and_leaves_a_page(house, monkeypatch, tmp_path, output, said, kinds):
    root, tokenizer = house
    T = tokenizer.size
    wanted = {'text': 97, 'units': T + 3, 'separators': T + K, 'end': tokenizer.eot}[said]
    def logits(self, hidden, head=None): # the rows of the head say which ids are asked for
        rows = self.head_weight[:T + K + 2] if head is None else head
        return (rows == self.head_weight[wanted]).all(-1).float().expand(len(hidden), -1)
    monkeypatch.setattr(GPT, 'logits', logits)
    main(settings(root, out=str(tmp_path), output=output, temperature=0.0))
    [sample] = json.loads((tmp_path / 'samples.json').read_text())['samples']
    assert [span['kind'] for span in sample['spans']] == kinds
    assert (tmp_path / '000.wav').exists() == (kinds == ['speech']) and (tmp_path / '000.txt').exists() == (kinds == ['text'])
    assert 'continuation' in (tmp_path / 'samples.html').read_text()
    if kinds == ['speech']:
        wave, _ = soundfile.read(tmp_path / '000.wav')
        assert sample['spans'][0]['units'] == [3] * 12 and len(wave) >= 12 * 640 and np.isfinite(wave).all() and abs(wave).max() <= 1

def test_units_of_another_encoder_are_refused(house, tmp_path):
    root, _ = house
    save_file({'centroids': torch.randn(K, 16)}, tmp_path / 'kmeans.safetensors')
    for file in ('config.json', 'model.safetensors'):
        (tmp_path / file).write_bytes((root / 'hubert' / file).read_bytes())
    with pytest.raises(Refused, match="the model was trained on"):
        main(settings(root, encoder=str(tmp_path), out=str(tmp_path / 'x')))
