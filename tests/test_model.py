"""
model.py against transformers: the same weights give the same logits, gradients and greedy text, and files go both ways.
The models are small and random, with awkward shapes. Biases and norms are randomized too: transformers leaves them
constant, so a model that dropped one would pass.
"""
import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

import model as model_file
from configurator import Refused
from evaluation.likelihood import document_losses
from hub import folders as hub
from hub.families import FAMILIES, GPTConfig
from kernels import attention_torch, decoding
from model import GPT
from vocab import Vocab

SMALL = dict(num_hidden_layers=2, max_position_embeddings=256, pad_token_id=None, bos_token_id=None, eos_token_id=None)
SMALL_BLOOM = {'n_layer' if key == 'num_hidden_layers' else key: value for key, value in SMALL.items()}
LLAMA3 = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
          'original_max_position_embeddings': 64, 'rope_theta': 1e4}
PLAIN = {'rope_type': 'default', 'rope_theta': 1e4}
YARN = {'rope_type': 'yarn', 'factor': 8.0, 'original_max_position_embeddings': 32, 'beta_fast': 4.0,
        'beta_slow': 1.0, 'rope_theta': 5e4}
SHAPES = { # what differs from model to model
    'qwen2, 14 heads over 2, tied, odd vocabulary': transformers.Qwen2Config(
        vocab_size=321, hidden_size=112, num_attention_heads=14, num_key_value_heads=2, intermediate_size=72,
        rope_parameters={'rope_type': 'default', 'rope_theta': 1e6}, tie_word_embeddings=True, **SMALL),
    'qwen2, no groups, untied': transformers.Qwen2Config(
        vocab_size=256, hidden_size=48, num_attention_heads=4, num_key_value_heads=4, intermediate_size=99,
        rope_parameters=PLAIN, tie_word_embeddings=False, rms_norm_eps=1e-4, **SMALL),
    'llama, 9 heads over 3, tied': transformers.LlamaConfig(
        vocab_size=259, hidden_size=72, num_attention_heads=9, num_key_value_heads=3, intermediate_size=100,
        rope_parameters={'rope_type': 'default', 'rope_theta': 1e5}, tie_word_embeddings=True, **SMALL),
    'llama 3.2, one key head, scaled rotary, wide heads, untied': transformers.LlamaConfig(
        vocab_size=300, hidden_size=42, num_attention_heads=3, num_key_value_heads=1, head_dim=32, intermediate_size=64,
        rope_parameters=LLAMA3, tie_word_embeddings=False, **SMALL),
    'gemma2, window shorter than the text, head 256, soft-caps that bite': transformers.Gemma2Config(
        vocab_size=301, hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=256,
        intermediate_size=60, query_pre_attn_scalar=20, attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
        sliding_window=9, **SMALL | {'num_hidden_layers': 3}),
    'gemma2, windows on other layers': transformers.Gemma2Config(
        vocab_size=301, hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=60, sliding_window=9,
        layer_types=['full_attention', 'sliding_attention', 'sliding_attention'], **SMALL | {'num_hidden_layers': 3}),
    'qwen3, 7 heads of 16 over one, untied': transformers.Qwen3Config(
        vocab_size=321, hidden_size=56, num_attention_heads=7, num_key_value_heads=1, head_dim=16,
        intermediate_size=72, rope_parameters=PLAIN, tie_word_embeddings=False, **SMALL),
    'qwen3, one layer, heads of 128, tied': transformers.Qwen3Config(
        vocab_size=256, hidden_size=40, num_attention_heads=2, num_key_value_heads=2, head_dim=128,
        intermediate_size=72, rope_parameters=PLAIN, tie_word_embeddings=True, **SMALL | {'num_hidden_layers': 1}),
    'qwen3, scaled by YaRN': transformers.Qwen3Config(
        vocab_size=321, hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=72, rope_parameters=YARN, tie_word_embeddings=True, **SMALL),
    'smollm3, 9 heads over 3, rope on 4 of 5 layers': transformers.SmolLM3Config(
        vocab_size=259, hidden_size=72, num_attention_heads=9, num_key_value_heads=3, intermediate_size=64,
        **SMALL | {'num_hidden_layers': 5}),
    'smollm3, a window on the layers without rope, untied': transformers.SmolLM3Config(
        vocab_size=300, hidden_size=48, num_attention_heads=6, num_key_value_heads=2, intermediate_size=64,
        use_sliding_window=True, sliding_window=7, no_rope_layers=[0, 1, 0], tie_word_embeddings=False,
        rope_parameters=PLAIN, **SMALL | {'num_hidden_layers': 3}),
    'olmo2, 9 heads over 3': transformers.Olmo2Config(
        vocab_size=300, hidden_size=72, num_attention_heads=9, num_key_value_heads=3, intermediate_size=64,
        rope_parameters=PLAIN, **SMALL),
    'olmo2, one layer, tied': transformers.Olmo2Config(
        vocab_size=256, hidden_size=48, num_attention_heads=4, intermediate_size=64, rms_norm_eps=1e-6,
        rope_parameters=PLAIN, tie_word_embeddings=True, **SMALL | {'num_hidden_layers': 1}),
    'olmo3, windows shorter than the text, YaRN on the other layers': transformers.Olmo3Config(
        vocab_size=300, hidden_size=60, num_attention_heads=5, num_key_value_heads=5, intermediate_size=64,
        sliding_window=9, rope_parameters={'full_attention': YARN, 'sliding_attention': PLAIN},
        **SMALL | {'num_hidden_layers': 4}),
    'olmo3, one rope, windows on other layers, tied': transformers.Olmo3Config(
        vocab_size=256, hidden_size=48, num_attention_heads=6, num_key_value_heads=2, intermediate_size=64,
        sliding_window=5, layer_types=['full_attention', 'sliding_attention'], tie_word_embeddings=True, **SMALL),
    'gpt_neox, a quarter of each head rotated': transformers.GPTNeoXConfig(
        vocab_size=277, hidden_size=96, num_attention_heads=4, intermediate_size=100,
        rope_parameters=PLAIN | {'partial_rotary_factor': 0.25}, **SMALL),
    'gpt_neox, residuals one after the other, tied': transformers.GPTNeoXConfig(
        vocab_size=277, hidden_size=48, num_attention_heads=6, intermediate_size=64, use_parallel_residual=False,
        rope_parameters=PLAIN | {'partial_rotary_factor': 1.0}, tie_word_embeddings=True, **SMALL),
    'opt': transformers.OPTConfig(
        vocab_size=290, hidden_size=60, num_attention_heads=5, ffn_dim=70, word_embed_proj_dim=60, **SMALL),
    'opt-350m, norms behind, a narrow embedding': transformers.OPTConfig(
        vocab_size=290, hidden_size=60, num_attention_heads=5, ffn_dim=70, word_embed_proj_dim=20,
        do_layer_norm_before=False, **SMALL),
    'bloom, 6 heads': transformers.BloomConfig(vocab_size=270, hidden_size=72, n_head=6, **SMALL_BLOOM),
    'bloom, 4 heads, untied': transformers.BloomConfig(
        vocab_size=256, hidden_size=48, n_head=4, tie_word_embeddings=False, **SMALL_BLOOM)}

TINY = dict(vocab_size=300, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, head_dim=8, n_ffn=48)

@pytest.fixture(scope='module', params=SHAPES)
def pair(request, tmp_path_factory):
    """(reference, model, folder): transformers' model, the GPT read from its folder, and that folder."""
    torch.manual_seed(0)
    reference = transformers.AutoModelForCausalLM.from_config(SHAPES[request.param], attn_implementation='eager')
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(torch.randn_like(p) * (0.3 if p.ndim == 1 else 0.05))
    folder = tmp_path_factory.mktemp('reference')
    reference.save_pretrained(folder)
    return reference.eval(), GPT.from_pretrained(folder), folder

@pytest.fixture(scope='module')
def small():
    torch.manual_seed(1)
    return GPT(GPTConfig(**TINY))

def some_tokens(V, *shape, seed=0):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))

@torch.no_grad()
def logits_of(model, tokens, doc_start=None):
    """Logits (B, T, V) of tokens (B, T) by a GPT or a model of transformers."""
    if isinstance(model, GPT):
        return model.logits(model(tokens, doc_start))
    return model(input_ids=tokens).logits

@pytest.mark.parametrize('backend', [None, 'sdpa'])
def test_documents_that_share_a_beginning_score_as_each_alone(pair, backend, monkeypatch):
    reference, model, _ = pair
    if backend and (model.cfg.window or model.cfg.position == 'alibi' or model.cfg.attn_softcap):
        pytest.skip('documents are apart there')
    monkeypatch.setattr(model, 'attention', backend)
    monkeypatch.setattr(attention_torch, 'QUERIES', 8) # a branch of several blocks, a beginning longer than one
    def ids(seed, n):
        return some_tokens(model.cfg.vocab_size, n, seed=seed).numpy()
    contexts = [ids(0, 13), ids(1, 3), ids(2, 5)]
    documents = []
    for i, context in enumerate(contexts):
        for j, n in enumerate((2, 11, 1)):
            documents.append(np.concatenate([context, ids(10 * i + j, n)]))
    documents += [contexts[0], contexts[2][:1], ids(5, 9)] # the beginning itself, one id, one alone
    for row_tokens in (30, 4096):
        for document, losses in zip(documents, document_losses(model, documents, row_tokens)):
            tokens = torch.from_numpy(document)
            with torch.inference_mode():
                log_p = reference(tokens[None]).logits[0, :-1].log_softmax(-1)
            expected = -log_p.gather(1, tokens[1:, None])[:, 0]
            np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)

def test_logits_equal_transformers(pair):
    reference, model, _ = pair
    tokens = some_tokens(model.cfg.vocab_size, 3, 150)
    expected = logits_of(reference, tokens)
    logits = logits_of(model, tokens)
    assert expected.std() > 0.1 and logits.shape == expected.shape
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()

def test_packed_documents_equal_one_forward_each(pair):
    reference, model, _ = pair
    lengths = [40, 1, 70, 19]
    tokens = some_tokens(model.cfg.vocab_size, 2, 130)
    starts = torch.cat([torch.full((n,), sum(lengths[:i])) for i, n in enumerate(lengths)])
    packed = logits_of(model, tokens, torch.stack([starts, torch.zeros_like(starts)]))
    for i, n in enumerate(lengths):
        begin = sum(lengths[:i])
        alone = logits_of(reference, tokens[:1, begin:begin + n])
        assert (packed[:1, begin:begin + n] - alone).abs().max() < 1e-5 * alone.abs().max()
    assert (packed[1:] - logits_of(reference, tokens[1:])).abs().max() < 1e-4

def test_gradients_equal_transformers(pair):
    reference, model, folder = pair
    tokens = some_tokens(model.cfg.vocab_size, 2, 60)
    targets = some_tokens(model.cfg.vocab_size, 2, 60, seed=1)
    targets[0, :7] = -100
    reference.zero_grad()
    loss = F.cross_entropy(reference(input_ids=tokens).logits.flatten(0, 1), targets.flatten())
    loss.backward()
    model = GPT.from_pretrained(folder)
    losses = model.losses(tokens, None, targets)
    mean = losses.sum() / (targets != -100).sum()
    mean.backward()
    assert losses.shape == (120,) and abs(mean - loss) < 1e-5
    for p in model.parameters():
        p.data = p.grad
    gradients = model._hf_tensors() # by transformers' names
    head = FAMILIES[reference.config.model_type]['names']['head'] # embed_out in Pythia's files
    for name, p in reference.named_parameters():
        name = name.replace('lm_head', head)
        gradient = gradients[name].reshape(p.shape)
        # OPT's key biases shift all scores of a query alike: their gradient is rounding.
        assert (gradient - p.grad).abs().max() < max(1e-4 * p.grad.abs().max(), 1e-9), name

def test_files_round_trip_bytes_and_load_in_transformers(pair, tmp_path):
    reference, model, folder = pair
    model.save_pretrained(tmp_path)
    before = load_file(folder / 'model.safetensors')
    after = load_file(tmp_path / 'model.safetensors')
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]), name
    assert GPT.from_pretrained(tmp_path).cfg == model.cfg
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation='eager')
    assert not any(info.values()), info
    tokens = some_tokens(model.cfg.vocab_size, 2, 100)
    assert torch.equal(logits_of(loaded, tokens), logits_of(reference, tokens))

def test_greedy_generation_equals_full_forwards_and_transformers(pair):
    reference, model, _ = pair
    prompts = [some_tokens(model.cfg.vocab_size, n, seed=n).tolist() for n in (5, 1, 12, 12)]
    new = model.generate(prompts, 15, temperature=0)
    for prompt, new_ids in zip(prompts, new): # one at a time: no padding
        text = torch.tensor([prompt + new_ids])
        assert logits_of(model, text)[0, len(prompt) - 1:-1].argmax(-1).tolist() == new_ids
        expected = reference.generate(torch.tensor([prompt]), max_new_tokens=15, do_sample=False)
        assert new_ids == expected[0, len(prompt):].tolist()
        assert model.generate([prompt], 15, temperature=0) == [new_ids]
    penalized = model.generate(prompts[2:], 15, temperature=0, repetition_penalty=5.0)
    expected = reference.generate(torch.tensor(prompts[2:]), max_new_tokens=15, do_sample=False, repetition_penalty=5.0)
    assert penalized == expected[:, 12:].tolist() and penalized != new[2:]

def test_a_later_token_changes_nothing_before_it(small):
    tokens = some_tokens(300, 1, 50)
    changed = tokens.clone()
    changed[0, 30:] = (changed[0, 30:] + 1) % 300
    before = logits_of(small, tokens)
    after = logits_of(small, changed)
    assert torch.equal(before[:, :30], after[:, :30])
    assert (before[:, 30:] != after[:, 30:]).any(-1).all()

def test_loss_at_init_is_near_ln_V_and_one_batch_can_be_learned():
    torch.manual_seed(0)
    model = GPT(GPTConfig(tied=False, **TINY))
    tokens = some_tokens(300, 4, 32)
    targets = some_tokens(300, 4, 32, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(40):
        with torch.autocast('cpu', torch.bfloat16):
            loss = model.losses(tokens, None, targets).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert abs(losses[0] - math.log(300)) < 0.1 and losses[-1] < 1
    assert not model.embed[300:].any() and not model.head[300:].any() # padding is not touched

def test_bf16_autocast_stays_near_float32(small):
    tokens = some_tokens(300, 2, 40)
    targets = some_tokens(300, 2, 40, seed=1)
    exact = small.losses(tokens, None, targets)
    with torch.autocast('cpu', torch.bfloat16):
        assert (small.losses(tokens, None, targets) - exact).abs().max() < 0.03

@pytest.mark.parametrize('family, flags', [
    pytest.param('bloom', {}, marks=pytest.mark.slow), ('olmo3', {'window': 9, 'windowed': (True, False)})])
def test_the_model_compiles_whole(family, flags):
    """Forward and backward are one graph, which serves rows of any documents with the numbers of eager mode.

    This is tested by SDPA: on a CPU the blocks of `documents` are a list of the documents of the batch, which a graph
    cannot hold.
    """
    torch.manual_seed(0)
    cfg = GPTConfig(family=family, vocab_size=300, n_layer=2, n_head=4, n_embd=32, **flags)
    model = GPT(cfg, attention='sdpa')
    tokens = some_tokens(300, 2, 40)
    targets = some_tokens(300, 2, 40, seed=1)
    compiled = torch.compile(model.loss_sum, fullgraph=True, backend='aot_eager')
    for begin, stance in ((13, 'default'), (29, 'fail_on_recompile')):
        doc_start = torch.arange(40).ge(begin).long().mul(begin).expand(2, 40)
        results = []
        with torch.compiler.set_stance(stance):
            for loss_sum in (model.loss_sum, compiled):
                loss, _ = loss_sum(tokens, doc_start, targets)
                results.append((loss, *torch.autograd.grad(loss, model.parameters())))
        for eager, graph in zip(*results):
            spacing = torch.finfo(torch.float32).eps * eager.abs().max().item() # of the loss, more than 2e-5
            torch.testing.assert_close(graph, eager, rtol=0, atol=0 if family == 'bloom' else max(2e-5, spacing))

def test_shards_are_read_and_written(pair, tmp_path, monkeypatch):
    reference, model, _ = pair
    reference.save_pretrained(tmp_path / 'theirs', max_shard_size='40KB')
    monkeypatch.setattr(hub, 'SHARD_BYTES', 40_000)
    GPT.from_pretrained(tmp_path / 'theirs').save_pretrained(tmp_path / 'ours')
    tokens = some_tokens(model.cfg.vocab_size, 2, 20)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours', attn_implementation='eager')
    for folder in ('theirs', 'ours'):
        assert len(list((tmp_path / folder).glob('model-*.safetensors'))) > 1
    assert torch.equal(logits_of(loaded, tokens), logits_of(reference, tokens))

def test_shards_and_bf16_load_everywhere_and_stale_shards_go(small, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, 'SHARD_BYTES', 10_000)
    small.save_pretrained(tmp_path, dtype=torch.bfloat16)
    files = sorted(tmp_path.glob('model-*.safetensors'))
    assert len(files) > 2 and not (tmp_path / 'model.safetensors').exists()
    assert all(len(load_file(f)) == 1 or f.stat().st_size < 12_000 for f in files)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and loaded.dtype == torch.bfloat16
    for name, p in GPT.from_pretrained(tmp_path).named_parameters():
        assert torch.equal(p, dict(small.named_parameters())[name].bfloat16().float()), name
    monkeypatch.undo()
    small.save_pretrained(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ['config.json', 'generation_config.json', 'model.safetensors']

def test_published_checkpoints_load(small, tmp_path):
    """In slprl/*, keys begin with lm. and the outer vocab_size is the right one."""
    small.save_pretrained(tmp_path)
    weights = load_file(tmp_path / 'model.safetensors')
    save_file({'lm.' + name: t for name, t in weights.items()}, tmp_path / 'model.safetensors')
    base = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps({
        'model_type': 'speech_language_model', 'vocab_size': 300, 'base_config': {**base, 'vocab_size': 151936}}))
    tokens = some_tokens(300, 1, 20)
    assert torch.equal(logits_of(GPT.from_pretrained(tmp_path), tokens), logits_of(small, tokens))

def test_files_of_the_hub_load(tmp_path):
    """Bloom's files leave the prefix out, and Pythia's hold buffers of old transformers."""
    def without_prefix(weights):
        return {name.removeprefix('transformer.'): t for name, t in weights.items()}
    def with_buffers(weights):
        names = ('bias', 'masked_bias', 'rotary_emb.inv_freq')
        return weights | {f'gpt_neox.layers.0.attention.{name}': torch.ones(1) for name in names}
    torch.manual_seed(3)
    for family, change in (('bloom', without_prefix), ('gpt_neox', with_buffers)):
        model = GPT(GPTConfig(family=family, vocab_size=300, n_layer=2, n_embd=32, tied=family == 'bloom'))
        model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / 'model.safetensors')
        save_file(change(weights), tmp_path / 'model.safetensors')
        tokens = some_tokens(300, 1, 20)
        assert torch.equal(logits_of(GPT.from_pretrained(tmp_path), tokens), logits_of(model, tokens))

# {name: (its config.json on the hub, shortened; attributes of the GPTConfig; parameters)}
HUB = {
    'EleutherAI/pythia-160m': (
        {'model_type': 'gpt_neox', 'bos_token_id': 0, 'eos_token_id': 0, 'hidden_act': 'gelu', 'hidden_size': 768,
         'intermediate_size': 3072, 'layer_norm_eps': 1e-5, 'max_position_embeddings': 2048, 'num_attention_heads': 12,
         'num_hidden_layers': 12, 'rotary_emb_base': 10000, 'rotary_pct': 0.25, 'tie_word_embeddings': False,
         'use_parallel_residual': True, 'vocab_size': 50304},
        dict(n_head=12, head_dim=64, n_rope=16, rope_theta=10000, residual='parallel', norm='layer', tied=False),
        162_322_944),
    'facebook/opt-350m': (
        {'model_type': 'opt', 'activation_function': 'relu', 'do_layer_norm_before': False, 'bos_token_id': 2,
         'eos_token_id': 2, 'ffn_dim': 4096, 'hidden_size': 1024, 'max_position_embeddings': 2048,
         'num_attention_heads': 16, 'num_hidden_layers': 24, 'vocab_size': 50272, 'word_embed_proj_dim': 512},
        dict(n_word=512, residual='post', position='learned', activation='relu', tied=True), 331_196_416),
    'bigscience/bloom-560m': (
        {'model_type': 'bloom', 'apply_residual_connection_post_layernorm': False, 'bos_token_id': 1, 'eos_token_id': 2,
         'layer_norm_epsilon': 1e-5, 'n_embed': 1024, 'n_inner': None, 'n_layer': 24, 'num_attention_heads': 16,
         'seq_length': 2048, 'vocab_size': 250880},
        dict(n_layer=24, n_ffn=4096, position='alibi', embed_norm=True, tied=True), 559_214_592),
    'google/gemma-2-2b': (
        {'model_type': 'gemma2', 'attention_bias': False, 'attn_logit_softcapping': 50.0, 'bos_token_id': 2,
         'eos_token_id': 1, 'final_logit_softcapping': 30.0, 'head_dim': 256, 'hidden_act': 'gelu_pytorch_tanh',
         'hidden_activation': 'gelu_pytorch_tanh', 'hidden_size': 2304, 'intermediate_size': 9216,
         'max_position_embeddings': 8192, 'num_attention_heads': 8, 'num_hidden_layers': 26, 'num_key_value_heads': 4,
         'query_pre_attn_scalar': 256, 'rms_norm_eps': 1e-6, 'rope_theta': 10000.0, 'sliding_window': 4096,
         'vocab_size': 256000},
        dict(window=4096, attn_softcap=50.0, logit_softcap=30.0, norm='rms+1', residual='sandwich', tied=True),
        2_614_341_888),
    'Qwen/Qwen3-0.6B-Base': (
        {'model_type': 'qwen3', 'attention_bias': False, 'bos_token_id': 151643, 'eos_token_id': 151643,
         'head_dim': 128, 'hidden_act': 'silu', 'hidden_size': 1024, 'intermediate_size': 3072,
         'max_position_embeddings': 32768, 'max_window_layers': 28, 'num_attention_heads': 16, 'num_hidden_layers': 28,
         'num_key_value_heads': 8, 'rms_norm_eps': 1e-6, 'rope_scaling': None, 'rope_theta': 1000000,
         'sliding_window': None, 'tie_word_embeddings': True, 'use_sliding_window': False, 'vocab_size': 151936},
        dict(head_dim=128, qk_norm='head', qkv_bias=False, tied=True, rope_theta=1e6, window=0), 596_049_920),
    'HuggingFaceTB/SmolLM3-3B-Base': (
        {'model_type': 'smollm3', 'attention_bias': False, 'bos_token_id': 128000, 'eos_token_id': 128001,
         'hidden_act': 'silu', 'hidden_size': 2048, 'intermediate_size': 11008, 'max_position_embeddings': 65536,
         'max_window_layers': 28, 'mlp_bias': False, 'no_rope_layer_interval': 4, 'no_rope_layers': [1, 1, 1, 0] * 9,
         'num_attention_heads': 16, 'num_hidden_layers': 36, 'num_key_value_heads': 4, 'rms_norm_eps': 1e-6,
         'rope_scaling': None, 'rope_theta': 5000000.0, 'sliding_window': None, 'use_sliding_window': False,
         'vocab_size': 128256},
        dict(rotated=(True, True, True, False) * 9, windowed=(False,) * 36, rope_theta=5e6, tied=True, window=0),
        3_075_098_624),
    'allenai/OLMo-2-0425-1B': (
        {'model_type': 'olmo2', 'attention_bias': False, 'eos_token_id': 100257, 'hidden_act': 'silu',
         'hidden_size': 2048, 'intermediate_size': 8192, 'max_position_embeddings': 4096, 'num_attention_heads': 16,
         'num_hidden_layers': 16, 'num_key_value_heads': 16, 'rms_norm_eps': 1e-6, 'rope_scaling': None,
         'rope_theta': 500000, 'tie_word_embeddings': False, 'vocab_size': 100352},
        dict(qk_norm='width', residual='after', norm_eps=1e-6, tied=False, rope_theta=5e5), 1_484_916_736),
    'allenai/Olmo-3-1025-7B': ( # as transformers 4.57 writes it
        {'model_type': 'olmo3', 'attention_bias': False, 'eos_token_id': 100257, 'hidden_act': 'silu',
         'hidden_size': 4096, 'intermediate_size': 11008, 'max_position_embeddings': 65536, 'num_attention_heads': 32,
         'layer_types': ['sliding_attention'] * 3 + ['full_attention'], 'num_hidden_layers': 4,
         'num_key_value_heads': 32, 'rms_norm_eps': 1e-6, 'rope_theta': 500000, 'sliding_window': 4096,
         'rope_scaling': {'attention_factor': 1.2079441541679836, 'beta_fast': 32.0, 'beta_slow': 1.0, 'factor': 8.0,
                          'original_max_position_embeddings': 8192, 'rope_type': 'yarn'},
         'tie_word_embeddings': False, 'vocab_size': 100278},
        dict(window=4096, windowed=(True, True, True, False), layer_ropes=True, window_theta=None,
             yarn=(8.0, 8192, 1.2079441541679836, 32.0, 1.0)), 1_631_047_680)}

@pytest.mark.parametrize('name', HUB)
def test_configs_of_the_hub(name):
    hf, expected, parameters = HUB[name]
    cfg = GPTConfig.from_hf(hf)
    assert {key: getattr(cfg, key) for key in expected} == expected
    assert GPTConfig.from_hf(cfg.to_hf()) == cfg
    with torch.device('meta'):
        assert GPT(cfg).num_params() == parameters

def test_an_order_of_residuals_that_config_json_cannot_say_is_refused():
    with pytest.raises(Refused, match="residual='sandwich' is not opt, which has 'pre' or 'post'"):
        GPTConfig(family='opt', residual='sandwich')

def test_a_softcap_that_is_null_is_none_and_one_that_is_absent_is_the_family_s():
    hf, *_ = HUB['google/gemma-2-2b']
    without = {key: value for key, value in hf.items() if key != 'attn_logit_softcapping'}
    assert GPTConfig.from_hf(without).attn_softcap == GPTConfig(family='gemma2', n_embd=2048).attn_softcap == 50
    cfg = GPTConfig.from_hf(hf | {'attn_logit_softcapping': None})
    assert cfg.attn_softcap == 0
    assert cfg.to_hf()['attn_logit_softcapping'] is None
    assert GPTConfig.from_hf(cfg.to_hf()) == cfg

# What config.json of a family says, and the one line that it is refused with.
CONTRADICTIONS = {
    'rope of too few layers': ('smollm3', {'no_rope_layers': [1, 0]},
                               'no_rope_layers has 2 entries, expected one for each of 4 layers; take the config.json'),
    'rope of too many layers': ('smollm3', {'no_rope_layers': [1, 1, 1, 0] * 2}, 'no_rope_layers has 8 entries'),
    'rope that is no flag': ('smollm3', {'no_rope_layers': [1, 2, 1, 0]}, 'no_rope_layers has 2, expected 1 or 0 for'),
    'windows of too few layers': ('olmo3', {'layer_types': ['full_attention']}, 'layer_types has 1 entries, expected'),
    'a kind of layer': ('olmo3', {'layer_types': ['linear_attention'] * 4},
                        "layer_types has 'linear_attention', expected 'sliding_attention' or 'full_attention' for"),
    'windows where none are used': ('smollm3', {'layer_types': ['sliding_attention'] * 4, 'use_sliding_window': False,
                                                'sliding_window': 9}, 'layer_types has sliding_attention'),
    'a window of no size': ('olmo3', {'sliding_window': None}, 'window must be a positive integer, got 0, where'),
    'a window of a negative size': ('gemma2', {'sliding_window': -1}, 'window must be a positive integer, got -1'),
    'windows of a family without': ('qwen3', {'layer_types': ['sliding_attention'] * 4},
                                    "layer_types has 'sliding_attention', expected 'full_attention' for each layer"),
    'windows of Qwen3': ('qwen3', {'use_sliding_window': True}, 'use_sliding_window True is not supported, expected F'),
    'biases': ('qwen3', {'attention_bias': True}, 'attention_bias True is not supported, expected False'),
    'one rope for all': ('olmo3', {'rope_parameters': {'rope_theta': 1e4}}, 'expected full_attention and sliding_'),
    'a rope for each kind': ('qwen3', {'rope_parameters': {'full_attention': {'rope_theta': 1e4}}},
                             'expected those of all layers'),
    'a theta that is read in two ways': ('olmo3', {'rope_parameters': None, 'rope_theta': 1e4},
                                         'rope_theta 10000.0: transformers 4 takes it for all layers, 5 for'),
    'layers of another number': ('qwen3', {'layer_types': ['full_attention'] * 3}, 'layer_types has 3 entries, exp'),
    'layers that are no list': ('gemma2', {'layer_types': 5}, 'layer_types 5 is not supported, expected a list'),
    'rope that is no list': ('smollm3', {'no_rope_layers': 'all'}, "no_rope_layers 'all' is not supported, exp"),
    'a rope that is a name': ('qwen3', {'rope_scaling': 'yarn'}, "rope_scaling 'yarn': expected an object"),
    'a rope that is a number': ('qwen3', {'rope_parameters': 5}, 'rope_scaling 5: expected an object'),
    'a rope of a kind that is no object': ('olmo3', {'rope_parameters': {'full_attention': 5}},
                                           'rope_parameters 5, {}: expected an object for each kind of layer'),
    'no theta': ('qwen3', {'rope_theta': 0}, 'rope_theta 0 of rope_parameters or rope_scaling: expected a number'),
    'a factor that is no number': ('qwen3', {'rope_parameters': YARN | {'factor': '8'}}, "factor '8' of rope_"),
    'a negative factor': ('olmo3', {'rope_scaling': YARN | {'factor': -8}, 'rope_theta': 5e5}, 'factor -8 of rope_par'),
    'a scaled window': ('olmo3', {'rope_parameters': {'sliding_attention': YARN, 'full_attention': YARN}},
                        "rope_type 'yarn' of sliding_attention is not supported, expected 'default'"),
    'another YaRN': ('qwen3', {'rope_parameters': YARN | {'mscale': 2.0}}, 'mscale 2.0 of yarn is not supported'),
    'YaRN without a factor': ('qwen3', {'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1e4}},
                              "'factor' is missing"),
    'another scaling': ('qwen3', {'rope_scaling': {'rope_type': 'dynamic'}}, "rope_type 'dynamic' is not supported")}

@pytest.mark.parametrize('case', CONTRADICTIONS)
def test_a_config_that_contradicts_itself_is_one_line_that_names_the_key(case):
    family, changes, message = CONTRADICTIONS[case]
    hf = GPTConfig(family=family, vocab_size=300, n_layer=4, n_embd=32).to_hf()
    if 'rope_scaling' in changes:
        hf.pop('rope_parameters', None)
    with pytest.raises(Refused, match=message) as error:
        GPTConfig.from_hf(hf | changes, 'x/config.json')
    assert str(error.value).startswith('x/config.json: ') and '\n' not in str(error.value)

@pytest.mark.parametrize('model_type, extra, what', [
    ('qwen3_5_text', {}, 'Gated DeltaNet layers'), ('qwen3_next', {}, 'Gated DeltaNet layers'),
    ('lfm2', {}, 'short convolutions'), ('gemma3_text', {}, 'q/k norms with weights 1'),
    ('gemma4', {}, 'embeddings in each layer'), ('qwen3_moe', {'num_experts': 128}, 'a mixture of experts'),
    ('olmoe', {'num_experts': 64}, 'a mixture of experts'), ('mixtral', {'num_local_experts': 8}, 'a mixture of exp')])
def test_a_family_that_is_not_near_is_refused_by_name_with_what_it_is(model_type, extra, what):
    with pytest.raises(Refused, match=f"x: model_type '{model_type}' is not supported: it has {what}") as error:
        GPTConfig.from_hf({'model_type': model_type, **extra}, 'x')
    assert '\n' not in str(error.value)

@pytest.mark.parametrize('family', ['qwen3', 'olmo2'])
def test_norms_of_q_and_k_that_are_missing_or_of_another_width_are_named(family, tmp_path):
    GPT(GPTConfig(family=family, **TINY)).save_pretrained(tmp_path)
    name = 'model.layers.1.self_attn.k_norm.weight'
    width = 8 if family == 'qwen3' else 16
    change_tensors({name: torch.ones(5)})(tmp_path)
    with pytest.raises(Refused, match=fr'{name} is \(5,\), expected \({width},\)'):
        GPT.from_pretrained(tmp_path)
    change_tensors({name: None})(tmp_path)
    with pytest.raises(Refused, match=f'{name} is missing'):
        GPT.from_pretrained(tmp_path)

def test_without_no_rope_layers_its_interval_says_which_as_in_transformers():
    hf = transformers.SmolLM3Config(num_hidden_layers=7, no_rope_layer_interval=3).to_dict()
    cfg = GPTConfig.from_hf({key: value for key, value in hf.items() if key != 'no_rope_layers'})
    assert [int(rotated) for rotated in cfg.rotated] == hf['no_rope_layers'] == [1, 1, 0, 1, 1, 0, 1]

def test_a_row_longer_than_the_learned_positions_is_refused():
    model = GPT(GPTConfig(family='opt', vocab_size=300, n_layer=1, n_embd=32, n_positions=16))
    assert model(some_tokens(300, 1, 16)).isfinite().all()
    with pytest.raises(Refused, match='17 tokens in a row, and the model has 16 positions'):
        model(some_tokens(300, 1, 17))

# ---- vocabulary

def a_text_model(tied=False, family='qwen2'):
    torch.manual_seed(2)
    return GPT(GPTConfig(family=family, vocab_size=300, n_layer=1, n_head=2, n_kv_head=1, n_embd=32, head_dim=8,
                         n_ffn=16, tied=tied))

@pytest.mark.parametrize('family', ['qwen2', 'qwen3', 'smollm3', 'olmo2', 'olmo3'])
@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('new_rows', ['hf', 'mean', 'normal'])
def test_a_joint_vocabulary_keeps_text_rows_bit_for_bit(new_rows, tied, family):
    model = a_text_model(tied, family)
    vocab = Vocab('joint', n_text=290, n_units=500, tokenizer='t', units='u')
    old = [t.detach().clone() for t in (model.embed, model.head_weight)]
    model.extend_vocabulary(vocab, new_rows, torch.Generator().manual_seed(0))
    assert model.cfg.vocab_size == 792 and len(model.embed) == 1024 and (model.head is None) == tied
    n_kept = 300 if new_rows == 'hf' else 290 # hf: unused rows of the table are the first units
    for before, after in zip(old, (model.embed, model.head_weight)):
        assert torch.equal(after[:n_kept], before[:n_kept])
        assert not after[792:].any()
        new = after[n_kept:792].detach()
        distance = (new - before[:n_kept].mean(0)).abs().max()
        if new_rows == 'mean':
            assert distance == 0
        elif new_rows == 'hf':
            assert 0 < distance < 1e-5
        else:
            assert distance > 0.01
        if new_rows != 'mean':
            scale = 1e-9 ** 0.5 if new_rows == 'hf' else 1
            ratio = new.std(0) / before[:n_kept].std(0) / scale # of each column
            assert 0.8 < ratio.min() and ratio.max() < 1.25
    assert model.losses(torch.tensor([[5, 791]]), None, torch.tensor([[791, -100]])).isfinite().all()

def test_hf_rows_are_spread_as_transformers_spreads_them(tmp_path):
    model = a_text_model(tied=True)
    model.save_pretrained(tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    reference.resize_token_embeddings(3000, mean_resizing=True)
    model.extend_vocabulary(Vocab('joint', n_text=300, n_units=2698), 'hf', torch.Generator().manual_seed(0))
    expected = reference.get_input_embeddings().weight[300:].detach()
    rows = model.embed[300:3000].detach()
    assert (expected.mean(0) - rows.mean(0)).abs().max() < 1e-7
    assert (torch.cov(expected.T) - torch.cov(rows.T)).abs().max() < 1e-13

def test_a_speech_vocabulary_takes_the_first_rows_or_draws_them():
    vocab = Vocab('speech', n_units=200, units='u')
    old = a_text_model().embed.detach().clone()
    model = a_text_model()
    model.extend_vocabulary(vocab)
    assert torch.equal(model.embed[:202], old[:202]) and not model.embed[202:].any()
    assert (model.cfg.vocab_size, model.cfg.eos_token_id) == (202, 1)
    model = a_text_model()
    model.extend_vocabulary(vocab, 'normal', torch.Generator().manual_seed(0))
    assert (model.embed[:202] != old[:202]).all()

def test_extensions_that_cannot_be_are_refused():
    for args, message in [((Vocab('joint', n_text=301, n_units=5),), 'has 300 rows, fewer than the tokenizer'),
                          ((Vocab('joint', n_text=9, n_units=5), 'zeros'), 'new_rows=zeros')]:
        with pytest.raises(Refused, match=message):
            a_text_model().extend_vocabulary(*args)

# ---- sampling

def test_samples_are_seeded_and_stay_in_the_vocabulary_the_mask_and_top_k(small):
    def sample(seed, **options):
        generator = torch.Generator().manual_seed(seed)
        return small.generate([[3], [4, 5]], 40, generator=generator, **options)
    assert sample(0) == sample(0) != sample(1)
    assert {len(new) for new in sample(0)} == {40}
    hot = sum(sample(2, temperature=1e6) + sample(3, temperature=1e6), []) # nearly uniform
    assert max(hot) < 300 and len(set(hot)) > 100 # never a padded row
    allowed = torch.zeros(300, dtype=torch.bool)
    allowed[100:110] = True
    assert set(sum(sample(0, temperature=1e6, allowed=allowed), [])) <= set(range(100, 110))
    assert sample(0, top_k=1) == sample(0, temperature=1e-6) == sample(0, temperature=0)

@pytest.mark.parametrize('top_k', [3, 99, None])
def test_ids_are_drawn_as_often_as_their_probabilities_say(top_k):
    logits = torch.tensor([0.1, 2.0, -1.0, 1.5, 0.7])
    chosen = decoding.choose(logits.expand(20_000, -1), 0.8, top_k, torch.Generator().manual_seed(0)) # (20000, 1)
    p = (logits / 0.8).softmax(-1)
    p = p.where(logits >= (0.7 if top_k == 3 else -9), 0)
    torch.testing.assert_close(chosen.flatten().bincount(minlength=5) / 20_000, p / p.sum(), rtol=0, atol=0.015)
    assert top_k != 3 or set(chosen.flatten().tolist()) == {1, 3, 4}

def test_repetition_penalty_is_that_of_transformers():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    text = some_tokens(50, 1, 20)
    used = torch.zeros(1, 50, dtype=torch.bool).scatter(1, text, True)
    expected = transformers.RepetitionPenaltyLogitsProcessor(1.3)(text, logits)
    assert torch.equal(decoding.penalize(logits, used, 1.3), expected)

def test_a_prompt_and_what_follows_it_fit_the_models_positions_or_are_refused():
    model = GPT(GPTConfig(family='opt', vocab_size=300, n_layer=1, n_embd=32, n_positions=16))
    assert len(model.generate([[3] * 10, [4]], 7, temperature=0)[0]) == 7 # the last is never read
    with pytest.raises(Refused, match='a prompt of 10 tokens and 8 new ones, and the model has 16 positions'):
        model.generate([[3] * 10, [4]], 8)

@pytest.mark.parametrize('penalty', [1.0, 2.0])
def test_what_is_allowed_is_chosen_as_if_the_rest_had_no_probability(small, penalty):
    allowed = torch.zeros(300, dtype=torch.bool)
    allowed[[0, 7, 150, 151, 299]] = True
    prompt = [3, 150, 299]
    new = small.generate([prompt, [5]], 12, temperature=0, allowed=allowed, repetition_penalty=penalty)[0]
    text = list(prompt)
    for token in new:
        logits = logits_of(small, torch.tensor([text]))[0, -1]
        used = torch.tensor(sorted(set(text)))
        logits[used] = torch.where(logits[used] > 0, logits[used] / penalty, logits[used] * penalty)
        assert token == logits.masked_fill(~allowed, -torch.inf).argmax()
        text.append(token)

def test_a_row_ends_at_its_stop_id(small):
    free = small.generate([[3], [4, 5]], 30, temperature=0, repetition_penalty=1.5)
    stop = free[1][4]
    cut = [new[:new.index(stop) + 1] if stop in new else new for new in free]
    assert len(cut[1]) <= 5
    stopped = small.generate([[3], [4, 5]], 30, temperature=0, repetition_penalty=1.5, stop=[stop])
    assert stopped == cut
    for prompt, message in [([], 'empty prompt'), ([300], 'outside 0..299'), ([-1], 'outside 0..299')]:
        with pytest.raises(Refused, match=message):
            small.generate([[3], prompt], 5)

# ---- counting

def shape(vocab_size, n_layer, n_head, n_kv_head, n_embd, n_ffn, **flags):
    """A GPT without memory, with heads of 64 channels."""
    cfg = GPTConfig(vocab_size=vocab_size, n_layer=n_layer, n_head=n_head, n_kv_head=n_kv_head, n_embd=n_embd,
                    head_dim=64, n_ffn=n_ffn, **flags)
    with torch.device('meta'):
        return GPT(cfg)

def test_parameter_and_flop_counts():
    qwen = shape(502, 24, 14, 2, 896, 4864)
    assert qwen.num_params() == 358_347_904
    assert shape(152167, 24, 14, 2, 896, 4864).num_params() == 494_239_744
    assert shape(502, 30, 9, 3, 576, 1536, family='llama').num_params() == 106_492_608 # SmolLM2, MobileLLM
    assert shape(502, 32, 15, 5, 960, 2560, family='llama').num_params() == 315_117_120
    # Slam, Table 7
    assert shape(502, 12, 12, 12, 768, 3072, family='opt', n_positions=2048).num_params() == 87_015_936
    opt_350m = shape(502, 24, 16, 16, 1024, 4096, family='opt', n_positions=2048, n_word=512, residual='post')
    assert opt_350m.num_params() == 305_714_176
    assert shape(502, 12, 12, 12, 768, 3072, family='gpt_neox', tied=False).num_params() == 85_827_072
    assert shape(502, 24, 16, 16, 1024, 4096, family='gpt_neox', tied=False).num_params() == 303_339_520
    tied = shape(300, 1, 1, 1, 64, 64)
    untied = shape(300, 1, 1, 1, 64, 64, tied=False)
    assert untied.num_params() - tied.num_params() == 300 * 64
    weights = 24 * (896 * (14 + 4) * 64 + 896 * 896 + 3 * 896 * 4864) + 502 * 896 # of matrix products
    assert qwen.flops_per_token(1024) == 6 * weights + 12 * 24 * 896 * 1024
    assert qwen.flops_per_token(1025 / 2) == 6 * weights + 6 * 24 * 896 * 1025

def test_impossible_shapes_are_refused():
    for change, message in [({'n_head': 3}, 'n_head 3 is not a multiple'),
                            ({'head_dim': 7}, '7 channels of head_dim 7 would rotate'),
                            ({'n_layer': 0}, 'n_layer must be a positive'),
                            ({'family': 'bert'}, "family 'bert'"),
                            ({'qkv_bias': False}, 'qkv_bias=False is not qwen2, which has True')]:
        with pytest.raises(Refused, match=message):
            GPTConfig(**TINY | change)

# ---- broken folders

# Each of these functions returns a breakage(folder), or is one.

def change_tensors(changes):
    """Changes tensors of model.safetensors, {name: tensor}; None removes one."""
    def breakage(folder):
        weights = load_file(folder / 'model.safetensors') | changes
        weights = {name: t for name, t in weights.items() if t is not None}
        save_file(weights, folder / 'model.safetensors', {'format': 'pt'})
    return breakage

def leave_two_tensors(folder):
    names = list(load_file(folder / 'model.safetensors'))[2:]
    change_tensors(dict.fromkeys(names))(folder)

def add_another_head(folder):
    embedding = load_file(folder / 'model.safetensors')[EMBED]
    change_tensors({'lm_head.weight': embedding + 1})(folder)

def write(name, data):
    def breakage(folder):
        (folder / name).write_bytes(data)
    return breakage

def remove(name):
    def breakage(folder):
        (folder / name).unlink()
    return breakage

def name_it_a_pickle(folder):
    (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')

def configure(**changes):
    """Changes config.json; a key that becomes 'gone' is removed."""
    def breakage(folder):
        config = json.loads((folder / 'config.json').read_text()) | changes
        config = {key: value for key, value in config.items() if value != 'gone'}
        (folder / 'config.json').write_text(json.dumps(config))
    return breakage

def index(weight_map):
    """Renames the weights to a.safetensors and writes an index."""
    def breakage(folder):
        (folder / 'model.safetensors').rename(folder / 'a.safetensors')
        (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    return breakage

def cut(folder):
    data = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(data[:len(data) // 2])

def split_twice(folder):
    shutil.copy(folder / 'model.safetensors', folder / 'a.safetensors')
    index({NORM: 'a.safetensors', EMBED: 'b.safetensors'})(folder)
    shutil.copy(folder / 'a.safetensors', folder / 'b.safetensors')

def header(text, length=None):
    """Writes a file with the header `text`, whose length is declared as `length`."""
    def breakage(folder):
        declared = (length or len(text)).to_bytes(8, 'little')
        (folder / 'model.safetensors').write_bytes(declared + text.encode() + bytes(256))
    return breakage

ENTRY = '"model.norm.weight": {"dtype": "F32", "shape": [32], "data_offsets": [0, 128]}'
SECOND_ENTRY = ENTRY.replace('[0, 128]', '[128, 256]')
NORM = 'model.norm.weight'
EMBED = 'model.embed_tokens.weight'
UP = 'model.layers.1.mlp.up_proj.weight'
BROKEN = {
    'a tensor is missing': (change_tensors({UP: None}), f'{UP} is missing'),
    'many are missing': (leave_two_tensors, 'and 14 more'),
    'a tensor too much': (change_tensors({'extra': torch.ones(1)}), 'extra is extra'),
    'a shape is wrong': (change_tensors({NORM: torch.ones(5)}), r'norm.weight is \(5,\), expected \(32,\)'),
    'a dtype is wrong': (change_tensors({NORM: torch.ones(32).int()}), 'is I32, expected F32, F16 or BF16'),
    'not finite': (change_tensors({NORM: torch.full((32,), torch.nan)}), 'norm.weight has values that are'),
    'another head': (add_another_head, 'lm_head.weight differs'),
    'cut short': (cut, 'model.safetensors: not a whole safetensors file'),
    'a pickle renamed': (write('model.safetensors', b'\x80\x04\x95' + bytes(99)), 'not a whole'),
    'a pickle': (name_it_a_pickle, 'is a pickle .* convert it once'),
    'a header of 1 GB': (header('{', 10 ** 9), 'not a whole safetensors file .*[Hh]eader ?[Tt]oo ?[Ll]arge'),
    'a header that is no JSON': (header('{"a'), 'not a whole safetensors file'),
    'a tensor twice': (header(f'{{{ENTRY}, {SECOND_ENTRY}}}'), 'not a whole safetensors'),
    'a tensor in two files': (split_twice, 'norm.weight is there twice'),
    'no weights': (remove('model.safetensors'), 'no model.safetensors'),
    'no config': (remove('config.json'), "config.json: no such file; transformers' save_pretrained writes it"),
    'config is no JSON': (write('config.json', b'{"a'), 'config.json: not JSON'),
    'config lacks a field': (configure(hidden_size='gone'), "config.json: 'hidden_size' is missing"),
    'another family': (configure(model_type='mamba'), "model_type 'mamba' is not supported"),
    'another activation': (configure(hidden_act='gelu'), "hidden_act 'gelu' is not supported, expected 'silu'"),
    'another rotary scaling': (configure(rope_scaling={'type': 'linear'}), "rope_type 'linear' is not supported"),
    'heads that do not divide': (configure(num_key_value_heads=3), 'n_head 4 is not a multiple of n_kv_head 3'),
    'an index out of the folder': (index({NORM: '../a.safetensors'}), "'../a.safetensors' is no file name"),
    'an absolute index': (index({NORM: '/etc/a.safetensors'}), 'is no file name of this folder'),
    'an index of nothing': (index({NORM: 'b.safetensors'}), 'b.safetensors: missing, though'),
    'no folder': (shutil.rmtree, 'no such model folder')}

@pytest.mark.parametrize('name', BROKEN)
def test_a_broken_folder_is_one_clear_line(name, small, tmp_path):
    folder = tmp_path / 'x'
    small.save_pretrained(folder)
    breakage, message = BROKEN[name]
    breakage(folder)
    with pytest.raises(Refused, match=message) as error:
        GPT.from_pretrained(folder)
    assert '\n' not in str(error.value) and str(folder) in str(error.value)

@pytest.mark.parametrize('family', FAMILIES)
def test_recomputing_changes_no_gradient_and_selective_repeats_no_product(family):
    torch.manual_seed(0)
    model = GPT(GPTConfig(family=family, vocab_size=300, n_layer=2, n_head=4, n_embd=32))
    x = torch.randint(300, (2, 24))
    flops = {}
    gradients = {}
    for recompute in ('none', 'selective', 'full'):
        for block in model.layers:
            block.recompute = recompute
        model.zero_grad()
        with FlopCounterMode(display=False) as counter:
            model.loss_sum(x, torch.zeros_like(x), x)[0].backward()
        flops[recompute] = counter.get_total_flops()
        gradients[recompute] = [p.grad.clone() for p in model.parameters()]
    assert flops['none'] == flops['selective'] < flops['full']
    assert all(map(torch.equal, gradients['none'], gradients['selective']))
    assert all(map(torch.equal, gradients['none'], gradients['full']))

def test_attention_and_recomputing_are_given_to_the_constructor_or_with_the_folder(small, tmp_path):
    small.save_pretrained(tmp_path)
    models = [GPT(small.cfg, attention='sdpa', recompute='full'),
              GPT.from_pretrained(tmp_path, attention='sdpa', recompute='full')]
    for model in models:
        assert model.attention == 'sdpa'
        assert {block.recompute for block in model.layers} == {'full'}
    for model in (small, GPT.from_pretrained(tmp_path)):
        assert model.attention is None
        assert {block.recompute for block in model.layers} == {'none'}

def test_generate_leaves_weights_as_they_were_also_when_it_is_cut(small, monkeypatch):
    before = {name: (p, p.detach().clone()) for name, p in small.named_parameters()}
    small.generate([[1, 2, 3]], 3)
    def fail(*_):
        raise ZeroDivisionError
    monkeypatch.setattr(model_file, 'choose', fail)
    with pytest.raises(ZeroDivisionError):
        small.generate([[1, 2, 3]], 3)
    for name, p in small.named_parameters():
        parameter, values = before[name]
        assert p is parameter and torch.equal(p, values), name
        assert p.is_contiguous() and not p.is_inference(), name
    small.loss_sum(*torch.ones(3, 1, 4, dtype=torch.long))[0].backward() # trains on
    assert small.layers[0].qkv.weight.grad.is_contiguous()
    small.zero_grad()

# ---- decoding

@torch.no_grad()
def steps_of(model, prompts, new, decode):
    """Logits (B, T, V) before each of the new ids (B, T), which are fed to Steps one after the other."""
    P = max(map(len, prompts))
    begin = torch.tensor([[P - len(prompt)] for prompt in prompts])
    tokens = torch.tensor([[0] * (P - len(prompt)) + prompt for prompt in prompts])
    cache = decoding.Cache(model, len(prompts), P + new.size(1), begin if begin.any() else None)
    doc_start = torch.where(torch.arange(P) < begin, 0, begin)
    step = decoding.Steps(model, cache, decode)
    hidden = [model(tokens, doc_start, cache)[:, -1]]
    hidden += [step(new[:, t:t + 1], P + t).clone() for t in range(new.size(1) - 1)]
    return model.logits(torch.stack(hidden, 1))

@pytest.mark.parametrize('decode', ['eager', 'graph'])
@pytest.mark.parametrize('lengths', [(11, 11), (2, 13, 7)])
def test_a_step_has_the_logits_of_the_full_forward(pair, lengths, decode):
    """'graph' is what a CUDA graph holds: all shapes fixed, the position in memory."""
    _, model, _ = pair
    prompts = [some_tokens(model.cfg.vocab_size, n, seed=n).tolist() for n in lengths]
    new = some_tokens(model.cfg.vocab_size, len(lengths), 12, seed=9)
    logits = steps_of(model, prompts, new, decode)
    for row, prompt in enumerate(prompts):
        text = torch.tensor([prompt + new[row].tolist()])
        expected = logits_of(model, text)[0, len(prompt) - 1:-1]
        assert (logits[row] - expected).abs().max() < 1e-5 * expected.abs().max()

def test_a_compiled_step_has_the_same_ids_and_compiles_for_one_row_and_for_many(small, monkeypatch):
    torch_compile = torch.compile
    n_graphs = []
    def backend(graph, _):
        n_graphs.append(1)
        return graph.forward
    monkeypatch.setattr(torch, 'compile', lambda f, options, **named: torch_compile(f, backend=backend, **named))
    for prompts in ([[3, 4]], [[5, 6, 7]], [[3, 4], [5, 6]], [[3, 4], [5, 6], [7, 8]]):
        assert small.generate(prompts, 9, decode='compile', temperature=0) == small.generate(prompts, 9, temperature=0)
    assert len(n_graphs) == 2

def test_tokens_come_one_after_the_other_and_none_after_a_stop_id(small):
    whole = small.generate([[3], [4, 5]], 20, temperature=0, repetition_penalty=1.5)
    stream = small.stream([[3], [4, 5]], 20, temperature=0, repetition_penalty=1.5, stop=[whole[1][4]])
    first = next(stream)
    assert first == [whole[0][0], whole[1][0]]
    rest = list(stream)
    end = whole[1].index(whole[1][4])
    assert [ids[1] for ids in rest[:end]] == whole[1][1:end + 1] and rest[end][1] is None

def test_a_stream_that_is_left_gives_the_weights_back(small):
    stream = small.stream([[3], [4, 5]], 20)
    next(stream)
    stream.close()
    assert all(p.is_contiguous() for p in small.parameters())

def test_an_unknown_way_to_decode_is_refused(small):
    with pytest.raises(Refused, match="decode is 'fast', expected auto, eager, graph, compile"):
        small.generate([[3]], 5, decode='fast')

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_the_gate_and_its_gradient_are_those_of_autograd(dtype):
    h = torch.randn(3, 5, 14, generator=torch.Generator().manual_seed(0)).to(dtype)
    dy = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = []
    for f in (model_file._SwiGLU.apply, lambda h: F.silu(h[..., :7]) * h[..., 7:]):
        leaf = h.clone().requires_grad_()
        y = f(leaf)
        y.backward(dy)
        results.append((y.detach(), leaf.grad))
    for ours, autograds in zip(*results):
        torch.testing.assert_close(ours, autograds, rtol=0, atol=0)
