"""config/: each file parses, says its command and cost in the first line, and has the papers' numbers."""
import re
from pathlib import Path

import pytest
import torch

import dpo
import train
from configurator import configure
from model import GPT
from scaling.models import SHAPES
from training.cost import memory

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(ROOT.glob('config/*.py'))
PEAK = {'H200': 989.4e12, 'A100': 312e12, 'an A5000': 111e12} # FLOP/s
COSTED = [path.stem for path in CONFIGS if not path.stem.startswith('tiny') and not path.stem.endswith('dpo')]
FAMILIES_20K = ['qwen0.5b', 'qwen0.5b-real', 'qwen0.5b-synthetic', 'llama3.2-1b', 'smollm2', 'gemma2-2b',
                'pythia-160m', 'opt-125m', 'bloom-1b7'] # SIMS Figure 2 and Table 1
ADDED = 500 + 2 # ids of the papers' units, and two separators

def config(name):
    """(settings, first line) of config/NAME.py."""
    path = ROOT / 'config' / f'{name}.py'
    return configure(train.Config, [str(path)]), path.read_text().splitlines()[0]

def n_params(init, vocab='joint'):
    """Of a speech language model with a joint or speech vocabulary; of the TextLM itself where vocab is None."""
    shape = SHAPES[init]
    n_ids = {'joint': shape.n_text_ids + ADDED, 'speech': ADDED, None: shape.embedding_rows}[vocab]
    with torch.device('meta'):
        return GPT(shape.config(n_ids)).num_params()

@pytest.mark.parametrize('init', SHAPES)
def test_shapes_have_the_published_models_parameters(init):
    assert n_params(init, None) == SHAPES[init].n_params

def flops_of(cfg, n):
    step_flops = 6 * n * cfg.batch_tokens
    return step_flops * train.total_steps(cfg, step_flops)

@pytest.mark.parametrize('path', [*CONFIGS, *ROOT.glob('config/papers/*.py')], ids=lambda path: path.stem)
def test_config_parses_and_its_first_line_is_the_command_and_the_cost(path):
    first = path.read_text().splitlines()[0]
    script = re.match(rf'# (?:python|torchrun \S+) (\w+).py {path.relative_to(ROOT)}  ', first)[1]
    configure({'train': train, 'dpo': dpo}[script].Config, [str(path)])
    assert re.search(r'\d (s|min|h) on ', first), first

@pytest.mark.parametrize('name', COSTED)
def test_first_line_s_cost_is_6nd_and_its_hours_at_half_the_peak(name):
    cfg, first = config(name)
    cost = re.search(r'([\d.e]+) FLOPs: ([\d.]+) h on (?:(\d) )?(an A5000|\w+)', first)
    stated_flops, stated_hours, n_gpus, gpu = cost.groups()
    rate = 0.5 * int(n_gpus or 1) * PEAK[gpu]
    flops = rate * cfg.max_seconds if cfg.max_seconds else flops_of(cfg, n_params(cfg.init, cfg.vocab))
    assert float(stated_flops) == pytest.approx(flops, rel=5e-3)
    assert float(stated_hours) == pytest.approx(flops / rate / 3600, rel=0.025, abs=0.006) # two digits

def check_sims(cfg): # SIMS 4.3 and A.2
    assert cfg.batch_tokens == pytest.approx(720e6 / 5000, rel=0.03) # "5k steps (~ 720M tokens)"
    assert (cfg.block_size, cfg.min_lr, cfg.warmup, cfg.schedule) == (2048, 5e-5, 0.01, 'cosine')
    assert (cfg.clip, cfg.dtype, cfg.new_rows) == (0.5, 'bfloat16', 'hf')
    assert cfg.sources == ('text', 'speech', 'interleaved') and cfg.weights is None and cfg.vocab == 'joint'
    assert cfg.rows % (8 * cfg.micro_batch) == 0

@pytest.mark.parametrize('name', FAMILIES_20K)
def test_family_runs_are_20k_steps_of_sims(name):
    cfg, _ = config(name)
    check_sims(cfg)
    assert cfg.max_steps == 20000 and cfg.lr == 5e-4
    assert ('stinystories' in cfg.data) == (not name.endswith('real'))
    assert ('librilight' in cfg.data) == (not name.endswith('synthetic'))

@pytest.mark.parametrize('name, flops, lr', [
    ('qwen7b', 6.86e20, 3e-4), ('qwen3b', 2e20, 3e-4), ('qwen1.5b', 2e20, 3e-4), ('llama3.2-3b', 5.9e19, 5e-4)])
def test_table_2_runs_have_its_compute(name, flops, lr): # and A.2's rates: 3e-4 from 2e20 on
    cfg, _ = config(name)
    check_sims(cfg)
    assert flops_of(cfg, n_params(cfg.init)) == pytest.approx(flops, rel=2e-3) and cfg.lr == lr

def test_qwen7b_sees_15b_tokens_and_fits_8_cards_of_80_gb(): # SIMS 5.1
    cfg, _ = config('qwen7b')
    n_ids = SHAPES[cfg.init].n_text_ids + ADDED
    shape = SHAPES[cfg.init].config(n_ids)
    sharded = memory(shape, cfg.micro_batch * 2048, 8, cfg.parallel)
    copied = memory(shape, 2048, 8, 'ddp')
    assert sum(sharded.values()) == pytest.approx(58e9, rel=0.02)
    assert sum(copied.values()) == pytest.approx(152e9, rel=0.02)
    padding = -n_ids % 256 # rows of the input and of the output table
    N = n_params(cfg.init) + 2 * 3584 * padding
    # 4, 4 and 8 bytes a parameter over 8 GPUs.
    assert [sharded[part] for part in ('weights', 'gradients', 'moments')] == [N // 2, N // 2, N]
    assert train.total_steps(cfg, 1.0) * cfg.batch_tokens == pytest.approx(15e9, rel=1e-4)

@pytest.mark.parametrize('name, rows', [
    ('slam', 128), ('slam-real', 128), ('slam-diverse', 128), ('slam-scaled', 256), ('slam-large', 256)])
def test_slam_s_relatives_differ_in_what_they_say(name, rows):
    cfg, _ = config(name)
    assert (cfg.rows, cfg.block_size, cfg.lr, cfg.min_lr) == (rows, 1024, 1e-3, 5e-5)
    assert (cfg.warmup, cfg.clip, cfg.rope_theta) == (0.01, 0.5, 10000)
    assert (cfg.vocab, cfg.sources) == ('speech', ('textless',))
    assert cfg.init == ('Qwen/Qwen2.5-1.5B' if name == 'slam-large' else 'Qwen/Qwen2.5-0.5B')
    assert cfg.max_seconds == 48 * 3600 if rows == 256 else cfg.max_steps == 17625
    assert ('stinystories' in cfg.data) == (name != 'slam-real')
    assert ('voxpopuli' in cfg.data) == (name == 'slam-diverse')

def test_slam_is_slam(): # its tables 4-7
    cfg, _ = config('slam')
    assert n_params(cfg.init, 'speech') == 358_347_904
    assert cfg.max_steps * cfg.rows * 621 == pytest.approx(1.4e9, rel=0.01) # tokens, at the paper's mean row

def test_the_tiny_models_that_are_compared_have_one_budget_and_one_data():
    """Each of the three configs is written out, so that each command names one file; these fields must agree."""
    interleaved, _ = config('tiny')
    speech, _ = config('tiny_speech')
    scratch, _ = config('tiny_scratch')
    text, _ = config('tiny_text')
    for field in ('data', 'max_steps', 'batch_tokens', 'block_size', 'lr', 'min_lr', 'warmup', 'schedule', 'clip',
                  'dtype', 'seed'):
        value = getattr(interleaved, field)
        assert getattr(speech, field) == value and getattr(scratch, field) == value, field
    assert interleaved.init == speech.init == scratch.init_config == text.out
    assert scratch.tokenizer == text.tokenizer
    assert len({cfg.out for cfg in (interleaved, speech, scratch, text)}) == 4

def test_slam_dpo_is_slam_s(): # its tables 4-6
    path = ROOT / 'config' / 'slam_dpo.py'
    cfg = configure(dpo.Config, [str(path)])
    assert (cfg.max_steps, cfg.batch, cfg.lr, cfg.beta, cfg.schedule) == (813, 64, 5e-5, 0.1, 'inverse_sqrt')
    assert (cfg.clip, cfg.block_size, cfg.max_auto_bleu, cfg.dtype) == (0.5, 1024, 0.3, 'bfloat16')
    assert cfg.warmup * cfg.max_steps == pytest.approx(100)
    assert cfg.init == config('slam')[0].out
    # Both completions of a pair; the prompts and chosen ones of the paper's 47k pairs are 4.5M tokens.
    tokens = 813 * 64 * 2 * 4.5e6 / 47e3
    stated_flops = float(re.search(r'([\d.e]+) FLOPs', path.read_text())[1])
    assert stated_flops == pytest.approx(6 * 358_347_904 * tokens, rel=0.05)
    assert train.learning_rate(cfg, 400 / cfg.max_steps) == pytest.approx(5e-5 * (100 / 400) ** 0.5)
