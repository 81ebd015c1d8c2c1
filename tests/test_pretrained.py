"""What transformers loads for encoders, aligners, Whisper and the judge is whole, or refused by name.

case                                                    outcome
4a  the judge's folder lacks a tensor                   refused by the tensor's name (it was made up at random)
4b  a tensor too many, of the part that is used         refused by name (it was left out in silence)
4c  a tensor of another shape                           refused by name
4d  NaN or infinity in the weights of an encoder        refused by name (it gave "20 units, 0 failed")
6a  config.json names code of the folder                refused, nothing asked, nothing run
6b  config.json names attention of another repository   refused (transformers would fetch and run it)
6c  the tokenizer's folder names code                   refused, nothing asked, nothing run
10  config.json of a far larger model                    refused before memory is taken
6d  a call of transformers that would ask               test_faults.py finds it in the tree
"""
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import make_model, make_tokenizer, make_whisper
from test_ctc import ctc
from test_encoders import hubert, mimi, whisper

from configurator import Refused
from evaluation.generation import load_llm
from files import is_finite
from hub.tokenizer import TextTokenizer
from speech.ctc import CTC
from speech.encoders import Encoder
from speech.pretrained import LAYERS, WIDTHS, load_tokenizer
from speech.whisper import Whisper

__all__ = ['ctc', 'hubert', 'mimi', 'whisper'] # fixtures

@pytest.fixture(scope='module')
def asr(tmp_path_factory):
    return make_whisper(tmp_path_factory.mktemp('asr'))

@pytest.fixture(scope='module')
def llm(tmp_path_factory):
    folder = tmp_path_factory.mktemp('llm')
    make_tokenizer(folder / 'tokenizer')
    make_model(folder / 'model', folder / 'tokenizer', 'text')
    return folder / 'model'

def encoder(folder):
    return Encoder(folder, 2, torch.zeros(5, 32), window_s=4, margin_s=1)

# name: (what loads it, a weight that it uses, a weight that it does not use or None)
CASES = {
    'hubert': (encoder, 'encoder.layers.1.attention.k_proj.weight', 'encoder.layers.2.attention.k_proj.weight'),
    'whisper': (encoder, 'encoder.layers.0.fc1.weight', 'decoder.layers.0.fc1.weight'),
    'mimi': (lambda folder: Encoder(folder, 1, None),
             'quantizer.semantic_residual_vector_quantizer.input_proj.weight',
             'quantizer.acoustic_residual_vector_quantizer.layers.2.codebook.embed_sum'),
    'ctc': (CTC, 'lm_head.weight', None),
    'asr': (Whisper, 'model.decoder.layers.0.fc1.weight', None),
    'llm': (lambda folder: load_llm(str(folder), 'cpu'), 'model.layers.1.mlp.up_proj.weight', None)}

@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """(what loads a folder, a copy of the folder, its weights, names as in CASES)."""
    source = request.getfixturevalue(request.param)
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    load, used, unused = CASES[request.param]
    return load, tmp_path, load_file(tmp_path / 'model.safetensors'), used, unused

def refusal(load, folder, weights=None):
    """The one line by which these weights, or the files as they are, are refused, without the folder's name."""
    if weights:
        save_file(weights, folder / 'model.safetensors', {'format': 'pt'})
    with pytest.raises(Refused) as e:
        load(folder)
    assert '\n' not in str(e.value)
    return str(e.value).removeprefix(str(folder))

def test_weights_that_lack_or_are_too_many_or_of_another_shape_are_refused_by_name(case):
    load, folder, weights, used, unused = case
    lacking = {key: w for key, w in weights.items() if key != used}
    assert refusal(load, folder, lacking) == f": lacks 1 weights of the model, the first is {used}"
    for extra in ('gain', used.removesuffix('.weight') + '.gain')[:1 if 'quantizer' in used else 2]:
        line = refusal(load, folder, weights | {extra: torch.ones(3)})
        assert line == f": has 1 weights that are none of the model of its config.json, the first is {extra}"
    line = refusal(load, folder, weights | {used: torch.ones(3, 3)})
    assert "that transformers' " in line and 'mismatched' in line
    if unused: # what no unit depends on may have any numbers or be away
        for other in ({key: w for key, w in weights.items() if key != unused},
                      weights | {unused: torch.full_like(weights[unused], math.nan)}):
            save_file(other, folder / 'model.safetensors', {'format': 'pt'})
            load(folder)

@pytest.mark.parametrize('number', [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(case, number):
    load, folder, weights, used, _ = case
    weights[used].flatten()[7] = number
    assert refusal(load, folder, weights) == (f": weight {used} has numbers that are not finite; get the folder again")

def test_a_folder_that_wants_code_is_refused_and_nothing_is_asked_or_run(case, monkeypatch):
    load, folder, *_ = case
    monkeypatch.setattr('builtins.input', None) # a question would be a TypeError
    (folder / 'evil.py').write_text(f"open({str(folder / 'was_run')!r}, 'w')\n")
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    classes = {f'Auto{kind}': 'evil.C' for kind in ('Config', 'Model', 'ModelForCTC', 'ModelForCausalLM')}
    settings = ('auto_map', classes), ('attn_implementation', 'someone/attention')
    for model_type in (config['model_type'], 'evil'):
        for key, value in settings:
            path.write_text(json.dumps(config | {'model_type': model_type, key: value}))
            assert refusal(load, folder) == (
                f"/config.json: asks to run Python code that is not transformers' own ({key}), which is never done; "
                f"give another model, or take {key} out if transformers' own class computes the same")
    assert not (folder / 'was_run').exists()

@pytest.mark.parametrize('key, value', [('layers', 10 ** 6), ('width', 30_000), ('vocab_size', 10 ** 9)])
def test_a_config_of_a_far_larger_model_is_refused_before_it_takes_memory(case, key, value):
    load, folder, *_ = case
    config = json.loads((folder / 'config.json').read_text())
    names = {'layers': LAYERS, 'width': WIDTHS}.get(key, (key,))
    name = next((name for name in names if name in config), None)
    if name is None:
        pytest.skip(f"this kind of model has no {key} in its config.json")
    (folder / 'config.json').write_text(json.dumps(config | {name: value}))
    with pytest.raises(Refused, match=f'{name} is {value:,}, and its weights allow .* at most'):
        load(folder)

def test_a_tokenizer_that_wants_code_is_refused_and_nothing_is_asked_or_run(tmp_path, monkeypatch):
    monkeypatch.setattr('builtins.input', None)
    (tmp_path / 'evil.py').write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    settings = {'tokenizer_class': 'C', 'auto_map': {'AutoTokenizer': ['evil.C', None]}}
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
    (tmp_path / 'config.json').write_text('{"model_type": "evil"}')
    for load, start in ((load_tokenizer, ': expected a tokenizer of transformers'),
                        (TextTokenizer, ': no tokenizer.json, nor other tokenizer files that transformers reads')):
        assert refusal(load, tmp_path).startswith(start)
    assert not (tmp_path / 'was_run').exists()

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_one_number_in_any_place_tells(dtype):
    x = torch.randn(2, 75).to(dtype)
    x[0, 0] = torch.finfo(dtype).max # which a sum would turn into infinity
    x[0, 1] = torch.finfo(dtype).max
    assert is_finite(x) and is_finite(torch.zeros(0))
    for place in range(150):
        for number in (math.nan, math.inf, -math.inf):
            y = x.clone()
            y.view(-1)[place] = number
            assert not is_finite(y)
