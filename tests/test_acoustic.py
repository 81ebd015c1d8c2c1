"""The acoustic items of tiny's two voices: what a unit stream without voice must score, and one of voices alone."""
import io
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from small import make_model, make_tokenizer

import eval as evaluation
from configurator import Refused
from eval import encoded, score_pairs
from tasks.acoustic import ROOM, as_file, higher, in_room, items, shared_sentences

PARTS = ('speaker', 'gender', 'room')

@pytest.fixture(scope='module')
def all_items():
    return list(items('tiny/audio'))

def stream(units_of):
    """open_cache of eval.encoded, of a tokenizer that makes units_of(file) of each of the files that are joined."""
    def encode(audios):
        entries = {}
        for audio in audios:
            units = np.concatenate([units_of(part) for part in audio])
            entries[audio] = units, np.ones(len(units), np.int64), 16000
        return entries
    return lambda: SimpleNamespace(encode=encode)

def test_each_sound_is_as_often_right_as_wrong_after_each_context(all_items):
    assert {item['rows'][0] for item in all_items} == set(PARTS)
    assert len({item['id'] for item in all_items}) == len(all_items)
    for part in PARTS:
        of_part = [item for item in all_items if item['rows'] == (part,)]
        right, wrong = ([item[side]['joined'][1] for item in of_part] for side in ('right', 'wrong'))
        assert len(of_part) >= 24 and sorted(map(hash, right)) == sorted(map(hash, wrong))
        assert all(item['right']['joined'][0] == item['wrong']['joined'][0] for item in of_part)
        assert all(r != w for r, w in zip(right, wrong))

def test_a_stream_without_voice_scores_exactly_one_half(all_items, tmp_path):
    """Its units depend on the words alone, which are the same in both candidates: any model ties."""
    text_of = {}
    for item in all_items: # the endings of an item have the same words
        a, b = (item[side]['joined'][1] for side in ('right', 'wrong'))
        key = text_of.get(a) or text_of.get(b) or len(text_of) + 1
        text_of[a] = text_of[b] = key
    def units_of(file):
        return np.random.default_rng(text_of[file]).integers(0, 20, 10)
    make_tokenizer(tmp_path / 'tokenizer')
    model, vocab = make_model(tmp_path / 'model', tmp_path / 'tokenizer', 'speech')
    with_units, _ = encoded(all_items, stream(units_of))
    rows, lines = score_pairs(model, vocab, None, with_units, 'S', 2048)
    assert {name: row['value'] for name, row in rows.items()} == dict.fromkeys(PARTS, 0.5)
    assert all(line['right_mean'] == line['wrong_mean'] for line in lines)

def test_a_stream_of_voices_alone_tells_all_items_apart(all_items):
    """Its unit is the sound: right documents have one, wrong ones change to another where the ending begins."""
    sound_of = {}
    for item in all_items:
        _, names, same, _ = item['id'].split('/')
        [other] = set(names.split('-')) - {same}
        sound_of |= {item['right']['joined'][1]: same, item['wrong']['joined'][1]: other}
    number = {name: i for i, name in enumerate(sorted(set(sound_of.values())))}
    with_units, _ = encoded(all_items, stream(lambda file: [number[sound_of[file]]]))
    for item in with_units:
        right, wrong = (item[side]['joined'][0] for side in ('right', 'wrong'))
        assert len(set(right)) == 1 and len(set(wrong)) == 2

def test_sounds_are_what_they_say():
    wave = np.zeros(16000, np.float32)
    wave[0] = 0.5
    wet = in_room(wave)
    energy = np.cumsum(wet[::-1].astype(np.float64) ** 2)[::-1] # Schroeder's decay
    drop = 10 * np.log10(energy[1] / energy[round(ROOM * 8000)])
    assert len(wet) == len(wave) and np.isclose(np.mean(wet ** 2), np.mean(wave ** 2)) and 25 < drop < 35
    t = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 400 * t).astype(np.float32)
    spectrum = np.abs(np.fft.rfft(higher(tone)))
    assert len(higher(tone)) == 12800 and spectrum.argmax() * 16000 / 12800 == 500
    read, rate = soundfile.read(io.BytesIO(as_file(3 * tone)))
    assert rate == 16000 and np.abs(read).max() <= 1

def test_sentences_are_cut_in_the_pauses():
    shared = shared_sentences('tiny/audio')
    assert 'They wanted to see the trains at the cottage.' in shared and len(shared) == 4
    for waves in shared.values():
        assert set(waves) == {'joe', 'am_puck'}
        assert all(1 < len(wave) / 16000 < 5 for wave in waves.values())

def test_a_folder_without_shared_sentences_is_refused(tmp_path):
    soundfile.write(tmp_path / 'a.wav', np.ones(1600), 16000)
    with pytest.raises(Refused, match='0 sentences that two speakers say, expected at least 2'):
        list(items(tmp_path))
    assert evaluation.TASKS['acoustic'] is items
