"""config/: each file parses, says its command and cost in the first line, and has the papers' values.

FIELDS has what the papers say of a run, with the place; QUANTITIES every number in a config's comments and where it
comes from; CITED the rows of the tables that comments cite.
"""
import contextlib
import io
import json
import re
import tokenize
from functools import cache
from pathlib import Path
from statistics import median

import pytest
import torch

import dpo
import train
from configurator import configure
from hub.shapes import SHAPES
from model import GPT
from scaling.plan import CPU_FLOPS
from training.cost import memory

ROOT = Path(__file__).parents[1]
PATHS = {path.relative_to(ROOT / 'config').with_suffix('').as_posix(): path
         for path in sorted(ROOT.glob('config/**/*.py'))}
PEAK = {'H200': 989.4e12, 'A100': 312e12, 'an A5000': 111e12} # FLOP/s
ADDED = 500 + 2 # ids of the papers' units, and two separators

FAMILIES_20K = ('qwen0.5b', 'qwen0.5b-real', 'qwen0.5b-synthetic', 'llama3.2-1b', 'smollm2', 'gemma2-2b',
                'pythia-160m', 'opt-125m', 'bloom-1b7')
TABLE_2 = ('qwen7b', 'qwen3b', 'qwen1.5b', 'llama3.2-3b')
SIMS = (*FAMILIES_20K, *TABLE_2)
LATER = ('qwen3-0.6b', 'qwen3-1.7b', 'qwen3-4b', 'qwen3-8b', 'smollm3', 'olmo2-1b') # SIMS from later TextLMs
RECIPE = (*SIMS, *LATER)
ONE_DAY = ('slam', 'slam-real', 'slam-diverse')
TWO_DAYS = ('slam-scaled', 'slam-large')
SLAM = (*ONE_DAY, *TWO_DAYS)
SLAM_DPO = ('slam_dpo', 'slam-scaled_dpo', 'slam-large_dpo')
TINY = tuple(name for name in PATHS if name.startswith(('tiny', 'papers/')))

def script_of(name):
    return dpo if name.endswith('dpo') else train

@cache
def settings(name, *flags):
    """The settings of config/NAME.py and these flags."""
    with contextlib.redirect_stdout(io.StringIO()):
        return configure(script_of(name).Config, [str(PATHS[name]), *flags])

def first_line(name):
    return PATHS[name].read_text().splitlines()[0]

@cache
def n_params(init, vocab='joint'):
    """Of a speech language model with a joint or speech vocabulary; of the TextLM itself where vocab is None."""
    shape = SHAPES[init]
    n_ids = {'joint': shape.n_text_ids + ADDED, 'speech': ADDED, None: shape.embedding_rows}[vocab]
    with torch.device('meta'):
        return GPT(shape.config(n_ids)).num_params()

def steps_of(name):
    cfg = settings(name)
    return train.total_steps(cfg, 6 * n_params(cfg.init, cfg.vocab) * cfg.batch_tokens)

def tokens_of(name):
    return steps_of(name) * settings(name).batch_tokens

def gigabytes(name, *flags):
    """What --memory=8 prints of a config with these flags."""
    return sum(train.memory_of(settings(name, *flags), 8).values()) / 1e9

def test_every_config_is_of_a_paper_or_tiny():
    assert set(PATHS) == {*SIMS, *LATER, *SLAM, *SLAM_DPO, *TINY}

@pytest.mark.parametrize('init', SHAPES)
def test_shapes_have_the_published_models_parameters(init):
    assert n_params(init, None) == SHAPES[init].n_params

# --------------------------------------------------------------------------------------------------
# the papers' values

ALL_CORPORA = ('librilight', 'librispeech', 'swc', 'tedlium', 'peoples_speech', 'voxpopuli', 'stinystories')
SLAM_CORPORA = ('librilight', 'librispeech', 'stinystories')

def folders(*corpora):
    """The setting data of these corpora, in any order."""
    return {f'out/tokens/{corpus}' for corpus in corpora}

FIELDS = [ # (configs, setting, the paper's value, where the paper or its code has it)
    (RECIPE, 'sources', ('text', 'speech', 'interleaved'), 'SIMS 3: speech, text and both interleaved'),
    (RECIPE, 'weights', None, 'SIMS 3: mixed at equal ratios'),
    (RECIPE, 'vocab', 'joint', 'SIMS 2.1: units are added to the text vocabulary'),
    (RECIPE, 'block_size', 2048, 'SIMS A.2: context'),
    (RECIPE, 'batch_tokens', pytest.approx(720e6 / 5000, rel=0.03), 'SIMS 4.3: 5k steps are about 720M tokens'),
    (RECIPE, 'schedule', 'cosine', 'SIMS A.2'),
    (RECIPE, 'warmup', 0.01, 'SIMS A.2: 1 % of the steps'),
    (RECIPE, 'min_lr', 5e-5, 'SIMS A.2'),
    (RECIPE, 'clip', 0.5, 'SIMS A.2'),
    (RECIPE, 'dtype', 'bfloat16', 'SIMS A.2; the weights too in slamkit: torch_dtype of train_inter_scale.yaml'),
    (RECIPE, 'new_rows', 'hf', 'slamkit: resize_token_embeddings of transformers'),
    (RECIPE, 'rope_theta', None, "slamkit: train_inter_scale.yaml leaves the TextLM's"),
    ((*FAMILIES_20K, 'llama3.2-3b', *LATER), 'lr', 5e-4, 'SIMS A.2: below 2e20 FLOPs'),
    (('qwen7b', 'qwen3b', 'qwen1.5b'), 'lr', 3e-4, 'SIMS A.2: from 2e20 FLOPs on'),
    ((*FAMILIES_20K, *LATER), 'max_steps', 20000, 'SIMS Figure 2 and 4.1: 20k steps'),
    (('llama3.2-3b',), 'max_flops', 5.9e19, 'SIMS Table 2'),
    (('qwen3b', 'qwen1.5b'), 'max_flops', 2e20, 'SIMS Table 2'),
    (('qwen7b',), 'max_tokens', 15e9, 'SIMS 5.1 and Table 3'),
    (('bloom-1b7',), 'init', 'bigscience/bloom-1b7', 'SIMS 4.2'),
    (('gemma2-2b',), 'init', 'google/gemma-2-2b', 'SIMS 4.2'),
    (('llama3.2-1b',), 'init', 'meta-llama/Llama-3.2-1B', 'SIMS 4.2'),
    (('llama3.2-3b',), 'init', 'meta-llama/Llama-3.2-3B', 'SIMS Table 2'),
    (('opt-125m',), 'init', 'facebook/opt-125m', 'SIMS 4.2'),
    (('pythia-160m',), 'init', 'EleutherAI/pythia-160m', 'SIMS 4.2'),
    (('smollm2',), 'init', 'HuggingFaceTB/SmolLM2-1.7B', 'SIMS 4.2'),
    (('qwen0.5b', 'qwen0.5b-real', 'qwen0.5b-synthetic'), 'init', 'Qwen/Qwen2.5-0.5B', 'SIMS 4.1'),
    (('qwen1.5b',), 'init', 'Qwen/Qwen2.5-1.5B', 'SIMS Table 2'),
    (('qwen3b',), 'init', 'Qwen/Qwen2.5-3B', 'SIMS Table 2'),
    (('qwen7b',), 'init', 'Qwen/Qwen2.5-7B', 'SIMS 5.1'),
    (('qwen3-0.6b',), 'init', 'Qwen/Qwen3-0.6B-Base', 'the base model on the hub'),
    (('qwen3-1.7b',), 'init', 'Qwen/Qwen3-1.7B-Base', 'the base model on the hub'),
    (('qwen3-4b',), 'init', 'Qwen/Qwen3-4B-Base', 'the base model on the hub'),
    (('qwen3-8b',), 'init', 'Qwen/Qwen3-8B-Base', 'the base model on the hub'),
    (('smollm3',), 'init', 'HuggingFaceTB/SmolLM3-3B-Base', 'the base model on the hub'),
    (('olmo2-1b',), 'init', 'allenai/OLMo-2-0425-1B', 'the base model on the hub'),
    ([name for name in (*SIMS, *LATER) if '-real' not in name and '-synthetic' not in name], 'data',
     folders(*ALL_CORPORA, 'redpajama'), 'SIMS 3'),
    (('qwen0.5b-real',), 'data', folders(*ALL_CORPORA, 'redpajama') - folders('stinystories'), 'SIMS Table 1, row 1'),
    (('qwen0.5b-synthetic',), 'data', folders('stinystories', 'redpajama'), 'SIMS Table 1, row 2'),
    (SLAM, 'sources', ('textless',), 'Slam Tables 4-6: speech alone'),
    (SLAM, 'vocab', 'speech', 'slamkit: unit_hubert_25, pad, one id for both ends, 500 units'),
    (SLAM, 'rope_theta', 10000, 'Slam Tables 4-6; slamkit: model/slam.yaml'),
    (SLAM, 'block_size', 1024, 'Slam Tables 4-6: context'),
    (SLAM, 'lr', 1e-3, 'Slam Tables 4-6'),
    (SLAM, 'schedule', 'cosine', 'Slam Tables 4-6'),
    (SLAM, 'warmup', 0.01, 'Slam Tables 4-6: 1 %'),
    (SLAM, 'min_lr', 5e-5, 'Slam Tables 4-6'),
    (SLAM, 'clip', 0.5, 'Slam Tables 4-6'),
    (SLAM, 'dtype', 'bfloat16', 'Slam Tables 4-6; the weights too in slamkit: torch_dtype of model/slam.yaml'),
    (ONE_DAY, 'batch_tokens', 8 * 16 * 1024, 'Slam Tables 4-6: 8 rows, accumulated 16 times'),
    (ONE_DAY, 'max_seconds', (24 - 0.5) * 3600, 'Slam: a day, half an hour of it for DPO'),
    (TWO_DAYS, 'batch_tokens', 2 * 8 * 16 * 1024, 'Slam: twice the batch'),
    (TWO_DAYS, 'max_seconds', 48 * 3600, 'Slam: 48 h on 2 A100'),
    ((*ONE_DAY, 'slam-scaled'), 'init', 'Qwen/Qwen2.5-0.5B', 'Slam Tables 4-6'),
    (('slam-large',), 'init', 'Qwen/Qwen2.5-1.5B', 'Slam: large'),
    (('slam', 'slam-scaled', 'slam-large'), 'data', folders(*SLAM_CORPORA), 'Slam Tables 4-6'),
    (('slam-real',), 'data', folders('librilight', 'librispeech'), 'Slam Table 1, row 7'),
    (('slam-diverse',), 'data', folders(*ALL_CORPORA), 'Slam Table 1, row 6'),
    (('slam_dpo',), 'max_steps', 813, 'Slam Tables 4-6'),
    (SLAM_DPO[1:], 'max_epochs', 2, 'Slam: scaled and large have 2 epochs of DPO'),
    (('slam_dpo',), 'batch', 4 * 16, 'Slam Tables 4-6: 4 pairs, accumulated 16 times'),
    (SLAM_DPO[1:], 'batch', 64, 'as in Slam Tables 4-6; the paper states none for two GPUs'),
    (SLAM_DPO, 'beta', 0.1, 'Slam Tables 4-6'),
    (SLAM_DPO, 'max_auto_bleu', 0.3, 'Slam Tables 4-6'),
    (SLAM_DPO, 'block_size', 1024, 'Slam Tables 4-6: context'),
    (SLAM_DPO, 'lr', 5e-5, 'Slam Tables 4-6'),
    (SLAM_DPO, 'schedule', 'inverse_sqrt', 'Slam Tables 4-6'),
    (SLAM_DPO, 'clip', 0.5, 'Slam Tables 4-6'),
    (SLAM_DPO, 'dtype', 'bfloat16', 'Slam Tables 4-6'),
    (('slam_dpo',), 'warmup', 100 / 813, 'slamkit: 100 steps, training_args/default.yaml'),
    (SLAM_DPO[1:], 'warmup', 100 / 1469, 'slamkit: 100 steps, training_args/default.yaml'),
    (('slam_dpo',), 'init', 'out/slam', 'what slam.py trains'),
    (('slam-scaled_dpo',), 'init', 'out/slam-scaled', 'what slam-scaled.py trains'),
    (('slam-large_dpo',), 'init', 'out/slam-large', 'what slam-large.py trains'),
    (SLAM_DPO, 'data', {'out/units/spokenswag'}, 'Slam Tables 4-6: SpokenSwag'),
]
# What a config may set beside these: how a run is placed, named and saved, which changes no value of the papers.
OURS = {'out', 'micro_batch', 'parallel', 'eval_every', 'save_every', 'skip_long'}

@pytest.mark.parametrize('name, field, value, source', [
    pytest.param(name, *row, id=f'{name}-{row[0]}') for names, *row in FIELDS for name in names])
def test_a_config_has_the_papers_value(name, field, value, source):
    actual = getattr(settings(name), field)
    assert (set(actual.split(',')) if field == 'data' else actual) == value, source

@pytest.mark.parametrize('name', [*SIMS, *LATER, *SLAM, *SLAM_DPO])
def test_no_setting_of_a_papers_config_is_without_a_source(name):
    assigned = set(re.findall(r'^(\w+) = ', PATHS[name].read_text(), re.M))
    assert assigned <= OURS | {field for names, field, *_ in FIELDS if name in names}

@pytest.mark.parametrize('name', [*SIMS, *SLAM, *SLAM_DPO])
def test_a_papers_config_says_which_dtype_the_papers_weights_have(name):
    assert "dtype = 'pure_bfloat16'" in PATHS[name].read_text()
    assert settings(name, '--dtype=pure_bfloat16').dtype == 'pure_bfloat16'

@pytest.mark.parametrize('name', [*SIMS, *LATER])
def test_the_rows_of_a_step_divide_by_8_gpus(name):
    assert settings(name).rows % (8 * settings(name).micro_batch) == 0

@pytest.mark.parametrize('name, row', [('llama3.2-3b', 2), ('qwen1.5b', 3), ('qwen3b', 4), ('qwen7b', 6)])
def test_a_run_of_table_2_has_its_compute(name, row):
    [published] = [r for r in published_rows('SIMS 2') if r['row'] == row]
    flops = 6 * n_params(settings(name).init) * tokens_of(name)
    assert flops == pytest.approx(published['flops'], rel=2e-3)
    assert n_params(settings(name).init) == pytest.approx(published['params'], rel=0.04)

def published_rows(table):
    tables = json.loads((ROOT / 'papers' / 'published.json').read_text())
    return [row for row in tables['rows'] if row['table'] == table]

def test_slam_has_the_papers_parameters_and_its_three_budgets_configure(): # Slam Table 7
    assert n_params('Qwen/Qwen2.5-0.5B', 'speech') == 358_347_904
    flags = re.findall(r'^# +(--max_seconds=None) (--max_\w+=\S+)', PATHS['slam'].read_text(), re.M)
    assert [budget for _, budget in flags] == ['--max_tokens=1.4e9', '--max_steps=17625']
    for name in ONE_DAY:
        for pair in flags:
            assert train.total_steps(settings(name, *pair), 1.0) in (10_681, 17_625)
    assert 17625 * 128 * 621 == pytest.approx(1.4e9, rel=0.01) # tokens, at the paper's mean row

def test_dpo_falls_from_the_end_of_its_warm_up_as_the_inverse_square_root():
    cfg = settings('slam_dpo')
    assert train.learning_rate(cfg, 400 / cfg.max_steps) == pytest.approx(5e-5 * (100 / 400) ** 0.5)

def test_the_memory_of_qwen7b_is_that_of_its_shards():
    cfg = settings('qwen7b')
    shape = SHAPES[cfg.init]
    n_ids = shape.n_text_ids + ADDED
    sharded = memory(shape.config(n_ids), cfg.micro_batch * 2048, 8, cfg.parallel)
    padding = -n_ids % 256 # rows of the input and of the output table
    N = n_params(cfg.init) + 2 * 3584 * padding
    # 4, 4 and 8 bytes a parameter over 8 GPUs.
    assert [sharded[part] for part in ('weights', 'gradients', 'moments')] == [N // 2, N // 2, N]

@pytest.mark.parametrize('name', [*SIMS, *LATER, *SLAM])
def test_memory_is_planned_without_a_network(name, monkeypatch, capsys, tmp_path):
    def no_network(*_, **__):
        raise AssertionError("tried to download")
    monkeypatch.setattr('huggingface_hub.snapshot_download', no_network)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    world = 1 if name in ONE_DAY else 2 if name in TWO_DAYS else 8
    train.main(settings(name, f'--memory={world}'))
    n_bytes = sum(train.memory_of(settings(name), world).values())
    assert capsys.readouterr().out.startswith(f'{n_bytes / 1e9:.1f} GB on each of {world} GPUs')

# --------------------------------------------------------------------------------------------------
# the numbers in comments

DAY_RATE = 1.4e9 / (23.5 * 3600) # tokens a second of Slam's day in the paper
PAIR_TOKENS = 4.5e6 / 47e3 # of a prompt and the chosen completion; Slam: 4.5M tokens of 47k pairs
REAL_HOURS = sum(row['hours'] for row in published_rows('SIMS 4') if row['data'] != 'sTinyStories')
LOG = [json.loads(line) for line in (ROOT / 'tiny/slm/log.jsonl').read_text().splitlines()] # of config/tiny_long.py
CPU_RATE = median(row['tok_s'] for row in LOG if 'tok_s' in row)
TEXTLM_TOKENS = settings('tiny_textlm').max_steps * settings('tiny_textlm').batch_tokens
TINY_LONG_TOKENS = settings('tiny_long').max_steps * settings('tiny_long').batch_tokens

def about(value):
    return pytest.approx(value, rel=0.1) # the comment says `about` too

QUANTITIES = [ # (configs, the number as the comment has it, its value, how it is computed or where it is stated)
    ((*FAMILIES_20K[3:], *LATER), '20k', 20000, 'max_steps'),
    (('qwen0.5b', 'llama3.2-3b'), '20k', 20000, 'SIMS Figure 2'),
    ((*FAMILIES_20K, *LATER), '2.95B', tokens_of('qwen0.5b'), 'steps x batch_tokens'),
    (('qwen0.5b',), '5000', 5000, 'SIMS 4.3: interleaving is ahead from 5k steps on'),
    (('llama3.2-3b',), '5.9e19', settings('llama3.2-3b').max_flops, 'SIMS Table 2'),
    (('llama3.2-3b',), '4 %', steps_of('llama3.2-3b') / 20000 - 1, 'steps against 20k'),
    (('llama3.2-3b',), '20,746', steps_of('llama3.2-3b'), 'max_flops / 6ND of a step'),
    (('llama3.2-3b',), '3.1B', tokens_of('llama3.2-3b'), 'steps x batch_tokens'),
    (('qwen1.5b', 'qwen3b'), '2e20', 2e20, 'SIMS Table 2'),
    (('qwen1.5b', 'qwen3b', 'qwen7b'), '5e-4', 5e-4, 'SIMS A.2'),
    (('qwen7b',), '2e20', 2e20, 'SIMS A.2'),
    (('qwen1.5b',), '146,402', steps_of('qwen1.5b'), 'max_flops / 6ND of a step'),
    (('qwen1.5b',), '21.6B', tokens_of('qwen1.5b'), 'steps x batch_tokens'),
    (('qwen3b',), '73,242', steps_of('qwen3b'), 'max_flops / 6ND of a step'),
    (('qwen3b',), '10.8B', tokens_of('qwen3b'), 'steps x batch_tokens'),
    (('qwen7b',), '15B', tokens_of('qwen7b'), 'SIMS 5.1'),
    (('qwen3-8b',), '55', gigabytes('qwen3-8b'), '--memory=8'),
    (('qwen3-8b',), '8', 8, '--memory=8'),
    (('qwen7b',), '50', gigabytes('qwen7b'), '--memory=8'),
    (('qwen7b',), '169', gigabytes('qwen7b', '--parallel=ddp'), '--memory=8 --parallel=ddp'),
    (('qwen7b',), '8', 8, '--memory=8'),
    (('qwen7b',), '84k', REAL_HOURS, 'SIMS 3 and Table 4'),
    (('qwen7b',), '30k', 30e3, 'SIMS 3'),
    (('qwen7b',), '147,456', settings('qwen7b').batch_tokens, '72 x block_size'),
    (('qwen7b',), '5k', 5000, 'SIMS 4.3'),
    (('qwen7b',), '737M', 5000 * settings('qwen7b').batch_tokens, 'steps x batch_tokens'),
    (('qwen7b',), '720M', 720e6, 'SIMS 4.3'),
    (('qwen7b',), '2.4 %', 5000 * settings('qwen7b').batch_tokens / 720e6 - 1, 'against SIMS 4.3'),
    (('qwen7b',), '101,725', steps_of('qwen7b'), 'max_tokens / batch_tokens'),
    (('qwen7b',), '91', 12 * n_params('Qwen/Qwen2.5-7B') / 1e9, '4 bytes of weights and 8 of moments a parameter'),
    (('slam',), '17,625', 17625, "Slam Tables 4-6; slamkit's README"),
    (('slam',), '17625', 17625, "Slam Tables 4-6; slamkit's README"),
    (('slam',), '1.4B', 1.4e9, 'Slam Table 3'),
    (('slam',), '1.4e9', 1.4e9, 'Slam Table 3'),
    (('slam',), '621', 1.4e9 / 17625 / 128, 'tokens / steps / rows'),
    (('slam',), '10,681', 1.4e9 // (128 * 1024), 'tokens / batch_tokens'),
    (('slam',), '2.31B', 17625 * 128 * 1024, 'steps x batch_tokens'),
    (('slam',), '38.8', 17625 * 128 * 1024 / DAY_RATE / 3600, 'tokens / rate'),
    (('slam',), '16.5k', DAY_RATE, '1.4B tokens in 23.5 h'),
    (('slam',), '502', ADDED, 'units, pad and bos'),
    (('slam',), '358M', n_params('Qwen/Qwen2.5-0.5B', 'speech'), 'Slam Table 7'),
    (('slam-scaled',), '2', 2, 'Slam Table 3: GPUs'),
    (('slam-scaled',), '48', 48, 'Slam: hours'),
    (('slam-scaled',), '16.7B', published_rows('Slam 3')[13]['tokens'], 'Slam Table 3'),
    (('slam-scaled',), '48.3k', 16.7e9 / (48 * 3600 * 2), 'tokens / time / GPUs'),
    (('slam-large',), '6.1B', published_rows('Slam 3')[14]['tokens'], 'Slam Table 3'),
    (('slam_dpo',), '813', 813, 'Slam Tables 4-6'),
    (('slam_dpo',), '64', 64, 'Slam Tables 4-6'),
    (('slam_dpo',), '200', about(2 * PAIR_TOKENS), 'both completions'),
    (('slam_dpo',), '8', 64 // settings('slam_dpo').micro_batch, 'batch / micro_batch'),
    (SLAM_DPO, '100', 100, 'slamkit: training_args/default.yaml'),
    (SLAM_DPO[1:], '2', 2, 'Slam: epochs'),
    (SLAM_DPO[1:], '9M', published_rows('Slam 3')[13]['preference_tokens'], 'Slam Table 3'),
    (SLAM_DPO[1:], '1,469', 2 * 47e3 / 64, 'epochs x pairs / batch'),
    (('tiny_adamw', 'tiny_speech', 'tiny_text', 'tiny_scratch'), '130', 130, 'seconds, measured by speedrun.sh'),
    (('tiny',), '8', 8, 'minutes, bench/speedrun.py'),
    (TINY, '2', 2, 'cores'),
    (('tiny',), '502', ADDED, 'units and separators'),
    (('tiny',), '4.1M', settings('tiny').max_steps * settings('tiny').batch_tokens, 'steps x batch_tokens'),
    (('tiny_text',), '0.9M', settings('tiny_text').max_steps * settings('tiny_text').batch_tokens,
     'steps x batch_tokens'),
    (('tiny_long',), '0.5', TINY_LONG_TOKENS / CPU_RATE / 3600,
     'hours, at the tokens a second of tiny/slm/log.jsonl'),
    (('tiny_long',), '13M', TINY_LONG_TOKENS, 'steps x batch_tokens'),
    (('tiny_wide',), '0.6', 38 / 60, 'hours, measured: docs/evaluation.md'),
    (('tiny_wide',), '18.4M', settings('tiny_wide').max_steps * settings('tiny_wide').batch_tokens,
     'steps x batch_tokens'),
    (('tiny_textlm',), '0.5', TEXTLM_TOKENS / CPU_RATE / 3600,
     'hours, at the tokens a second of tiny/slm/log.jsonl'),
    (('tiny_textlm',), '12.3M', TEXTLM_TOKENS, 'steps x batch_tokens'),
    (('tiny_textlm',), '14.5M', 14_487_150, 'printed by interleave.py: tokens of out/tokens/world/train/text'),
    (('tiny_text',), '2.8M', 2_756_928, "scaling/models.py: SHAPES['tiny/2.8M']"),
    (('tiny_text',), '0.4M', 2048 * 192, 'ids x n_embd'),
    (('tiny_text',), '2,048', 2048, 'tiny/tokenizer'),
    (('tiny_text',), '5e-4', 5e-4, 'SIMS A.2'),
    (('tiny_dpo',), '4', 4, 'minutes, measured'),
    (('tiny_dpo',), '25', 25, 'steps, bench/results/tiny_dpo.json: losses at lr 5e-4'),
    (('tiny_dpo',), '3,200', settings('tiny_dpo').max_steps * settings('tiny_dpo').batch, 'steps x batch'),
    (('tiny_dpo',), '18,165', 18165, 'printed by dpo.py config/tiny_dpo.py'),
    (('tiny_dpo',), '1.1M', 1.1e6, 'printed by dpo.py config/tiny_dpo.py: 0.6k tokens/s, 18 s a step'),
    (('papers/wide',), '4', 3e13 / CPU_FLOPS / 60, 'minutes, scaling/plan.py'),
    (('papers/text',), '1', 1, 'minutes, measured by papers/claims.sh'),
]

NO_QUANTITY = re.compile(r"""\[[^]]*\]                          # places in the papers
                             |(?:Figures?|Tables?)\ \d[\d, and]*
                             |\bSIMS\ 7B\b
                             |\b[A-Za-z][\w./-]*             # words, names of models, GPUs, settings, files""", re.X)
NUMBER = re.compile(r'\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?:[kMB]\b| %)?')
SCALE = {'k': 1e3, 'M': 1e6, 'B': 1e9, '%': 0.01}

def numbers_of(name):
    """The quantities in a config's comments, as written; not those of a paper's first line, which has a test below."""
    with open(PATHS[name], encoding='utf-8') as f:
        comments = [token.string for token in tokenize.generate_tokens(f.readline) if token.type == tokenize.COMMENT]
    return {number for comment in comments[name not in TINY:]
            for number in NUMBER.findall(NO_QUANTITY.sub(' ', comment))}

def states(text, value):
    """Whether a number as written ('2.95B', '4 %', '5.9e19', '101,725') is the value, to half of its last digit."""
    mantissa, exponent, suffix = re.fullmatch(r'([\d,.]+)(e-?\d+)?(?: ?([kMB%]))?', text).groups()
    scale = float(f"1{exponent or ''}") * SCALE.get(suffix, 1)
    if not isinstance(value, (int, float)):
        return float(mantissa.replace(',', '')) * scale == value # about
    digits = len(mantissa.partition('.')[2])
    return abs(float(mantissa.replace(',', '')) * scale - value) <= (0.5 * 10 ** -digits * 1.000001) * scale

def test_a_number_is_held_to_its_last_digit():
    for text, value in (('2.95B', 2_949_120_000), ('4 %', 0.037), ('20,746', 20746), ('177', 177.3), ('5e-4', 5e-4)):
        assert states(text, value)
    for text, value in (('2.95B', 2.96e9), ('4 %', 0.047), ('20,746', 20747), ('152', 177.3), ('5e-4', 4e-4)):
        assert not states(text, value)

@pytest.mark.parametrize('name', PATHS)
def test_every_number_in_a_comment_is_listed_and_no_listed_one_is_missing(name):
    assert numbers_of(name) == {text for names, text, *_ in QUANTITIES if name in names}

@pytest.mark.parametrize('text, value, how', [pytest.param(*row, id=f'{names[0]}-{row[0]}')
                                              for names, *row in QUANTITIES])
def test_a_number_in_a_comment_is_true(text, value, how):
    assert states(text, value), f'{text}: {value} by {how}'

@pytest.mark.parametrize('name', TINY)
def test_a_tiny_config_s_first_line_is_the_command_and_the_cost(name):
    script = script_of(name).__name__
    assert re.fullmatch(rf'# python {script}.py config/{name}.py  .*\d (s|min|h) on 2 (CPU )?cores', first_line(name))

@pytest.mark.parametrize('name', [*SIMS, *LATER, *SLAM, *SLAM_DPO])
def test_a_papers_first_line_is_the_command_its_6nd_and_its_hours_at_half_the_peak(name):
    cfg = settings(name)
    script = script_of(name).__name__
    match = re.fullmatch(rf'# (?:python|torchrun --nproc_per_node=(\d)) {script}.py config/{name}.py +'
                         r'([\d.e]+) FLOPs: ([\d.]+) h on (?:(\d) )?(an A5000|\w+) at 50 % (MFU|of its 111 TFLOP/s)',
                         first_line(name))
    n_ranks, stated_flops, stated_hours, n_gpus, gpu, _ = match.groups()
    assert n_ranks == n_gpus
    rate = 0.5 * int(n_gpus or 1) * PEAK[gpu]
    if cfg.max_seconds:
        flops = rate * cfg.max_seconds
    elif name in SLAM_DPO:
        n_pairs = cfg.max_steps * cfg.batch if cfg.max_steps else cfg.max_epochs * 47e3
        start = settings(Path(cfg.init).name)
        flops = 6 * n_params(start.init, 'speech') * n_pairs * 2 * PAIR_TOKENS # both completions, each with its prompt
    else:
        flops = 6 * n_params(cfg.init, cfg.vocab) * tokens_of(name)
    assert states(stated_flops, flops)
    assert states(stated_hours, flops / rate / 3600)

# --------------------------------------------------------------------------------------------------
# the tables that comments cite

CITED = [ # (config, table, row of papers/published.json, what the row says of it)
    ('qwen0.5b-real', 'SIMS 1', 1, {'real': True, 'synthetic': False}),
    ('qwen0.5b-synthetic', 'SIMS 1', 2, {'real': False, 'synthetic': True}),
    ('qwen0.5b', 'SIMS 1', 3, {'real': True, 'synthetic': True}),
    ('llama3.2-3b', 'SIMS 2', 2, {'family': 'llama3.2', 'flops': 5.9e19}),
    ('qwen1.5b', 'SIMS 2', 3, {'params': 1.5e9, 'flops': 2e20}),
    ('qwen3b', 'SIMS 2', 4, {'params': 3e9, 'flops': 2e20}),
    ('slam-real', 'Slam 1', 7, {'model': 'Qwen-0.5B', 'diverse': False, 'synthetic': False}),
    ('slam-diverse', 'Slam 1', 6, {'model': 'Qwen-0.5B', 'diverse': True, 'synthetic': True}),
    ('slam-scaled', 'Slam 3', 14, {'model': 'Slam (scaled)', 'gpus': '2 A100'}),
    ('slam-large', 'Slam 3', 15, {'model': 'Slam (large)', 'gpus': '2 A100'}),
    ('slam-scaled_dpo', 'Slam 3', 14, {'model': 'Slam (scaled)'}),
    ('slam-large_dpo', 'Slam 3', 15, {'model': 'Slam (large)'}),
]

@pytest.mark.parametrize('name', PATHS)
def test_a_cited_table_has_the_run(name):
    paper = 'SIMS' if name in SIMS else 'Slam'
    cited = {f'{paper} {number}' for number in re.findall(r'Table (\d+)', PATHS[name].read_text())}
    assert cited == {table for config, table, *_ in CITED if config == name}

@pytest.mark.parametrize('name, table, row, says', CITED)
def test_a_cited_row_is_that_of_the_run(name, table, row, says):
    [published] = [r for r in published_rows(table) if r['row'] == row]
    assert {key: published.get(key) for key in says} == says

# --------------------------------------------------------------------------------------------------
# the tiny configs

def test_the_tiny_models_that_are_compared_have_one_budget_and_one_data():
    """Each of the three configs is written out, so that each command names one file; these fields must agree."""
    interleaved = settings('tiny_adamw')
    speech = settings('tiny_speech')
    scratch = settings('tiny_scratch')
    text = settings('tiny_text')
    for field in ('data', 'max_steps', 'batch_tokens', 'block_size', 'optimizer', 'lr', 'min_lr', 'warmup', 'schedule',
                  'clip', 'dtype', 'seed'):
        value = getattr(interleaved, field)
        assert getattr(speech, field) == value and getattr(scratch, field) == value, field
    assert interleaved.init == speech.init == scratch.init_config == text.out
    assert scratch.tokenizer == text.tokenizer
    assert len({cfg.out for cfg in (interleaved, speech, scratch, text)}) == 4
