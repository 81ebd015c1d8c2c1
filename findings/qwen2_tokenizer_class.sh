#!/usr/bin/env bash
# Behaviour: AutoTokenizer takes a folder whose config.json says "model_type": "qwen2" for a Qwen2Tokenizer,
#   whatever class tokenizer_config.json names. A tokenizer of another kind (here: one word, one id) is read
#   with the wrong splitting, without a warning; without config.json beside it, the same files give the right
#   ids. An auto_map entry in tokenizer_config.json that names the class gives them too, unless trust_remote_code is
#   set.
# Version: transformers 5.23.0, tokenizers 0.23.3.
# Who is bitten: whoever saves a Qwen2-shaped model with another tokenizer, as speech language models of units
#   alone do: trainers and evaluation harnesses that call AutoTokenizer then work on other ids than the model
#   was trained on.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
cd "$dir"
"$dir/venv/bin/python" - <<'PYTHON'
import json
import pathlib

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

print('transformers', transformers.__version__)
for name in ('alone', 'with_config', 'with_auto_map'):
    folder = pathlib.Path(name)
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({'<unk>': 0, 'u1': 1, 'u2': 2, 'u3': 3}, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / 'tokenizer.json'))
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'unk_token': '<unk>'}
    if name == 'with_auto_map':
        config['auto_map'] = {'AutoTokenizer': [None, 'transformers.PreTrainedTokenizerFast']}
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    if name != 'alone':
        (folder / 'config.json').write_text(json.dumps({'model_type': 'qwen2'}))
seen = {}
for name in ('alone', 'with_config', 'with_auto_map'):
    tokenizer = AutoTokenizer.from_pretrained(name)
    seen[name] = (type(tokenizer).__name__, tokenizer('u3 u1 u2')['input_ids'])
    print(f'{name}: {seen[name]}')
assert seen['alone'][1] == seen['with_auto_map'][1] == [3, 1, 2]
assert seen['with_config'][0].startswith('Qwen2') and seen['with_config'][1] != [3, 1, 2], 'the behaviour has changed'
PYTHON
