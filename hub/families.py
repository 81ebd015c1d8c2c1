"""
GPTConfig, the shape of a model and the flags in which text model families differ, and FAMILIES, which
has each family's names of settings and tensors in Hugging Face folders.

    of SIMS (section 4.2)                                      later
    qwen2     Qwen2.5             gpt_neox  Pythia             qwen3    Qwen3      olmo2  OLMo 2
    llama     Llama-3.2, SmolLM2  opt       OPT                smollm3  SmolLM3    olmo3  OLMo 3
    gemma2    Gemma2              bloom     Bloom

    FAMILIES[name]:
    architecture   the class in transformers
    flags          values of GPTConfig's fields that make the family
    fields         fields of GPTConfig that config.json has: {field: key of config.json}
    only           keys of config.json that the decoder needs at this value, which is also their
                   meaning where they are absent
    silent         the meaning of other keys where they are absent, if they may be
    tokenizer      the class in transformers, if it puts steps of its own in place of tokenizer.json's
    names          of tensors: {our module: Hugging Face's name}, without .weight or .bias; {} is the
                   layer. A list of names is stacked by rows in our tensor. Where qkv has one name,
                   its rows there go head by head: (H, 3, D)

To add a family, write its table here, a flag in model.py for each thing that is new in it, and a
shape in tests/test_model.py. docs/textlms.md shows it on Qwen3.
"""
import math
from dataclasses import dataclass, fields
from typing import get_args

from configurator import Refused

PAD_ROWS = 256 # the embedding's rows in memory are a multiple of this
LAYERS = 10_000 # at most
LARGEST = 2 ** 31 # of all other sizes

# The flags of Llama, from which a family's table has its differences.
PLAIN = {
    'norm_eps': 1e-6, 'position': 'rope', 'rope_share': 1.0, 'norm': 'rms', 'residual': 'pre',
    'activation': 'silu', 'gated': True, 'qkv_bias': False, 'bias': False, 'embed_scale': False,
    'embed_norm': False, 'attn_softcap': 0.0, 'logit_softcap': 0.0, 'window': 0, 'windowed': (False,),
    'rotated': (True,), 'layer_ropes': False, 'qk_norm': 'none'}
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
QK_NORM_NAMES = {'layers.{}.qk_norm': ['model.layers.{}.self_attn.' + x + '_norm' for x in 'qk']}
OLMO_NAMES = LLAMA_NAMES | QK_NORM_NAMES | {
    'layers.{}.norm1': 'model.layers.{}.post_attention_layernorm',
    'layers.{}.norm2': 'model.layers.{}.post_feedforward_layernorm'}

FAMILIES = {
    'qwen2': {
        'architecture': 'Qwen2ForCausalLM',
        'flags': PLAIN | {'qkv_bias': True},
        'fields': LLAMA_FIELDS,
        'only': {'hidden_act': 'silu', 'use_sliding_window': False},
        'tokenizer': 'Qwen2Tokenizer',
        'names': LLAMA_NAMES},
    'qwen3': {
        'architecture': 'Qwen3ForCausalLM',
        'flags': PLAIN | {'qk_norm': 'head'},
        'fields': LLAMA_FIELDS,
        'only': {'hidden_act': 'silu', 'attention_bias': False, 'use_sliding_window': False},
        'silent': {'head_dim': 128},
        'tokenizer': 'Qwen2Tokenizer',
        'names': LLAMA_NAMES | QK_NORM_NAMES},
    'llama': {
        'architecture': 'LlamaForCausalLM',
        'flags': PLAIN,
        'fields': LLAMA_FIELDS,
        'only': {'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False},
        'names': LLAMA_NAMES},
    'smollm3': {
        'architecture': 'SmolLM3ForCausalLM',
        'flags': PLAIN | {'rotated': (True, True, True, False)},
        'fields': LLAMA_FIELDS | {
            'rotated': 'no_rope_layers', 'window': 'sliding_window', 'windowed': 'layer_types'},
        'only': {'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False},
        'silent': {
            'tie_word_embeddings': True, 'rope_theta': 2e6, 'use_sliding_window': False, 'sliding_window': None},
        'names': LLAMA_NAMES},
    'olmo2': {
        'architecture': 'Olmo2ForCausalLM',
        'flags': PLAIN | {'norm_eps': 1e-5, 'residual': 'after', 'qk_norm': 'width'},
        'fields': LLAMA_FIELDS,
        'only': {'hidden_act': 'silu', 'attention_bias': False},
        'names': OLMO_NAMES},
    'olmo3': {
        'architecture': 'Olmo3ForCausalLM',
        'flags': PLAIN | {
            'norm_eps': 1e-5, 'residual': 'after', 'qk_norm': 'width', 'window': 4096,
            'windowed': (True, True, True, False), 'layer_ropes': True},
        'fields': LLAMA_FIELDS | {'window': 'sliding_window', 'windowed': 'layer_types'},
        'only': {'hidden_act': 'silu', 'attention_bias': False},
        'silent': {'rope_theta': 5e5, 'sliding_window': 4096, 'rms_norm_eps': 1e-5},
        'names': OLMO_NAMES},
    'gemma2': {
        'architecture': 'Gemma2ForCausalLM',
        'flags': PLAIN | {
            'norm': 'rms+1', 'residual': 'sandwich', 'activation': 'gelu_tanh', 'embed_scale': True,
            'attn_softcap': 50.0, 'logit_softcap': 30.0, 'window': 4096,
            'windowed': (True, False)},
        'fields': LLAMA_FIELDS | {
            'attn_scalar': 'query_pre_attn_scalar', 'attn_softcap': 'attn_logit_softcapping',
            'logit_softcap': 'final_logit_softcapping', 'window': 'sliding_window', 'windowed': 'layer_types'},
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
    'do_layer_norm_before': {True: 'pre', False: 'post'},
    'layer_types': {'sliding_attention': True, 'full_attention': False}, # of each layer
    'no_rope_layers': {1: True, 0: False}} # 1: with rope
# The meaning of keys that config.json may lack, for every family.
SILENT = {
    'bos_token_id': None, 'eos_token_id': None, 'tie_word_embeddings': False,
    'max_position_embeddings': 2048, 'num_key_value_heads': None, 'head_dim': None,
    'word_embed_proj_dim': None, 'layer_types': None, 'no_rope_layers': None}
# Other names of the same keys: Bloom's, and Pythia's rope_theta.
ALIASES = {
    'n_embed': 'hidden_size', 'n_layer': 'num_hidden_layers', 'n_head': 'num_attention_heads',
    'rotary_emb_base': 'rope_theta'}
# {rope_type: the field of GPTConfig that has the values of these keys}
ROPE_SCALING = {
    'llama3': ('rope_scaling', ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')),
    'yarn': ('yarn', ('factor', 'original_max_position_embeddings', 'attention_factor', 'beta_fast', 'beta_slow'))}
# What is not near, by how model_type begins.
FOREIGN = {
    'qwen3_5': 'Gated DeltaNet layers', 'qwen3_next': 'Gated DeltaNet layers', 'qwen4': 'Gated DeltaNet layers',
    'olmo_hybrid': 'Gated DeltaNet layers', 'lfm': 'short convolutions',
    'gemma3n': 'embeddings and low-rank branches in each layer',
    'gemma3': 'q/k norms with weights 1 + w and a window on five of six layers',
    'gemma4': 'embeddings in each layer, and keys that layers share',
    'mamba': 'state-space layers', 'falcon_h1': 'state-space layers', 'granitemoehybrid': 'state-space layers'}
EXPERTS = ('num_experts', 'num_local_experts', 'n_routed_experts') # keys of a mixture of experts

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
    rope_scaling: tuple | None = None # Llama-3.2's: values of ROPE_SCALING['llama3']
    yarn: tuple | None = None      # another scaling: values of ROPE_SCALING['yarn']
    layer_ropes: bool | None = None # layers with a window are not scaled and may have another theta
    window_theta: float | None = None # that theta; None: rope_theta
    attn_scalar: int | None = None # scores are divided by its root; None: head_dim
    norm_eps: float | None = None
    norm: str | None = None        # rms | rms+1 (its weights are 1 + w) | layer
    residual: str | None = None    # pre | post | after | sandwich | parallel, see Block
    qk_norm: str | None = None     # of q and k before they rotate: none | head | width (over all heads)
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
    window: int | None = None      # tokens that layers with a window attend to; 0: all
    windowed: tuple | None = None  # for each layer, whether it has a window
    rotated: tuple | None = None   # for each layer, whether it has rotary positions

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise Refused(f"model family '{self.family}' is not supported: one of {', '.join(FAMILIES)}")
        self._check_positive('vocab_size', 'n_layer', 'n_head', 'n_embd', 'n_positions')
        self._check_types()
        family = FAMILIES[self.family]
        D = self.head_dim or self.n_embd // self.n_head
        defaults = {
            'n_kv_head': self.n_head, 'head_dim': D, 'n_ffn': 4 * self.n_embd, 'n_word': self.n_embd,
            'attn_scalar': D, **family['flags']}
        for name in ('rotated', 'windowed'):
            pattern = defaults[name] # of the first layers
            defaults[name] = tuple(pattern[layer % len(pattern)] for layer in range(self.n_layer))
        if 'rotated' in family['fields']: # without rope, with a window if there is one
            defaults['windowed'] = tuple(bool(self.window) and not rotated for rotated in self.rotated or
                                         defaults['rotated'])
        for name, default in defaults.items():
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, default)
            elif name not in family['fields'] and value != default: # config.json has no key for it
                raise Refused(f"model: {name}={value!r} is not {self.family}, which has {default!r} here")
        self._check_positive('n_kv_head', 'head_dim', 'n_ffn', 'n_word')
        self._check_layers(family)
        for name, key in family['fields'].items():
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else [value]
            if key in VALUES and not set(values) <= set(VALUES[key].values()):
                expected = ' or '.join(map(repr, VALUES[key].values()))
                raise Refused(f"model: {name}={value!r} is not {self.family}, which has {expected}")
        if self.n_head % self.n_kv_head:
            raise Refused(f"model: n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")
        if self.position == 'rope' and (self.n_rope < 2 or self.n_rope % 2):
            raise Refused(f"model: {self.n_rope} channels of head_dim {self.head_dim} would rotate; "
                          "expected an even number, at least 2")

    def _check_layers(self, family):
        """Refuses what is said of each layer where it is of other layers, or of a window that is not there."""
        for name in ('rotated', 'windowed'):
            n = len(getattr(self, name))
            if n != self.n_layer:
                key = family['fields'].get(name, name)
                raise Refused(f"model: {key} has {n} entries, expected one for each of {self.n_layer} layers; "
                              "take the config.json that was published with the weights")
        if any(self.windowed) and not (isinstance(self.window, int) and self.window > 0):
            raise Refused(f"model: window must be a positive integer, got {self.window!r}, where layer_types has "
                          "sliding_attention (sliding_window, use_sliding_window)")
        if self.window_theta and not self.layer_ropes:
            raise Refused(f"model: window_theta={self.window_theta!r} is not {self.family}, whose layers rotate alike")

    def _check_types(self):
        for field in fields(self):
            value = getattr(self, field.name)
            allowed = get_args(field.type) or (field.type,)
            is_number = type(value) in (int, float) and float in allowed and math.isfinite(value)
            if not is_number and (type(value) not in allowed or type(value) is float):
                names = ' or '.join(kind.__name__ for kind in allowed if kind is not type(None))
                raise Refused(f"model: {field.name} must be {names}, got {value!r}")

    def _check_positive(self, *names):
        for name in names:
            value = getattr(self, name)
            if not (isinstance(value, int) and value > 0):
                raise Refused(f"model: {name} must be a positive integer, got {value!r}")
            if value > (LAYERS if name == 'n_layer' else LARGEST):
                raise Refused(f"model: {name} is {value:,}, more than any model has")

    @property
    def rows(self):
        """Rows of the embedding in memory."""
        return -(-self.vocab_size // PAD_ROWS) * PAD_ROWS

    @property
    def n_rope(self):
        """Channels of a head that are rotated."""
        return int(self.head_dim * self.rope_share)

    def rope_of(self, layer):
        """How a layer rotates: 'full', or 'window' where a layer with a window rotates otherwise; None: not."""
        if self.position != 'rope' or not self.rotated[layer]:
            return None
        return 'window' if self.layer_ropes and self.windowed[layer] else 'full'

    @classmethod
    def from_hf(cls, hf, path='config.json'):
        """The GPTConfig of a Hugging Face config.json (a dict), from transformers 4 or 5 or of slprl/*.

        Refuses, naming path, a family or setting that the decoder does not have and a key that is missing.
        """
        try:
            return cls._from_hf(hf, path)
        except Refused:
            raise
        except (TypeError, ValueError, ArithmeticError, AttributeError) as e: # of a value that is of another type
            raise Refused(f"{path}: not what transformers writes ({e}); copy it again") from None

    @classmethod
    def _from_hf(cls, hf, path):
        if 'base_config' in hf: # slprl/*: the outer vocab_size is the right one
            hf = {**hf['base_config'], 'vocab_size': hf['vocab_size']}
        name = hf.get('model_type')
        _check_family(hf, path)
        family = FAMILIES[name]
        hf = {ALIASES.get(key, key): value for key, value in hf.items()}
        hf = {**SILENT, 'rope_theta': 1e4, **family.get('silent', {}), **hf}
        _check_supported(hf, family, path)
        interval = hf.get('no_rope_layer_interval')
        n_layer = hf.get('num_hidden_layers')
        if interval and hf['no_rope_layers'] is None and isinstance(n_layer, int) and n_layer <= LAYERS:
            hf['no_rope_layers'] = [int((layer + 1) % interval > 0) for layer in range(n_layer)]
        if hf.get('use_sliding_window') is False:
            hf['sliding_window'] = None
        try:
            rope = _rope_of(hf, family)
            hf['rotary_pct'] = rope.pop('partial_rotary_factor', hf.get('rotary_pct'))
            values = {field: _from_json(field, key, hf[key]) for field, key in family['fields'].items()}
            return cls(family=name, **rope, **values)
        except KeyError as e:
            raise Refused(f"{path}: {e} is missing") from None
        except Refused as e:
            raise Refused(f"{path}: {e}") from None

    def to_hf(self, dtype='float32'):
        """The dict of config.json, which transformers 4 and 5 both read."""
        family = FAMILIES[self.family]
        hf = {'architectures': [family['architecture']], 'model_type': self.family, 'torch_dtype': dtype,
              'pad_token_id': None, # else transformers would take the family's, which may be outside the vocabulary
              **family['only']}
        for field, key in family['fields'].items():
            value = getattr(self, field)
            values = {name: json_value for json_value, name in VALUES.get(key, {}).items()}
            is_none = field.endswith('softcap') or field == 'window'
            if isinstance(value, tuple) and values:
                hf[key] = [values[part] for part in value]
            else:
                hf[key] = None if is_none and not value else values.get(value, value)
        if 'use_sliding_window' in family.get('silent', {}):
            hf['use_sliding_window'] = bool(self.window)
        if self.position == 'rope':
            scaling = None
            for rope_type, (field, keys) in ROPE_SCALING.items():
                if getattr(self, field):
                    scaling = {'rope_type': rope_type, **dict(zip(keys, getattr(self, field)))}
            hf |= {'rope_theta': self.rope_theta, 'rope_scaling': scaling}
            if 'rotary_pct' in family['fields'].values(): # Pythia in transformers 4
                hf['rotary_emb_base'] = self.rope_theta
            if self.layer_ropes:
                full = {'rope_type': 'default', 'rope_theta': self.rope_theta, **(scaling or {})}
                window = {'rope_type': 'default', 'rope_theta': self.window_theta or self.rope_theta}
                hf['rope_parameters'] = {'full_attention': full, 'sliding_attention': window}
        return hf

def _from_json(field, key, value):
    """The value of a field of GPTConfig, from that of its key in config.json."""
    values = VALUES.get(key, {})
    if isinstance(value, list): # several eos_token_id, or a value for each layer
        unknown = [part for part in value if values and part not in list(values)]
        if unknown:
            raise Refused(f"{key} has {unknown[0]!r}, expected {' or '.join(map(repr, values))} for each layer")
        return tuple(values.get(part, part) for part in value)
    if value is None and (field.endswith('softcap') or field == 'window'):
        return 0
    return values.get(value, value)

def _rope_of(hf, family):
    """The fields of GPTConfig about rotary positions, and partial_rotary_factor if it is there."""
    theta = hf['rope_theta']
    rope = hf.get('rope_parameters') or hf.get('rope_scaling') or {}
    window = {}
    if not isinstance(rope, dict):
        raise Refused(f"rope_parameters or rope_scaling {rope!r}: expected an object")
    is_nested = 'full_attention' in rope or 'sliding_attention' in rope
    if hf.get('rope_parameters') and is_nested != family['flags']['layer_ropes']:
        expected = "those of all layers" if is_nested else "full_attention and sliding_attention in it"
        raise Refused(f"rope_parameters {rope!r}: expected {expected}")
    if is_nested:
        window = rope.get('sliding_attention') or {}
        rope = rope.get('full_attention') or {}
    if not isinstance(rope, dict) or not isinstance(window, dict):
        raise Refused(f"rope_parameters {rope!r}, {window!r}: expected an object for each kind of layer")
    rope_type = rope.get('rope_type', rope.get('type', 'default'))
    if rope_type not in ('default', *ROPE_SCALING):
        raise Refused(f"rope_type {rope_type!r} is not supported, expected {', '.join(ROPE_SCALING)} or default")
    if window.get('rope_type', 'default') != 'default':
        raise Refused(f"rope_type {window['rope_type']!r} of sliding_attention is not supported, expected 'default'")
    fields = {'rope_theta': rope.get('rope_theta', theta)}
    if family['flags']['layer_ropes']:
        if 'rope_theta' not in window and theta != family['silent']['rope_theta']:
            raise Refused(f"rope_theta {theta!r}: transformers 4 takes it for all layers, 5 for those without a "
                          "window; expected rope_parameters, with a rope_theta for full_attention and one for "
                          "sliding_attention")
        window_theta = window.get('rope_theta', theta)
        fields['window_theta'] = window_theta if window_theta != fields['rope_theta'] else None
    if 'partial_rotary_factor' in rope:
        fields['partial_rotary_factor'] = rope['partial_rotary_factor']
    if rope_type == 'yarn':
        rope = _yarn(rope, hf['max_position_embeddings'])
    field, keys = ROPE_SCALING.get(rope_type, ('', ()))
    for key, value in {'rope_theta': fields['rope_theta'], **{key: rope[key] for key in keys}}.items():
        if not (isinstance(value, int | float) and value > 0):
            raise Refused(f"{key} {value!r} of rope_parameters or rope_scaling: expected a number above 0")
    if keys:
        fields[field] = tuple(rope[key] for key in keys)
    return fields

def _yarn(rope, n_positions):
    """The keys of YaRN with what transformers takes for those that are absent."""
    for key, value in (('mscale', None), ('mscale_all_dim', None), ('truncate', True)):
        if rope.get(key, value) != value:
            raise Refused(f"{key} {rope[key]!r} of yarn is not supported, expected none")
    factor = rope['factor']
    is_number = isinstance(factor, int | float)
    defaults = {'original_max_position_embeddings': n_positions, 'beta_fast': 32, 'beta_slow': 1,
                'attention_factor': 0.1 * math.log(max(factor, 1)) + 1 if is_number else 1.0}
    return defaults | {key: value for key, value in rope.items() if value is not None}

def _check_family(hf, path):
    """Refuses a model_type that FAMILIES has not, and says what it is where that is known."""
    name = hf.get('model_type')
    if isinstance(name, str) and name in FAMILIES:
        return
    what = next((what for start, what in FOREIGN.items() if str(name).startswith(start)), None)
    if any(hf.get(key) for key in EXPERTS):
        what = 'a mixture of experts'
    reason = f": it has {what}" if what else ''
    raise Refused(f"{path}: model_type {name!r} is not supported{reason}; expected "
                  f"{' or '.join(map(repr, FAMILIES))} (docs/textlms.md)")

def _check_supported(hf, family, path):
    """Refuses settings of config.json that the decoder does not have."""
    for key, expected in family['only'].items():
        value = hf.get(key, expected)
        if value != expected:
            raise Refused(f"{path}: {key} {value!r} is not supported, expected {expected!r}")
    for key in ('layer_types', 'no_rope_layers'):
        if not isinstance(hf[key], list | None):
            raise Refused(f"{path}: {key} {hf[key]!r} is not supported, expected a list with an entry for each layer")
    if hf['layer_types'] is not None and 'windowed' not in family['fields']:
        others = [kind for kind in hf['layer_types'] if kind != 'full_attention']
        if others or len(hf['layer_types']) != hf.get('num_hidden_layers'):
            has = repr(others[0]) if others else f"{len(hf['layer_types'])} entries"
            raise Refused(f"{path}: layer_types has {has}, expected 'full_attention' for each layer")
