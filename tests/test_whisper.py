"""speech/whisper.py on a small random Whisper: texts beside transformers', words, times, refusals; a real one."""
import json
import os
import re
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
import torch
from small import make_whisper, speech_like, waves
from transformers import HubertConfig, HubertModel, WhisperForConditionalGeneration

from configurator import Refused
from speech import whisper as asr
from speech.audio import RATE, load_audio
from speech.ctc import cuts
from speech.whisper import Whisper, heard, is_no_speech, spell

LIBRISPEECH = Path(__file__).parent.parent.parent / 'shared/data/librispeech_mini'
WHISPER = Path(os.environ.get('ASSETS', 'assets')) / 'whisper-base' # as tiny/build/build.sh has it

@pytest.fixture(scope='module')
def whisper(tmp_path_factory):
    return make_whisper(tmp_path_factory.mktemp('whisper'))

# --------------------------------------------------------------------------------------------------
# text

@pytest.mark.parametrize('language', ['zh', ''])
def test_texts_are_those_of_transformers_generate_and_the_same_alone_and_together(whisper, language):
    model = Whisper(whisper, language=language)
    x = waves(2, 7.3, 12, .3, 29)
    reference = WhisperForConditionalGeneration.from_pretrained(whisper)
    specials = range(model.end + 1, reference.config.vocab_size)
    transcribe, no_times = model.task
    vars(reference.generation_config).update(
        is_multilingual=True, lang_to_id={f'<|{code}|>': i for code, i in model.languages.items()},
        task_to_id={'transcribe': transcribe}, no_timestamps_token_id=no_times,
        suppress_tokens=[*model.suppressed, *specials], decoder_start_token_id=model.start,
        eos_token_id=model.end, pad_token_id=model.end)
    expected = []
    for wave in x:
        features = model.features(wave, sampling_rate=RATE, return_tensors='pt').input_features
        [ids] = reference.generate(features, max_new_tokens=200, do_sample=False, task='transcribe',
                                   language=language or None)
        expected.append(model.tokenizer.decode(ids.tolist()).strip())
    assert all(expected) and len(set(expected)) > 2
    assert model.transcribe(x) == expected
    assert [model.transcribe([wave])[0] for wave in x] == expected

def test_long_audio_is_heard_piece_by_piece_and_of_next_to_nothing_no_word_is_made(whisper):
    model = Whisper(whisper, language='en')
    [wave] = waves(70)
    pieces = [wave[first:last] for first, last in cuts(wave, model.hop)]
    text, empty, short = model.transcribe([wave, wave[:0], wave[:1599]])
    assert len(pieces) > 2 and text == ' '.join(model.transcribe(pieces))
    assert empty == short == ''

# --------------------------------------------------------------------------------------------------
# words and times

@pytest.mark.parametrize('pieces, spaceless, expected', [
    ([' There', "'s", ' iron', ',', ' they', ' say', '.'], False,
     [(" There's", 0, 2), (' iron,', 2, 3), (' they', 4, 5), (' say.', 5, 6)]), # a sign's time is not the word's
    ([' well', '-', 'known'], False, [(' well-known', 0, 3)]),
    ([' -', ' so', ' --', ' what'], False, [(' - so --', 0, 2), (' what', 3, 4)]),
    (['東', '京', '。'], True, [('東', 0, 1), ('京。', 1, 2)]),
    (['...'], False, []), ([], False, []),
])
def test_words_of_whispers_tokens(pieces, spaceless, expected):
    assert spell(pieces, spaceless) == expected

def test_words_are_the_same_alone_and_together_and_stay_in_their_audio(whisper):
    model = Whisper(whisper, language='en')
    x = waves(2, 7.3, 40, .3, 12)
    together = model.align(x)
    assert together == [model.align([wave])[0] for wave in x]
    assert any(words for words, *_ in together)
    for (words, starts, ends, reason), wave in zip(together, x):
        assert reason in ('', 'TOO_MANY_WORDS')
        assert len(words) == len(starts) == len(ends)
        edges = [0, *np.stack([starts, ends], 1).ravel(), len(wave)]
        assert (np.diff(edges) >= 0).all()
        assert 'm' not in ''.join(words) and ' a' not in ''.join(words) # suppressed
    assert len({t // (20 * RATE) for t in together[2][1]}) > 1 # 40 s: words in both pieces

def scores_by_definition(attentions, n_frames):
    """The attention of the three listed heads -> x_t(s) by speech/whisper.py's formula, (n_frames, positions)."""
    heads = [attentions[layer][0, head, :, :n_frames] for layer, head in ((2, 1), (3, 0), (3, 2))]
    w = np.stack([weights.double().numpy() for weights in heads])
    w /= w.sum(-1, keepdims=True) # softmax over the audio's own frames
    w = (w - w.mean(1, keepdims=True)) / w.std(1, keepdims=True)
    w = np.pad(w, ((0, 0), (0, 0), (3, 3)), mode='reflect')
    neighbors = np.lib.stride_tricks.sliding_window_view(w, 7, axis=-1)
    return np.median(neighbors, axis=-1).mean(0).T

def test_scores_are_those_of_transformers_own_attention(whisper):
    model = Whisper(whisper, language='en')
    features = model.features(waves(3), sampling_rate=RATE, return_tensors='pt').input_features
    prompt = [model.start, model.languages['en'], *model.task]
    text = [3, 30, 4, 9]
    eager = WhisperForConditionalGeneration.from_pretrained(whisper, attn_implementation='eager').eval()
    with torch.inference_mode():
        encoded = model.model.model.encoder(features).last_hidden_state
        [scores] = model._scores(encoded, [prompt], [text + [model.end]], [150])
        output = eager(input_features=features, decoder_input_ids=torch.tensor([prompt + text]), output_attentions=True)
    expected = scores_by_definition(output.cross_attentions, 150)[:, 3:]
    assert scores.shape == (150, 5)
    assert np.allclose(scores.numpy(), expected, atol=1e-4)

def copy_files(source, folder):
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())

def test_without_a_list_the_heads_are_those_of_the_upper_half_and_the_language_is_heard(whisper, tmp_path):
    copy_files(whisper, tmp_path)
    (tmp_path / 'generation_config.json').unlink()
    model = Whisper(tmp_path)
    assert model.heads == {2: [0, 1, 2, 3], 3: [0, 1, 2, 3]} and list(model.languages) == ['en', 'zh']
    words, starts, _, reason = model.align(waves(5))[0]
    assert reason == '' and len(words) == len(starts)

def test_times_begin_where_tokens_do_and_loops_and_silence_are_told(whisper, monkeypatch):
    model = Whisper(whisper, language='en')
    a = 0
    d = model.tokenizer.token_to_id('Ġd')
    x = torch.full((100, 5), -1.0)
    spans = ((0, 20), (20, 30), (30, 60), (60, 61), (61, 100)) # the last is the end's
    for token, (first, last) in enumerate(spans):
        x[first:last, token] = 1
    monkeypatch.setattr(asr, 'tighten', lambda wave, starts, ends: (starts, ends))

    def words_of(tokens, silent=False, scores=x):
        monkeypatch.setattr(model, '_decode', lambda *args: ([tokens], [silent]))
        monkeypatch.setattr(model, '_scores', lambda *args: [scores])
        return model.align([speech_like(2, 0)])[0]

    assert words_of([d, a, d, 52, model.end]) == ([' da', ' d,'], [0, 9600], [9600, 19200], '')
    assert words_of([d, a, d, 52, model.end], silent=True) == ([], [], [], '')
    assert words_of([d, a, d, a]) == ([], [], [], 'WHISPER_LOOPS') # no end
    assert words_of([d, a] * 100 + [model.end]) == ([], [], [], 'WHISPER_LOOPS')
    assert words_of([d, a, d, a, model.end], scores=x[:3]) == ([], [], [], 'TOO_MANY_WORDS')

def test_a_window_that_loops_is_heard_again_in_parts(whisper, monkeypatch):
    model = Whisper(whisper, language='en')
    heard = []

    def windows(part, languages):
        """Windows longer than `longest` seconds loop, others have one word."""
        results = []
        for *_, piece in part:
            heard.append(len(piece) / RATE)
            loops = heard[-1] > longest
            results.append(([], [], [], 'WHISPER_LOOPS') if loops else ([' x'], [0], [len(piece)], ''))
        return results

    monkeypatch.setattr(model, '_windows', windows)
    longest = 16
    words, starts, ends, reason = model.align(waves(50))[0]
    assert reason == '' and max(heard) > 16
    assert starts == [0, *ends[:-1]] and ends[-1] == 50 * RATE
    longest = 5
    assert model.align(waves(50))[0] == ([], [], [], 'WHISPER_LOOPS')

@pytest.mark.parametrize('token', ['transcribe', 'translate', 'notimestamps', 'startoftranscript'])
def test_a_tokenizer_without_whispers_own_tokens_is_refused(whisper, tmp_path, token):
    copy_files(whisper, tmp_path)
    path = tmp_path / 'tokenizer.json'
    path.write_text(path.read_text().replace(f'<|{token}|>', f'<|not {token}|>'))
    with pytest.raises(Refused, match='not a Whisper tokenizer, it lacks'):
        Whisper(tmp_path)

def test_what_is_no_whisper_is_refused_in_one_line(whisper, tmp_path):
    for folder, language, message in ((tmp_path, '', 'no tokenizer.json'), (whisper, 'xx', "no language 'xx'"),
                                      (tmp_path / 'none' / 'x' / 'y', '', 'nor a hub id')):
        with pytest.raises(Refused) as e:
            Whisper(folder, language=language)
        assert message in str(e.value) and '\n' not in str(e.value), e.value
    copy_files(whisper, tmp_path)
    (tmp_path / 'generation_config.json').write_text('{"alignment_heads": [[4, 0]]}')
    with pytest.raises(Refused, match='expected .layer, head. of its 4 layers of 4'):
        Whisper(tmp_path)
    config = HubertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    HubertModel(config).save_pretrained(tmp_path)
    with pytest.raises(Refused, match="holds a 'hubert', expected one of whisper"):
        Whisper(tmp_path)

# --------------------------------------------------------------------------------------------------
# words that no sound carries

def test_a_word_is_heard_if_a_moment_of_it_is_near_the_level_of_the_wave():
    wave = np.concatenate([speech_like(2, 0), np.zeros(RATE), .01 * speech_like(1, 1), .0001 * speech_like(1, 2)])
    seconds = np.array([(0, 1), (1.9, 2.5), (2.1, 2.9), (3, 4), (4.1, 5), (5, 5)])
    starts, ends = (seconds * RATE).astype(int).T.tolist()
    assert heard(wave.astype(np.float32), starts, ends) == [True, True, False, True, False, False]
    assert heard(np.zeros(10, np.float32), [0], [10]) == [False]

def silences():
    n = 3 * RATE
    rng = np.random.default_rng(0)
    return [np.zeros(n, np.float32), np.full(n, .1, np.float32), rng.integers(-1, 2, n).astype(np.float32) / 2**15,
            np.zeros(RATE // 4, np.float32), np.zeros(50 * RATE, np.float32)]

def test_nothing_is_written_of_silence(whisper):
    model = Whisper(whisper, language='en')
    model._decode = None # would raise
    assert model.transcribe(silences()) == [''] * 5
    assert model.align(silences()) == [([], [], [], '')] * 5 and model.unheard == [0] * 5

def test_text_is_written_of_the_sound_beside_a_silence_as_without_it(whisper):
    model = Whisper(whisper, language='en')
    wave = speech_like(29, 0)
    quiet = np.zeros(30 * RATE, np.float32)
    alone = model.transcribe([wave])
    assert alone[0] and model.transcribe([np.concatenate([quiet, quiet, wave])])[0]

@pytest.mark.parametrize('text, expected', [
    ('', True), (' [BLANK_AUDIO]', True), (' (water running)', True), (' ♪', True), (' ♪ la ♪', True), ('*sigh*', True),
    (' you', False), (' (he) said', False), (' (a) and (b)', False), (' 2 * 3 * 4', False)])
def test_texts_all_in_brackets_are_no_speech(text, expected):
    assert is_no_speech(text) is expected

@pytest.mark.parametrize('nobody_speaks', [True, False])
def test_words_of_windows_in_which_nobody_speaks_are_left_out_and_counted(whisper, monkeypatch, nobody_speaks):
    model = Whisper(whisper, language='en')
    tokens = [model.tokenizer.token_to_id(token) for token in ('Ġd', 'a', 'Ġd')] + [model.end]
    monkeypatch.setattr(model, '_decode', lambda *args: ([tokens], [nobody_speaks]))
    words, *_, reason = model.align([speech_like(2, 0)])[0]
    assert (words, reason, model.unheard) == (([], '', [2]) if nobody_speaks else ([' da', ' d'], '', [0]))

def test_the_probability_that_nobody_speaks_is_the_first_predictions(whisper, monkeypatch):
    model = Whisper(whisper, language='en')
    with torch.inference_mode():
        encoded, prompts = model._encode([(0, speech_like(2, 0))], {})
        logits = model.model(encoder_outputs=(encoded,), decoder_input_ids=torch.tensor(prompts)).logits[0, 0]
        p = logits.softmax(-1)[model.no_speech].item()
        for threshold, expected in ((p * .99, True), (p * 1.01, False)):
            monkeypatch.setattr(asr, 'NO_SPEECH', threshold)
            assert model._decode(encoded, prompts)[1] == [expected]

@pytest.mark.slow
@pytest.mark.skipif(not (WHISPER / 'model.safetensors').exists(),
                    reason=f"no {WHISPER}; ASSETS=FOLDER says where whisper-base is")
def test_whisper_hears_no_words_in_noise_and_tones():
    rng = np.random.default_rng(0)
    t = np.arange(5 * RATE) / RATE
    clicks = np.zeros(5 * RATE)
    clicks[::RATE // 2] = .5
    waves = [rng.normal(0, 10 ** (db / 20), 5 * RATE) for db in (-60, -40, -20)]
    waves += [.1 * np.sin(2 * np.pi * f * t) for f in (50, 440, 3000)] + [clicks]
    model = Whisper(WHISPER, language='en')
    assert model.align([wave.astype(np.float32) for wave in waves]) == [([], [], [], '')] * 7
    assert all(n > 0 for n in model.unheard)

def letters(word):
    return re.sub("[^a-z0-9']", '', word.casefold())

@pytest.mark.slow
@pytest.mark.skipif(not (WHISPER / 'model.safetensors').exists(),
                    reason=f"no {WHISPER}; ASSETS=FOLDER says where whisper-base is")
@pytest.mark.skipif(not LIBRISPEECH.is_dir(), reason='librispeech_mini is not here')
def test_whispers_word_starts_are_within_120_ms_of_a_forced_alignment_in_the_median():
    lines = [json.loads(line) for line in (LIBRISPEECH / 'manifest.jsonl').read_text().splitlines()]
    lines = lines[::17] # 8 speakers
    results = Whisper(WHISPER).align([load_audio(LIBRISPEECH / line['audio']) for line in lines])
    errors = []
    n_words = 0
    for line, (words, starts, _, reason) in zip(lines, results):
        assert reason == ''
        truth = line['words']
        n_words += len(truth)
        heard_letters = [letters(word) for word in words]
        true_letters = [letters(word) for word, *_ in truth]
        matcher = SequenceMatcher(None, heard_letters, true_letters, autojunk=False)
        for match in matcher.get_matching_blocks():
            for k in range(match.size):
                errors.append(abs(starts[match.a + k] / RATE - truth[match.b + k][1]))
    median = np.median(errors)
    assert len(errors) > .8 * n_words and median < .12, f"{len(errors)} of {n_words} words, median {median:.3f} s"
