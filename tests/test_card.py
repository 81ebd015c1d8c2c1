"""training/card.py: a card says what the files say, and marks the rest."""
import json

import pytest
from small import K, make_model, make_tokenizer

from files import sha256, write_json
from training.card import FILL_IN, base_of, model_card, runs_of
from training.export import Config, main


def train_folder(folder, tokens, init, tmp_path):
    """A joint model as train.py leaves it -> (model, vocab)."""
    model, vocab = make_model(folder, tmp_path / 'text')
    write_json(folder / 'settings.json', {
        'command': 'train.py --lr=1', 'commit': 'abc1234', 'steps': 1600, 'tokens': 13_107_200, 'flops': 2.5e14,
        'settings': {'data': str(tokens), 'init': init, 'optimizer': 'muon'}})
    return model, vocab

@pytest.fixture
def tokens(tmp_path):
    """A folder of interleave.py whose units folder names the encoder."""
    make_tokenizer(tmp_path / 'text')
    write_json(tmp_path / 'units' / 'info.json', {
        'encoder': 'acme/hubert', 'layer': 11, 'frame_hz': 25.0, 'units_hash': 'abc', 'n_units': K})
    write_json(tmp_path / 'tokens' / 'info.json', {
        'settings': {'units': str(tmp_path / 'units')},
        'written': {'train/text': {'tokens': 1000}, 'train/speech': {'tokens': 234}, 'val/text': {'tokens': 9}}})
    return tmp_path / 'tokens'

def test_a_card_has_the_facts_of_the_files_and_an_empty_line_for_the_licence(tmp_path, tokens):
    folder = tmp_path / 'slm'
    model, vocab = train_folder(folder, tokens, 'Qwen/Qwen2.5-0.5B', tmp_path)
    weights = {'model.safetensors': sha256(folder / 'model.safetensors')}
    write_json(folder / 'eval.json', {
        'model': weights, 'tasks': {'ssc': {'documents': 'slamkit'}},
        'results': {'ssc/S': {'value': 0.625, 'stderr': 0.0125, 'n': 1871},
                    'loss/mine/text': {'value': 1.25, 'stderr': None, 'n': 7}}})
    card = model_card(str(folder), 'my-slm', model, vocab, 'bfloat16')
    front = card.split('---\n')[1]
    assert 'library_name: transformers\n' in front and 'base_model: Qwen/Qwen2.5-0.5B\n' in front
    assert '- speech-language-model\n' in front and '# license: FILL IN' in front
    for line in ('# my-slm', '| base model | `Qwen/Qwen2.5-0.5B` |', '| hash of the units | abc |',
                 '| encoder of the units | `acme/hubert`, layer 11, 25 frames a second |',
                 f'| data | `{tokens}`, 1,234 tokens |', f'| parameters | {model.num_params():,}, in bfloat16 |',
                 '| training of slm | `train.py --lr=1` at commit abc1234: 1,600 steps, 13,107,200 tokens, '
                 '2.50e+14 FLOPs, Muon and AdamW |',
                 '| ssc/S | 62.5 % | 1.2 | 1,871 |', '| loss/mine/text | 1.250 |  | 7 |',
                 'Documents of ssc: written as in slamkit.'):
        assert line in card.splitlines(), line
    assert '257 text ids, 20 units' in card
    assert card.count(FILL_IN) == 1 and card.endswith(f'## License\n\n{FILL_IN}\n')

def test_what_no_file_says_is_marked(tmp_path):
    make_tokenizer(tmp_path / 'text')
    model, vocab = make_model(tmp_path / 'slm', tmp_path / 'text')
    card = model_card(str(tmp_path / 'slm'), 'x', model, vocab, 'bfloat16')
    assert 'base_model' not in card
    for name in ('base model', 'encoder of the units', 'data'):
        assert f'| {name} | {FILL_IN} |' in card.splitlines()
    assert f'None is measured: {FILL_IN}' in card

def test_scores_of_other_weights_stay_away(tmp_path, tokens):
    model, vocab = train_folder(tmp_path / 'slm', tokens, 'scratch', tmp_path)
    write_json(tmp_path / 'slm' / 'eval.json', {
        'model': {'model.safetensors': '0'}, 'results': {'ssc/S': {'value': 0.9, 'stderr': 0.1, 'n': 5}}})
    card = model_card(str(tmp_path / 'slm'), 'x', model, vocab, 'bfloat16')
    assert f'eval.json is of other weights than these: {FILL_IN}' in card and '90.0' not in card
    assert '| base model | none: random weights |' in card

def test_the_base_model_is_that_of_the_oldest_run(tmp_path, tokens):
    train_folder(tmp_path / 'slm', tokens, 'Qwen/Qwen2.5-0.5B', tmp_path)
    model, vocab = train_folder(tmp_path / 'dpo', tmp_path / 'units', str(tmp_path / 'slm'), tmp_path)
    card = model_card(str(tmp_path / 'dpo'), 'x', model, vocab, 'bfloat16')
    assert 'base_model: Qwen/Qwen2.5-0.5B' in card and '`acme/hubert`, layer 11' in card
    assert card.index('training of slm') < card.index('training of dpo')

@pytest.mark.parametrize('init', ['out/tiny-text', 'somebody/unheard-of'])
def test_a_name_that_may_be_a_folder_is_no_id_of_the_hub(tmp_path, tokens, init, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_folder(tmp_path / 'slm', tokens, init, tmp_path)
    words, hub_id = base_of(runs_of(str(tmp_path / 'slm')))
    assert hub_id is None and FILL_IN in words

def test_export_writes_the_card(tmp_path, tokens):
    train_folder(tmp_path / 'slm', tokens, 'scratch', tmp_path)
    main(Config(model=str(tmp_path / 'slm'), out=str(tmp_path / 'half'), dtype='float16'))
    card = (tmp_path / 'half' / 'README.md').read_text(encoding='utf-8')
    assert card.startswith('---\nlibrary_name: transformers\n') and '# half' in card and 'in float16' in card
    assert json.loads((tmp_path / 'half' / 'config.json').read_text())['torch_dtype'] == 'float16'
