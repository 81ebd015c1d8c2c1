"""
sample.py on a random model: the documents it builds, the modality it keeps to, and the files it leaves.
"""
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from small import K, make_model, make_tokenizer
from transformers import HubertConfig, HubertModel

from configurator import Refused
from encoders import Encoder, load_centroids
from sample import Config, allowed_ids, main, prompt_ids, spans_of
from vocab import TEXT, UNIT, Vocab
from vocoder import SourceFilter, SourceFilterConfig


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
    SourceFilter(SourceFilterConfig(n_units=K, n_embd=8, n_slow=1, n_fast=1, units_hash=units)).save_pretrained(root / 'vocoder')
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
    spoken, written = {'kind': UNIT, 'units': np.array([3, 1])}, {'kind': TEXT, 'text': ' ab '}
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
        {'kind': UNIT, 'units': [2, 4]}, {'kind': TEXT, 'text': 'ab'}, {'kind': UNIT, 'units': [0]}, {'kind': TEXT, 'text': 'c'}]
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
        main(settings(root, out=str(tmp_path / name), seed=seed))
    a, b, c = ((tmp_path / name / '000.wav').read_bytes() for name in 'abc')
    assert a == b != c

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
    assert page.count('<span class=') == sum(map(len, kinds)) + 9

def test_a_folder_of_prompts_in_batches(house, tmp_path):
    root, _ = house
    for name in 'ba':
        (tmp_path / 'in').mkdir(exist_ok=True)
        (tmp_path / 'in' / f'{name}.wav').write_bytes((root / 'prompt.wav').read_bytes())
    main(settings(root, out=str(tmp_path / 'out'), prompt='', prompts=str(tmp_path / 'in'), n=3, batch=2))
    samples = json.loads((tmp_path / 'out' / 'samples.json').read_text())['samples']
    assert [Path(s['prompt'][0]['path']).name for s in samples] == ['a.wav'] * 3 + ['b.wav'] * 3

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
])
def test_bad_input_is_refused(house, change, message, tmp_path):
    root, _ = house
    if change.get('model'):
        change = {**change, 'model': str(root / change['model'])}
    with pytest.raises(Refused, match=re.escape(message)):
        main(settings(root, out=str(tmp_path / 'x'), **change))
    assert not (tmp_path / 'x').exists()

def test_units_of_another_encoder_are_refused(house, tmp_path):
    root, _ = house
    save_file({'centroids': torch.randn(K, 16)}, tmp_path / 'kmeans.safetensors')
    for file in ('config.json', 'model.safetensors'):
        (tmp_path / file).write_bytes((root / 'hubert' / file).read_bytes())
    with pytest.raises(Refused, match="the model was trained on"):
        main(settings(root, encoder=str(tmp_path), out=str(tmp_path / 'x')))
