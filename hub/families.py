"""
GPTConfig, the shape of a model and the flags in which the text model families of SIMS (section 4.2)
differ, and FAMILIES, which has each family's names of settings and tensors in Hugging Face folders.

    qwen2     Qwen2.5             gpt_neox  Pythia
    llama     Llama-3.2, SmolLM2  opt       OPT
    gemma2    Gemma2              bloom     Bloom

    FAMILIES[name]:
    architecture   the class in transformers
    flags          values of GPTConfig's fields that make the family
    fields         fields of GPTConfig that config.json has: {field: key of config.json}
    only           keys of config.json that the decoder needs at this value, which is also their
                   meaning where they are absent
    silent         the meaning of other keys where they are absent, if they may be
    names          of tensors: {our module: Hugging Face's name}, without .weight or .bias; {} is the
                   layer. A list of names is stacked by rows in our tensor. Where qkv has one name,
                   its rows there go head by head: (H, 3, D)

To add a family, write its table here, a flag in model.py for each thing that is new in it, and a
shape in tests/test_model.py.
"""
from dataclasses import dataclass

from configurator import Refused

PAD_ROWS = 256 # the embedding's rows in memory are a multiple of this

# The flags of Llama, from which a family's table has its differences.
PLAIN = {
    'norm_eps': 1e-6, 'position': 'rope', 'rope_share': 1.0, 'norm': 'rms', 'residual': 'pre',
    'activation': 'silu', 'gated': True, 'qkv_bias': False, 'bias': False, 'embed_scale': False,
    'embed_norm': False, 'attn_softcap': 0.0, 'logit_softcap': 0.0, 'window': 0}
# The flags of the families before Llama.
LAYER_NORM = PLAIN | {'norm': 'layer', 'gated': False, 'qkv_bias': True, 'bias': True}

SHARED = {
    'vocab_size': 'vocab_size', 'n_embd': 'hidden_size', 'n_layer': 'num_hidden_layers',
    'n_head': 'num_attention_heads', 'n_positions': 'max_position_embeddings',
    'tied': 'tie_word_embeddings', 'bos_token_id': 'bos_token_id', 'eos_token_id': 'eos_token_id'}
LLAMA_FIELDS = SHARED | {
    'n_kv_head': 'num_key_value_heads', 'head_dim': 'head_dim', 'n_ffn': 'intermediate_size',
    'norm_eps': 'rms_norm_eps'}
LLAMA_NAMES = {
    'embed': 'model.embed_tokens',
    'layers.{}.norm1': 'model.layers.{}.input_layernorm',
    'layers.{}.qkv': ['model.layers.{}.self_attn.' + x + '_proj' for x in 'qkv'],
    'layers.{}.out': 'model.layers.{}.self_attn.o_proj',
    'layers.{}.norm2': 'model.layers.{}.post_attention_layernorm',
    'layers.{}.up': ['model.layers.{}.mlp.gate_proj', 'model.layers.{}.mlp.up_proj'],
    'layers.{}.down': 'model.layers.{}.mlp.down_proj',
    'norm': 'model.norm',
    'head': 'lm_head'}

FAMILIES = {
    'qwen2': {
        'architecture': 'Qwen2ForCausalLM',
        'flags': PLAIN | {'qkv_bias': True},
        'fields': LLAMA_FIELDS,
        'only': {'hidden_act': 'silu', 'use_sliding_window': False},
        'names': LLAMA_NAMES},
    'llama': {
        'architecture': 'LlamaForCausalLM',
        'flags': PLAIN,
        'fields': LLAMA_FIELDS,
        'only': {'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False},
        'names': LLAMA_NAMES},
    'gemma2': {
        'architecture': 'Gemma2ForCausalLM',
        'flags': PLAIN | {
            'norm': 'rms+1', 'residual': 'sandwich', 'activation': 'gelu_tanh', 'embed_scale': True,
            'attn_softcap': 50.0, 'logit_softcap': 30.0, 'window': 4096},
        'fields': LLAMA_FIELDS | {
            'attn_scalar': 'query_pre_attn_scalar', 'attn_softcap': 'attn_logit_softcapping',
            'logit_softcap': 'final_logit_softcapping', 'window': 'sliding_window'},
        'only': {'hidden_activation': 'gelu_pytorch_tanh', 'attention_bias': False},
        'silent': {
            'tie_word_embeddings': True, 'query_pre_attn_scalar': 256, 'head_dim': 256,
            'sliding_window': 4096, 'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0},
        'names': LLAMA_NAMES | {
            'layers.{}.post1': 'model.layers.{}.post_attention_layernorm',
            'layers.{}.norm2': 'model.layers.{}.pre_feedforward_layernorm',
            'layers.{}.post2': 'model.layers.{}.post_feedforward_layernorm'}},
    'gpt_neox': {
        'architecture': 'GPTNeoXForCausalLM',
        'flags': LAYER_NORM | {'activation': 'gelu'},
        'fields': SHARED | {
            'n_ffn': 'intermediate_size', 'norm_eps': 'layer_norm_eps', 'rope_share': 'rotary_pct',
            'residual': 'use_parallel_residual'},
        'only': {'hidden_act': 'gelu', 'attention_bias': True},
        'silent': {'use_parallel_residual': True, 'rotary_pct': 0.25},
        'names': {
            'embed': 'gpt_neox.embed_in',
            'layers.{}.norm1': 'gpt_neox.layers.{}.input_layernorm',
            'layers.{}.qkv': 'gpt_neox.layers.{}.attention.query_key_value',
            'layers.{}.out': 'gpt_neox.layers.{}.attention.dense',
            'layers.{}.norm2': 'gpt_neox.layers.{}.post_attention_layernorm',
            'layers.{}.up': 'gpt_neox.layers.{}.mlp.dense_h_to_4h',
            'layers.{}.down': 'gpt_neox.layers.{}.mlp.dense_4h_to_h',
            'norm': 'gpt_neox.final_layer_norm',
            'head': 'embed_out'}},
    'opt': {
        'architecture': 'OPTForCausalLM',
        'flags': LAYER_NORM | {'position': 'learned', 'activation': 'relu', 'norm_eps': 1e-5},
        'fields': SHARED | {
            'n_ffn': 'ffn_dim', 'n_word': 'word_embed_proj_dim', 'residual': 'do_layer_norm_before'},
        'only': {
            'activation_function': 'relu', 'enable_bias': True,
            'layer_norm_elementwise_affine': True, '_remove_final_layer_norm': False},
        'silent': {'tie_word_embeddings': True, 'do_layer_norm_before': True},
        'names': {
            'embed': 'model.decoder.embed_tokens',
            'positions': 'model.decoder.embed_positions',
            'word_in': 'model.decoder.project_in',
            'word_out': 'model.decoder.project_out',
            'layers.{}.norm1': 'model.decoder.layers.{}.self_attn_layer_norm',
            'layers.{}.qkv': ['model.decoder.layers.{}.self_attn.' + x + '_proj' for x in 'qkv'],
            'layers.{}.out': 'model.decoder.layers.{}.self_attn.out_proj',
            'layers.{}.norm2': 'model.decoder.layers.{}.final_layer_norm',
            'layers.{}.up': 'model.decoder.layers.{}.fc1',
            'layers.{}.down': 'model.decoder.layers.{}.fc2',
            'norm': 'model.decoder.final_layer_norm',
            'head': 'lm_head'}},
    'bloom': {
        'architecture': 'BloomForCausalLM',
        'flags': LAYER_NORM | {'position': 'alibi', 'activation': 'gelu_tanh', 'embed_norm': True},
        'fields': SHARED | {'n_positions': 'seq_length', 'norm_eps': 'layer_norm_epsilon'},
        'only': {'apply_residual_connection_post_layernorm': False, 'n_inner': None},
        'silent': {'tie_word_embeddings': True, 'seq_length': 2048, 'layer_norm_epsilon': 1e-5},
        'names': {
            'embed': 'transformer.word_embeddings',
            'embed_norm': 'transformer.word_embeddings_layernorm',
            'layers.{}.norm1': 'transformer.h.{}.input_layernorm',
            'layers.{}.qkv': 'transformer.h.{}.self_attention.query_key_value',
            'layers.{}.out': 'transformer.h.{}.self_attention.dense',
            'layers.{}.norm2': 'transformer.h.{}.post_attention_layernorm',
            'layers.{}.up': 'transformer.h.{}.mlp.dense_h_to_4h',
            'layers.{}.down': 'transformer.h.{}.mlp.dense_4h_to_h',
            'norm': 'transformer.ln_f',
            'head': 'lm_head'}}}

# Values of config.json that have another name in GPTConfig.
VALUES = {
    'use_parallel_residual': {True: 'parallel', False: 'pre'},
    'do_layer_norm_before': {True: 'pre', False: 'post'}}
# The meaning of keys that config.json may lack, for every family.
SILENT = {
    'bos_token_id': None, 'eos_token_id': None, 'tie_word_embeddings': False,
    'max_position_embeddings': 2048, 'num_key_value_heads': None, 'head_dim': None,
    'word_embed_proj_dim': None}
# Other names of the same keys: Bloom's, and Pythia's rope_theta.
ALIASES = {
    'n_embed': 'hidden_size', 'n_layer': 'num_hidden_layers', 'n_head': 'num_attention_heads',
    'rotary_emb_base': 'rope_theta'}
ROPE_SCALING = ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')

# --------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class GPTConfig:
    """A shape, and the flags in which the families differ. None takes the family's value."""
    family: str = 'qwen2'          # a key of FAMILIES
    vocab_size: int = 2048         # V, without the padding
    n_layer: int = 6
    n_head: int = 4
    n_kv_head: int | None = None   # each serves n_head / n_kv_head query heads; None: n_head
    n_embd: int = 256              # C
    head_dim: int | None = None    # D; None: n_embd / n_head
    n_ffn: int | None = None       # width of the MLP: of g and of u; None: 4 n_embd
    n_word: int | None = None      # width of the embedding; None: n_embd. Only opt-350m has another
    n_positions: int = 32768       # most tokens in a row; enforced by generate and learned positions
    tied: bool = True              # head and embedding are one matrix
    bos_token_id: int | None = None
    eos_token_id: int | tuple | None = None
    rope_theta: float = 1e6
    rope_scaling: tuple | None = None # Llama-3.2's values of the keys ROPE_SCALING
    attn_scalar: int | None = None # scores are divided by its root; None: head_dim
    norm_eps: float | None = None
    norm: str | None = None        # rms | rms+1 (its weights are 1 + w) | layer
    residual: str | None = None    # pre | post | sandwich | parallel, see Block
    position: str | None = None    # rope | learned | alibi
    rope_share: float | None = None # share of a head's channels that are rotated, the first ones
    activation: str | None = None  # a key of ACTIVATIONS
    gated: bool | None = None      # the MLP is D (act(g) * u), else D act(u)
    qkv_bias: bool | None = None
    bias: bool | None = None       # of the layer's other matrices
    embed_scale: bool | None = None # the embedding is multiplied by sqrt(C)
    embed_norm: bool | None = None # a norm follows the embedding
    attn_softcap: float | None = None # of the scores; 0: none
    logit_softcap: float | None = None # of the logits; 0: none
    window: int | None = None      # tokens that layers 0, 2, 4, ... attend to; 0: all

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise Refused(f"model family '{self.family}' is not supported: one of {', '.join(FAMILIES)}")
        self._check_positive('vocab_size', 'n_layer', 'n_head', 'n_embd', 'n_positions')
        family = FAMILIES[self.family]
        D = self.head_dim or self.n_embd // self.n_head
        defaults = {
            'n_kv_head': self.n_head, 'head_dim': D, 'n_ffn': 4 * self.n_embd, 'n_word': self.n_embd,
            'attn_scalar': D, **family['flags']}
        for name, default in defaults.items():
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, default)
            elif name not in family['fields'] and value != default: # config.json has no key for it
                raise Refused(f"model: {name}={value!r} is not {self.family}, which has {default!r} here")
        self._check_positive('n_kv_head', 'head_dim', 'n_ffn', 'n_word')
        if 'window' in family['fields']:
            self._check_positive('window')
        for name, key in family['fields'].items():
            if key in VALUES and getattr(self, name) not in VALUES[key].values():
                expected = ' or '.join(map(repr, VALUES[key].values()))
                raise Refused(f"model: {name}={getattr(self, name)!r} is not {self.family}, which has {expected}")
        if self.n_head % self.n_kv_head:
            raise Refused(f"model: n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")
        if self.position == 'rope' and (self.n_rope < 2 or self.n_rope % 2):
            raise Refused(f"model: {self.n_rope} channels of head_dim {self.head_dim} would rotate; "
                          "expected an even number, at least 2")

    def _check_positive(self, *names):
        for name in names:
            value = getattr(self, name)
            if not (isinstance(value, int) and value > 0):
                raise Refused(f"model: {name} must be a positive integer, got {value!r}")

    @property
    def rows(self):
        """Rows of the embedding in memory."""
        return -(-self.vocab_size // PAD_ROWS) * PAD_ROWS

    @property
    def n_rope(self):
        """Channels of a head that are rotated."""
        return int(self.head_dim * self.rope_share)

    @classmethod
    def from_hf(cls, hf, path='config.json'):
        """The GPTConfig of a Hugging Face config.json (a dict), from transformers 4 or 5 or of slprl/*.

        Refuses, naming path, a family or setting that the decoder does not have and a key that is missing.
        """
        if 'base_config' in hf: # slprl/*: the outer vocab_size is the right one
            hf = {**hf['base_config'], 'vocab_size': hf['vocab_size']}
        name = hf.get('model_type')
        if name not in FAMILIES:
            raise Refused(f"{path}: model_type {name!r} is not supported, expected {' or '.join(map(repr, FAMILIES))}")
        family = FAMILIES[name]
        hf = {ALIASES.get(key, key): value for key, value in hf.items()}
        rope = hf.get('rope_parameters')
        if not rope:
            rope = {**(hf.get('rope_scaling') or {}), 'rope_theta': hf.get('rope_theta', 1e4)}
        rope_type = rope.get('rope_type', rope.get('type', 'default'))
        _check_supported(hf, family, rope_type, path)
        hf = {**SILENT, **family.get('silent', {}), **hf}
        hf['rotary_pct'] = rope.get('partial_rotary_factor', hf.get('rotary_pct'))
        try:
            values = {field: _from_json(field, key, hf[key]) for field, key in family['fields'].items()}
            scaling = tuple(rope[key] for key in ROPE_SCALING) if rope_type == 'llama3' else None
            return cls(family=name, rope_theta=rope['rope_theta'], rope_scaling=scaling, **values)
        except KeyError as e:
            raise Refused(f"{path}: {e} is missing") from None
        except Refused as e:
            raise Refused(f"{path}: {e}") from None

    def to_hf(self, dtype='float32'):
        """The dict of config.json, which transformers 4 and 5 both read."""
        family = FAMILIES[self.family]
        hf = {'architectures': [family['architecture']], 'model_type': self.family, 'torch_dtype': dtype,
              **family['only']}
        for field, key in family['fields'].items():
            value = getattr(self, field)
            values = {name: json_value for json_value, name in VALUES.get(key, {}).items()}
            no_softcap = field.endswith('softcap') and not value
            hf[key] = None if no_softcap else values.get(value, value)
        if self.position == 'rope':
            scaling = None
            if self.rope_scaling:
                scaling = {'rope_type': 'llama3', **dict(zip(ROPE_SCALING, self.rope_scaling))}
            hf |= {'rope_theta': self.rope_theta, 'rotary_emb_base': self.rope_theta, 'rope_scaling': scaling}
        return hf

def _from_json(field, key, value):
    """The value of a field of GPTConfig, from that of its key in config.json."""
    if isinstance(value, list): # several eos_token_id
        return tuple(value)
    if value is None and field.endswith('softcap'):
        return 0.0
    return VALUES.get(key, {}).get(value, value)

def _check_supported(hf, family, rope_type, path):
    """Refuses settings of config.json that the decoder does not have."""
    settings = [(key, hf.get(key, value), [value]) for key, value in family['only'].items()]
    settings.append(('rope_type', rope_type, ['default', 'llama3']))
    if 'window' in family['fields']:
        layer_types = hf.get('layer_types')
        n_layers = len(layer_types or ())
        alternating = [('sliding_attention', 'full_attention')[i % 2] for i in range(n_layers)]
        settings.append(('layer_types', layer_types, [None, alternating]))
    for key, value, expected in settings:
        if value not in expected:
            raise Refused(f"{path}: {key} {value!r} is not supported, expected {' or '.join(map(repr, expected))}")
