#!/usr/bin/env bash
# Behaviour: transformers 5 imports torchaudio, wherever it is installed, before any model, text models too. The
#   torchaudio that pip chooses asks for no version or build of torch; its library is built for CUDA. Beside a torch
#   for CPUs it is installed without a word, and from then on no model class can be imported, not even Llama's.
# Version: transformers 5.23.0, torchaudio 2.11.1, torch 2.13.0 for CPUs.
# Who is bitten: whoever installs a package that needs torchaudio (distillmos, speechbrain) into an environment for
#   CPUs: what breaks is not that package but every script that loads a model.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6
if "$dir/venv/bin/python" -c "import sys, torch; sys.exit(torch.version.cuda is None)"; then
  echo "this torch has CUDA: nothing to see here"
  exit 0
fi
try() { # prints what importing a class gives
  "$dir/venv/bin/python" - <<'PYTHON'
import transformers

for name in ('LlamaModel', 'HubertModel'):
    try:
        getattr(transformers, name)
        print(name, 'imported')
    except Exception as error:
        print(name, type(error).__name__, str(error).replace(transformers.__path__[0].rsplit('/', 1)[0] + '/', ''))
PYTHON
}
echo "without torchaudio:"
try | tee "$dir/before"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torchaudio==2.11.1
"$dir/venv/bin/pip" check
echo "with torchaudio:"
try | tee "$dir/after"
[ "$(grep -c imported "$dir/before")" = 2 ]
[ "$(grep -c OSError "$dir/after")" = 2 ]
# Output seen:
#   without torchaudio:
#   LlamaModel imported
#   HubertModel imported
#   No broken requirements found.
#   with torchaudio:
#   LlamaModel OSError Could not load this library: torchaudio/lib/_torchaudio.so
#   HubertModel OSError Could not load this library: torchaudio/lib/_torchaudio.so
