"""
Real models on real data, where they are: BLiMP as text against a transformers loop, item by item; Whisper's words.

    SMOLLM2=FOLDER BLIMP=FOLDER WHISPER=FOLDER SPEECH=FOLDER pytest -m slow tests/test_real_models.py

SMOLLM2 and WHISPER (tiny.en) are Hugging Face folders, BLIMP holds its .jsonl, SPEECH clean read speech with texts.
"""
import json
import os
from pathlib import Path

import pytest
import torch

from audio import load_audio
from corpora.folder import utterances
from eval import Config, main
from generation import load_asr, load_llm, word_errors

SMOLLM2, BLIMP, WHISPER, SPEECH = (Path(os.environ.get(name) or '/nonexistent')
                                   for name in ('SMOLLM2', 'BLIMP', 'WHISPER', 'SPEECH'))
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
    def log_p(model, text):
        ids = torch.tensor([[model.config.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]])
        with torch.inference_mode():
            return model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    won, unclear = [], []
    for line in lines:
        theirs = []
        for text, side in zip(texts[line['id']], ('right', 'wrong')):
            each, ours = log_p(model, text), line[f'{side}_mean']
            theirs.append(each.sum().item())
            if ours != pytest.approx(each.mean().item(), rel=1e-5): # 30 layers of float32: which of the two is off?
                unclear.append((text, ours, each.mean().item()))
        won.append(theirs[0] > theirs[1])
        assert won[-1] == (line['right_sum'] > line['wrong_sum'])
    model = model.double() if unclear else model
    for text, ours, each in unclear:
        exact = log_p(model, text).mean().item()
        assert abs(ours - exact) <= 2 * abs(each - exact) + 1e-5, (text, ours, each, exact)
    print(f"part {part}: {sum(won)} of {len(won)} right by the sum, {len(unclear)} scores decided in float64")

@needs(WHISPER, 'WHISPER')
@needs(SPEECH, 'SPEECH')
def test_whisper_writes_down_most_of_what_is_said_and_nothing_where_nothing_is():
    spoken = list(utterances(SPEECH))[:4]
    heard = load_asr(str(WHISPER), 'cpu')([*(load_audio(u['path']) for u in spoken), load_audio(spoken[0]['path'])[:800]])
    errors, words = map(sum, zip(*[word_errors(u['text'], text) for u, text in zip(spoken, heard)]))
    print(f"{errors} of {words} words wrong")
    assert errors < 0.15 * words and heard[-1] == ''

@needs(SMOLLM2, 'SMOLLM2')
def test_a_real_llm_finds_a_sentence_likelier_than_its_words_in_another_order():
    (one, n), (other, m), empty = load_llm(str(SMOLLM2), 'cpu')(
        ['The little girl went to the park to play with her friends.', 'Park girl the friends went her play the little to to with.', ''])
    assert one < other - 1 and n == 13 - 1 and m >= n and empty == (None, 0)
