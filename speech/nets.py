"""
Folders and hub ids of transformers: what kind of encoder one holds, and which of its weights are run.
"""
import re
from pathlib import Path

import torch

from configurator import Refused
from speech.pretrained import load_config

# model_type: the kind of it
KINDS = {'hubert': 'hubert', 'wav2vec2': 'hubert', 'wavlm': 'hubert', 'whisper': 'whisper', 'mimi': 'mimi'}
HUBERTS = {'hubert': 'HubertModel', 'wav2vec2': 'Wav2Vec2Model', 'wavlm': 'WavLMModel'}
# What folders of other classes hold besides: heads for pre-training, CTC, classification, and an adapter behind all.
HEADS = ('quantizer.', 'project_hid.', 'project_q.', 'label_embs_concat', 'final_proj.', 'lm_head.', 'proj_out.',
         'adapter.', 'projector.', 'classifier.', 'layer_weights', 'tdnn.', 'objective.')

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
    expected = 'a HubertModel, WhisperModel or MimiModel, or a Wav2Vec2Model or WavLMModel'
    config = load_config(name, expected)
    if getattr(config, 'quantize_vocab_size', None):
        raise Refused(f"{name}: a WhisperVQEncoder, as GLM-4-Voice's tokenizer is: transformers has no such class "
                      "(causal convolutions, attention by blocks, pooling and a codebook between layers), only the "
                      "code that comes with its model. Write its codes as a units folder (speech/units.py)")
    if config.model_type not in KINDS:
        raise Refused(f"{name}: holds a '{config.model_type}', expected {expected}")
    return KINDS[config.model_type], config

def beyond(layer, *parts):
    """is_unused of load_model: whether a weight belongs to a layer above `layer`, or to one of these parts."""
    def is_unused(key):
        number = re.match(r'encoder\.layers\.(\d+)\.', key)
        return key.startswith(parts) or bool(number) and int(number[1]) >= layer
    return is_unused

def padded(waves, n_samples, offset=0):
    """Waves as rows of a (B, n_samples) tensor that is zero elsewhere; each begins at `offset`."""
    x = torch.zeros(len(waves), n_samples)
    for row, wave in zip(x, waves):
        row[offset:offset + len(wave)] = torch.from_numpy(wave)
    return x
