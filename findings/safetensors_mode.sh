#!/usr/bin/env bash
# Behaviour: save_file makes a file that its owner alone may read (mode 0600), whatever the umask; and safe_open calls a
#   file that it may not read "No such file or directory" (FileNotFoundError).
# Version: safetensors 0.8.0. In 0.7.0 the mode follows the umask, and the message is the same.
# Who is bitten: whoever shares a disk: a colleague, a service account or a web server cannot read the weights, and is
#   told that they are not there.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
cd "$dir"
cat >write.py <<'PYTHON'
import os
import sys

import numpy as np
import safetensors
from safetensors.numpy import save_file

os.umask(0o022)
name = f'{safetensors.__version__}.safetensors'
save_file({'x': np.zeros(3, np.float32)}, name)
mode = os.stat(name).st_mode & 0o777
print(f'safetensors {safetensors.__version__}, umask 022: mode {mode:o}')
assert mode == int(sys.argv[1], 8), 'the behaviour has changed'
os.chmod(name, 0)
if os.geteuid() == 0: # root may read everything
    os.seteuid(65534)
try:
    safetensors.safe_open(name, 'numpy')
except Exception as e:
    print(f'  a file that may not be read: {type(e).__name__}: {e}')
    assert type(e) is FileNotFoundError, 'the behaviour has changed'
PYTHON
for case in "0.7.0 644" "0.8.0 600"; do
  read -r version mode <<<"$case"
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet --disable-pip-version-check "safetensors==$version" numpy==2.4.6
  "venv-$version/bin/python" write.py "$mode"
done
