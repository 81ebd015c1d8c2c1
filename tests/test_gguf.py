"""
training/gguf.py: llama.cpp gives our ids. What is compared with llama.cpp itself needs the packages gguf and xllamacpp
and is skipped without them.
"""
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch
from small import K, make_tokenizer

from configurator import Refused
from hub.families import GPTConfig
from hub.folders import vocabulary
from model import GPT
from training.export import Config, main
from training.gguf import (
    FAMILIES,
    check_shape,
    gguf_tensors,
    permuted,
    special_ids,
    split_name,
    token_table,
    tokenizer_fields,
    write_gguf,
)
from vocab import Vocab

ROOT = Path(__file__).parents[1]
SLM = str(ROOT / 'tiny' / 'slm')
QWEN3 = {'family': 'qwen3', 'head_dim': 32}
LLAMA = {'family': 'llama', 'head_dim': 32, 'tied': False, 'rope_scaling': (32.0, 1.0, 4.0, 64)}

def random_model(vocab_size, **shape):
    """A GPT whose greedy choices are far from ties."""
    torch.manual_seed(1)
    shape = {'n_layer': 2, 'n_head': 4, 'n_kv_head': 2, 'n_embd': 64, 'n_ffn': 96, **shape}
    model = GPT(GPTConfig(vocab_size=vocab_size, **shape))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(0.3 * torch.randn_like(p) + ('norm' in name))
        model._clear_padding()
    return model.eval()

def read_spec(folder):
    return json.loads(Path(folder, 'tokenizer.json').read_text(encoding='utf-8'))

# --------------------------------------------------------------------------------------------------
# without the package

def test_permuted_channels_rotated_by_neighbors_give_the_same_products():
    """llama.cpp's llama rotates channels 2i and 2i + 1; ours, and Hugging Face's files, i and i + D/2."""
    H, D, C = 3, 8, 5
    angle = torch.arange(1, D // 2 + 1).float()
    def by_halves(x):
        a, b = x.unflatten(-1, (2, D // 2)).unbind(-2)
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)
    def by_neighbors(x):
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (D // 2, 2))) * torch.polar(
            torch.ones(D // 2), angle)).flatten(-2)
    torch.manual_seed(0)
    q, k = torch.randn(2, H * D, C)
    x = torch.randn(C)
    ours = (by_halves((q @ x).view(H, D)) * (k @ x).view(H, D)).sum(-1)
    theirs = (by_neighbors((permuted(q, H) @ x).view(H, D).contiguous()) * (permuted(k, H) @ x).view(H, D)).sum(-1)
    torch.testing.assert_close(theirs, ours)
    assert not torch.equal(permuted(q, H), q)

def test_all_weights_of_both_families_have_a_name_in_llama_cpp():
    qwen = gguf_tensors(random_model(30))
    layer = {'attn_norm', 'ffn_norm', 'attn_q', 'attn_k', 'attn_v', 'attn_output', 'ffn_gate', 'ffn_up', 'ffn_down'}
    expected = {f'blk.1.{name}.weight' for name in layer} | {f'blk.1.attn_{x}.bias' for x in 'qkv'}
    assert {name for name in qwen if name.startswith('blk.1.')} == expected
    assert {name for name in qwen if not name.startswith('blk.')} == {'token_embd.weight', 'output_norm.weight'}
    llama = random_model(30, **LLAMA)
    tensors = gguf_tensors(llama)
    assert {name for name in tensors if not name.startswith('blk.')} == {
        'token_embd.weight', 'output_norm.weight', 'output.weight', 'rope_freqs.weight'}
    hf = llama._hf_tensors()
    assert torch.equal(tensors['blk.0.attn_k.weight'], permuted(hf['model.layers.0.self_attn.k_proj.weight'], 2))
    assert torch.equal(tensors['blk.0.attn_v.weight'], hf['model.layers.0.self_attn.v_proj.weight'])

def test_the_norms_of_q_and_k_have_a_name_in_llama_cpp():
    model = random_model(30, **QWEN3)
    tensors = gguf_tensors(model)
    assert torch.equal(tensors['blk.1.attn_k_norm.weight'], model.layers[1].qk_norm[32:])
    assert torch.equal(tensors['blk.0.attn_q.weight'], model.layers[0].qkv.weight[:128])
    check_shape(model.cfg, tensors, 'q8_0')

def test_long_wavelengths_are_stretched_by_the_factor_of_rope_scaling():
    factors = gguf_tensors(random_model(30, **LLAMA))['rope_freqs.weight']
    assert factors[0] == 1 and factors[-1] == 32 and factors.diff().min() >= 0 and len(factors) == 16

@pytest.mark.parametrize('shape, dtype, message', [
    ({'family': 'gpt_neox', 'n_kv_head': 4}, 'bfloat16', 'a gpt_neox model: GGUF files are written of llama, qwen2, q'),
    ({'family': 'olmo2'}, 'bfloat16', 'a olmo2 model'),
    ({**QWEN3, 'yarn': (8.0, 64, 1.2, 32, 1)}, 'bfloat16', 'qwen3 with rope_scaling'),
    ({'head_dim': 32}, 'bfloat16', '4 heads of 32: .* sum to the 64 channels'),
    ({'rope_scaling': (32.0, 1.0, 4.0, 64)}, 'bfloat16', 'qwen2 with rope_scaling'),
    ({'n_ffn': 40}, 'q8_0', 'rows of 40: q8_0 takes multiples of 32')])
def test_what_llama_cpp_would_compute_otherwise_is_refused(shape, dtype, message):
    model = random_model(30, **shape)
    tensors = gguf_tensors(model) if model.cfg.family in FAMILIES else {}
    with pytest.raises(Refused, match=message):
        check_shape(model.cfg, tensors, dtype)

def test_float16_is_refused_where_weights_do_not_fit():
    with pytest.raises(Refused, match='x has values that float16 cannot hold'):
        check_shape(GPTConfig(vocab_size=30, n_layer=1, n_head=1, n_embd=8), {'x': torch.full((1, 1), 1e5)}, 'float16')

def test_llama_cpp_splits_text_in_the_four_ways_that_it_has_names_for(tmp_path):
    make_tokenizer(tmp_path)
    spec = read_spec(tmp_path)
    assert split_name(spec, 'x') == 'gpt-2'
    digits = [{'type': 'Digits', 'individual_digits': True}, spec['pre_tokenizer']]
    assert split_name({**spec, 'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': digits}}, 'x') == 'smollm'
    qwen2 = read_spec(SLM)
    assert split_name(qwen2, 'x') == 'qwen2'
    llama3 = json.loads(json.dumps(qwen2).replace(r'|\\p{N}|', r'|\\p{N}{1,3}|'))
    llama3['model']['ignore_merges'] = True
    assert split_name(llama3, 'x') == 'llama-bpe'

@pytest.mark.parametrize('change', [
    {'normalizer': {'type': 'Lowercase'}},
    {'pre_tokenizer': None},
    {'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True, 'use_regex': True}},
    {'pre_tokenizer': {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'first', 'split': False}},
    {'model': {'type': 'BPE', 'vocab': {'a': 0}, 'merges': []}},
    {'model': {'type': 'WordPiece', 'vocab': {}}}])
def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused(tmp_path, change):
    make_tokenizer(tmp_path)
    with pytest.raises(Refused, match='x: llama.cpp would split text otherwise'):
        split_name(read_spec(tmp_path) | change, 'x')

def test_merges_must_be_ignored_where_and_only_where_llama_cpp_does(tmp_path):
    make_tokenizer(tmp_path)
    spec = read_spec(tmp_path)
    spec['model']['ignore_merges'] = True
    with pytest.raises(Refused, match='would split text otherwise'):
        split_name(spec, 'x')

def test_ids_are_normal_control_user_defined_or_unused():
    texts, types = token_table(read_spec(SLM), 2553)
    assert (texts[2047], types[2047]) == ('<|endoftext|>', 3)
    assert (texts[2048], types[2048]) == ('<Un0>', 4)
    assert (texts[2548:2550], types[2548:2550]) == (['<speech>', '<text>'], [4, 4])
    assert texts[2550:] == ['[PAD2550]', '[PAD2551]', '[PAD2552]'] and types[2550:] == [5, 5, 5]
    assert set(types[:2047]) == {1}

def test_what_begins_and_ends_a_text(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    assert special_ids(Vocab('speech', n_units=K), None, None) == (1, 1, True)
    assert special_ids(tokenizer.vocab, tokenizer, None) == (256, 256, False)
    tokenizer.first = [7]
    assert special_ids(tokenizer.vocab, tokenizer, None) == (7, 256, True)
    tokenizer.first = [7, 8]
    with pytest.raises(Refused, match='puts 2 ids before a text'):
        special_ids(tokenizer.vocab, tokenizer, None)
    tokenizer.eot = None
    with pytest.raises(Refused, match='names no eos_token'):
        special_ids(tokenizer.vocab, tokenizer, None)

def test_a_speech_vocabulary_has_units_and_a_merge_that_never_applies():
    fields = tokenizer_fields(random_model(K + 2), Vocab('speech', n_units=K), None)
    assert fields['tokens'] == ['<PAD>', '<S>', *(f'<Un{u}>' for u in range(K))]
    assert fields['token_type'] == [3, 3] + K * [4]
    assert fields['merges'] == ['<PAD> <S>'] and fields['padding_token_id'] == 0

def test_without_the_package_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gguf', None)
    with pytest.raises(Refused, match='pip install gguf=='):
        main(Config(model=SLM, gguf=str(tmp_path / 'x.gguf')))
    assert not list(tmp_path.iterdir())

# --------------------------------------------------------------------------------------------------
# with it

@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_file_read_back_has_the_weights_and_the_shape(tmp_path, dtype):
    gguf = pytest.importorskip('gguf')
    path = tmp_path / 'new' / 'x.gguf'
    vocab = Vocab('speech', n_units=K)
    model = random_model(vocab.size, **LLAMA, norm_eps=1e-5)
    write_gguf(path, model, vocab, None, 'x', dtype)
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields['general.architecture'] == 'llama' and fields['llama.attention.key_length'] == 32
    assert fields['llama.attention.layer_norm_rms_epsilon'] == pytest.approx(1e-5)
    assert fields['tokenizer.ggml.tokens'][2] == '<Un0>' and fields['tokenizer.ggml.add_bos_token'] is True
    assert json.loads(fields['nanoslm.vocab'])['n_units'] == K
    expected = gguf_tensors(model)
    assert {tensor.name for tensor in reader.tensors} == expected.keys()
    for tensor in reader.tensors:
        weight = expected[tensor.name].detach()
        if weight.ndim == 2:
            weight = weight.to(getattr(torch, dtype)).float()
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert torch.equal(torch.tensor(values).view(weight.shape), weight), tensor.name

@contextmanager
def llama_cpp(path):
    """A function that asks llama.cpp's server, which has loaded the file."""
    xllamacpp = pytest.importorskip('xllamacpp')
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx = 256
    settings.port = 0
    settings.verbosity = -1
    settings.cpuparams.n_threads = 1
    server = xllamacpp.Server(settings)
    def ask(what, **body):
        request = Request(f'{server.listening_address}/{what}', json.dumps(body).encode(),
                          {'Content-Type': 'application/json'})
        return json.load(urlopen(request))
    yield ask

def prompts_of(vocab, tokenizer):
    """{what it is: (ids, text for llama.cpp)}"""
    units = [u % vocab.n_units for u in (3, 49, 77, 12, 5, 400)]
    ids = vocab.unit_to_token(units).tolist()
    written = ''.join(f'<Un{u}>' for u in units)
    if vocab.kind == 'speech':
        return {'units': ([vocab.bos, *ids], written)}
    text = "Tom had 2 red kites. He'd gone"
    text_ids = tokenizer.encode(text)
    return {'text': (text_ids, text),
            'units': ([vocab.speech, *ids], f'<speech>{written}'),
            'mixed': ([*text_ids, vocab.speech, *ids, vocab.text, *tokenizer.encode(' It was')],
                      f'{text}<speech>{written}<text> It was')}

TEXTS = ["She'LL count 1234 sheep before 5:30!", " It was  two\n\nold BARNS. \r\n", 'caf\u00e9 \u65e5\u672c \U0001f600',
         "don\u2019t \u2014 x_1+=\u00bd\t\tY", '  ']

@pytest.mark.parametrize('kind', ['shipped', 'speech', 'llama', 'qwen3'])
def test_llama_cpp_says_what_we_say_on_text_units_and_both(tmp_path, kind):
    pytest.importorskip('gguf')
    pytest.importorskip('xllamacpp')
    folder = SLM
    if kind != 'shipped':
        text = make_tokenizer(tmp_path / 'text')
        vocab = Vocab('speech', n_units=K) if kind == 'speech' else Vocab('joint', text.size, K, text.hash)
        folder = str(tmp_path / 'model')
        shape = {'llama': LLAMA, 'qwen3': QWEN3}.get(kind, {})
        random_model(vocab.size, **shape).save_pretrained(folder, vocab, tmp_path / 'text')
    main(Config(model=folder, gguf=str(tmp_path / 'x.gguf'), dtype='float32'))
    vocab, tokenizer = vocabulary(folder)
    model = GPT.from_pretrained(folder).eval()
    stop = vocab.bos if vocab.kind == 'speech' else tokenizer.eot
    with llama_cpp(tmp_path / 'x.gguf') as ask:
        for what, (ids, written) in prompts_of(vocab, tokenizer).items():
            [ours] = model.generate([ids], 24, temperature=0, stop=(stop,))
            for prompt in (ids, written):
                answer = ask('completion', prompt=prompt, n_predict=24, temperature=0, return_tokens=True)
                assert answer['tokens'] == ours, what
        if tokenizer:
            for text in TEXTS:
                ids = ask('tokenize', content=text, add_special=True, parse_special=False)['tokens']
                assert ids == [*tokenizer.first, *tokenizer.encode(text)], text
