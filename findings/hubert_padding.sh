#!/usr/bin/env bash
# Behaviour: the features of one utterance change when it is padded to a longer one in a batch, also with an
#   attention mask. HubertModel's first convolution is normalised by a GroupNorm over time, so the zeros of the
#   padding shift its mean and variance; the mask is applied only after the convolutions. With random weights of
#   the base shape the features of a second of noise change by about half of their norm beside four seconds.
# Version: transformers 5.23.0, torch 2.13.0 (CPU).
# Who is bitten: whoever turns speech into HuBERT units in batches: units then depend on what else was in the
#   batch.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.13.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import HubertConfig, HubertModel

print('transformers', transformers.__version__, 'torch', torch.__version__)
torch.manual_seed(0)
model = HubertModel(HubertConfig(num_hidden_layers=2)).eval() # else the base shape: feat_extract_norm is 'group'
wave = 0.1 * torch.randn(1, 16000)
padded = torch.nn.functional.pad(wave, (0, 48000)) # as beside a wave of 4 seconds
mask = torch.zeros_like(padded, dtype=torch.long)
mask[:, :16000] = 1
with torch.no_grad():
    alone = model(wave).last_hidden_state[0]
    batched = model(padded, attention_mask=mask).last_hidden_state[0, :len(alone)]
change = ((batched - alone).norm() / alone.norm()).item()
print(f'{len(alone)} frames; relative change of the features by padding with a mask: {change:.3f}')
assert change > 0.01, 'the behaviour has changed: padding no longer matters'
PYTHON
