"""config/: each file parses, says its command and cost in the first line, and has the papers' numbers."""
import re
from pathlib import Path

import pytest
import torch

import dpo
import train
from configurator import configure
from hub.families import GPTConfig
from model import GPT
from scaling.models import SHAPES
from training.cost import memory

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(ROOT.glob('config/*.py'))
GPUS = {'H200': 989.4e12, 'A100': 312e12, 'an A5000': 111e12}
FAMILIES_20K = ['qwen0.5b', 'qwen0.5b-real', 'qwen0.5b-synthetic', 'llama3.2-1b', 'smollm2', 'gemma2-2b', 'pythia-160m',
                'opt-125m', 'bloom-1b7'] # SIMS Figure 2 and Table 1

def config(name):
    [path] = [p for p in CONFIGS if p.stem == name]
    return configure(train.Config, [str(path)]), path.read_text().splitlines()[0]

def n_params(init, vocab='joint'):
    """Of the SLM: 500 units and 2 separators more, or 502 ids in all; of the TextLM where vocab is None."""
    family, L, H, HK, C, ffn, rows, other, _, T = SHAPES[init]
    V = {'joint': T + 502, 'speech': 502, None: rows}[vocab]
    shape = GPTConfig(family=family, vocab_size=V, n_layer=L, n_head=H, n_kv_head=HK, n_embd=C, n_ffn=ffn, **other)
    with torch.device('meta'):
        return GPT(shape).num_params()

@pytest.mark.parametrize('init', SHAPES)
def test_shapes_have_the_published_models_parameters(init):
    assert n_params(init, None) == SHAPES[init][-2]

def flops_of(cfg, n):
    return 6 * n * cfg.batch_tokens * train.total_steps(cfg, 6 * n * cfg.batch_tokens)

@pytest.mark.parametrize('path', [*CONFIGS, *ROOT.glob('config/papers/*.py')], ids=lambda p: p.stem)
def test_config_parses_and_its_first_line_is_the_command_and_the_cost(path):
    first = path.read_text().splitlines()[0]
    script = re.match(rf'# (?:python|torchrun \S+) (\w+).py {path.relative_to(ROOT)}  ', first)[1]
    configure({'train': train, 'dpo': dpo}[script].Config, [str(path)])
    assert re.search(r'\d (s|min|h) on ', first), first

@pytest.mark.parametrize('name', [p.stem for p in CONFIGS if not p.stem.startswith('tiny') and not p.stem.endswith('dpo')])
def test_first_line_s_cost_is_6nd_and_its_hours_at_half_the_peak(name):
    cfg, first = config(name)
    said, hours, n_gpus, gpu = re.search(r'([\d.e]+) FLOPs: ([\d.]+) h on (?:(\d) )?(an A5000|\w+)', first).groups()
    flops_s = 0.5 * int(n_gpus or 1) * GPUS[gpu]
    flops = flops_s * cfg.max_seconds if cfg.max_seconds else flops_of(cfg, n_params(cfg.init, cfg.vocab))
    assert float(said) == pytest.approx(flops, rel=5e-3)
    assert float(hours) == pytest.approx(flops / flops_s / 3600, rel=0.025, abs=0.006) # two digits

def is_sims(cfg): # SIMS 4.3 and A.2
    assert cfg.batch_tokens == pytest.approx(720e6 / 5000, rel=0.03) # "5k steps (~ 720M tokens)"
    assert (cfg.block_size, cfg.min_lr, cfg.warmup, cfg.schedule, cfg.clip, cfg.dtype, cfg.new_rows) == \
        (2048, 5e-5, 0.01, 'cosine', 0.5, 'bfloat16', 'hf')
    assert cfg.sources == ('text', 'speech', 'interleaved') and cfg.weights is None and cfg.vocab == 'joint'
    assert cfg.rows % (8 * cfg.micro_batch) == 0

@pytest.mark.parametrize('name', FAMILIES_20K)
def test_family_runs_are_20k_steps_of_sims(name):
    cfg, _ = config(name)
    is_sims(cfg)
    assert cfg.max_steps == 20000 and cfg.lr == 5e-4
    assert ('stinystories' in cfg.data, 'librilight' in cfg.data) == (not name.endswith('real'), not name.endswith('synthetic'))

@pytest.mark.parametrize('name, flops, lr', [('qwen7b', 6.86e20, 3e-4), ('qwen3b', 2e20, 3e-4), ('qwen1.5b', 2e20, 3e-4),
                                             ('llama3.2-3b', 5.9e19, 5e-4)])
def test_table_2_runs_have_its_compute(name, flops, lr): # and A.2's rates: 3e-4 from 2e20 on
    cfg, _ = config(name)
    is_sims(cfg)
    assert flops_of(cfg, n_params(cfg.init)) == pytest.approx(flops, rel=2e-3) and cfg.lr == lr

def test_qwen7b_sees_15b_tokens_and_fits_8_cards_of_80_gb(): # SIMS 5.1
    cfg, _ = config('qwen7b')
    family, L, H, HK, C, ffn, _, other, _, T = SHAPES[cfg.init]
    shape = GPTConfig(family=family, vocab_size=T + 502, n_layer=L, n_head=H, n_kv_head=HK, n_embd=C, n_ffn=ffn, **other)
    held = [memory(shape, rows * 2048, 8, parallel) for rows, parallel in ((cfg.micro_batch, cfg.parallel), (1, 'ddp'))]
    assert sum(held[0].values()) == pytest.approx(58e9, rel=0.02) and sum(held[1].values()) == pytest.approx(152e9, rel=0.02)
    N = n_params(cfg.init) + 2 * 3584 * (-(T + 502) % 256) # rows are padded
    assert [held[0][part] for part in ('weights', 'gradients', 'moments')] == [N // 2, N // 2, N] # 4, 4 and 8 bytes over 8
    assert train.total_steps(cfg, 1.0) * cfg.batch_tokens == pytest.approx(15e9, rel=1e-4)

@pytest.mark.parametrize('name, rows', [('slam', 128), ('slam-real', 128), ('slam-diverse', 128), ('slam-scaled', 256),
                                        ('slam-large', 256)])
def test_slam_s_relatives_differ_in_what_they_say(name, rows):
    cfg, _ = config(name)
    assert (cfg.rows, cfg.block_size, cfg.lr, cfg.min_lr, cfg.warmup, cfg.clip, cfg.rope_theta, cfg.vocab, cfg.sources) == \
        (rows, 1024, 1e-3, 5e-5, 0.01, 0.5, 10000, 'speech', ('textless',))
    assert cfg.init == ('Qwen/Qwen2.5-1.5B' if name == 'slam-large' else 'Qwen/Qwen2.5-0.5B')
    assert cfg.max_seconds == 48 * 3600 if rows == 256 else cfg.max_steps == 17625
    assert ('stinystories' in cfg.data) == (name != 'slam-real') and ('voxpopuli' in cfg.data) == (name == 'slam-diverse')

def test_slam_is_slam(): # its tables 4-7
    cfg, _ = config('slam')
    assert n_params(cfg.init, 'speech') == 358_347_904
    assert cfg.max_steps * cfg.rows * 621 == pytest.approx(1.4e9, rel=0.01) # tokens, at the paper's mean row

def test_the_tiny_models_that_are_compared_have_one_budget_and_one_data():
    a, b, c = (config(name)[0] for name in ('tiny', 'tiny_speech', 'tiny_scratch'))
    for field in ('data', 'max_steps', 'batch_tokens', 'block_size', 'lr', 'min_lr', 'warmup', 'schedule', 'clip',
                  'dtype', 'seed'):
        assert getattr(a, field) == getattr(b, field) == getattr(c, field), field
    text = config('tiny_text')[0]
    assert a.init == b.init == c.init_config == text.out and c.tokenizer == text.tokenizer
    assert len({cfg.out for cfg in (a, b, c, text)}) == 4

def test_slam_dpo_is_slam_s(): # its tables 4-6
    [path] = [p for p in CONFIGS if p.stem == 'slam_dpo']
    cfg = configure(dpo.Config, [str(path)])
    assert (cfg.max_steps, cfg.batch, cfg.lr, cfg.beta, cfg.schedule, cfg.clip, cfg.block_size, cfg.max_auto_bleu, cfg.dtype) == \
        (813, 64, 5e-5, 0.1, 'inverse_sqrt', 0.5, 1024, 0.3, 'bfloat16')
    assert cfg.warmup * cfg.max_steps == pytest.approx(100) and cfg.init == config('slam')[0].out
    tokens = 813 * 64 * 2 * 4.5e6 / 47e3 # both completions; the paper's 47k pairs are 4.5M tokens of prompts and chosen
    said = float(re.search(r'([\d.e]+) FLOPs', path.read_text())[1])
    assert said == pytest.approx(6 * 358_347_904 * tokens, rel=0.05)
    assert learning_rate_of(cfg, 400) == pytest.approx(5e-5 * (100 / 400) ** 0.5)

def learning_rate_of(cfg, step):
    return train.learning_rate(cfg, step / cfg.max_steps)
