"""
Real models on real data, where they are: BLiMP as text against a transformers loop, item by item.

    SMOLLM2=FOLDER BLIMP=FOLDER pytest -m slow tests/test_real_models.py     folders of the model and of BLiMP's .jsonl
"""
import json
import os
from pathlib import Path

import pytest
import torch

from eval import Config, main

SMOLLM2, BLIMP = (Path(os.environ.get(name) or '/nonexistent') for name in ('SMOLLM2', 'BLIMP'))
pytestmark = pytest.mark.slow

def needs(path, name):
    return pytest.mark.skipif(not path.is_dir(), reason=f'{name} names no folder')

@needs(SMOLLM2, 'SMOLLM2')
@needs(BLIMP, 'BLIMP')
@pytest.mark.parametrize('part', range(24)) # of the 67 sets: each takes a quarter of a minute
def test_blimp_equals_a_transformers_loop_item_by_item(tmp_path, part):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    (tmp_path / 'blimp').mkdir()
    (tmp_path / 'model').mkdir()
    for path in SMOLLM2.iterdir(): # results are written beside the model
        if not path.name.startswith(('eval', 'samples')):
            (tmp_path / 'model' / path.name).symlink_to(path)
    for path in sorted(BLIMP.glob('*.jsonl'))[part::24]:
        (tmp_path / 'blimp' / path.name).write_text(''.join(path.read_text().splitlines(True)[:15]))
    main(Config(model=str(tmp_path / 'model'), tasks='blimp', root=str(tmp_path), data='', lead='bos', device='cpu'))
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    model = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).eval()
    texts = {f"{x['UID']}/{x['pairID']}": (x['sentence_good'], x['sentence_bad'])
             for path in (tmp_path / 'blimp').iterdir() for x in map(json.loads, open(path))}
    lines = [json.loads(line) for line in open(tmp_path / 'model' / 'samples_blimp.jsonl')]
    assert len(lines) == len(texts) and len(lines) % 15 == 0
    won = []
    for line in lines:
        theirs = []
        for text, side in zip(texts[line['id']], ('right', 'wrong')):
            ids = torch.tensor([[model.config.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]])
            with torch.inference_mode():
                each = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
            theirs.append(each.sum().item())
            assert line[f'{side}_mean'] == pytest.approx(each.mean().item(), rel=1e-5) # of 30 layers in float32
        won.append(theirs[0] > theirs[1])
        assert won[-1] == (line['right_sum'] > line['wrong_sum'])
    print(f"part {part}: {sum(won)} of {len(won)} right by the sum")
