"""
Training by train.py itself through the Triton kernels, attention and cross-entropy, in float32: the losses are those of
the CPU's own code path, two processes make the steps of one, and torch.compile makes one graph of the model.
"""
from pathlib import Path

import pytest
import torch
from test_kernels import rows_of
from test_train import make_corpus, on_ranks
from test_train import rows_of as log_of

import train
from configurator import configure
from files import write_json
from hub.families import GPTConfig
from hub.tokenizer import TextTokenizer
from kernels import cross_entropy as ce
from model import GPT

ROOT = Path(__file__).parents[2]
T = 32 # tokens a row

@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp('corpus') / 'made', TextTokenizer(ROOT / 'tiny/tokenizer'))

def cross_entropy_by_triton(monkeypatch):
    """As on a GPU. Attention has a setting for this."""
    monkeypatch.setattr(ce, '_passes', lambda device: ce._pass_triton)
    monkeypatch.setattr(ce, '_chunks', lambda x, targets: [slice(0, len(x))])

def log_of_a_run(corpus, out_dir, **changes):
    """config/tiny_text.py on a joint vocabulary, with 2 rows of T tokens a step instead of 8 of 512 -> its log."""
    settings = dict(
        data=corpus, sources=('text', 'speech', 'interleaved'), vocab='joint', tokenizer=ROOT / 'tiny/tokenizer',
        block_size=T, batch_tokens=2 * T, micro_batch=2, device='cpu', dtype='float32', eval_rows=1, out=out_dir)
    settings |= changes
    arguments = [f'--{key}={value}' for key, value in settings.items()]
    train.main(configure(train.Config, [str(ROOT / 'config/tiny_text.py'), *arguments]))
    return log_of(out_dir)

def assert_same_losses(a, b):
    """Two logs, whose last row is the evaluation."""
    *steps, (last_a, last_b) = zip(a, b, strict=True)
    for row_a, row_b in steps:
        for name in ('loss', 'grad_norm'):
            assert row_a[name] == pytest.approx(row_b[name], abs=1e-4), (row_a['step'], name)
    for val_a, val_b in zip(last_a['val'].values(), last_b['val'].values(), strict=True):
        assert val_a['loss'] == pytest.approx(val_b['loss'], abs=1e-4)

def test_tiny_trains_as_by_the_reference_path(corpus, tmp_path, monkeypatch):
    """20 steps of tiny with 2 of its 6 layers."""
    reference = log_of_a_run(corpus, tmp_path / 'reference', max_steps=20, n_layer=2)
    cross_entropy_by_triton(monkeypatch)
    log = log_of_a_run(corpus, tmp_path / 'triton', max_steps=20, n_layer=2, attention='triton')
    assert log[19]['loss'] < log[0]['loss'] - 2
    assert_same_losses(reference, log)

OTHER_FAMILIES = {
    'gemma2': dict(n_head=4, n_kv_head=2, head_dim=256, attn_scalar=1, attn_softcap=1.0, window=5, logit_softcap=2.0),
    'bloom': dict(n_head=3),
    'qwen3': dict(n_head=3, n_kv_head=1, head_dim=32), # norms of q and k
    'smollm3': dict(n_head=6, n_kv_head=2, window=5, rotated=(True, False)), # a window on the layer without rope
    'olmo3': dict(n_head=3, window=5, windowed=(True, False), window_theta=1e3),
}

SLOW = 'bloom', 'qwen3', 'smollm3' # what is new in them is in others too

@pytest.mark.parametrize('family', [
    pytest.param(family, marks=pytest.mark.slow if family in SLOW else []) for family in OTHER_FAMILIES])
def test_other_families_train_as_by_the_reference_path(family, corpus, tmp_path, monkeypatch):
    shape = GPTConfig(family=family, n_layer=2, n_embd=48, **OTHER_FAMILIES[family])
    write_json(tmp_path / 'config.json', shape.to_hf())
    changes = dict.fromkeys(train.SCRATCH)
    changes |= dict(init_config=tmp_path, max_steps=4, lr=1e-2)
    reference = log_of_a_run(corpus, tmp_path / 'reference', **changes)
    cross_entropy_by_triton(monkeypatch)
    log = log_of_a_run(corpus, tmp_path / 'triton', attention='triton', **changes)
    assert_same_losses(reference, log)

def test_two_processes_make_the_steps_of_one(corpus, tmp_path, monkeypatch):
    cross_entropy_by_triton(monkeypatch)
    changes = dict(n_layer=1, n_head=2, n_kv_head=1, n_embd=32, head_dim=16, n_ffn=32, max_steps=3, attention='triton')
    log = log_of_a_run(corpus, tmp_path / 'one', **changes)
    def train_on_a_rank(rank):
        return log_of_a_run(corpus, tmp_path / 'two', micro_batch=1, **changes)
    assert on_ranks(2, train_on_a_rank) == [0, 0]
    assert_same_losses(log, log_of(tmp_path / 'two'))

def test_the_model_compiles_whole(monkeypatch):
    """Forward and backward are one graph, the same one for rows of any documents, with the numbers of eager."""
    cross_entropy_by_triton(monkeypatch)
    torch.manual_seed(0)
    shape = OTHER_FAMILIES['gemma2'] | dict(head_dim=12)
    model = GPT(GPTConfig(family='gemma2', vocab_size=300, n_layer=2, n_embd=48, **shape))
    model.attention = 'triton'
    compiled = torch.compile(model.loss_sum, fullgraph=True, backend='aot_eager')
    packed = [(rows_of([13, 1, 18], [32]), 'default'), (rows_of([5, 27], [16, 16]), 'fail_on_recompile')]
    for doc_start, stance in packed:
        tokens, targets = torch.randint(300, (2, 2, T), generator=torch.Generator().manual_seed(1))
        results = []
        for loss_sum in (model.loss_sum, compiled):
            with torch.compiler.set_stance(stance):
                loss, _ = loss_sum(tokens, doc_start, targets)
                results.append((loss, *torch.autograd.grad(loss, model.parameters())))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
