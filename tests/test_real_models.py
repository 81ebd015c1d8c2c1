"""
Real models on real data, where these are present: BLiMP as text against a transformers loop, item by item, and
Whisper's words.

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

pytestmark = pytest.mark.slow

def folder_of(name):
    """The folder that an environment variable names, or one that does not exist."""
    return Path(os.environ.get(name) or '/nonexistent')

SMOLLM2 = folder_of('SMOLLM2')
BLIMP = folder_of('BLIMP')
WHISPER = folder_of('WHISPER')
SPEECH = folder_of('SPEECH')

def needs(path, name):
    return pytest.mark.skipif(not path.is_dir(), reason=f'{name} names no folder')

@needs(SMOLLM2, 'SMOLLM2')
@needs(BLIMP, 'BLIMP')
@pytest.mark.parametrize('part', range(24)) # of the 67 sets: each takes a quarter of a minute
def test_blimp_equals_a_transformers_loop_item_by_item(tmp_path, part):
    for path in sorted(BLIMP.glob('*.jsonl'))[part::24]:
        lines = path.read_text().splitlines(True)
        (tmp_path / path.name).write_text(''.join(lines[:15]))
    pairs = list(items(tmp_path))
    row, reference = beside(SMOLLM2, pairs)
    print(f"part {part}: {100 * row['sum']:.1f} % of {row['n']} right by the sum; {reference}")
    assert row['n'] == len(pairs)
    assert reference['differ'] == 0
    assert reference['right_by_sum'] == round(row['sum'] * row['n'])

@needs(WHISPER, 'WHISPER')
@needs(SPEECH, 'SPEECH')
def test_whisper_writes_down_most_of_what_is_said_and_nothing_where_nothing_is():
    spoken = list(utterances(SPEECH))[:4]
    waves = [load_audio(utterance['path']) for utterance in spoken]
    transcribe = load_asr(str(WHISPER), 'cpu')
    *texts, text_of_nothing = transcribe([*waves, waves[0][:800]])
    counts = [word_errors(utterance['text'], text) for utterance, text in zip(spoken, texts)]
    errors = sum(n_errors for n_errors, _ in counts)
    words = sum(n_words for _, n_words in counts)
    print(f"{errors} of {words} words wrong")
    assert errors < 0.15 * words
    assert text_of_nothing == ''

@needs(SMOLLM2, 'SMOLLM2')
def test_a_real_llm_finds_a_sentence_likelier_than_its_words_in_another_order():
    score = load_llm(str(SMOLLM2), 'cpu')
    sentence = 'The little girl went to the park to play with her friends.'
    shuffled = 'Park girl the friends went her play the little to to with.'
    (loss, n), (shuffled_loss, n_shuffled), empty = score([sentence, shuffled, ''])
    assert loss < shuffled_loss - 1
    assert n == 13 - 1 and n_shuffled >= n
    assert empty == (None, 0)
