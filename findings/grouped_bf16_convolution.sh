#!/usr/bin/env bash
# Behaviour: on a processor with AMX, a grouped convolution of bfloat16 in torch gives wrong numbers where a group
#   has 4 or 8 channels: they differ from float32 by as much as the largest value, and nothing is raised. With 16
#   channels a group the difference is rounding. HuBERT's and wav2vec 2.0's positional convolution is a grouped one;
#   small encoders have such groups (256 channels in 32 groups).
# Version: torch 2.13.0 for CPUs, with oneDNN in its wheel, on a processor whose flags name amx_bf16.
# Who is bitten: whoever runs a small speech encoder in bfloat16 or under autocast on a recent Xeon: the features are
#   noise.
set -euo pipefail
if ! grep -q amx_bf16 /proc/cpuinfo; then
  echo "this processor has no AMX: nothing to see here"
  exit 0
fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PYTHON'
import torch

print('torch', torch.__version__)
torch.manual_seed(0)
differences = {}
for channels in (4, 8, 16, 32): # of each of two groups
    x = torch.randn(1, 2 * channels, 1, 40).bfloat16()
    w = torch.randn(2 * channels, channels, 1, 16).bfloat16()
    exact = torch.nn.functional.conv2d(x.float(), w.float(), groups=2)
    y = torch.nn.functional.conv2d(x, w, groups=2).float()
    differences[channels] = ((y - exact).abs().max() / exact.abs().max()).item()
    print(f'{channels} channels a group: differs from float32 by {differences[channels]:.1%} of the largest value')
assert differences[16] < 0.01 and differences[32] < 0.01
assert differences[4] > 0.5 and differences[8] > 0.5, 'the behaviour has changed: small groups are right now'
PYTHON
