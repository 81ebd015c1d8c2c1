#!/usr/bin/env bash
# Behaviour: transformers 5 writes the base of rotary positions into "rope_parameters" alone; transformers 4.51 looks
#   for a "rope_theta" at the top of config.json and, without one, takes 10,000 in silence. The weights load, and the
#   model computes with other positions: SmolLM2-135M loses 0.04 nats a token on a short English text.
# Version: a config saved by transformers 5.23.0 and read by transformers 4.51.3.
# Who is bitten: whoever trains or converts with the new version and evaluates with code that is pinned to an old one,
#   such as the papers' own code for speech language models (slamkit).
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
for version in 5.23.0 4.51.3; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
done
venv-5.23.0/bin/python - <<'PYTHON' 2>/dev/null
import transformers

config = transformers.LlamaConfig(rope_parameters={'rope_type': 'default', 'rope_theta': 100000.0})
config.save_pretrained('model')
written = {key: value for key, value in config.to_dict().items() if 'rope' in key}
print('written by transformers', transformers.__version__, written)
PYTHON
venv-4.51.3/bin/python - <<'PYTHON' 2>/dev/null
import json

import transformers

top = json.load(open('model/config.json'))
theta = transformers.AutoConfig.from_pretrained('model').rope_theta
print('read by transformers', transformers.__version__, {'rope_theta': theta})
assert 'rope_theta' not in top and theta == 10000.0, 'the behaviour has changed'
PYTHON
