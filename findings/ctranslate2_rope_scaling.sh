#!/usr/bin/env bash
# Behaviour: CTranslate2's converter takes a Llama whose positions are scaled as in Llama 3.1 and 3.2 (rope_type llama3)
#   without a warning and leaves the scaling out: the converted model gives other logits. Without scaling they agree.
# Version: ctranslate2 4.8.5 with transformers 5.23.0 and torch 2.13.0, a small Llama of random weights.
# Who is bitten: whoever serves a speech language model that began as Llama 3.2 through CTranslate2, and measures it
#   there: nothing is raised, and texts longer than a few words are continued worse.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 ctranslate2==4.8.5
cd "$dir"
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" - <<'PYTHON' 2>/dev/null
import ctranslate2
import numpy as np
import tokenizers
import torch
import transformers

NAMES = ['<s>', '</s>', '<unk>', *(f'w{i}' for i in range(61))]
SCALING = {'rope_type': 'llama3', 'rope_theta': 10000.0, 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
           'original_max_position_embeddings': 32}
tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({name: i for i, name in enumerate(NAMES)}, '<unk>'))
fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>',
                                            unk_token='<unk>')
ids = torch.arange(60) % 61 + 3
distances = {}
for name, rope in (('without', {'rope_type': 'default', 'rope_theta': 10000.0}), ('llama3', SCALING)):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(NAMES), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, initializer_range=0.3, rope_parameters=rope,
        bos_token_id=0, eos_token_id=1)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(name)
    fast.save_pretrained(name)
    ctranslate2.converters.TransformersConverter(name).convert(f'{name}-ct2')
    with torch.no_grad():
        expected = model(ids[None]).logits[0].numpy()
    tokens = [NAMES[i] for i in ids]
    logits = ctranslate2.Generator(f'{name}-ct2').forward_batch([tokens], return_log_probs=False)
    distances[name] = float(np.abs(np.array(logits.to(ctranslate2.DataType.float32))[0] - expected).max())
    print(f'ctranslate2 {ctranslate2.__version__}, scaling {name}: logits up to {np.abs(expected).max():.2f}, '
          f'largest distance {distances[name]:.1e}')
assert distances['without'] < 1e-3 and distances['llama3'] > 0.1, 'the behaviour has changed'
PYTHON
