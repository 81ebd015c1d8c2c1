"""
The TextLM families of SIMS (section 4.2): how model.py's decoder is set for each, and what Hugging Face calls its
settings and tensors. Tables only.

    qwen2     Qwen2.5             gpt_neox  Pythia
    llama     Llama-3.2, SmolLM2  opt       OPT
    gemma2    Gemma2              bloom     Bloom

    architecture   class in transformers
    flags          of GPTConfig: what makes the family, as far as config.json does not say it
    fields         of GPTConfig: the keys of config.json that do
    only           keys of config.json with the value that the decoder needs, which is meant where config.json is silent
    silent         what other keys mean where it is silent, if they may be
    names          of the tensors: ours -> Hugging Face's, without .weight or .bias; {} is the layer. Several of theirs are
                   stacked by rows in ours. Where one name stands for q, k and v, its rows go head by head (H, 3, D)

To add a family: a table here, a flag in model.py for what is new in it, a shape in tests/test_model.py.
"""

# what a family is unless it says otherwise, as Llama
PLAIN = {'norm_eps': 1e-6, 'position': 'rope', 'rope_share': 1.0, 'norm': 'rms', 'residual': 'pre', 'activation': 'silu', 'gated': True,
         'qkv_bias': False, 'bias': False, 'embed_scale': False, 'embed_norm': False, 'attn_softcap': 0.0,
         'logit_softcap': 0.0, 'window': 0}
LAYER_NORM = PLAIN | {'norm': 'layer', 'gated': False, 'qkv_bias': True, 'bias': True} # of the families before Llama

SHARED = {'vocab_size': 'vocab_size', 'n_embd': 'hidden_size', 'n_layer': 'num_hidden_layers',
          'n_head': 'num_attention_heads', 'n_positions': 'max_position_embeddings', 'tied': 'tie_word_embeddings',
          'bos_token_id': 'bos_token_id', 'eos_token_id': 'eos_token_id'}
LLAMA_FIELDS = SHARED | {'n_kv_head': 'num_key_value_heads', 'head_dim': 'head_dim', 'n_ffn': 'intermediate_size',
                         'norm_eps': 'rms_norm_eps'}
LLAMA_NAMES = {'embed': 'model.embed_tokens', 'layers.{}.norm1': 'model.layers.{}.input_layernorm',
               'layers.{}.qkv': ['model.layers.{}.self_attn.' + x + '_proj' for x in 'qkv'],
               'layers.{}.out': 'model.layers.{}.self_attn.o_proj',
               'layers.{}.norm2': 'model.layers.{}.post_attention_layernorm',
               'layers.{}.up': ['model.layers.{}.mlp.gate_proj', 'model.layers.{}.mlp.up_proj'],
               'layers.{}.down': 'model.layers.{}.mlp.down_proj', 'norm': 'model.norm', 'head': 'lm_head'}

FAMILIES = {
    'qwen2': {
        'architecture': 'Qwen2ForCausalLM', 'flags': PLAIN | {'qkv_bias': True}, 'fields': LLAMA_FIELDS,
        'only': {'hidden_act': 'silu', 'use_sliding_window': False}, 'names': LLAMA_NAMES},
    'llama': {
        'architecture': 'LlamaForCausalLM', 'flags': PLAIN, 'fields': LLAMA_FIELDS,
        'only': {'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False}, 'names': LLAMA_NAMES},
    'gemma2': {
        'architecture': 'Gemma2ForCausalLM',
        'flags': PLAIN | {'norm': 'rms+1', 'residual': 'sandwich', 'activation': 'gelu_tanh', 'embed_scale': True,
                          'attn_softcap': 50.0, 'logit_softcap': 30.0, 'window': 4096},
        'fields': LLAMA_FIELDS | {'attn_scalar': 'query_pre_attn_scalar', 'attn_softcap': 'attn_logit_softcapping',
                                  'logit_softcap': 'final_logit_softcapping', 'window': 'sliding_window'},
        'only': {'hidden_activation': 'gelu_pytorch_tanh', 'attention_bias': False},
        'silent': {'tie_word_embeddings': True, 'query_pre_attn_scalar': 256, 'head_dim': 256, 'sliding_window': 4096,
                   'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0},
        'names': LLAMA_NAMES | {'layers.{}.post1': 'model.layers.{}.post_attention_layernorm',
                                'layers.{}.norm2': 'model.layers.{}.pre_feedforward_layernorm',
                                'layers.{}.post2': 'model.layers.{}.post_feedforward_layernorm'}},
    'gpt_neox': {
        'architecture': 'GPTNeoXForCausalLM', 'flags': LAYER_NORM | {'activation': 'gelu'},
        'fields': SHARED | {'n_ffn': 'intermediate_size', 'norm_eps': 'layer_norm_eps', 'rope_share': 'rotary_pct',
                            'residual': 'use_parallel_residual'},
        'only': {'hidden_act': 'gelu', 'attention_bias': True},
        'silent': {'use_parallel_residual': True, 'rotary_pct': 0.25},
        'names': {'embed': 'gpt_neox.embed_in', 'layers.{}.norm1': 'gpt_neox.layers.{}.input_layernorm',
                  'layers.{}.qkv': 'gpt_neox.layers.{}.attention.query_key_value',
                  'layers.{}.out': 'gpt_neox.layers.{}.attention.dense',
                  'layers.{}.norm2': 'gpt_neox.layers.{}.post_attention_layernorm',
                  'layers.{}.up': 'gpt_neox.layers.{}.mlp.dense_h_to_4h',
                  'layers.{}.down': 'gpt_neox.layers.{}.mlp.dense_4h_to_h', 'norm': 'gpt_neox.final_layer_norm',
                  'head': 'embed_out'}},
    'opt': {
        'architecture': 'OPTForCausalLM',
        'flags': LAYER_NORM | {'position': 'learned', 'activation': 'relu', 'norm_eps': 1e-5},
        'fields': SHARED | {'n_ffn': 'ffn_dim', 'n_word': 'word_embed_proj_dim', 'residual': 'do_layer_norm_before'},
        'only': {'activation_function': 'relu', 'enable_bias': True, 'layer_norm_elementwise_affine': True,
                 '_remove_final_layer_norm': False},
        'silent': {'tie_word_embeddings': True, 'do_layer_norm_before': True},
        'names': {'embed': 'model.decoder.embed_tokens', 'positions': 'model.decoder.embed_positions',
                  'word_in': 'model.decoder.project_in', 'word_out': 'model.decoder.project_out',
                  'layers.{}.norm1': 'model.decoder.layers.{}.self_attn_layer_norm',
                  'layers.{}.qkv': ['model.decoder.layers.{}.self_attn.' + x + '_proj' for x in 'qkv'],
                  'layers.{}.out': 'model.decoder.layers.{}.self_attn.out_proj',
                  'layers.{}.norm2': 'model.decoder.layers.{}.final_layer_norm',
                  'layers.{}.up': 'model.decoder.layers.{}.fc1', 'layers.{}.down': 'model.decoder.layers.{}.fc2',
                  'norm': 'model.decoder.final_layer_norm', 'head': 'lm_head'}},
    'bloom': {
        'architecture': 'BloomForCausalLM',
        'flags': LAYER_NORM | {'position': 'alibi', 'activation': 'gelu_tanh', 'embed_norm': True},
        'fields': SHARED | {'n_positions': 'seq_length', 'norm_eps': 'layer_norm_epsilon'},
        'only': {'apply_residual_connection_post_layernorm': False, 'n_inner': None},
        'silent': {'tie_word_embeddings': True, 'seq_length': 2048, 'layer_norm_epsilon': 1e-5},
        'names': {'embed': 'transformer.word_embeddings', 'embed_norm': 'transformer.word_embeddings_layernorm',
                  'layers.{}.norm1': 'transformer.h.{}.input_layernorm',
                  'layers.{}.qkv': 'transformer.h.{}.self_attention.query_key_value',
                  'layers.{}.out': 'transformer.h.{}.self_attention.dense',
                  'layers.{}.norm2': 'transformer.h.{}.post_attention_layernorm',
                  'layers.{}.up': 'transformer.h.{}.mlp.dense_h_to_4h',
                  'layers.{}.down': 'transformer.h.{}.mlp.dense_4h_to_h', 'norm': 'transformer.ln_f',
                  'head': 'lm_head'}}}

# values of config.json that have another name in GPTConfig
VALUES = {'use_parallel_residual': {True: 'parallel', False: 'pre'}, 'do_layer_norm_before': {True: 'pre', False: 'post'}}
# what a key means where config.json is silent
SILENT = {'bos_token_id': None, 'eos_token_id': None, 'tie_word_embeddings': False, 'max_position_embeddings': 2048,
          'num_key_value_heads': None, 'head_dim': None, 'word_embed_proj_dim': None}
# other names of keys: Bloom's, and Pythia's rope_theta
ALIASES = {'n_embed': 'hidden_size', 'n_layer': 'num_hidden_layers', 'n_head': 'num_attention_heads',
           'rotary_emb_base': 'rope_theta'}
