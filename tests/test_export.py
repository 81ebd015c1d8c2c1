"""training/export.py: a model in bfloat16 has the same weights, rounded, and what belongs to it."""
import pytest
import torch
from small import make_model, make_tokenizer

from configurator import Refused
from model import GPT
from training.export import Config, main
from vocab import Vocab


def test_a_model_in_half_its_size(tmp_path):
    make_tokenizer(tmp_path / 'text')
    make_model(tmp_path / 'model', tmp_path / 'text')
    (tmp_path / 'model' / 'log.jsonl').write_text('{"step": 1}\n')
    (tmp_path / 'model' / 'eval.json').write_text('{}') # measured with the other weights: stays behind
    main(Config(model=str(tmp_path / 'model'), out=str(tmp_path / 'half')))
    model, half = (GPT.from_pretrained(tmp_path / name) for name in ('model', 'half'))
    for a, b in zip(model.parameters(), half.parameters(), strict=True):
        assert torch.equal(a.bfloat16().float(), b)
    half_size, model_size = ((tmp_path / name / 'model.safetensors').stat().st_size for name in ('half', 'model'))
    assert half_size < 0.6 * model_size
    assert sorted(path.name for path in (tmp_path / 'half').iterdir()) == [
        'README.md', 'config.json', 'generation_config.json', 'log.jsonl', 'model.safetensors', 'tokenizer.json',
        'tokenizer_config.json', 'vocab.json']
    assert Vocab.load(tmp_path / 'half') == Vocab.load(tmp_path / 'model')
    with pytest.raises(Refused, match='exists already; choose another --out'):
        main(Config(model=str(tmp_path / 'model'), out=str(tmp_path / 'half')))

@pytest.mark.parametrize('settings, message', [
    ({'model': 'x'}, 'expected --model=FOLDER and --out=NEW_FOLDER or --gguf=NEW_FILE'),
    ({'model': 'x', 'out': 'y', 'dtype': 'int4'}, 'dtype=int4: expected one of float32'),
    ({'model': 'x', 'out': 'y', 'dtype': 'q8_0'}, 'a folder has bfloat16, float16 or float32')])
def test_settings_that_make_nothing_are_refused(settings, message):
    with pytest.raises(Refused, match=message):
        Config(**settings)

def test_a_gguf_file_that_is_there_is_not_replaced(tmp_path):
    (tmp_path / 'x.gguf').write_text('')
    with pytest.raises(Refused, match='exists already; choose another --gguf'):
        main(Config(model=str(tmp_path), gguf=str(tmp_path / 'x.gguf')))
