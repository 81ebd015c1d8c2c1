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
    whole, half = (GPT.from_pretrained(tmp_path / name) for name in ('model', 'half'))
    assert all(torch.equal(a.bfloat16().float(), b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))
    sizes = [(tmp_path / name / 'model.safetensors').stat().st_size for name in ('half', 'model')]
    assert sizes[0] < 0.6 * sizes[1]
    assert sorted(p.name for p in (tmp_path / 'half').iterdir()) == [
        'config.json', 'generation_config.json', 'log.jsonl', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json', 'vocab.json']
    assert Vocab.load(tmp_path / 'half') == Vocab.load(tmp_path / 'model')
    with pytest.raises(Refused, match='is there already'):
        main(Config(model=str(tmp_path / 'model'), out=str(tmp_path / 'half')))
