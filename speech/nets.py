"""
Folders and hub ids of transformers: what kind of encoder one holds, and its weights.
"""
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from configurator import Refused, refuse_library
from files import check_readable

# model_type: the kind of it
KINDS = {'hubert': 'hubert', 'wav2vec2': 'hubert', 'wavlm': 'hubert', 'whisper': 'whisper', 'mimi': 'mimi'}
HUBERTS = {'hubert': 'HubertModel', 'wav2vec2': 'Wav2Vec2Model', 'wavlm': 'WavLMModel'}

# --------------------------------------------------------------------------------------------------
# what a folder holds

@contextmanager
def _transformers(name, expected):
    """Yields the module transformers, silenced; an error of reading folder `name` becomes Refused."""
    import transformers  # here, because it is slow to import and readers of units do not need it
    from huggingface_hub.errors import StrictDataclassError  # a field of config.json has the wrong type

    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error() # it would warn about the layers that are left out
    logging.disable_progress_bar()
    check_readable(name)
    try:
        yield transformers
    except (ImportError, OSError, ValueError, TypeError, KeyError, RuntimeError, ArithmeticError, SafetensorError,
            StrictDataclassError) as e:
        refuse_library(e)
        reason = ' '.join(str(e).split())[:200] or type(e).__name__
        raise Refused(f"{name}: expected a {expected} (config.json, model.safetensors): {reason}") from None
    finally:
        logging.set_verbosity(verbosity)

def refuse_supervised(name):
    """Refuses the tokenizers of CosyVoice and its kin by their files: a local folder, or a file of one."""
    path = Path(name)
    graphs = [path] if path.suffix == '.onnx' else sorted(path.glob('*.onnx')) if path.is_dir() else []
    if graphs and not (path / 'config.json').exists():
        raise Refused(f"{name}: {graphs[0].name} is an ONNX graph, as CosyVoice's S3 tokenizers are: its units come "
                      "out of the graph, by onnxruntime and its package's own mel, which are not used here. Write its "
                      "codes as a units folder (speech/units.py)")

def kind_of(name):
    """'hubert', 'whisper' or 'mimi', and the transformers config, of a local folder or hub id."""
    refuse_supervised(name)
    expected = 'HubertModel, WhisperModel or MimiModel, or a Wav2Vec2Model or WavLMModel'
    with _transformers(name, expected) as transformers:
        config = transformers.AutoConfig.from_pretrained(name)
    if getattr(config, 'quantize_vocab_size', None):
        raise Refused(f"{name}: a WhisperVQEncoder, as GLM-4-Voice's tokenizer is: transformers has no such class "
                      "(causal convolutions, attention by blocks, pooling and a codebook between layers), only the "
                      "code that comes with its model. Write its codes as a units folder (speech/units.py)")
    if config.model_type not in KINDS:
        raise Refused(f"{name}: holds a '{config.model_type}', expected a {expected}")
    return KINDS[config.model_type], config

def load_net(name, class_name, config, is_needed):
    """A model of transformers in float32, in eval mode.

    Every weight whose key is_needed must be in the files; transformers would make up missing ones.
    """
    with _transformers(name, class_name) as transformers:
        model, info = getattr(transformers, class_name).from_pretrained(
            name, config=config, use_safetensors=True, output_loading_info=True)
    missing = sorted(filter(is_needed, info['missing_keys']))
    if missing:
        raise Refused(f"{name}: lacks {len(missing)} weights of the model, the first is {missing[0]}")
    return model.float().eval()

def padded(waves, n_samples, offset=0):
    """Waves as rows of a (B, n_samples) tensor that is zero elsewhere; each begins at `offset`."""
    x = torch.zeros(len(waves), n_samples)
    for row, wave in zip(x, waves):
        row[offset:offset + len(wave)] = torch.from_numpy(wave)
    return x
