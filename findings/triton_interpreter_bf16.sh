#!/usr/bin/env bash
# Behaviour: under TRITON_INTERPRET=1 a conversion from float32 to bfloat16 cuts the last 16 bits off, where a GPU and
#   torch round to the nearest. So values are too small by up to a whole unit of the last place, always towards zero.
# Version: triton 3.9.0 (and 3.6.0) with torch 2.13.0 for CPUs.
# Who is bitten: whoever checks a kernel that writes bfloat16 on a CPU: it seems biased, or a tolerance is widened
#   that would hide a fault.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check triton==3.9.0
cat > "$dir/kernel.py" <<'PYTHON'
import torch
import triton
import triton.language as tl

@triton.jit
def to_bf16(x, y):
    tl.store(y, tl.load(x).to(tl.bfloat16))

print('triton', triton.__version__, 'torch', torch.__version__)
for value in (1.015, -1.015):
    x = torch.tensor([value])
    y = torch.zeros(1, dtype=torch.bfloat16)
    to_bf16[1,](x, y)
    print(f'{value}: the interpreter writes {y.item()}, torch rounds to {x.bfloat16().item()}')
    assert abs(x.bfloat16().item()) == 1.015625
    assert abs(y.item()) == 1.0078125, 'the behaviour has changed'
PYTHON
cd "$dir"
TRITON_INTERPRET=1 "$dir/venv/bin/python" kernel.py
