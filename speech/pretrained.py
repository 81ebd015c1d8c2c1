"""
The only place where transformers loads a model or a tokenizer from a folder or hub id.

    config = load_config(name, 'a HubertModel')
    model = load_model('HubertModel', name, is_unused, config=config)

No code of a folder is ever run: one whose config.json asks for that is refused, also where
transformers has a class of its own for it, which need not compute the same. Weights are read from
safetensors alone. transformers makes up the weights that a folder lacks, and leaves out those that
it has too many: here both are refused by name, as are other shapes and numbers that are not finite.
(Of Mimi, transformers does not tell what is left over in the encoder and the codebooks.) Looking for
numbers that are not finite takes 0.05 s a GB.
"""
import os
import re
from contextlib import contextmanager

from safetensors import SafetensorError, safe_open

from configurator import Refused, refuse_library
from files import check_readable, is_finite, read_value

BUFFERS = r'rotary_emb\.inv_freq$|\.attn(ention)?\.(masked_)?bias$' # in files of old transformers, not weights

LAYERS = ('num_hidden_layers', 'encoder_layers', 'decoder_layers') # numbers of layers in config.json
WIDTHS = ('hidden_size', 'd_model', 'intermediate_size', 'encoder_ffn_dim', 'decoder_ffn_dim')
MOST_IDS = 2 ** 20 # of a published vocabulary, and more

def model_file(name, file, needed=True):
    """The JSON of a file in a model's folder or hub id, None if there is none. Raises Refused."""
    from transformers.utils import cached_file
    is_folder = os.path.isdir(name)
    try:
        if is_folder:
            path = os.path.join(name, file)
        else:
            path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError): # no network, or not a valid name of a repository
        raise Refused(f"{name}: no such folder, nor a hub id that can be reached; "
                      "expected a model of transformers") from None
    value = None
    try:
        if path and os.path.isfile(path):
            value = read_value(path)
    except (OSError, ValueError) as e:
        raise Refused(f"{name}/{file}: not JSON ({e})") from None
    if value is None and needed:
        if is_folder:
            raise Refused(f"{name}: no {file} in it, which this model needs")
        raise Refused(f"{name}: no such folder; "
                      f"and the hub has no {file} under this id, or is out of reach")
    return value

def _refuse_code(name, file):
    """Refuses a folder whose file names Python code: its own, or attention of another repository on the hub."""
    settings = model_file(name, file, needed=False)
    if not isinstance(settings, dict):
        return # transformers says what is wrong with it
    code = settings.get('auto_map')
    attention = [settings.get(key) for key in ('attn_implementation', '_attn_implementation')]
    key = 'auto_map' if code else 'attn_implementation'
    if code or '/' in str(attention):
        raise Refused(f"{name}/{file}: asks to run Python code that is not transformers' own ({key}), which is never "
                      f"done; give another model, or take {key} out if transformers' own class computes the same")

def _refuse_size(name):
    """Refuses a folder whose config.json describes more layers or wider ones than its files have, before transformers
    takes memory and time for them."""
    settings = model_file(name, 'config.json', needed=False)
    files = [path for path in os.scandir(name) if path.name.endswith('.safetensors')] if os.path.isdir(name) else []
    if not files or not isinstance(settings, dict):
        return # transformers says so; what comes from the hub is as it was published
    shapes = []
    for file in files:
        with safe_open(file.path, 'pt') as weights:
            shapes += [weights.get_slice(key).get_shape() for key in weights.keys()]
    limits = dict.fromkeys(LAYERS, len(shapes)) | dict.fromkeys(WIDTHS, max(map(max, filter(None, shapes)), default=0))
    limits['vocab_size'] = max(limits['hidden_size'], MOST_IDS) # a model without its head and table may say any
    for key, limit in limits.items():
        if isinstance(settings.get(key), int) and settings[key] > limit:
            raise Refused(f"{name}/config.json: {key} is {settings[key]:,}, and its weights allow {limit:,} at most; "
                          "take the config.json that was published with them")

@contextmanager
def _transformers(name, expected):
    """Yields the module transformers, silenced; an error of reading folder `name` becomes Refused."""
    import transformers  # here, because it is slow to import and readers of units do not need it
    from huggingface_hub.errors import StrictDataclassError  # a field of config.json has the wrong type

    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error() # what it would warn about is refused or meant
    logging.disable_progress_bar()
    check_readable(name)
    _refuse_code(name, 'config.json')
    try:
        yield transformers
    except (ImportError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError,
            SafetensorError, StrictDataclassError) as e:
        refuse_library(e)
        reason = ' '.join(str(e).split())[:200] or type(e).__name__
        raise Refused(f"{name}: expected {expected} (config.json, model.safetensors): {reason}") from None
    finally:
        logging.set_verbosity(verbosity)

def load_config(name, expected):
    """transformers' config of a folder or hub id. expected: what it should be of, for the message of Refused."""
    with _transformers(name, expected) as transformers:
        return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)

def load_tokenizer(name):
    """transformers' tokenizer of a folder or hub id."""
    with _transformers(name, "a tokenizer of transformers") as transformers:
        return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)

def load_model(class_name, name, is_unused=None, **options):
    """A model of transformers in eval mode. Raises Refused.

    is_unused(key) says whether the caller runs nothing that has this weight, which may then be
    absent, left over, or not finite; None: all of the model is run. options: config, dtype, ... of
    from_pretrained.
    """
    with _transformers(name, f"a model that transformers' {class_name} reads") as transformers:
        _refuse_size(name)
        model, info = getattr(transformers, class_name).from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options)
    prefix = model.base_model_prefix + '.'

    def counts(key):
        key = key.removeprefix(prefix)
        return key != 'masked_spec_embed' and not (is_unused and is_unused(key)) # the first: only in training

    missing = sorted(filter(counts, info['missing_keys']))
    if missing:
        raise Refused(f"{name}: lacks {len(missing)} weights of the model, the first is {missing[0]}")
    unexpected = sorted(key for key in filter(counts, info['unexpected_keys']) if not re.search(BUFFERS, key))
    if unexpected:
        raise Refused(f"{name}: has {len(unexpected)} weights that are none of the model of its config.json, the first "
                      f"is {unexpected[0]}")
    for key, tensor in model.state_dict().items():
        if counts(key) and not is_finite(tensor):
            raise Refused(f"{name}: weight {key} has numbers that are not finite; get the folder again")
    return model.eval()
