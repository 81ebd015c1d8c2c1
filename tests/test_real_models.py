"""
Real models on real data, where they are: BLiMP as text against a transformers loop, item by item; Whisper's words.

    SMOLLM2=FOLDER BLIMP=FOLDER WHISPER=FOLDER SPEECH=FOLDER pytest -m slow tests/test_real_models.py

SMOLLM2 and WHISPER (tiny.en) are Hugging Face folders, BLIMP holds its .jsonl, SPEECH clean read speech with texts.
"""
import os
from pathlib import Path

import pytest

from bench.blimp import beside
from corpora.folder import utterances
from evaluation.generation import load_asr, load_llm
from evaluation.text_scores import word_errors
from speech.audio import load_audio
from tasks.blimp import items

SMOLLM2, BLIMP, WHISPER, SPEECH = (Path(os.environ.get(name) or '/nonexistent')
                                   for name in ('SMOLLM2', 'BLIMP', 'WHISPER', 'SPEECH'))
pytestmark = pytest.mark.slow

def needs(path, name):
    return pytest.mark.skipif(not path.is_dir(), reason=f'{name} names no folder')

@needs(SMOLLM2, 'SMOLLM2')
@needs(BLIMP, 'BLIMP')
@pytest.mark.parametrize('part', range(24)) # of the 67 sets: each takes a quarter of a minute
def test_blimp_equals_a_transformers_loop_item_by_item(tmp_path, part):
    for path in sorted(BLIMP.glob('*.jsonl'))[part::24]:
        (tmp_path / path.name).write_text(''.join(path.read_text().splitlines(True)[:15]))
    found = list(items(tmp_path))
    row, said = beside(SMOLLM2, found)
    print(f"part {part}: {100 * row['sum']:.1f} % of {row['n']} right by the sum; {said}")
    assert row['n'] == len(found) and said['differ'] == 0 and said['right_by_sum'] == round(row['sum'] * row['n'])

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
