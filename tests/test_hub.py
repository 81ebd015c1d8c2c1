"""
Folders from elsewhere: what hub.vocabulary reads from models that slamkit published (config.json and safetensors, no
tokenizer), from tokenizers that contain units and from text models; and that every script continues from there.
"""
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from small import make_tokenizer, make_units, speech_like

import dpo
import eval as evaluation
import sample
import train
from configurator import Refused
from evaluation import generation
from evaluation.likelihood import document_losses
from hub.families import GPTConfig
from hub.folders import vocabulary
from hub.shapes import SHAPES, planned_config
from hub.tokenizer import TextTokenizer
from model import GPT
from speech import unit_cache
from speech.units import deduplicate
from speech.vocoder import SourceFilter, SourceFilterConfig
from vocab import PUBLISHED, Vocab, papers_vocab

K = 500 # units of the published models
SHAPE = dict(n_layer=2, n_head=4, n_kv_head=2, n_embd=32, head_dim=8, n_ffn=48, tied=True)

def publish(folder, tokenizer_folder, kind, **changes):
    """A random model as slamkit saves it: keys begin with lm., the text model's config is inside the
    model's config, whose vocab_size is the right one, and there is no tokenizer."""
    size = K + 2
    if kind == 'joint':
        size += TextTokenizer(tokenizer_folder).size
    torch.manual_seed(0)
    GPT(GPTConfig(vocab_size=size, **SHAPE)).save_pretrained(folder)
    weights = load_file(folder / 'model.safetensors')
    save_file({f'lm.{name}': w for name, w in weights.items()}, folder / 'model.safetensors', {'format': 'pt'})
    base = json.loads((folder / 'config.json').read_text())
    base |= {'vocab_size': 4000, 'pad_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 1} # the text model's size
    config = {
        'architectures': ['UnitLM'], 'model_type': 'speech_language_model',
        'base_model_name': str(tokenizer_folder), 'base_config': base, 'vocab_size': size,
        'twist_init': True, 'use_cache': False, 'torch_dtype': 'float32',
        'max_position_embeddings': base['max_position_embeddings'], 'transformers_version': '4.48.1'}
    (folder / 'config.json').write_text(json.dumps(config | changes))
    (folder / 'generation_config.json').write_text('{"_from_model_config": true, "use_cache": false}')
    return folder

@pytest.fixture
def house(tmp_path):
    """(root, {kind: folder of a published model}), with the text tokenizer in root/text."""
    make_tokenizer(tmp_path / 'text')
    folders = {kind: publish(tmp_path / kind, tmp_path / 'text', kind) for kind in ('joint', 'speech')}
    return tmp_path, folders

def update_json(path, changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

def test_vocabularies_of_published_models(house):
    root, folders = house
    text = TextTokenizer(root / 'text')
    vocab, tokenizer = vocabulary(folders['joint'])
    assert vocab == Vocab('joint', text.size, K, text.hash, PUBLISHED)
    assert tokenizer.encode('a b') == text.encode('a b')
    assert vocab.unit_to_token([0, 499]).tolist() == [257, 756]
    assert (vocab.speech, vocab.text) == (757, 758)
    assert vocabulary(folders['speech']) == (Vocab('speech', 0, K, '', PUBLISHED), None)
    tokeniser = {'dedup': True, 'num_units': 400, 'load_fe': False}
    (folders['speech'] / 'tokeniser_config.json').write_text(json.dumps(tokeniser))
    with pytest.raises(Refused, match='base_model_name|neither 400'): # its 502 rows are not of 400 units
        vocabulary(folders['speech'])

def test_the_text_tokenizer_may_lie_beside_a_published_model(house):
    root, folders = house
    update_json(folders['joint'] / 'config.json', {'base_model_name': str(root / 'not-here')})
    with pytest.raises(Refused, match='not-here: no such tokenizer folder'):
        vocabulary(folders['joint'])
    shutil.copy(root / 'text' / 'tokenizer.json', folders['joint'])
    assert vocabulary(folders['joint'])[0].n_text == 257

@pytest.mark.parametrize('kind, changes, message', [
    ('joint', {'vocab_size': 800},
     r'vocab_size 800 is neither 500 \+ 2 nor the 257 ids of tokenizer .*text \+ 500 \+ 2; put the'),
    ('joint', {'vocab_size': None}, 'vocab_size None is neither'),
    ('speech', {'base_config': {'pad_token_id': 5, 'bos_token_id': 1, 'eos_token_id': 1}},
     r'are \(5, 1, 1\), expected \(0, 1, 1\)')])
def test_other_layouts_are_refused_in_one_line(house, kind, changes, message):
    _, folders = house
    update_json(folders[kind] / 'config.json', changes)
    with pytest.raises(Refused, match=message) as refusal:
        vocabulary(folders[kind])
    assert '\n' not in str(refusal.value)

@pytest.mark.parametrize('kind', ['joint', 'speech'])
def test_a_tokenizer_with_units_in_it_is_a_vocabulary(tmp_path, kind):
    text = make_tokenizer(tmp_path / 'text')
    saved = Vocab('speech', 0, 20, '', 'abc')
    if kind == 'joint':
        saved = Vocab('joint', text.size, 20, text.hash, 'abc')
    folder = tmp_path / 'm'
    GPT(GPTConfig(vocab_size=saved.size, **SHAPE)).save_pretrained(folder, vocab=saved, tokenizer=tmp_path / 'text')
    (folder / 'vocab.json').unlink()
    vocab, tokenizer = vocabulary(folder)
    assert vocab == replace(saved, units='')
    assert (tokenizer is None) == (kind == 'speech')
    spec = (folder / 'tokenizer.json').read_text()
    for token, replacement, message in (('<speech>', '<spoken>', '<speech> None'),
                                        ('"<Un7>"', '"<Um7>"', 'has 7 units from id')):
        if token in spec and kind == 'joint':
            (folder / 'tokenizer.json').write_text(spec.replace(token, replacement))
            with pytest.raises(Refused, match=message):
                vocabulary(folder)

def test_a_text_lm_with_a_vocab_json_of_its_tokenizer(tmp_path):
    text = make_tokenizer(tmp_path / 'lm')
    (tmp_path / 'lm' / 'vocab.json').write_text(json.dumps({'a': 0, 'kind': 1}))
    assert vocabulary(tmp_path / 'lm')[0] == text.vocab
    (tmp_path / 'empty').mkdir()
    with pytest.raises(Refused, match='empty/vocab.json: no such file'):
        vocabulary(tmp_path / 'empty')

def test_the_page_of_textlms_has_the_ids_of_every_shape():
    page = (Path(__file__).parents[1] / 'docs' / 'textlms.md').read_text()
    table = [[cell.strip() for cell in line.split('|')] for line in page.splitlines() if line.startswith('| ')]
    rows = {(row[2].strip('`'), row[4], row[5]) for row in table}
    for shape in SHAPES.values():
        joint = papers_vocab('joint', shape.n_text_ids)
        assert (shape.family, f'{shape.n_text_ids:,}', f'{joint.size:,}') in rows
    assert papers_vocab('joint', SHAPES['Qwen/Qwen3-0.6B-Base'].n_text_ids).unit_to_token([0]).tolist() == [151669]

def test_without_a_network_what_to_do_is_said(monkeypatch):
    import huggingface_hub
    def offline(*_, **__):
        raise OSError('no route to host')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', offline)
    with pytest.raises(Refused, match='slprl/slam: no such folder, .*: hf download slprl/slam --local-dir=FOLDER'):
        vocabulary('slprl/slam')

def test_a_plan_takes_the_folder_then_the_download_then_the_table_of_shapes(tmp_path, monkeypatch):
    name = 'Qwen/Qwen2.5-0.5B'
    other = json.dumps(GPTConfig(vocab_size=77, **SHAPE).to_hf())
    downloads = []
    def download(hub_id, allow_patterns):
        downloads.append(hub_id)
        return tmp_path / 'cache' / 'models--Qwen--Qwen2.5-0.5B' / 'snapshots' / 'a1'
    monkeypatch.setattr('huggingface_hub.snapshot_download', download)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.chdir(tmp_path)
    table = planned_config(name)
    assert (table.n_layer, table.n_embd, table.vocab_size, table.tied) == (24, 896, 151936, True) and not downloads
    assert not planned_config('Qwen/Qwen2.5-7B').tied and set(SHAPES) > {name}

    snapshot = download(name, None)
    snapshot.mkdir(parents=True)
    (snapshot / 'config.json').write_text(other)
    (snapshot.parents[1] / 'refs').mkdir()
    (snapshot.parents[1] / 'refs' / 'main').write_text('a1')
    assert planned_config(name).vocab_size == 77 and len(downloads) == 2

    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / 'config.json').write_text(other.replace('77', '78'))
    assert planned_config(name).vocab_size == 78 and len(downloads) == 2
    with pytest.raises(Refused, match='no such model folder'):
        planned_config('out/nothing/here')

# --------------------------------------------------------------------------------------------------
# the scripts

class Ear:
    """An encoder whose units are the places of the loudest sample in each frame."""
    hash = 'hex'
    hop = 640
    rate = 16000
    n_units = K
    step = hop
    runs = staticmethod(deduplicate)

    def encode(self, waves):
        return [self.units_of(wave) for wave in waves]

    def units_of(self, wave):
        n_frames = len(wave) // self.hop
        frames = np.abs(wave[:n_frames * self.hop]).reshape(n_frames, self.hop)
        return frames.argmax(1) % K

@pytest.fixture
def heard(monkeypatch):
    """Every encoder is Ear."""
    monkeypatch.setattr(unit_cache, 'Encoder', lambda *_, **__: Ear())
    monkeypatch.setattr(unit_cache, 'centroids_path', lambda *_: None)

def deduplicated_units(wave):
    units = Ear().units_of(wave)
    previous = [-1, *units]
    return [unit for unit, before in zip(units, previous) if unit != before]

def test_published_models_are_measured(house, heard):
    root, folders = house
    waves = [speech_like(0.6, seed) for seed in range(4)]
    (root / 'bench' / 'ssc').mkdir(parents=True)
    for i, wave in enumerate(waves):
        soundfile.write(root / 'bench' / 'ssc' / f'{i}_story.wav', wave, 16000, subtype='FLOAT')
    settings = dict(tasks='ssc', root=str(root / 'bench'), data='', cache=str(root / 'cache'), device='cpu')
    encoder = f'{root}/mhubert-base-25hz'
    for kind, folder in folders.items():
        settings['model'] = str(folder)
        message = "tiny/hubert: the model's units are of slprl/mhubert-base-25hz: give its --encoder"
        with pytest.raises(Refused, match=message):
            evaluation.main(evaluation.Config(**settings))
        with pytest.raises(Refused, match="layer=4: the model's units are of layer 11"):
            evaluation.main(evaluation.Config(encoder=encoder, **settings))
        evaluation.main(evaluation.Config(encoder=encoder, layer=11, **settings))
        lines = [json.loads(line) for line in open(folder / 'samples_ssc.jsonl')]
        results = json.loads((folder / 'eval.json').read_text())['results']
        assert len(lines) == 2
        assert results['ssc/S']['n'] == 2
        model = GPT.from_pretrained(folder).eval()
        bos = [1] if kind == 'speech' else [] # <S> begins a document and ends it
        first_unit = 2 if kind == 'speech' else 257
        for i, wave in enumerate(waves):
            ids = [unit + first_unit for unit in deduplicated_units(wave)]
            losses = document_losses(model, [np.array(bos + ids + bos)])[0]
            side = ('right', 'wrong')[i % 2]
            assert lines[i // 2][f'{side}_mean'] == pytest.approx(-losses.mean(), abs=1e-5)

def test_items_of_another_encoder_are_not_scored_by_a_published_model(house):
    root, folders = house
    make_units(root / 'items', {'m00000/context': ('x', [1])})
    with pytest.raises(Refused, match='units abc, the model was trained on slprl/mhubert-base-25hz'):
        evaluation.main(evaluation.Config(
            model=str(folders['speech']), items=str(root / 'items'), data='', device='cpu'))

def test_published_models_speak_and_are_measured_by_what_they_say(house, heard, monkeypatch):
    root, folders = house
    for name, units_hash in (('vocoder', 'hex'), ('other', 'other')):
        cfg = SourceFilterConfig(n_units=K, n_embd=8, units_hash=units_hash)
        SourceFilter(cfg).save_pretrained(root / name)
    (root / 'prompts').mkdir()
    soundfile.write(root / 'prompts' / 'a.wav', speech_like(1, 0), 16000)
    def transcribe(waves):
        return ['a b c'] * len(waves)
    monkeypatch.setattr(generation, 'load_asr', lambda *_: transcribe)
    vocoder = str(root / 'vocoder')
    out = str(root / 'samples')
    for folder in folders.values():
        options = dict(model=str(folder), encoder='slprl/mhubert-base-25hz', layer=11, max_new_tokens=6, device='cpu',
                       prompts=str(root / 'prompts'), vocoder=vocoder)
        sample.main(sample.Config(**options, out=out))
        samples = json.loads((root / 'samples' / 'samples.json').read_text())['samples']
        spans = [span for s in samples for span in s['spans']]
        assert all(unit < K for span in spans for unit in span['units'])
        generation.main(generation.Config(**options, llm='', seconds=0.5))
        results = json.loads((folder / 'eval.json').read_text())['results']
        assert results['auto_bleu2/whole']['n'] == 1
        other_vocoder = options | {'vocoder': str(root / 'other')}
        other_encoder = options | {'encoder': 'tiny/hubert'}
        for main, Config, extra in ((sample.main, sample.Config, {'out': out}),
                                    (generation.main, generation.Config, {'llm': ''})):
            with pytest.raises(Refused, match='made for units other, given units hex'):
                main(Config(**other_vocoder, **extra))
            with pytest.raises(Refused, match="tiny/hubert: the model's units are of slprl/mhubert"):
                main(Config(**other_encoder, **extra))

@pytest.mark.parametrize('kind', ['joint', 'speech'])
def test_training_goes_on_from_a_published_model_with_its_rows_as_they_are(house, kind):
    root, folders = house
    vocab, tokenizer = vocabulary(folders[kind])
    cfg = train.Config(init=str(folders[kind]), new_rows='normal', data='x', max_steps=1)
    for vocab_of_shards in (vocab, replace(vocab, units='hex')): # shards of papers/slamkit.py, or encoded here
        model = train.build_model(cfg, vocab_of_shards, tokenizer and tokenizer.name, torch.device('cpu'))
        assert torch.equal(model.embed, GPT.from_pretrained(folders[kind]).embed)
    with pytest.raises(Refused, match='its vocabulary'):
        train.build_model(cfg, Vocab('speech', n_units=400, units='hex'), None, torch.device('cpu'))

def test_training_starts_from_a_text_lm_whose_folder_has_its_tokenizers_vocab_json(tmp_path):
    text = make_tokenizer(tmp_path / 'lm')
    GPT(GPTConfig(vocab_size=text.size, **SHAPE)).save_pretrained(tmp_path / 'lm')
    (tmp_path / 'lm' / 'vocab.json').write_text(json.dumps({'a': 0, 'b': 1}))
    vocab = Vocab('joint', text.size, 20, text.hash, 'abc')
    cfg = train.Config(init=str(tmp_path / 'lm'), data='x', max_steps=1)
    model = train.build_model(cfg, vocab, str(tmp_path / 'lm'), torch.device('cpu'))
    assert model.cfg.vocab_size == vocab.size

@pytest.mark.parametrize('kind', ['joint', 'speech'])
def test_preferences_of_a_published_model(house, kind):
    root, folders = house
    rng = np.random.default_rng(0)
    def line(i):
        parts = {part: {'units': (np.cumsum(rng.integers(1, 9, 6)) % K).tolist()} for part in dpo.PARTS}
        texts = {'prompt_text': f'one {i}', 'chosen_text': 'two', 'rejected_text': 'three'}
        return json.dumps(parts | texts) + '\n'
    (root / 'pairs.jsonl').write_text(''.join(line(i) for i in range(8)))
    dpo.main(dpo.Config(
        data=str(root / 'pairs.jsonl'), init=str(folders[kind]), out=str(root / 'out'), block_size=64, batch=4,
        micro_batch=4, max_steps=2, device='cpu', dtype='float32', save_every=1000, eval_every=1000))
    assert Vocab.load(root / 'out') == vocabulary(folders[kind])[0] == vocabulary(root / 'out')[0]
    n_text = 257 if kind == 'joint' else 0
    assert GPT.from_pretrained(root / 'out').cfg.vocab_size == K + 2 + n_text
