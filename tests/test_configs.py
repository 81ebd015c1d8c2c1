"""config/*.py: each parses, says its command and cost in the first line, and has the papers' numbers."""
import re
from pathlib import Path

import pytest
import torch

import train
from configurator import configure
from families import GPTConfig
from model import GPT

CONFIGS = sorted(Path(__file__).parents[1].glob('config/*.py'))
QWEN_7B = GPTConfig(vocab_size=152167, n_layer=28, n_head=28, n_kv_head=4, n_embd=3584, head_dim=128, n_ffn=18944,
                    tied=False)
QWEN_05B = GPTConfig(vocab_size=502, n_layer=24, n_head=14, n_kv_head=2, n_embd=896, head_dim=64, n_ffn=4864)

def config(name):
    [path] = [p for p in CONFIGS if p.stem == name]
    return configure(train.Config, [str(path)]), path.read_text().splitlines()[0]

def n_params(shape):
    with torch.device('meta'):
        return GPT(shape).num_params()

def flops_of(cfg, n):
    return 6 * n * cfg.batch_tokens * train.total_steps(cfg, 6 * n * cfg.batch_tokens)

@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config_parses_and_its_first_line_is_the_command_and_the_cost(path):
    if 'train.py' not in path.read_text().splitlines()[0]:
        pytest.skip("of another script")
    configure(train.Config, [str(path)])
    first = path.read_text().splitlines()[0]
    assert re.match(rf'# (python|torchrun \S+) train.py config/{path.stem}.py  ', first), first
    assert re.search(r'\d (s|h) on ', first), first

@pytest.mark.parametrize('name, shape, peak', [('qwen7b', QWEN_7B, 8 * 989.4e12), ('slam', QWEN_05B, 111e12)])
def test_first_line_s_cost_is_6nd_and_its_hours_at_half_the_peak(name, shape, peak):
    cfg, first = config(name)
    flops = flops_of(cfg, n_params(shape))
    said, hours = re.search(r'([\d.e]+) FLOPs: ([\d.]+) h', first).groups()
    assert float(said) == pytest.approx(flops, rel=5e-3)
    assert float(hours) == pytest.approx(flops / peak / 0.5 / 3600, rel=5e-3)

def test_qwen7b_is_sims(): # SIMS 4.3, 5.1 and A.2
    cfg, _ = config('qwen7b')
    assert cfg.batch_tokens == pytest.approx(720e6 / 5000, rel=0.03) # "5k steps, and 720M tokens"
    steps = train.total_steps(cfg, 1.0)
    assert steps * cfg.batch_tokens == pytest.approx(15e9, rel=1e-4)
    assert flops_of(cfg, n_params(QWEN_7B)) == pytest.approx(6.86e20, rel=2e-3)
    assert (cfg.block_size, cfg.lr, cfg.min_lr, cfg.warmup, cfg.schedule, cfg.clip, cfg.dtype) == \
        (2048, 3e-4, 5e-5, 0.01, 'cosine', 0.5, 'bfloat16')
    assert cfg.sources == ('text', 'speech', 'interleaved') and cfg.weights is None and cfg.vocab == 'joint'
    assert cfg.rows % 8 == 0 and cfg.new_rows == 'hf'

def test_slam_is_slam(): # Slam tables 4-7
    cfg, _ = config('slam')
    assert n_params(QWEN_05B) == 358_347_904
    assert (cfg.rows, cfg.block_size, cfg.max_steps, cfg.lr, cfg.min_lr, cfg.warmup, cfg.clip, cfg.rope_theta) == \
        (128, 1024, 17625, 1e-3, 5e-5, 0.01, 0.5, 10000)
    assert cfg.vocab == 'speech' and cfg.sources == ('textless',)
    assert cfg.max_steps * cfg.rows * 621 == pytest.approx(1.4e9, rel=0.01) # tokens, at the paper's mean row

def test_the_tiny_models_that_are_compared_have_one_budget_and_one_data():
    a, b, c = (config(name)[0] for name in ('tiny', 'tiny_speech', 'tiny_scratch'))
    for field in ('data', 'max_steps', 'batch_tokens', 'block_size', 'lr', 'min_lr', 'warmup', 'schedule', 'clip',
                  'dtype', 'seed'):
        assert getattr(a, field) == getattr(b, field) == getattr(c, field), field
    text = config('tiny_text')[0]
    assert a.init == b.init == c.init_config == text.out_dir and c.tokenizer == text.tokenizer
    assert len({cfg.out_dir for cfg in (a, b, c, text)}) == 4
