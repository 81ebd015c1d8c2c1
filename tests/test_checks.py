"""training/checks.py: a run that cannot work is refused in one line, before there is a folder of it."""
# ruff: noqa: F401, F811 (fixtures of test_train)
import json
from pathlib import Path

import pytest
from test_train import config, corpus

import train
from configurator import Refused
from hub.families import GPTConfig
from model import GPT
from training import checks

REFUSALS = [
    (dict(attention='flash'), "attention='flash': expected one of None, triton, hopper, sdpa"),
    (dict(schedule='cos'), "schedule='cos': expected one of cosine, constant, inverse_sqrt, wsd"),
    (dict(optimizer='lion'), "optimizer='lion': expected one of adamw, muon"),
    (dict(micro_batch=0), "micro_batch=0: expected more than 0"),
    (dict(max_tokens=5),
     "expected exactly one of max_steps, max_tokens, max_flops, max_seconds, got max_steps and max_tokens"),
    (dict(max_steps=None), "expected exactly one of max_steps, max_tokens, max_flops, max_seconds, got none"),
    (dict(min_lr=0.1), "min_lr=0.1: expected 0 to lr=0.01"),
    (dict(warmup=1.0), "warmup=1.0, decay=0.2: expected shares of the budget, of sum 1 at most"),
    (dict(schedule='inverse_sqrt', warmup=0.0),
     "schedule='inverse_sqrt' falls from the end of the warm-up: expected warmup above 0"),
    (dict(batch_tokens=400),
     "batch_tokens=400: expected 384 or 576, a multiple of world 1 x micro_batch 6 x block_size 32"),
    (dict(batch_tokens=100),
     "batch_tokens=100: expected 192 or 384, a multiple of world 1 x micro_batch 6 x block_size 32"),
    (dict(n_layer=None, n_ffn=None),
     "init='scratch': expected n_layer, n_ffn too, or init_config=FOLDER to take its shape"),
    (dict(tokenizer=None), "init='scratch': expected tokenizer=FOLDER, the text tokenizer of the data"),
    (dict(init='out/x'), "n_layer: out/x has one; it goes with init='scratch' alone"),
    (dict(init='out/x', init_config='out/y'), "init_config='out/y': goes with init='scratch', not with init='out/x'")]

@pytest.mark.parametrize('changes, message', REFUSALS)
def test_refused_settings_say_what_was_expected(config, changes, message):
    with pytest.raises(Refused) as refusal:
        config(**changes)
    assert str(refusal.value) == message

def test_an_attention_that_cannot_be_had_is_refused_before_any_weights_are_read(config, tmp_path):
    hf = GPTConfig(family='gemma2', vocab_size=257, n_layer=1, n_head=2, n_kv_head=1, n_embd=16, head_dim=8).to_hf()
    (tmp_path / 'config.json').write_text(json.dumps(hf)) # and no weights
    none = dict(n_layer=None, n_head=None, n_embd=None, n_ffn=None)
    for changes, message in [
            (dict(attention='triton'),
             "attention backend 'triton': expected a GPU (or TRITON_INTERPRET=1), got cpu; take 'sdpa'"),
            (dict(attention='sdpa', init=str(tmp_path), **none),
             "attention backend 'sdpa': it has no softcap, which this model needs; expected None"),
            (dict(attention='sdpa', init_config=str(tmp_path), **none),
             "attention backend 'sdpa': it has no softcap, which this model needs; expected None")]:
        with pytest.raises(Refused) as refusal:
            train.main(config(**changes))
        assert str(refusal.value) == message and not Path(config().out).exists()

def test_memory_needs_no_data_and_writes_nothing(config, tmp_path, capsys):
    cfg = config(memory=2, data=str(tmp_path / 'none'), vocab='speech', parallel='fsdp')
    assert train.main(cfg) is None and not Path(cfg.out).exists()
    assert capsys.readouterr().out == (
        "0.0 GB on each of 2 GPUs at most (weights 0.0, gradients 0.0, moments 0.0, copies 0.0, saved 0.0, head 0.0): "
        "fsdp, float32, recompute=none, 6 x 32 tokens\n")
    alone, shared = (train.memory_of(cfg, world) for world in (1, 2))
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, n_ffn=32, vocab_size=502)) # the papers' 500 units, bos, pad
    N = sum(p.numel() for p in model.parameters())
    assert (alone['weights'], alone['gradients'], alone['moments']) == (4 * N, 4 * N, 8 * N)
    assert shared['moments'] == 4 * N

def test_a_run_that_cannot_fit_is_refused(config):
    cfg = config(micro_batch=6)
    n_bytes = train.memory_of(cfg, 1, 300)
    needed = sum(n_bytes.values())
    train.check_memory(cfg, 1, n_bytes, needed)
    with pytest.raises(Refused, match="a GPU has 0.0 GB: expected a smaller micro_batch"):
        train.check_memory(cfg, 1, n_bytes, needed - 1)
    alone = config(micro_batch=12) # without accumulation gradients come as activations go
    n_bytes = train.memory_of(alone, 1, 300)
    train.check_memory(alone, 1, n_bytes, sum(n_bytes.values()) - n_bytes['gradients'])

def test_wandb_without_its_package_is_refused(config, monkeypatch):
    monkeypatch.setattr(checks, 'find_spec', lambda name: None)
    with pytest.raises(Refused, match="wandb='speech': expected its package; pip install wandb"):
        config(wandb='speech')
