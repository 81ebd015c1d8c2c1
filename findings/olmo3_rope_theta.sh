#!/usr/bin/env bash
# Behaviour: Olmo3Config(rope_theta=1e4) of transformers 5.23 has a base of 10,000 in the layers with full attention
#   and of 500,000, its default, in those with a window. A flat rope_parameters with rope_theta, as transformers 5
#   writes for other families, is left out for both kinds.
# Version: transformers 5.23.0.
# Who is bitten: whoever trains an OLMo 3 of another base, or reads a config.json that states one: three of four layers
#   rotate otherwise than was asked, and the model works, a little worse.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PYTHON'
import transformers
from transformers import Olmo3Config

def bases(**settings):
    parameters = Olmo3Config(num_hidden_layers=4, **settings).rope_parameters
    return {kind: parameters[kind]['rope_theta'] for kind in ('full_attention', 'sliding_attention')}

print('transformers', transformers.__version__)
direct = bases(rope_theta=1e4)
flat = bases(rope_parameters={'rope_type': 'default', 'rope_theta': 1e4})
print('rope_theta=10,000:', direct)
print('rope_parameters of rope_theta=10,000:', flat)
assert direct == {'full_attention': 1e4, 'sliding_attention': 5e5}, 'the behaviour has changed'
assert flat == {'full_attention': 5e5, 'sliding_attention': 5e5}, 'the behaviour has changed'
PYTHON
