#!/usr/bin/env bash
# Behaviour: MimiModel.from_pretrained says nothing of weights in the files that the model has no place for, if they
#   are of the encoder, decoder, quantizer or downsampling: no warning, and output_loading_info lists no unexpected
#   keys. Elsewhere a left-over weight is reported. So a folder whose config.json has fewer layers or codebooks than
#   its weights loads as a smaller model without a word.
# Version: transformers 5.23.0, torch 2.13.0.
# Who is bitten: whoever trims num_quantizers of a Mimi, or takes a config.json of another Mimi than the weights, and
#   trusts the loading report, which does tell for HuBERT or Whisper.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 safetensors==0.8.0
FOLDER=$dir/mimi "$dir/venv/bin/python" - <<'PYTHON'
import os

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import MimiConfig, MimiModel

transformers.utils.logging.set_verbosity_error()
print('transformers', transformers.__version__)
torch.manual_seed(0)
config = MimiConfig(
    hidden_size=32, num_filters=4, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
    intermediate_size=32, codebook_size=16, codebook_dim=16, vector_quantization_hidden_dimension=16, num_quantizers=4,
    upsample_groups=32)
folder = os.environ['FOLDER']
MimiModel(config).save_pretrained(folder)
path = os.path.join(folder, 'model.safetensors')
weights = load_file(path)
silent = {
    'encoder.layers.99.conv.weight': [],
    'decoder.layers.99.conv.weight': [],
    'quantizer.acoustic_residual_vector_quantizer.layers.9.codebook.embed_sum': [],
    'downsample.more.weight': [],
    'more.weight': ['more.weight']}
for key, expected in silent.items():
    save_file({**weights, key: torch.ones(2)}, path, {'format': 'pt'})
    _, info = MimiModel.from_pretrained(folder, output_loading_info=True)
    unexpected = sorted(info['unexpected_keys'])
    print(f"left over: {key}; reported: {unexpected}")
    assert unexpected == expected, 'the behaviour has changed'
PYTHON
