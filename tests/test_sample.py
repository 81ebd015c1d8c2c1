"""
sample.py on a random model: the documents it builds, the modality it keeps to, and the files it leaves.
"""
import html
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from small import K, make_model, make_tokenizer, make_whisper
from transformers import HubertConfig, HubertModel

from configurator import Refused
from listening.speaker import Speaker, is_file
from model import GPT
from sample import Config, all_prompts, main, remove_earlier
from speech import audio
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
    config = HubertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8] * 8,
        conv_kernel=[10, 3, 3, 3, 3, 2, 2, 2], conv_stride=[5, 2, 2, 2, 2, 2, 2, 2],
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    HubertModel(config).save_pretrained(root / 'hubert')
    save_file({'centroids': torch.randn(K, 16)}, root / 'hubert' / 'kmeans.safetensors')
    units_hash = load_encoder(root).hash
    vocoder = make_vocoder(units_hash)
    torch.nn.init.constant_(vocoder.duration[-1].bias, 1.6) # about 5 frames a unit, enough to be heard
    vocoder.save_pretrained(root / 'vocoder')
    (root / 'whisper').mkdir()
    make_whisper(root / 'whisper')
    for kind in ('joint', 'speech', 'text'):
        _, vocab = make_model(root / kind, root / 'tokenizer', kind)
        if kind != 'text':
            replace(vocab, units=units_hash).save(root / kind)
    noise = np.random.default_rng(0).normal(0, 0.1, 44100 * 2)
    soundfile.write(root / 'prompt.wav', noise, 44100)
    return root, tokenizer

def load_encoder(root):
    return Encoder(root / 'hubert', 1, load_centroids(root / 'hubert' / 'kmeans.safetensors'))

def make_vocoder(units_hash):
    return SourceFilter(SourceFilterConfig(n_units=K, n_embd=8, n_slow=1, n_fast=1, units_hash=units_hash))

def settings(root, **changes):
    defaults = {
        'model': str(root / 'joint'), 'encoder': str(root / 'hubert'), 'layer': 1, 'vocoder': str(root / 'vocoder'),
        'max_new_tokens': 12, 'prompt': str(root / 'prompt.wav'), 'device': 'cpu', 'seconds': 1.0}
    return Config(**defaults | changes)

def samples_of(out):
    return json.loads((out / 'samples.json').read_text())['samples']

def page_of(out):
    return (out / 'samples.html').read_bytes().decode()

def kinds_of(spans):
    return [span['kind'] for span in spans]

def seconds_of(spans):
    """Of the speech in them."""
    return sum(span.get('seconds', 0) for span in spans)

def test_prompt_ids_of_every_direction(house):
    root, tokenizer = house
    vocab = Vocab.load(root / 'joint')
    T = tokenizer.size
    speech = T + K
    text = T + K + 1
    spoken = {'kind': UNITS, 'units': np.array([3, 1])}
    units = [T + 3, T + 1]
    written = {'kind': TEXT, 'text': ' ab '}
    ab = tokenizer.encode('ab')
    space_ab = tokenizer.encode(' ab')
    def ids(parts, output):
        return prompt_ids(parts, output, vocab, tokenizer)
    assert ids([spoken], 'speech') == units
    assert ids([spoken], 'text') == [speech, *units, text]
    assert ids([written], 'speech') == [text, *ab, speech]
    assert ids([written], 'text') == ab
    assert ids([written, written], 'text') == [*ab, *space_ab]
    assert ids([spoken], 'free') == [speech, *units]
    assert ids([written], 'free') == [text, *ab]
    assert ids([spoken, written, spoken], 'speech') == [speech, *units, text, *space_ab, speech, *units]
    assert ids([spoken, spoken, written], 'free') == [speech, *units, *units, text, *space_ab]
    assert prompt_ids([spoken], 'speech', Vocab.load(root / 'speech'), None) == [1, 5, 3]

def test_what_was_generated_is_parted_into_spans(house):
    root, tokenizer = house
    vocab = Vocab.load(root / 'joint')
    T = tokenizer.size
    speech = T + K
    text = T + K + 1
    tokens = [T + 2, T + 4, text, *tokenizer.encode(' ab'), speech, text, speech, T, *tokenizer.encode('c')]
    assert spans_of(tokens, vocab, tokenizer) == [
        {'kind': UNITS, 'units': [2, 4]}, {'kind': TEXT, 'text': 'ab'},
        {'kind': UNITS, 'units': [0]}, {'kind': TEXT, 'text': 'c'}]
    assert spans_of([], vocab, tokenizer) == []

def test_only_the_wanted_modality_and_the_end_may_be_chosen(house):
    root, tokenizer = house
    vocab = Vocab.load(root / 'joint')
    T = tokenizer.size
    allowed, stop = allowed_ids(vocab, tokenizer, 'speech')
    assert allowed.nonzero().flatten().tolist() == [tokenizer.eot, *range(T, T + K)]
    assert stop == {tokenizer.eot}
    allowed, _ = allowed_ids(vocab, tokenizer, 'text')
    assert allowed.nonzero().flatten().tolist() == list(range(T))
    allowed, stop = allowed_ids(vocab, tokenizer, 'free')
    assert allowed.all() and len(allowed) == vocab.size and stop == {tokenizer.eot}

def test_speech_to_speech_writes_wave_units_and_page(house, tmp_path):
    root, _ = house
    out = tmp_path / 'a'
    main(settings(root, out=str(out), n=2))
    assert sorted(p.name for p in out.iterdir()) == [
        '000.prompt.wav', '000.wav', '001.prompt.wav', '001.wav', 'samples.html', 'samples.json']
    samples = samples_of(out)
    units = [sample['spans'][0]['units'] for sample in samples]
    wave, rate = soundfile.read(out / '000.wav')
    assert rate == 16000 and len(wave) % 640 == 0 and len(wave) >= 640 * len(units[0]) > 0
    assert units[0] != units[1] and max(units[0]) < K and samples[0]['prompt'][0]['kind'] == 'speech'
    assert len(soundfile.read(out / '000.prompt.wav')[0]) == 16000 # one of the two seconds
    page = page_of(out)
    assert page.count('<audio controls src="data:audio/wav;base64,') == 4
    assert not re.search(r'src="(?!data:)|href=|<script', page) # nothing from elsewhere

def test_the_same_seed_gives_the_same_bytes_and_another_does_not(house, tmp_path):
    root, _ = house
    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
        main(settings(root, out=str(tmp_path / name), seed=seed, n=3))
    def waves_of(name):
        return {path.name: path.read_bytes() for path in (tmp_path / name).glob('00?.wav')}
    assert waves_of('a')
    assert waves_of('a') == waves_of('b') != waves_of('c')

def test_files_of_an_earlier_run_do_not_stay_beside_the_new_ones(house, tmp_path):
    root, _ = house
    out = tmp_path / 'a'
    main(settings(root, out=str(out), n=3, asr=str(root / 'whisper')))
    for name in ('notes.txt', '007.wav', '000.mine.wav'): # of the user
        (out / name).touch()
    main(settings(root, out=str(out), output='text', prompt='abc'))
    assert sorted(path.name for path in out.iterdir()) == [
        '000.mine.wav', '000.txt', '007.wav', 'notes.txt', 'samples.html', 'samples.json']

@pytest.mark.parametrize('samples', ['[', '[]', '{"samples": 3}', '{"samples": [3, {"name": "../x"}, {"name": []}]}'])
def test_a_foreign_samples_json_removes_nothing(tmp_path, samples):
    (tmp_path / 'x.wav').touch()
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'samples.json').write_text(samples)
    remove_earlier(tmp_path / 'out')
    assert (tmp_path / 'x.wav').exists() and os.listdir(tmp_path / 'out') == ['samples.json']

def test_of_a_long_prompt_what_is_used_is_read_once(house, tmp_path, monkeypatch):
    """Of 5 minutes a second: one block of about a minute."""
    root, _ = house
    noise = np.random.default_rng(0).normal(0, 0.1, 16000 * 300)
    soundfile.write(tmp_path / 'long.wav', noise, 16000)
    blocks = []
    read_mono = audio._read_mono
    def counted(*args):
        for block in read_mono(*args):
            blocks.append(len(block))
            yield block
    monkeypatch.setattr(audio, '_read_mono', counted)
    part = Speaker(settings(root), hears=True).read(str(tmp_path / 'long.wav'), seconds=1)
    assert blocks == [1 << 20] and part['seconds'] == 1 and part['runs'].sum() == 25

def test_speech_to_text_and_text_to_speech(house, tmp_path):
    root, _ = house
    main(settings(root, out=str(tmp_path / 'a'), output='text'))
    assert (tmp_path / 'a' / '000.txt').exists() and not (tmp_path / 'a' / '000.wav').exists()
    lines = tmp_path / 'lines.txt'
    lines.write_text('one <b>text</b>\n\nanother\n')
    main(settings(root, out=str(tmp_path / 'b'), prompt='', prompts=str(lines)))
    assert len(list((tmp_path / 'b').glob('*.wav'))) == 2
    assert 'one &lt;b&gt;text&lt;/b&gt;' in page_of(tmp_path / 'b')

def test_mixed_prompts_go_on_freely(house, tmp_path):
    root, _ = house
    wav = root / 'prompt.wav'
    out = tmp_path / 'a'
    prompt = f'{wav}|and then she said|{wav}'
    main(settings(root, out=str(out), prompt=prompt, output='free', n=3, max_new_tokens=60))
    samples = samples_of(out)
    assert kinds_of(samples[0]['prompt']) == ['speech', 'text', 'speech']
    for sample in samples:
        spans = sample['spans']
        assert {'speech', 'text'} <= set(kinds_of(spans)) # a random model changes often
        wave, _ = soundfile.read(out / f"{sample['name']}.wav")
        assert len(wave) / 16000 == pytest.approx(seconds_of(spans))
        assert (out / f"{sample['name']}.txt").exists()
    assert len(soundfile.read(out / '000.prompt.wav')[0]) == 2 * 16000
    page = page_of(out)
    assert page.count('<span class=') == sum(len(sample['spans']) for sample in samples) + 9
    assert 'heard' not in page

def test_what_is_said_is_written_down_span_by_span(house, tmp_path):
    root, _ = house
    out = tmp_path / 'a'
    prompt = f"{root / 'prompt.wav'}|and <then>"
    asr = root / 'whisper'
    main(settings(root, out=str(out), prompt=prompt, output='free', n=2, max_new_tokens=60, asr=str(asr)))
    samples = samples_of(out)
    page = page_of(out)
    for sample in samples:
        spans = [('prompt', span) for span in sample['prompt']] + [('continuation', span) for span in sample['spans']]
        assert set(kinds_of(span for _, span in spans)) == {'speech', 'text'}
        assert sample['prompt'][0]['heard'] # the stand-in for Whisper heard something
        lines = (out / f"{sample['name']}.heard.txt").read_text().split('\n')[:-1]
        for line, (part, span) in zip(lines, spans, strict=True):
            words = span['heard'] if span['kind'] == 'speech' else span['text']
            assert line == f"{part}\t{span['kind']}\t{' '.join(words.split())}"
            assert f'<mark class="{span["kind"]}">{html.escape(words) or "(nothing)"}</mark>' in page
    whisper = Whisper(asr)
    wave = load_audio(out / '000.prompt.wav')
    assert samples[0]['prompt'][0]['heard'] == whisper.transcribe([wave])[0]
    # One span that is long enough, cut out of its sample's wave.
    sample, i = next((sample, i) for sample in samples for i, span in enumerate(sample['spans'])
                     if span.get('seconds', 0) > 0.1)
    first = round(RATE * seconds_of(sample['spans'][:i]))
    last = first + round(RATE * seconds_of(sample['spans'][i:i + 1]))
    wave = load_audio(out / f"{sample['name']}.wav")[first:last]
    assert sample['spans'][i]['heard'] == whisper.transcribe([wave])[0]

@pytest.mark.parametrize('seconds, words, expected', [
    (0, [['Hi', 0.1, 0.5], ['<you>', 1.2, 1.8]], 'Hi <you>, there'), # all of it: the text
    (1, [['Hi', 0.1, 0.5], ['<you>', 0.9, 1.8], ['there', 1.0, 2.0]], 'Hi <you>'), # what has begun by then
    (1, [['Hi', 0.1, 0.5], ['<you>', None, None]], None),
    (1, None, None),
    (9, None, 'Hi <you>, there')]) # more than there is
def test_the_words_of_a_prompt_are_those_of_its_manifest(house, tmp_path, seconds, words, expected):
    root, _ = house
    (tmp_path / 'in').mkdir()
    shutil.copy(root / 'prompt.wav', tmp_path / 'in')
    line = {'id': 'a', 'audio': 'prompt.wav', 'text': 'Hi <you>, there', 'words': words}
    (tmp_path / 'in' / 'manifest.jsonl').write_text(json.dumps(line))
    out = tmp_path / 'out'
    main(settings(root, out=str(out), prompt='', prompts=str(tmp_path / 'in'), seconds=float(seconds)))
    [sample] = samples_of(out)
    assert sample['prompt'][0].get('transcript') == expected
    assert 'transcript' not in sample['spans'][0] and not list(out.glob('*.heard.txt'))
    marks = re.findall('<mark class="speech">(.*)</mark>', page_of(out))
    assert marks == ([html.escape(expected)] if expected else []) # none of the continuation
    assert 'of spoken continuations, none are known' in page_of(out)

def test_a_text_file_beside_a_prompt_has_its_words_and_an_unfit_manifest_is_named(house, tmp_path, capsys):
    root, _ = house
    shutil.copy(root / 'prompt.wav', tmp_path)
    (tmp_path / 'prompt.txt').write_text(' Hello there.\n')
    (tmp_path / 'manifest.jsonl').write_text('{"audio_filepath": "prompt.wav"}\n')
    prompt = str(tmp_path / 'prompt.wav')
    main(settings(root, out=str(tmp_path / 'out'), prompt=prompt, seconds=0.0))
    assert samples_of(tmp_path / 'out')[0]['prompt'][0]['transcript'] == 'Hello there.'
    printed = capsys.readouterr().out
    assert f"{tmp_path}/manifest.jsonl:1: 'id' must be a non-empty string" in printed and 'taken as unknown' in printed

def test_a_folder_of_prompts_in_batches(house, tmp_path):
    root, _ = house
    (tmp_path / 'in').mkdir()
    for name in 'ba':
        shutil.copy(root / 'prompt.wav', tmp_path / 'in' / f'{name}.wav')
    main(settings(root, out=str(tmp_path / 'out'), prompt='', prompts=str(tmp_path / 'in'), n=3, batch=2))
    names = [Path(sample['prompt'][0]['path']).name for sample in samples_of(tmp_path / 'out')]
    assert names == ['a.wav'] * 3 + ['b.wav'] * 3

@pytest.mark.parametrize('generated, output, kinds', [
    ('nothing', 'speech', []), ('end', 'speech', []), ('nothing', 'text', []), ('text', 'free', ['text']),
    ('separators', 'free', []), ('one unit', 'free', ['speech'])])
def test_whatever_a_model_says_becomes_files(house, tmp_path, monkeypatch, generated, output, kinds):
    root, tokenizer = house
    T = tokenizer.size
    tokens = {'nothing': [], 'end': [tokenizer.eot], 'text': tokenizer.encode('a b'),
              'separators': [T + K, T + K + 1, T + K], 'one unit': [T + 3]}[generated]
    monkeypatch.setattr(GPT, 'generate', lambda self, prompts, *_: [list(tokens) for _ in prompts])
    main(settings(root, out=str(tmp_path), output=output))
    [sample] = samples_of(tmp_path)
    assert kinds_of(sample['spans']) == kinds
    assert (tmp_path / '000.wav').exists() == ('speech' in kinds)
    assert ('<p class="about">(ended at once)</p>' in page_of(tmp_path)) == (not kinds)

def test_what_is_there_or_is_called_like_sound_is_a_file_and_all_else_is_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'recording').write_bytes(b'sound')
    (tmp_path / 'sub').mkdir()
    files = ['clip.opus', 'a/clip.m4a', 'My clip.WebM', ' clip.wav ', 'clip.raw', 'recording', './sub']
    texts = ['e.g. this', 'it was 3.5', 'and then he said:', 'sub', 'hello.', 'and so on ...', 'word ' * 2000, 'a\0b']
    assert [part for part in [*files, *texts] if is_file(part)] == files

def test_a_folder_of_prompts_gives_all_its_audio_and_not_what_was_written_into_it(tmp_path, capsys):
    (tmp_path / 'b').mkdir()
    for name in ('b/1.opus', 'a.aiff', '._a.aiff', 'out.wav'):
        (tmp_path / name).touch()
    (tmp_path / 'c.m4a').write_bytes(b'....ftypM4A ')
    (tmp_path / 'samples').mkdir()
    (tmp_path / 'samples' / '000.wav').touch()
    cfg = Config(prompts=str(tmp_path), out=str(tmp_path / 'samples'))
    assert all_prompts(cfg) == [[f'{tmp_path}/{name}'] for name in ('a.aiff', 'b/1.opus', 'out.wav')]
    printed = capsys.readouterr().out
    assert '1 .m4a (c.m4a)' in printed and f'ffmpeg -i {tmp_path}/c.m4a {tmp_path}/c.flac' in printed
    with pytest.raises(Refused, match='is --out too'):
        all_prompts(replace(cfg, out=str(tmp_path)))

@pytest.mark.parametrize('change, message', [
    ({'prompt': ''}, "expected --prompt=FILES_AND_TEXTS"),
    ({'prompt': '', 'prompts': 'none.txt'}, "none.txt: no such file"),
    ({'model': 'speech', 'output': 'free'}, "a speech-only model reads and writes speech alone"),
    ({'output': 'free', 'batch': 0}, "batch is 0, must be above 0"),
    ({'model': 'speech', 'output': 'text'}, "a speech-only model reads and writes speech alone"),
    ({'model': 'speech', 'prompt': 'hello'}, "a speech-only model reads and writes speech alone"),
    ({'model': 'text'}, "a text-only model reads and writes text alone"),
    ({'prompt': 'none.wav'}, "none.wav: MISSING"),
    ({'prompt': 'none.m4a'}, "none.m4a: MISSING"),
    ({'prompt': 'a||b'}, "expected --prompt"),
    ({'prompt': 'a\udcff'}, "prompt: 'a\\udcff' is not UTF-8; expected text in UTF-8, or files of audio"),
    ({'output': 'song'}, "expected speech, text or free"),
    ({'top_k': 0}, "top_k is 0, must be above 0"),
    ({'vocoder': 'none'}, "none: no vocoder here"),
    ({'model': 'none'}, "none: no such model folder; expected a folder, or a hub id"),
    ({'temperature': -1.0}, "temperature and seconds must not be negative"),
    ({'prompt': '', 'prompts': 'lines.txt'},
     "lines.txt: 'so | | it was': expected audio files and texts separated by |"),
    ({'prompt': '', 'prompts': 'blank.txt'}, "blank.txt: no prompt in it"),
    ({'prompt': '', 'prompts': 'folder'}, "folder: no prompt in it"),
    ({'prompt': 'empty.wav'}, "empty.wav: EMPTY"),
    ({'prompt': 'short.wav'}, "short.wav: 639 samples at 16000 Hz, one unit takes 640"),
    ({'prompt': 'text.wav'}, "text.wav: NOT_AUDIO"),
    ({'prompt': ' '}, "expected --prompt"),
    ({'prompt': 'so it was ' * 4, 'model': 'short'},
     "a prompt of 41 tokens and 12 new ones, and the model has 40 positions"),
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
    make_vocoder('other').save_pretrained('other')
    if 'model' in change and change['model'] != 'short':
        change = {**change, 'model': str(root / change['model'])}
    if change.get('vocoder') == 'other': # at once, not when all has been generated
        monkeypatch.setattr(GPT, 'generate', lambda *_: 1 / 0)
    with pytest.raises(Refused, match=re.escape(message)) as refusal:
        main(settings(root, out=str(tmp_path / 'x'), **change))
    assert not (tmp_path / 'x').exists()
    assert '\n' not in str(refusal.value)

def test_a_unit_that_the_model_does_not_know_is_refused(house):
    root, tokenizer = house
    part = {'kind': UNITS, 'units': np.array([0, K])}
    for kind in ('joint', 'speech'):
        with pytest.raises(Refused, match=f"units 0..{K}, expected 0..{K - 1}"):
            prompt_ids([part], 'speech', Vocab.load(root / kind), tokenizer)

@pytest.mark.parametrize('rate, channels', [(8000, 1), (16000, 1), (44100, 2), (48000, 1)])
def test_a_prompt_of_any_rate_is_the_same_second(house, rate, channels, tmp_path):
    root, _ = house
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    soundfile.write(tmp_path / 'tone.wav', np.stack([tone] * channels, 1), rate)
    part = Speaker(settings(root), hears=True).read(str(tmp_path / 'tone.wav'), seconds=0)
    assert abs(part['runs'].sum() - 25) <= 1 and part['units'].max() < K

@pytest.mark.parametrize('output, token, kinds', [
    ('free', 'text', ['text']), ('free', 'units', ['speech']), ('free', 'separators', []),
    ('speech', 'units', ['speech']), ('speech', 'end', []), ('text', 'end', [])])
def test_a_model_that_says_one_thing_only_ends_and_leaves_a_page(house, monkeypatch, tmp_path, output, token, kinds):
    root, tokenizer = house
    T = tokenizer.size
    token_id = {'text': 97, 'units': T + 3, 'separators': T + K, 'end': tokenizer.eot}[token]
    def logits(self, hidden, head=None):
        """1 for the one token, 0 for others; the rows of the head say which ids the logits are of."""
        rows = self.head_weight[:T + K + 2] if head is None else head
        is_token = (rows == self.head_weight[token_id]).all(-1)
        return is_token.float().expand(len(hidden), -1)
    monkeypatch.setattr(GPT, 'logits', logits)
    main(settings(root, out=str(tmp_path), output=output, temperature=0.0))
    [sample] = samples_of(tmp_path)
    assert kinds_of(sample['spans']) == kinds
    assert (tmp_path / '000.wav').exists() == (kinds == ['speech'])
    assert (tmp_path / '000.txt').exists() == (kinds == ['text'])
    assert 'continuation' in page_of(tmp_path)
    if kinds == ['speech']:
        wave, _ = soundfile.read(tmp_path / '000.wav')
        assert sample['spans'][0]['units'] == [3] * 12
        assert len(wave) >= 12 * 640 and np.isfinite(wave).all() and abs(wave).max() <= 1

def test_units_of_another_encoder_are_refused(house, tmp_path):
    root, _ = house
    save_file({'centroids': torch.randn(K, 16)}, tmp_path / 'kmeans.safetensors')
    for file in ('config.json', 'model.safetensors'):
        (tmp_path / file).write_bytes((root / 'hubert' / file).read_bytes())
    with pytest.raises(Refused, match="the model was trained on"):
        main(settings(root, encoder=str(tmp_path), out=str(tmp_path / 'x')))
