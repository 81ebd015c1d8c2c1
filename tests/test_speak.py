"""
tiny/build/speak.py and engines.py: word times from phone durations, rooms and noise, shards. espeak's phones are
recorded below, and a made-up engine speaks. The last tests run the real ones where they are installed:

    PIPER=VOICE.onnx KOKORO=FOLDER pytest tests/test_speak.py
"""
import json
import os
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from configurator import Refused
from tiny import world
from tiny.build import engines, speak
from tiny.build.engines import Unspeakable
from tiny.build.pack import write_packed
from tiny.build.speak import RATE, Config

# How espeak says words and phrases that stand alone.
ALONE = {'Tom': 'tˈɑːm', 'the': 'ðə', 'fox': 'fˈɑːks', 'was': 'wʌz', 'a': 'ˈeɪ', 'friend': 'fɹˈɛnd', 'of': 'ʌv',
         'owl': 'ˈaʊl', 'No': 'nˈoʊ', 'one': 'wˈʌn', 'had': 'hæd', 'to': 'tuː', 'be': 'bˈiː', 'been': 'bˈɪn',
         'out': 'ˈaʊt', 'There': 'ðˈɛɹ', 'were': 'wɜː', 'are': 'ɑːɹ', 'acorns': 'ˈeɪkɔːɹnz', 'in': 'ɪn',
         'chest': 'tʃˈɛst', 'table': 'tˈeɪbəl', 'and': 'ænd', 'he': 'hˈiː', 'went': 'wˈɛnt', 'No one': 'nˈoʊwˈʌn',
         'was a': 'wʌzɐ', 'of the': 'ʌvðə', 'had to': 'hædtʊ', 'There were': 'ðɛɹwˈɜː', 'in the': 'ɪnðə',
         'out of': 'ˌaʊɾəv', 'had been': 'hɐdbˈɪn'}

# A sentence, its phones, and the phones of each word.
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
    """A Phonemizer of ALONE and SPLITS. A phrase that is in neither is said word by word."""
    known = ALONE | {sentence: phones for sentence, phones, _ in SPLITS}
    forms = engines.Phonemizer.forms

    def __call__(self, text):
        if text in self.known:
            return self.known[text]
        return ' '.join(self.known[word] for word in text.split())

class Engine:
    """Says each token as a steady tone. Its pitch depends on the phone, its length is a random number of hops.

    A space lasts one hop.
    """
    rate, hop, lag = 24_000, 600, 0

    def __call__(self, phones, voice, rng):
        samples = rng.integers(1, 6, len(phones) + 2) * self.hop
        spaces = [i + 1 for i, c in enumerate(phones) if c == ' ']
        samples[spaces] = self.hop
        pitches = [pitch_of(c) for c in phones]
        hz = np.repeat([0, *pitches, 0], samples)
        wave = np.sin(2 * np.pi * np.cumsum(hz) / self.rate).astype(np.float32)
        return 0.1 * wave, samples

def pitch_of(phone):
    """Hz"""
    return 200 + 7 * (ord(phone) % 97)

@pytest.mark.parametrize('sentence, phones, pieces', SPLITS)
def test_every_word_gets_its_own_phones_where_espeak_joins_words(sentence, phones, pieces):
    spans = engines.word_tokens(sentence, phones, Recorded())
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
        engines.word_tokens(sentence, phones, recorded)

def test_the_middle_of_a_space_is_the_boundary_and_pauses_belong_to_no_word():
    phones = 'ab c, d.'
    spans = [(0, 2), (3, 4), (6, 7)] # words ab, c and d
    samples = np.array([5, 10, 10, 4, 10, 30, 8, 10, 20, 3]) # of the beginning, each of phones, the end
    starts, ends = engines.word_times(phones, spans, samples)
    assert starts.tolist() == [5, 27, 73] # 5 | 5+20+4/2 | 5+20+4+10+30+8/2
    assert ends.tolist() == [27, 39, 87]  # the comma, the space behind it and the period are left out

def test_words_of_a_join_share_a_boundary_without_a_gap():
    sentence, phones, _ = SPLITS[0]
    spans = engines.word_tokens(sentence, phones, Recorded())
    starts, ends = engines.word_times(phones, spans, np.full(len(phones) + 2, 4))
    assert (ends[:-1] == starts[1:]).all()
    assert starts[0] == 4 and ends[-1] == 4 * (len(phones) + 2 - 2)

def test_a_word_that_falls_silent_ends_with_its_sound_and_others_as_the_durations_say():
    rate = 16_000
    wave = np.zeros(16_000, np.float32)
    for a, b in ((2000, 3000), (4000, 5555), (9000, 12_000)):
        wave[a:b] = 0.1 * np.sin(np.arange(b - a))
    wave[12_000:13_000] = 0.0005 * np.sin(np.arange(1000)) # 46 dB down
    starts = np.array([2000, 4000, 9000])
    ends = np.array([4000, 8800, 15_990])
    assert engines.ends_of_sound(wave, rate, starts, ends).tolist() == [4000, 5600, 12_000] # 62 ms of silence stay
    short = np.array([4000, 6800, 12_500])
    assert engines.ends_of_sound(wave, rate, starts, short).tolist() == [4000, 6800, 12_500]

def spoken(doc_id='t000001', diverse=False, sentences=3, **settings):
    """(line, wave) of a document of the first sentences of SPLITS."""
    texts = [sentence for sentence, _, _ in SPLITS[:sentences]]
    doc = {'id': doc_id, 'sentences': texts, 'speaker': 'joe', 'diverse': diverse}
    return speak.document(Engine(), Recorded(), doc, Config(**settings))

def test_words_spell_the_text_in_order_inside_the_wave_and_silence_is_as_set():
    line, wave = spoken(pause=0.25, edge=0.1)
    assert ''.join(word for word, _, _ in line['words']) == line['text']
    flat = np.array([(start, end) for _, start, end in line['words']])
    assert (flat[:, 0] < flat[:, 1]).all() and (flat[:-1, 1] <= flat[1:, 0]).all()
    assert line['samples'] == len(wave)
    assert flat[0, 0] >= 0.1 * RATE and flat[-1, 1] <= len(wave) - 0.1 * RATE
    assert not wave[:1600].any() and not wave[-1600:].any()
    # After a sentence's last word come at most 150 ms of the sentence and then 0.25 s of zeros.
    for last in ('owl.', 'chest.'):
        end = next(end for word, _, end in line['words'] if word.strip() == last)
        quiet = wave[end:end + speak.AFTER + 4000]
        assert (quiet == 0).sum() >= 4000

def test_a_tone_is_heard_where_its_word_is():
    line, wave = spoken()
    words = iter(line['words'])
    for sentence, phones, _ in SPLITS[:3]:
        for first, last in engines.word_tokens(sentence, phones, Recorded()):
            _, start, end = next(words)
            end -= 200 * (phones[last] == ' ') # half a space belongs to the word: 12.5 ms
            tail = wave[end - 350:end - 50].astype(float) # the word's last phone: the shortest token has 400 samples
            spectrum = np.fft.rfft(tail * np.hanning(len(tail)), 16000) # 1 Hz a bin
            loudest = np.abs(spectrum).argmax()
            expected = pitch_of(phones[last - 1])
            assert abs(loudest - expected) < 30, f"{phones[first:last]}: {loudest} Hz, expected {expected}"

def test_every_sentence_stands_to_the_sample_where_its_words_say():
    line, wave = spoken()
    n_words = 0 # of the sentences before
    for i, (sentence, _, _) in enumerate(SPLITS[:3]):
        alone, starts, ends = speak.say(Engine(), Recorded(), sentence, 'joe', speak._rng(1, 't000001', i))
        words = line['words'][n_words:n_words + len(ends)]
        begin = words[0][1] - starts[0]
        assert (wave[begin:begin + len(alone)] == np.rint(alone * 32767)).all()
        assert [end - begin for _, _, end in words] == ends.tolist()
        n_words += len(ends)

def test_an_engine_whose_durations_trail_its_sound_has_its_words_earlier():
    class Lagging(Engine):
        lag = 240 # 10 ms
    sentence = SPLITS[0][0]
    x, starts, _ = speak.say(Engine(), Recorded(), sentence, 'joe', np.random.default_rng(3))
    y, earlier, _ = speak.say(Lagging(), Recorded(), sentence, 'joe', np.random.default_rng(3))
    # Both waves are cut around their words.
    assert len(x) == len(y) and len(set(starts - earlier)) == 1
    # What sounds at the start of a word without lag sounds 160 samples after it with the lag.
    a = x[starts[0] + 100:starts[0] + 300]
    b = y[earlier[0] + 260:earlier[0] + 460]
    assert np.abs(a - b).max() < 1e-3

def test_a_document_is_a_function_of_seed_and_name():
    _, wave = spoken()
    _, same = spoken()
    assert np.array_equal(wave, same)
    _, other_seed = spoken(seed=2)
    assert not np.array_equal(wave, other_seed)
    _, other_name = spoken('t000002')
    assert not np.array_equal(wave, other_name)

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
    remaining = np.cumsum(h[:0:-1] ** 2)[::-1] # Schroeder: energy still to come
    db = 10 * np.log10(remaining / remaining[0])
    t5, t35 = (np.argmax(db < level) / RATE for level in (-5, -35))
    seconds = (t35 - t5) * 2
    assert abs(seconds - rt60) < 0.12 * rt60, f"{seconds:.3f} s, expected {rt60} s"
    assert h[0] == 1 and not h[1:32].any()
    direct_db = 10 * np.log10(1 / (h[1:] ** 2).sum())
    assert abs(direct_db - 6) < 0.1

@pytest.mark.parametrize('kind, slope', [('white', 0), ('pink', -10), ('babble', -20)])
def test_noise_has_unit_power_and_its_slope(kind, slope):
    x = speak.noise(kind, 8 * RATE, np.random.default_rng(1))
    power = np.abs(np.fft.rfft(x)) ** 2
    def band(low, high):
        """The mean power from low to high Hz: a bin is 1/8 Hz."""
        return power[low * 8:high * 8].mean()
    assert abs((x ** 2).mean() - 1) < 1e-9
    per_decade = 10 * np.log10(band(6000, 7000) / band(600, 700))
    assert abs(per_decade - slope) < 1.5, f"{per_decade:.1f} dB a decade"

def test_noise_is_added_at_the_drawn_ratio():
    wave = np.random.default_rng(2).standard_normal(4 * RATE).astype(np.float32) * 0.05
    for seed in range(6):
        noisy, room = speak.in_room(wave, np.random.default_rng(seed))
        # The same draws, by hand: five settings, then the response.
        rng = np.random.default_rng(seed)
        rt60 = rng.uniform(0.15, 0.6)
        direct_db = rng.uniform(3, 15)
        rng.choice(3)
        rng.uniform()
        rng.uniform()
        response = speak.impulse_response(round(rt60, 3), round(direct_db, 3), rng)
        clean = np.convolve(wave, response)[:len(wave)]
        scale = (noisy @ clean) / (clean @ clean) # level
        snr = 10 * np.log10((clean ** 2).mean() / ((noisy / scale - clean) ** 2).mean())
        assert abs(snr - room['snr_db']) < 0.3, f"{snr:.2f} dB, {room}"
        assert abs(20 * np.log10(scale) - room['level_db']) < 0.3
        assert np.abs(noisy).max() < 1

# --------------------------------------------------------------------------------------------------
# shards

@pytest.fixture
def talk(monkeypatch, tmp_path):
    """A run of the part 'talk' with the made-up engine: run(folder, **settings) -> {file: bytes}."""
    def groups(cfg):
        for i in range(1000):
            sentences = [SPLITS[(i + j) % 5][0] for j in range(1 + i % 3)]
            if i % 7 == 3:
                sentences = ['Tom owl a.'] # its phones lack a word, so it is refused
            yield [{'id': f't{i:06d}', 'sentences': sentences, 'speaker': 'joe', 'diverse': True}]
    recorded = Recorded()
    recorded.known = recorded.known | {'Tom owl a.': 'tˈɑːm ˈaʊl.'}
    monkeypatch.setattr(speak, 'groups', groups)
    monkeypatch.setattr(speak, '_asset_hashes', lambda cfg: {'model': 'made up'})
    monkeypatch.setattr(speak, '_worker', {'engine': Engine(), 'phonemize': recorded})
    def run(folder, **settings):
        cfg = Config(**{'part': 'talk', 'out': str(tmp_path / folder), 'hours': 0.02, 'shard_docs': 4, **settings})
        speak.main(cfg)
        paths = [path for path in Path(cfg.out).rglob('*') if path.is_file()]
        return {path.relative_to(cfg.out).as_posix(): path.read_bytes() for path in paths}
    return run

def test_what_is_written_is_what_was_spoken(talk, tmp_path):
    files = talk('a')
    lines = list(speak.documents(tmp_path / 'a'))
    n_shards = sum(name.endswith('.flac') for name in files)
    docs = [group[0] for group in islice(speak.groups(None), n_shards * 4)]
    speakable = [doc for doc in docs if doc['sentences'] != ['Tom owl a.']]
    assert [line['id'] for line, _ in lines] == [doc['id'] for doc in speakable]
    for (line, wave), doc in zip(lines, speakable):
        expected_line, expected_wave = speak.document(Engine(), Recorded(), doc, Config(part='talk'))
        assert (wave == expected_wave).all()
        assert {**expected_line, 'start': line['start']} == line
    info = json.loads(files['info.json'])
    assert info['documents'] == len(speakable)
    assert info['refused'] == len(docs) - len(speakable) > 0
    assert info['refused_for'] == {'words without phones': info['refused']}
    seconds = sum(line['samples'] for line, _ in lines) / RATE
    assert abs(info['hours'] * 3600 - seconds) < 1

def test_an_interrupted_run_goes_on_to_the_same_bytes(talk, monkeypatch, tmp_path):
    uninterrupted = talk('uninterrupted')
    say = speak.say
    calls = []
    def interrupted(*args):
        calls.append(args)
        if len(calls) == 13:
            raise KeyboardInterrupt
        return say(*args)
    monkeypatch.setattr(speak, 'say', interrupted)
    with pytest.raises(KeyboardInterrupt):
        talk('resumed')
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'resumed').iterdir()}
    assert 'info.json' not in before and '00000' in before
    assert not any(name.endswith('.tmp') for name in before)
    resumed = talk('resumed')
    # The finished shard was not spoken again.
    assert (tmp_path / 'resumed' / '00000').stat().st_mtime_ns == before['00000']
    # info.json names the folder.
    uninterrupted.pop('info.json')
    resumed.pop('info.json')
    assert resumed == uninterrupted

def test_more_hours_add_shards_and_leave_the_others(talk):
    short = talk('a', hours=0.01)
    long = talk('a', hours=0.03)
    assert len(long) > len(short)
    assert all(long[name] == short[name] for name in short if name != 'info.json')

def test_the_last_shards_alone_are_those_of_the_whole(talk):
    everything = talk('everything')
    last = talk('last', first=2)
    shards = {name for name in last if name[0] == '0'}
    assert shards == {name for name in everything if name[0] == '0' and int(name[:5]) >= 2}
    assert len(shards) >= 3
    assert all(last[name] == everything[name] for name in shards)
    with pytest.raises(Refused, match='--first=99: all shards come before'):
        talk('none', first=99)

def test_shards_that_are_packed_are_not_spoken_again(talk, tmp_path, capsys):
    everything = talk('everything')
    first = [line['id'] for line in map(json.loads, everything['00000/docs.jsonl'].splitlines())]
    docs = [{'id': name, 'speaker': 'joe', 'samples': 0, 'units': [], 'runs': [], 'words': [], 'starts': [], 'ends': []}
            for name in first]
    write_packed(tmp_path / 'talk-more.npz.xz', docs, {})
    rest = talk('rest', packed=str(tmp_path))
    assert {name for name in everything if name[0] == '0'} - set(rest) == {
        name for name in everything if name.startswith('00000')}
    assert all(rest[name] == everything[name] for name in rest if name[0] == '0')
    docs = [{**docs[0], 'id': f't{i:06d}'} for i in range(1000)]
    write_packed(tmp_path / 'talk.npz.xz', docs, {})
    assert talk('none', packed=str(tmp_path)) == {} # tiny.build.pack would refuse a folder without speech
    assert f'talk: {tmp_path} has all of it, nothing to speak' in capsys.readouterr().out

def test_shards_of_other_settings_or_texts_are_not_mixed(talk, tmp_path, monkeypatch):
    talk('a')
    with pytest.raises(Refused, match='another seed; remove it or change --out'):
        talk('a', seed=2)
    def other_texts(cfg):
        for i in range(99):
            yield [{'id': f't{i:06d}', 'sentences': ['Tom was a fox.'], 'speaker': 'joe', 'diverse': True}]
    monkeypatch.setattr(speak, 'groups', other_texts)
    with pytest.raises(Refused, match='other texts than the grammar gives now'):
        talk('a')

def test_a_cut_shard_is_named_and_one_in_the_making_is_left_alone(talk, tmp_path):
    talk('a')
    spoken = [line['id'] for line, _ in speak.documents(tmp_path / 'a')]
    (tmp_path / 'a' / '00009.tmp').mkdir()
    (tmp_path / 'a' / '00009.tmp.lock').write_text('{}')
    assert [line['id'] for line, _ in speak.documents(tmp_path / 'a')] == spoken
    docs = tmp_path / 'a' / '00001' / 'docs.jsonl'
    lines = docs.read_text().splitlines()
    # One more document than there is sound for.
    docs.write_text('\n'.join(lines + [lines[-1]]) + '\n')
    with pytest.raises(Refused, match='00001/audio.flac: ends within t00'):
        list(speak.documents(tmp_path / 'a'))
    with pytest.raises(Refused, match='no speech in it'):
        list(speak.documents(tmp_path / 'nothing'))

def test_bad_settings_and_missing_voices_are_refused(tmp_path):
    refusals = [
        ({'part': 'story'}, 'expected one of stories voices world talk'),
        ({'hours': 0.0}, 'more than 0'),
        ({'room': 1.5}, '0 to 1'),
        ({'workers': -1}, 'more than 0')]
    for settings, message in refusals:
        with pytest.raises(Refused, match=message):
            Config(**settings)
    with pytest.raises(Refused, match='joe.onnx: no such file; --piper=VOICE.onnx'):
        speak.main(Config(piper=str(tmp_path / 'joe.onnx'), out=str(tmp_path / 'out')))
    with pytest.raises(Refused, match='--kokoro=FOLDER'):
        speak.main(Config(part='talk', out=str(tmp_path / 'out')))
    assert not (tmp_path / 'out').exists()

def test_the_unseen_voice_is_not_in_training_and_every_voice_has_a_gain():
    assert engines.UNSEEN not in engines.VOICES and engines.MAIN not in engines.VOICES and len(engines.VOICES) >= 6
    assert set(engines.GAINS) == {engines.MAIN, engines.UNSEEN, *engines.VOICES}

def test_items_are_four_segments_and_both_voices_say_the_same():
    main = list(speak.groups(Config(part='items-main', items=6)))
    unseen = list(speak.groups(Config(part='items-unseen', items=6)))
    assert [doc['id'] for doc in main[5]] == ['m00005/context', 'm00005/right', 'm00005/wrong', 'm00005/topic']
    def sentences_of(groups):
        return [[doc['sentences'] for doc in group] for group in groups]
    assert sentences_of(main) == sentences_of(unseen)
    assert [len(doc['sentences']) for doc in main[0]] == [2, 1, 1, 1]
    assert unseen[0][0]['id'] == 'u00000/context' and unseen[0][0]['speaker'] == engines.UNSEEN

def test_other_voices_tell_other_stories_and_each_of_them_as_many():
    main = {group[0]['sentences'][0]: group[0]['sentences'] for group in islice(speak.groups(Config()), 3000)}
    others = [group[0] for group in islice(speak.groups(Config(part='voices')), 400)]
    assert not any(main.get(doc['sentences'][0]) == doc['sentences'] for doc in others)
    assert set(Counter(doc['speaker'] for doc in others).values()) == {50} and others[1]['id'] == 'v000001'
    assert {doc['speaker'] for doc in others} == set(engines.VOICES)

def test_the_voice_of_the_stories_tells_open_facts_and_asks_for_hidden_ones():
    documents = [group[0] for group in islice(speak.groups(Config(part='world')), 300)]
    expected = [list(document.sentences) for document in world.documents(300, spoken=True)]
    assert [doc['sentences'] for doc in documents] == expected
    groups = list(speak.groups(Config(part='knowledge', items=4)))
    item = world.items(4)[3]
    assert [doc['id'] for doc in groups[3]] == ['k00003/context', 'k00003/right', 'k00003/wrong']
    assert [doc['sentences'] for doc in groups[3]] == [list(item.context), [item.right], [item.wrong]]
    assert {doc['speaker'] for group in groups for doc in group} == {engines.MAIN} == {documents[0]['speaker']}

# --------------------------------------------------------------------------------------------------
# the real ones

@pytest.mark.parametrize(('size', 'dilation', 'pads'), [(1, 1, [0, 0]), (3, 1, [1, 1]), (7, 3, [9, 9]), (3, 2, [4, 0])])
def test_convolutions_of_bytes_become_products_with_the_same_integers(size, dilation, pads):
    onnx = pytest.importorskip('onnx', reason='tiny/build/requirements.txt is not installed')
    pytest.importorskip('onnxruntime', reason='tiny/build/requirements.txt is not installed')
    rng = np.random.default_rng(size)
    weights = {
        'w': rng.integers(0, 256, (6, 5, size)).astype(np.uint8),
        'zero_x': np.array(131, np.uint8),
        'zero_w': np.array(97, np.uint8)}
    def describe(name, kind, shape):
        return onnx.helper.make_tensor_value_info(name, kind, shape)
    node = onnx.helper.make_node(
        'ConvInteger', ['x', 'w', 'zero_x', 'zero_w'], ['y'], name='conv', group=1, strides=[1], kernel_shape=[size],
        dilations=[dilation], pads=pads)
    graph = onnx.helper.make_graph(
        [node], 'graph', [describe('x', onnx.TensorProto.UINT8, [1, 5, None])],
        [describe('y', onnx.TensorProto.INT32, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 20)], ir_version=9)
    x = rng.integers(0, 256, (1, 5, 40)).astype(np.uint8)
    expected = engines._session(model).run(None, {'x': x})[0]
    changed = engines._convolutions_as_products(model)
    assert 'ConvInteger' not in [node.op_type for node in changed.graph.node]
    assert np.array_equal(engines._session(changed).run(None, {'x': x})[0], expected)

def test_espeak_maps_to_the_words_of_every_sentence_of_both_grammars():
    pytest.importorskip('piper', reason='tiny/build/requirements.txt is not installed')
    phonemize = engines.Phonemizer()
    refused = []
    n_sentences = 0
    for part in ('stories', 'talk'):
        for (doc,) in islice(speak.groups(Config(part=part)), 150):
            for sentence in doc['sentences']:
                n_sentences += 1
                try:
                    phones = phonemize(sentence)
                    spans = engines.word_tokens(sentence, phones, phonemize)
                    assert len(spans) == len(sentence.split())
                    assert all(first < end for first, end in spans)
                except Unspeakable as e:
                    refused.append((str(e), sentence))
    assert len(refused) <= 0.01 * n_sentences, refused

@pytest.mark.parametrize('engine, variable, voice', [(engines.Piper, 'PIPER', 'joe'),
                                                     (engines.Kokoro, 'KOKORO', 'am_puck')], ids=['Piper', 'Kokoro'])
def test_durations_sum_to_the_samples_and_speech_repeats(engine, variable, voice):
    for package in ('piper', 'onnxruntime', 'onnx'):
        pytest.importorskip(package, reason='tiny/build/requirements.txt is not installed')
    if variable not in os.environ:
        pytest.skip(f'{variable} does not name a voice')
    engine = engine(os.environ[variable])
    phonemize = engines.Phonemizer()
    for sentence in ('Tom was a friend of the owl.', 'She put it on the table, and went out.'):
        phones = phonemize(sentence)
        wave, samples = engine(phones, voice, np.random.default_rng(1))
        again, samples_again = engine(phones, voice, np.random.default_rng(1))
        assert samples.sum() == len(wave) and len(samples) == len(phones) + 2
        assert (wave == again).all() and (samples == samples_again).all()
        wave, starts, ends = speak.say(engine, phonemize, sentence, voice, np.random.default_rng(1))
        assert len(starts) == len(sentence.split())
        assert (starts < ends).all() and (ends[:-1] <= starts[1:]).all()
        # The last word ends where its sound ends.
        quiet = np.sqrt((wave[ends[-1]:] ** 2).mean())
        assert quiet < 0.05 * np.sqrt((wave[starts[-1]:ends[-1]] ** 2).mean())
