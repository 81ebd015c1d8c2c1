"""
tiny/build/speak.py: word times from phone durations, rooms and noise, shards. What espeak said was recorded here, and a
made-up engine speaks; the last tests run the real ones where they are installed:

    PIPER=VOICE.onnx KOKORO=FOLDER pytest tests/test_speak.py
"""
import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from configurator import Refused
from tiny.build import speak
from tiny.build.speak import RATE, Config, Unspeakable

# how espeak says words and phrases, alone
ALONE = {'Tom': 'tˈɑːm', 'the': 'ðə', 'fox': 'fˈɑːks', 'was': 'wʌz', 'a': 'ˈeɪ', 'friend': 'fɹˈɛnd', 'of': 'ʌv',
         'owl': 'ˈaʊl', 'No': 'nˈoʊ', 'one': 'wˈʌn', 'had': 'hæd', 'to': 'tuː', 'be': 'bˈiː', 'been': 'bˈɪn',
         'out': 'ˈaʊt', 'There': 'ðˈɛɹ', 'were': 'wɜː', 'are': 'ɑːɹ', 'acorns': 'ˈeɪkɔːɹnz', 'in': 'ɪn',
         'chest': 'tʃˈɛst', 'table': 'tˈeɪbəl', 'and': 'ænd', 'he': 'hˈiː', 'went': 'wˈɛnt', 'No one': 'nˈoʊwˈʌn',
         'was a': 'wʌzɐ', 'of the': 'ʌvðə', 'had to': 'hædtʊ', 'There were': 'ðɛɹwˈɜː', 'in the': 'ɪnðə',
         'out of': 'ˌaʊɾəv', 'had been': 'hɐdbˈɪn'}

# sentence, its phones, and which of them each word has
SPLITS = [
    ('Tom was a friend of the owl.', 'tˈɑːm wʌzɐ fɹˈɛnd ʌvðɪʲ ˈaʊl.', 'tˈɑːm wʌz ɐ fɹˈɛnd ʌv ðɪʲ ˈaʊl'),
    ('No one had to be out of the chest.', 'nˈoʊwˈʌn hædtə bˈiː ˌaʊɾəv ðə tʃˈɛst.',
     'nˈoʊ wˈʌn hæd tə bˈiː ˌaʊɾ əv ðə tʃˈɛst'),
    ('There were acorns in the chest.', 'ðɛɹwˌɜːɹ ˈeɪkɔːɹnz ɪnðə tʃˈɛst.', 'ðɛɹ wˌɜːɹ ˈeɪkɔːɹnz ɪn ðə tʃˈɛst'),
    ('There are acorns.', 'ðɛɹˌɑːɹ ˈeɪkɔːɹnz.', 'ðɛɹ ˌɑːɹ ˈeɪkɔːɹnz'),
    ('Tom had been in a table, and he went.', 'tˈɑːm hɐdbɪn ɪn ɐ tˈeɪbəl, ænd hiː wˈɛnt.',
     'tˈɑːm hɐd bɪn ɪn ɐ tˈeɪbəl ænd hiː wˈɛnt'),
]

class Recorded:
    """A Phonemizer of ALONE and SPLITS; a phrase nobody recorded is said word by word."""
    known = ALONE | {sentence: phones for sentence, phones, _ in SPLITS}
    forms = speak.Phonemizer.forms

    def __call__(self, text):
        return self.known[text] if text in self.known else ' '.join(self.known[word] for word in text.split())

class Engine:
    """Each token is a steady tone, of a pitch of its own, for a drawn number of hops; a space for one."""
    rate, hop, late = 24_000, 600, 0

    def __call__(self, phones, voice, rng):
        samples = rng.integers(1, 6, len(phones) + 2) * self.hop
        samples[[i + 1 for i, c in enumerate(phones) if c == ' ']] = self.hop
        pitch = np.repeat([0, *(200 + 7 * (ord(c) % 97) for c in phones), 0], samples)
        return 0.1 * np.sin(2 * np.pi * np.cumsum(pitch) / self.rate).astype(np.float32), samples

@pytest.mark.parametrize('sentence, phones, pieces', SPLITS)
def test_every_word_gets_its_own_phones_where_espeak_joins_words(sentence, phones, pieces):
    spans = speak.word_tokens(sentence, phones, Recorded())
    assert [phones[a:b] for a, b in spans] == pieces.split()
    assert len(spans) == len(sentence.split())

@pytest.mark.parametrize('sentence, phones', [
    ('Tom was a fox.', 'tˈɑːm wʌzɐ.'),              # a word is not said
    ('Tom was.', 'tˈɑːm wʌz fˈɑːks.'),              # one too many
    ('Tom the fox.', 'tˈɑːm fˈɑːks ðə.'),           # in another order
    ('The owl.', ''),                               # nothing
    ('Tom.', 'wʌzɐ fɹˈɛnd tˈeɪbəl.'),
])
def test_phones_that_do_not_spell_the_words_are_refused(sentence, phones):
    recorded = Recorded()
    recorded.known = recorded.known | {'The': 'ðə'}
    with pytest.raises(Unspeakable):
        speak.word_tokens(sentence, phones, recorded)

def test_the_middle_of_a_space_is_the_boundary_and_pauses_belong_to_no_word():
    phones, spans = 'ab c, d.', [(0, 2), (3, 4), (6, 7)] # words ab, c and d
    samples = np.array([5, 10, 10, 4, 10, 30, 8, 10, 20, 3]) # of the beginning, each of phones, the end
    starts, ends = speak.word_times(phones, spans, samples)
    assert starts.tolist() == [5, 27, 73] # 5 | 5+20+4/2 | 5+20+4+10+30+8/2
    assert ends.tolist() == [27, 39, 87]  # the comma, the space behind it and the period are left out

def test_words_of_a_join_share_a_boundary_without_a_gap():
    sentence, phones, _ = SPLITS[0]
    spans = speak.word_tokens(sentence, phones, Recorded())
    starts, ends = speak.word_times(phones, spans, np.full(len(phones) + 2, 4))
    assert (ends[:-1] == starts[1:]).all() and starts[0] == 4 and ends[-1] == 4 * (len(phones) + 2 - 2)

def test_a_word_that_falls_silent_ends_with_its_sound_and_others_as_the_durations_say():
    rate, wave = 16_000, np.zeros(16_000, np.float32)
    for a, b in ((2000, 3000), (4000, 5555), (9000, 12_000)):
        wave[a:b] = 0.1 * np.sin(np.arange(b - a))
    wave[12_000:13_000] = 0.0005 * np.sin(np.arange(1000)) # 46 dB down
    starts, ends = np.array([2000, 4000, 9000]), np.array([4000, 8800, 15_990])
    assert speak.ends_of_sound(wave, rate, starts, ends).tolist() == [4000, 5600, 12_000] # 62 ms of silence stay
    assert speak.ends_of_sound(wave, rate, starts, np.array([4000, 6800, 12_500])).tolist() == [4000, 6800, 12_500]

def spoken(doc_id='t000001', diverse=False, sentences=3, **settings):
    doc = {'id': doc_id, 'sentences': [s for s, _, _ in SPLITS[:sentences]], 'speaker': 'joe', 'diverse': diverse}
    return speak.document(Engine(), Recorded(), doc, Config(**settings))

def test_words_spell_the_text_in_order_inside_the_wave_and_silence_is_as_set():
    line, wave = spoken(pause=0.25, edge=0.1)
    assert ''.join(word for word, _, _ in line['words']) == line['text']
    flat = np.array([(start, end) for _, start, end in line['words']])
    assert (flat[:, 0] < flat[:, 1]).all() and (flat[:-1, 1] <= flat[1:, 0]).all()
    assert line['samples'] == len(wave) and flat[0, 0] >= 0.1 * RATE and flat[-1, 1] <= len(wave) - 0.1 * RATE
    assert not wave[:1600].any() and not wave[-1600:].any()
    for last in ('owl.', 'chest.'): # 150 ms of the sentence's own at most, then 0.25 s of zeros
        end = next(end for word, _, end in line['words'] if word.strip() == last)
        quiet = wave[end:end + speak.AFTER + 4000]
        assert (quiet == 0).sum() >= 4000

def test_a_tone_is_heard_where_its_word_is():
    line, wave = spoken()
    words = iter(line['words'])
    for sentence, phones, _ in SPLITS[:3]:
        for first, last in speak.word_tokens(sentence, phones, Recorded()):
            _, start, end = next(words)
            end -= 200 * (phones[last] == ' ') # half a space belongs to the word: 12.5 ms
            tail = wave[end - 350:end - 50].astype(float) # the word's last phone: the shortest token has 400 samples
            heard = np.abs(np.fft.rfft(tail * np.hanning(len(tail)), 16000)).argmax() # 1 Hz a bin
            wanted = 200 + 7 * (ord(phones[last - 1]) % 97)
            assert abs(heard - wanted) < 30, f"{phones[first:last]}: {heard} Hz, {wanted} wanted"

def test_every_sentence_stands_to_the_sample_where_its_words_say():
    (line, wave), words = spoken(), 0
    for i, (sentence, _, _) in enumerate(SPLITS[:3]):
        alone, starts, ends = speak.say(Engine(), Recorded(), sentence, 'joe', speak._rng(1, 't000001', i))
        begin = line['words'][words][1] - starts[0]
        assert (wave[begin:begin + len(alone)] == np.rint(alone * 32767)).all()
        assert [end - begin for _, _, end in line['words'][words:words + len(ends)]] == ends.tolist()
        words += len(ends)

def test_an_engine_whose_durations_trail_its_sound_has_its_words_earlier():
    class Late(Engine):
        late = 240 # 10 ms
    said = [speak.say(engine, Recorded(), SPLITS[0][0], 'joe', np.random.default_rng(3))
            for engine in (Engine(), Late())]
    (x, starts, _), (y, earlier, _) = said # both are cut around their words
    assert len(x) == len(y) and len(set(starts - earlier)) == 1
    a, b = x[starts[0] + 100:starts[0] + 300], y[earlier[0] + 260:earlier[0] + 460]
    assert np.abs(a - b).max() < 1e-3 # what sounds at a word's start on time, sounds 160 samples behind it when late

def test_a_document_is_a_function_of_seed_and_name():
    assert (spoken()[1] == spoken()[1]).all()
    assert len(spoken()[1]) != len(spoken(seed=2)[1]) or (spoken()[1] != spoken(seed=2)[1]).any()
    assert len(spoken()[1]) != len(spoken('t000002')[1]) or (spoken()[1] != spoken('t000002')[1]).any()

def test_a_room_leaves_word_times_and_length_alone():
    dry, wave = spoken(diverse=True, room=0)
    wet, roomy = spoken(diverse=True, room=1)
    assert dry['room'] is None and wet['room']['snr_db'] >= 10
    assert wet['words'] == dry['words'] and len(roomy) == len(wave) and (roomy != wave).any()

def test_the_set_share_of_diverse_documents_has_a_room():
    rooms = [spoken(f't{i:06d}', diverse=True, sentences=1)[0]['room'] for i in range(60)]
    assert 18 <= sum(room is not None for room in rooms) <= 42 # 30 +- 3 standard deviations
    assert all(spoken(f's{i:06d}')[0]['room'] is None for i in range(5))

@pytest.mark.parametrize('rt60', [0.15, 0.4, 0.6])
def test_a_room_decays_by_60_db_in_its_time_and_the_direct_path_is_first(rt60):
    h = speak.impulse_response(rt60, 6, np.random.default_rng(0))
    left = np.cumsum(h[:0:-1] ** 2)[::-1] # Schroeder: energy still to come
    db = 10 * np.log10(left / left[0])
    t5, t35 = (np.argmax(db < level) / RATE for level in (-5, -35))
    assert abs((t35 - t5) * 2 - rt60) < 0.12 * rt60, f"{(t35 - t5) * 2:.3f} s, {rt60} s wanted"
    assert h[0] == 1 and not h[1:32].any() and abs(10 * np.log10(1 / (h[1:] ** 2).sum()) - 6) < 0.1

@pytest.mark.parametrize('kind, slope', [('white', 0), ('pink', -10), ('babble', -20)])
def test_noise_has_unit_power_and_its_slope(kind, slope):
    x = speak.noise(kind, 8 * RATE, np.random.default_rng(1))
    power = np.abs(np.fft.rfft(x)) ** 2
    band = lambda lo, hi: power[lo * 8:hi * 8].mean()
    assert abs((x ** 2).mean() - 1) < 1e-9
    per_decade = 10 * np.log10(band(6000, 7000) / band(600, 700))
    assert abs(per_decade - slope) < 1.5, f"{per_decade:.1f} dB a decade"

def test_noise_is_added_at_the_drawn_ratio():
    wave = np.random.default_rng(2).standard_normal(4 * RATE).astype(np.float32) * 0.05
    for seed in range(6):
        noisy, room = speak.in_room(wave, np.random.default_rng(seed))
        rng = np.random.default_rng(seed) # the same draws, by hand: five of the settings, then the response
        rt60, direct = rng.uniform(0.15, 0.6), rng.uniform(3, 15)
        rng.choice(3), rng.uniform(), rng.uniform()
        clean = np.convolve(wave, speak.impulse_response(round(rt60, 3), round(direct, 3), rng))[:len(wave)]
        scale = (noisy @ clean) / (clean @ clean) # level
        snr = 10 * np.log10((clean ** 2).mean() / ((noisy / scale - clean) ** 2).mean())
        assert abs(snr - room['snr_db']) < 0.3, f"{snr:.2f} dB, {room}"
        assert abs(20 * np.log10(scale) - room['level_db']) < 0.3 and np.abs(noisy).max() < 1

# ----------------------------------------------------------------------------------------------------------------
# shards

@pytest.fixture
def talk(monkeypatch, tmp_path):
    """A run of the part 'talk' with the made-up engine: run(folder, **settings) -> {file: bytes}."""
    def groups(cfg):
        for i in range(1000):
            sentences = [SPLITS[(i + j) % 5][0] for j in range(1 + i % 3)]
            if i % 7 == 3:
                sentences = ['Tom owl a.'] # said as 'tˈɑːm ˈaʊl', so refused
            yield [{'id': f't{i:06d}', 'sentences': sentences, 'speaker': 'joe', 'diverse': True}]
    recorded = Recorded()
    recorded.known = recorded.known | {'Tom owl a.': 'tˈɑːm ˈaʊl.'}
    monkeypatch.setattr(speak, 'groups', groups)
    monkeypatch.setattr(speak, '_asset_hashes', lambda cfg: {'model': 'made up'})
    monkeypatch.setattr(speak, '_worker', {'engine': Engine(), 'phonemize': recorded})
    def run(folder, **settings):
        cfg = Config(**{'part': 'talk', 'out': str(tmp_path / folder), 'hours': 0.02, 'shard_docs': 4, **settings})
        speak.main(cfg)
        return {p.relative_to(cfg.out).as_posix(): p.read_bytes() for p in Path(cfg.out).rglob('*')
                if p.is_file()}
    return run

def test_what_is_written_is_what_was_spoken(talk, tmp_path):
    files = talk('a')
    lines = list(speak.documents(tmp_path / 'a'))
    docs = [group[0] for group in islice(speak.groups(None), sum(name.endswith('.flac') for name in files) * 4)]
    kept = [doc for doc in docs if doc['sentences'] != ['Tom owl a.']]
    assert [line['id'] for line, _ in lines] == [doc['id'] for doc in kept]
    for (line, wave), doc in zip(lines, kept):
        want, expected = speak.document(Engine(), Recorded(), doc, Config(part='talk'))
        assert (wave == expected).all() and {**want, 'start': line['start']} == line
    info = json.loads(files['info.json'])
    assert info['documents'] == len(kept) and info['refused'] == len(docs) - len(kept) > 0
    assert info['refused_for'] == {'words without phones': info['refused']}
    assert abs(info['hours'] * 3600 - sum(line['samples'] for line, _ in lines) / RATE) < 1

def test_an_interrupted_run_goes_on_to_the_same_bytes(talk, monkeypatch, tmp_path):
    whole = talk('whole')
    say, said = speak.say, []
    def interrupted(*args):
        said.append(args)
        if len(said) == 13:
            raise KeyboardInterrupt
        return say(*args)
    monkeypatch.setattr(speak, 'say', interrupted)
    with pytest.raises(KeyboardInterrupt):
        talk('again')
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / 'again').iterdir()}
    assert 'info.json' not in before and '00000' in before and not any(name.endswith('.tmp') for name in before)
    again = talk('again')
    assert (tmp_path / 'again' / '00000').stat().st_mtime_ns == before['00000'] # not spoken twice
    whole.pop('info.json'), again.pop('info.json') # names the folder
    assert again == whole

def test_more_hours_add_shards_and_leave_the_others(talk):
    few = talk('a', hours=0.01)
    more = talk('a', hours=0.03)
    assert len(more) > len(few) and all(more[name] == few[name] for name in few if name != 'info.json')

def test_the_last_shards_alone_are_those_of_the_whole(talk):
    whole, last = talk('whole'), talk('last', first=2)
    shards = {name for name in last if name[0] == '0'}
    assert shards == {name for name in whole if name[0] == '0' and int(name[:5]) >= 2} and len(shards) >= 3
    assert all(last[name] == whole[name] for name in shards)
    with pytest.raises(Refused, match='--first=99: all shards come before'):
        talk('none', first=99)

def test_shards_of_other_settings_or_texts_are_not_mixed(talk, tmp_path, monkeypatch):
    talk('a')
    with pytest.raises(Refused, match='another seed; remove it or change --out'):
        talk('a', seed=2)
    monkeypatch.setattr(speak, 'groups', lambda cfg: iter([[{'id': f't{i:06d}', 'sentences': ['Tom was a fox.'],
                        'speaker': 'joe', 'diverse': True}] for i in range(99)]))
    with pytest.raises(Refused, match='other texts than the grammar gives now'):
        talk('a')

def test_a_cut_shard_is_named(talk, tmp_path):
    talk('a')
    docs = tmp_path / 'a' / '00001' / 'docs.jsonl'
    lines = docs.read_text().splitlines()
    docs.write_text('\n'.join(lines + [lines[-1]]) + '\n') # one document more than there is sound
    with pytest.raises(Refused, match='00001/audio.flac: ends within t00'):
        list(speak.documents(tmp_path / 'a'))
    with pytest.raises(Refused, match='no speech in it'):
        list(speak.documents(tmp_path / 'nothing'))

def test_bad_settings_and_missing_voices_are_refused(tmp_path):
    for bad, said in (({'part': 'story'}, 'expected one of stories talk'), ({'hours': 0.0}, 'more than 0'),
                      ({'room': 1.5}, '0 to 1'), ({'workers': -1}, 'more than 0')):
        with pytest.raises(Refused, match=said):
            Config(**bad)
    with pytest.raises(Refused, match='joe.onnx: no such file; --piper=VOICE.onnx'):
        speak.main(Config(piper=str(tmp_path / 'joe.onnx'), out=str(tmp_path / 'out')))
    with pytest.raises(Refused, match='--kokoro=FOLDER'):
        speak.main(Config(part='talk', out=str(tmp_path / 'out')))
    assert not (tmp_path / 'out').exists()

def test_the_unseen_voice_is_not_in_training_and_every_voice_has_a_gain():
    assert speak.UNSEEN not in speak.VOICES and speak.MAIN not in speak.VOICES and len(speak.VOICES) >= 6
    assert set(speak.GAINS) == {speak.MAIN, speak.UNSEEN, *speak.VOICES}

def test_items_are_four_segments_and_both_voices_say_the_same():
    main, unseen = (list(speak.groups(Config(part=f'items-{which}', items=6))) for which in ('main', 'unseen'))
    assert [doc['id'] for doc in main[5]] == [f'm00005/{name}' for name in ('context', 'right', 'wrong', 'topic')]
    assert [[doc['sentences'] for doc in group] for group in main] == [[doc['sentences'] for doc in g] for g in unseen]
    assert [len(doc['sentences']) for doc in main[0]] == [2, 1, 1, 1]
    assert unseen[0][0]['id'] == 'u00000/context' and unseen[0][0]['speaker'] == speak.UNSEEN

# ----------------------------------------------------------------------------------------------------------------
# the real ones

def test_espeak_maps_to_the_words_of_every_sentence_of_both_grammars():
    pytest.importorskip('piper', reason='tiny/build/requirements.txt is not installed')
    phonemize, refused, n = speak.Phonemizer(), [], 0
    for part in ('stories', 'talk'):
        for (doc,) in islice(speak.groups(Config(part=part)), 150):
            for sentence in doc['sentences']:
                n += 1
                try:
                    phones = phonemize(sentence)
                    spans = speak.word_tokens(sentence, phones, phonemize)
                    assert len(spans) == len(sentence.split()) and all(a < b for a, b in spans)
                except Unspeakable as e:
                    refused.append((str(e), sentence))
    assert len(refused) <= 0.01 * n, refused

@pytest.mark.parametrize('engine, variable, voice', [(lambda path: speak.Piper(path, 'joe'), 'PIPER', 'joe'),
                                                     (speak.Kokoro, 'KOKORO', 'am_puck')], ids=['Piper', 'Kokoro'])
def test_durations_sum_to_the_samples_and_speech_repeats(engine, variable, voice):
    for package in ('piper', 'onnxruntime', 'onnx'):
        pytest.importorskip(package, reason='tiny/build/requirements.txt is not installed')
    if variable not in os.environ:
        pytest.skip(f'{variable} does not name a voice')
    engine, phonemize = engine(os.environ[variable]), speak.Phonemizer()
    for sentence in ('Tom was a friend of the owl.', 'She put it on the table, and went out.'):
        waves = [engine(phonemize(sentence), voice, np.random.default_rng(seed)) for seed in (1, 1)]
        assert waves[0][1].sum() == len(waves[0][0]) and len(waves[0][1]) == len(phonemize(sentence)) + 2
        assert (waves[0][0] == waves[1][0]).all() and (waves[0][1] == waves[1][1]).all()
        wave, starts, ends = speak.say(engine, phonemize, sentence, voice, np.random.default_rng(1))
        assert len(starts) == len(sentence.split()) and (starts < ends).all() and (ends[:-1] <= starts[1:]).all()
        quiet = np.sqrt((wave[ends[-1]:] ** 2).mean()) # the word ends where its sound ends
        assert quiet < 0.05 * np.sqrt((wave[starts[-1]:ends[-1]] ** 2).mean())
