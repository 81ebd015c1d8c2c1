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
        'config.json', 'generation_config.json', 'log.jsonl', 'model.safetensors', 'tokenizer.json',
        'tokenizer_config.json', 'vocab.json']
    assert Vocab.load(tmp_path / 'half') == Vocab.load(tmp_path / 'model')
    with pytest.raises(Refused, match='exists already; choose another --out'):
        main(Config(model=str(tmp_path / 'model'), out=str(tmp_path / 'half')))
