#!/usr/bin/env bash
# Behaviour: the same tensors with the same metadata give different bytes from process to process:
#   save_file writes the metadata of the header in an arbitrary order as soon as it has several keys.
# Version: safetensors 0.8.0.
# Who is bitten: whoever compares checkpoints or caches by the sha256 of their files: equal runs look
#   different. Without metadata, or with one key, the bytes are equal.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cd "$dir"
cat >write.py <<'PYTHON'
import hashlib
import sys

import numpy as np
from safetensors.numpy import save_file

keys = 'abcdef'[:int(sys.argv[1])]
save_file({'x': np.zeros(3, np.float32)}, 'x.safetensors', {key: key for key in keys})
print(hashlib.sha256(open('x.safetensors', 'rb').read()).hexdigest()[:16])
PYTHON
for n_keys in 1 6; do
  for _ in 1 2 3 4 5 6 7 8; do "$dir/venv/bin/python" write.py $n_keys; done | sort -u >hashes
  echo "$n_keys keys of metadata, 8 processes: $(wc -l <hashes) different files"
  wc -l <hashes >"count$n_keys"
done
[ "$(cat count1)" -eq 1 ] && [ "$(cat count6)" -gt 1 ] || { echo "the behaviour has changed"; exit 1; }
