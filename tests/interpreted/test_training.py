"""
Training through the Triton kernels, attention and cross-entropy, by train.py itself: the losses are those of the CPU's own
path, two processes make the steps of one, and torch.compile takes the model whole. In float32.
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

def by_triton(monkeypatch):
    """The passes over the logits too; attention has a setting."""
    monkeypatch.setattr(ce, '_passes', lambda device: ce._pass_triton)
    monkeypatch.setattr(ce, '_chunks', lambda x, targets: [slice(0, len(x))]) # as on a GPU

def log_of_a_run(corpus, out_dir, **changes):
    """config/tiny_text.py on a joint vocabulary, with 2 rows of T tokens a step instead of 8 of 512."""
    changes = dict(data=corpus, sources=('text', 'speech', 'interleaved'), vocab='joint', tokenizer=ROOT / 'tiny/tokenizer',
                   block_size=T, batch_tokens=2 * T, micro_batch=2, device='cpu', dtype='float32', eval_rows=1,
                   out=out_dir) | changes
    train.main(configure(train.Config, [str(ROOT / 'config/tiny_text.py'), *(f'--{k}={v}' for k, v in changes.items())]))
    return log_of(out_dir)

def assert_same_losses(a, b):
    *steps, last = zip(a, b, strict=True)
    for x, y in steps:
        for name in ('loss', 'grad_norm'):
            assert x[name] == pytest.approx(y[name], abs=1e-4), (x['step'], name)
    for x, y in zip(*(row['val'].values() for row in last), strict=True):
        assert x['loss'] == pytest.approx(y['loss'], abs=1e-4)

def test_tiny_trains_as_by_the_reference_path(corpus, tmp_path, monkeypatch):
    """20 steps of tiny with 2 of its 6 layers."""
    reference = log_of_a_run(corpus, tmp_path / 'reference', max_steps=20, n_layer=2)
    by_triton(monkeypatch)
    ours = log_of_a_run(corpus, tmp_path / 'triton', max_steps=20, n_layer=2, attention='triton')
    assert ours[19]['loss'] < ours[0]['loss'] - 2
    assert_same_losses(reference, ours)

OTHERS = {'gemma2': dict(n_head=4, n_kv_head=2, head_dim=256, attn_scalar=1, attn_softcap=1.0, window=5, logit_softcap=2.0),
          'bloom': dict(n_head=3)}

@pytest.mark.parametrize('family', OTHERS)
def test_other_families_train_as_by_the_reference_path(family, corpus, tmp_path, monkeypatch):
    write_json(tmp_path / 'config.json', GPTConfig(family=family, n_layer=2, n_embd=48, **OTHERS[family]).to_hf())
    changes = dict.fromkeys(train.SCRATCH) | dict(init_config=tmp_path, max_steps=4, lr=1e-2)
    reference = log_of_a_run(corpus, tmp_path / 'reference', **changes)
    by_triton(monkeypatch)
    assert_same_losses(reference, log_of_a_run(corpus, tmp_path / 'triton', attention='triton', **changes))

def test_two_processes_make_the_steps_of_one(corpus, tmp_path, monkeypatch):
    by_triton(monkeypatch)
    changes = dict(n_layer=1, n_head=2, n_kv_head=1, n_embd=32, head_dim=16, n_ffn=32, max_steps=3, attention='triton')
    one = log_of_a_run(corpus, tmp_path / 'one', **changes)
    assert on_ranks(2, lambda rank: log_of_a_run(corpus, tmp_path / 'two', micro_batch=1, **changes), limit=120) == [0, 0]
    assert_same_losses(one, log_of(tmp_path / 'two'))

def test_the_model_compiles_whole(monkeypatch):
    """Forward and backward are one graph, the same one for rows of any documents, with the numbers of eager."""
    by_triton(monkeypatch)
    torch.manual_seed(0)
    model = GPT(GPTConfig(family='gemma2', vocab_size=300, n_layer=2, n_embd=48, **OTHERS['gemma2'] | {'head_dim': 12}))
    model.attention = 'triton'
    compiled = torch.compile(model.loss_sum, fullgraph=True, backend='aot_eager')
    for rows, stance in ((rows_of([13, 1, 18], [32]), 'default'), (rows_of([5, 27], [16, 16]), 'fail_on_recompile')):
        tokens, targets = torch.randint(300, (2, 2, T), generator=torch.Generator().manual_seed(1))
        found = []
        for loss_sum in (model.loss_sum, compiled):
            with torch.compiler.set_stance(stance):
                loss, _ = loss_sum(tokens, rows, targets)
                found.append((loss, *torch.autograd.grad(loss, model.parameters())))
        assert all(map(torch.equal, *found))
