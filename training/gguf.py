"""
A model as one GGUF file, which llama.cpp and what is built on it (on telephones too) run.

The layout is that of llama.cpp's architectures `llama`, `qwen2` and `qwen3`. Its tokenizer is byte-level BPE with one
of a few ways to split text, which a file can only name (SPLITS); another tokenizer is refused, for llama.cpp would
give other ids without a word. Units are user-defined tokens, so that llama.cpp takes <Un5> for a unit wherever it is
written.
"""
import json
import tempfile
from math import prod
from pathlib import Path

import numpy as np
import torch

from configurator import Refused, refuse_unwritable
from files import atomically, read_json
from hub.tokenizer import QWEN2_SPLIT, bytes_of_characters, export_tokenizer, merges_of
from kernels.positions import rope_frequencies

PACKAGE = 'gguf==0.19.0'
FAMILIES = ('llama', 'qwen2', 'qwen3')
TYPES = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16', 'q8_0': 'Q8_0'} # of tables and matrices
BLOCK = 32 # weights of a row that share a scale in Q8_0

TOP_NAMES = {'model.embed_tokens': 'token_embd', 'model.norm': 'output_norm', 'lm_head': 'output'}
LAYER_NAMES = {
    'input_layernorm': 'attn_norm', 'post_attention_layernorm': 'ffn_norm',
    'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output', 'self_attn.q_norm': 'attn_q_norm', 'self_attn.k_norm': 'attn_k_norm',
    'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up', 'mlp.down_proj': 'ffn_down'}

# --------------------------------------------------------------------------------------------------
# weights

def permuted(weight, n_head):
    """q or k of `llama`, (n_head D, C), for llama.cpp, which rotates channels 2i, 2i + 1 of a head, not i, i + D/2."""
    return weight.unflatten(0, (n_head, 2, -1)).transpose(1, 2).flatten(0, 2)

def gguf_name(name):
    """llama.cpp's name of a tensor of a Hugging Face folder."""
    module, _, suffix = name.rpartition('.')
    if module in TOP_NAMES:
        return f'{TOP_NAMES[module]}.{suffix}'
    layer, _, module = module.removeprefix('model.layers.').partition('.')
    return f'blk.{layer}.{LAYER_NAMES[module]}.{suffix}'

def gguf_tensors(model):
    """{llama.cpp's name: tensor} of a GPT."""
    cfg = model.cfg
    tensors = {gguf_name(name): view for name, view in model._hf_tensors().items()}
    if cfg.family == 'llama':
        for layer in range(cfg.n_layer):
            for kind, n_head in (('q', cfg.n_head), ('k', cfg.n_kv_head)):
                name = f'blk.{layer}.attn_{kind}.weight'
                tensors[name] = permuted(tensors[name], n_head)
    if cfg.rope_scaling:
        # llama.cpp divides the angles by these.
        tensors['rope_freqs.weight'] = rope_frequencies(cfg, stretched=False) / rope_frequencies(cfg)
    return tensors

def check_shape(cfg, tensors, dtype):
    """Refuses a model that llama.cpp has no architecture for, and weights that dtype cannot hold."""
    if cfg.family not in FAMILIES:
        raise Refused(f"a {cfg.family} model: GGUF files are written of {', '.join(FAMILIES)}; llama.cpp's "
                      "convert_hf_to_gguf.py knows other families, without units")
    if cfg.family == 'qwen2' and cfg.n_head * cfg.head_dim != cfg.n_embd:
        raise Refused(f"{cfg.n_head} heads of {cfg.head_dim}: llama.cpp's qwen2 has heads that sum to the "
                      f"{cfg.n_embd} channels")
    if cfg.yarn or (cfg.family != 'llama' and cfg.rope_scaling):
        raise Refused(f"{cfg.family} with rope_scaling: GGUF files are written of llama3's scaling alone, for llama")
    matrices = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 2}
    for name, tensor in matrices.items():
        if dtype == 'q8_0' and tensor.size(1) % BLOCK:
            raise Refused(f"{name} has rows of {tensor.size(1)}: q8_0 takes multiples of {BLOCK}; "
                          "take --dtype=bfloat16")
        if dtype == 'float16' and tensor.abs().max() > torch.finfo(torch.float16).max:
            raise Refused(f"{name} has values that float16 cannot hold; take --dtype=bfloat16")

# --------------------------------------------------------------------------------------------------
# tokenizer

GPT2_BYTES = {'type': 'ByteLevel', 'add_prefix_space': False, 'use_regex': True} # splits by GPT-2's expression
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r'|\p{N}|', r'|\p{N}{1,3}|')

def _split(regex):
    return [{'type': 'Split', 'pattern': {'Regex': regex}, 'behavior': 'Isolated', 'invert': False},
            {**GPT2_BYTES, 'use_regex': False}]

# llama.cpp's name of a way to split text: the steps in tokenizer.json, and whether a word that is a token needs no
# merges that lead to it.
SPLITS = {
    'qwen2': (_split(QWEN2_SPLIT), False),
    'llama-bpe': (_split(LLAMA3_SPLIT), True),
    'gpt-2': ([GPT2_BYTES], False),
    'smollm': ([{'type': 'Digits', 'individual_digits': True}, GPT2_BYTES], False)}

def split_name(spec, name):
    """llama.cpp's name for how a tokenizer.json splits text. name: for the message that refuses another."""
    model = spec['model']
    pre_tokenizer = spec['pre_tokenizer'] or {}
    steps = [{key: value for key, value in step.items() if key != 'trim_offsets'}
             for step in pre_tokenizer.get('pretokenizers', [pre_tokenizer])]
    chosen = [known for known, parts in SPLITS.items() if parts == (steps, bool(model.get('ignore_merges')))]
    flags = ('dropout', 'continuing_subword_prefix', 'end_of_word_suffix', 'byte_fallback')
    is_plain = model['type'] == 'BPE' and not any(model.get(flag) for flag in flags)
    has_bytes = bytes_of_characters().keys() <= model['vocab'].keys()
    if not (chosen and is_plain and has_bytes) or spec['normalizer'] not in (None, {'type': 'NFC'}):
        raise Refused(f"{name}: llama.cpp would split text otherwise than this tokenizer; a GGUF file can have "
                      f"byte-level BPE split as by {', '.join(SPLITS)}")
    return chosen[0]

def token_table(spec, n_rows):
    """(texts, types) of ids 0..n_rows-1, types as llama.cpp numbers them; rows behind the last token are unused ones.

    spec: tokenizer.json
    """
    NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
    texts = [f'[PAD{i}]' for i in range(n_rows)]
    types = [UNUSED] * n_rows
    for text, i in spec['model']['vocab'].items():
        texts[i] = text
        types[i] = NORMAL
    for token in spec['added_tokens']:
        texts[token['id']] = token['content']
        types[token['id']] = CONTROL if token['special'] else USER_DEFINED
    if len(set(texts)) < n_rows:
        raise Refused("two ids of the tokenizer have the same text, which llama.cpp does not take")
    return texts, types

def special_ids(vocab, tokenizer, eos):
    """(bos, eos, whether bos is put first) of a vocabulary; eos: what the tokenizer lacks, by config.json, or None."""
    if vocab.kind == 'speech':
        return vocab.bos, vocab.bos, True
    end = tokenizer.eot if tokenizer.eot is not None else eos
    if not isinstance(end, int):
        raise Refused(f"{tokenizer.name}: its tokenizer names no eos_token; without one, llama.cpp would end a text "
                      "at id 11")
    if len(tokenizer.first) > 1:
        raise Refused(f"{tokenizer.name}: puts {len(tokenizer.first)} ids before a text; llama.cpp puts one at most")
    return *(tokenizer.first or [end]), end, bool(tokenizer.first)

def tokenizer_fields(model, vocab, tokenizer):
    """{key of GGUF without 'tokenizer.ggml.': value} for a model's vocabulary."""
    name = tokenizer and tokenizer.name
    with tempfile.TemporaryDirectory() as folder: # the files as export writes them, with the units
        export_tokenizer(name, vocab, folder, model.cfg.family)
        spec = read_json(folder, 'tokenizer.json', 'export')
    texts, types = token_table(spec, model.cfg.vocab_size)
    bos, eos, puts_bos = special_ids(vocab, tokenizer, model.cfg.eos_token_id)
    # A speech vocabulary has no text to split and no merges, but llama.cpp wants a list that is not empty.
    merges = [' '.join(pair) for pair in merges_of(spec['model'])] or [f'{texts[0]} {texts[1]}']
    fields = {
        'model': 'gpt2', 'pre': 'qwen2' if vocab.kind == 'speech' else split_name(spec, name), 'tokens': texts,
        'token_type': types, 'merges': merges, 'bos_token_id': bos, 'eos_token_id': eos, 'add_bos_token': puts_bos,
        'add_eos_token': False}
    return fields | ({'padding_token_id': vocab.pad} if vocab.kind == 'speech' else {})

# --------------------------------------------------------------------------------------------------
# the file

def import_gguf():
    try:
        import gguf  # not at the top: only these files need it
        return gguf
    except ImportError:
        raise Refused(f"a GGUF file is written by the package gguf, which is not here: pip install {PACKAGE}") from None

def shape_fields(cfg):
    """{key of GGUF without the architecture: value} of a GPTConfig."""
    return {
        'vocab_size': cfg.vocab_size, 'context_length': cfg.n_positions, 'embedding_length': cfg.n_embd,
        'block_count': cfg.n_layer, 'feed_forward_length': cfg.n_ffn, 'attention.head_count': cfg.n_head,
        'attention.head_count_kv': cfg.n_kv_head, 'attention.key_length': cfg.head_dim,
        'attention.value_length': cfg.head_dim, 'attention.layer_norm_rms_epsilon': float(cfg.norm_eps),
        'rope.dimension_count': cfg.head_dim, 'rope.freq_base': float(cfg.rope_theta)}

def write_gguf(path, model, vocab, tokenizer, name, dtype='bfloat16'):
    """Writes a GPT as a GGUF file.

    tokenizer: the TextTokenizer, None for a speech vocabulary. name: what the file calls the model. dtype: of TYPES,
    of tables and matrices; norms and biases are float32.
    Raises Refused for a model or a tokenizer that llama.cpp would read otherwise, and where the package is missing.
    """
    gguf = import_gguf()
    cfg = model.cfg
    refuse_unwritable(path)
    tensors = gguf_tensors(model) if cfg.family in FAMILIES else {}
    check_shape(cfg, tensors, dtype)
    fields = {f'{cfg.family}.{key}': value for key, value in shape_fields(cfg).items()}
    fields |= {f'tokenizer.ggml.{key}': value for key, value in tokenizer_fields(model, vocab, tokenizer).items()}
    fields |= {'general.name': name, 'nanoslm.vocab': json.dumps(vocab.as_dict())}
    qtype = gguf.GGMLQuantizationType[TYPES[dtype]]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomically(path) as tmp:
        writer = gguf.GGUFWriter(tmp, cfg.family)
        writer.add_file_type(gguf.LlamaFileType['ALL_F32' if dtype == 'float32' else f'MOSTLY_{TYPES[dtype]}'])
        for key, value in fields.items():
            _add_field(gguf, writer, key, value)
        types = {tensor: qtype if view.ndim == 2 else gguf.GGMLQuantizationType.F32 for tensor, view in tensors.items()}
        for tensor, view in tensors.items():
            shape = gguf.quant_shape_to_byte_shape(tuple(view.shape), types[tensor])
            writer.add_tensor_info(tensor, shape, np.dtype(np.uint8), prod(shape), types[tensor])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, view in tensors.items():
            array = view.float().contiguous().numpy()
            writer.write_tensor_data(gguf.quants.quantize(array, types[tensor]))
        writer.close()

def _add_field(gguf, writer, key, value):
    """Adds a field of the type that its Python value says."""
    kinds = {bool: 'BOOL', int: 'UINT32', float: 'FLOAT32', str: 'STRING', list: 'ARRAY'}
    writer.add_key_value(key, value, gguf.GGUFValueType[kinds[type(value)]])
